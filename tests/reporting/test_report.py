"""The HTML report: what is in it, and that nothing from models or data is more than text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recorded import metrics, response, save_tokenizer, write_run

from vicur.cli.main import main
from vicur.data.sample import Privilege, Sample
from vicur.reporting.report import Report, json_for_script, recipe_differences, result_rows
from vicur.reporting.responses import collect_responses, data_uri
from vicur.rollouts.pieces import pieces_of

EVIL = "<script>alert(1)</script></script><!--<b>&amp;\u2028"


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.scripts, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


def problem(name, split="held-out", colour=(9, 9, 9)):
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    image = Image.new("RGB", (20, 10), colour)
    privilege = Privilege(answer="4", cue=f"cue of {name} {EVIL}")
    return Sample(name, ({"role": "user", "content": content},), (image,), privilege=privilege)


@pytest.fixture
def runs(tmp_path):
    """Two runs that answer the same two held-out problems, one of them with markup everywhere."""
    first = write_run(
        tmp_path / "first",
        [metrics(step) for step in range(1, 13)],
        [response(12, "t", gap=-0.5, token_loss=0.1)],
        {0: [response(0, "a", gap=-1.0, vds=2.0)], 12: [response(12, "a", correct=False, gap=1.0, vds=0.0)]},
        {0: {"a": True, "b": True}, 12: {"a": False, "b": True}},
    )
    second = write_run(
        tmp_path / EVIL.replace("/", "_"),
        [metrics(step, hint_samples=float(step)) for step in range(1, 13)],
        [response(12, EVIL, text=EVIL, gap=0.5)],
        {0: [response(0, "a", text=EVIL, gap=3.0)]},
        {0: {"a": True, "b": False}, 12: {"a": True, "b": True}},
        overrides=["optimizer.learning_rate=1e-3"],
    )
    for run in (first, second):
        save_tokenizer(run.folder, ["It is 4.", EVIL])
    return [first, second]


def test_everything_from_outside_is_text(runs, tmp_path):
    report = Report(runs, {run.name: problem for run in runs})
    report.write(tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2 and "b" not in page.tags
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)|\\u003cscript\\u003ealert\(1\)", "", text)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "default-src 'none'" in text and "http" not in re.sub(
        r"http://www\.w3\.org/[\w/]*|http-equiv", "", text
    )
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert names >= {f"{n}.svg" for n in ("training", "gap", "measures", "leakage", "drift", "time")}


def test_the_responses_of_runs_to_one_problem_are_together(runs):
    collected = collect_responses(runs, {run.name: problem for run in runs}, most=10)
    data = json.loads(json_for_script(collected.to_json(runs)).replace("\\u2028", "\\u2028"))
    by_id = {(p["split"], p["id"]): p for p in data["problems"]}
    together = by_id["held-out", "a"]["responses"]
    assert [(r["run"], r["step"], r["correct"]) for r in together] == [
        (0, 0, True),
        (0, 12, False),
        (1, 0, True),
    ]
    assert together[0]["values"]["vds"] == [2.0] * 8 and together[0]["pieces"] == list("It is 4.")
    assert by_id["held-out", "a"]["hint"] == {"cue": f"cue of a {EVIL}"}
    assert data["images"][0].startswith("data:image/png;base64,")
    assert [measure["key"] for measure in data["measures"]] == ["gap", "vds", "token_loss"]
    assert collected.notes == []


def test_without_the_tokenizer_a_response_is_one_piece(runs):
    (runs[0].folder / "tokenizer.json").unlink()
    collected = collect_responses(runs[:1], {}, most=10)
    assert "no tokenizer.json" in collected.notes[0]
    first = collected.problems[0].responses[0]
    assert first["pieces"] == ["It is 4."] and first["values"] == {}


def test_results_and_differences_between_runs(runs):
    first, second = result_rows(runs)
    assert first["before"].startswith("100.0 [") and first["after"].startswith("50.0 [")
    assert first["change"].startswith("-50.0 [") and "won 0, lost 1" in first["change"]
    assert [line.split()[0] for line in first["change"].splitlines()] == ["-50.0", "won"]
    assert first["against"] == "" and second["against"].startswith("+50.0 [")
    assert ("optimizer.learning_rate", ["1e-06", "0.001"]) in recipe_differences(runs)
    assert all(name != "training.output" for name, _ in recipe_differences(runs))


def test_alarms_are_on_the_page(tmp_path):
    lines = [metrics(step, response_tokens=10.0 * step) for step in range(1, 13)]
    run = write_run(tmp_path / "long", lines)
    report = Report([run])
    assert [alarm.kind for _, alarm in report.alarms()] == ["length"]
    report.write(tmp_path / "report.html")
    assert "Responses went from 10 to 120 tokens." in (tmp_path / "report.html").read_text()


def test_a_run_without_a_step_has_a_page(tmp_path):
    Report([write_run(tmp_path / "new", [])]).write(tmp_path / "report.html")
    assert "finished after 0 steps" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(tmp_path, value):
    # An update whose loss is not finite is skipped, and recorded with that loss.
    lines = [metrics(step, loss=value if step == 6 else 1.0, gap_whole=value) for step in range(1, 13)]
    held_out = {0: [response(0, "a", gap=value, vds=1.0)], 12: [response(12, "a", gap=1.0, vds=value)]}
    run = write_run(tmp_path / "run", lines, [response(12, "t", gap=value)], held_out)
    save_tokenizer(run.folder, ["It is 4."])
    Report([run]).write(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    data = [text for text in page.scripts if text.lstrip().startswith(("{", "["))]
    assert data
    for text in data:  # JSON has no NaN, and the browser's parser refuses it
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the page's data"))


def test_a_run_that_was_evaluated_once_has_no_after(runs, tmp_path):
    lines = [metrics(step) for step in range(1, 13)]
    begun = write_run(tmp_path / "begun", lines, evaluations={0: {"a": True, "b": False}})
    row, first, second = result_rows([begun, *runs])
    assert row["before"].startswith("50.0 [") and (row["after"], row["change"], row["against"]) == (
        "",
        "",
        "",
    )
    assert first["against"] == "" and second["against"].startswith("+50.0 [")  # to the first with both


def test_pages_in_one_folder_have_figures_of_their_own(runs, tmp_path):
    folder = tmp_path / "pages"
    for name in ("report.html", "first.html", "second.html"):
        Report(runs[:1]).write(folder / name)
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    assert folders == {"figures", "first_figures", "second_figures"}
    assert all(list((folder / name).glob("*.svg")) for name in folders)


def test_the_command_writes_a_page_into_the_folder_of_a_run(runs, capsys):
    assert main(["report", str(runs[0].folder), "media=false"]) == 0
    assert (runs[0].folder / "report.html").is_file() and "Report:" in capsys.readouterr().out
    assert main(["report", str(runs[0].folder)]) == 0  # renews its own page; its data are gone
    assert "images and hints are left out" in capsys.readouterr().err


def test_a_report_never_replaces_another_file_of_a_run(runs, capsys):
    metrics_file = runs[0].folder / "metrics.jsonl"
    before = metrics_file.read_bytes()
    assert main(["report", str(runs[0].folder), "media=false", "--output", str(metrics_file)]) == 1
    assert "already exists" in capsys.readouterr().err and metrics_file.read_bytes() == before


def test_large_images_are_scaled_down_and_jpeg():
    assert data_uri(Image.new("L", (64, 64))).startswith("data:image/png")
    large = data_uri(Image.effect_noise((2000, 1000), 50))
    assert large.startswith("data:image/jpeg") and len(large) < 120_000


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_in_a_script_is_the_same_value_and_ends_no_element(value):
    text = json_for_script(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


class Bytes:
    """Decodes ids as bytes of UTF-8, as byte-level tokenizers do."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text())
def test_pieces_join_to_the_text_whatever_its_bytes(text):
    ids = list(text.encode("utf-8", errors="replace"))
    pieces = pieces_of(ids, Bytes())
    assert len(pieces) == len(ids) and "".join(pieces) == bytes(ids).decode()


def test_a_character_belongs_to_its_last_byte():
    assert pieces_of(list("aé€".encode()), Bytes()) == ["a", "", "é", "", "", "€"]
    assert pieces_of(list("é".encode())[:1], Bytes()) == ["\ufffd"]  # cut off inside a character


def test_figures_of_analyses_are_images(runs, tmp_path):
    """Whatever is in the file of a figure, the page shows it as an image."""
    folder = runs[0].folder / "diagnostics"
    folder.mkdir()
    (folder / "attention.svg").write_text(f"<svg onload='alert(1)'>{EVIL}</svg>")
    (folder / "attention.json").write_text(json.dumps({"notes": ["Difference 0.", EVIL]}))
    Report(runs).write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert any(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "onload" not in text and "Difference 0." in text and page.tags.count("script") == 2
