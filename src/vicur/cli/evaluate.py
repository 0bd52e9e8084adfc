"""The command `vicur eval`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from vicur.bad_rows import BadRowError
from vicur.cli.command import Arguments
from vicur.cli.evaluation_tables import arm_lines, comparison_tables, markdown_of
from vicur.cli.terminal import passing_bar, print_json, print_text, say
from vicur.data.sources import FileSource
from vicur.data.views import Plain
from vicur.encoding.lengths import Overlong, PromptMeter, Reader, fit_prompts
from vicur.encoding.prompts import PromptEncoder
from vicur.endpoints.client import EndpointClient
from vicur.evaluation.comparison import Arm, categories_of, summarise
from vicur.evaluation.controls import Control, OtherMedia, control_view
from vicur.evaluation.endpoint import EndpointResponder
from vicur.evaluation.responders import ModelResponder, Responder
from vicur.evaluation.responses import ResponseStore
from vicur.evaluation.results import Answer, Evaluation
from vicur.evaluation.runner import resume_evaluation, unasked
from vicur.evaluation.settings import SUMMARY, TABLE, EvaluationSettings, notes_on, settings_of_models
from vicur.files import write_json, write_text
from vicur.models.checkpoints import read_processor
from vicur.models.load import load_model
from vicur.progress import Progress
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.settings.schema import schema_of
from vicur.wording import counted


def read_settings(arguments: Arguments) -> list[EvaluationSettings]:
    """The settings of each model: those of its recipe, of the preset, and of the command line.

    Raises:
        SettingsError: a setting does not exist or does not fit.
    """
    schema = schema_of(EvaluationSettings, arguments.command.name)
    return settings_of_models(schema, [*arguments.layers(schema), *schema.overrides(arguments.overrides)])


def evaluate(settings: list[EvaluationSettings], arguments: Arguments, console: Console) -> None:
    """Check data and outputs, ask the models, and print the results.

    Raises:
        ValueError: a setting, the data or an output does not fit.
        OSError: the responses cannot be written; the message says where they are.
    """
    as_json = "--json" in arguments.switches
    first = settings[0]
    for each in settings:
        each.check_output()
        for note in notes_on(each):
            say(note)
    if first.output is None:
        say("Responses will not be stored; use --output FILE.parquet to store them.")
    arms: list[Arm] = []
    categories: dict[str, dict[str, str]] = {}
    prefixed = len(settings) > 1 or bool(first.control)
    for each in settings:
        evaluations = _Model(each, None if as_json else console, prefixed=prefixed)
        for column, values in evaluations.categories().items():  # models may be asked other problems
            categories[column] = {**categories.get(column, {}), **values}
        arms += evaluations.arms()
    results = summarise(arms, first.baseline_name, categories)
    summary = {
        "data": first.data.train,
        "graded_by": "vicur",
        "baseline": first.baseline_name,
        "arms": results,
    }
    if as_json:
        print_json(summary)
    else:
        for table in comparison_tables(results):
            console.print(table)
    if first.is_folder:
        folder = Path(str(first.output))
        write_json(folder / SUMMARY, summary)
        write_text(folder / TABLE, markdown_of(results))
    if first.output is not None and not as_json:
        print_text(f"Responses and verdicts: {first.output}", console)


class _Model:
    """The evaluations of one model: on the problems as they are, and under each control.

    Args:
        settings: its settings.
        console: console to print results to; None to print none.
        prefixed: whether printed lines begin with the name of what was evaluated.
    """

    def __init__(self, settings: EvaluationSettings, console: Console | None, *, prefixed: bool) -> None:
        self.settings, self.console, self.prefixed = settings, console, prefixed
        self.grader = Grader(settings.rewards)
        self.source, self.left_out = _problems(settings, self.grader)
        settings.check_output(self.source.files)
        self._engine: Engine | None = None

    def categories(self) -> dict[str, dict[str, str]]:
        """The value of each problem in the columns of `by`."""
        return categories_of(self.source, self.settings.by)

    def arms(self) -> list[Arm]:
        """Evaluate the model and its controls; each is printed and written as soon as it is done."""
        with ExitStack() as stack:
            return [self._arm(name, model, control, stack) for name, model, control in self.settings.arms]

    def _arm(self, name: str, model: str, control: Control | None, stack: ExitStack) -> Arm:
        settings, output = self.settings, self.settings.output_of(name)
        identity = settings.identity(control)
        with ResponseStore(output, identity, overwrite=settings.overwrite) as store:
            for sentence in _about_store(store):
                say(sentence)
            evaluation = self._evaluation(name, control, store, stack)
            evaluation = Evaluation(evaluation.answers, (*self.left_out, *evaluation.left_out))
            # Before anything can go wrong in writing: the result of the whole evaluation.
            if self.console is not None:
                for line in arm_lines(evaluation, settings):
                    print_text(f"{name}: {line}" if self.prefixed else line, self.console)
            store.finish(evaluation.table())
        return Arm(name, model, control, evaluation, identity)

    def _evaluation(
        self, name: str, control: Control | None, store: ResponseStore, stack: ExitStack
    ) -> Evaluation:
        """The model's answers.

        Raises:
            ValueError: a row turns out unreadable, and such rows are not skipped.
        """
        settings = self.settings
        try:
            return resume_evaluation(
                lambda: self._responder(stack),
                OtherMedia(self.source) if control == "other" else self.source,
                settings.config,
                Progress(f"evaluating {name}"),
                store,
                control_view(control),
                grader=self.grader,
                skip_bad_rows=settings.data.bad_rows == "skip",
            )
        except BadRowError as error:
            kept = f" The {len(store)} responses so far are kept." if settings.output is not None else ""
            reason = str(error).rstrip(".")
            raise ValueError(f"{reason}. Skip and count such rows with --bad-rows skip.{kept}") from error

    @contextmanager
    def _responder(self, stack: ExitStack) -> Iterator[Responder]:
        """What answers the problems; a model is loaded once for all its controls.

        Args:
            stack: closes the model at the end.
        """
        settings = self.settings
        if settings.endpoint.base_url is not None:
            with EndpointResponder(
                EndpointClient(settings.models[0], settings.endpoint),
                settings.sampling,
                concurrency=settings.concurrency,
                tries=settings.tries,
                max_pixels=settings.data.max_pixels,
            ) as responder:
                yield responder
            return
        if self._engine is None:
            self._engine = passing_bar("loading the model").during(lambda: _engine(settings))
            stack.callback(self._engine.close)
        with self._engine.awake():
            yield ModelResponder(self._engine, settings.sampling, settings.data.pixel_limits())


def _engine(settings: EvaluationSettings) -> Engine:
    """The model in the engine of the settings."""
    loaded = load_model(settings.models[0], settings.dtype)
    return make_engine(loaded, settings.engine, settings.vllm, prompts_per_batch=settings.prompts_per_batch)


def _problems(settings: EvaluationSettings, grader: Grader) -> tuple[FileSource, list[Answer]]:
    """The problems to ask, and those that are left out before anything is asked.

    Raises:
        ValueError: there is none, none can be graded, or images would not be shown.
    """
    meter = _meter(settings)
    source = settings.data.open(progress=passing_bar("checking the data").over, observe=meter)
    _check_media(source, settings.data.text_only)
    if settings.problems is not None:
        source = source.select(range(min(settings.problems, len(source))))
    overlong: list[Overlong] = []
    if meter is not None:
        source, overlong = fit_prompts(source, meter, settings.data.overlong)
    too_long = unasked([(prompt.id, str(prompt)) for prompt in overlong], "prompts too long")
    _check_gradable(source, grader)
    unreadable = [(bad.id or f"row {bad.row}", str(bad)) for bad in source.bad_rows]
    return source, [*unasked(unreadable, "unreadable rows"), *too_long]


def _meter(settings: EvaluationSettings) -> PromptMeter | None:
    """Measures the prompts where their length is limited.

    Raises:
        ValueError: the length is limited, and the model is behind an endpoint.
    """
    limit = settings.data.max_prompt_tokens
    if limit is None:
        return None
    if settings.endpoint.base_url is not None:
        raise ValueError("data.max_prompt_tokens needs the model's tokenizer; an endpoint gives none.")
    encoder = PromptEncoder.for_lengths(read_processor(settings.models[0]), settings.data.pixel_limits())
    return PromptMeter([Reader("student", Plain(), encoder, limit)])


def _check_media(source: FileSource, text_only: bool) -> None:
    """A model that is not shown the images must not get an accuracy without a word."""
    for note in source.notes:
        say(note)
    if 0 < source.num_seeing < len(source):
        say(source.media_in_words())
    unused = source.unused_media()
    if unused is not None and not text_only:
        raise ValueError(f"{unused} Set data.text_only=true to evaluate without these images.")
    has_media = any(source.schema.get(field) is not None for field in ("images", "videos"))
    if not has_media and not text_only:
        say(
            f"Warning: no problem of {source.name} has an image or a video; the model gets text only. Set "
            "data.text_only=true if that is intended."
        )


def _check_gradable(source: FileSource, grader: Grader) -> None:
    answers = source.column("answer")
    if grader.config.function is not None:
        return
    if not any(answer is not None for answer in answers):
        raise ValueError(f"No problem of {source.name} has an answer to grade by; see vicur data inspect.")
    first = next(answer for answer in answers if answer is not None)
    if not any(answer is not None and grader.can_grade(answer) for answer in answers):
        raise ValueError(
            f"No gold answer of {source.name} can be graded against; the first is {first[:80]!r}."
        )


def _about_store(store: ResponseStore) -> list[str]:
    reused = [f"Reusing {counted(len(store), 'response')} from {store.output}."] if len(store) else []
    return [*store.notes, *reused]
