"""`vicur bench latency`: sizes of prompts, lengths of responses, and the arithmetic of the results."""

from __future__ import annotations

import json

import pytest

from vicur.bench.inputs import InputSize, encoded, grid_of
from vicur.bench.latency import Arm, LatencySettings, Timed, _described, latency_of_models, load_arms
from vicur.bench.timing import Spread, in_turns
from vicur.cli.main import main


@pytest.fixture(scope="module")
def augmented(shared_student, tmp_path_factory) -> str:
    """A checkpoint with cue recovery."""
    folder = tmp_path_factory.mktemp("augmented")
    shared_student.save(folder)
    return str(folder)


SMALL = {"input": ["6/40"], "runs": 2, "warm_up": 1, "max_new_tokens": 3, "decode_tokens": 4}


@pytest.mark.parametrize("text", ["64/88", "6/30", "1/20", "12/61", "35/90"])
def test_prompts_have_exactly_the_size(base, text):
    size = InputSize.read(text)
    prompt = encoded(size, base)
    visual, total = map(int, text.split("/"))
    assert int((prompt.token_types == 1).sum()) == visual and len(prompt) == total


def test_sizes_that_cannot_be():
    assert InputSize.read("1,782/1,821") == InputSize(1782, 1821)
    assert InputSize.read(str(InputSize(1782, 1821))) == InputSize(1782, 1821)
    for text in ("64", "64/64", "0/8", "a/b"):
        with pytest.raises(ValueError, match=text):
            InputSize.read(text)
    assert grid_of(64) == (8, 8) and grid_of(1782) == (33, 54) and grid_of(7) == (1, 7)


def test_a_prompt_shorter_than_its_template_is_refused(base):
    with pytest.raises(ValueError, match="a prompt has at least"):
        encoded(InputSize(6, 7), base)


def test_a_fixed_response_does_not_stop_and_a_free_one_may(base):
    """All but a stop token are forbidden, so that a free response has that one token."""
    from dataclasses import replace

    settings = LatencySettings(**SMALL).written_out(on_gpu=False)
    prompt = encoded(InputSize(6, 40), base)
    vocabulary = base.vocabulary
    allowed = {*vocabulary.stop_ids, 100}
    others = tuple(token for token in range(vocabulary.size) if token not in allowed)
    loaded = replace(base, vocabulary=replace(vocabulary, forbidden_ids=others))
    arm = Arm.of("m", loaded)
    assert set(arm.fixed.loaded.vocabulary.kept_ids.tolist()) == {100}
    assert set(arm.free.loaded.vocabulary.kept_ids.tolist()) == allowed
    numbers = arm.measure(prompt, settings, seed=0)
    assert numbers["prefill_ms"] > 0 and 1 <= numbers["free_tokens"] <= 3


def test_times_of_a_response():
    """The prompt takes 0.5 s; three tokens more are read until 0.8 s."""
    times = Timed((0.5, 0.6, 0.75, 0.8), 0.81, 4)
    assert times.prefill_ms == 500 and times.decode_ms == pytest.approx(100) and times.total_ms == 810
    assert Timed((0.5,), 0.51, 1).decode_ms is None


def test_every_pass_of_the_model_is_timed(base):
    arm = Arm.of("m", base)
    sampling = LatencySettings(**SMALL).sampling
    times = arm._answer(arm.fixed, encoded(InputSize(6, 40), base), sampling, 0)
    assert len(times.ends) == 3 == times.tokens
    assert 0 < times.ends[0] < times.ends[1] < times.ends[2] < times.total
    assert not base.model._forward_hooks


def test_overheads_are_medians_over_pairs():
    """Ratios 1.1, 1.2 and 1.5: +10, +20 and +50 %, whatever the medians of the times are."""
    pairs = [(110, 100), (240, 200), (75, 50)]

    def run(prefill):
        times = {"decode_ms": 2.0, "free_decode_ms": None, "free_tokens": 1.0, "free_total_ms": prefill}
        return {"prefill_ms": float(prefill), **times}

    model, base = ([run(pair[which]) for pair in pairs] for which in (0, 1))
    numbers = _described(model, base)
    assert numbers["prefill_overhead"]["median"] == pytest.approx(20)
    assert numbers["prefill_overhead"]["high"] == pytest.approx(50)
    assert numbers["decode_overhead"]["median"] == 0 and numbers["free_decode_ms"] is None
    assert numbers["prefill_ms"] == Spread(110, 75, 240, 3).as_dict()
    assert _described(base, base)["prefill_overhead"] is None
    assert in_turns(3, 0) == [0, 1, 2] and in_turns(3, 1) == [2, 1, 0]


def test_the_base_self_is_the_model_without_recovery(augmented):
    model, base = load_arms(LatencySettings(model=augmented))
    assert model.loaded.recovery is not None and base.loaded.recovery is None
    assert base.loaded.model is not model.loaded.model


def test_every_run_measures_both_models_in_turn(augmented, monkeypatch):
    order = []
    inner = Arm.measure

    def measure(self, prompt, settings, seed):
        order.append((self.name, seed))
        return inner(self, prompt, settings, seed)

    monkeypatch.setattr(Arm, "measure", measure)
    finding = latency_of_models(LatencySettings(model=augmented, **SMALL))
    first, second = "model", "without recovery"
    assert order == [(first, 0), (second, 0), (second, 1), (first, 1), (first, 2), (second, 2)]
    (arms,) = finding.values["inputs"].values()
    assert [len(arm["runs"]) for arm in arms.values()] == [2, 2]
    assert arms[second]["prefill_overhead"] is None and arms[first]["prefill_overhead"]["count"] == 2
    assert finding.values["dtype"] == "float32" and finding.values["decode_tokens"] == 4


def test_from_the_command_line(augmented, base_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["bench", "latency", "--model", augmented, "--base", base_folder, "--input", "6/40"]
    few = ["--runs", "1", "warm_up=0", "--max-new-tokens", "2", "--decode-tokens", "2"]
    assert main([*words, *few, "--names", "ours", "base", "--output", str(out)]) == 0
    assert "Prefill" in capsys.readouterr().out and (out / "latency.svg").is_file()
    assert set(json.loads((out / "latency.json").read_text())["inputs"]["6/40"]) == {"ours", "base"}
    assert main(["bench", "latency", "--model", base_folder, *few]) == 1
    assert "no cue recovery to leave out; set --base" in capsys.readouterr().err
    assert main([*words, "--max-new-tokens", "999999"]) == 1
    assert "new tokens exceed" in capsys.readouterr().err
