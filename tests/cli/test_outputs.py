"""No command replaces what is there unless the user says so, and none replaces what it reads."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.training.folder import locked


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "problems.parquet"
    write_parquet("segments", "train", 4, path)
    return path


@pytest.fixture
def problems(shared, tmp_path):
    return shutil.copy(shared, tmp_path / "problems.parquet")


def command(name, problems, output):
    """A command, and the files that it would write."""
    audit = ["cues", "audit", "--data", str(problems)]
    worth = ["cues", "worth", "--data", str(problems), "--student", "vicur:tiny-student"]
    short = ["--problems", "4", "--group-size", "1", "--sampling.max_new_tokens", "2"]
    return {
        "make": ["cuebench", "make", "--n", "2", "--output", str(output)],
        "build": ["cues", "build", "--data", str(problems), "--backend", "exact", "--output", str(output)],
        "flags": [*audit, "--flags", str(output)],
        "drop": [*audit, "--drop", str(output)],
        "eval": [
            *("eval", "--model", "vicur:tiny-student", "--data", str(problems), "--output", str(output)),
            *("--problems", "1", "--max-new-tokens", "2"),
        ],
        "worth": [*worth, *short, "--output", str(output.parent)],
    }[name]


NAMES = ["make", "build", "flags", "drop", "eval", "worth"]


def out_of(name, tmp_path):
    (tmp_path / "out").mkdir(exist_ok=True)
    return tmp_path / "out" / ("tokens.parquet" if name == "worth" else "r.parquet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("linked", [False, True])
def test_what_exists_is_kept_unless_overwrite_is_set(name, linked, problems, tmp_path, capsys):
    out = out_of(name, tmp_path)
    precious = tmp_path / "precious" if linked else out
    precious.write_bytes(b"precious")
    if linked:
        out.symlink_to(precious)
    arguments = command(name, problems, out)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "exists" in error and "overwrite=true" in error and precious.read_bytes() == b"precious"
    assert main([*arguments, "overwrite=true"]) == 0
    assert len(pq.read_table(precious).column_names) > 1 and out.is_symlink() == linked
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_never_replaced(name, problems, tmp_path, capsys):
    out = out_of(name, tmp_path)
    arguments = [*command(name, problems, out), "overwrite=true"]
    os.mkfifo(out)
    assert main(arguments) == 1
    assert "named pipe" in capsys.readouterr().err and stat.S_ISFIFO(out.stat().st_mode)
    out.unlink()
    out.symlink_to("/dev/null")
    assert main(arguments) == 1
    assert "it is a device" in capsys.readouterr().err and stat.S_ISCHR(out.stat().st_mode)


@pytest.mark.parametrize("name", ["build", "flags", "drop", "eval"])
@pytest.mark.parametrize("how", ["itself", "a link", "another name"])
def test_an_output_is_never_an_input(name, how, problems, tmp_path, capsys):
    out, before = problems, problems.read_bytes()
    if how != "itself":
        out = tmp_path / "other.parquet"
        out.symlink_to(problems) if how == "a link" else out.hardlink_to(problems)
    assert main([*command(name, problems, out), "overwrite=true"]) == 1
    assert "is a data file that this command reads" in capsys.readouterr().err
    assert problems.read_bytes() == before


def test_the_worth_of_data_in_its_output_folder(problems, tmp_path, capsys):
    data = shutil.move(problems, tmp_path / "tokens.parquet")
    assert main([*command("worth", data, data), "overwrite=true"]) == 1
    assert "is a data file that this command reads" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["r.parquet", "link.parquet"])
def test_two_outputs_of_a_command_are_two_files(problems, tmp_path, capsys, second):
    (tmp_path / "link.parquet").symlink_to(tmp_path / "r.parquet")
    options = ["--flags", str(tmp_path / "r.parquet"), "--drop", str(tmp_path / second)]
    assert main(["cues", "audit", "--data", str(problems), *options]) == 1
    assert "would both be written to" in capsys.readouterr().err
    assert main([*command("build", problems, tmp_path / "r.parquet"), f"store={tmp_path / second}"]) == 1
    assert "would both be written to" in capsys.readouterr().err


def test_a_build_replaces_its_own_output_until_somebody_changes_it(problems, tmp_path, capsys):
    out = tmp_path / "r.parquet"
    arguments = command("build", problems, out)
    assert main(arguments) == 0 and main(arguments) == 0
    assert main([*arguments, "problems=2"]) == 0 and len(pq.read_table(out)) == 2
    pq.write_table(pa.table({"mine": [1]}), out)
    for tail in ([], ["--dry-run"]):
        assert main([*arguments, *tail]) == 1
        assert "is not what a build with the store" in capsys.readouterr().err
    assert pq.read_table(out).column_names == ["mine"]
    shared = [f"store={tmp_path}/r.parquet.cues"]
    (tmp_path / "other.parquet").write_bytes(b"precious")
    assert main([*command("build", problems, tmp_path / "other.parquet"), *shared]) == 1
    assert (tmp_path / "other.parquet").read_bytes() == b"precious"
    assert main([*arguments, "--overwrite"]) == 0 and "cue" in pq.read_table(out).column_names


def test_a_list_of_failures_of_others_is_kept(problems, tmp_path, capsys):
    failed = tmp_path / "r.parquet.failed.jsonl"
    failed.write_text("precious")
    arguments = command("build", problems, tmp_path / "r.parquet")
    assert main(arguments) == 1 and "already exists" in capsys.readouterr().err
    assert failed.read_text() == "precious" and not (tmp_path / "r.parquet").exists()


def test_an_evaluation_keeps_files_of_others_beside_its_output(problems, tmp_path, capsys):
    lines = tmp_path / "r.parquet.responses.jsonl"
    lines.write_text("precious, and without an end of line")
    arguments = command("eval", problems, tmp_path / "r.parquet")
    assert main(arguments) == 1 and "was not written by this command" in capsys.readouterr().err
    assert lines.read_text() == "precious, and without an end of line"
    assert main([*arguments, "--overwrite"]) == 0 and not lines.exists()


def test_an_output_that_appears_during_an_evaluation_is_kept(problems, tmp_path, capsys, monkeypatch):
    import vicur.cli.evaluate as module

    out, run = tmp_path / "r.parquet", module.resume_evaluation
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def resume(*arguments, **options):
        out.write_bytes(b"precious")
        return run(*arguments, **options)

    monkeypatch.setattr(module, "resume_evaluation", resume)
    assert main(command("eval", problems, out)) == 1
    error = capsys.readouterr().err
    assert "File exists" in error and "Its content was written to" in error
    assert out.read_bytes() == b"precious" and len(list(tmp_path.glob("vicur-*/r.parquet"))) == 1


def test_a_folder_that_is_deleted_during_an_evaluation_ends_it(problems, tmp_path, capsys, monkeypatch):
    import vicur.cli.evaluate as module

    folder, run = tmp_path / "deep", module.resume_evaluation

    def resume(*arguments, **options):
        shutil.rmtree(folder)
        return run(*arguments, **options)

    monkeypatch.setattr(module, "resume_evaluation", resume)
    assert main(command("eval", problems, folder / "r.parquet")) == 1
    assert "was removed or replaced during the evaluation" in capsys.readouterr().err


def test_a_study_replaces_nothing_that_is_not_its_own(tmp_path, capsys):
    (tmp_path / "showcase.png").write_bytes(b"precious")
    assert main(["quickstart", "--output", str(tmp_path)]) == 1
    assert "showcase.png is not of a study. Choose another --output." in capsys.readouterr().err
    run = tmp_path / "out" / "seed-0"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    assert main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    assert "seed-0 is not of a study" in capsys.readouterr().err and len(list(run.iterdir())) == 1


def test_two_studies_do_not_write_to_one_folder(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    assert "is being written by process" in (error := capsys.readouterr().err)
    assert "choose another --output." in error and not list((tmp_path / "out").glob("seed-*"))


def test_a_dry_run_of_a_build_changes_nothing(problems, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([*command("build", problems, tmp_path / "new" / "r.parquet"), "--dry-run"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_list_of_failures_is_replaced_and_removed_by_the_build_that_wrote_it(problems, tmp_path, capsys):
    rows = [{"problem": "<image>?", "images": [name], "answer": "1"} for name in ("a.png", "gone.png")]
    data, out = tmp_path / "d.jsonl", tmp_path / "r.jsonl"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    data.write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        *("cues", "build", "--data", str(data), "--output", str(out), "--backend", "null"),
        "--bad-rows=skip",
    ]
    (tmp_path / "gone.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    failed = tmp_path / "r.jsonl.failed.jsonl"
    assert main(arguments) == 0 and main(arguments) == 0 and failed.exists()
    Image.new("RGB", (32, 32)).save(tmp_path / "gone.png")
    assert main(arguments) == 0 and not failed.exists()


def test_a_study_whose_folder_is_deleted_ends_with_an_error(tmp_path, capsys, monkeypatch):
    from vicur.studies.runner import _Seed

    def run(self):
        shutil.rmtree(self.folder)
        yield "base", None, True

    monkeypatch.setattr(_Seed, "write_data", lambda self: self.folder.mkdir())
    monkeypatch.setattr(_Seed, "run", run)
    assert main(["study", "objectives", "--output", str(tmp_path / "out")]) == 1
    assert "was removed while the study ran" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()
