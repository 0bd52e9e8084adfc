"""The entry point of the command line: it parses arguments, runs a command, and prints errors in one line.

Commands import what they need when they run, so that `--help`, `--version` and usage errors are immediate,
and Ctrl-C always gives a one-line message.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from vicur.cli.command import Command
from vicur.cli.commands import COMMANDS, GROUPS
from vicur.cli.entry import INTERRUPTED
from vicur.cli.options import Parser, canonical

MISTAKE, PREFLIGHT, PIPE_CLOSED = 1, 3, 141  # 2, a usage error, is argparse's own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0 success; 1 error; 2 unknown command or option; 3 failed preflight check; 130 interrupted;
        141 output pipe closed.
    """
    if arguments is None:
        _hide_deprecations()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks is no error
                stream.reconfigure(errors="backslashreplace")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout = _Output(sys.stdout)
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is caught, also after --help
    except KeyboardInterrupt as interrupt:
        if type(interrupt) is KeyboardInterrupt:  # a run that was saved has said so
            sys.stderr.write("Interrupted. Everything written so far can be read.\n")
        return INTERRUPTED
    except BrokenPipeError:  # as behind `| head`: nothing reads the output any more
        _drop_output()
        return PIPE_CLOSED
    except OutputError as error:
        _drop_output()
        sys.stderr.write(f"vicur: {error}\n")
        return MISTAKE


class OutputError(OSError):
    """Standard output cannot be written, e.g. because its disk is full."""


class _Output(io.TextIOWrapper):
    """Standard output, whose errors say what they are about; a closed pipe is a `BrokenPipeError` as before.

    Args:
        stream: standard output as Python has opened it.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        with _output_errors():
            return super().write(text)

    def flush(self) -> None:
        with _output_errors():
            super().flush()

    def close(self) -> None:
        """Leave the file open: it is that of the stream that Python has opened."""
        self.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"The output cannot be written: {error.strerror or error}.") from error


def _drop_output() -> None:
    """Let whatever is still to be written to standard output disappear."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hide_deprecations() -> None:
    """Hide deprecation warnings for the whole process, unless -W or PYTHONWARNINGS asks for warnings.

    A library's deprecation warnings concern the developers of this package, not its users.
    """
    if not sys.warnoptions:
        # torchao, which transformers imports if it is installed, is warned in this way by torch.
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)


def _run(words: Sequence[str]) -> int:
    words, settings = canonical(words)
    parsed, rest = _parser().parse_known_args(words)
    command: Command = parsed.command
    from rich.console import Console

    from vicur.cli.terminal import say
    from vicur.consoles import protected

    class PipedConsole(Console):
        """Leaves a closed pipe to `main`; rich would exit with code 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    try:
        with _memory_errors():
            command.execute(parsed, rest, settings, protected(PipedConsole()))
    except (BrokenPipeError, OutputError):
        raise
    except _mistakes() as error:
        if _speaks_for(error):
            say(f"vicur: {_sentence(error)}")
        refused = isinstance(error, _imported("vicur.preflight.checks", "PreflightError"))
        return PREFLIGHT if refused else MISTAKE
    return 0


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn a failed allocation, for which torch raises a plain RuntimeError, into a mistake of the user."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "can't allocate memory" in text:
            raise ValueError(
                f"There is not enough memory for these settings. {text[:300]}".strip()
            ) from error
        raise


def _mistakes() -> tuple[type[BaseException], ...]:
    """The errors that end in a one-line message; anything else is a fault of this program."""
    return (ValueError, OSError, FloatingPointError, *_imported("torch", "OutOfMemoryError"))


def _speaks_for(error: BaseException) -> bool:
    """Whether this process, of several of a run, prints the error."""
    module = sys.modules.get("vicur.distributed")
    return module is None or bool(module.speaks_for(error))


def _sentence(error: BaseException) -> str:
    """An error's message; of the operating system's own errors the file and the reason."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        file = "" if error.filename is None else f"{error.filename}: "
        return f"{file}{error.strerror}."
    return str(error)


def _imported(module: str, name: str) -> tuple[type[BaseException], ...]:
    """A class of errors, if its module was imported; otherwise it cannot have been raised."""
    return (vars(sys.modules[module])[name],) if module in sys.modules else ()


class _Version(argparse.Action):
    """Prints the installed version."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            installed = version("vicur")
        except PackageNotFoundError:  # run from its sources
            installed = "(not installed)"
        sys.stdout.write(f"vicur {installed}\n")
        parser.exit()


def _parser() -> Parser:
    import shtab

    parser = Parser(
        prog="vicur",
        description="On-policy distillation of vision-language models, supervised by what can be seen.",
        epilog="Exit codes: 0 success, 1 error, 2 unknown command or option, 3 failed preflight check, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    shtab.add_argument_to(parser, help="print a completion script for the shell")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {}
    for command in COMMANDS:
        group = command.name.split()[0] if " " in command.name else None
        if group is None:
            command.add_to(commands)
            continue
        if group not in groups:
            below = commands.add_parser(group, help=GROUPS[group])
            groups[group] = below.add_subparsers(required=True, metavar="COMMAND")
        command.add_to(groups[group])
    return parser
