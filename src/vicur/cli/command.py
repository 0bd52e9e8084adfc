"""The definition of a command: its words, its options, and the settings behind them.

All commands share one grammar. A setting is given as `key=value`, `--key value` or `--key=value`; the common
ones have a short option too (`--data FILE` is data.train=FILE). Nothing here imports a model or data, so that
parsing, `vicur --help` and mistakes in typing take no time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from vicur.cli.options import Option, Parser, Switch, add_column_option, as_list, as_overrides, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from vicur.settings.schema import Layer, Schema

Settings = TypeVar("Settings")
GRAMMAR = "Settings are given as key=value or --key value"
PRINT_CONFIG = Switch("--print-config", "print all settings and stop")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: its words, e.g. "data inspect".
        help: one line, for the list of commands.
        run: "module:function", imported when the command runs; called with the settings, the `Arguments`
            and a console.
        settings: "module:class" of its settings.
        load: "module:function" from the `Arguments` to the settings, where they also come from elsewhere, as
            from a recipe.
        description: description for its own help; `help` if not given.
        argument: the word behind the command, if it takes one.
        options: settings that have a short option.
        switches: options without a value that are no settings.
        needed: settings that must be given.
        columns: whether it takes --column.
        example: an override, for the help.
    """

    name: str
    help: str
    run: str
    settings: str
    load: str | None = None
    description: str = ""
    argument: Argument | None = None
    options: tuple[Option, ...] = ()
    switches: tuple[Switch, ...] = ()
    needed: tuple[str, ...] = ()
    columns: bool = False
    example: str = "seed=1"

    def add_to(self, commands: Any) -> None:
        """Declare its parser below that of its group."""
        parser: Parser = commands.add_parser(
            self.name.split()[-1],
            help=self.help,
            description=self.description or self.help,
            add_help=False,
            allow_abbrev=False,
        )
        parser.command = self.name
        parser.add_argument("-h", "--help", action="store_true", help="show this help, with all settings")
        if self.argument is not None:
            self.argument.add_to(parser)
        for option in self.options:
            option.add_to(parser)
        for switch in (*self.switches, PRINT_CONFIG):
            switch.add_to(parser)
        if self.columns:
            add_column_option(parser)
        parser.epilog = f"{GRAMMAR}, e.g. {self.example}; --print-config shows them all."
        parser.set_defaults(command=self, parser=parser)

    def execute(
        self, parsed: argparse.Namespace, rest: list[str], settings: list[str], console: Console
    ) -> None:
        """Run it, or print its help.

        Args:
            parsed: the arguments that argparse recognised.
            rest: the arguments that it did not recognise.
            settings: `key=value` or `--key=value`.
            console: console to print to.
        """
        parser: Parser = parsed.parser
        if parsed.help:
            sys.stdout.write(f"{parser.format_help()}\n")
            # The settings take longer: their classes are defined beside the code that uses them.
            sys.stdout.flush()
            from vicur.cli.help import settings_help

            sys.stdout.write(settings_help(resolve_name(self.settings), self.needed))
            return
        self._run(self._arguments(parsed, rest, settings, parser), console)

    def _run(self, arguments: Arguments, console: Console) -> None:
        if self.load is None:
            settings = arguments.load(resolve_name(self.settings))
        else:
            settings = resolve_name(self.load)(arguments)
        if PRINT_CONFIG.flag in arguments.switches:
            from vicur.settings.schema import as_yaml

            each = settings if isinstance(settings, list) else [settings]
            sys.stdout.write("---\n".join(map(as_yaml, each)))
            return
        run: Callable[[Any, Arguments, Console], None] = resolve_name(self.run)
        run(settings, arguments, console)

    def _arguments(
        self, parsed: argparse.Namespace, rest: list[str], settings: list[str], parser: Parser
    ) -> Arguments:
        for word in rest:
            flag = word.partition("=")[0]
            if (
                flag.startswith("--")
                and nearest(flag, parser.flags, cutoff=0.8)
                and not self.is_setting(flag)
            ):
                parser.refuse(word)
        overrides = [*as_overrides(rest, parser), *settings]
        named = {pair.partition("=")[0].removeprefix("--").replace("-", "_") for pair in overrides}
        values = {
            option: value for option in self.options if (value := vars(parsed)[option.dest]) is not None
        }
        words = self._words(parsed)
        if self.argument is not None and self.argument.setting is None and not words:
            parser.error(f"the following arguments are required: {self.argument.name}")
        missing = self._missing(named | {option.setting for option in values}, words)
        if missing and not vars(parsed)[PRINT_CONFIG.dest]:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        return Arguments(
            self,
            words,
            values,
            tuple(parsed.column_pairs) if self.columns else (),
            tuple(overrides),
            frozenset(switch.flag for switch in (*self.switches, PRINT_CONFIG) if vars(parsed)[switch.dest]),
        )

    def is_setting(self, flag: str) -> bool:
        """Whether an option or key is the name of a setting."""
        from vicur.settings.schema import schema_of

        return flag.removeprefix("--").replace("-", "_") in schema_of(resolve_name(self.settings)).kinds

    def _words(self, parsed: argparse.Namespace) -> tuple[str, ...]:
        """The words behind the command."""
        if self.argument is None or parsed.argument is None:
            return ()
        return tuple(parsed.argument) if self.argument.many else (parsed.argument,)

    def _missing(self, provided: set[str], words: tuple[str, ...]) -> list[str]:
        """The required settings that are missing, as they would be written."""
        written = {option.setting: option.flag for option in self.options}
        if self.argument is not None and self.argument.setting is not None:
            written[self.argument.setting] = self.argument.name
            provided = provided | ({self.argument.setting} if words else set())
        return [
            written.get(setting, f"{setting}=VALUE") for setting in self.needed if setting not in provided
        ]


@dataclass(frozen=True)
class Argument:
    """The word behind a command, or several.

    Attributes:
        name: placeholder in the usage line, e.g. "RECIPE".
        help: text for --help.
        setting: the setting that it is; None where the command reads it by itself.
        many: whether it may be several words, for a list.
    """

    name: str
    help: str
    setting: str | None = None
    many: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare it in a parser."""
        import shtab

        # Not required here: --help and --print-config do without it.
        nargs = "*" if self.many else "?"
        action = parser.add_argument("argument", metavar=self.name, nargs=nargs, help=self.help)
        action.complete = shtab.FILE  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Arguments:
    """The parsed command line.

    Attributes:
        command: the command.
        words: the words behind it.
        values: values of short options, as text.
        column_pairs: values of --column, as typed.
        overrides: `key=value` or `--key=value`, in order.
        switches: the switches that were given, e.g. "--dry-run".
    """

    command: Command
    words: tuple[str, ...]
    values: Mapping[Option, str]
    column_pairs: tuple[str, ...]
    overrides: tuple[str, ...]
    switches: frozenset[str]

    @property
    def word(self) -> str | None:
        """The first word behind the command; None if there is none."""
        return self.words[0] if self.words else None

    def load(self, component: type[Settings]) -> Settings:
        """The command's settings.

        Raises:
            SettingsError: a setting does not exist or does not fit.
        """
        from vicur.settings.schema import schema_of

        schema = schema_of(component, self.command.name)
        return schema.load([*self.layers(schema), *schema.overrides(self.overrides)])

    def load_own(self, component: type[Settings]) -> Settings:
        """The settings of a command that runs recipes, without those of the recipes.

        Raises:
            SettingsError: a setting does not exist or does not fit.
        """
        recipes = self.recipe_overrides
        kept = tuple(pair for pair in self.overrides if pair not in recipes)
        return replace(self, overrides=kept).load(component)

    @property
    def recipe_overrides(self) -> list[str]:
        """The overrides that are not settings of the command itself, but of the recipes that it runs."""
        return [pair for pair in self.overrides if not self.command.is_setting(pair.partition("=")[0])]

    def layers(self, schema: Schema[Any]) -> list[Layer]:
        """The settings given by the command's word, by short options and by --column."""
        layers = []
        argument = self.command.argument
        if self.words and argument is not None and argument.setting is not None:
            text = as_list(self.words) if argument.many else self.words[0]
            layers.append(schema.override(f"{argument.setting}={text}", " ".join(self.words)))
        for option, value in self.values.items():
            layers.append(schema.override(f"{option.setting}={option.text(value)}", option.origin(value)))
        for pair in self.column_pairs:
            layers.append(schema.override(f"data.columns.{pair}", f"--column {pair}"))
        return layers
