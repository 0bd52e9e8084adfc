"""`vicur diagnose gradients`: angles between the language, the visual and the standard gradient by visual
dependency of the tokens (VGS section 3.2, figure 3).

    g_X(b) = gradient of (1 / |b|) sum of l_X,t over the tokens t of bin b
    VDS_t  = KL(q_t || q0_t)                                       eq. 12
    s      = |g_standard| / |g_standard + alpha g_visual|          eq. 15

X is the standard (eq. 3), the language (eq. 6) or the visual loss (eq. 11). Bins have equal numbers of
tokens; bin 0 has the lowest VDS. l_language has its gradient through the blind student, the other two
through the seeing one. The angle between gradients that are nearly zero is noise, so each bin's mean VDS and
norms are shown beside it; where a gradient is zero there is no angle.

Shape suffixes: N response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from vicur.compat import checkpoint_activations
from vicur.data.sample import Sample
from vicur.data.views import Blind, Plain
from vicur.diagnose.models import GroupSize, ModelsSettings
from vicur.diagnostics.dependence import equal_frequency_bins
from vicur.diagnostics.geometry import Gram
from vicur.evaluation.statistics import mean_interval
from vicur.models.out_of_memory import BatchSize
from vicur.models.sharding import local, shard
from vicur.objectives.objective import TEACHER, Look, Needs
from vicur.objectives.reduction import above_quantile
from vicur.objectives.visual_steering import (
    STUDENT_BLIND,
    TEACHER_BLIND,
    language_term,
    standard_term,
    visual_term,
)
from vicur.progress import Bars, silent
from vicur.reporting.curves import finish
from vicur.reporting.figures import MUTED, SERIES, draw_series, new_figure
from vicur.reporting.finding import Finding
from vicur.reporting.runs import is_number
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.rollout import Rollouts
from vicur.scoring.chunks import divergence
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import Term
from vicur.settings.section import Count, NonNegative, PathText, Share, section
from vicur.tables import plain_table
from vicur.training.scoring import ScoredBatch
from vicur.training.update import accumulate_gradient

STANDARD, LANGUAGE, VISUAL = "standard", "language", "visual"
LOSSES: dict[str, Callable[[Tensor], Term]] = {
    STANDARD: standard_term,
    LANGUAGE: language_term,
    VISUAL: visual_term,
}
PAIRS = ((LANGUAGE, VISUAL), (STANDARD, VISUAL), (STANDARD, LANGUAGE))
NEEDS = Needs(
    distributions={
        TEACHER: Look("teacher", Plain()),
        TEACHER_BLIND: Look("teacher", Blind()),
        STUDENT_BLIND: Look("student", Blind()),
    }
)
ALL = "all"
"""Name of the row of all tokens."""
NORM_UNIT = "nats per unit of weight"
MODULES = ("language model", "vision tower", "recovery module", "embeddings and head")


@section
class GradientsSettings(ModelsSettings):
    """The settings of `vicur diagnose gradients`."""

    student: PathText = "vicur:tiny-student"
    """The student, whose gradients are measured: checkpoint folder, hub id or "vicur:NAME"."""
    problems: Count | None = 64
    """Use only the first N problems; null for all."""
    group_size: GroupSize = 4
    """Number of responses per problem."""
    batches: Count = 4
    """Number of batches that the problems are divided into; each is measured by itself, and means have
    intervals from two batches on."""
    bins: Annotated[int, Field(ge=1, le=100)] = 10
    """Number of bins of equal numbers of tokens, by VDS."""
    alpha: NonNegative = 2.0
    """Steering coefficient in the scale s (eq. 15)."""
    upper_quantile: Share = 0.7
    """Quantile of VDS above which tokens are in the row of the most visual ones."""
    by_module: bool = False
    """Whether to also print the angles of each part of the model; the JSON always has them."""


@dataclass(frozen=True)
class Row:
    """The gradients of some tokens of a batch, compared.

    Attributes:
        tokens: number of tokens.
        vds: their mean VDS, in nats.
        losses: their mean l_X by name, in nats.
        grams: inner products of the gradients by part of the model.
    """

    tokens: int
    vds: float
    losses: Mapping[str, float]
    grams: Mapping[str, Gram]

    def numbers(self, alpha: float) -> dict[str, float | None]:
        """Angles in degrees, norms, r, s and losses by name; None where undefined."""
        return {
            "tokens": float(self.tokens),
            "vds": self.vds,
            **{f"loss_{name}": loss for name, loss in self.losses.items()},
            **_geometry(Gram.total(self.grams.values()), alpha),
        }


def gradients_by_dependency(settings: GradientsSettings, bars: Bars = silent) -> Finding:
    """Angles and norms of the three gradients in bins of visual dependency, on the student's responses.

    Args:
        settings: student, teacher, problems and bins.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: a model or the data cannot be read, the vocabularies differ, or there are fewer problems
            than batches or fewer tokens than bins.
    """
    samples = settings.open(bars)
    if len(samples) < settings.batches:
        raise ValueError(f"{len(samples)} problems cannot be divided into {settings.batches} batches.")
    loaded, teacher_model = settings.load(settings.student, bars), settings.load_teacher(bars)
    teacher = settings.teacher_scorer(loaded, teacher_model)
    if settings.scoring.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    shard(loaded.policy, "full", loaded.device)  # gradients are float32, whatever the compute dtype
    student = settings.scorer_of(loaded)
    edges = [round(i * len(samples) / settings.batches) for i in range(settings.batches + 1)]
    batches: list[dict[str, Row]] = []
    with closing(settings.open_engine(loaded)) as engine:
        generator = ModelGenerator(engine, settings.sampling, limits=settings.data.pixel_limits())
        for number in range(settings.batches):
            problems = [samples[i] for i in range(edges[number], edges[number + 1])]
            rollouts = respond(generator, problems, settings, bars)
            probe = GradientProbe.of(student, teacher, rollouts, settings.prompts_per_batch)
            title = f"gradients, batch {number + 1}/{settings.batches}"
            masks = token_rows(probe.vds_N, settings.bins, settings.upper_quantile)
            with untouched(student):
                rows = bars(title).over(masks.items(), len(masks))
                batches.append({name: probe.row(mask) for name, mask in rows})
    return _finding(batches, settings)


def respond(
    generator: ModelGenerator, problems: Sequence[Sample], settings: GradientsSettings, bars: Bars
) -> Rollouts:
    """The student's responses to the problems of a batch."""
    return bars("answering").during(
        lambda: generator.generate(problems, Plain(), group_size=settings.group_size, seed=settings.seed)
    )


def token_rows(vds_N: Float[Tensor, " N"], bins: int, upper_quantile: float) -> dict[str, Bool[Tensor, " N"]]:
    """The tokens of each bin, of all bins, and those above the upper quantile (VGS eq. 16), by name.

    Raises:
        ValueError: there are fewer tokens than bins.
    """
    index = equal_frequency_bins(vds_N, bins)
    rows = {f"bin {number}": index == number for number in range(bins)}
    rows[ALL] = torch.ones_like(index, dtype=torch.bool)
    rows[top_name(upper_quantile)] = above_quantile(vds_N, upper_quantile)
    return rows


def top_name(upper_quantile: float) -> str:
    """Name of the row of the most visual tokens."""
    return f"top {100 * (1 - upper_quantile):g} %"


@contextmanager
def untouched(student: Scorer) -> Iterator[None]:
    """A context in which gradients are computed in a student that afterwards has the `grad` it had before."""
    parameters = list(student.policy.parameters())
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


@dataclass
class GradientProbe:
    """Computes gradients of the losses over some of the tokens of a batch.

    Attributes:
        student: the student.
        batch: its responses and the distributions that the losses read.
        vds_N: VDS of every token, in nats.
        size: number of problems whose graphs are in memory together.
    """

    student: Scorer
    batch: ScoredBatch
    vds_N: Float[Tensor, " N"]
    size: BatchSize = field(default_factory=lambda: BatchSize(16, "prompts_per_batch"))

    @classmethod
    def of(
        cls, student: Scorer, teacher: Scorer, rollouts: Rollouts, prompts_per_batch: int
    ) -> GradientProbe:
        """Score the responses of a batch with student and teacher, with and without the image."""
        looks = NEEDS.distributions
        distributions = {
            name: (teacher if look.who == "teacher" else student).scores(
                rollouts.samples, rollouts.response_ids, look.resolved({"student": Plain()})
            )
            for name, look in looks.items()
        }
        batch = ScoredBatch(rollouts, (None,) * len(rollouts.flat_responses), distributions=distributions)
        reading = student.reading(torch.cat([response.ids for response in rollouts.flat_responses]))
        vds_N = divergence(distributions[TEACHER], distributions[TEACHER_BLIND], reading)
        return cls(student, batch, vds_N, BatchSize(prompts_per_batch, "prompts_per_batch"))

    def row(self, mask_N: Bool[Tensor, " N"]) -> Row:
        """Compare the three gradients of the mean losses over some tokens; without tokens they are zero."""
        count = int(mask_N.sum())
        weights_N = mask_N.double() / max(1, count)
        losses: dict[str, float] = {}
        gradients: dict[str, list[Tensor]] = {}
        for name, make in LOSSES.items():
            losses[name], gradients[name] = self.gradient(make(weights_N))
        grams = {
            module: Gram.of({name: [parts[i] for i in places] for name, parts in gradients.items()})
            for module, places in self._places().items()
        }
        vds = float(self.vds_N[mask_N].double().mean()) if count else math.nan
        return Row(count, vds, losses, grams)

    def gradient(self, term: Term) -> tuple[float, list[Tensor]]:
        """The weighted sum of a term, and its gradient: a float32 tensor for each trained parameter.

        Raises:
            OutOfMemory: memory is exhausted even with one problem at a time.
        """
        loss = self.size.run(
            lambda size: self._accumulate(term, size),
            self.student.policy.abandon_pass,
            most=len(self.batch.rollouts.samples),
        )
        gradient = []
        for _, parameter in self._trained():
            part = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradient.append(local(part).float())
            parameter.grad = None
        return loss, gradient

    def _accumulate(self, term: Term, size: int) -> float:
        """Accumulate the gradient in `grad`; problems without any weighted token are passed over."""
        assert term.weights is not None
        rollouts, loss = self.batch.rollouts, 0.0
        for start in range(0, len(rollouts.samples), size):
            problems = slice(start, start + size)
            part = term.part(rollouts.tokens(problems))
            if part.weights is not None and bool(part.weights.any()):
                losses, _ = accumulate_gradient(self.student, self.batch.part(problems), NEEDS, [part], size)
                loss += losses[term.name]
        return loss

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in self.student.policy.model.named_parameters() if p.requires_grad]

    def _places(self) -> dict[str, list[int]]:
        """Positions of each module's parameters in a gradient; modules without any are left out."""
        places: dict[str, list[int]] = {}
        for position, (name, _) in enumerate(self._trained()):
            places.setdefault(module_of(name), []).append(position)
        return {module: places[module] for module in MODULES if module in places}


def module_of(name: str) -> str:
    """The part of the model that a parameter belongs to, one of `MODULES`."""
    if name.startswith("recovery."):
        return "recovery module"
    if name.startswith("model.visual."):
        return "vision tower"
    if "embed_tokens" in name or "lm_head" in name:
        return "embeddings and head"
    return "language model"


def _geometry(gram: Gram, alpha: float) -> dict[str, float | None]:
    """Angles in degrees, norms, r and s; None where undefined."""
    return {
        **{f"angle_{a}_{b}": gram.angle(a, b) for a, b in PAIRS},
        **{f"norm_{name}": gram.norm(name) for name in LOSSES},
        "norm_ratio": gram.ratio(VISUAL, STANDARD),
        "scale": gram.steering_scale(STANDARD, VISUAL, alpha),
    }


def summarise(numbers: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Mean over batches of each number, with its 95 % interval from two batches on.

    Batches in which a number is undefined are left out; `batches` says how many there are.
    """
    result: dict[str, dict[str, Any]] = {}
    for name in numbers[0]:
        values = [value for each in numbers if is_number(value := each[name]) and value is not None]
        mean = sum(values) / len(values) if values else None
        result[name] = {"mean": mean, "low": None, "high": None, "batches": len(values)}
        if len(values) > 1:
            interval = mean_interval(values)
            result[name] |= {"low": interval.low, "high": interval.high}
    return result


def _finding(batches: Sequence[Mapping[str, Row]], settings: GradientsSettings) -> Finding:
    alpha = settings.alpha
    rows = {name: summarise([batch[name].numbers(alpha) for batch in batches]) for name in batches[0]}
    by_module = {
        module: {
            name: summarise([_geometry(batch[name].grams[module], alpha) for batch in batches])
            for name in batches[0]
        }
        for module in batches[0][ALL].grams
    }
    values: dict[str, Any] = {
        "units": {
            "angle": "degrees",
            "vds": "nats",
            "loss": "nats per token",
            "norm": NORM_UNIT,
        },
        "student": settings.student,
        "teacher": settings.teacher,
        "alpha": alpha,
        "rows": rows,
        "by_module": by_module,
        "batches": [{name: row.numbers(alpha) for name, row in batch.items()} for batch in batches],
    }
    title = "Angles in degrees and norms of the gradients of standard (S), language (L) and visual loss (V)"
    tables = [angle_table(title, rows)]
    if settings.by_module:
        tables += [angle_table(f"The same for the {module}", part) for module, part in by_module.items()]
    note = (
        "Bin 0 has the lowest VDS. VGS section 3.2 reports for L and V an angle that rises from about 60 "
        "degrees in bin 0 to 92 in bin 9, where that of S and V is about 42 and that of S and L about 50. "
        "The angle of gradients near zero is noise: read it beside VDS and norms."
    )
    return Finding("gradients", values, lambda: draw_gradients(rows, settings.bins), tuple(tables), (note,))


def angle_table(title: str, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Any:
    """Angles with half their interval, and norms, of each row."""
    norms = ["norm_standard", "norm_language", "norm_visual", "norm_ratio", "scale"]
    numbers = (["vds"] if all("vds" in row for row in rows.values()) else []) + norms
    heads = {"vds": "VDS", **dict(zip(norms, ["|S|", "|L|", "|V|", "r", "s"], strict=True))}
    body = [
        [
            name.removeprefix("bin "),
            *(_angle(row[f"angle_{a}_{b}"]) for a, b in PAIRS),
            *("undefined" if row[key]["mean"] is None else f"{row[key]['mean']:.2g}" for key in numbers),
        ]
        for name, row in rows.items()
    ]
    return plain_table(title, ["bin", "L, V", "S, V", "S, L", *(heads[key] for key in numbers)], body)


def _angle(number: Mapping[str, Any]) -> str:
    if number["mean"] is None:
        return "undefined"
    spread = "" if number["low"] is None else f" ±{(number['high'] - number['low']) / 2:.0f}"
    return f"{number['mean']:.0f}{spread}"


def draw_gradients(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], bins: int) -> Figure:
    """Above: the three angles by bin (VGS figure 3). Below: norms, mean VDS, and r and s by bin."""
    binned = [rows[f"bin {number}"] for number in range(bins)]
    figure, panels = new_figure(2, 3, width=4.0, height=3.0)
    for index, (panel, (first, second)) in enumerate(zip(panels[:3], PAIRS, strict=True)):
        _draw_numbers(panel, binned, [f"angle_{first}_{second}"], index)
        panel.axhline(90, color=MUTED, linestyle="--", linewidth=1)
        panel.set_ylim(0, 180)
        panel.set_yticks(range(0, 181, 30))
        _finish(panel, f"Angle {first}, {second}", "degrees", bins)
        panel.set_xlabel("bin, and its mean VDS in nats")
        ticks = panel.get_xticks().astype(int).tolist()
        panel.set_xticks(ticks, [f"{n}\n{_short(binned[n]['vds']['mean'])}" for n in ticks], fontsize=8)
    for panel in panels[3:5]:
        panel.set_yscale("log")
    _draw_numbers(panels[3], binned, [f"norm_{name}" for name in LOSSES])
    _finish(panels[3], "Norm of the gradients", NORM_UNIT, bins)
    _draw_numbers(panels[4], binned, ["vds"])
    _finish(panels[4], "Mean VDS", "nats", bins)
    _draw_numbers(panels[5], binned, ["norm_ratio", "scale"])
    _finish(panels[5], "Ratio r = |visual| / |standard|, scale s", "", bins)
    for panel, labels in ((panels[3], list(LOSSES)), (panels[5], ["r", "s"])):
        for line, label in zip(panel.get_lines(), labels, strict=True):
            line.set_label(label)
        panel.legend(fontsize=8)
    return figure


def _draw_numbers(
    panel: Axes, binned: Sequence[Mapping[str, Mapping[str, Any]]], names: Sequence[str], first: int = 0
) -> None:
    """Draw numbers by bin with their intervals; bins without a number are gaps."""
    for index, name in enumerate(names, start=first):
        means = [math.nan if row[name]["mean"] is None else row[name]["mean"] for row in binned]
        for number, row in enumerate(binned):
            # On a logarithmic axis an interval that reaches below zero has no end.
            if row[name]["low"] is not None and panel.get_yscale() == "linear":
                ends = (row[name]["low"], row[name]["high"])
                panel.vlines(number, *ends, color=SERIES[index % len(SERIES)], alpha=0.45, linewidth=3)
        draw_series(panel, range(len(binned)), means, index, name)


def _finish(panel: Axes, title: str, unit: str, bins: int) -> None:
    finish(panel, title, unit, "bin of VDS, from the lowest")
    panel.set_xticks(range(0, bins, max(1, bins // 10)))


def _short(value: float) -> str:
    """A number in at most five characters, e.g. 4e-6."""
    return f"{value:.0e}".replace("e-0", "e-") if value < 0.01 else f"{value:.2g}"
