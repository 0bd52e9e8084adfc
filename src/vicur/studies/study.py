"""Studies: several recipes on CueBench, run and compared in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.cuebench.generate import Split, write_parquet
from vicur.data.sample import TeacherPrivilege, check_privilege
from vicur.data.sources import FileSource
from vicur.data.views import teacher_view
from vicur.diagnostics.leakage import HintLeakage
from vicur.evaluation.runner import Evaluation, EvaluationConfig, evaluate
from vicur.evaluation.statistics import Estimate, mean_interval, paired_difference
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.files import write_json
from vicur.models.load import LoadedModel, load_model
from vicur.packaged import find_packaged
from vicur.paths import check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.run.build import build
from vicur.run.recipe import Recipe, display_path, load_recipe, read_settings, recipe_of
from vicur.scoring.scorer import Scorer
from vicur.settings.section import Count, PathText, SettingsError, section

DOMAINS: dict[str, Split] = {"in_domain": "test", "out_of_domain": "test_ood"}
BASE = "base"
"""The untrained row that all others are compared with."""
VA_TEACHER = "vicur:tiny-teacher"
"""The model that measures the visual advantage of every student's answers."""
RESULTS = ("summary.json", "showcase.png")
"""Files that a study writes to its folder, beside the folders of its seeds."""
VA_PROBLEMS = 200
"""Number of test problems on which visual advantage is measured."""


@dataclass(frozen=True)
class Untrained:
    """A model that is only evaluated.

    Attributes:
        title: title in the table.
        model: checkpoint of the model.
        privilege: privilege in its prompt at test time; "none" for no hint.
    """

    title: str
    model: str
    privilege: TeacherPrivilege = "none"

    def __post_init__(self) -> None:
        check_privilege(self.privilege)


@dataclass(frozen=True)
class Trained:
    """A recipe that is run and evaluated."""

    title: str
    recipe: Recipe


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
    test_problems: Count = 600
    """Number of problems in each of the two test sets."""
    only: tuple[str, ...] = ()
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
    settings = read_settings(file)
    try:
        return _study(display_path(file), overrides, **settings)
    except (TypeError, AttributeError, ValueError) as error:
        name, text = display_path(file), str(error).replace("_study()", "the study")
        raise SettingsError(text if text.startswith(name) else f"{name}: {text}") from error


def _study(
    source: str,
    overrides: Sequence[str],
    *,
    problems: int,
    untrained: dict[str, dict[str, Any]],
    trained: dict[str, dict[str, Any]],
    base: dict[str, Any] | None = None,
    compare: list[list[str]] | None = None,
) -> Study:
    if BASE not in untrained:
        raise ValueError(f"untrained must have a row {BASE!r}, with which all others are compared.")
    twice = set(untrained) & set(trained)
    if twice:
        raise ValueError(f"the row {min(twice)} is both untrained and trained.")
    pairs = tuple((first, second) for first, second in compare or [])
    unknown = {name for pair in pairs for name in pair} - set(untrained) - set(trained)
    if unknown:
        raise ValueError(f"compare names {min(unknown)}, which is not a row.")
    rows = {
        name: _trained(base, overrides, source=f"{source}, {name}", **settings)
        for name, settings in trained.items()
    }
    # Keyed by their text, because reward settings that hold a list cannot be hashed.
    rules = {str(row.recipe.rewards): row.recipe.rewards for row in rows.values()}
    if len(rules) > 1:
        raise ValueError("the trained rows have different rewards; all answers must be graded alike.")
    return Study(
        problems,
        {name: Untrained(**settings) for name, settings in untrained.items()},
        rows,
        pairs,
        next(iter(rules.values()), RewardConfig()),
    )


def _trained(
    base: dict[str, Any] | None,
    overrides: Sequence[str],
    source: str,
    title: str,
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Trained:
    if (recipe is None) == (settings is None):
        raise ValueError(f"{source}: a trained row needs either a recipe or settings.")
    if recipe is not None:
        return Trained(title, load_recipe(recipe, overrides))
    return Trained(title, recipe_of(base or {}, settings or {}, source=source, overrides=overrides))


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
            write_parquet("segments", split, count, self.folder / "data" / f"{split}.parquet", seed=self.seed)

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
        data = replace(recipe.data, train=str(self.folder / "data" / "train.parquet"))
        recipe = replace(recipe, data=data, training=training)
        run = build(recipe)
        leakage = run.execute(self.folder / name, run.plan(), self._bar(name))
        seconds = time.perf_counter() - started
        evaluations = self._assess(name, run.student, "none")
        advantage = self._advantage(run.student, evaluations)
        return Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds)

    def _steps(self, recipe: Recipe) -> int | None:
        return self.config.steps or recipe.training.steps

    def _assess(self, name: str, loaded: LoadedModel, privilege: Any) -> dict[str, Evaluation]:
        evaluations = {}
        for domain in DOMAINS:
            view = None if privilege == "none" else teacher_view(privilege)
            settings = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=64), 100)
            bar = self._bar(f"{name} {domain}")
            evaluations[domain] = evaluate(
                loaded, self.tests[domain], settings, bar, view, grader=self.grader
            )
            evaluations[domain].write(self.folder / "evaluation" / f"{name}-{domain}.parquet")
        return evaluations

    def _advantage(self, loaded: LoadedModel, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
        """Mean visual advantage of the in-domain answers to the student's own prompt."""
        samples = self.tests["in_domain"][:VA_PROBLEMS]
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
        return {d: FileSource(self.folder / "data" / f"{split}.parquet") for d, split in DOMAINS.items()}

    def _bar(self, title: str) -> Progress:
        return Progress(f"seed {self.seed} {title}", self.console)


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
