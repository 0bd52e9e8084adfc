"""`vicur diagnose stability`: how often a model is right, and which answers it gives."""

from __future__ import annotations

import json

import pytest

from vicur.cli.main import main
from vicur.diagnose.stability import (
    NO_ANSWER,
    Repeated,
    StabilitySettings,
    _notes,
    answers_table,
    draw_stability,
    responses_table,
    stability_settings,
)
from vicur.reporting.figures import styled
from vicur.settings.schema import schema_of
from vicur.settings.section import SettingsError

ANSWERS = ("7", "8", "7", None, "8", "8", "7.0")
CORRECT = (True, False, True, False, False, False, True)


def one_model(**changes):
    parts = {
        "problem": "a",
        "gold": "7",
        "texts": tuple(f"It is {answer}." for answer in ANSWERS),
        "lengths": (4, 5, 4, 9, 5, 5, 6),
        "answers": ANSWERS,
        "correct": CORRECT,
        "truncated": 1,
    }
    return Repeated(**parts | changes)


def test_answers_are_counted_right_ones_first():
    each = one_model()
    assert (each.right, each.share) == (3, "3/7")
    assert [(part["answer"], part["count"], part["correct"]) for part in each.counts] == [
        ("7", 2, True),
        ("7.0", 1, True),
        ("8", 3, False),
        (None, 1, False),
    ]
    assert one_model(correct=(None, *CORRECT[1:])).right == 2  # without a verdict it is not right
    values = each.as_dict()
    assert values["mean_tokens"] == pytest.approx(38 / 7) and len(values["each"]) == 7


def test_the_bars_are_the_counts():
    other = one_model(answers=("8",) * 7, correct=(False,) * 7)
    with styled():
        (panel,) = draw_stability({"first": [one_model()], "second": [other]}).axes
    widths = [[patch.get_width() for patch in container] for container in panel.containers]
    assert widths == [[2], [1], [3], [1], [7]]
    texts = [text.get_text() for text in panel.texts]
    assert "3/7 right" in texts and "0/7 right" in texts and "7" in texts
    assert NO_ANSWER[:3] in " ".join(texts)


def test_long_answers_are_cut_in_tables_only():
    long = "1 + 1\n" * 50
    each = one_model(answers=(long,) * 7, texts=(long,) * 7)
    for table in (responses_table("m", each), answers_table({"m": [each]})):
        cells = [str(cell) for column in table.columns for cell in column.cells]
        assert any("1 + 1" in cell for cell in cells)
        assert all(len(cell) < 100 and "\n" not in cell for cell in cells)
    assert each.as_dict()["each"][0]["answer"] == long


def test_the_preset_is_below_the_users_settings():
    schema = schema_of(StabilitySettings, "diagnose stability")
    user = [schema.override("model=[a]"), schema.override("sampling.top_p=0.5")]
    settings = stability_settings(schema, user)
    sampling = settings.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.presence_penalty) == (
        0.7,
        0.5,
        20,
        1.5,
    )
    assert settings.data.max_pixels == 401408 and settings.samples == 10
    with pytest.raises(SettingsError, match="all the same at temperature 0"):
        stability_settings(schema, [*user, schema.override("preset=greedy")])
    greedy = [*user, schema.override("preset=greedy"), schema.override("samples=1")]
    assert stability_settings(schema, greedy).sampling.temperature == 0
    with pytest.raises(SettingsError, match="differs between models"):
        stability_settings(schema, [*user, schema.override("preset=recipe")])


def test_cut_off_and_ungraded_responses_are_reported():
    settings = StabilitySettings(model=["m"])
    notes = " ".join(_notes({"m": [one_model(correct=(None, *CORRECT[1:]))]}, settings))
    assert "1 of 7 responses were cut off at 256 tokens" in notes and "count as not right" in notes


def test_from_the_command_line(problems, tmp_path, capsys):
    words = ["diagnose", "stability", "--model", "vicur:tiny-student", "vicur:tiny-teacher"]
    small = ["--data", problems, "--problem", "1", "--samples", "3", "--max-new-tokens", "24"]
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        assert main([*words, *small, "--output", str(out)]) == 0
    assert "Repeated answers" in capsys.readouterr().out
    values = json.loads((first / "stability.json").read_text())
    assert values == json.loads((second / "stability.json").read_text())  # the same seed
    assert set(values["models"]) == {"vicur:tiny-student", "vicur:tiny-teacher"}
    for model in values["models"].values():
        (each,) = model.values()
        assert each["responses"] == 3 == sum(part["count"] for part in each["answers"])
        assert all(0 < response["tokens"] <= 24 for response in each["each"])
        assert each["right"] == sum(response["correct"] for response in each["each"])
    assert values["sampling"]["top_k"] == 20 and (first / "stability.png").is_file()
    assert main([*words, "--data", problems, "--problem", "99"]) == 1
    assert "has no problem 99" in capsys.readouterr().err
