"""Starts VLMEvalKit's own run.py with a checkpoint of this package as one of its models.

Written against VLMEvalKit's interface at commit `INTERFACE`, and not run with it: it is on no registry.
"""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vicur.consoles import error_console
from vicur.evaluation.settings import EvaluationSettings
from vicur.integrations.settings import harness_settings, notes
from vicur.integrations.suites import HARNESSES, benchmarks, suites

INTERFACE = "e8e78f05f3080fe28154f2130321f17951c3be94"
"""Commit of open-compass/VLMEvalKit (18 August 2026) whose interface this was written against."""
THEIR_MODELS = ("--config", "--base-url", "--api-mode", "--use-vllm")
"""Options of run.py that choose another model class than the one registered here."""
INSTALL = "git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit"


def main(arguments: Sequence[str]) -> int:
    """Register the model and run VLMEvalKit.

    Args:
        arguments: the command line without the program's name.

    Returns:
        the exit code: 0, or 1 with a sentence on standard error.
    """
    options, theirs = _parser().parse_known_args(arguments)
    try:
        name, settings = _model(options)
        script = prepare(name, settings, theirs)
        data = benchmarks(options.suite, HARNESSES[0]) if options.suite else []
    except ValueError as error:
        _say(f"Error: {error}")
        return 1
    for note in notes(settings):
        _say(note)
    sys.argv = [str(script), "--model", name, *(["--data", *data] if data else []), *theirs]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def prepare(name: str, settings: EvaluationSettings, theirs: Sequence[str]) -> Path:
    """Register a model with VLMEvalKit, under a name for its files.

    Args:
        name: name of the model.
        settings: which checkpoint, and how it is run and sampled.
        theirs: the arguments for run.py.

    Returns:
        the script run.py.

    Raises:
        ValueError: VLMEvalKit or its run.py is missing, it has a model of this name, or an argument chooses
            another model class.
    """
    wrong = next((word for word in theirs if word.partition("=")[0] in THEIR_MODELS), None)
    if wrong is not None:
        raise ValueError(f"{wrong} chooses another model class; use it with VLMEvalKit's run.py itself.")
    config: Any = _imported("vlmeval.config")
    script = Path(str(_imported("vlmeval").__file__)).parents[1] / "run.py"
    if not script.is_file():
        raise ValueError(f"VLMEvalKit's run.py is not in {script.parent}. Install a checkout: {INSTALL}")
    if name in config.supported_VLM:
        raise ValueError(f"VLMEvalKit has a model {name} of its own; choose another name with --name.")
    from vicur.integrations.vlmevalkit.model import ViCuR

    config.supported_VLM[name] = partial(ViCuR, settings=settings)
    return script


def _model(options: argparse.Namespace) -> tuple[str, EvaluationSettings]:
    """Name and settings of the model."""
    arguments: dict[str, str] = {"model": options.model, "preset": options.preset}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text} must have the form key=value.")
        arguments[key.replace("-", "_")] = value
    # The whole path: VLMEvalKit's --reuse takes predictions of any model of the same name.
    name = re.sub(r"[^\w.-]+", "-", options.name or options.model).strip("-.")
    return name, harness_settings(arguments, "--set")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "vlmeval":
            raise
        raise ValueError(f"VLMEvalKit is not installed: {INSTALL}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vicur.integrations.vlmevalkit",
        description="Evaluate a checkpoint with VLMEvalKit. All other options go to its run.py: --data, "
        "--mode, --judge, --work-dir, --reuse, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="checkpoint folder, hub id or vicur:NAME")
    parser.add_argument(
        "--preset",
        default="vicur",
        help="sampling, system prompt and pixel limits: vicur (default), va-opd, vgs-greedy, vgs-sampled, "
        "greedy, recipe, or a YAML file, as in vicur eval",
    )
    parser.add_argument("--name", help="name of the model in VLMEvalKit's files (default: its path)")
    parser.add_argument(
        "--suite", choices=suites(), help="--data with a paper's benchmarks, as far as VLMEvalKit has them"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of vicur eval, e.g. engine=vllm"
    )
    return parser


def _say(sentence: str) -> None:
    error_console().print(sentence, markup=False, highlight=False, soft_wrap=True)
