"""`vicur diagnose attention`: numbers by hand, the control, and the figure."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.data.sample import Sample
from vicur.data.sources import DataConfig
from vicur.diagnose.attention import (
    MEAN,
    AttentionSettings,
    Seen,
    _by_layer,
    _label,
    _most_attended,
    _numbers,
    attention_of_the_sink,
    draw_attention,
    question_of,
    with_question,
)
from vicur.diagnostics.attention import Picture, sink_attention
from vicur.media.video import Video


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "problems.parquet"
    write_parquet("segments", "test", 6, path)
    return str(path)


@pytest.fixture(scope="module")
def model(shared_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "recovering"
    shared_student.save(folder)
    return str(folder)


def test_the_command_writes_numbers_and_figure(data, model, tmp_path, capsys):
    words = ["--model", model, "--data", data, "--problems", "2", "--output", str(tmp_path / "out")]
    assert main(["diagnose", "attention", *words]) == 0
    printed = capsys.readouterr().out
    assert "changes nothing, at any layer, in 2 of 2 problems (difference exactly 0)" in printed
    assert "Attention shows what the module reads, not what decides the answer." in printed
    record = json.loads((tmp_path / "out/attention.json").read_text())
    assert len(record["problems"]) == 2
    for problem in record["problems"]:
        assert list(problem["layers"]) == ["0", "2", MEAN]
        assert problem["question"] != problem["control_question"] is not None
        first, second, mean = (torch.tensor(layer["maps"][0]) for layer in problem["layers"].values())
        torch.testing.assert_close(mean, (first + second) / 2, atol=1e-4, rtol=1e-3)
        for layer in problem["layers"].values():
            assert layer["control_difference"] == 0.0
            assert sum(map(sum, layer["maps"][0])) == pytest.approx(1.0, abs=1e-2)
            assert layer["even"] == pytest.approx(2 / 16), "the boxes of two digits, a cell each"
            assert 0 < layer["in_boxes"] < 1
    figure = (tmp_path / "out/attention.svg").read_text()
    assert figure.count("difference 0 at all layers") == 2
    assert (tmp_path / "out/attention.png").stat().st_size > 1000


def test_a_model_without_recovery_is_refused_in_one_line(data, base_folder, capsys):
    assert main(["diagnose", "attention", "--model", base_folder, "--data", data]) == 1
    error = capsys.readouterr().err.strip()
    assert "has no cue recovery module" in error and "\n" not in error


def test_a_head_is_one_of_the_models(data, model):
    settings = AttentionSettings(data=DataConfig(train=data), model=model, problems=1, head=4)
    with pytest.raises(ValueError, match="head must be below 4"):
        attention_of_the_sink(settings)
    numbers = [
        attention_of_the_sink(replace(settings, head=head)).values["problems"][0]["layers"]["0"]["maps"]
        for head in (0, 1)
    ]
    assert numbers[0] != numbers[1]


def seen_of(grids, boxes=(), controls=None):
    """A problem with one image of 30 x 20 pixels in 2 x 3 cells."""
    sample = Sample(
        "p",
        ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},),
        (Image.new("RGB", (30, 20)),),
        meta={"cue_boxes": [["red", "3", *box] for box in boxes]},
    )
    maps = {layer: [torch.tensor(grid)] for layer, grid in grids.items()}
    control_maps = {layer: [torch.tensor(grid)] for layer, grid in (controls or {}).items()}
    return Seen(sample, [Picture("image", 0, 0, (2, 3))], maps, sample if controls else None, control_maps)


def test_the_numbers_of_a_worked_example():
    """Weights 1/2, 1/4, 1/8, 1/8: entropy (1/2 + 1/2 + 3/8 + 3/8) log 2 = 7/4 log 2. The box has the centres
    (15, 5) and (25, 5) of the upper row: 1/4 + 1/8 against 2 of 6 cells."""
    grid = [[0.5, 0.25, 0.125], [0.0, 0.125, 0.0]]
    other = [[0.5, 0.25, 0.0625], [0.0625, 0.125, 0.0]]
    seen = seen_of({"0": grid, MEAN: grid}, [(12.0, 1.0, 30.0, 14.0)], {"0": other, MEAN: grid})
    layer = _numbers(seen)["layers"]["0"]
    assert layer["entropy"] == pytest.approx(1.75 * math.log(2))
    assert layer["entropy_share"] == pytest.approx(1.75 * math.log(2) / math.log(6))
    assert layer["in_boxes"] == pytest.approx(0.375) and layer["even"] == pytest.approx(1 / 3)
    assert layer["control_difference"] == 0.0625 and seen.largest_difference == 0.0625
    cells = [(cell["row"], cell["column"], cell["weight"]) for cell in layer["top_cells"]]
    assert cells[:3] == [(0, 0, 0.5), (0, 1, 0.25), (0, 2, 0.125)] and len(cells) == 5
    assert layer["maps"] == [grid]


def test_a_question_is_replaced_where_it_is():
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image"},
        {"type": "text", "text": "How many segments are red?"},
    ]
    long = {"type": "text", "text": "A long system prompt, longer than all."}
    sample = Sample(
        "p",
        ({"role": "system", "content": [long]}, {"role": "user", "content": content}),
        (Image.new("RGB", (30, 20)),),
    )
    assert question_of(sample) == "How many segments are red?"
    changed = with_question(sample, "Why?")
    assert changed.messages[0] == sample.messages[0] and changed.images == sample.images
    assert changed.messages[1]["content"] == [*content[:2], {"type": "text", "text": "Why?"}]


def test_the_control_is_a_problem_with_another_question(data, model):
    settings = AttentionSettings(data=DataConfig(train=data), model=model, problems=6)
    finding = attention_of_the_sink(replace(settings, control_question="Which digit is red?"))
    assert {p["control_question"] for p in finding.values["problems"]} == {"Which digit is red?"}
    problems = attention_of_the_sink(settings).values["problems"]
    assert [p["control_question"] for p in problems[:-1]] == [p["question"] for p in problems[1:]]
    assert problems[-1]["control_question"] == problems[0]["question"], "after the last comes the first"


def test_without_another_question_there_is_no_control(data, model, tmp_path):
    path = tmp_path / "alone.parquet"
    write_parquet("segments", "test", 1, path)
    finding = attention_of_the_sink(AttentionSettings(data=DataConfig(train=str(path)), model=model))
    assert finding.values["problems"][0]["control_question"] is None
    assert "1 problem without a control" in finding.notes[0]
    finding.write(tmp_path / "out")
    assert "no other question" in (tmp_path / "out/attention.svg").read_text()


def test_videos_are_drawn_by_their_frames(shared_student):
    """Nine frames: five temporal patches, of which the figure has the four with the most attention."""
    frames = tuple(Image.new("RGB", (64, 64), (20 * i, 90, 90)) for i in range(9))
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What?"}]
    sample = Sample(
        "v", ({"role": "user", "content": content},), (Image.new("RGB", (96, 64)),), (Video(frames, 2.0),)
    )
    (maps,) = sink_attention(shared_student, [sample])
    pictures = [item.picture for item in maps]
    seen = Seen(sample, pictures, _by_layer(maps, None), None, {})
    labels = [_label(seen, picture, 2).splitlines()[1] for picture in pictures]
    assert labels == ["image 1", *(f"video 1, frames {i}-{i + 1}" for i in (1, 3, 5, 7)), "video 1, frame 9"]
    chosen = _most_attended(seen)
    masses = [float(grid.sum()) for grid in seen.maps[MEAN]]
    assert len(chosen) == 4 and chosen == sorted(chosen)
    assert min(masses[i] for i in chosen) >= max(m for i, m in enumerate(masses) if i not in chosen)
    figure = draw_attention([seen])
    assert len([panel for panel in figure.axes if panel.get_title(loc="left") or panel.get_title()]) == 20
