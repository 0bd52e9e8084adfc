"""The audit as a whole: planted leaks are found, exact cues pass, and asking again never tells the answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.audit import (
    AskedGivens,
    AuditConfig,
    CueRow,
    ModelVerifier,
    QuestionGivens,
    RelatedGivens,
    audit_cues,
    correction,
    drop,
    repair,
    split_claims,
)
from vicur.audit.cuebench import CueBenchVerifier
from vicur.audit.findings import CATEGORIES, Flag
from vicur.cuebench.generate import scenes, to_sample, write_parquet
from vicur.cuebench.leaks import FIRST, FOURTH, LEAKS, SECOND, THIRD, plant, planted_samples
from vicur.data.sample import Privilege, Sample
from vicur.data.sources import FileSource

SETS = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH}


@pytest.fixture(scope="module", params=["segments", "chords"])
def problems(request):
    drawn = itertools.islice(scenes(request.param, "train", 5), 60)
    return [(scene, to_sample(scene)) for scene in drawn]


def rate(problems, leak, wordings):
    verifier = CueBenchVerifier({scene.key(): scene for scene, _ in problems})
    return audit_cues(planted_samples(problems, leak, wordings, 7), verifier=verifier).rate()


@pytest.mark.parametrize("wordings", SETS)
@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leaks_are_found(problems, leak, wordings):
    assert rate(problems, leak, SETS[wordings]) >= 0.95


@pytest.mark.parametrize("wordings", SETS)
def test_exact_cues_pass(problems, wordings):
    assert rate(problems, None, SETS[wordings]) <= 0.02


def test_boxes_alone_verify_as_well(problems):
    verifier = CueBenchVerifier()
    for leak in ("wrong label", "another cue"):
        samples = planted_samples(problems, leak, FIRST, 1)
        assert audit_cues(samples, verifier=verifier).rate("grounding") >= 0.95
    assert audit_cues([sample for _, sample in problems], verifier=verifier).flags == ()


def test_another_cue_has_to_be_another():
    scene = next(scenes("segments", "train"))
    with pytest.raises(ValueError, match="another scene"):
        plant(scene, "another cue", FIRST, np.random.default_rng(0), scene)


def test_kinds_of_privilege_compare(problems):
    samples = [sample for _, sample in problems]
    rates = {
        column: audit_cues(samples, AuditConfig(column=column)).rate(severity="certain")
        for column in ("cue", "rationale", "answer")
    }
    assert rates == {"cue": 0.0, "rationale": 1.0, "answer": 1.0}


def test_a_file_is_audited(tmp_path):
    write_parquet("segments", "train", 6, tmp_path / "train.parquet")
    source = FileSource(tmp_path / "train.parquet")
    report = audit_cues(source, verifier=CueBenchVerifier())
    assert report.samples == report.cues == 6 and report.claims == {"accepted": 6}
    assert report.flags == ()
    leaky = audit_cues(source, AuditConfig(column="rationale"))
    assert leaky.rate("answer") == 1.0
    assert json.loads(json.dumps(leaky.as_dict()))["categories"]["answer"]["cues"] == 6
    assert {row["id"] for row in leaky.rows()} == set(source.column("id"))


def row(own, text, shade=0, question="Find x.", answer=None):
    sample = Sample(
        id=own,
        messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},),
        images=(Image.new("RGB", (4, 4), (shade, 0, 0)),),
        answer=answer,
        privilege=Privilege(cue=text),
    )
    return CueRow(own, text, question, answer, outline=lambda: sample, sample=lambda: sample)


def broken(rows, config=None, **options):
    return {(flag.id, flag.category, flag.rule) for flag in audit_cues(rows, config, **options).flags}


@pytest.mark.parametrize(
    "text, rule",
    [
        ("", "empty"),
        ("...", "empty"),
        ("A circle.", "short"),
        ("I'm sorry, I cannot see the image.", "refusal"),
        ("I cannot view the picture that you sent.", "refusal"),
        ("the red line is next to " * 12, "repeats"),
    ],
)
def test_degenerate(text, rule):
    assert ("a", "degenerate", rule) in broken([row("a", text)])


def test_length_in_words_or_tokens():
    text = " ".join(f"word{i}" for i in range(20))
    assert broken([row("a", text)], AuditConfig(max_words=19)) == {("a", "length", "long")}
    assert broken([row("a", text)], AuditConfig(max_words=20)) == set()
    assert broken([row("a", text)], AuditConfig(max_tokens=50), count_tokens=len) == {("a", "length", "long")}
    with pytest.raises(ValueError, match="counts tokens"):
        audit_cues([row("a", text)], AuditConfig(max_tokens=5))


LONG = (
    "A large circle with its centre marked by a dot is drawn in the middle of a page, two straight lines run "
    "through it from the left to the right, and a short label stands near the point where both of them meet."
)


def test_duplicates_are_of_different_images():
    assert broken([row("a", LONG), row("b", LONG.upper())]) == set()
    found = broken([row("a", LONG), row("b", LONG.upper(), 9), row("c", "Something else is here.")])
    assert found == {("a", "duplicate", "exact"), ("b", "duplicate", "exact")}
    near = LONG.replace("large", "big")
    assert broken([row("a", LONG), row("b", near, 9)]) == {
        ("a", "duplicate", "near"),
        ("b", "duplicate", "near"),
    }
    assert broken([row("a", LONG), row("b", near, 9)], AuditConfig(similarity=1.0)) == set()


def test_other_numbers_say_something_else():
    one, other = (f"{LONG} It reads {number}." for number in (7, 8))
    assert broken([row("a", one), row("b", other, 9)]) == set()


def test_a_confirmed_duplicate_is_no_fault():
    rows = [row("a", LONG), row("b", LONG, 9)]
    assert broken(rows, verifier=lambda sample, claim: True) == set()
    assert len(broken(rows, verifier=lambda sample, claim: None)) == 2


def test_claims_are_sentences():
    claims = split_claims("The side is 2.5 cm long; the base is 4. No more")
    assert [claim.text for claim in claims] == ["The side is 2.5 cm long", "the base is 4.", "No more"]


SAID = "A red line is here. A circle is here. A dot is there."


def test_a_model_verifies_and_is_asked_in_parallel():
    running, most = 0, 0

    async def ask(sample, text):
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0)
        running -= 1
        return "No, it is blue." if "red" in text else "Yes." if "circle" in text else "Hard to say."

    rows = [row(str(i), SAID, i) for i in range(8)]
    report = audit_cues(rows, AuditConfig(concurrency=4), verifier=ModelVerifier(ask))
    assert report.claims == {"rejected": 8, "accepted": 8, "unknown": 8}
    assert {flag.excerpt for flag in report.flags if flag.rule == "rejected"} == {"A red line is here."}
    assert most == 4


def test_a_model_says_what_is_drawn_only_where_it_matters():
    asked = []

    def ask(sample, text):
        asked.append(text)
        return "yes"

    rows = [row("a", "A side is labeled 9.", answer="9"), row("b", "A side is labeled 4.", 1, answer="9")]
    assert audit_cues(rows, givens=AskedGivens(ask)).flags == ()
    assert len(asked) == 1 and '"9"' in asked[0]


def test_other_questions_about_an_image_give_values():
    rows = [
        row("a", "A side is labeled 9.", answer="9"),
        row("b", "A side is labeled.", question="The side of 9 cm is red. Find y.", answer="1"),
    ]
    assert ("a", "answer", "mentioned") in broken(rows, givens=QuestionGivens())
    assert not any(
        own == "a" and category == "answer" for own, category, _ in broken(rows, givens=RelatedGivens(rows))
    )


def test_drop():
    rows = [row("a", "The answer is 9.", answer="9"), row("b", "A side is labeled 9.", 1, answer="9")]
    report = audit_cues(rows)
    assert drop(report) == {"a"}
    assert drop(report, possible=True) == {"a", "b"}
    assert drop(report, possible=True, categories=("length",)) == frozenset()


def test_repair_asks_until_it_is_clean():
    rows = [row("a", "The answer is 9.", answer="9"), row("b", "So x = 4, says Pythagoras.", 1, answer="4")]
    replies = {"a": ["The sum is nine.", "Two lines are drawn here."], "b": ["x = 4"] * 9}
    asked = []

    def ask(sample, text):
        asked.append((sample.id, text))
        return replies[sample.id].pop(0)

    mended = repair(rows, audit_cues(rows), ask, attempts=3)
    assert mended.texts == {"a": "Two lines are drawn here."}
    assert mended.given_up == ("b",) and mended.requests == len(asked) == 5
    assert all("Your previous description" in text and "Find x." in text for _, text in asked)


def test_repair_leaves_clean_cues_alone():
    def ask(sample, text):
        raise AssertionError("nobody should be asked")

    rows = [row("a", "Two lines are drawn here.", answer="9")]
    assert repair(rows, audit_cues(rows), ask).requests == 0


@given(
    answer=st.one_of(
        st.integers(0, 999).map(str),
        st.sampled_from(["image", "no", "Your", "line", "B", "the image", "solution", "9 cm", "rule", "a"]),
    ),
    categories=st.sets(st.sampled_from(CATEGORIES), min_size=1),
)
def test_a_correction_never_holds_the_answer(answer, categories):
    text = f"The answer is {answer}."
    found = [
        Flag("a", category, "certain", 0, len(text), text, f'"{answer}" is it.') for category in categories
    ]
    note = correction(found, CueRow("a", text, "Find x.", answer))
    assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", note, re.IGNORECASE)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="stand for several samples"):
        audit_cues([row("a", "One line."), row("a", "Two lines.")])
    with pytest.raises(ValueError, match="no image at hand"):
        audit_cues([CueRow("a", "One line is here.")], verifier=lambda sample, claim: True)
    with pytest.raises(ValueError, match="checks has colour"):
        AuditConfig(checks=("colour",))
    with pytest.raises(ValueError, match="similarity"):
        AuditConfig(similarity=1.5)
    with pytest.raises(ValueError, match="attempts"):
        repair([], audit_cues([]), lambda sample, text: "", attempts=0)


def test_rates_of_nothing():
    assert audit_cues([CueRow("a", None)]).rate() == 0.0


def test_what_is_too_long_to_be_read_is_flagged():
    assert broken([row("a", "A line is drawn. " * 2 + "x" * 4000)], AuditConfig(max_words=99)) == {
        ("a", "length", "long")
    }
    text = "9" * 3000 + " and the answer is 9."
    assert ("a", "answer", "stated") in broken([row("a", text, answer="9")])
