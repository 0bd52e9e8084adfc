"""Studies: several recipes on CueBench, run and compared in one table."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from rich.console import Console

from vicur.cuebench.generate import MOST_PROBLEMS, Split, write_parquet
from vicur.data.sources import FileSource
from vicur.data.views import teacher_view
from vicur.data.views.replaced import in_order
from vicur.diagnostics.leakage import HintLeakage
from vicur.evaluation.results import Evaluation
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.evaluation.statistics import Estimate, mean_interval, paired_difference
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.files import write_json
from vicur.models.load import LoadedModel, load_model
from vicur.packaged import display_path, find_packaged, read_settings
from vicur.paths import check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.engines import Engine
from vicur.rollouts.processors import SamplingConfig
from vicur.run.build import build
from vicur.run.recipe import Recipe, load_recipe, recipe_of
from vicur.scoring.scorer import Scorer
from vicur.settings.schema import Layer, schema_of
from vicur.settings.section import Count, JsonTable, PathText, SettingsError, Text, section

Part = TypeVar("Part")
DOMAINS: dict[str, Split] = {"in_domain": "test", "out_of_domain": "test_ood"}
BASE = "base"
"""The untrained row that all others are compared with."""
VA_TEACHER = "vicur:tiny-teacher"
"""The model that measures the visual advantage of every student's answers."""
RESULTS = ("summary.json", "showcase.png")
"""Files that a study writes to its folder, beside the folders of its seeds."""
VA_PROBLEMS = 200
"""Number of test problems on which visual advantage is measured."""
DATA, EVALUATION = "data", "evaluation"
"""Folders in that of a seed, beside those of the trained rows, which have the rows' names."""
_ROW = re.compile(r"[A-Za-z0-9][\w.+ -]{0,99}", re.ASCII)


def _row_name(name: str) -> str:
    if not _ROW.fullmatch(name):
        expected = (
            "up to 100 letters without accents, digits, spaces and _ . + -, the first a letter or digit"
        )
        raise PydanticCustomError("name", expected)  # type: ignore[arg-type]
    if name.lower() in (DATA, EVALUATION):
        raise PydanticCustomError("name", "another name than those of a study's own folders")
    return name


RowName = Annotated[Text, AfterValidator(_row_name)]
"""The name of a row. Files and folders are named after it."""
Problems = Annotated[int, Field(ge=1, le=MOST_PROBLEMS)]
"""A number of problems to generate."""


@section
class Untrained:
    """A model that is only evaluated."""

    title: Text
    """Title in the table."""
    model: PathText
    """Checkpoint of the model."""
    privilege: Text = "none"
    """What it is shown at test time, as for teacher.privilege; "none" for the plain problem."""

    def __post_init__(self) -> None:
        teacher_view(self.privilege, setting="privilege")


@dataclass(frozen=True)
class Trained:
    """A recipe that is run and evaluated."""

    title: str
    recipe: Recipe


@section
class _TrainedRow:
    """A trained row of a study's file: the name of a recipe, or settings that differ from the base's."""

    title: Text
    recipe: PathText | None = None
    settings: JsonTable | None = None

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.settings is None):
            raise ValueError("a trained row needs either a recipe or settings.")


@section
class _StudyFile:
    """The file of a study; its rows are read one by one."""

    problems: Problems
    untrained: dict[RowName, JsonTable]
    trained: dict[RowName, JsonTable]
    base: JsonTable = field(default_factory=dict)
    compare: list[tuple[Text, Text]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if BASE not in self.untrained:
            raise ValueError(f"untrained must have a row {BASE!r}, with which all others are compared.")
        if twice := set(self.untrained) & set(self.trained):
            raise ValueError(f"the row {min(twice)} is both untrained and trained.")
        named = {name for pair in self.compare for name in pair}
        if unknown := named - set(self.untrained) - set(self.trained):
            raise ValueError(f"compare names {min(unknown)}, which is not a row.")


@dataclass(frozen=True)
class Study:
    """The definition of a comparison.

    Attributes:
        problems: number of problems to train on; methods that need more see them again.
        untrained, trained: the rows of the table, by name.
        compare: pairs of rows whose difference is reported besides the differences to the base.
        rewards: settings for grading the answers of all rows.
    """

    problems: int
    untrained: Mapping[str, Untrained]
    trained: Mapping[str, Trained]
    compare: tuple[tuple[str, str], ...] = ()
    rewards: RewardConfig = field(default_factory=RewardConfig)


@section
class StudyConfig:
    """Size and output of a study."""

    output: PathText | None = None
    """Folder for all results; null for studies/STUDY, or quickstart for `vicur quickstart`."""
    seeds: Count = 1
    """Number of seeds. Each seed has its own problems, order, responses and fresh weights."""
    steps: Count | None = None
    """Training steps of each method; null for each recipe's own number."""
    test_problems: Problems = 600
    """Number of problems in each of the two test sets."""
    only: tuple[Text, ...] = ()
    """Names of the methods to train; empty for all."""

    @property
    def folder(self) -> Path:
        """The output folder, which the command has filled in if it was not set."""
        assert self.output is not None
        return Path(self.output)


@dataclass(frozen=True)
class Outcome:
    """The result of one row with one seed.

    Attributes:
        in_domain, out_of_domain: evaluations on the two test sets.
        visual_advantage: mean over the tokens of its in-domain answers, in nats, as scored by the larger
            teacher and by the model itself.
        leakage: hint leakage in its training rollouts; for an untrained model, in its answers.
        seconds: training time; for an untrained model, the time of its evaluation.
    """

    in_domain: Evaluation
    out_of_domain: Evaluation
    visual_advantage: dict[str, float]
    leakage: HintLeakage
    seconds: float


def load_study(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study: a YAML file, or the name of a packaged one.

    The file has the number of training `problems`, `untrained` rows, `trained` rows with a `recipe` or
    with `settings` that differ from those of `base`, and pairs to `compare`. The answers of all rows are
    graded by the `rewards` of the trained rows, which must agree.

    Args:
        path: the file or the name.
        overrides: `key=value`, for every trained row.

    Raises:
        SettingsError: there is no such study, or it is not valid.
    """
    file = find_packaged(path, "studies")
    source = display_path(file)
    written = _load(_StudyFile, read_settings(file, may_be_empty=True), source)
    untrained = {name: _load(Untrained, row, f"{source}, {name}") for name, row in written.untrained.items()}
    trained = {
        name: _trained(written.base, row, overrides, f"{source}, {name}")
        for name, row in written.trained.items()
    }
    # Keyed by their text, because reward settings that hold a list cannot be hashed.
    rules = {str(row.recipe.rewards): row.recipe.rewards for row in trained.values()}
    if len(rules) > 1:
        raise SettingsError(
            f"{source}: the trained rows have different rewards; all answers must be graded alike."
        )
    rewards = next(iter(rules.values()), RewardConfig())
    return Study(written.problems, untrained, trained, tuple(written.compare), rewards)


def _trained(
    base: dict[str, Any], settings: dict[str, Any], overrides: Sequence[str], source: str
) -> Trained:
    """A trained row.

    Args:
        base: settings of the study's base.
        settings: the row as the file has it.
        overrides: as in `load_study`.
        source: the file and the row, for messages.
    """
    row = _load(_TrainedRow, settings, source)
    if row.recipe is None:
        assert row.settings is not None, "a row has a recipe or settings"
        recipe = recipe_of(base, row.settings, source=source, overrides=overrides)
    else:
        with _blaming(source):
            recipe = load_recipe(row.recipe, overrides)
    return Trained(row.title, recipe)


def _load(part: type[Part], settings: dict[str, Any], source: str) -> Part:
    with _blaming(source):
        return schema_of(part).load([Layer(source, settings)])


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Name the file and the row in errors that do not name them."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(source) else f"{source}: {error}") from error


def run_study(study: Study, config: StudyConfig, console: Console) -> dict[str, list[Outcome]]:
    """Train and evaluate everything, and write summary.json.

    Returns:
        for each row of the table, its outcome under each seed.

    Raises:
        ValueError: the output folder already holds a study, or there is no such method.
        OSError: it cannot be created or written.
    """
    output = config.folder
    check_folder(output, "--output")
    if any((output / name).exists() for name in RESULTS) or any(output.glob("seed-*")):
        raise _taken(output)
    unknown = set(config.only) - set(study.trained)
    if unknown:
        raise ValueError(f"The study has no method {sorted(unknown)[0]}; it has {', '.join(study.trained)}.")
    trained = {k: v for k, v in study.trained.items() if not config.only or k in config.only}
    study = replace(study, trained=trained)
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(config.seeds):
        seed_run = _Seed(study, config, seed, console)
        seed_run.claim()
        seed_run.write_data()
        for name, outcome in seed_run.run():
            outcomes.setdefault(name, []).append(outcome)
            if not seed_run.folder.is_dir():
                raise OSError(f"{seed_run.folder} was removed while the study ran; run the study again.")
            write_json(output / "summary.json", summarise(study, outcomes))
    return outcomes


def _taken(output: Path) -> ValueError:
    return ValueError(f"{output} already holds a study. Choose another --output or remove it.")


class _Seed:
    """One repetition of a study."""

    def __init__(self, study: Study, config: StudyConfig, seed: int, console: Console) -> None:
        self.study, self.config, self.seed, self.console = study, config, seed, console
        self.folder = config.folder / f"seed-{seed}"
        self.grader = Grader(study.rewards)

    def claim(self) -> None:
        """Make the folder.

        Raises:
            ValueError: it exists already: another study has begun here in the meantime.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir()
        except FileExistsError as error:
            raise _taken(self.config.folder) from error

    def write_data(self) -> None:
        """Generate the training problems, the same whichever methods are run, and the test sets."""
        sizes: dict[Split, int] = {"train": self._problems()}
        sizes.update(dict.fromkeys(DOMAINS.values(), self.config.test_problems))
        for split, count in self._bar("generating problems").over(sizes.items(), len(sizes)):
            write_parquet("segments", split, count, self.folder / DATA / f"{split}.parquet", seed=self.seed)

    def _problems(self) -> int:
        """The number of problems to generate: with a set number of steps, only as many as these use."""
        batch = max(
            (method.recipe.training.prompts_per_step for method in self.study.trained.values()), default=1
        )
        needed = self.study.problems if self.config.steps is None else self.config.steps * batch
        return min(self.study.problems, needed)

    def run(self) -> Iterator[tuple[str, Outcome]]:
        """Every row, in the order of the table."""
        for name, untrained in self.study.untrained.items():
            yield name, self._evaluate_only(name, untrained)
        for name, trained in self.study.trained.items():
            yield name, self._train(name, trained.recipe)

    def _evaluate_only(self, name: str, untrained: Untrained) -> Outcome:
        started = time.perf_counter()
        loaded = load_model(untrained.model)
        evaluations = self._assess(name, loaded, untrained.privilege)
        leakage = evaluations["in_domain"].leakage + evaluations["out_of_domain"].leakage
        seconds = time.perf_counter() - started
        return Outcome(
            **evaluations,
            visual_advantage=self._advantage(loaded, evaluations),
            leakage=leakage,
            seconds=seconds,
        )

    def _train(self, name: str, recipe: Recipe) -> Outcome:
        started = time.perf_counter()
        training = replace(
            recipe.training, output=str(self.folder / name), seed=self.seed, steps=self._steps(recipe)
        )
        data = replace(recipe.data, train=str(self.folder / DATA / "train.parquet"))
        recipe = replace(recipe, data=data, training=training)
        with closing(build(recipe)) as run:
            leakage = run.execute(self.folder / name, run.plan(), self._bar(name))
            seconds = time.perf_counter() - started
            evaluations = self._assess(name, run.student, _view_of(recipe), run.evaluation_engine)
        advantage = self._advantage(run.student, evaluations, recipe.data.order)
        return Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds)

    def _steps(self, recipe: Recipe) -> int | None:
        return self.config.steps or recipe.training.steps

    def _assess(
        self, name: str, loaded: LoadedModel, privilege: Any, engine: Engine | None = None
    ) -> dict[str, Evaluation]:
        evaluations = {}
        for domain in DOMAINS:
            view = None if privilege == "none" else teacher_view(privilege)
            settings = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=64), 100)
            bar = self._bar(f"{name} {domain}")
            evaluations[domain] = evaluate(
                *(loaded, self.tests[domain], settings, bar, view),
                grader=self.grader,
                engine=engine,
            )
            evaluations[domain].write(self.folder / EVALUATION / f"{name}-{domain}.parquet")
        return evaluations

    def _advantage(
        self,
        loaded: LoadedModel,
        evaluations: Mapping[str, Evaluation],
        order: Literal["as_is", "image_first", "question_first"] = "as_is",
    ) -> dict[str, float]:
        """Mean visual advantage of the in-domain answers to the student's own prompt, in the order of image
        and question of its training."""
        samples = self.tests["in_domain"][:VA_PROBLEMS]
        if order != "as_is":
            samples = [replace(s, messages=in_order(s.messages, order)) for s in samples]
        responses = [[ids] for ids in evaluations["in_domain"].response_ids[:VA_PROBLEMS]]
        scorers = {"teacher": self.judge, "own": Scorer(loaded)}
        return {
            who: float(measure_visual_advantage(scorer, samples, responses).mean())
            for who, scorer in scorers.items()
        }

    @cached_property
    def judge(self) -> Scorer:
        """The model that scores the visual advantage of all answers."""
        return Scorer(load_model(VA_TEACHER))

    @cached_property
    def tests(self) -> dict[str, FileSource]:
        """The test problems by domain."""
        return {d: FileSource(self.folder / DATA / f"{split}.parquet") for d, split in DOMAINS.items()}

    def _bar(self, title: str) -> Progress:
        return Progress(f"seed {self.seed} {title}", self.console)


def _view_of(recipe: Recipe) -> str:
    """The view under which a trained student is tested: plain, with image and question as in its training."""
    return "none" if recipe.data.order == "as_is" else recipe.data.order


def summarise(study: Study, outcomes: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    """Accuracies in percent, differences in points, each with a 95 % interval.

    With one seed, the intervals give the uncertainty from sampling the test problems; with several,
    Student's t over the seeds gives that of the whole experiment.
    """
    rows: dict[str, Untrained | Trained] = {**study.untrained, **study.trained}
    titles = {name: row.title for name, row in rows.items()}
    methods: dict[str, Any] = {}
    for name, runs in outcomes.items():
        advantages = [run.visual_advantage for run in runs]
        methods[name] = {
            "title": titles[name],
            "in_domain": _named(_accuracy([run.in_domain for run in runs])),
            "out_of_domain": _named(_accuracy([run.out_of_domain for run in runs])),
            "visual_advantage": {who: sum(a[who] for a in advantages) / len(runs) for who in advantages[0]},
            "hint_leakage": asdict(sum((run.leakage for run in runs), HintLeakage())),
            "seconds": sum(run.seconds for run in runs) / len(runs),
        }
    seeds = len(outcomes[BASE])
    done = [name for name in outcomes if len(outcomes[name]) == seeds]
    pairs = [(name, BASE) for name in study.trained if name in done]
    pairs += [(a, b) for a, b in study.compare if a in done and b in done]
    differences = [
        {"ours": first, "theirs": second}
        | {d: asdict(_difference(outcomes[first], outcomes[second], d)) for d in DOMAINS}
        for first, second in pairs
    ]
    return {"seeds": seeds, "methods": methods, "differences": differences}


def _named(estimate: Estimate) -> dict[str, float]:
    return {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}


def _accuracy(runs: list[Evaluation]) -> Estimate:
    if len(runs) == 1:
        return runs[0].accuracy
    return mean_interval([run.accuracy.value for run in runs])


def _difference(first: list[Outcome], second: list[Outcome], domain: str) -> Estimate:
    pairs = [(getattr(a, domain), getattr(b, domain)) for a, b in zip(first, second, strict=True)]
    if len(pairs) == 1:
        return paired_difference(pairs[0][0].graded, pairs[0][1].graded)
    return mean_interval([a.accuracy.value - b.accuracy.value for a, b in pairs])
