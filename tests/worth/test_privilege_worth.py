from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from vicur.cuebench.generate import scenes, to_sample
from vicur.diagnostics.gap import means_by_part
from vicur.models.load import load_model
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.engines import make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.scorer import Scorer
from vicur.worth.measure import PrivilegeConfig, PrivilegeTokens, measure_privileges
from vicur.worth.report import rank_lines, reading, worth_table
from vicur.worth.responses import StudentResponses, sample_responses
from vicur.worth.summary import privilege_worth


def tokens_of(problems, lengths, correct, lift, shift=None, information=None) -> PrivilegeTokens:
    """A teacher that gives log-prob -1 to everything, and -1 + lift with the cue."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    lift = torch.tensor(lift, dtype=torch.float64)
    plain = torch.full_like(lift, -1.0)
    return PrivilegeTokens(
        kinds=("cue",),
        samples=tuple(problems),
        response_numbers=tuple(range(len(lengths))),
        correct=tuple(correct),
        texts=("",) * len(lengths),
        ids_N=torch.zeros(len(index), dtype=torch.long),
        response_index_N=index,
        log_probs={"plain": plain, "cue": plain + lift, "another_cue": plain - 1},
        shifts={"cue": lift.abs() if shift is None else torch.tensor(shift), "another_cue": lift.abs()},
        information={} if information is None else {"cue": torch.tensor(information)},
        information_above={} if information is None else {"cue": 2 * torch.tensor(information)},
        num_texts={} if information is None else {"cue": torch.tensor([2, 2, 0])},
    )


# Problem a: a correct response of 4 tokens and an incorrect one of 2; problem b: a correct one of 1.
WORKED = (["a", "a", "b"], [4, 2, 1], [True, False, True], [0.1, 0.2, 0.3, 0.4, -1.0, -2.0, 5.0])


def test_certainty_worked_out():
    worth = privilege_worth(tokens_of(*WORKED))
    cue = worth["cue"]
    assert cue.correct.per_token.value == pytest.approx((1.0 + 5.0) / 5)
    assert cue.correct.per_response.value == pytest.approx((1.0 + 5.0) / 2)
    assert cue.correct.level.value == pytest.approx(-1 + 6 / 5)
    assert (cue.correct.responses, cue.incorrect.responses, cue.all.responses) == (2, 1, 3)
    assert cue.incorrect.per_token.value == pytest.approx(-1.5)
    assert cue.all.per_token.value == pytest.approx(3.0 / 7)
    assert cue.discrimination.value == pytest.approx(1.2 + 1.5)
    # First halves: tokens 1 and 2 of 4, and the only one of 1.
    assert cue.correct.parts["half_1"].value == pytest.approx((0.1 + 0.2 + 5.0) / 3)
    assert cue.correct.parts["half_2"].value == pytest.approx(0.35)
    assert worth["plain"].correct.per_token.value == 0 and worth["plain"].shift is None
    assert (worth.problems, worth.responses, worth.graded, worth.correct) == (2, 3, 3, 2)
    # Drawing a twice, a and b, or b twice: 0.25, 1.2 or 5.
    assert (cue.correct.per_token.low, cue.correct.per_token.high) == pytest.approx((0.25, 5.0))


def test_a_difference_is_paired():
    """Another's cue takes exactly one nat from every token more than the cue gives: no uncertainty left."""
    problems, lengths, correct, lift = WORKED
    tokens = tokens_of(problems, lengths, correct, lift)
    shifted = {**tokens.log_probs, "another_cue": tokens.log_probs["cue"] - 1}
    (found,) = privilege_worth(replace(tokens, log_probs=shifted)).comparisons
    assert (found.ours, found.theirs, found.responses) == ("cue", "another_cue", "correct")
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx((1, 1, 1))


def test_shift_by_part_is_the_one_of_the_gap_and_bins_double():
    generator = np.random.default_rng(0)
    lengths = [9, 1, 4]
    shift = generator.random(14).tolist()
    tokens = tokens_of(["a", "b", "c"], lengths, [None] * 3, [0.0] * 14, shift)
    found = privilege_worth(tokens)["cue"].shift
    expected = means_by_part(tokens.shifts["cue"], tokens.response_index_N, "x")
    assert found.whole.value == pytest.approx(expected.pop("x_whole"))
    assert {f"x_{name}": one.value for name, one in found.parts.items()} == pytest.approx(expected)
    assert [(b.first, b.end, b.tokens) for b in found.positions] == [
        (0, 1, 3),
        (1, 3, 4),
        (3, 7, 5),
        (7, 15, 2),
    ]
    assert found.positions[0].estimate.value == pytest.approx((shift[0] + shift[9] + shift[10]) / 3)


def test_information_is_of_problems_with_several_texts():
    nothing = float("nan")
    worth = privilege_worth(tokens_of(*WORKED, information=[0.1, 0.1, 0.2, 0.2, 0.3, 0.3, nothing]))
    found = worth["cue"].information
    assert found.estimate.value == pytest.approx(0.2) and found.above.value == pytest.approx(0.4)
    assert found.bound == pytest.approx(math.log(2)) and found.problems == 1
    assert worth["another_cue"].information is None
    json.dumps(worth.as_dict(), allow_nan=False)


def test_problems_are_drawn_and_not_tokens():
    """Ten times the tokens of the same problems are no reason for a narrower interval."""
    lift = np.random.default_rng(1).normal(size=20)
    names = [f"{i:02}" for i in range(20)]
    few = privilege_worth(tokens_of(names, [1] * 20, [True] * 20, lift.tolist()))
    many = privilege_worth(tokens_of(names, [10] * 20, [True] * 20, lift.repeat(10).tolist()))
    one, other = few["cue"].correct.per_token, many["cue"].correct.per_token
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    # About the textbook's interval: 1.96 standard errors.
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * lift.std() / 20**0.5, rel=0.1)


def test_the_order_of_problems_does_not_move_an_interval():
    names, lift = [f"{i}" for i in range(12)], np.random.default_rng(2).normal(size=12)
    first = privilege_worth(tokens_of(names, [1] * 12, [True] * 12, lift.tolist()))
    turned = privilege_worth(tokens_of(names[::-1], [1] * 12, [True] * 12, lift[::-1].tolist()))
    one, other = first["cue"].correct.per_token, turned["cue"].correct.per_token
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_without_grades_all_responses_count():
    worth = privilege_worth(tokens_of(WORKED[0], WORKED[1], [None] * 3, WORKED[3]))
    assert worth["cue"].correct is None and worth["cue"].discrimination is None
    assert worth.comparisons[0].responses == "all" and worth.graded == 0
    assert worth.rankings == {"certainty": ["cue"], "shift": ["cue"]}


def printed(worth) -> str:
    console = Console(width=80, record=True)
    console.print(worth_table(worth))
    return console.export_text()


def test_the_table_fits_80_columns_and_leaves_nothing_out(capsys):
    nothing = float("nan")
    worth = privilege_worth(tokens_of(*WORKED, information=[0.1, 0.1, 0.2, 0.2, 0.3, 0.3, nothing]))
    text = printed(replace(worth, left_out=3))
    words = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "+1.200 ±2.375" in text and "-1.500 ±0.000" in text and "shuffled cue" in text
    assert (
        "2 of 3" in words
        and "at most log n = 0.69" in words
        and "skipped without a text: 3 problems" in words
    )
    ungraded = privilege_worth(tokens_of(WORKED[0], WORKED[1], [None] * 3, WORKED[3]))
    assert "right" not in printed(ungraded) and "3 responses" in " ".join(printed(ungraded).split())


def test_the_reading_says_what_is_and_is_not_shown():
    found = reading(privilege_worth(tokens_of(*WORKED)))
    assert found.startswith(
        "Given the cue, the teacher's log-prob of correct responses is higher than its log-prob without a "
        "hint (+1.200 [+0.250, +5.000] nats per token) and is higher than its log-prob given another "
        "problem's cue (+2.200 [+1.250, +6.000]). "
    )
    assert "by luck" in found
    ungraded = reading(privilege_worth(tokens_of(WORKED[0], WORKED[1], [None] * 3, WORKED[3])))
    assert "log-prob of all responses does not differ clearly from" in ungraded and "luck" not in ungraded


def test_kinds_are_ranked_as_measured():
    """The answer adds half a nat to every correct token that the cue adds less to; the rationale adds
    to one what it takes from the other, which cannot be told apart from the cue."""
    tokens = tokens_of(["a", "b", "c"], [1, 1, 1], [True, True, False], [0.1, 0.1, -1.0])
    plain = tokens.log_probs["plain"]
    log_probs = {
        **tokens.log_probs,
        "answer": plain + torch.tensor([0.6, 0.6, 0.0]),
        "rationale": plain + torch.tensor([1.1, -1.1, 0.0]),
    }
    shifts = {
        name: torch.full((3,), value) for name, value in (("cue", 0.3), ("answer", 0.1), ("rationale", 0.2))
    }
    worth = privilege_worth(
        replace(tokens, kinds=("cue", "rationale", "answer"), log_probs=log_probs, shifts=shifts)
    )
    assert worth.rankings == {
        "certainty": ["answer", "cue", "rationale"],
        "discrimination": ["cue", "answer", "rationale"],
        "shift": ["cue", "rationale", "answer"],
    }
    lines = rank_lines(worth)
    assert lines[0].endswith("if none is correct): answer +0.600 > cue +0.100 ~ rationale +0.000.")
    assert lines[1].endswith("cue +1.100 > answer +0.600 > rationale +0.000.") and len(lines) == 3
    assert rank_lines(privilege_worth(tokens)) == []


def reads_and_answers(response: str, gold: str, meta) -> bool | None:
    """Whether a CueBench response reads every label rightly and then answers rightly."""
    read = all(f"{name} {value}" in response for name, value, *_ in meta["cue_boxes"])
    return read and response.endswith(f"The answer is {gold}.")


@pytest.fixture(scope="module")
def out_of_domain():
    """CueBench problems with faint digits, and four responses of the shipped student to each."""
    samples = [to_sample(scene) for scene in itertools.islice(scenes("segments", "test_ood"), PROBLEMS)]
    student = load_model("vicur:tiny-student")
    strict = Grader(RewardConfig(function=f"{__file__}:reads_and_answers"))
    sampling = SamplingConfig(max_new_tokens=40)
    return samples, sample_responses(
        make_engine(student), samples, group_size=4, sampling=sampling, grader=strict
    )


PROBLEMS = 90
CUES = PrivilegeConfig(kinds=("cue",), blind_hinted=False, blind=False)


def test_a_true_cue_raises_the_certainty_of_correct_responses_and_anothers_lowers_it(out_of_domain):
    """As scored by the larger teacher, on hard images: responses that read and answer correctly."""
    samples, responses = out_of_domain
    worth = privilege_worth(
        measure_privileges(Scorer(load_model("vicur:tiny-teacher")), samples, responses, CUES)
    )
    own, other = worth["cue"], worth["another_cue"]
    assert own.correct.per_token.low > 0 > other.correct.per_token.high
    assert own.correct.per_response.low > 0 > other.correct.per_response.high
    assert own.incorrect.per_token.high < 0 and own.discrimination.low > 0.1
    assert own.discrimination.low > other.discrimination.high, "another's cue cannot tell right from wrong"
    assert worth.comparisons[0].difference.low > 0.5


def test_a_self_teacher_can_only_tell_right_from_wrong(out_of_domain):
    """On what it wrote itself no hint raises its certainty on the mean: that is -KL(q || q^z)."""
    samples, responses = out_of_domain
    worth = privilege_worth(
        measure_privileges(Scorer(load_model("vicur:tiny-student")), samples, responses, CUES)
    )
    own, other = worth["cue"], worth["another_cue"]
    assert own.all.per_token.high < 0
    assert own.discrimination.low > 0.1 and own.correct.per_token.low > other.correct.per_token.high


def test_contradicting_cues_carry_information_and_equal_ones_none():
    """The teacher believes what it is told: of four equally likely readings a token of a solution says
    at most log 4 = 1.386 nats, a label about all of it."""
    samples = [to_sample(scene) for scene in itertools.islice(scenes("segments", "test"), 8)]
    teacher = load_model("vicur:tiny-teacher")
    given = [teacher.processor.tokenizer(s.target_response)["input_ids"] for s in samples]
    responses = StudentResponses(
        tuple(range(8)),
        tuple((torch.tensor(ids),) for ids in given),
        tuple((s.target_response,) for s in samples),
        ((True,),) * 8,
    )
    config = replace(CUES, shuffled=False)
    contradicting = {"cue": {s.id: [contradicted(s.privilege.cue, by) for by in range(4)] for s in samples}}
    tokens = measure_privileges(Scorer(teacher), samples, responses, config, several=contradicting)
    found = privilege_worth(tokens)["cue"].information
    assert found.estimate.low > 0.1 and found.above.value > found.estimate.value
    assert 1.0 < tokens.information["cue"].max() <= math.log(4) + 1e-6
    equal = {"cue": {s.id: [s.privilege.cue] * 4 for s in samples}}
    tokens = measure_privileges(Scorer(teacher), samples, responses, config, several=equal)
    assert tokens.information["cue"].abs().max() <= 1e-6


def contradicted(cue: str, by: int) -> str:
    """The cue with other digits."""
    return re.sub(r"\d", lambda digit: str((int(digit.group()) - 1 + 2 * by) % 9 + 1), cue)
