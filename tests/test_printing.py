"""Nothing that is printed can act on the terminal, whatever ids, texts, file names and replies contain."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from vicur.cli.main import main
from vicur.cli.terminal import checks_table, print_text
from vicur.consoles import protected
from vicur.preflight.checks import Check
from vicur.progress import Progress
from vicur.wording import printable

BAD = "a\x1b]0;t\x07\x9b31m\u202eb\u2066\r\ud800"
SHOWN = r"a\x1b]0;t\x07\x9b31m\u202eb\u2066\x0d\ud800"


def harmless(text):
    return all(
        letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in text
    ) and not set(text) & {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


@given(st.text(st.characters()))
def test_everything_printable_stays_and_everything_else_is_escaped(text):
    shown = printable(text)
    assert harmless(shown) and printable(shown) == shown
    assert (shown == text) == harmless(text)


def test_escapes_name_the_character():
    assert printable(BAD) == SHOWN
    text = "Größe 5 ± 3\n\té 日本 \U0001f468\u200d\U0001f469"
    assert printable(text) == text


def plain_console(**settings):
    file = io.StringIO()
    return protected(Console(file=file, width=120, **settings)), file


def test_every_kind_of_output_of_a_console():
    console, file = plain_console()
    console.print(BAD, markup=False)
    print_text(BAD, console)
    console.rule(BAD)
    table = Table(BAD, title=BAD, caption=BAD)
    table.add_row(BAD)
    console.print(table)
    console.print(checks_table((Check(BAD, True, f"[/red] {BAD}"),)))
    bar = Progress(f"title {BAD}", console)
    bar.note(BAD)
    bar.say(BAD)
    list(bar.over(range(10), 10))
    text = file.getvalue()
    assert harmless(text) and text.count(SHOWN) >= 10 and "[/red]" in text


def test_a_bar_on_a_terminal_shows_titles_and_notes_as_they_are():
    """Without markup, and with no escapes but those of the bar itself."""
    console, file = plain_console(force_terminal=True, color_system=None)
    bar = Progress("title [/b]\x9b", console)
    for _ in bar.over(range(2), 2):
        bar.note("note [/b]\u202e")
    text = file.getvalue()
    assert r"title [/b]\x9b" in text and r"note [/b]\u202e" in text
    assert "\x9b" not in text and "\u202e" not in text


@pytest.mark.parametrize("tail", [[], ["--json"]])
def test_data_inspect_shows_texts_with_escapes(tmp_path, capsys, tail):
    bad = BAD.replace("\ud800", "")
    row = {"id": bad, "problem": f"What? {bad}", "answer": "1", f"odd {bad}": "x"}
    data = tmp_path / f"d\x9b{bad[-3]}.jsonl"
    data.write_text(json.dumps(row))
    assert main(["data", "inspect", str(data), *tail]) == 0
    printed = capsys.readouterr()
    assert harmless(printed.out) and harmless(printed.err)
    assert (SHOWN.removesuffix(r"\ud800") in printed.out) == (not tail)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--model", "x", "--data", f"gone{BAD}"],
        ["cuebench", "make", "--n", "1", "--output", f"/proc/x/{BAD}"],
        ["train", f"nowhere{BAD}.yaml"],
        ["cuebench", "make", "--n", "1", "--output", "x", f"odd{BAD}=1"],
    ],
)
def test_sentences_about_mistakes_have_no_control_characters(arguments, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert harmless(error) and r"\x1b]0;t\x07" in error


@pytest.mark.parametrize("arguments", [[BAD], ["eval", f"--{BAD}"], ["cuebench", "make", BAD]])
def test_usage_errors_have_no_control_characters(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert harmless(error) and "x1b]0;t" in error
