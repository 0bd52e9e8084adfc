"""Files of problems: the geometry3k convention, and rows that are wrong."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vicur.data.sources import FileSource
from vicur.data.views import Hinted


def png(colour="red"):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, format="PNG")
    return data.getvalue()


def write(path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def row(**changes):
    return {
        "problem": "<image>What is x?",
        "images": [{"bytes": png(), "path": None}],
        "answer": "7",
        "cue": "x is 7",
    } | changes


def test_geometry3k_convention(tmp_path):
    source = FileSource(write(tmp_path / "a.parquet", row()), system_prompt="Be brief.")
    (sample,) = source
    assert [m["role"] for m in sample.messages] == ["system", "user"]
    assert [part["type"] for part in sample.messages[1]["content"]] == ["image", "text"]
    assert sample.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert (sample.answer, sample.privilege.cue, sample.privilege.answer) == ("7", "x is 7", "7")
    assert sample.id == "a.parquet:0"


def test_images_by_path_and_placeholders_in_the_middle(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png("blue"))
    text = {"problem": "Is <image> blue?", "images": ["media/a.png"], "answer": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(text) + "\n")
    (sample,) = FileSource(tmp_path / "a.jsonl")
    assert [part["type"] for part in sample.messages[0]["content"]] == ["text", "image", "text"]
    assert sample.images[0].getpixel((0, 0)) == (0, 0, 255) and sample.answer == "1"


def test_media_stand_first_without_a_placeholder(tmp_path):
    (sample,) = FileSource(write(tmp_path / "a.parquet", row(problem="What is x?")))
    assert [part["type"] for part in sample.messages[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    "prompt",
    ["Look well at <image>: what is x?", [{"role": "user", "content": "Look well at <image>: what is x?"}]],
)
def test_a_whole_prompt_for_the_teacher(tmp_path, prompt):
    (sample,) = FileSource(write(tmp_path / "a.parquet", row(teacher_prompt=prompt)))
    shown = Hinted("teacher_prompt").show(sample)
    (message,) = shown.messages
    assert [part["type"] for part in message["content"]] == ["text", "image", "text"]
    assert shown.images == sample.images


def test_a_teachers_question_has_the_students_system_prompt(tmp_path):
    path = write(tmp_path / "a.parquet", row(teacher_prompt="<image>Look: what is x?"))
    (sample,) = FileSource(path, system_prompt="Be brief.")
    roles = [message["role"] for message in Hinted("teacher_prompt").show(sample).messages]
    assert roles == ["system", "user"]


def test_samples_without_the_privilege_can_be_left_out(tmp_path):
    path = write(tmp_path / "a.parquet", row(), row(cue=None))
    assert len(FileSource(path)) == 2
    assert len(FileSource(path, only_for=Hinted("cue"))) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"problem": "<image> and <image>"}, r"row 0: .*2 image placeholder\(s\).*has 1"),
        ({"problem": None}, "row 0: the question is missing"),
        ({"teacher_prompt": "<image> or <image>?"}, r"row 0: teacher_prompt has 2 <image> .* for 1 image"),
        (
            {"teacher_prompt": [{"role": "system", "content": "<image>"}]},
            "row 0: teacher_prompt has no message of the user",
        ),
        ({"teacher_prompt": [{"text": "x"}]}, "row 0: teacher_prompt must be a text, or a list of messages"),
        ({"images": [{"bytes": b"no image", "path": None}]}, "row 0: cannot identify image"),
        ({"images": [{"bytes": None, "path": "../../etc/x.png"}]}, "row 0: .*outside the data folder"),
        ({"images": [{"bytes": None, "path": "gone.png"}]}, "row 0: .*No such file"),
    ],
)
def test_bad_rows_are_named(tmp_path, changes, message):
    source = FileSource(write(tmp_path / "a.parquet", row(**changes)))
    with pytest.raises(ValueError, match=message):
        source[0]


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="has no question column: looked for problem or question"):
        FileSource(write(tmp_path / "a.parquet", {"text": "?"}))
    with pytest.raises(ValueError, match="has the id a more than once"):
        FileSource(write(tmp_path / "b.parquet", row(id="a"), row(id="a")))
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ValueError, match=r"neither \.parquet nor \.jsonl"):
        FileSource(tmp_path / "c.txt")
