"""The same problems, written in every convention as its own users write it, load as the same samples."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.columns import ALIASES, Columns
from vicur.data.sample import Privilege, Sample
from vicur.data.sources import FileSource
from vicur.data.views import Hinted, Plain, TeacherPrompt, teacher_view, view_of


@dataclass(frozen=True)
class Problem:
    """The content of a problem, which every convention writes in its own way."""

    id: str
    text: str
    images: tuple[Image.Image, ...]
    answer: str
    cue: str | None
    response: str


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PROBLEMS = [
    Problem(
        "1", "Look at <image> and say x.", (picture(0, (8, 6)),), "2 \\sqrt { 221 }", "AB is 2.", "It is 2."
    ),
    Problem("2", "<image><image>Which?", (picture(1, (9, 5)), picture(2, (4, 4))), "B", None, "It is B."),
    Problem("3", "What is 3 + 4?", (), "7", "Two numbers.", "It is 7."),
]
ONE_IMAGE = PROBLEMS[:1]


def expected(problem: Problem, *, cue: bool = True, response: bool = False) -> Sample:
    pieces = problem.text.replace("<image>", "|<image>|").split("|")
    content = [
        {"type": "image"} if piece == "<image>" else {"type": "text", "text": piece}
        for piece in pieces
        if piece
    ]
    return Sample(
        problem.id,
        ({"role": "user", "content": content},),
        problem.images,
        answer=problem.answer,
        privilege=Privilege(answer=problem.answer, cue=problem.cue if cue else None),
        target_response=problem.response if response else None,
    )


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def saved(problem: Problem, folder: Path) -> list[str]:
    """Paths of its images, relative to the folder."""
    (folder / "images").mkdir(exist_ok=True)
    names = [f"images/{problem.id}-{i}.png" for i in range(len(problem.images))]
    for name, image in zip(names, problem.images, strict=True):
        image.save(folder / name)
    return names


FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "problem": datasets.Value("string"),
        "images": datasets.Sequence(datasets.Image()),
        "answer": datasets.Value("string"),
        "cue": datasets.Value("string"),
    }
)


def easy_r1(problems: list[Problem] = PROBLEMS) -> datasets.Dataset:
    """geometry3k, Vision-R1-rl, PAPO_ViRL39K: `datasets`' own struct for images."""
    rows = [
        {"id": p.id, "problem": p.text, "images": list(p.images), "answer": p.answer, "cue": p.cue}
        for p in problems
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def write_easy_r1(folder: Path) -> str:
    easy_r1().to_parquet(folder / "a.parquet")
    return str(folder / "a.parquet")


def write_relative_paths(folder: Path) -> str:
    rows = [
        {"id": p.id, "question": p.text, "image": saved(p, folder), "solution": p.answer, "visual_cue": p.cue}
        for p in PROBLEMS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return str(folder / "a.parquet")


def write_virl39k(folder: Path) -> str:
    rows = [
        {
            "qid": p.id,
            "question": p.text,
            "image": saved(p, folder),
            "answer": f"\\boxed{{{p.answer}}}",
            "category": "geometry",
            "source": "here",
            "PassRate_7BTrained": 0.5,
        }
        for p in PROBLEMS
    ]
    (folder / "39Krelease.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "39Krelease.parquet")
    return str(folder / "39Krelease.parquet")


def write_verl(folder: Path) -> str:
    rows = [
        {
            "data_source": "here",
            "prompt": [{"role": "user", "content": p.text}],
            "images": [{"bytes": png(image), "path": None} for image in p.images],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": p.answer},
            "extra_info": {"split": "train", "index": int(p.id), "question": p.text},
            "visual_cues": p.cue,
        }
        for p in PROBLEMS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return str(folder / "train.parquet")


def write_trl_text(folder: Path) -> str:
    rows = [
        {"prompt": p.text, "images": saved(p, folder), "solution": p.answer, "privileged_context": p.cue}
        for p in PROBLEMS
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "a.jsonl")


def parts(problem: Problem) -> list[dict[str, str | None]]:
    """As Arrow has them: every part with every key."""
    return [
        {"type": part["type"], "text": part.get("text")} for part in expected(problem).messages[0]["content"]
    ]


def write_trl_messages(folder: Path) -> str:
    rows = [
        {
            "prompt": [{"role": "user", "content": parts(p)}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": p.response}]}],
            "images": [{"bytes": png(image), "path": None} for image in p.images],
            "solution": p.answer,
            "privileged_context": p.cue,
        }
        for p in PROBLEMS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return str(folder / "a.parquet")


def write_media_in_parts(folder: Path) -> str:
    rows = []
    for p in PROBLEMS:
        names = iter(saved(p, folder))
        content = [
            {"type": "image", "image": next(names)} if part["type"] == "image" else part
            for part in expected(p).messages[0]["content"]
        ]
        rows.append({"id": p.id, "messages": [{"role": "user", "content": content}], "answer": p.answer})
    (folder / "a.json").write_text(json.dumps(rows, indent=1))
    return str(folder / "a.json")


def write_data_uris(folder: Path) -> str:
    rows = []
    for p in PROBLEMS:
        uris = ["data:image/png;base64," + base64.b64encode(png(image)).decode() for image in p.images]
        rows.append({"uid": p.id, "problem": p.text, "images": uris, "answer": p.answer, "hint": p.cue})
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / "a.jsonl")


def write_sharegpt(folder: Path) -> str:
    rows = [
        {
            "id": int(p.id),
            "conversations": [{"from": "human", "value": p.text}, {"from": "gpt", "value": p.response}],
            "images": saved(p, folder),
            "answer": p.answer,
        }
        for p in PROBLEMS
    ]
    (folder / "a.json").write_text(json.dumps(rows))
    return str(folder / "a.json")


def write_llama_factory(folder: Path) -> str:
    rows = []
    for p in PROBLEMS:
        turns = [{"role": "user", "content": p.text}, {"role": "assistant", "content": p.response}]
        row = {"messages": turns, "id": p.id, "ground_truth": p.answer}
        # Rows without images have no such key.
        rows.append(row | ({"images": saved(p, folder)} if p.images else {}))
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(folder / "a.jsonl")


def write_saved(folder: Path) -> str:
    easy_r1().save_to_disk(folder / "saved")
    return str(folder / "saved")


def write_saved_splits(folder: Path) -> str:
    splits = {"train": easy_r1(PROBLEMS[:1]), "held_out": easy_r1()}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return f"{folder / 'saved'}@held_out"


def write_hub_folder(folder: Path) -> str:
    home = folder / "geometry"
    (home / "data").mkdir(parents=True)
    easy_r1(PROBLEMS[:2]).to_parquet(home / "data" / "train-00000-of-00002.parquet")
    easy_r1(PROBLEMS[2:]).to_parquet(home / "data" / "train-00001-of-00002.parquet")
    easy_r1(PROBLEMS[:1]).to_parquet(home / "data" / "test-00000-of-00001.parquet")
    return str(home)


def write_image_folder(folder: Path) -> str:
    home = folder / "images"
    home.mkdir()
    lines = []
    for p in ONE_IMAGE:
        p.images[0].save(home / f"{p.id}.png")
        row = {"file_name": f"{p.id}.png", "id": p.id, "problem": p.text, "answer": p.answer, "cue": p.cue}
        lines.append(json.dumps(row) + "\n")
    (home / "metadata.jsonl").write_text("".join(lines))
    return str(home)


@dataclass(frozen=True)
class Convention:
    """A way to write the problems, and the fields that it lacks."""

    write: Callable[[Path], str]
    ids: bool = True
    cue: bool = True
    response: bool = False
    problems: tuple[Problem, ...] = tuple(PROBLEMS)


CONVENTIONS = [
    Convention(write_easy_r1),
    Convention(write_relative_paths),
    Convention(write_virl39k, cue=False),
    Convention(write_verl),
    Convention(write_trl_text, ids=False),
    Convention(write_trl_messages, ids=False, response=True),
    Convention(write_media_in_parts, cue=False),
    Convention(write_data_uris),
    Convention(write_sharegpt, cue=False, response=True),
    Convention(write_llama_factory, cue=False, response=True),
    Convention(write_saved),
    Convention(write_saved_splits),
    Convention(write_hub_folder),
    Convention(write_image_folder, problems=tuple(ONE_IMAGE)),
]


def content_of(sample: Sample) -> tuple[object, ...]:
    """The comparable content of a sample, with pixels as bytes."""
    images = [(image.mode, image.size, image.tobytes()) for image in sample.images]
    kinds = ("answer", "rationale", "cue", "teacher_prompt")
    hints = [teacher_view(kind).show(sample).messages for kind in kinds]
    return (sample.messages, images, sample.videos, sample.answer, hints, sample.target_response)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: c.write.__name__.removeprefix("write_"))
def test_every_convention_loads_as_the_same_samples(tmp_path, convention):
    source = FileSource(convention.write(tmp_path))
    result = list(source)
    expected_samples = [
        expected(p, cue=convention.cue, response=convention.response) for p in convention.problems
    ]
    assert [content_of(sample) for sample in result] == [content_of(sample) for sample in expected_samples]
    assert source.bad_rows == []
    ids = [sample.id for sample in result]
    if convention.ids:
        assert ids == [sample.id for sample in expected_samples]
    else:
        assert ids == [f"{source.path.name}:{i}" for i in range(len(expected_samples))]


def test_other_columns_go_to_meta(tmp_path):
    source = FileSource(write_virl39k(tmp_path))
    assert source[0].meta == {"category": "geometry", "source": "here", "PassRate_7BTrained": 0.5}
    assert FileSource(tmp_path / "39Krelease.json")[0].meta == source[0].meta
    verl = FileSource(write_verl(tmp_path))
    assert verl[1].meta["extra_info"]["index"] == 2 and "prompt" not in verl[1].meta
    assert verl.schema["answer"] == "reward_model.ground_truth" and verl.schema["rationale"] is None


def write_rows(folder: Path, *rows: dict) -> Path:
    (folder / "a.json").write_text(json.dumps(rows))
    return folder / "a.json"


def texts(messages) -> list[tuple[str, str]]:
    def text_of(part):
        return part.get("text", f"<{part['type']}>")

    return [(message["role"], "".join(map(text_of, message["content"]))) for message in messages]


def test_columns_can_be_set_and_may_be_inside_objects(tmp_path):
    row = {"body": {"ask": "Why?", "gold": 7}, "answer": "no", "id": "a", "key": 3, "cue": "not this"}
    columns = {"question": "body.ask", "answer": "body.gold", "id": "key", "cue": ""}
    (sample,) = FileSource(write_rows(tmp_path, row), columns=columns)
    assert texts(sample.messages) == [("user", "Why?")]
    assert (sample.answer, sample.id) == ("7", "3")
    assert not Hinted("cue").applies(sample) and sample.meta["cue"] == "not this"


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"awnser": "a"},
            r"data\.columns\.awnser=a: awnser is not a field .*; the nearest is answer",
        ),
        (
            {"answer": "anser"},
            r"a\.json has no column anser \(data\.columns\.answer=anser\); .* answer",
        ),
        ({"answer": "body.god"}, r"no column body\.god .*; the nearest is body\.gold"),
    ],
)
def test_columns_that_do_not_exist(tmp_path, columns, message):
    path = write_rows(tmp_path, {"problem": "?", "answer": "7", "body": {"gold": 1}})
    with pytest.raises(ValueError, match=message):
        FileSource(path, columns=columns)


def test_the_set_system_prompt_wins_over_the_datas(tmp_path):
    chat = [{"from": "system", "value": "Theirs."}, {"from": "human", "value": "Why?"}]
    theirs = {"conversations": chat, "system": "Column."}
    path = write_rows(tmp_path, theirs, theirs | {"conversations": chat[1:]})
    first, second = FileSource(path)
    assert texts(first.messages) == [("system", "Theirs."), ("user", "Why?")]
    assert texts(second.messages) == [("system", "Column."), ("user", "Why?")]
    for sample in FileSource(path, "Ours."):
        assert texts(sample.messages) == [("system", "Ours."), ("user", "Why?")]


def test_a_teacher_keeps_the_system_message_of_its_own_prompt(tmp_path):
    own = [{"role": "system", "content": "You know it."}, {"role": "user", "content": "Why?"}]
    path = write_rows(
        tmp_path, {"problem": "?", "teacher_prompt": own}, {"problem": "?", "teacher_prompt": own[1:]}
    )
    first, second = (TeacherPrompt().show(sample) for sample in FileSource(path, "Ours."))
    assert texts(first.messages)[0] == ("system", "You know it.")
    assert texts(second.messages) == [("system", "Ours."), ("user", "Why?")]


def test_a_teacher_prompt_in_parts_shows_the_students_media(tmp_path):
    picture(0, (8, 6)).save(tmp_path / "a.png")
    prompt = [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]}]
    row = {"problem": "<image>?", "images": "a.png", "teacher_prompt": prompt}
    own = [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}]
    (sample, *_) = FileSource(write_rows(tmp_path, row))
    assert texts(TeacherPrompt().show(sample).messages) == [("user", "See <image>")]
    assert TeacherPrompt().show(sample).images == sample.images
    with pytest.raises(ValueError, match=r"there is no file b\.png"):
        FileSource(write_rows(tmp_path, row | {"teacher_prompt": own}))
    picture(1, (9, 9)).save(tmp_path / "b.png")
    (sample, *_) = FileSource(write_rows(tmp_path, row | {"teacher_prompt": own}))
    shown = view_of("teacher_prompt + images(privileged)").show(sample)
    assert [image.size for image in shown.images] == [(9, 9)] != [image.size for image in sample.images]


def test_chats_as_arrow_structs_of_lists(tmp_path):
    """`datasets.Sequence` of a dictionary makes a dictionary of lists."""
    chats = {"from": ["human", "gpt"], "value": ["Why?", "So."]}
    features = datasets.Features(
        {"conversations": datasets.Sequence({key: datasets.Value("string") for key in chats})}
    )
    datasets.Dataset.from_dict({"conversations": [chats]}, features).to_parquet(tmp_path / "a.parquet")
    (sample,) = FileSource(tmp_path / "a.parquet")
    assert texts(sample.messages) == [("user", "Why?")] and sample.target_response == "So."
    with pytest.raises(ValueError, match="not lists of different lengths"):
        FileSource(write_rows(tmp_path, {"conversations": chats | {"value": ["Why?"]}}))


def test_earlier_turns_stay_and_the_last_answer_is_the_target(tmp_path):
    contents = ("Hello <image>", "Hi.", "What is it?", "A cat.")
    chat = [{"from": who, "value": what} for who, what in zip(["human", "gpt"] * 2, contents, strict=True)]
    picture(0, (8, 6)).save(tmp_path / "a.png")
    (sample,) = FileSource(write_rows(tmp_path, {"conversations": chat, "image": "a.png"}))
    assert texts(sample.messages) == [
        ("user", "Hello <image>"),
        ("assistant", "Hi."),
        ("user", "What is it?"),
    ]
    assert sample.target_response == "A cat." and sample.answer is None


def test_media_without_a_placeholder_come_first(tmp_path):
    picture(0, (8, 6)).save(tmp_path / "a.png")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    path = write_rows(tmp_path, {"messages": chat, "images": ["a.png", "a.png"], "videos": [["a.png"] * 2]})
    (sample,) = FileSource(path)
    assert texts(sample.messages)[1] == ("user", "<image><image><video>Why?")


@pytest.mark.parametrize(
    "stated", [["one", "two"], '["one", "two"]', "['one', 'two']", {"A": "one", "B": "two", "C": None}]
)
def test_choices_are_a_list_of_texts(tmp_path, stated):
    (sample,) = FileSource(write_rows(tmp_path, {"problem": "Which?", "options": stated}))
    assert sample.meta == {"choices": ["one", "two"]}


def test_choices_that_are_no_list_are_kept_as_they_are(tmp_path):
    (sample,) = FileSource(write_rows(tmp_path, {"problem": "Which?", "options": "A or B"}))
    assert sample.meta == {"options": "A or B"}


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("\\boxed{7}", "7"),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2}", "\\boxed{1} and \\boxed{2}"),
        ("x = \\boxed{1}", "x = \\boxed{1}"),
        ("<answer>B</answer>", "B"),
        ("$5", "$5"),
        (7, "7"),
        ([" B "], "B"),
        (None, None),
        (float("nan"), None),
    ],
)
def test_gold_answers(tmp_path, gold, answer):
    (sample,) = FileSource(write_rows(tmp_path, {"problem": "?", "answer": gold}))
    assert sample.answer == answer


keys = st.sampled_from(["role", "content", "from", "value", "type", "text", "image", "video", "path", "a"])
roles = st.sampled_from(["user", "gpt", "system", "text", "image", "video", "<image>", "a<video>b", ""])
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), roles, st.text(max_size=5))
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
words = st.sampled_from(["Why?", "<image>", "<video>", "Is <image> it?", ""])
parts_of_turns = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "video"])}, optional={"text": words, "image": leaves}
)
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "user", "assistant"]),
        "content": words | st.lists(parts_of_turns, max_size=3),
    }
)
media = st.lists(st.sampled_from(["a.png", "b.mp4", None]), max_size=3) | values
chats = st.lists(turns, max_size=4)
likely = {"question": words | chats | values, "images": media, "videos": media, "teacher_prompt": chats}
plain = st.sampled_from([None, "x", "y", 7])
rows_of_anything = st.fixed_dictionaries(
    {"question": likely["question"]},
    optional={ours: plain | likely.get(ours, values) for ours in ALIASES if ours != "question"},
)


@settings(max_examples=300)
@given(rows_of_anything, st.one_of(st.none(), st.just("Be brief.")))
def test_any_row_is_a_problem_or_says_why_not(row, system_prompt):
    """No value of any type in any field raises another error, and rows that are read are valid."""
    columns = Columns(list(ALIASES), {ours: ours for ours in ALIASES}, system_prompt)
    try:
        result = columns.read(row)
    except RowProblem as problem:
        assert problem.reason
        return
    assert result.messages[-1]["role"] in ("user", "tool")
    assert result.answer is None or result.answer.strip()
    roles = [message["role"] for message in result.messages]
    assert system_prompt is None or (roles[0] == "system" and roles.count("system") == 1)
    counts = {"image": len(result.images), "video": len(result.videos)}
    assert placeholders(result.messages) == counts
    # A teacher's prompt is about the student's media, or about its own images.
    own = counts | {"image": len(result.privileged.images)}
    assert placeholders(result.teacher_prompt or result.messages) in (counts, own)


def placeholders(messages) -> dict[str, int]:
    """The number of placeholders of each kind."""
    kinds = [part["type"] for message in messages for part in message["content"]]
    return {kind: kinds.count(kind) for kind in ("image", "video")}


def test_blank_privileges_count_as_none(tmp_path):
    path = write_rows(
        tmp_path, {"problem": "?", "cue": " ", "teacher_prompt": ""}, {"problem": "?", "cue": ["a", "b"]}
    )
    first, second = FileSource(path)
    assert not Hinted("cue").applies(first) and not TeacherPrompt().applies(first)
    assert texts(Hinted("cue").show(second).messages) == [("user", "?\n[Hint]: a\nb")]
    assert Plain().show(first) == teacher_view("cue").show(first)
