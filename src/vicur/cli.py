"""The command line. Holds no logic: it parses, calls, prints, and turns errors into sentences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.cuebench.generate import write_parquet
from vicur.cuebench.pretrain import pretrain_checkpoint
from vicur.data.sources import FileSource
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.models.load import load_model
from vicur.quickstart import run_quickstart
from vicur.recipe import build, load_recipe, to_yaml
from vicur.reporting.tables import headlines, study_table
from vicur.rollouts.processors import SamplingConfig
from vicur.study import StudyConfig, load_study, run_study, summarise
from vicur.training.progress import Progress
from vicur.training.records import Records

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0 done, 1 a mistake in what was asked, 2 a mistake in how, 130 interrupted.
    """
    console = Console()
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.run is _train:
        options.overrides += _as_overrides(rest, parser)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Callable[[argparse.Namespace, Console], None] = options.run
    try:
        command(options, console)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted.")
        return INTERRUPTED
    except (ValueError, OSError, FloatingPointError) as error:
        Console(stderr=True).print(f"vicur: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vicur",
        description="On-policy distillation for vision-language models, supervised by what can be seen.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quickstart = commands.add_parser(
        "quickstart", help="train and compare on CueBench, on a laptop CPU in minutes"
    )
    _add_study_options(quickstart, "quickstart")
    quickstart.set_defaults(run=_quickstart)

    train = commands.add_parser("train", help="train a student by a recipe")
    train.add_argument("recipe", help="YAML file, or the name of a packaged recipe: cuebench/opsd_cue")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optimizer.learning_rate=1e-4")
    train.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    train.set_defaults(run=_train)

    study = commands.add_parser("study", help="train and compare several recipes on CueBench")
    study.add_argument("study", help="YAML file, or the name of a packaged study: objectives, quickstart")
    study.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="train only these")
    _add_study_options(study, None)
    study.set_defaults(run=_study)

    evaluate = commands.add_parser("eval", help="grade a model's answers")
    evaluate.add_argument("--model", required=True, help="checkpoint folder, hub id or vicur:NAME")
    evaluate.add_argument("--data", required=True, help="parquet or JSON-lines file with answers")
    evaluate.add_argument("--output", help="parquet file for the responses")
    evaluate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    evaluate.add_argument("--top-p", type=float, default=1.0)
    evaluate.add_argument("--top-k", type=int, default=0, help="0 keeps all words (default)")
    evaluate.add_argument("--presence-penalty", type=float, default=0.0)
    evaluate.add_argument("--max-new-tokens", type=int, default=256)
    evaluate.add_argument("--batch", type=int, default=100, help="problems answered together")
    evaluate.add_argument("--system-prompt", help="put before every problem")
    evaluate.set_defaults(run=_evaluate)

    _add_cuebench(commands.add_parser("cuebench", help="synthetic problems and tiny models"))
    return parser


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
            parser.error(f"expected key=value, got {word}")
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
    if options.print_config:
        sys.stdout.write(to_yaml(recipe))
        return
    output = Path(recipe.training.output)
    trainer, loaded = build(recipe)
    with Records(output, to_yaml(recipe)) as records:
        trainer.train(records, Progress("training"))
        if recipe.training.save_model:
            loaded.save(output / "checkpoints" / "final")
    console.print(f"Done. Everything is in {output}.", markup=False, highlight=False)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    sampling = SamplingConfig(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        presence_penalty=options.presence_penalty,
        max_new_tokens=options.max_new_tokens,
    )
    samples = FileSource(options.data, options.system_prompt)
    config = EvaluationConfig(sampling, options.batch)
    result = evaluate(load_model(options.model), samples, config, Progress("evaluating"))
    leakage = result.leakage
    console.print(
        f"accuracy {result.accuracy} % on {len(result.graded)} problems, hint leakage "
        f"{leakage.samples}/{leakage.occurrences}",
        highlight=False,
    )
    if options.output:
        result.write(Path(options.output))


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
