"""`vicur cues`, as a user types it."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from vicur.audit.repair import corrections
from vicur.cli.main import main
from vicur.cues.settings import BuildConfig


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.parquet"
    assert main(["cuebench", "make", "--n", "12", "--output", str(path)]) == 0
    return path


@pytest.fixture
def leaking(tmp_path, problems):
    """The first cue states the answer."""
    table = pq.read_table(problems)
    cues = table["cue"].to_pylist()
    cues[0] += f" So the answer is {table['answer'][0].as_py()}."
    path = tmp_path / "leaking.parquet"
    pq.write_table(table.set_column(table.column_names.index("cue"), "cue", [cues]), path)
    return path


def test_build_audit_drop(tmp_path, problems, leaking, capsys):
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(problems).drop_columns(["cue"]), bare)
    out = tmp_path / "cues.parquet"
    common = ["cues", "build", "--data", str(bare), "--output", str(out), "--backend", "null"]
    assert main([*common, "--dry-run"]) == 0
    assert "12 problems, 12 cues (0 already in the store)" in capsys.readouterr().out
    assert not out.exists()
    assert main(common) == 0
    assert len(pq.read_table(out)["cue"]) == 12
    capsys.readouterr()
    assert main(["cues", "audit", "--data", str(problems), "--cuebench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flagged_definite"] == 0
    none = tmp_path / "none.parquet"
    assert main(["cues", "audit", "--data", str(problems), "--cuebench", "--flags", str(none)]) == 0
    assert pq.read_table(none).column_names[:2] == ["id", "category"] and len(pq.read_table(none)) == 0
    clean, flags = tmp_path / "clean.parquet", tmp_path / "flags.parquet"
    options = ["--drop", str(clean), "--flags", str(flags)]
    assert main(["cues", "audit", "--data", str(leaking), *options]) == 0
    text = capsys.readouterr().out
    assert "| answer | 1 |" in text or "answer (definite)" in text
    found = pq.read_table(flags).to_pylist()
    assert any(row["category"] == "answer" and row["severity"] == "definite" for row in found)
    before, after = pq.read_table(leaking).to_pylist(), pq.read_table(clean).to_pylist()
    assert after[0]["cue"] is None and [r["cue"] for r in after[1:]] == [r["cue"] for r in before[1:]]
    assert [r["problem"] for r in after] == [r["problem"] for r in before]


@pytest.mark.parametrize("option", ["--drop", "--flags"])
@pytest.mark.parametrize("name", ["first.parquet", "second.parquet"])
def test_an_audit_never_writes_over_its_data(tmp_path, problems, capsys, option, name):
    for file in ("first", "second"):
        shutil.copy(problems, tmp_path / f"{file}.parquet")
    before = (tmp_path / name).read_bytes()
    data = f"{tmp_path / 'first.parquet'},{tmp_path / 'second.parquet'}"
    assert main(["cues", "audit", "--data", data, option, str(tmp_path / name), "overwrite=true"]) == 1
    assert "is a data file that this command reads" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before


def test_an_evaluation_never_writes_over_its_data(tmp_path, problems, capsys):
    data = tmp_path / "data.parquet"
    shutil.copy(problems, data)
    options = ["--output", str(data), "overwrite=true"]
    assert main(["eval", "--model", "vicur:tiny-student", "--data", str(data), *options]) == 1
    assert "is a data file that this command reads" in capsys.readouterr().err
    assert data.read_bytes() == problems.read_bytes()


def test_repair_says_what_leaked_and_never_the_answer(leaking):
    config = BuildConfig(backend="null", repairs=2)
    table = pq.read_table(leaking)
    remarks = corrections(leaking, config)
    assert list(remarks) == [table["id"][0].as_py()]
    (remark,) = remarks.values()
    assert "gave away" in remark and table["answer"][0].as_py() not in remark.split()


def test_worth_of_privileges(tmp_path, problems, capsys):
    out = tmp_path / "worth"
    models = ["--student", "vicur:tiny-student", "--teacher", "vicur:tiny-teacher"]
    options = ["--group-size", "2", "--problems", "6", "--output", str(out)]
    assert main(["cues", "worth", "--data", str(problems), *models, *options]) == 0
    text = capsys.readouterr().out
    assert "shuffled cue" in text and "no image" in text
    told = json.loads((out / "worth.json").read_text())
    assert told["unit"] == "nats" and told["problems"] == 6
    assert len(pq.read_table(out / "tokens.parquet")) == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["cues", "audit", "--data", "gone.parquet"], "gone.parquet does not exist"),
        (["cues", "build", "--data", "gone.parquet", "--backend", "null"], "gone.parquet does not exist"),
        (["cues", "worth", "--data", "gone.parquet", "--student", "x"], "gone.parquet does not exist"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_unknown_settings_of_a_build_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["cues", "build", "--data", "x", "--modle", "y"])
    assert "did you mean --model?" in capsys.readouterr().err
    assert main(["cues", "build", "--data", "x", "endpoint.base_ulr=y"]) == 1
    assert "did you mean 'endpoint.base_url'?" in capsys.readouterr().err
    assert main(["cues", "build", "--data", "x"]) == 1
    assert capsys.readouterr().err.startswith("vicur: The backend endpoint needs a model")


def test_the_grades_of_worth_follow_rewards(tmp_path, problems, capsys):
    """A function that calls everything right leaves no wrong response to compare with."""
    (tmp_path / "always.py").write_text("def right(response, gold, meta):\n    return True\n")
    out = tmp_path / "worth"
    models = ["--student", "vicur:tiny-student", "--group-size", "1", "--problems", "2", "--output", str(out)]
    settings = [f"rewards.function={tmp_path}/always.py:right", "--sampling.max_new_tokens", "4"]
    assert main(["cues", "worth", "--data", str(problems), *models, *settings]) == 0
    assert pq.read_table(out / "tokens.parquet")["correct"].to_pylist() == [True, True]


def test_commands_of_cues_refuse_what_they_do_not_know(problems, capsys):
    assert main(["cues", "audit", "--data", str(problems), "data.colums.answer=x"]) == 1
    assert "there is no setting 'data.colums" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cues", "audit", "--data", str(problems), "--flags", "x", "--imgae-dir", "y"])
    assert "did you mean --image-dir?" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["cues", "worth", "--data", str(problems)])
    assert "required: --student" in capsys.readouterr().err
