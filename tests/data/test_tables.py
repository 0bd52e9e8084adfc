"""What names stand for."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vicur.data import readers, tables
from vicur.data.sources import FileSource
from vicur.data.tables import open_table


def write_parquet(path: Path, *problems: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"problem": problem} for problem in problems]), path)
    return path


def problems(name) -> list[str]:
    return [row["problem"] for row in open_table(name).rows()]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", '{"problem": "a"}\n\n{"problem": "b", "extra": [1]}\n'),
        ("a.json", '[{"problem": "a"}, {"problem": "b", "extra": [1]}]'),
        ("a.json", '{"problem": "a"}\r\n{"problem": "b"}'),
        ("b@c.json", '\ufeff[{"problem": "a"}, {"problem": "b"}]'),
    ],
)
def test_json_as_a_list_and_as_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = open_table(tmp_path / name)
    assert [row["problem"] for row in table.rows()] == ["a", "b"] and len(table) == 2
    assert table[1]["problem"] == "b"


def test_one_object_over_several_lines_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"problem": "a"}, indent=2))
    assert problems(tmp_path / "a.json") == ["a"]


def test_lines_end_at_line_feeds_alone(tmp_path):
    """The line separator of Unicode may stand in a JSON string as it is."""
    lines = [json.dumps({"problem": text}, ensure_ascii=False) for text in ("a\u2028b", "c")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert problems(tmp_path / "a.jsonl") == ["a\u2028b", "c"]


def test_rows_in_json_may_be_ragged_where_arrow_would_refuse(tmp_path):
    rows = [{"problem": "a", "answer": 1}, {"problem": "b", "answer": "one"}, {"problem": "c", "x": {"y": 1}}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert open_table(tmp_path / "a.json").columns == ("problem", "answer", "x", "x.y")
    assert FileSource(tmp_path / "a.json").column("answer") == ["1", "one", None]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "[{]", "is not valid JSON: .*line 1"),
        (
            "a.json",
            '{"train": [{"problem": "a"}], "test": [{"a": 1}]}',
            "rows under 'train' and 'test'",
        ),
        ("a.csv", "problem,problem\na,b", "two columns 'problem'"),
        ("a.json.gz", "no gzip", "cannot be read"),
        ("a.json", "nothing", "neither a JSON list of rows nor one row a line"),
        ("a.json", "\n7 8", "neither a JSON list of rows nor one row a line"),
        ("a.txt", "x", r"neither \.parquet nor \.jsonl nor \.json"),
        ("a.parquet", "x", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files, name, expected",
    [
        (["train.parquet", "test.parquet"], "", ["train.parquet"]),
        (["train.parquet", "test.parquet"], "@test", ["test.parquet"]),
        (["39Krelease.parquet"], "", ["39Krelease.parquet"]),
        (["39Krelease.parquet"], "@39Krelease", ["39Krelease.parquet"]),
        (
            [
                "data/train-00001-of-00002-0b6ee6.parquet",
                "data/train-00000-of-00002-a09b74.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            "",
            ["data/train-00000-of-00002-a09b74.parquet", "data/train-00001-of-00002-0b6ee6.parquet"],
        ),
        (["train/0.parquet", "train/1.parquet", "val/0.parquet"], "", ["train/0.parquet", "train/1.parquet"]),
        (["train/0.parquet", "val/0.parquet"], "@val", ["val/0.parquet"]),
    ],
)
def test_folders_with_splits(tmp_path, files, name, expected):
    for file in files:
        write_parquet(tmp_path / "f" / file, file)
    (tmp_path / "f" / "dataset_infos.json").write_text("{}")
    table = open_table(f"{tmp_path / 'f'}{name}")
    assert [row["problem"] for row in table.rows()] == expected
    assert table.folders == (tmp_path / "f",)


def test_image_folders_with_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "f" / split).mkdir(parents=True)
        lines = [{"file_name": f"{split}.png", "problem": split}, {"file_name": "a.mp4", "problem": "film"}]
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / "f" / split / "metadata.jsonl").write_text(text)
    table = open_table(f"{tmp_path / 'f'}@test")
    assert table[0] == {"problem": "test", "image": "test.png"}
    assert table[1] == {"problem": "film", "video": "a.mp4"}
    assert table.folders == (tmp_path / "f" / "test",) and table.name == "f@test"


def saved(path: Path, **splits: list[str]) -> None:
    content = {name: datasets.Dataset.from_dict({"problem": rows}) for name, rows in splits.items()}
    datasets.DatasetDict(content).save_to_disk(path)


def test_saved_data_sets_keep_a_chosen_order(tmp_path):
    one = datasets.Dataset.from_dict({"problem": ["a", "b", "c"]}).select([2, 0])
    one.save_to_disk(tmp_path / "one")
    assert problems(tmp_path / "one") == ["c", "a"]
    assert [row["problem"] for row in tables._whole(one).to_pylist()] == ["c", "a"]
    saved(tmp_path / "f", train=["a"], test=["b"])
    assert problems(tmp_path / "f") == ["a"] and problems(f"{tmp_path / 'f'}@test") == ["b"]


@pytest.mark.parametrize(
    "make, name, message",
    [
        (None, "gone.parquet", r"Data file .*gone\.parquet does not exist"),
        (None, "gone.parquet@train", r"Data file .*gone\.parquet does not exist"),
        (
            lambda path: write_parquet(path / "a.parquet", "a"),
            "a.parquet@train",
            "is one file and has no splits",
        ),
        (lambda path: (path / "f").mkdir(), "f", "has no data: no .parquet"),
        (lambda path: saved(path / "f", a=["1"], b=["2"]), "f", "has the splits a, b; say which: .*f@a"),
        (lambda path: saved(path / "f", train=["1"], b=["2"]), "f@c", "has the splits train, b, not c"),
        (lambda path: write_parquet(path / "f" / "a.parquet", "1"), "f@c", "has the splits a, not c"),
    ],
)
def test_names_that_stand_for_nothing(tmp_path, make, name, message):
    if make is not None:
        make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / name)


def test_a_saved_set_without_splits_has_none(tmp_path):
    datasets.Dataset.from_dict({"problem": ["a"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="has no splits; leave out @train"):
        open_table(f"{tmp_path / 'one'}@train")


def test_large_files_are_mapped_from_disk(tmp_path, monkeypatch):
    """The rows are those of the files; what is held is a map of an Arrow file, not memory of ours."""
    write_parquet(tmp_path / "f" / "train-00000-of-00002.parquet", "a", "b")
    write_parquet(tmp_path / "f" / "train-00001-of-00002.parquet", "c")
    in_memory = problems(tmp_path / "f")
    monkeypatch.setattr(readers, "LARGEST_IN_MEMORY", 100)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = pa.total_allocated_bytes()
    table = open_table(tmp_path / "f")
    assert [row["problem"] for row in table.rows()] == in_memory == ["a", "b", "c"]
    assert pa.total_allocated_bytes() - before < 1000
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_types_of_files_of_one_split_may_differ_where_one_holds_the_other(tmp_path):
    for number, answers in enumerate(([1, 2], [None, None], [0.5, 1.5])):
        rows = [{"problem": "?", "answer": answer} for answer in answers]
        (tmp_path / "f").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f" / f"train-0000{number}-of-00003.parquet")
    assert [row["answer"] for row in open_table(tmp_path / "f").rows()] == [1, 2, None, None, 0.5, 1.5]
    pq.write_table(pa.table({"answer": ["x"]}), tmp_path / "f" / "train-00002-of-00003.parquet")
    with pytest.raises(ValueError, match="have columns of different types"):
        open_table(tmp_path / "f")


def test_hub_names_go_to_datasets(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name):
        asked.append(name)
        if name == "owner/gone":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/gone' doesn't exist\non the hub.")
        return datasets.DatasetDict(
            train=datasets.Dataset.from_dict({"problem": ["a", "b"]}).select([1]),
            test=datasets.Dataset.from_dict({"problem": ["c"]}),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert problems("owner/name") == ["b"] and problems("owner/name-v1.5@test") == ["c"]
    with pytest.raises(ValueError, match=r"owner/gone is neither a file nor a folder here, .*doesn't exist$"):
        open_table("owner/gone")
    assert asked == ["owner/name", "owner/name-v1.5", "owner/gone"]


def test_without_datasets_files_can_still_be_read(tmp_path, monkeypatch):
    saved(tmp_path / "f", train=["a"])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert problems(write_parquet(tmp_path / "a.parquet", "a")) == ["a"]
    for name in (tmp_path / "f", "owner/name"):
        with pytest.raises(ValueError, match="pip install datasets"):
            open_table(name)
