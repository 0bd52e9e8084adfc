"""Sources: which rows become problems, and what is reported about the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vicur.bad_rows import BadRowError
from vicur.data.sources import DataConfig, FileSource
from vicur.data.views import Hinted, TeacherPrompt
from vicur.media.videos import VideoConfig


def png(colour="red", size=(8, 8)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format="PNG")
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


def test_paths_start_from_image_dir_where_it_is_set(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(png("blue"))
    (tmp_path / "b.png").write_bytes(png())
    path = write(tmp_path / "a.parquet", row(images=["a.png"]))
    assert FileSource(path, image_dir=tmp_path / "elsewhere")[0].images[0].getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(ValueError, match=r"row 0: there is no file a\.png"):
        FileSource(path)
    with pytest.raises(ValueError, match="outside the data folder"):
        FileSource(write(tmp_path / "b.parquet", row(images=["../b.png"])), image_dir=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="image_dir gone is not a folder"):
        FileSource(path, image_dir="gone")


def test_media_without_a_placeholder_come_first(tmp_path):
    (sample,) = FileSource(write(tmp_path / "a.parquet", row(problem="What is x?")))
    assert [part["type"] for part in sample.messages[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    "prompt",
    ["Look well at <image>: what is x?", [{"role": "user", "content": "Look well at <image>: what is x?"}]],
)
def test_a_whole_prompt_for_the_teacher(tmp_path, prompt):
    (sample,) = FileSource(write(tmp_path / "a.parquet", row(teacher_prompt=prompt)))
    shown = TeacherPrompt().show(sample)
    (message,) = shown.messages
    assert [part["type"] for part in message["content"]] == ["text", "image", "text"]
    assert shown.images == sample.images


def test_a_teachers_question_has_the_students_system_prompt(tmp_path):
    path = write(tmp_path / "a.parquet", row(teacher_prompt="<image>Look: what is x?"))
    (sample,) = FileSource(path, system_prompt="Be brief.")
    roles = [message["role"] for message in TeacherPrompt().show(sample).messages]
    assert roles == ["system", "user"]


def test_samples_without_the_privilege_can_be_left_out(tmp_path):
    path = write(tmp_path / "a.parquet", row(), row(cue=None))
    source = FileSource(path)
    assert len(source) == 2 and source.applies(Hinted("cue")) == [True, False]
    fewer = FileSource(path, only_for=[Hinted("cue")])
    assert (len(fewer), fewer.inapplicable, fewer.bad_rows) == (1, 1, [])
    with pytest.raises(ValueError, match="that the view rationale applies to"):
        FileSource(path, only_for=[Hinted("rationale")])


BAD = [
    ({"problem": "<image> and <image>"}, "placeholders", r"2 image placeholder\(s\), but the row has 1"),
    ({"problem": "<video><image>?"}, "placeholders", r"1 video placeholder\(s\), but the row has 0 video"),
    ({"images": []}, "placeholders", r"1 image placeholder\(s\), but the row has 0 image"),
    ({"problem": None, "images": None}, "question", "the question is empty, and no image"),
    ({"problem": " \n", "images": []}, "question", "the question is empty, and no image"),
    ({"problem": [{"role": "user", "content": ""}], "images": ""}, "question", "the question is empty"),
    ({"answer": ""}, "answer", "the answer is empty"),
    ({"answer": " "}, "answer", "the answer is empty"),
    ({"answer": "\\boxed{}"}, "answer", "the answer is empty"),
    ({"answer": ["a", "b"]}, "answer", "the answer is a list; one text was expected"),
    ({"problem": [{"role": "user", "content": None}]}, "malformed", "list of messages with role and content"),
    (
        {"problem": [{"role": "oracle", "content": "?"}]},
        "malformed",
        "the role 'oracle'; known roles are system",
    ),
    ({"problem": [{"role": "system", "content": "?"}]}, "question", "the chat ends with the role system"),
    ({"problem": [{"role": "assistant", "content": "?"}]}, "question", "the chat has no turn"),
    ({"problem": 7}, "malformed", "the question must be a text, or a list of messages .* not a int"),
    ({"problem": ["?"]}, "malformed", "not of strs"),
    (
        {"problem": [{"role": "user", "content": [{"type": "audio", "text": "?"}]}]},
        "malformed",
        "a part of type 'audio'",
    ),
    ({"cue": {"a": 1}}, "malformed", "cue is a dict; a text was expected"),
    (
        {"teacher_prompt": "<image> or <image>?"},
        "placeholders",
        r"teacher_prompt has 2 <image> .* for 1 image",
    ),
    (
        {"teacher_prompt": [{"role": "system", "content": "<image>"}]},
        "malformed",
        "teacher_prompt has no user message",
    ),
    ({"teacher_prompt": []}, "malformed", "teacher_prompt has no user message"),
    (
        {"teacher_prompt": [{"text": "x"}]},
        "malformed",
        "teacher_prompt must be a text, or a list of messages",
    ),
    ({"images": [None]}, "placeholders", "the row has 0 image"),
    ({"images": [{"bytes": b"no image", "path": None}]}, "unreadable_media", "not an image Pillow can read"),
    ({"images": [{"bytes": None, "path": "../../x.png"}]}, "outside_folder", "outside the data folder"),
    ({"images": [{"bytes": None, "path": "link.png"}]}, "outside_folder", "outside the data folder"),
    ({"images": [{"bytes": None, "path": "gone.png"}]}, "missing_media", r"there is no file gone\.png"),
    ({"images": [{"bytes": None, "path": None}]}, "missing_media", "neither bytes nor path"),
    ({"images": ["http://example.org/a.png"]}, "network_media", "on the network"),
    ({"images": [png(size=(201, 1))]}, "media_size", "201 x 1 pixels"),
    ({"images": [png(size=(101, 100))]}, "media_size", "more than max_raw_pixels=10000"),
    ({"videos": [b"no film"], "problem": "<image><video>?"}, "unreadable_media", "cannot be decoded"),
    ({"videos": [[png(), png(size=(9, 9))]]}, "unreadable_media", "must all have the same size"),
]


@pytest.mark.parametrize("changes, kind, message", BAD, ids=lambda value: str(value)[:30])
def test_bad_rows_are_named_or_left_out(tmp_path, changes, kind, message):
    """Row 1 of three is bad."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "x.png").write_bytes(png())
    (home / "link.png").symlink_to(tmp_path / "x.png")
    bad = {"id": "b"} | row(**changes)
    table = _table(home, {"id": "a"} | row(), bad, {"id": "c"} | row())
    with pytest.raises(ValueError, match=rf"a\.json, row 1: .*{message}.*bad_rows=skip"):
        FileSource(table, max_raw_pixels=10_000)
    source = FileSource(table, max_raw_pixels=10_000, bad_rows="skip")
    assert [sample.id for sample in source] == ["a", "c"] and source.num_rows == 3
    assert [(bad.row, bad.id, bad.kind) for bad in source.bad_rows] == [(1, "b", kind)]
    assert source.row_number(1) == 2


def _table(folder: Path, *rows):
    """Rows as from a JSON file, but with bytes, which JSON cannot hold."""
    from vicur.data.tables import ListTable

    return ListTable("a.json", (folder,), rows)


def test_repeated_ids_become_unique_and_no_row_is_lost(tmp_path):
    """Two sets in one file count from 0 each; one row is there twice; an id looks like one of ours."""
    rows = [row(id="0"), row(id="1"), row(id="0", answer="8"), row(id="0"), row(id="0#2")]
    source = FileSource(write(tmp_path / "b.parquet", *rows))
    ids = ["0", "1", "0#2", "0#3", "0#2#2"]
    assert source.column("id") == ids and [sample.id for sample in source] == ids
    assert (source.repeated_ids, source.duplicates) == (3, 1) and source.bad_rows == []
    assert source.select([3, 2]).column("id") == ["0#3", "0#2"]


def test_ids_do_not_depend_on_what_is_skipped(tmp_path):
    rows = [row(id=7, answer=""), row(id=7), row(id=7)]
    source = FileSource(write(tmp_path / "b.parquet", *rows), bad_rows="skip")
    assert source.column("id") == ["7#2", "7#3"] and [bad.id for bad in source.bad_rows] == ["7"]


def test_a_missing_answer_is_no_fault(tmp_path):
    source = FileSource(write(tmp_path / "a.parquet", row(answer=None), row()))
    assert source.column("answer") == [None, "7"] and source[0].answer is None


def test_a_truncated_image_is_named_when_it_is_asked_for(tmp_path):
    content = png(size=(64, 64))
    bad = row(id="b", images=[{"bytes": content[: len(content) - 30], "path": None}])
    source = FileSource(write(tmp_path / "a.parquet", row(id="a"), bad), check_images=1)
    assert source[0].id == "a" and source.bad_rows == []
    with pytest.raises(
        BadRowError, match=r"a\.parquet, row 1: the image in the data cannot be decoded"
    ) as caught:
        source[1]
    assert (caught.value.bad.row, caught.value.bad.id, caught.value.bad.kind) == (1, "b", "unreadable_media")


def test_bad_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no question column: looked for problem or question.*found text"
    ):
        FileSource(write(tmp_path / "a.parquet", {"text": "?"}))
    with pytest.raises(
        ValueError,
        match=r"train or evaluate on: all rows are bad: 1 answer \(first: row 0: the",
    ):
        FileSource(write(tmp_path / "b.parquet", row(answer="")), bad_rows="skip")
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"c\.jsonl is empty: it has no rows"):
        FileSource(tmp_path / "c.jsonl")


def test_the_check_of_rows_can_be_shown(tmp_path):
    seen = []

    def progress(rows, count):
        for done, one in enumerate(rows):
            seen.append((done, count))
            yield one

    FileSource(write(tmp_path / "a.parquet", row(), row()), progress=progress)
    assert seen == [(0, 2), (1, 2)]


def test_text_columns_are_those_of_the_samples(tmp_path):
    rows = [row(rationale="r", response="y"), row(problem="Why?", cue=None, answer="\\boxed{8}")]
    source = FileSource(write(tmp_path / "a.parquet", *rows))
    assert source.column("question") == ["What is x?", "Why?"]
    assert source.column("answer") == [sample.answer for sample in source] == ["7", "8"]
    assert source.column("cue") == ["x is 7", None] and source.column("rationale") == ["r", None]
    assert source.column("target_response") == [sample.target_response for sample in source] == ["y", None]
    assert source.select([1]).column("answer") == ["8"]
    assert source.column("id") == [sample.id for sample in source] == ["a.parquet:0", "a.parquet:1"]
    with pytest.raises(ValueError, match="no text field images"):
        source.column("images")


def test_some_of_a_source(tmp_path):
    source = FileSource(write(tmp_path / "a.parquet", *[row(id=str(i)) for i in range(5)]))
    chosen = source.select([3, 0])
    assert [sample.id for sample in chosen] == ["3", "0"] and chosen.row_number(0) == 3
    assert [sample.id for sample in source[1:3]] == ["1", "2"] and source[-1].id == "4"
    with pytest.raises(ValueError, match=r"No problem of .* is left"):
        source.select([])
    with pytest.raises(IndexError):
        source[5]


def test_outlines_have_sizes_and_no_pixels(tmp_path):
    images = [{"bytes": png(size=(9, 5)), "path": None}]
    source = FileSource(write(tmp_path / "a.parquet", row(images=images)))
    (outline,), (sample,) = source.outlines(), source
    assert [image.size for image in outline.images] == [(9, 5)]
    assert (outline.id, outline.messages, outline.privilege) == (sample.id, sample.messages, sample.privilege)
    with pytest.raises(AssertionError):
        outline.images[0].load()


def test_settings_reach_the_source(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png())
    rows = [row(images=["a.png"], gold="8"), row(images=["a.png"], gold="")]
    config = DataConfig(
        train=str(write(tmp_path / "a.parquet", *rows)),
        system_prompt="Be brief.",
        image_dir=str(tmp_path / "media"),
        columns={"answer": "gold"},
        bad_rows="skip",
        max_pixels=640,
        video=VideoConfig(max_pixels=320),
    )
    source = config.open()
    assert source[0].answer == "8" and len(source.bad_rows) == 1
    assert source[0].messages[0]["content"][0]["text"] == "Be brief."
    limits = config.pixel_limits()
    assert (limits.max_pixels, limits.max_frame_pixels, limits.min_pixels) == (640, 320, None)
    with pytest.raises(ValueError, match="more than max_raw_pixels=63"):
        DataConfig(train=config.train, image_dir=config.image_dir, max_raw_pixels=63).open()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DataConfig(max_prompt_tokens=0), r"max_prompt_tokens must be at least 1, not 0"),
        (lambda: DataConfig(min_pixels=9, max_pixels=8), r"min_pixels \(9\) is above max_pixels \(8\)"),
        (lambda: DataConfig(max_raw_pixels=10**9), r"max_raw_pixels must be at most 178956970"),
        (lambda: DataConfig(video=VideoConfig(min_pixels=0)), r"min_pixels must be at least 1"),
    ],
)
def test_invalid_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_order_of_image_and_question_is_a_setting(tmp_path):
    rows = [{"problem": "Look at <image>: what is x?", "images": ["a.png"]}, {"problem": "Why?"}]
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    kinds = {}
    for order in ("as_is", "image_first", "question_first"):
        problem, text = FileSource(tmp_path / "a.json", order=order)
        kinds[order] = [part["type"] for part in problem.messages[0]["content"]]
        assert [part["type"] for part in text.messages[0]["content"]] == ["text"]
    assert kinds == {
        "as_is": ["text", "image", "text"],
        "image_first": ["image", "text", "text"],
        "question_first": ["text", "text", "image"],
    }
