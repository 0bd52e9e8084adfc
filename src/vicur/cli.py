"""The command line. Holds no logic: it parses, calls, prints, and turns errors into sentences.

Commands import what they need when they run, so that `--help`, `--version` and mistakes in typing take no
time, and Ctrl-C is answered in one line from the start.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vicur.options import (
    DATA_OPTIONS,
    PIXEL_OPTIONS,
    Option,
    Parser,
    add_column_option,
    as_overrides,
    canonical,
)
from vicur.paths import expand

if TYPE_CHECKING:
    from rich.console import Console

    from vicur.assembly import Plan, Run
    from vicur.data.pixels import PixelLimits
    from vicur.data.sources import FileSource
    from vicur.training.progress import Progress

MISTAKE, USAGE, PREFLIGHT, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141
PRIVILEGES = ("none", "answer", "rationale", "cue", "teacher_prompt")
DTYPES = ("float32", "bfloat16")

EVAL_OPTIONS = (
    Option("--model", "model", "checkpoint folder, hub id or vicur:NAME"),
    Option("--dtype", "dtype", "compute dtype (default float32)", choices=DTYPES),
    Option("--data", "data.train", "problems with answers: file, folder or hub id, with @split"),
    *DATA_OPTIONS,
    *PIXEL_OPTIONS,
    Option("--output", "output", "parquet file for responses and verdicts; a later run resumes from it"),
    Option("--overwrite", "overwrite", "discard responses of another evaluation in the output", switch=True),
    Option("--temperature", "sampling.temperature", "sampling temperature; 0 is greedy (default)"),
    Option("--top-p", "sampling.top_p", "probability mass that is sampled from (default 1)"),
    Option(
        "--top-k", "sampling.top_k", "number of most likely tokens that is sampled from; 0 for all (default)"
    ),
    Option("--presence-penalty", "sampling.presence_penalty", "penalty on repeated tokens (default 0)"),
    Option("--max-new-tokens", "sampling.max_new_tokens", "length limit of a response (default 2048)"),
    Option("--seed", "seed", "seed for sampling (default 0)"),
    Option("--batch", "prompts_per_batch", "problems answered together (default 32)"),
    Option("--limit", "limit", "use only the first N problems", metavar="N"),
)
AUDIT_OPTIONS = (
    Option("--data", "data.train", "data with cues: file, folder or hub id, with @split"),
    Option("--image-dir", "data.image_dir", "folder that paths of images and videos start from"),
)
WORTH_OPTIONS = (
    Option("--data", "data.train", "problems with cues, rationales or answers"),
    *DATA_OPTIONS,
    *PIXEL_OPTIONS,
    Option("--student", "student", "model that responds: checkpoint folder, hub id or vicur:NAME"),
    Option("--teacher", "teacher", "model that is shown the texts (default: the student)"),
    Option("--run", "run", "use the student's responses of this training run"),
    Option("--problems", "problems", "use only the first N problems", metavar="N"),
    Option("--siblings", "siblings", "responses per problem (default 4)"),
    Option("--batch", "samples_per_batch", "problems scored together (default 16)"),
    Option("--seed", "seed", "seed for sampling and for the choice of other problems (default 0)"),
    Option("--output", "output", "folder for worth.json and tokens.parquet"),
)
SETTINGS = "Every setting can be given as key=value or --key value"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0 done; 1 what was asked for cannot be done; 2 it was asked for in a way that cannot be
        understood; 3 a preflight check failed; 130 interrupted; 141 the reader of the output went away.
    """
    if arguments is None:
        _hide_deprecations()
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is caught, also after --help
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Everything written so far can be read.\n")
        return INTERRUPTED
    except BrokenPipeError:  # as behind `| head`: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _hide_deprecations() -> None:
    """For the whole process, unless -W or PYTHONWARNINGS asks for warnings.

    What a library will change concerns the developers of this one and not those who run it.
    """
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(canonical(arguments))
    _take_rest(options, rest)
    command: Callable[[argparse.Namespace, Console], None] = options.run
    from rich.console import Console

    try:
        command(options, Console())
    except BrokenPipeError:
        raise
    except _mistakes() as error:
        Console(stderr=True).print(f"vicur: {error}", markup=False, highlight=False, soft_wrap=True)
        return (
            PREFLIGHT
            if isinstance(error, _imported("vicur.training.preflight", "PreflightError"))
            else MISTAKE
        )
    return 0


def _mistakes() -> tuple[type[BaseException], ...]:
    """What ends in a sentence; anything else is a fault of this program."""
    return (ValueError, OSError, FloatingPointError, *_imported("torch", "OutOfMemoryError"))


def _imported(module: str, name: str) -> tuple[type[BaseException], ...]:
    """A class of errors, if its module was imported; otherwise nobody can have raised it."""
    return (vars(sys.modules[module])[name],) if module in sys.modules else ()


def _take_rest(options: argparse.Namespace, rest: list[str]) -> None:
    """Words that are no declared option: settings, for the commands that have any."""
    own: Parser = options.own
    if "rest" not in options:
        if rest:
            own.refuse(rest[0])
        return
    for word in rest:
        flag = word.partition("=")[0]
        if options.declared and flag.startswith("--") and "." not in flag and own.suggestion(word):
            own.refuse(word)
    options.rest = as_overrides(rest, own)
    given = {pair.partition("=")[0].removeprefix("--") for pair in options.rest}
    missing = [
        option.flag
        for option in options.declared
        if option.setting in options.needed
        and getattr(options, option.dest) is None
        and option.setting not in given
    ]
    if missing and not options.print_config:
        own.error(f"the following arguments are required: {', '.join(missing)}")


class _Version(argparse.Action):
    """Prints the installed version."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("vicur")
        except PackageNotFoundError:  # run from its sources
            found = "(not installed)"
        sys.stdout.write(f"vicur {found}\n")
        parser.exit()


def _parser() -> Parser:
    import shtab

    parser = Parser(
        prog="vicur",
        description="On-policy distillation for vision-language models, supervised by what can be seen.",
        epilog="Exit codes: 0 done, 1 cannot be done, 2 cannot be understood, 3 a preflight check failed, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    shtab.add_argument_to(parser, help="print a script that completes commands")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_quickstart(_command(commands, "quickstart", "train and compare on a laptop CPU, in minutes"))
    _add_train(_command(commands, "train", "train a student by a recipe"))
    _add_evaluate(_command(commands, "eval", "grade a model's answers"))
    _add_init(_command(commands, "init", "add cue recovery to a Qwen3-VL checkpoint"))
    _add_cues(_command(commands, "cues", "generate visual cues, audit them, measure their effect"))
    _add_data(_command(commands, "data", "look at problems before training on them"))
    _add_study(_command(commands, "study", "train and compare several recipes on CueBench"))
    _add_cuebench(_command(commands, "cuebench", "synthetic problems and tiny models"))
    return parser


def _command(commands: Any, name: str, help: str, **options: Any) -> Parser:
    """A parser below another one, which knows itself: messages are about the options of this command."""
    parser: Parser = commands.add_parser(name, help=help, **options)
    parser.command = name
    parser.set_defaults(own=parser)
    return parser


def _path(text: str) -> str:
    """The type of options that are paths."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _takes_settings(
    parser: argparse.ArgumentParser, declared: tuple[Option, ...] = (), needed: tuple[str, ...] = ()
) -> None:
    """Let a command take settings, as `declared` options and as key=value.

    Args:
        parser: of the command.
        declared: the settings that have an option.
        needed: settings that must be given.
    """
    for option in declared:
        option.add_to(parser)
    parser.set_defaults(rest=[], declared=declared, needed=needed, print_config=False)


def _add_print_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--print-config", action="store_true", help="print all settings and stop")
    parser.epilog = f"{SETTINGS}; --print-config shows them all."


def _add_quickstart(parser: Parser) -> None:
    _add_study_options(parser, "quickstart")
    parser.set_defaults(run=_quickstart)


def _add_train(parser: Parser) -> None:
    parser.description = (
        "Train a student by a recipe. Every run begins with a preflight: a few problems go through the real "
        "models, and a teacher that does not see the image, or a hint in the student's prompt, stops it."
    )
    parser.add_argument("recipe", help="YAML file, or a packaged recipe: cuebench/opsd_cue, vgs/2b/vgs, ...")
    _takes_settings(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    parser.epilog = f"{SETTINGS}, e.g. optimizer.learning_rate=1e-4; --print-config shows them all."
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print recipe, prompts, memory and the preflight's checks, and stop before the first step",
    )
    parser.set_defaults(run=_train)


def _add_study(parser: Parser) -> None:
    parser.add_argument("study", help="YAML file, or the name of a packaged study: objectives, quickstart")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="train only these")
    _add_study_options(parser, None)
    _takes_settings(parser)
    parser.epilog = f"{SETTINGS} for all trained methods, e.g. rewards.tolerance=0.01."
    parser.set_defaults(run=_study)


def _add_evaluate(parser: Parser) -> None:
    parser.description = (
        "Let a model answer problems and grade its responses. Responses are stored as they come: the same "
        "command resumes an interrupted evaluation, and with other rewards.* it only grades again."
    )
    _takes_settings(parser, EVAL_OPTIONS, needed=("model", "data.train"))
    add_column_option(parser)
    _add_print_config(parser)
    parser.set_defaults(run=_evaluate)


def _add_init(parser: Parser) -> None:
    parser.add_argument(
        "--base", required=True, type=_path, help="checkpoint folder, hub id, or (dry run) a config.json"
    )
    parser.add_argument("--out", type=_path, help="folder for the new checkpoint")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--interval", type=int, help="insert after every N-th decoder layer (default 5)")
    where.add_argument("--layers", type=int, nargs="+", help="insert after these decoder layers instead")
    parser.add_argument(
        "--output-init",
        choices=("zero", "normal"),
        default="zero",
        help="initialisation of the output projection: zero (default; the new student computes what its base "
        "computes) or normal, N(0, 0.02)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the new checkpoint (default: that of the base)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for initialising the new weights")
    parser.add_argument("--dry-run", action="store_true", help="print what would be added and stop")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_init)


def _add_data(parser: Parser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = _command(commands, "inspect", "schema, counts, sizes, lengths, and one prompt as it is seen")
    data = inspect.add_argument("data", type=_path, help="file, folder or hub id, with @split")
    _add_data_options(data, inspect)
    inspect.add_argument("--model", type=_path, help="checkpoint whose chat template and tokenizer are used")
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
        default="1000",
        metavar="N",
        help="number of images to decode, or all (default 1000)",
    )
    inspect.add_argument("--example", type=int, default=0, help="number of the problem that is shown")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


def _add_data_options(source: argparse.Action, parser: argparse.ArgumentParser) -> None:
    import shtab

    source.complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument("--system-prompt", help="system prompt put before every problem")
    parser.add_argument("--image-dir", type=_path, help="folder that paths of images and videos start from")
    add_column_option(parser)
    parser.add_argument("--min-pixels", type=int, help="lower bound on pixels per image after resizing")
    parser.add_argument("--max-pixels", type=int, help="upper bound on pixels per image after resizing")


def _add_study_options(parser: argparse.ArgumentParser, output: str | None) -> None:
    shown = output or "studies/STUDY"
    parser.add_argument(
        "--output", type=_path, default=output, help=f"folder for all results (default {shown})"
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of repetitions (default 1)")
    parser.add_argument("--steps", type=int, help="training steps of each method (default: the recipes' own)")
    parser.add_argument(
        "--test-problems", type=int, default=600, help="problems in each test set (default 600)"
    )


def _add_cues(parser: Parser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = _command(
        commands, "build", "ask a vision-language model for the cue of every problem", add_help=False
    )
    _takes_settings(build)
    build.add_argument("-h", "--help", action="store_true", help="print all settings and stop")
    build.add_argument(
        "--dry-run", action="store_true", help="print the plan and its estimated cost, and stop"
    )
    build.add_argument(
        "--repair",
        type=int,
        default=0,
        metavar="N",
        help="audit the cues and regenerate leaking ones, up to N times",
    )
    build.set_defaults(run=_cues_build)

    audit = _command(commands, "audit", "look for cues that leak, guess or say nothing")
    _takes_settings(audit, AUDIT_OPTIONS, needed=("data.train",))
    audit.add_argument(
        "--column", choices=("cue", "rationale", "answer"), default="cue", help="text to audit (default cue)"
    )
    audit.add_argument(
        "--cuebench", action="store_true", help="the data is CueBench's: check every claim against its boxes"
    )
    audit.add_argument("--verifier", metavar="MODEL", help="model that checks every claim against the image")
    audit.add_argument("--base-url", help="endpoint of the verifier, e.g. http://127.0.0.1:8000/v1")
    audit.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="environment variable that holds the verifier's key"
    )
    audit.add_argument(
        "--flags", type=_path, help="parquet file for all flags, each with its span and reason"
    )
    audit.add_argument("--drop", type=_path, help="file for the data without the cues that certainly leak")
    audit.add_argument("--possible", action="store_true", help="also drop cues with possible faults")
    audit.add_argument("--json", action="store_true", help="print counts and rates as JSON")
    audit.epilog = f"{SETTINGS}, e.g. data.columns.answer=label."
    audit.set_defaults(run=_cues_audit)

    worth = _command(
        commands, "worth", "measure how cues, rationales and answers change the teacher's log-probs"
    )
    _takes_settings(worth, WORTH_OPTIONS, needed=("data.train", "student"))
    add_column_option(worth)
    worth.add_argument(
        "--kinds",
        nargs="+",
        choices=("cue", "rationale", "answer"),
        help="texts to measure (default: all that the data has)",
    )
    _add_print_config(worth)
    worth.set_defaults(run=_cues_worth)


def _add_cuebench(parser: Parser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = _command(commands, "make", "write problems as parquet, geometry3k convention")
    make.add_argument("--family", choices=("segments", "chords"), default="segments")
    make.add_argument(
        "--split", choices=("pretrain", "train", "validation", "test", "test_ood"), default="train"
    )
    make.add_argument("--n", type=int, required=True, help="number of problems")
    make.add_argument("--out", type=_path, required=True, help="parquet file to write")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(run=_make)
    pretrain = _command(commands, "pretrain", "train a tiny model from scratch, in minutes")
    pretrain.add_argument("--size", choices=("student", "teacher"), required=True)
    pretrain.add_argument("--out", type=_path, required=True, help="folder for the checkpoint")
    pretrain.add_argument("--seed", type=int, help="seed (default: that of the shipped model)")
    pretrain.set_defaults(run=_pretrain)


def _quickstart(options: argparse.Namespace, console: Console) -> None:
    from vicur.quickstart import run_quickstart
    from vicur.study import StudyConfig

    config = StudyConfig(options.output, options.seeds, options.steps, options.test_problems)
    summary = run_quickstart(config, console)
    _print_summary(summary, console)
    console.print(f"Picture: {config.output}/showcase.png   All numbers: {config.output}/summary.json")


def _study(options: argparse.Namespace, console: Console) -> None:
    from vicur.study import StudyConfig, load_study, run_study, summarise

    study = load_study(options.study, options.rest)
    output = options.output or f"studies/{Path(options.study).stem}"
    config = StudyConfig(output, options.seeds, options.steps, options.test_problems, tuple(options.only))
    outcomes = run_study(study, config, console)
    _print_summary(summarise(study, outcomes), console)
    console.print(f"All numbers: {output}/summary.json", markup=False)


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    from vicur.reporting.tables import headlines, study_table

    console.print(study_table(summary))
    for sentence in headlines(summary):
        console.print(sentence, highlight=False)


def _train(options: argparse.Namespace, console: Console) -> None:
    from vicur.assembly import build
    from vicur.recipe import load_recipe, to_yaml
    from vicur.reporting.run_summary import print_run_summary, summarise_run
    from vicur.training.folder import check_run_folder, run_folder
    from vicur.training.progress import Progress

    recipe = load_recipe(options.recipe, options.rest)
    if options.print_config or options.dry_run:
        sys.stdout.write(to_yaml(recipe))
        sys.stdout.flush()
    if options.print_config:
        return
    training = recipe.training
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    try:
        check_run_folder(folder, overwrite=training.overwrite)
    except ValueError as error:
        if not options.dry_run:
            raise
        _say(str(error))
    console.print(f"Output folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    run = build(recipe, _passing_bar)
    plan = run.plan(_passing_bar)
    for sentence in [*run.notices, *([] if plan.warning is None else [plan.warning])]:
        _say(sentence)
    if options.dry_run:
        _tell_plan(run, plan, console)
        return
    # Meanwhile another run of the same name may have begun.
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    run.execute(folder, plan, Progress("training"), _passing_bar)
    print_run_summary(summarise_run(folder), console)
    console.print(f"Done. Everything is in {folder}.", markup=False, highlight=False, soft_wrap=True)


def _say(sentence: str) -> None:
    """Print a sentence on standard error."""
    from rich.console import Console

    Console(stderr=True).print(sentence, markup=False, highlight=False, soft_wrap=True)


def _tell_plan(run: Run, plan: Plan, console: Console) -> None:
    from vicur.reporting.terminal import print_memory, print_preflight

    needs = run.trainer.objective.needs(1)
    console.print(
        f"{len(run.data.problems)} problems, "
        f"{run.recipe.training.rollout_batches(len(run.data.problems))} steps. A step writes up to "
        f"{plan.work.generated:,} response tokens and reads up to {plan.work.scored(needs):,} tokens.",
        highlight=False,
    )
    print_memory(plan.memory.parts, plan.available, console)
    found = run.preflight(plan, _passing_bar)
    print_preflight(found, console)
    found.raise_if_failed()


def _passing_bar(title: str) -> Progress:
    """A bar that disappears when it is full."""
    from vicur.training.progress import Progress

    return Progress(title, transient=True)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from vicur.eval_command import run_evaluation

    run_evaluation(options, EVAL_OPTIONS, console)


def _cues_build(options: argparse.Namespace, console: Console) -> None:
    from vicur.cue_commands import build_command

    build_command(options, console)


def _cues_audit(options: argparse.Namespace, console: Console) -> None:
    from vicur.cue_commands import audit_command

    audit_command(options, AUDIT_OPTIONS, console)


def _cues_worth(options: argparse.Namespace, console: Console) -> None:
    from vicur.cue_commands import worth_command

    worth_command(options, WORTH_OPTIONS, console)


def _init(options: argparse.Namespace, console: Console) -> None:
    import torch

    from vicur.models.augment import describe, save_augmented
    from vicur.models.checkpoints import read_config, saved_dtype
    from vicur.models.load import RecoveryConfig, StudentConfig, check_free, load_student
    from vicur.paths import check_folder
    from vicur.reporting.terminal import print_addition

    if options.out is None and not options.dry_run:
        raise ValueError("--out is required unless --dry-run is given.")
    if options.out is not None:
        check_free(Path(options.out))
        check_folder(Path(options.out), "--out")
    recovery = RecoveryConfig(True, options.interval, options.layers, options.output_init)
    addition = describe(options.base, recovery)
    if options.json:
        _print_json(addition.as_dict())
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


def _print_json(value: object) -> None:
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _inspect(options: argparse.Namespace, console: Console) -> None:
    from vicur.data.inspect import inspect_source
    from vicur.data.rows import PromptEncoder
    from vicur.models.checkpoints import read_processor
    from vicur.reporting.terminal import print_inspection
    from vicur.scoring.teacher import TeacherConfig

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
        _print_json(found.as_dict())
    else:
        print_inspection(found, console)


def _no_positions(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("lengths need no positions, for which the model would have to be loaded")


def _open(parsed: argparse.Namespace, bad_rows: Any, **settings: Any) -> FileSource:
    from vicur.data.sources import FileSource
    from vicur.data.spelling import AS_OPTIONS

    columns = {}
    for pair in parsed.column_pairs:
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
    from vicur.data.pixels import PixelLimits

    return PixelLimits(options.min_pixels, options.max_pixels)


def _make(options: argparse.Namespace, console: Console) -> None:
    from vicur.cuebench.generate import write_parquet
    from vicur.paths import check_file

    check_file(Path(options.out), "--out")
    if options.n < 1:
        raise ValueError(f"--n must be at least 1, not {options.n}.")
    with console.status(f"drawing {options.n} problems"):
        write_parquet(options.family, options.split, options.n, Path(options.out), seed=options.seed)
    console.print(
        f"{options.n} {options.family} problems ({options.split}) are in {options.out}.", markup=False
    )


def _pretrain(options: argparse.Namespace, console: Console) -> None:
    from vicur.cuebench.pretrain import pretrain_checkpoint
    from vicur.paths import check_folder

    check_folder(Path(options.out), "--out")
    pretrain_checkpoint(options.size, Path(options.out), options.seed, console.print)


if __name__ == "__main__":
    sys.exit(main())
