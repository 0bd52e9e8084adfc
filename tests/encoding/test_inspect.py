"""The numbers of an inspection, against a source small enough to count by hand."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from vicur.data.sources import FileSource
from vicur.data.tables import ListTable
from vicur.data.views import PRIVILEGED, Plain, teacher_view
from vicur.encoding.inspect import Spread, inspect_source
from vicur.encoding.prompts import PromptEncoder


def png(size, cut=0) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, format="PNG")
    return data.getvalue()[: -cut or None]


@pytest.fixture
def source(tmp_path) -> FileSource:
    teacher = [{"role": "user", "content": "<image>Look!"}]
    rows = [
        {"qid": "a", "problem": "<image>Why?", "images": [png((100, 50))], "answer": "7", "cue": "x"},
        {"qid": "b", "problem": "How?", "images": [png((20, 10)), png((60, 30))], "answer": None},
        {"qid": "c", "problem": "<image>", "images": [png((8, 8))]},
        {"qid": "a", "problem": "Again?"},
        {"qid": "d", "problem": "<image>?", "images": [png((8, 8))], "teacher_prompt": teacher, "answer": ""},
        {"qid": "e", "problem": "Text?", "answer": "x", "response": "y", "videos": [[png((16, 16))] * 3]},
        {"qid": "f", "problem": "And?", "images": png((8, 8)), "answer": "", "kind": "easy"},
        {"qid": "g", "problem": "<image>!", "images": png((16, 16)), "teacher_prompt": teacher},
    ]
    return FileSource(ListTable("a.json", (tmp_path,), rows), bad_rows="skip")


def test_counts(source):
    result = inspect_source(source, teacher_view=teacher_view("cue"))
    assert result.name == "a.json" and (result.rows, result.problems) == (8, 6)
    assert result.schema == {
        "question": "problem",
        "images": "images",
        "videos": "videos",
        "answer": "answer",
        "cue": "cue",
        "teacher_prompt": "teacher_prompt",
        "target_response": "response",
        "id": "qid",
    }
    assert result.bad_rows == {"answer": 2}
    assert list(result.first_bad_rows) == ["answer"] and result.first_bad_rows["answer"].startswith(
        "row 4: the"
    )
    assert (result.repeated_ids, result.duplicates) == (1, 0)
    assert result.notes == ["1 row with the id of an earlier row; #2, #3, ... is appended to the id."]
    assert (result.without_answer, result.with_target_response, result.with_choices) == (4, 1, 0)
    assert result.images_per_problem == {0: 2, 1: 3, 2: 1} and result.videos_per_problem == {0: 5, 1: 1}
    assert (result.image_width.low, result.image_width.p50, result.image_width.high) == (8, 20, 100)
    assert (result.image_height.low, result.image_height.high) == (8, 50)
    assert (result.image_megapixels.low, result.image_megapixels.high) == (0.000064, 0.005)
    assert result.video_frames == Spread(3.0, 3.0, 3.0, 3.0, 3.0)
    assert result.privileges == dict.fromkeys(PRIVILEGED, 0) | {"answer": 2, "cue": 1, "teacher_prompt": 1}
    assert result.prompt_tokens is None and result.teacher_prompt_tokens is None
    assert result.example_id == "a" and result.student_sees == "user: <image>Why?"
    assert result.teacher_sees == "user: <image>Why?\n[Hint]: x"
    assert (
        inspect_source(source, teacher_view=teacher_view("teacher_prompt"), example=5).teacher_sees
        == "user: <image>Look!"
    )


def test_lengths_and_the_chat_template_of_a_model(base, source):
    encoder = PromptEncoder(base.processor, base.model.model.get_rope_index)
    result = inspect_source(source, encoder, teacher_view("cue"))
    plain = [len(prompt) for prompt in encoder.encode([Plain().show(sample) for sample in source])]
    hinted = [
        len(prompt) for prompt in encoder.encode([teacher_view("cue").show(sample) for sample in source])
    ]
    assert (result.prompt_tokens.low, result.prompt_tokens.high) == (min(plain), max(plain))
    assert (result.teacher_prompt_tokens.low, result.teacher_prompt_tokens.high) == (min(hinted), max(hinted))
    assert result.student_sees == encoder.render(Plain().show(source[0]))
    assert result.student_sees == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert result.teacher_sees == result.student_sees.replace("Why?", "Why?\n[Hint]: x")


def test_a_chat_template_that_fails_is_named(base, source):
    """On one prompt, though it did not on those that are tried when a checkpoint is loaded."""
    base.processor.chat_template = "{{ messages[0].nothing.nothing }}"
    encoder = PromptEncoder(base.processor, base.model.model.get_rope_index)
    with pytest.raises(ValueError, match="chat template refuses a chat of user: UndefinedError"):
        encoder.render(Plain().show(source[0]))


def test_as_json(base, source):
    result = json.loads(json.dumps(inspect_source(source).as_dict()))
    assert result["image_width"]["high"] == 100 and result["bad_rows"]["answer"] == 2
    assert result["images_per_problem"] == {"0": 2, "1": 3, "2": 1}


def test_percentiles():
    """The p-th percentile of 0 ... 100 is p."""
    assert Spread.of(list(range(101))) == Spread(0.0, 5.0, 50.0, 95.0, 100.0)
    assert Spread.of([]) is None


def test_the_example_must_exist(source):
    with pytest.raises(ValueError, match="has no problem 6; it has 6"):
        inspect_source(source, example=6)


def test_a_source_of_only_bad_rows_reports_the_reasons(tmp_path, monkeypatch, capsys):
    """The command does too, as text and JSON; each kind has its count and its first row."""
    from vicur.cli.main import main

    rows = [{"problem": "<image>?", "images": [name]} for name in ("gone.png", "../x.png", "lost.png")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "inspect", "a.json", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bad_rows"] == {"missing_media": 2, "outside_folder": 1} and result["problems"] == 0
    assert result["first_bad_rows"]["missing_media"].startswith("row 0: there is no file gone.png")
    assert main(["data", "inspect", "a.json"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "2 missing_media, first: row 0" in output and "1 outside_folder, first: row 1" in output
    assert "data.image_dir=FOLDER" in output


def test_answers_in_responses_are_offered(tmp_path):
    chat = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "So it is \\boxed{7}."}]
    vague = [chat[0], {"from": "gpt", "value": "It depends on what the picture is meant to show."}]
    rows = [{"conversations": own, "images": [png((8, 8))]} for own in (chat, vague)]
    table = ListTable("a.json", (tmp_path,), rows)
    result = inspect_source(FileSource(table))
    assert (result.without_answer, result.answers_in_responses) == (2, 1)
    assert any("data.answer_from_response=true" in note for note in result.notes)
    source = FileSource(table, answer_from_response=True)
    assert source.column("answer") == ["7", None] and source[0].target_response == "So it is \\boxed{7}."
    assert inspect_source(source).notes == []
