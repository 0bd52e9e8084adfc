"""The audit as a whole: planted leaks are found, exact cues pass, and asking again never tells the answer."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from planted_leaks import LEAKS, SETS, load_wordings, plant, planted_samples
from vicur.audit import CueRow, Verdict, audit_cues, drop, split_claims
from vicur.audit.cuebench import CueBenchVerifier
from vicur.audit.findings import CATEGORIES, Flag
from vicur.audit.repair import correction
from vicur.cuebench.generate import scenes, to_sample, write_parquet
from vicur.data.sample import Privilege, Sample
from vicur.data.sources import FileSource


@pytest.fixture(scope="module", params=["segments", "chords"])
def problems(request):
    drawn = itertools.islice(scenes(request.param, "train", 5), 60)
    return [(scene, to_sample(scene)) for scene in drawn]


def rate(problems, leak, wordings):
    verifier = CueBenchVerifier({scene.key(): scene for scene, _ in problems})
    return audit_cues(planted_samples(problems, leak, wordings, 7), verifier=verifier).rate()


@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leaks_are_found(problems, leak):
    assert rate(problems, leak, load_wordings("first")) >= 0.95


@pytest.mark.parametrize("wordings", SETS[1:])
@pytest.mark.parametrize("leak", ["answer", "words", "fraction", "wrong label", "another cue"])
def test_what_needs_no_words_is_found_in_any(problems, leak, wordings):
    """Theorems and spoken equations are not: docs/cues.md says how many wordings of them are missed."""
    assert rate(problems, leak, load_wordings(wordings)) >= 0.9


@pytest.mark.parametrize("wordings", SETS)
def test_exact_cues_pass(problems, wordings):
    assert rate(problems, None, load_wordings(wordings)) <= 0.02


def test_boxes_alone_verify_as_well(problems):
    verifier = CueBenchVerifier()
    for leak in ("wrong label", "another cue"):
        samples = planted_samples(problems, leak, load_wordings("first"), 1)
        assert audit_cues(samples, verifier=verifier).rate("grounding") >= 0.95
    assert audit_cues([sample for _, sample in problems], verifier=verifier).flags == ()


def test_another_cue_has_to_be_another():
    scene = next(scenes("segments", "train"))
    with pytest.raises(ValueError, match="another scene"):
        plant(scene, "another cue", load_wordings("first"), np.random.default_rng(0), scene)


def test_kinds_of_privilege_compare(problems):
    samples = [sample for _, sample in problems]
    rates = {
        column: audit_cues(samples, column).rate(severity="definite")
        for column in ("cue", "rationale", "answer")
    }
    assert rates == {"cue": 0.0, "rationale": 1.0, "answer": 1.0}


def test_a_file_is_audited(tmp_path):
    write_parquet("segments", "train", 6, tmp_path / "train.parquet")
    source = FileSource(tmp_path / "train.parquet")
    report = audit_cues(source, verifier=CueBenchVerifier())
    assert report.samples == report.cues == 6 and report.claims == {"accepted": 6}
    assert report.flags == ()
    leaky = audit_cues(source, "rationale")
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


def broken(rows, **options):
    return {(flag.id, flag.category, flag.rule) for flag in audit_cues(rows, **options).flags}


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


def test_length():
    words = [f"word{i}" for i in range(151)]
    assert broken([row("a", " ".join(words))]) == {("a", "length", "long")}
    assert broken([row("a", " ".join(words[:150]))]) == set()


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


def test_a_judge_flags_by_category_on_the_words_it_quotes():
    verdicts = {
        "a": Verdict({}),
        "b": Verdict({"answer": "is here", "grounding": ""}),
        "c": None,
        "d": Verdict({"reasoning": "not its words"}),
    }
    rows = [row(sample_id, f"Line {sample_id} is here.", i) for i, sample_id in enumerate(verdicts)]
    audit = audit_cues(rows, judge=lambda judged: [verdicts[each.id] for each in judged])
    assert [(flag.id, flag.category, flag.severity, flag.rule, flag.excerpt) for flag in audit.flags] == [
        ("b", "grounding", "definite", "judged", "Line b is here."),
        ("b", "answer", "definite", "judged", "is here"),
        ("d", "reasoning", "definite", "judged", "Line d is here."),
    ]
    assert audit.claims == {"accepted": 1, "rejected": 2, "unknown": 1}


def test_what_a_judge_sees_in_both_images_is_no_duplicate():
    rows = [row("a", LONG), row("b", LONG, 9)]
    assert broken(rows, judge=lambda judged: [Verdict({}), Verdict({})]) == set()
    assert len(broken(rows, judge=lambda judged: [None, None])) == 2


def test_drop():
    rows = [row("a", "The answer is 9.", answer="9"), row("b", "A side is labeled 9.", 1, answer="9")]
    report = audit_cues(rows)
    assert drop(report) == {"a"}
    assert drop(report, possible=True) == {"a", "b"}


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
        Flag("a", category, "definite", 0, len(text), text, f'"{answer}" is it.') for category in categories
    ]
    note = correction(found, CueRow("a", text, "Find x.", answer))
    assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", note, re.IGNORECASE)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="shared by several samples each"):
        audit_cues([row("a", "One line."), row("a", "Two lines.")])
    with pytest.raises(ValueError, match="has no image, so its cue cannot be verified"):
        audit_cues([CueRow("a", "One line is here.")], verifier=lambda sample, claim: True)


def test_rates_of_nothing():
    assert audit_cues([CueRow("a", None)]).rate() == 0.0


def test_what_is_too_long_to_be_read_is_flagged():
    assert broken([row("a", "A line is drawn. " * 2 + "x" * 4000)]) == {("a", "length", "long")}
    text = "9" * 3000 + " and the answer is 9."
    assert ("a", "answer", "stated") in broken([row("a", text, answer="9")])
