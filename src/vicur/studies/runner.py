"""Runs a study: trains and evaluates every row, once for each seed.

A row that is done is not repeated, and training that was interrupted is continued, so that the same command
resumes a study, and one with more seeds or methods extends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from vicur.cuebench.generate import Split, write_parquet
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Ordered, Plain, View, teacher_view
from vicur.data.views.replaced import Order, in_order
from vicur.evaluation.responders import ModelResponder, Responder
from vicur.evaluation.responses import ResponseStore, lines_path
from vicur.evaluation.results import Evaluation
from vicur.evaluation.runner import EvaluationConfig, resume_evaluation
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.files import folder_digest, write_json
from vicur.models.checkpoints import resolve_checkpoint
from vicur.models.load import LoadedModel, load_model
from vicur.paths import check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.run.build import build
from vicur.run.recipe import Recipe
from vicur.run.resume import Resumption, carry_on, find_run
from vicur.scoring.scorer import Scorer
from vicur.settings.reading import read_json
from vicur.settings.section import Count, PathText, Text, section
from vicur.studies.outcomes import Outcome, summarise
from vicur.studies.study import DATA, DOMAINS, EVALUATION, Problems, Study, Trained, Untrained
from vicur.training.checkpoint import newest_whole
from vicur.training.folder import locked

VA_TEACHER = "vicur:tiny-teacher"
"""The model that measures the visual advantage of every student's answers."""
VA_PROBLEMS = 200
"""Number of test problems on which visual advantage is measured."""
RESULTS = ("summary.json", "showcase.png")
"""Files that a study writes to its folder, beside the folders of its seeds."""
TEST = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=64), prompts_per_batch=100)
"""How test problems are answered."""
OTHER_SETTINGS = "A study with other settings needs another --output."
Answering = Callable[[], AbstractContextManager[Responder]]
"""Opens what answers the problems."""


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


def run_study(study: Study, config: StudyConfig, console: Console) -> dict[str, list[Outcome]]:
    """Train and evaluate everything that is not done yet, and write summary.json.

    Everything that is there is checked before anything is written.

    Returns:
        for each row of the table, its outcome under each seed.

    Raises:
        ValueError: the output folder holds something else, or a study with other settings or rows; another
            process writes to it; or there is no such method.
        OSError: it cannot be created or written.
        InterruptedRunError: a signal stopped the training of a row; its checkpoint is on disk.
    """
    output = config.folder
    check_folder(output, "--output")
    unknown = set(config.only) - set(study.trained)
    if unknown:
        raise ValueError(f"The study has no method {sorted(unknown)[0]}; it has {', '.join(study.trained)}.")
    seeds = [_Seed(study, config, seed, console) for seed in range(config.seeds)]
    _check_own(output, [seed.folder for seed in seeds])
    output.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, list[Outcome]] = {}
    with locked(output, "--output"):
        for seed in seeds:
            seed.check()
        for seed in seeds:
            seed.write_data()
            for name, outcome, is_new in seed.run():
                outcomes.setdefault(name, []).append(outcome)
                if not seed.folder.is_dir():
                    raise OSError(f"{seed.folder} was removed while the study ran; run the study again.")
                if is_new:
                    write_json(output / "summary.json", summarise(study, outcomes))
        write_json(output / "summary.json", summarise(study, outcomes))
    return outcomes


def _check_own(output: Path, seeds: Sequence[Path]) -> None:
    """Check that a folder holds nothing that a study would replace, unless it is a study's.

    Raises:
        ValueError: it holds the results of something else.
    """
    present = [seed for seed in seeds if seed.is_dir() and any(seed.iterdir())]
    foreign = [seed for seed in present if not (seed / DATA).is_dir()]
    if not present:
        foreign = [output / name for name in RESULTS if (output / name).exists()]
    if foreign:
        raise ValueError(f"{foreign[0]} is not of a study. Choose another --output.")


class _Seed:
    """One repetition of a study."""

    def __init__(self, study: Study, config: StudyConfig, seed: int, console: Console) -> None:
        self.study, self.config, self.seed, self.console = study, config, seed, console
        self.folder = config.folder / f"seed-{seed}"
        self.grader = Grader(study.rewards)
        self.trained = {k: v for k, v in study.trained.items() if not config.only or k in config.only}

    @cached_property
    def problems(self) -> dict[Split, int]:
        """Number of problems of each split, the same whichever methods are run: of training problems, with a
        set number of steps only as many as these use."""
        steps, trained = self.config.steps, self.study.trained.values()
        batch = max((row.recipe.training.prompts_per_step for row in trained), default=1)
        train = self.study.problems if steps is None else min(self.study.problems, steps * batch)
        problems: dict[Split, int] = {"train": train}
        return problems | dict.fromkeys(DOMAINS.values(), self.config.test_problems)

    def check(self) -> None:
        """Check that what is there is of this study.

        Raises:
            ValueError: it has other problems, rows that this study does not have, or rows that were trained
                with other settings; or what is there is damaged.
        """
        for split, count in self.problems.items():
            path = self._data(split)
            if path.is_file() and (present := pq.read_metadata(path).num_rows) != count:
                raise ValueError(
                    f"{path} holds {present} problems, and this study takes {count}. {OTHER_SETTINGS}"
                )
        names = {*self.study.untrained, *self.study.trained}
        if others := sorted({path.stem for path in (self.folder / EVALUATION).glob("*.json")} - names):
            raise ValueError(
                f"{self.folder} holds the row {others[0]}, which this study does not have. {OTHER_SETTINGS}"
            )
        for name, row in self.trained.items():
            self._find(name, self._recipe(name, row))

    def write_data(self) -> None:
        """Generate the training problems and the test sets that are not there yet."""
        missing = {split: count for split, count in self.problems.items() if not self._data(split).is_file()}
        for split, count in self._bar("generating problems").over(missing.items(), len(missing)):
            write_parquet("segments", split, count, self._data(split), seed=self.seed)

    def run(self) -> Iterator[tuple[str, Outcome, bool]]:
        """The name and outcome of every row, in the order of the table, and whether it is new."""
        for name, untrained in self.study.untrained.items():
            yield name, *self._evaluated(name, untrained)
        for name, trained in self.trained.items():
            yield name, *self._trained(name, trained)

    def _evaluated(self, name: str, row: Untrained) -> tuple[Outcome, bool]:
        """The outcome of an untrained row, and whether it is new. That of another model is not read."""
        files = folder_digest(Path(resolve_checkpoint(row.model)))
        identity = {"model": row.model, "files of the model": files, "privilege": row.privilege}
        view = teacher_view(row.privilege)
        if (stored := self._stored(name, identity, view)) is not None:
            return stored, False
        started = time.perf_counter()
        loaded = load_model(row.model)
        self._forget(name)
        evaluations = self._assess(name, view, lambda: _answering(loaded))
        seconds = time.perf_counter() - started
        leakage = evaluations["in_domain"].leakage + evaluations["out_of_domain"].leakage
        advantage = self._advantage(loaded, evaluations)
        outcome = Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds)
        return self._kept(name, identity, outcome), True

    def _trained(self, name: str, row: Trained) -> tuple[Outcome, bool]:
        """The outcome of a trained row, and whether it is new. Training that was interrupted is continued."""
        recipe = self._recipe(name, row)
        order = None if recipe.data.order == "as_is" else recipe.data.order
        view = Plain() if order is None else Ordered(order)
        previous, bar = self._find(name, recipe), self._bar(name)
        if previous is not None and previous.finished:
            if (stored := self._stored(name, {}, view)) is not None:
                return stored, False
            # It was stopped in its evaluation: its last checkpoint is the student that leaves the training.
            previous = replace(previous, saved=newest_whole(previous.folder, bar.say))
        self._forget(name)  # before the training, which may end without an evaluation
        with closing(build(recipe)) as run:
            leakage = carry_on(run, self.folder / name, previous, bar.say, progress=bar)
            evaluations = self._assess(name, view, lambda: _answering(run.student, run.evaluation_engine))
        advantage = self._advantage(run.student, evaluations, order)
        seconds = read_json(self.folder / name / "summary.json")["seconds"]["total"]
        outcome = Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds)
        return self._kept(name, {}, outcome), True

    def _recipe(self, name: str, row: Trained) -> Recipe:
        """The recipe of a row, with this seed and the study's problems and length."""
        recipe = row.recipe
        steps = self.config.steps or recipe.training.steps
        training = replace(recipe.training, output=str(self.folder / name), seed=self.seed, steps=steps)
        data = replace(recipe.data, train=str(self._data("train")))
        return replace(recipe, data=data, training=training)

    def _find(self, name: str, recipe: Recipe) -> Resumption | None:
        """The run of a row, as far as it has come; None if there is none yet. All rows are of the length that
        the study has now.

        Raises:
            ValueError: it has other settings, or no checkpoint of it can be used.
        """
        return find_run(
            recipe,
            self._bar(name).say,
            otherwise=OTHER_SETTINGS,
            may_change=("data.train",),  # another way to the same folder: the problems are in it
            same_length=True,
        )

    # ------------------------------------------------------------------------------- what is stored of a row

    def _stored(self, name: str, identity: Mapping[str, str], view: View) -> Outcome | None:
        """The outcome of a row that is done, its answers graded again; None if the row is not done, or with
        another identity.

        Args:
            name: the row.
            identity: what its answers depend on besides the folder of its run.
            view: what it is shown.

        Raises:
            ValueError: its files are damaged.
        """
        path = self._file(name, "json")
        if not all(file.is_file() for file in (path, *(self._answers(name, domain) for domain in DOMAINS))):
            return None
        try:
            stored = read_json(path)
            if stored["row"] != identity:
                return None
            return Outcome.of(self._assess(name, view), stored)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The stored result of the row {name} in {path.parent} is damaged, or is of other problems. "
                f"Delete {path.name} there, and the row is evaluated again."
            ) from error

    def _kept(self, name: str, identity: Mapping[str, str], outcome: Outcome) -> Outcome:
        """Store the outcome of a row."""
        write_json(self._file(name, "json"), {"row": dict(identity)} | outcome.numbers())
        return outcome

    def _forget(self, name: str) -> None:
        """Delete the answers of a row that is not done."""
        answers = [self._answers(name, domain) for domain in DOMAINS]
        for path in (self._file(name, "json"), *answers, *map(lines_path, answers)):
            path.unlink(missing_ok=True)

    def _data(self, split: Split) -> Path:
        return self.folder / DATA / f"{split}.parquet"

    def _file(self, name: str, ending: str) -> Path:
        return self.folder / EVALUATION / f"{name}.{ending}"

    def _answers(self, name: str, domain: str) -> Path:
        return self._file(f"{name}-{domain}", "parquet")

    # ------------------------------------------------------------------------------------------------- tests

    def _assess(self, name: str, view: View, answering: Answering | None = None) -> dict[str, Evaluation]:
        """The graded answers to the problems of each domain.

        Args:
            name: the row.
            view: what the model is shown.
            answering: opens the model; None to read the stored answers.

        Raises:
            ValueError: stored answers are missing or of other problems.
        """
        evaluations = {}
        (self.folder / EVALUATION).mkdir(parents=True, exist_ok=True)
        for domain in DOMAINS:
            problems, bar = self.tests[domain], self._bar(f"{name} {domain}")
            with ResponseStore(self._answers(name, domain)) as store:
                evaluation = resume_evaluation(
                    *(answering or _unanswered, problems, TEST, bar, store, view), grader=self.grader
                )
                if answering is not None:
                    store.finish(evaluation.table())
            evaluations[domain] = evaluation
        return evaluations

    def _advantage(
        self, loaded: LoadedModel, evaluations: Mapping[str, Evaluation], order: Order | None = None
    ) -> dict[str, float]:
        """Mean visual advantage of the in-domain answers to the student's own prompt.

        Args:
            loaded: the student.
            evaluations: its answers.
            order: order of image and question of its training; None for that of the problems.
        """
        samples: Sequence[Sample] = self.tests["in_domain"][:VA_PROBLEMS]
        if order is not None:
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
        return {domain: FileSource(self._data(split)) for domain, split in DOMAINS.items()}

    def _bar(self, title: str) -> Progress:
        return Progress(f"seed {self.seed} {title}", self.console)


@contextmanager
def _answering(loaded: LoadedModel, engine: Engine | None = None) -> Iterator[Responder]:
    """A model that answers, on its engine or PyTorch."""
    engine = engine or make_engine(loaded, prompts_per_batch=TEST.prompts_per_batch)
    with engine.awake():
        yield ModelResponder(engine, TEST.sampling)


@contextmanager
def _unanswered() -> Iterator[Responder]:
    """Nothing that answers: all answers are stored.

    Raises:
        ValueError: some are not.
    """
    raise ValueError("answers are missing")
    yield
