"""`vicur bench latency`: what cue recovery costs when a model answers (ViCuR table 7).

Prompts of exact sizes are answered one at a time, by a model and its base in turn. Prefill is the time until
the model has read the prompt, vision tower included, and preparing the image excluded. Decoding is measured
twice: over a fixed number of tokens, at which a response cannot stop, and over responses of free length, as
in the paper. The number of tokens differs between models, and so does the time of a free response; decoding
at a fixed length can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from rich.table import Table

from vicur.bench.inputs import InputSize, encoded
from vicur.bench.timing import Spread, hardware, in_turns, synchronise
from vicur.encoding.prompts import EncodedPrompt
from vicur.evaluation.presets import part_of, preset_settings
from vicur.models.checkpoints import Dtype
from vicur.models.devices import choose_device
from vicur.models.load import LoadedModel, copy_of, load_model
from vicur.paths import names_of
from vicur.progress import Bars, silent
from vicur.reporting.curves import finish
from vicur.reporting.figures import INK, SERIES, legend, new_figure, plain_text
from vicur.reporting.finding import Finding, FindingOutput
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.section import Count, PathText, Seed, Text, TokenCount, section
from vicur.tables import plain_table

SELF = "self"
"""Name of the base that is the model itself without its recovery module."""
GPU_LENGTHS, CPU_LENGTHS = (2048, 128), (64, 16)
"""Default lengths of free and of fixed responses, in tokens; that of free ones on a GPU is the paper's."""
MEASURES = ("prefill_ms", "decode_ms", "free_decode_ms", "free_tokens", "free_total_ms")
"""What each run measures."""
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The numbers by size of the prompt and by model."""


@section
class LatencySettings(FindingOutput):
    """The settings of `vicur bench latency`."""

    model: PathText = "vicur:tiny-student"
    """The model: checkpoint folder, hub id or "vicur:NAME"."""
    base: PathText = SELF
    """What it is compared with: another checkpoint, or "self" for the model without its recovery module."""
    names: list[Text] = field(default_factory=list)
    """A name for the model and one for the base in tables and figures."""
    input: list[Text] = field(default_factory=lambda: ["64/88", "1782/1821"])
    """Sizes of the prompts, VISUAL/PROMPT: number of visual tokens among the prompt's. The default sizes are
    the paper's."""
    dtype: Dtype | None = None
    """Compute dtype; null for bfloat16 on a GPU and float32 on a CPU."""
    warm_up: Annotated[int, Field(ge=0, le=4096)] = 3
    """Number of runs that are not counted."""
    runs: Count = 10
    """Number of runs that are counted."""
    max_new_tokens: TokenCount | None = None
    """Maximum length of a response of free length; null for 2,048 on a GPU and 64 on a CPU."""
    decode_tokens: Annotated[int, Field(ge=2, le=2**20)] | None = None
    """Length of the responses of fixed length; null for 128 on a GPU and 16 on a CPU."""
    preset: PathText = "vicur"
    """Preset that the sampling is taken from; its length limit is not used."""
    seed: Seed = 0
    """Seed for sampling; each run has other random numbers, the same for model and base."""

    def __post_init__(self) -> None:
        for text in self.input:
            InputSize.read(text)
        if not self.input:
            raise ValueError("Give at least one --input.")

    def written_out(self, on_gpu: bool) -> LatencySettings:
        """The settings with the defaults of the device."""
        free, fixed = GPU_LENGTHS if on_gpu else CPU_LENGTHS
        return replace(
            self,
            dtype=self.dtype or ("bfloat16" if on_gpu else "float32"),
            max_new_tokens=self.max_new_tokens or free,
            decode_tokens=self.decode_tokens or fixed,
        )

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling of the responses.

        Raises:
            SettingsError: there is no such preset.
        """
        limit = {"max_new_tokens": self.max_new_tokens or CPU_LENGTHS[0]}
        return SamplingConfig(**{**part_of(preset_settings(self.preset), "sampling"), **limit})


@dataclass(frozen=True)
class Arm:
    """One of the two models that are compared.

    Attributes:
        name: its name.
        loaded: the model.
        free: its engine.
        fixed: the same without the tokens that end a response, which then always has its maximum length.
    """

    name: str
    loaded: LoadedModel
    free: Engine
    fixed: Engine

    @classmethod
    def of(cls, name: str, loaded: LoadedModel) -> Arm:
        """Make the engines of a model."""
        vocabulary = loaded.vocabulary
        never = tuple(sorted({*vocabulary.forbidden_ids, *vocabulary.stop_ids}))
        endless = replace(loaded, vocabulary=replace(vocabulary, forbidden_ids=never))
        return cls(name, loaded, make_engine(loaded), make_engine(endless))

    def measure(self, prompt: EncodedPrompt, settings: LatencySettings, seed: int) -> dict[str, float | None]:
        """Answer a prompt twice: with a fixed number of tokens, and with a free number.

        Args:
            prompt: the prompt.
            settings: lengths and sampling, written out.
            seed: seed of the run.

        Returns:
            the measures of `MEASURES`; None where a free response has a single token.
        """
        length = settings.decode_tokens
        assert length is not None
        fixed = self._answer(self.fixed, prompt, replace(settings.sampling, max_new_tokens=length), seed)
        assert fixed.tokens == length, "without stop tokens a response has its maximum length"
        free = self._answer(self.free, prompt, settings.sampling, seed)
        return {
            "prefill_ms": fixed.prefill_ms,
            "decode_ms": fixed.decode_ms,
            "free_decode_ms": free.decode_ms,
            "free_tokens": float(free.tokens),
            "free_total_ms": free.total_ms,
        }

    def _answer(self, engine: Engine, prompt: EncodedPrompt, sampling: SamplingConfig, seed: int) -> Timed:
        """Sample a response, and note when each pass of the model ends."""
        device, ends = self.loaded.device, list[float]()

        def note(*passed: object) -> None:
            synchronise(device)
            ends.append(time.perf_counter())

        hook = self.loaded.model.register_forward_hook(note)
        try:
            with engine.awake():
                synchronise(device)
                started = time.perf_counter()
                [[response]] = engine.sample([prompt], ["latency"], sampling, seed=seed)
                total = time.perf_counter() - started
        finally:
            hook.remove()
        return Timed(tuple(end - started for end in ends), total, len(response.ids))


@dataclass(frozen=True)
class Timed:
    """The times of one response, in seconds since its start.

    Attributes:
        ends: end of each pass of the model: that of the prompt, then one for each token but the last.
        total: end of the response.
        tokens: number of tokens.
    """

    ends: tuple[float, ...]
    total: float
    tokens: int

    def __post_init__(self) -> None:
        assert len(self.ends) == self.tokens, "every token but the last is read by the model"

    @property
    def prefill_ms(self) -> float:
        """Milliseconds until the prompt has been read."""
        return 1000 * self.ends[0]

    @property
    def decode_ms(self) -> float | None:
        """Milliseconds per token after that; None for a single token."""
        steps = len(self.ends) - 1
        return 1000 * (self.ends[-1] - self.ends[0]) / steps if steps else None

    @property
    def total_ms(self) -> float:
        """Milliseconds of the whole response."""
        return 1000 * self.total


def latency_of_models(settings: LatencySettings, bars: Bars = silent) -> Finding:
    """Prefill and decoding of a model and its base, by size of the prompt.

    Args:
        settings: models, sizes and numbers of runs.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: a model cannot be read, has no recovery module that could be left out, or a prompt cannot
            have the size.
    """
    device = choose_device()
    settings = settings.written_out(on_gpu=device.type == "cuda")
    arms = load_arms(settings, bars)
    sizes = [InputSize.read(text) for text in settings.input]
    # Before anything is measured: a size may be impossible.
    prompts = {str(size): [encoded(size, arm.loaded) for arm in arms] for size in sizes}
    _check_lengths(settings, sizes, arms)
    measured: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    turns = range(settings.warm_up + settings.runs)
    for name, of_arms in prompts.items():
        measured[name] = {arm.name: [] for arm in arms}
        for turn in bars(f"measuring {name}").over(turns, len(turns)):
            for index in in_turns(len(arms), turn):
                numbers = arms[index].measure(of_arms[index], settings, settings.seed + turn)
                if turn >= settings.warm_up:
                    measured[name][arms[index].name].append(numbers)
    model, base = arms
    results = {
        name: {arm.name: _described(runs[arm.name], runs[base.name]) for arm in arms}
        for name, runs in measured.items()
    }
    values: dict[str, Any] = {
        "units": {"prefill": "ms", "decode": "ms per token", "free_total": "ms", "overhead": "percent"},
        "model": settings.model,
        "base": settings.base,
        "dtype": settings.dtype,
        "engine": "torch",
        "attention": str(model.loaded.model.config._attn_implementation),
        "warm_up": settings.warm_up,
        "decode_tokens": settings.decode_tokens,
        "max_new_tokens": settings.max_new_tokens,
        "hardware": hardware(device),
        "inputs": results,
    }
    tables = (comparison_table(results, settings), free_table(results))
    return Finding("latency", values, lambda: draw_latency(results), tables, (_note(values),))


def load_arms(settings: LatencySettings, bars: Bars = silent) -> list[Arm]:
    """The model, then its base.

    Raises:
        ValueError: one cannot be read, or the base is the model without recovery and it has none.
    """
    loading = bars("loading models")
    model = loading.during(lambda: load_model(settings.model, settings.dtype))
    if settings.base == SELF:
        if model.recovery is None:
            raise ValueError(f"{settings.model} has no cue recovery to leave out; set --base.")
        base, names = copy_of(model, with_recovery=False), settings.names or ["model", "without recovery"]
        names = names_of([SELF, settings.model], names)
    else:
        names = names_of([settings.model, settings.base], settings.names)
        base = loading.during(lambda: load_model(settings.base, settings.dtype))
    return [Arm.of(name, loaded) for name, loaded in zip(names, (model, base), strict=True)]


def _check_lengths(settings: LatencySettings, sizes: Sequence[InputSize], arms: Sequence[Arm]) -> None:
    """Check that prompts and responses fit the models.

    Raises:
        ValueError: they do not.
    """
    new = max(settings.sampling.max_new_tokens, settings.decode_tokens or 0)
    for arm in arms:
        most = arm.loaded.model.config.text_config.max_position_embeddings
        for size in sizes:
            if size.prompt + new > most:
                raise ValueError(
                    f"input {size} and {new} new tokens exceed the {most:,} positions of {arm.name}; choose "
                    "smaller ones with --input and --max-new-tokens."
                )


def _described(
    runs: Sequence[Mapping[str, float | None]], base: Sequence[Mapping[str, float | None]]
) -> dict[str, Any]:
    """The spread of each measure, and the overhead over the base, from the pairs of runs."""
    described: dict[str, Any] = {}
    for name in MEASURES:
        known = [value for run in runs if (value := run[name]) is not None]
        described[name] = Spread.of(known).as_dict() if known else None
    described["free_tokens"]["mean"] = sum(run["free_tokens"] or 0 for run in runs) / len(runs)
    for name in ("prefill", "decode"):
        ratios = [
            100 * (ours / theirs - 1)
            for run, other in zip(runs, base, strict=True)
            if (ours := run[f"{name}_ms"]) is not None and (theirs := other[f"{name}_ms"])
        ]
        described[f"{name}_overhead"] = None if runs is base else Spread.of(ratios).as_dict()
    return described | {"runs": [dict(run) for run in runs]}


def _note(values: Mapping[str, Any]) -> str:
    where = values["hardware"]
    return (
        f"{where['device']}, {values['dtype']}, PyTorch engine, one prompt at a time, attention "
        f"{values['attention']}; medians with the smallest and the largest of the runs. The overhead is the "
        "median over pairs of runs. Decoding at the fixed length compares models that write responses of "
        "different lengths."
    )


def comparison_table(results: Results, settings: LatencySettings) -> Table:
    """Prefill, and decoding at the fixed length, which models can be compared by."""
    rows = []
    for size, arms in results.items():
        for name, numbers in arms.items():
            overheads = (numbers["prefill_overhead"], numbers["decode_overhead"])
            prefill, decode = ("-" if each is None else f"{each['median']:+.1f} %" for each in overheads)
            times = (_cell(numbers["prefill_ms"]), prefill, _cell(numbers["decode_ms"]), decode)
            rows.append([f"{size} {name}", *times])
    title = f"Prefill, ms, and decoding of {settings.decode_tokens} tokens, ms per token, over the base"
    return plain_table(title, ["visual/prompt", "prefill", "", "decode", ""], rows)


def free_table(results: Results) -> Table:
    """Responses of free length, as in the paper's table 7."""
    rows = [
        [
            f"{size} {name}",
            _cell(numbers["free_decode_ms"]),
            f"{numbers['free_tokens']['mean']:.1f}",
            _cell(numbers["free_total_ms"]),
        ]
        for size, arms in results.items()
        for name, numbers in arms.items()
    ]
    columns = ["visual/prompt", "decode, ms per token", "mean length", "total, ms"]
    return plain_table("Responses of free length", columns, rows)


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return str(Spread(spread["median"], spread["low"], spread["high"], spread["count"]))


def draw_latency(results: Results) -> Figure:
    """Prefill and decoding at the fixed length: a group of bars for each size of the prompt."""
    figure, panels = new_figure(1, 2, width=4.2, height=3.2)
    _draw_bars(panels[0], results, "prefill", "ms")
    _draw_bars(panels[1], results, "decode", "ms per token")
    panels[0].set_title("Prefill")
    panels[1].set_title("Decoding at a fixed length")
    legend(figure, panels[0])
    return figure


def _draw_bars(panel: Axes, results: Results, measure: str, unit: str) -> None:
    names = list(next(iter(results.values())))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        spreads = [arms[name][f"{measure}_ms"] for arms in results.values()]
        heights = [spread["median"] for spread in spreads]
        places = [group + (index - (len(names) - 1) / 2) * width for group in range(len(results))]
        panel.bar(
            places,
            heights,
            width,
            yerr=[
                [spread["median"] - spread["low"] for spread in spreads],
                [spread["high"] - spread["median"] for spread in spreads],
            ],
            color=SERIES[index],
            hatch="" if index == 0 else "//",
            edgecolor="white",
            error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": INK},
            label=plain_text(name),
        )
        for place, spread, arms in zip(places, spreads, results.values(), strict=True):
            if (overhead := arms[name][f"{measure}_overhead"]) is not None:
                text, top = f"{overhead['median']:+.1f} %", (place, spread["high"])
                panel.annotate(text, top, (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    panel.set_xticks(range(len(results)), list(results))
    finish(panel, measure, unit, x="visual/prompt tokens")
    panel.margins(y=0.12)
