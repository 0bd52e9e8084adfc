"""The command line. Holds no logic: it parses, calls, prints, and turns errors into sentences."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import shtab
import torch
from rich.console import Console

from vicur.assembly import Run, build
from vicur.cue_commands import add_cues
from vicur.cuebench.generate import write_parquet
from vicur.cuebench.pretrain import pretrain_checkpoint
from vicur.data.files import write_whole
from vicur.data.inspect import inspect_source
from vicur.data.pixels import PixelLimits
from vicur.data.rows import PromptEncoder
from vicur.data.sources import CHECKED, FileSource
from vicur.data.spelling import AS_OPTIONS
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.models.augment import describe, save_augmented
from vicur.models.checkpoints import read_config, read_processor, saved_dtype
from vicur.models.load import RecoveryConfig, StudentConfig, check_free, load_model, load_student
from vicur.quickstart import run_quickstart
from vicur.recipe import load_recipe, to_yaml
from vicur.reporting.tables import headlines, study_table
from vicur.reporting.terminal import print_addition, print_inspection, print_memory, print_preflight
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.teacher import TeacherConfig
from vicur.study import StudyConfig, load_study, run_study, summarise
from vicur.training.memory import available_memory, estimate_memory
from vicur.training.preflight import PreflightError
from vicur.training.progress import Progress
from vicur.training.records import Records

MISTAKE, USAGE, PREFLIGHT, INTERRUPTED = 1, 2, 3, 130
PRIVILEGES = ("none", "answer", "rationale", "cue", "teacher_prompt")
DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0 done; 1 what was asked for cannot be done; 2 it was asked for in a way that cannot be
        understood; 3 a preflight check failed; 130 interrupted.
    """
    console = Console()
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.run is _train:
        options.overrides += _as_overrides(rest, parser)
    elif "rest" in options:
        options.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Callable[[argparse.Namespace, Console], None] = options.run
    try:
        command(options, console)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. What was written so far can be read.")
        return INTERRUPTED
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        Console(stderr=True).print(f"vicur: {error}", markup=False, highlight=False, soft_wrap=True)
        return PREFLIGHT if isinstance(error, PreflightError) else MISTAKE
    return 0


class _Parser(argparse.ArgumentParser):
    """Says which word was probably meant."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        option = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if choice is not None:
            message += _nearest(choice[1], re.findall(r"[\w.-]+", choice[2]))
        elif option is not None:
            message += _nearest(option[1], _all_options(self))
        super().error(message)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _all_options(parser: argparse.ArgumentParser) -> list[str]:
    """Options of the parser and of all its commands."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                found += _all_options(own)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vicur",
        description="On-policy distillation for vision-language models, supervised by what can be seen.",
        epilog="Exit codes: 0 done, 1 cannot be done, 2 cannot be understood, 3 a preflight check failed, "
        "130 interrupted.",
    )
    shtab.add_argument_to(parser, help="print a script that completes commands")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_quickstart(commands.add_parser("quickstart", help="train and compare on a laptop CPU, in minutes"))
    _add_train(commands.add_parser("train", help="train a student by a recipe"))
    _add_evaluate(commands.add_parser("eval", help="grade a model's answers"))
    _add_init(commands.add_parser("init", help="add cue recovery to a Qwen3-VL checkpoint"))
    add_cues(commands.add_parser("cues", help="make visual cues, audit them, measure their worth"))
    _add_data(commands.add_parser("data", help="look at problems before training on them"))
    _add_study(commands.add_parser("study", help="train and compare several recipes on CueBench"))
    _add_cuebench(commands.add_parser("cuebench", help="synthetic problems and tiny models"))
    return parser


def _add_quickstart(parser: argparse.ArgumentParser) -> None:
    _add_study_options(parser, "quickstart")
    parser.set_defaults(run=_quickstart)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a student by a recipe. Every run begins with a preflight: a few problems go through the real "
        "models, and a teacher that does not see the image, or a hint in the student's prompt, stops it."
    )
    parser.add_argument("recipe", help="YAML file, or a packaged recipe: cuebench/opsd_cue, vgs/2b/vgs, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optimizer.learning_rate=1e-4")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print recipe, prompts, memory and the preflight's checks, and stop before the first step",
    )
    parser.set_defaults(run=_train)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="YAML file, or the name of a packaged study: objectives, quickstart")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="train only these")
    _add_study_options(parser, None)
    parser.set_defaults(run=_study)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="checkpoint folder, hub id or vicur:NAME")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="in which it computes")
    _add_data_options(parser.add_argument("--data", required=True, help="problems with answers"), parser)
    parser.add_argument("--output", help="parquet file for the responses")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0 keeps all words (default)")
    parser.add_argument("--presence-penalty", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=100, help="problems answered together")
    parser.set_defaults(run=_evaluate)


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="checkpoint folder, hub id, or (dry run) a config.json")
    parser.add_argument("--out", help="folder of the new checkpoint")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--interval", type=int, help="after every n-th decoder layer (default 5)")
    where.add_argument("--layers", type=int, nargs="+", help="after these decoder layers instead")
    parser.add_argument(
        "--output-init",
        choices=("zero", "normal"),
        default="zero",
        help="zero (default): a fresh student equals its base; normal: N(0, 0.02)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 if the base is, else float32")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be added")
    parser.add_argument("--json", action="store_true", help="tell it as JSON")
    parser.set_defaults(run=_init)


def _add_data(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect", help="schema, counts, sizes, lengths, and one prompt as it is seen"
    )
    _add_data_options(inspect.add_argument("data", help="file, folder or hub id, with @split"), inspect)
    inspect.add_argument("--model", help="checkpoint whose chat template and tokenizer are used")
    inspect.add_argument(
        "--privilege", choices=PRIVILEGES, default="cue", help="what the teacher is shown (default cue)"
    )
    inspect.add_argument(
        "--options", default="letters", help="how options are written: letters (default), off, or a format"
    )
    inspect.add_argument(
        "--answer-from-response", action="store_true", help="take missing answers out of the responses"
    )
    inspect.add_argument(
        "--check-images",
        default=str(CHECKED),
        metavar="N",
        help=f"images to decode, or all (default {CHECKED})",
    )
    inspect.add_argument("--example", type=int, default=0, help="number of the problem that is shown")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


def _add_data_options(source: argparse.Action, parser: argparse.ArgumentParser) -> None:
    source.complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument("--system-prompt", help="put before every problem")
    parser.add_argument("--image-dir", help="folder that paths of images start from")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="where a field is, e.g. answer=label",
    )
    parser.add_argument("--min-pixels", type=int, help="of an image as the model sees it")
    parser.add_argument("--max-pixels", type=int, help="of an image as the model sees it")


def _add_study_options(parser: argparse.ArgumentParser, output: str | None) -> None:
    shown = output or "studies/STUDY"
    parser.add_argument("--output", default=output, help=f"folder for everything (default {shown})")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions (default 1)")
    parser.add_argument("--steps", type=int, help="updates of each method (default: the recipes' own)")
    parser.add_argument(
        "--test-problems", type=int, default=600, help="problems of each test set (default 600)"
    )


def _as_overrides(rest: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--key=value` and `--key value` as `key=value`, whatever stands between them."""
    overrides, words = [], iter(rest)
    for word in words:
        if "=" in word:
            overrides.append(word.removeprefix("--"))
        elif word.startswith("--") and (value := next(words, None)) is not None:
            overrides.append(f"{word.removeprefix('--')}={value}")
        else:
            parser.error(f"expected key=value, got {word}{_nearest(word, _all_options(parser))}")
    return overrides


def _add_cuebench(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("make", help="write problems as parquet, geometry3k convention")
    make.add_argument("--family", choices=("segments", "chords"), default="segments")
    make.add_argument(
        "--split", choices=("pretrain", "train", "validation", "test", "test_ood"), default="train"
    )
    make.add_argument("--n", type=int, required=True, help="number of problems")
    make.add_argument("--out", required=True, help="parquet file")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(run=_make)
    pretrain = commands.add_parser("pretrain", help="make a tiny model again, in minutes")
    pretrain.add_argument("--size", choices=("student", "teacher"), required=True)
    pretrain.add_argument("--out", required=True, help="folder of the checkpoint")
    pretrain.add_argument("--seed", type=int, help="default: the one the shipped model has")
    pretrain.set_defaults(run=_pretrain)


def _quickstart(options: argparse.Namespace, console: Console) -> None:
    config = StudyConfig(options.output, options.seeds, options.steps, options.test_problems)
    summary = run_quickstart(config, console)
    _print_summary(summary, console)
    console.print(f"Picture: {config.output}/showcase.png   All numbers: {config.output}/summary.json")


def _study(options: argparse.Namespace, console: Console) -> None:
    study = load_study(options.study)
    output = options.output or f"studies/{Path(options.study).stem}"
    config = StudyConfig(output, options.seeds, options.steps, options.test_problems, tuple(options.only))
    outcomes = run_study(study, config, console)
    _print_summary(summarise(study, outcomes), console)
    console.print(f"All numbers: {output}/summary.json", markup=False)


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    console.print(study_table(summary))
    for sentence in headlines(summary):
        console.print(sentence, highlight=False)


def _train(options: argparse.Namespace, console: Console) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    if options.print_config or options.dry_run:
        sys.stdout.write(to_yaml(recipe))
        sys.stdout.flush()
    if options.print_config:
        return
    output = Path(recipe.training.output)
    Records.check_free(output)
    run = build(recipe, _passing_bar)
    for sentence in run.data.told():
        Console(stderr=True).print(sentence, markup=False, highlight=False, soft_wrap=True)
    if options.dry_run:
        _tell_plan(run, console)
        return
    run.preflight(_passing_bar).raise_if_failed()
    with Records(output, to_yaml(recipe)) as records:
        run.trainer.train(records, Progress("training"))
        if recipe.training.save_model:
            _passing_bar("saving").during(lambda: run.student.save(output / "checkpoints" / "final"))
    console.print(f"Done. Everything is in {output}.", markup=False, highlight=False)


def _tell_plan(run: Run, console: Console) -> None:
    found = run.preflight(_passing_bar)
    print_preflight(found, console)
    measurement, needs = run.trainer.measurement, run.trainer.objective.needs(1)
    work = run.workload(found)
    console.print(
        f"{len(run.data.problems)} problems, "
        f"{run.recipe.training.rollout_batches(len(run.data.problems))} steps. A step writes up to "
        f"{work.generated:,} response tokens and reads up to {work.scored(needs):,} tokens.",
        highlight=False,
    )
    parts = estimate_memory(measurement.student, measurement.teacher, needs, work)
    print_memory(parts, available_memory(run.student), console)
    found.raise_if_failed()


def _passing_bar(title: str) -> Progress:
    """A bar that disappears when it is full."""
    return Progress(title, transient=True)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    sampling = SamplingConfig(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        presence_penalty=options.presence_penalty,
        max_new_tokens=options.max_new_tokens,
    )
    config = EvaluationConfig(sampling, options.batch)
    source = _open(options, "error")
    if not any(answer is not None for answer in source.column("answer")):
        raise ValueError(f"No problem of {source.name} has an answer to grade by; see vicur data inspect.")
    for note in (*source.notes, source.media_in_words()):
        Console(stderr=True).print(note, markup=False, highlight=False, soft_wrap=True)
    output = None if options.output is None else Path(options.output)
    if output is not None:
        write_whole(output.with_name(f".{output.name}.check"), lambda path: path.touch())
        output.with_name(f".{output.name}.check").unlink()
    loaded = _passing_bar("loading the model").during(lambda: load_model(options.model, options.dtype))
    result = evaluate(loaded, source, config, Progress("evaluating"), limits=_limits(options))
    leakage = result.leakage
    console.print(
        f"accuracy {result.accuracy} % on {len(result.graded)} problems; the word hint {leakage.occurrences} "
        f"times in {leakage.samples} of {len(result.responses)} responses",
        highlight=False,
    )
    ungraded = len(result.correct) - len(result.graded)
    if ungraded:
        console.print(f"{ungraded} problems have no gold answer that can be graded against; left out.")
    if output is not None:
        result.write(output)


def _init(options: argparse.Namespace, console: Console) -> None:
    if options.out is None and not options.dry_run:
        raise ValueError("--out is needed: where shall the student go? (Or --dry-run.)")
    if options.out is not None:
        check_free(Path(options.out))
    recovery = RecoveryConfig(True, options.interval, options.layers, options.output_init)
    addition = describe(options.base, recovery)
    if options.json:
        sys.stdout.write(json.dumps(addition.as_dict(), indent=2) + "\n")
    else:
        print_addition(addition, console)
    if options.dry_run:
        return
    own = saved_dtype(read_config(options.base))
    torch.manual_seed(options.seed)
    student = StudentConfig(options.base, recovery, options.dtype or own)
    loaded = _passing_bar("loading the base").during(lambda: load_student(student))
    _passing_bar("writing").during(lambda: save_augmented(loaded, options.base, recovery, Path(options.out)))
    if not options.json:
        console.print(f"The student is in {options.out}.", markup=False, highlight=False)


def _inspect(options: argparse.Namespace, console: Console) -> None:
    checked = options.check_images
    if checked != "all" and not checked.isdigit():
        raise ValueError(f"--check-images must be a number or all, not {checked}.")
    source = _open(
        options,
        "skip",
        options=options.options,
        answer_from_response=options.answer_from_response,
        check_images=None if checked == "all" else int(checked),
        may_be_empty=True,
    )
    encoder = None
    if options.model is not None:
        encoder = PromptEncoder(read_processor(options.model), _no_positions, _limits(options))
    view = TeacherConfig(privilege=options.privilege).view
    bar = _passing_bar("reading problems").over
    found = inspect_source(source, encoder, view, example=options.example, progress=bar)
    if options.json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        print_inspection(found, console)


def _no_positions(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("lengths need no positions, for which the model would have to be loaded")


def _open(parsed: argparse.Namespace, bad_rows: Any, **settings: Any) -> FileSource:
    columns = {}
    for pair in parsed.column:
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise ValueError(f"--column {pair} must have the form OURS=THEIRS.")
        columns[ours] = theirs
    return FileSource(
        parsed.data,
        parsed.system_prompt,
        image_dir=parsed.image_dir,
        columns=columns,
        bad_rows=bad_rows,
        progress=_passing_bar("checking the data").over,
        spelling=AS_OPTIONS,
        **settings,
    )


def _limits(options: argparse.Namespace) -> PixelLimits:
    return PixelLimits(options.min_pixels, options.max_pixels)


def _make(options: argparse.Namespace, console: Console) -> None:
    if options.n < 1:
        raise ValueError(f"--n must be at least 1, not {options.n}.")
    with console.status(f"drawing {options.n} problems"):
        write_parquet(options.family, options.split, options.n, Path(options.out), seed=options.seed)
    console.print(
        f"{options.n} {options.family} problems ({options.split}) are in {options.out}.", markup=False
    )


def _pretrain(options: argparse.Namespace, console: Console) -> None:
    pretrain_checkpoint(options.size, Path(options.out), options.seed, console.print)


if __name__ == "__main__":
    sys.exit(main())
