"""Published scores beside ours, a table for each harness."""

from __future__ import annotations

import json

import pytest
from recorded import metrics, write_run

from vicur.cli.main import main
from vicur.packaged import resolve_packaged
from vicur.reporting.papers import OURS, our_scores, published_scores, tables_against_paper


def vicur_summary(path, accuracy):
    arm = {"accuracy": accuracy, "problems": 600, "control": None}
    control = {"accuracy": {"value": 1.0, "low": 0.0, "high": 2.0}, "problems": 600, "control": "blank"}
    path.write_text(json.dumps({"graded_by": "vicur", "arms": [arm, control]}))
    return path


def lmms_results(path, results):
    path.write_text(json.dumps({"results": results}))
    return path


def test_the_headers_of_recipes_are_read():
    """Numbers copied from the papers' tables by hand."""
    row = published_scores("va_opd/geometry3k_8b/va_opd")
    assert {s.benchmark: s.value for s in row.scores} == {
        **{"WeMath": 46.6, "MathVista": 66.4, "MathVerse": 31.9, "HallusionBench": 54.5, "AI2D": 78.2},
        **{"MMMU": 51.5, "MMStar": 59.9, "OCRBench": 86.4},
    }
    assert row.judge == "GPT-4o" and row.title.startswith("VA-OPD, table 1 and 2")
    assert published_scores("cuebench/opsd_cue") is None and published_scores("mine") is None


def test_every_published_row_with_numbers_gives_scores():
    root = resolve_packaged("recipes")
    names = [
        path.relative_to(root).with_suffix("").as_posix()
        for folder in ("vicur", "va_opd", "vgs")
        for path in (root / folder).rglob("*.yaml")
        if path.parent.name != "bases"
    ]
    without = {name for name in names if published_scores(name) is None}
    assert len(names) >= 50 and all("figure" in (root / f"{name}.yaml").read_text() for name in without)
    for name in set(names) - without:
        scores = published_scores(name).scores
        assert all(0 < score.value < 100 for score in scores)
        assert len({score.benchmark for score in scores}) == len(scores)


def test_harnesses_never_share_a_table(tmp_path):
    ours = vicur_summary(tmp_path / "ours.json", {"value": 40.0, "low": 36.0, "high": 44.0})
    lmms = tmp_path / "lmms.json"
    lmms.write_text(
        json.dumps({"results": {"mathvista": {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1}}})
    )
    results = [f"MathVista={ours}", f"WeMath={ours}", f"MathVista={lmms}"]
    tables = tables_against_paper("run", "va_opd/geometry3k_8b/va_opd", results)
    assert [table.harness for table in tables][:2] == [OURS, "lmms-eval, acc,none"] and len(tables) == 3
    assert [score.benchmark for score in tables[0].scores] == ["MathVista", "WeMath"]
    assert tables[0].scores[0].interval == (36.0, 44.0) and tables[1].scores[0].value == 50.0
    assert len({(table.harness, table.judge) for table in tables}) == 3


def test_mistakes_are_explained(tmp_path):
    empty = vicur_summary(tmp_path / "empty.json", None)
    other = tmp_path / "other.json"
    other.write_text("{}")
    two = tmp_path / "two.json"
    arms = [{"accuracy": None, "problems": 1}] * 2
    two.write_text(json.dumps({"graded_by": "vicur", "arms": arms}))
    tasks = {name: {"acc,none": 0.5} for name in ("mathvista_testmini", "mathverse")}
    several = lmms_results(tmp_path / "several.json", tasks)
    words = lmms_results(tmp_path / "words.json", {"mathvista": {"samples": 600, "acc,none": "N/A"}})
    for entry, message in (
        ("MathVista", "takes BENCHMARK=FILE"),
        (f"MathVista={empty}", "no response could be graded"),
        (f"MathVista={other}", "is neither a summary"),
        (f"MathVista={two}", "has 2 models; give a file for each"),
        (f"MathVista={several}", "has several tasks, mathvista_testmini, mathverse"),
        (f"MathVista={words}", "has no metric that is a number"),
    ):
        with pytest.raises(ValueError, match=message):
            tables_against_paper("run", "x", [entry])


def test_scores_of_lmms_eval_are_metrics_and_not_counts(tmp_path):
    """Metrics are named METRIC,FILTER; shares become percentages, and percentages stay."""
    for value, percent in ((0.5, 50.0), (1, 100.0), (61.5, 61.5)):
        numbers = {"samples": 600, "acc_stderr,none": 0.1, "acc,none": value, "other,none": 0.9}
        path = lmms_results(tmp_path / f"{percent}.json", {"mathvista": numbers})
        (table,) = our_scores("run", [f"MathVista={path}"])
        assert table.harness == "lmms-eval, acc,none" and table.scores[0].value == percent


def test_the_report_shows_them(tmp_path, capsys):
    run = write_run(tmp_path / "run", [metrics(1)], overrides=["training.name=va_opd/geometry3k_8b/va_opd"])
    ours = vicur_summary(tmp_path / "ours.json", {"value": 40.0, "low": 36.0, "high": 44.0})
    arguments = ["report", str(run.folder), "media=false", "--against-paper", f"MathVista={ours}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "harness vicur eval" in printed and "MathVista 66.40" in printed
    page = (run.folder / "report.html").read_text()
    assert "must not be subtracted" in page and "Judge: GPT-4o" in page and "66.40" in page
