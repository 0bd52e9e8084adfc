"""Rows of anything at all: each is a problem or a bad row with a sentence, and none is lost.

`HYPOTHESIS_PROFILE=soak` tries thousands of them.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import traceback
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import BadRowError, RowProblem
from vicur.data.columns import ALIASES
from vicur.data.sources import FileSource
from vicur.data.tables import ListTable
from vicur.encoding.inspect import inspect_source


def encoded(kind: str, size=(30, 20), **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format=kind, **options)
    return data.getvalue()


PICTURES = [encoded(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP")]
MEDIA = [
    *PICTURES,
    *(picture[: len(picture) * 3 // 4] for picture in PICTURES),
    base64.b64encode(PICTURES[0]).decode(),
    "data:image/png;base64," + base64.b64encode(PICTURES[0]).decode(),
    *(
        b"no image",
        "a.png",
        "../a.png",
        "https://example.org/a.png",
        "file:///etc/hostname",
        "~x/a.png",
        "\0",
    ),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"#EXTM3U\n#EXTINF:5,\n/etc/hostname\n",
]
PHRASES = [
    *(
        "<image>",
        "<video>",
        "<image 1>",
        "<image0>",
        "<image 9999>",
        "<|im_end|>",
        "\\boxed{3}",
        "A",
        "3",
        " ",
    ),
    *("[{'role': 'user', 'content': 'a'}]", '{"role": "user", "content": [{"type": "image"}]}', "[" * 300),
    *("['a', 'b']", '{"A": "x", "B": "y"}', '["\\ud800"]', "A. x\nB. y", "-" * 50, "[" + "-" * 9000 + "1]"),
]
KEYS = [
    *(
        "role",
        "from",
        "content",
        "value",
        "type",
        "text",
        "image",
        "video",
        "image_url",
        "url",
        "bytes",
        "path",
    ),
    *("fps", "nframes", "max_frames", "video_start", "min_pixels", "max_pixels", "resized_width", "frames"),
    *("label", "A", "B", "tool_calls", "function", "name", "arguments", "ground_truth", "entry", "number"),
]
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "oracle"]
COLUMNS = [
    *dict.fromkeys(name for names in ALIASES.values() for name in names),
    "image_1",
    "video_1",
    "A",
    "B",
    "x",
]

texts = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(), max_size=4),  # halves of surrogate pairs too
    st.lists(st.sampled_from(PHRASES), min_size=1, max_size=3).map(" ".join),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, 1e308, 0, 1, 2, float("inf"), True, 2**40]),
)
scalars = st.one_of(
    st.none(),
    numbers,
    texts,
    texts,
    st.sampled_from(MEDIA),
    st.binary(max_size=30),
    st.dates(),
    st.sampled_from(ROLES),
)
turns = st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": texts})
values = st.recursive(
    scalars | st.lists(turns, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
media = st.sampled_from(MEDIA) | values
fields = st.fixed_dictionaries(
    {},
    optional={
        "problem": texts | st.lists(turns, max_size=3),
        "images": st.lists(media, max_size=2) | media,
        "videos": media,
        "cue": texts,
        "answer": texts | numbers,
    },
)
rows = st.builds(dict.__or__, st.dictionaries(st.sampled_from(COLUMNS), values, max_size=4), fields)


@contextmanager
def only_sentences():
    """No other errors than those that the package raises, in one line that can be printed."""
    try:
        yield
    except ValueError as error:
        assert type(error) in (ValueError, RowProblem, BadRowError)
        assert traceback.extract_tb(error.__traceback__)[-1].line.startswith("raise ")
        assert str(error).isprintable() or str(error).encode()
        assert len(str(error).splitlines()) == 1


def check(path, **options) -> None:
    with only_sentences():
        source = FileSource(path, bad_rows="skip", may_be_empty=True, **options)
        assert len(source) + len(source.bad_rows) == source.num_rows
        assert all(len(str(bad).encode().splitlines()) == 1 for bad in source.bad_rows)
        for index in range(len(source)):
            for read in (source.outline, source.__getitem__):
                with only_sentences():
                    read(index)
        for column in ("question", "id", "answer", "cue", "target_response"):
            assert len(source.column(column)) == len(source)
        result = inspect_source(source)
        assert result.problems + sum(result.bad_rows.values()) == result.rows


@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from([0, None]))
def test_rows_in_memory(tmp_path_factory, content, checked):
    check(ListTable("a", (tmp_path_factory.getbasetemp(),), content), check_images=checked)


@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]))
def test_rows_in_files(tmp_path_factory, content, kind):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    if kind == "parquet":
        try:
            write_parquet(path, content)
        except (pa.ArrowException, UnicodeEncodeError):  # Arrow cannot hold it
            return
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            names = [*dict.fromkeys(name for row in content for name in row)]
            writer = csv.DictWriter(file, names, delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(content)
    else:
        plain = [json.dumps(row, default=str) for row in content]
        path.write_text("\n".join(plain) if kind == "jsonl" else f"[{', '.join(plain)}]")
    check(path)


def write_parquet(path, content) -> None:
    names = [*dict.fromkeys(name for row in content for name in row)]
    columns = {}
    for name in names:
        column = [row.get(name) for row in content]
        try:
            columns[name] = pa.array(column)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([None if value is None else str(value) for value in column])
    pq.write_table(pa.table(columns), path)


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from(['{"problem": "a"}', "[", "{", "]", "}", "\n", '"', "1" * 5000, ","])).map(
        lambda pieces: "".join(pieces).encode()
    ),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"]),
)
def test_files_of_anything(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    check(path)
