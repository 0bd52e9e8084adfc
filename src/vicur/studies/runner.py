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
from vicur.diagnostics.leakage import HintLeakage
from vicur.evaluation.responders import ModelResponder, Responder
from vicur.evaluation.responses import ResponseStore, lines_path
from vicur.evaluation.results import Evaluation
from vicur.evaluation.runner import EvaluationConfig, resume_evaluation
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.files import write_json
from vicur.models.load import LoadedModel, load_model
from vicur.paths import check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.run.build import build
from vicur.run.execute import InterruptedRunError, Run
from vicur.run.recipe import Recipe
from vicur.run.resume import Resumption, find_run
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

    Returns:
        for each row of the table, its outcome under each seed.

    Raises:
        ValueError: the output folder holds something else, or the same study with other settings; another
            process writes to it; or there is no such method.
        OSError: it cannot be created or written.
        InterruptedRunError: a signal stopped the training of a row; its checkpoint is on disk.
    """
    output = config.folder
    check_folder(output, "--output")
    _check_is_a_study(output)
    unknown = set(config.only) - set(study.trained)
    if unknown:
        raise ValueError(f"The study has no method {sorted(unknown)[0]}; it has {', '.join(study.trained)}.")
    output.mkdir(parents=True, exist_ok=True)
    problems = _problems(study, config)
    trained = {k: v for k, v in study.trained.items() if not config.only or k in config.only}
    study = replace(study, trained=trained)
    outcomes: dict[str, list[Outcome]] = {}
    with locked(output, "--output"):
        for seed in range(config.seeds):
            seed_run = _Seed(study, config, seed, console)
            seed_run.write_data(problems)
            for name, outcome in seed_run.run():
                outcomes.setdefault(name, []).append(outcome)
                if not seed_run.folder.is_dir():
                    raise OSError(f"{seed_run.folder} was removed while the study ran; run the study again.")
                write_json(output / "summary.json", summarise(study, outcomes))
    return outcomes


def _check_is_a_study(output: Path) -> None:
    """Check that a folder holds nothing that a study would replace, unless it is a study.

    Raises:
        ValueError: it holds the results of something else.
    """
    seeds = [seed for seed in sorted(output.glob("seed-*")) if not seed.is_dir() or any(seed.iterdir())]
    foreign = [seed for seed in seeds if not (seed / DATA).is_dir()]
    if not seeds:
        foreign = [output / name for name in RESULTS if (output / name).exists()]
    if foreign:
        raise ValueError(f"{foreign[0]} is not of a study. Choose another --output.")


def _problems(study: Study, config: StudyConfig) -> int:
    """Number of training problems to generate, the same whichever methods are run: with a set number of
    steps, only as many as these use."""
    batch = max((method.recipe.training.prompts_per_step for method in study.trained.values()), default=1)
    return study.problems if config.steps is None else min(study.problems, config.steps * batch)


class _Seed:
    """One repetition of a study."""

    def __init__(self, study: Study, config: StudyConfig, seed: int, console: Console) -> None:
        self.study, self.config, self.seed, self.console = study, config, seed, console
        self.folder = config.folder / f"seed-{seed}"
        self.grader = Grader(study.rewards)

    def write_data(self, problems: int) -> None:
        """Generate the training problems and the test sets, or check those that are there.

        Args:
            problems: number of training problems.

        Raises:
            ValueError: an earlier run of the study had another number of problems.
        """
        sizes: dict[Split, int] = {"train": problems}
        sizes.update(dict.fromkeys(DOMAINS.values(), self.config.test_problems))
        for split, count in self._bar("generating problems").over(sizes.items(), len(sizes)):
            path = self.folder / DATA / f"{split}.parquet"
            if not path.is_file():
                write_parquet("segments", split, count, path, seed=self.seed)
            elif (present := pq.read_metadata(path).num_rows) != count:
                raise ValueError(
                    f"{path} holds {present} problems, and with these settings there are {count}. "
                    f"{OTHER_SETTINGS}"
                )

    def run(self) -> Iterator[tuple[str, Outcome]]:
        """Every row, in the order of the table."""
        rows: dict[str, Untrained | Trained] = {**self.study.untrained, **self.study.trained}
        for name, row in rows.items():
            yield name, self._evaluated(name, row) if isinstance(row, Untrained) else self._trained(name, row)

    def _evaluated(self, name: str, row: Untrained) -> Outcome:
        """The outcome of an untrained row."""
        identity = {"model": row.model, "privilege": row.privilege}
        view = teacher_view(row.privilege)
        if (stored := self._stored(name, identity, view)) is not None:
            return stored
        started = time.perf_counter()
        loaded = load_model(row.model)
        self._forget(name)
        evaluations = self._assess(name, view, lambda: _answering(loaded))
        seconds = time.perf_counter() - started
        leakage = evaluations["in_domain"].leakage + evaluations["out_of_domain"].leakage
        advantage = self._advantage(loaded, evaluations)
        return self._kept(
            name,
            identity,
            Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds),
        )

    def _trained(self, name: str, row: Trained) -> Outcome:
        """The outcome of a trained row. Training that was interrupted is continued."""
        recipe = self._recipe(name, row)
        order = None if recipe.data.order == "as_is" else recipe.data.order
        view = Plain() if order is None else Ordered(order)
        say = self._bar(name).say
        previous = find_run(recipe, say, OTHER_SETTINGS)
        if previous is not None and previous.finished:
            if (stored := self._stored(name, {}, view)) is not None:
                return stored
            # It was stopped in its evaluation: its last checkpoint is the student that leaves the training.
            previous = replace(previous, saved=newest_whole(previous.folder, say))
        self._forget(name)  # first: a run that is made longer must not end beside the answers of the shorter
        with closing(build(recipe)) as run:
            leakage = self._train(name, run, previous)
            evaluations = self._assess(name, view, lambda: _answering(run.student, run.evaluation_engine))
        seconds = read_json(self.folder / name / "status.json")["seconds"]["total"]
        advantage = self._advantage(run.student, evaluations, order)
        return self._kept(
            name, {}, Outcome(**evaluations, visual_advantage=advantage, leakage=leakage, seconds=seconds)
        )

    def _train(self, name: str, run: Run, previous: Resumption | None) -> HintLeakage:
        folder, bar = self.folder / name, self._bar(name)
        saved = None if previous is None else previous.saved
        try:
            return run.execute(folder, run.plan(), bar, None, saved, again=previous is not None)
        except InterruptedRunError as stopped:
            bar.say(f"Stopped {folder} after step {stopped.step}. Rerun the same command to continue.")
            raise

    def _recipe(self, name: str, row: Trained) -> Recipe:
        """The recipe of a row, with this seed and the study's problems and length."""
        recipe = row.recipe
        steps = self.config.steps or recipe.training.steps
        training = replace(recipe.training, output=str(self.folder / name), seed=self.seed, steps=steps)
        data = replace(recipe.data, train=str(self.folder / DATA / "train.parquet"))
        return replace(recipe, data=data, training=training)

    # ------------------------------------------------------------------------------- what is stored of a row

    def _stored(self, name: str, identity: Mapping[str, str], view: View) -> Outcome | None:
        """The outcome of a row that is done, its answers graded again; None if the row is not done.

        Args:
            name: the row.
            identity: what its answers depend on besides the folder of its run.
            view: what it is shown.

        Raises:
            ValueError: the row was done with other settings, or its files are damaged.
        """
        path = self._file(name, "json")
        if not all(file.is_file() for file in (path, *(self._answers(name, domain) for domain in DOMAINS))):
            return None
        stored = read_json(path)
        if stored.get("row") != identity:
            raise ValueError(
                f"The row {name} of {self.folder} was evaluated with {stored.get('row')}, and is now "
                f"{dict(identity)}. {OTHER_SETTINGS}"
            )
        evaluations = self._assess(name, view, lambda: _unanswered(path))
        try:
            return Outcome.of(evaluations, stored)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: delete it, and the row is done again.") from error

    def _kept(self, name: str, identity: Mapping[str, str], outcome: Outcome) -> Outcome:
        """Store the outcome of a row."""
        write_json(self._file(name, "json"), {"row": dict(identity)} | outcome.numbers())
        return outcome

    def _forget(self, name: str) -> None:
        """Delete the answers of a row that is not done."""
        answers = [self._answers(name, domain) for domain in DOMAINS]
        for path in (self._file(name, "json"), *answers, *map(lines_path, answers)):
            path.unlink(missing_ok=True)

    def _file(self, name: str, ending: str) -> Path:
        return self.folder / EVALUATION / f"{name}.{ending}"

    def _answers(self, name: str, domain: str) -> Path:
        return self._file(f"{name}-{domain}", "parquet")

    # ------------------------------------------------------------------------------------------------- tests

    def _assess(self, name: str, view: View, answering: Answering) -> dict[str, Evaluation]:
        """The answers to the problems of each domain, those that are stored and the missing ones, graded."""
        evaluations = {}
        (self.folder / EVALUATION).mkdir(parents=True, exist_ok=True)
        for domain in DOMAINS:
            problems, bar = self.tests[domain], self._bar(f"{name} {domain}")
            with ResponseStore(self._answers(name, domain)) as store:
                evaluation = resume_evaluation(
                    *(answering, problems, TEST, bar, store, view), grader=self.grader
                )
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
        return {d: FileSource(self.folder / DATA / f"{split}.parquet") for d, split in DOMAINS.items()}

    def _bar(self, title: str) -> Progress:
        return Progress(f"seed {self.seed} {title}", self.console)


@contextmanager
def _answering(loaded: LoadedModel, engine: Engine | None = None) -> Iterator[Responder]:
    """A model that answers, on its engine or PyTorch."""
    engine = engine or make_engine(loaded, prompts_per_batch=TEST.prompts_per_batch)
    with engine.awake():
        yield ModelResponder(engine, TEST.sampling)


@contextmanager
def _unanswered(path: Path) -> Iterator[Responder]:
    """Nothing that answers: the row of an outcome has all its answers.

    Raises:
        ValueError: it has not.
    """
    raise ValueError(f"Answers of the row of {path} are missing: delete it, and the row is done again.")
    yield
