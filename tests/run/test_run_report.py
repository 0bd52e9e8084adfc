"""A run writes its report by itself: with the images and hints of its problems."""

from __future__ import annotations

import json

import pytest

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.progress import Progress
from vicur.run.build import build
from vicur.run.recipe import load_recipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_parquet("segments", "train", 8, folder / "train.parquet")
    write_parquet("segments", "test", 3, folder / "test.parquet")
    return folder


def a_run(files, folder, *overrides):
    return build(
        load_recipe(
            "cuebench/opsd_cue",
            [
                *(
                    f"data.train={files / 'train.parquet'}",
                    f"training.output={folder}",
                    "training.device=cpu",
                ),
                *("training.steps=2", "training.prompts_per_step=4", "rollout.sampling.max_new_tokens=6"),
                *(f"training.evaluate.data={files / 'test.parquet'}", "training.evaluate.every=1"),
                "training.observe.of=[vds,gap_split]",
                *overrides,
            ],
        )
    )


def responses_in(page):
    """The responses that a page holds."""
    start = page.index('id="data">') + len('id="data">')
    return json.loads(page[start : page.index("</script>", start)])


def test_a_run_writes_its_report(files, tmp_path, reports, capsys):
    a_run(files, tmp_path / "run").execute(tmp_path / "run")
    data = responses_in((tmp_path / "run" / "report.html").read_text())
    held_out = [problem for problem in data["problems"] if problem["split"] == "held-out"]
    assert len(held_out) == 3 and len(data["images"]) == 3 + 4
    assert "segments" in held_out[0]["hint"]["cue"]
    first = held_out[0]["responses"][0]
    assert len(first["pieces"]) == len(first["values"]["gap"]) > 1
    training = next(problem for problem in data["problems"] if problem["split"] == "training")
    assert {"gap", "token_loss", "entropy"} <= set(training["responses"][0]["values"])
    names = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"training.svg", "gap.svg", "measures.svg", "time.svg"} <= names
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "again.html")]) == 0
    again = responses_in((tmp_path / "again.html").read_text())
    assert len(again["images"]) == 7  # read from the data that the recipe names
    capsys.readouterr()


def test_a_report_can_be_turned_off(files, tmp_path, reports):
    a_run(files, tmp_path / "run", "training.report.enabled=false").execute(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_survives_its_report(files, tmp_path, reports, monkeypatch):
    def fails(*_):
        raise OSError("the disk is full")

    sentences = []
    monkeypatch.setattr("vicur.reporting.report.Report.write", fails)
    bar = Progress("test", transient=True)
    monkeypatch.setattr(bar, "say", sentences.append)
    a_run(files, tmp_path / "run").execute(tmp_path / "run", progress=bar)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    assert "The report could not be written: the disk is full" in sentences
