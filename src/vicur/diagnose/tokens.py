"""`vicur diagnose tokens`: measures of every token of one response under several models, as coloured text
(VA-OPD figure 6, VGS appendix F).

VA-OPD's figure shows "VA under three students", its equation 2 takes the teacher's. Both can be drawn: by
default each named model judges by itself (its own use of detail in the image); with scorer=teacher the
teacher does, and then visual advantage and VDS do not depend on the student.

Shape suffixes: N response tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.special_tokens import QuotedTokens
from vicur.data.views import Plain
from vicur.diagnose.models import ModelsSettings
from vicur.diagnostics.measures import Observer
from vicur.models.load import LoadedModel
from vicur.objectives.divergence import student_reverse_kl
from vicur.objectives.objective import TEACHER
from vicur.paths import names_of
from vicur.progress import Bars, silent
from vicur.reporting.figures import INK, MUTED, SERIES, plain_text
from vicur.reporting.finding import Finding
from vicur.rollouts.pieces import pieces_of
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.chunks import observed_terms
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import Term
from vicur.scoring.terms import entropy
from vicur.settings.section import Count, PathText, PositiveShare, Text, section
from vicur.tables import plain_table
from vicur.wording import printable, shortened

Shown = Literal["visual_advantage", "vds", "gap", "language_kl", "loss", "entropy"]
TITLES: dict[Shown, str] = {
    "visual_advantage": "Visual advantage",
    "vds": "Visual dependency (VDS)",
    "gap": "Gap, teacher - student",
    "language_kl": "Language loss",
    "loss": "Loss KL(p || q)",
    "entropy": "Entropy",
}
"""Measures of a token, all in nats. Those that need a teacher: gap, language_kl and loss."""
COLUMNS = 116
"""Width of the text in characters."""
HEADS: dict[str, str] = {
    "visual_advantage": "VA",
    "vds": "VDS",
    "gap": "gap",
    "language_kl": "lang KL",
    "loss": "KL",
    "entropy": "entropy",
}
"""Column heads of the table."""
STRONGEST = 0.75
"""Opacity of the largest value: text on it must stay readable."""


@section
class TokensSettings(ModelsSettings):
    """The settings of `vicur diagnose tokens`."""

    student: list[PathText] = field(default_factory=list)
    """Models under which the tokens are measured: checkpoint folders, hub ids or "vicur:NAME"."""
    names: list[Text] = field(default_factory=list)
    """A name for each model in tables and figures; by default the end of its path."""
    problem: list[int | Text] = field(default_factory=lambda: [0])
    """Problems: ids, or positions in the data, counted from 0."""
    response: Text | None = None
    """A response to the problem; null for that of the first student."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Sampling of the response; greedy by default."""
    scorer: Literal["student", "teacher"] = "student"
    """Model that judges visual advantage and VDS: each model itself ("VA under three students"), or the
    teacher (VA-OPD eq. 2, VGS eq. 12)."""
    measure: Shown = "visual_advantage"
    """Measure that the figure shows; the JSON has all."""
    degraded_ratio: PositiveShare = 0.1
    """Ratio of side lengths of the degraded image."""
    most_tokens: Count = 600
    """Number of tokens of a response that the figure shows at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.student:
            raise ValueError("Give at least one --student.")
        if self.response is not None and len(self.problem) > 1:
            raise ValueError("A given response answers one problem; set one --problem.")
        if self.teacher is None and self.scorer == "teacher":
            raise ValueError("scorer=teacher needs a teacher: set --teacher.")
        if self.teacher is None and self.measure in ("gap", "language_kl", "loss"):
            raise ValueError(f"measure={self.measure} compares with a teacher: set --teacher.")


@dataclass(frozen=True)
class ScoredResponse:
    """A response and the measures of its tokens.

    Attributes:
        sample: the problem.
        pieces: the text that each token adds.
        ids_N: the tokens.
        measures: measures of every token in nats, by name of the model and of the measure.
    """

    sample: Sample
    pieces: Sequence[str]
    ids_N: Int[Tensor, " N"]
    measures: dict[str, dict[str, Float[Tensor, " N"]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The response for JSON, a value for each token."""
        return {
            "problem": self.sample.id,
            "answer": self.sample.answer,
            "response": "".join(self.pieces),
            "tokens": list(self.pieces),
            "ids": self.ids_N.tolist(),
            "models": {
                name: {measure: values.tolist() for measure, values in measures.items()}
                for name, measures in self.measures.items()
            },
        }


def tokens_of_responses(settings: TokensSettings, bars: Bars = silent) -> Finding:
    """Measures of every token of a response to each of a few problems, under several models.

    Args:
        settings: models, problems and what is shown.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: a model or the data cannot be read, there is no such problem, or the vocabularies differ.
    """
    source = settings.open(bars)
    samples = [source[index] for index in positions(source, settings.problem)]
    names = names_of(settings.student, settings.names)
    teacher = None if settings.teacher is None else settings.load_teacher(bars)
    scored: list[ScoredResponse] = []
    for name, path in zip(names, settings.student, strict=True):
        loaded = settings.load(path, bars)
        scored = scored or first_responses(settings, loaded, samples, bars)
        for response in scored:
            response.measures[name] = measure_tokens(settings, loaded, teacher, response)
    values: dict[str, Any] = {
        "units": {"measures": "nats"},
        "scorer": settings.scorer,
        "teacher": settings.teacher,
        "responses": [response.as_dict() for response in scored],
    }
    table = means_table(scored)
    return Finding("tokens", values, lambda: draw_tokens(scored, settings), (table,))


def positions(source: FileSource, problems: Sequence[int | str]) -> list[int]:
    """The positions of problems that are named by id or by position; an id comes first.

    Raises:
        ValueError: there is no such problem.
    """
    ids = [str(key) for key in source.column("id")]
    result = []
    for name in map(str, problems):
        if name in ids:
            result.append(ids.index(name))
        elif name.isdecimal() and int(name) < len(ids):
            result.append(int(name))
        else:
            raise ValueError(
                f"{source.name} has no problem {name}: give an id such as {ids[0]}, or a position from 0 to "
                f"{len(ids) - 1}."
            )
    return result


def first_responses(
    settings: TokensSettings, loaded: LoadedModel, samples: Sequence[Sample], bars: Bars
) -> list[ScoredResponse]:
    """The response that is given, or that a model writes to each problem."""
    tokenizer = loaded.processor.tokenizer
    if settings.response is not None:
        # Special tokens in it are text, as in responses from data.
        ids = [*QuotedTokens(tokenizer).plain_ids(settings.response), loaded.vocabulary.stop_ids[0]]
        responses = [torch.tensor(ids)]
    else:
        responses = [group[0] for group in settings.answer(loaded, samples, bars).ids]
    return [
        ScoredResponse(sample, pieces_of(ids.tolist(), tokenizer), ids)
        for sample, ids in zip(samples, responses, strict=True)
    ]


def measure_tokens(
    settings: TokensSettings, loaded: LoadedModel, teacher_model: LoadedModel | None, response: ScoredResponse
) -> dict[str, Float[Tensor, " N"]]:
    """The measures of a response's tokens under a model, by the names of `TITLES`.

    Args:
        settings: the judge, and the ratio of degraded images.
        loaded: the model.
        teacher_model: the teacher; None if there is none.
        response: the response.

    Raises:
        ValueError: the vocabularies differ.
    """
    samples, ids = [response.sample], [[response.ids_N]]
    student = settings.scorer_of(loaded)
    teacher = None if teacher_model is None else settings.teacher_scorer(loaded, teacher_model)
    judge = teacher if settings.scorer == "teacher" and teacher is not None else student
    observer = Observer(student, judge, ratio=settings.degraded_ratio)
    measures = observer.measure(samples, ids, ["visual_advantage", "vds"])
    if teacher is not None:
        of_teacher = Observer(student, teacher).measure(samples, ids, ["language_kl", "gap_split"])
        measures |= {name: of_teacher[name] for name in ("language_kl", "gap")}
    measures |= loss_and_entropy(student, teacher, response)
    return {name: measures[name].cpu() for name in TITLES if name in measures}


def loss_and_entropy(
    student: Scorer, teacher: Scorer | None, response: ScoredResponse
) -> dict[str, Float[Tensor, " N"]]:
    """The entropy of a model at every token, and KL(p || q) to the teacher if there is one."""
    samples, ids = [response.sample], [[response.ids_N]]
    terms, others = [Term("entropy", lambda block: entropy(block.log_p_CV))], {}
    if teacher is not None:
        terms.append(Term("loss", student_reverse_kl, reads=(TEACHER,)))
        others[TEACHER] = teacher.scores(samples, ids, Plain())
    reading = student.reading(response.ids_N)
    rows = observed_terms(student.scores(samples, ids, Plain()), reading, terms, others)
    return {term.name: row for term, row in zip(terms, rows, strict=True)}


def means_table(scored: Sequence[ScoredResponse]) -> Any:
    """Means over the tokens of each response, under each model."""
    measured = [name for name in TITLES if any(name in m for r in scored for m in r.measures.values())]
    return plain_table(
        "Means over the tokens of a response, nats",
        ["model", "problem", "tokens", *(HEADS[name] for name in measured)],
        [
            [name, shortened(response.sample.id, 12), len(response.ids_N)]
            + [float(measures[key].double().mean()) for key in measured]
            for response in scored
            for name, measures in response.measures.items()
        ],
    )


# ------------------------------------------------------------------------------------------- the figure


@dataclass(frozen=True)
class Cell:
    """A piece of text at its place.

    Attributes:
        line: its line, from 0.
        column: its first column, from 0.
        width: number of columns.
        text: what is drawn.
        token: number of the token.
    """

    line: int
    column: int
    width: int
    text: str
    token: int


def layout_cells(pieces: Sequence[str], columns: int = COLUMNS) -> tuple[list[Cell], int]:
    """Lay out the texts of tokens in lines of characters of equal width.

    A token longer than the rest of its line begins the next one, or is split if it is longer than a line. A
    line end is drawn as an arrow and ends the line. A token that adds no text of its own, because it holds a
    part of a character, is drawn as a dot.

    Returns:
        the cells, and the number of lines.
    """
    cells: list[Cell] = []
    line = column = 0
    for token, piece in enumerate(pieces):
        for part in _lines_of(piece or "·"):
            text, ends = part.removesuffix("\n"), part.endswith("\n")
            drawn = printable(text.replace("\t", "    ")) + ("↵" if ends else "")
            if column and column + _width(drawn) > columns:
                line, column = line + 1, 0
            for chunk in _chunks(drawn, columns):
                if column + _width(chunk) > columns:
                    line, column = line + 1, 0
                cells.append(Cell(line, column, _width(chunk), chunk, token))
                column += _width(chunk)
            if ends:
                line, column = line + 1, 0
    return cells, line + bool(column)


def _lines_of(piece: str) -> list[str]:
    """The parts of a text up to and including each line end."""
    parts = piece.replace("\r", "").split("\n")
    return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _width(text: str) -> int:
    """Columns of a text: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _chunks(text: str, columns: int) -> Iterator[str]:
    chunk = ""
    for char in text:
        if _width(chunk + char) > columns:
            yield chunk
            chunk = ""
        chunk += char
    if chunk:
        yield chunk


def draw_tokens(scored: Sequence[ScoredResponse], settings: TokensSettings) -> Figure:
    """The responses as coloured text, a block for each model; one colour scale for all of them."""
    measure, most = settings.measure, settings.most_tokens
    blocks = [
        (f"{name}   ({shortened(response.sample.id, 40)})", response.pieces[:most], measures[measure][:most])
        for response in scored
        for name, measures in response.measures.items()
    ]
    largest = max((float(values.abs().max()) for _, _, values in blocks if len(values)), default=0.0)
    placed = [(title, *layout_cells(pieces), values) for title, pieces, values in blocks]
    height = sum(lines + 2 for _, _, lines, _ in placed) + 3
    figure = Figure(figsize=(10, 0.21 * height))
    panel = figure.add_axes((0.01, 0.0, 0.98, 1.0))
    panel.set_xlim(0, COLUMNS)
    panel.set_ylim(height, 0)
    panel.axis("off")
    _draw_scale(panel, TITLES[measure], largest, signed=measure == "gap")
    top = 3.0
    for title, cells, lines, values in placed:
        panel.text(0, top + 0.5, plain_text(title), va="center", fontweight="bold", fontsize=9)
        for cell in cells:
            _draw_cell(panel, cell, top + 1, _shade(float(values[cell.token]), largest))
        top += lines + 2
    return figure


def _shade(value: float, largest: float) -> dict[str, Any]:
    """Colour and opacity of a value; translucent, so that the text is readable on any page."""
    colour = SERIES[1] if value >= 0 else SERIES[0]
    share = min(1.0, abs(value) / largest) if largest > 0 else 0.0
    return {"facecolor": colour, "alpha": STRONGEST * share}


def _draw_cell(panel: Axes, cell: Cell, top: float, shade: Mapping[str, Any]) -> None:
    panel.add_patch(Rectangle((cell.column, top + cell.line), cell.width, 0.96, linewidth=0, **shade))
    # A text of spaces would be trimmed; the rectangle shows it.
    offset = len(cell.text) - len(cell.text.lstrip(" "))
    panel.text(
        cell.column + offset,
        top + cell.line + 0.5,
        plain_text(cell.text.strip(" ")),
        va="center_baseline",
        family="monospace",
        fontsize=9.6,
        color=INK,
    )


def _draw_scale(panel: Axes, title: str, largest: float, *, signed: bool) -> None:
    """The colour scale: opacity from 0 to the largest value, for both signs if there are any."""
    panel.text(0, 0.9, f"{title}, nats", va="center", fontweight="bold")
    steps, width, left = 40, 16, 34
    sides = (-1, 1) if signed else (1,)
    for place, side in enumerate(sides):
        for step in range(steps):
            share = (step if side > 0 else steps - 1 - step) / (steps - 1)
            x = left + width * (place + step / steps)
            shade = _shade(side * share, 1.0)
            panel.add_patch(Rectangle((x, 0.5), width / steps, 0.8, linewidth=0, **shade))
    ends = [(left, f"{-largest:.2g}" if signed else "0"), (left + width * len(sides), f"{largest:.2g}")]
    for (x, text), align in zip(ends, ("right", "left"), strict=True):
        panel.text(x + (-0.6 if align == "right" else 0.6), 0.9, text, va="center", ha=align, color=MUTED)
