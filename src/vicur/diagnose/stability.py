"""`vicur diagnose stability`: how a model answers when it is asked the same question again (ViCuR appendix
E.1, "10 repeated runs with identical input").

Every model answers each problem several times from its own prompt. The responses differ only by their random
numbers, which depend on the seed, the problem and the number of the response, so that a repetition of the
command gives the same responses. Shown are how many are right, the distinct final answers, and lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from rich.table import Table

from vicur.data.sample import Sample
from vicur.diagnose.models import ModelsSettings
from vicur.diagnose.tokens import positions
from vicur.evaluation.presets import OWN_SAMPLING, preset_settings
from vicur.models.load import LoadedModel
from vicur.paths import names_of
from vicur.progress import Bars, silent
from vicur.reporting.curves import finish
from vicur.reporting.figures import INK, MUTED, PAPER, SERIES, new_figure, plain_text
from vicur.reporting.finding import Finding
from vicur.rewards.grader import Grader
from vicur.rollouts.grading import grade_response
from vicur.settings.schema import Layer, Schema
from vicur.settings.section import PathText, SettingsError, Text, section
from vicur.tables import plain_table
from vicur.wording import shortened
from vicur.worth.responses import StudentResponses

NO_ANSWER = "(no answer)"
"""Name of the responses in which no answer was found."""
RIGHT = SERIES[2]
WRONG = (SERIES[1], SERIES[4], SERIES[3], SERIES[5])
"""Colours of right and wrong answers; right ones are outlined, too, so that no reader depends on colour."""
LIGHT = (SERIES[3], SERIES[5])
"""Colours on which text is dark."""
LONGEST = 16
"""Maximum number of characters of an answer in the figure."""
VERDICTS = {True: "right", False: "wrong", None: "not graded"}
BEGINNING, ANSWER = 54, 24
"""Maximum number of characters of a response and of an answer in the tables."""


@section
class StabilitySettings(ModelsSettings):
    """The settings of `vicur diagnose stability`."""

    model: list[PathText] = field(default_factory=list)
    """Models that are asked: checkpoint folders, hub ids or "vicur:NAME"."""
    names: list[Text] = field(default_factory=list)
    """A name for each model in tables and figures; by default the end of its path."""
    problem: list[int | Text] = field(default_factory=lambda: [0])
    """Problems: ids, or positions in the data, counted from 0."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 10
    """Number of responses of each model to each problem."""
    preset: PathText = "vicur"
    """Sampling, system prompt and image limits to start from: greedy, vicur, va-opd, vgs-greedy, vgs-sampled,
    or a YAML file. Settings given here override it; its number of responses is not used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples={self.samples} responses are all the same at temperature 0; choose another preset, "
                "set sampling.temperature, or samples=1."
            )


def stability_settings(schema: Schema[StabilitySettings], user: Sequence[Layer]) -> StabilitySettings:
    """The user's settings over those of the preset.

    Raises:
        SettingsError: a setting or the preset does not exist or does not fit.
    """
    sampling = Layer("", {"sampling.temperature": 1.0})  # until the preset is known
    preset = schema.load([*user, sampling]).preset
    if preset == OWN_SAMPLING:
        raise SettingsError(f"preset={OWN_SAMPLING} differs between models; choose another preset.")
    stated = {name: value for name, value in preset_settings(preset).items() if name != "samples"}
    return schema.load([Layer(f"preset {preset}", stated), *user])


@dataclass(frozen=True)
class Repeated:
    """The responses of one model to one problem.

    Attributes:
        problem: id of the problem.
        gold: its gold answer.
        texts: the responses.
        lengths: their numbers of tokens.
        answers: the final answer found in each; None where there is none.
        correct: whether each is right; None where it cannot be graded.
        truncated: number of responses that were cut off at the length limit.
    """

    problem: str
    gold: str | None
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    answers: tuple[str | None, ...]
    correct: tuple[bool | None, ...]
    truncated: int

    @property
    def right(self) -> int:
        """Number of right responses."""
        return sum(value is True for value in self.correct)

    @property
    def share(self) -> str:
        """How many are right, e.g. "7/10"."""
        return f"{self.right}/{len(self.texts)}"

    @property
    def counts(self) -> list[dict[str, Any]]:
        """The distinct answers with their counts: right ones first, then by their counts. Answers that differ
        only in notation are distinct."""
        pairs = Counter(zip(self.answers, self.correct, strict=True))
        counts = [
            {"answer": answer, "correct": correct, "count": count}
            for (answer, correct), count in pairs.most_common()
        ]
        return sorted(counts, key=lambda part: (part["correct"] is not True, part["answer"] is None))

    def as_dict(self) -> dict[str, Any]:
        """The responses for JSON."""
        return {
            "gold": self.gold,
            "right": self.right,
            "responses": len(self.texts),
            "answers": self.counts,
            "mean_tokens": float(np.mean(self.lengths)),
            "truncated": self.truncated,
            "each": [
                {"response": text, "tokens": length, "answer": answer, "correct": correct}
                for text, length, answer, correct in zip(
                    self.texts, self.lengths, self.answers, self.correct, strict=True
                )
            ],
        }


def stability_of_models(settings: StabilitySettings, bars: Bars = silent) -> Finding:
    """Let several models answer a few problems many times each.

    Args:
        settings: models, problems and sampling.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: no model is given, a model or the data cannot be read, or there is no such problem.
    """
    if not settings.model:
        raise ValueError("Give at least one --model.")
    names = names_of(settings.model, settings.names)
    source = settings.open(bars)
    samples = [source[index] for index in positions(source, settings.problem)]
    models: dict[str, list[Repeated]] = {}
    for name, path in zip(names, settings.model, strict=True):
        loaded = settings.load(path, bars)
        responses = settings.answer(loaded, samples, bars, group_size=settings.samples)
        models[name] = repeated(settings, loaded, samples, responses)
    sampling = settings.sampling
    values: dict[str, Any] = {
        "units": {"tokens": "tokens"},
        "samples": settings.samples,
        "preset": settings.preset,
        "sampling": {name: getattr(sampling, name) for name in sampling.__dataclass_fields__},
        "seed": settings.seed,
        "models": {
            name: {each.problem: each.as_dict() for each in problems} for name, problems in models.items()
        },
    }
    each = [(name, responses) for name, problems in models.items() for responses in problems]
    tables = (answers_table(models), *(responses_table(name, responses) for name, responses in each))
    return Finding("stability", values, lambda: draw_stability(models), tables, _notes(models, settings))


def repeated(
    settings: StabilitySettings,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    responses: StudentResponses,
) -> list[Repeated]:
    """The responses of a model, problem by problem, with the answers that the grader finds in them."""
    grader, limit = Grader(settings.rewards), settings.sampling.max_new_tokens
    stops = set(loaded.vocabulary.stop_ids)
    results = []
    for sample, ids, texts in zip(samples, responses.ids, responses.texts, strict=True):
        grades = [grade_response(grader, sample, text) for text in texts]
        results.append(
            Repeated(
                problem=sample.id,
                gold=sample.answer,
                texts=texts,
                lengths=tuple(map(len, ids)),
                answers=tuple(None if grade is None else grade.extracted for grade in grades),
                correct=tuple(None if grade is None else grade.correct for grade in grades),
                truncated=sum(len(each) >= limit and int(each[-1]) not in stops for each in ids),
            )
        )
    return results


def _notes(models: Mapping[str, Sequence[Repeated]], settings: StabilitySettings) -> tuple[str, ...]:
    notes = []
    for name, problems in models.items():
        if cut := sum(each.truncated for each in problems):
            limit = settings.sampling.max_new_tokens
            notes.append(
                f"{name}: {cut} of {sum(len(each.texts) for each in problems)} responses were cut off at "
                f"{limit} tokens; raise --max-new-tokens."
            )
    if any(value is None for problems in models.values() for each in problems for value in each.correct):
        notes.append("Responses to problems without an answer that can be graded count as not right.")
    return tuple(notes)


def answers_table(models: Mapping[str, Sequence[Repeated]]) -> Table:
    """How many responses are right, and the distinct answers, by model and problem."""
    rows = []
    for name, problems in models.items():
        for each in problems:
            answers = "; ".join(f"{_name(part)} {_count(part)}" for part in each.counts)
            spread = f"{np.mean(each.lengths):.0f} ({min(each.lengths)}-{max(each.lengths)})"
            rows.append([name, each.problem, each.gold or "-", each.share, answers, spread])
    columns = ["model", "problem", "gold answer", "right", "answers", "tokens"]
    return plain_table("Repeated answers to the same problem", columns, rows)


def responses_table(name: str, responses: Repeated) -> Table:
    """The beginning of each response of a model to a problem; the JSON has all of it."""
    each = zip(responses.texts, responses.lengths, responses.answers, responses.correct, strict=True)
    rows = [
        [
            shortened(" ".join(text.split()), BEGINNING),
            length,
            "-" if answer is None else _one_line(answer),
            VERDICTS[correct],
        ]
        for text, length, answer, correct in each
    ]
    title = f"{name}, problem {responses.problem}: {responses.share} right"
    return plain_table(title, ["response", "tokens", "answer", ""], rows)


def _name(part: Mapping[str, Any]) -> str:
    return NO_ANSWER if part["answer"] is None else _one_line(part["answer"])


def _one_line(answer: str) -> str:
    return shortened(" ".join(answer.split()), ANSWER)


def _count(part: Mapping[str, Any]) -> str:
    return f"x{part['count']}{' (right)' if part['correct'] else ''}"


def draw_stability(models: Mapping[str, Sequence[Repeated]]) -> Figure:
    """A panel for each problem: a bar for each model, divided by its answers."""
    count = len(next(iter(models.values())))
    figure, panels = new_figure(count, 1, width=7.2, height=1.0 + 0.5 * len(models))
    for index, panel in enumerate(panels):
        _draw_problem(panel, {name: problems[index] for name, problems in models.items()})
    return figure


def _draw_problem(panel: Axes, models: Mapping[str, Repeated]) -> None:
    wrong = [part["answer"] for each in models.values() for part in each.counts if not part["correct"]]
    colours = {answer: WRONG[i % len(WRONG)] for i, answer in enumerate(dict.fromkeys(wrong))}
    first = next(iter(models.values()))
    most = max(len(each.texts) for each in models.values())
    for row, each in enumerate(models.values()):
        left = 0
        for part in each.counts:
            answer, count, is_right = part["answer"], part["count"], bool(part["correct"])
            colour = RIGHT if is_right else MUTED if answer is None else colours[answer]
            edge, width = (INK, 1.6) if is_right else (PAPER, 1.0)
            style: dict[str, Any] = {"color": colour, "edgecolor": edge, "linewidth": width}
            panel.barh(row, count, left=left, height=0.6, zorder=3 if is_right else 2, **style)
            place, text = (left + count / 2, row), _fitting(_name(part), count / most)
            ink = INK if colour in LIGHT else PAPER
            panel.text(*place, text, ha="center", va="center", color=ink, fontsize=8.5, zorder=4)
            left += count
        panel.text(left + 0.015 * most, row, f"{each.share} right", va="center")
    panel.set_yticks(range(len(models)), [plain_text(name) for name in models])
    title = f"Problem {first.problem}, gold answer {first.gold or '-'}"
    finish(panel, plain_text(title), "", x="responses by final answer; right ones outlined")
    panel.set_ylim(len(models) - 0.5, -0.5)
    panel.set_xlim(0, 1.14 * most)
    panel.grid(visible=False)


def _fitting(text: str, share: float) -> str:
    """An answer, shortened to the width of its part of the bar."""
    room = min(LONGEST, int(70 * share))
    short = text if len(text) <= room else f"{text[: max(0, room - 1)]}…" if room > 2 else ""
    return plain_text(short)
