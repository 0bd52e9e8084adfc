"""The tables that names refer to."""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vicur.data import readers, tables
from vicur.data.sources import DataConfig, FileSource
from vicur.data.tables import open_table


def write_parquet(path: Path, *problems: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"problem": problem} for problem in problems]), path)
    return path


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, format="PNG")
    return data.getvalue()


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
    """The line separator of Unicode may occur in a JSON string unescaped."""
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
        ("a.json", "nothing", "neither a JSON list of rows nor one row per line"),
        ("a.json", "\n7 8", "neither a JSON list of rows nor one row per line"),
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
    assert [row["problem"] for row in tables._arrow_table(one).to_pylist()] == ["c", "a"]
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
        (
            lambda path: saved(path / "f", a=["1"], b=["2"]),
            "f",
            "has the splits a, b; choose one, e.g. .*f@a",
        ),
        (lambda path: saved(path / "f", train=["1"], b=["2"]), "f@c", "has the splits train, b, not c"),
        (lambda path: write_parquet(path / "f" / "a.parquet", "1"), "f@c", "has the splits a, not c"),
    ],
)
def test_names_that_refer_to_nothing(tmp_path, make, name, message):
    if make is not None:
        make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / name)


def test_a_saved_set_without_splits_has_none(tmp_path):
    datasets.Dataset.from_dict({"problem": ["a"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="has no splits; leave out @train"):
        open_table(f"{tmp_path / 'one'}@train")


def test_large_files_are_mapped_from_disk(tmp_path, monkeypatch):
    """The rows are those of the files; the table maps an Arrow file instead of holding it in memory."""
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
    with pytest.raises(ValueError, match=r"owner/gone is neither a file nor a folder .*doesn't exist\.$"):
        open_table("owner/gone")
    assert asked == ["owner/name", "owner/name-v1.5", "owner/gone"]


def test_without_datasets_files_can_still_be_read(tmp_path, monkeypatch):
    saved(tmp_path / "f", train=["a"])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert problems(write_parquet(tmp_path / "a.parquet", "a")) == ["a"]
    for name in (tmp_path / "f", "owner/name"):
        with pytest.raises(ValueError, match="pip install datasets"):
            open_table(name)


def test_csv_and_tsv(tmp_path):
    """Quotes, line breaks and commas inside values; empty values are absent; another separator; gzip."""
    text = 'question,answer,cue\n"a, ""b""\nc",7,\nd,,"x"\n'
    (tmp_path / "a.csv").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "b.csv").write_text("question;answer\r\na, b;7\r\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.encode()))
    rows = [{"question": 'a, "b"\nc', "answer": "7"}, {"question": "d", "cue": "x"}]
    assert (
        list(open_table(tmp_path / "a.csv").rows()) == list(open_table(tmp_path / "c.csv.gz").rows()) == rows
    )
    assert list(open_table(tmp_path / "b.csv").rows()) == [{"question": "a, b", "answer": "7"}]


def test_a_table_of_vlmevalkit(tmp_path):
    """Images in base64, one of them named by the index of another row, and options in columns A and B."""
    content = base64.b64encode(png("blue")).decode()
    lines = ["index\tquestion\tA\tB\tanswer\timage", f"0\tWhich?\tx\ty\tB\t{content}", "1\tAnd?\tu\tv\tA\t0"]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    first, second = FileSource(tmp_path / "a.tsv")
    assert [s.images[0].getpixel((0, 0)) for s in (first, second)] == [(0, 0, 255)] * 2
    assert (first.id, second.id, second.answer) == ("0", "1", "A") and second.meta == {"choices": ["u", "v"]}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_of_images(tmp_path, name):
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    rows = [{"file_name": f"{c}.png", "question": "Which colour?", "answer": c} for c in ("red", "blue")]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    text = lines if name.endswith("csv") else map(json.dumps, rows)
    (tmp_path / name).write_text("\n".join(text) + "\n")
    result = [(s.answer, s.images[0].getpixel((0, 0))) for s in FileSource(tmp_path)]
    assert result == [("red", (255, 0, 0)), ("blue", (0, 0, 255))]


def test_broken_lines_are_bad_rows_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "a"}\n{"problem"\n7\n{"problem": "b"}\n')
    (tmp_path / "a.csv").write_text("problem,answer\na,1\nb\nc,1,2\n")
    source = FileSource(tmp_path / "a.jsonl", bad_rows="skip")
    assert source.column("question") == ["a", "b"] and source.num_rows == 4
    kinds = [(bad.row, bad.kind, bad.reason.partition(":")[0]) for bad in source.bad_rows]
    assert kinds == [
        (1, "unreadable_row", "line 2 is not valid JSON"),
        (2, "unreadable_row", "line 3 is a int; an object was expected"),
    ]
    assert [bad.row for bad in FileSource(tmp_path / "a.csv", bad_rows="skip").bad_rows] == [1, 2]
    with pytest.raises(ValueError, match=r"2 of 4 rows are bad: 2 unreadable_row \(first: row 1: line 2"):
        FileSource(tmp_path / "a.jsonl")


def test_objects_that_hold_rows(tmp_path):
    """By id, under one key among others, or a single row."""
    by_id = {"7": {"question": "a", "meta": {"x": 1}}, "8": {"question": "b", "id": "own"}}
    (tmp_path / "a.json").write_text(json.dumps(by_id, indent=1))
    assert FileSource(tmp_path / "a.json").column("id") == ["7", "own"]
    (tmp_path / "b.json").write_text(
        json.dumps({"version": 2, "data": [{"question": "a"}, {"question": "b"}]})
    )
    assert FileSource(tmp_path / "b.json").column("question") == ["a", "b"]
    (tmp_path / "c.json").write_text(
        json.dumps({"conversations": [{"from": "human", "value": "a"}]}, indent=1)
    )
    assert FileSource(tmp_path / "c.json").column("question") == ["a"]


@pytest.mark.parametrize("form", ["{0},{1}", "[{0}, {1}]", "['{0}','{1}']", "{folder}/part-*.jsonl", "list"])
def test_several_files_are_one_source(tmp_path, form):
    """Each with its own folder for paths; ids, messages and rows say which file."""
    for number in (1, 2):
        home = tmp_path / str(number) if form != "{folder}/part-*.jsonl" else tmp_path
        home.mkdir(exist_ok=True)
        (home / f"{number}.png").write_bytes(png("red" if number == 1 else "blue"))
        rows = [
            {"problem": str(number), "image": f"{number}.png"},
            {"problem": "x", "image": f"no{number}.png"},
        ]
        (home / f"part-{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = sorted(map(str, tmp_path.rglob("*.jsonl")))
    name = paths if form == "list" else form.format(*paths, folder=tmp_path)
    source = FileSource(name, bad_rows="skip")
    assert source.column("question") == ["1", "2"]
    assert source.column("id") == ["part-1.jsonl:0", "part-2.jsonl:0"]
    assert [sample.images[0].getpixel((0, 0)) for sample in source] == [(255, 0, 0), (0, 0, 255)]
    assert [str(bad).partition(":")[0] for bad in source.bad_rows] == [
        "part-1.jsonl, row 1",
        "part-2.jsonl, row 1",
    ]
    assert [bad.row for bad in source.bad_rows] == [1, 3] and source.num_rows == 4


def test_files_of_several_conventions(tmp_path):
    write_parquet(tmp_path / "a.parquet", "a")
    (tmp_path / "b.csv").write_text("question,solution\nb,8\n")
    source = DataConfig(train=[str(tmp_path / "a.parquet"), str(tmp_path / "b.csv")]).open()
    assert source.column("question") == ["a", "b"] and source.column("answer") == [None, "8"]


def test_empty_names_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_parquet(tmp_path / "a,b.parquet", "a")
    assert (
        problems(tmp_path / "a,b.parquet") == problems("~/a,b.parquet") == problems("~/a*.parquet") == ["a"]
    )
    for name, message in [
        ("~/*.json", r"No file matches ~/\*\.json"),
        (",", "names no data"),
        ([], "no data"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_table(name)
    (tmp_path / "c.jsonl").write_text(json.dumps({"problem": "c", "image": "a.png"}))
    (tmp_path / "a.png").write_bytes(png("red"))
    assert len(FileSource("~/c.jsonl", image_dir="~")[0].images) == 1


def test_an_index_names_no_file_outside_its_folder(tmp_path):
    """`datasets` opens whatever `state.json` and `dataset_dict.json` name."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"problem": ["a"]})
    data.save_to_disk(str(tmp_path / "secret"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "many"))
    data.save_to_disk(str(tmp_path / "one"))
    assert problems(tmp_path / "one") == problems(tmp_path / "many") == ["a"]
    state = tmp_path / "one" / "state.json"
    content = json.loads(state.read_text())
    (name,) = [file["filename"] for file in content["_data_files"]]
    for listed, message in (
        ([{"filename": f"../secret/{name}"}], "lists .*secret.*, which is outside it"),
        ([{"filename": str(tmp_path / "secret" / name)}], "lists .*secret.*, which is outside it"),
        ([{}], "cannot be read: KeyError: 'filename'"),
        (None, "cannot be read: TypeError"),
    ):
        state.write_text(json.dumps(content | {"_data_files": listed}))
        with pytest.raises(ValueError, match=message):
            open_table(tmp_path / "one")
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(ValueError, match="which is outside it"):
        open_table(f"{tmp_path / 'many'}@../secret")


def test_a_gzipped_file_has_a_maximum_size(tmp_path, monkeypatch):
    """The file itself is small; no more than a piece beyond the maximum is unpacked."""
    monkeypatch.setattr("vicur.data.readers.LARGEST_UNPACKED", 2**20)
    monkeypatch.setattr("vicur.data.readers._PIECE", 2**16)
    row = json.dumps({"problem": "a"}).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(row + b" " * (2**20 - len(row))))
    assert problems(path) == ["a"]
    path.write_bytes(gzip.compress(row + b" " * 2**24))
    monkeypatch.setattr("gzip.decompress", None)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz has more than .* GiB when it is unpacked\. "):
        open_table(path)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_an_index_that_is_nested_too_deeply(tmp_path, name):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"problem": ["a"]}).save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one" / name).write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"one cannot be read: .*is nested too deeply\.$"):
        open_table(tmp_path / "one")
