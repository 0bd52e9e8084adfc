"""The command `vicur eval`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vicur.bad_rows import BadRowError
from vicur.cli.command import Arguments
from vicur.cli.terminal import evaluation_lines, passing_bar, print_text, say
from vicur.data.sources import FileSource
from vicur.data.views import Plain
from vicur.encoding.lengths import Overlong, PromptMeter, Reader, fit_prompts
from vicur.encoding.prompts import PromptEncoder
from vicur.evaluation.responses import ResponseStore
from vicur.evaluation.runner import Answer, Evaluation, resume_evaluation, unasked
from vicur.evaluation.settings import EvaluationSettings
from vicur.models.checkpoints import read_processor
from vicur.models.load import load_model
from vicur.progress import Progress
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.wording import counted


def evaluate(settings: EvaluationSettings, arguments: Arguments, console: Console) -> None:
    """Check data and output, ask the model, and print the results.

    Raises:
        ValueError: a setting, the data or the output does not fit.
        OSError: the responses cannot be written; the message says where they are.
    """
    settings.check_output()
    grader = Grader(settings.rewards)
    source, left_out = _problems(settings, grader)
    settings.check_output(source.files)
    if settings.output is None:
        say("Responses will not be stored; use --output FILE.parquet to store them.")
    output = None if settings.output is None else Path(settings.output)
    with ResponseStore(output, settings.identity(), overwrite=settings.overwrite) as store:
        for sentence in _about_store(store):
            say(sentence)
        evaluation = _answers(settings, source, grader, store)
        evaluation = Evaluation(evaluation.answers, (*left_out, *evaluation.unasked))
        # Before anything can go wrong in writing: the result of the whole evaluation.
        for line in evaluation_lines(evaluation, settings):
            print_text(line, console)
        store.finish(evaluation.table())
    if output is not None:
        print_text(f"Responses and verdicts: {output}", console)


def _answers(
    settings: EvaluationSettings, source: FileSource, grader: Grader, store: ResponseStore
) -> Evaluation:
    """The model's answers.

    Raises:
        ValueError: a row turns out unreadable, and such rows are not skipped.
    """
    loading = passing_bar("loading the model")
    try:
        return resume_evaluation(
            lambda: loading.during(lambda: _engine(settings)),
            source,
            settings.config,
            Progress("evaluating"),
            store,
            grader=grader,
            limits=settings.data.pixel_limits(),
            skip_bad_rows=settings.data.bad_rows == "skip",
        )
    except BadRowError as error:
        kept = f" The {len(store)} responses so far are kept." if settings.output is not None else ""
        reason = str(error).rstrip(".")
        raise ValueError(f"{reason}. Skip and count such rows with --bad-rows skip.{kept}") from error


def _engine(settings: EvaluationSettings) -> Engine:
    """The model in the engine of the settings."""
    loaded = load_model(settings.model, settings.dtype)
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
    """Measures the prompts where their length is limited."""
    limit = settings.data.max_prompt_tokens
    if limit is None:
        return None
    encoder = PromptEncoder.for_lengths(read_processor(settings.model), settings.data.pixel_limits())
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
