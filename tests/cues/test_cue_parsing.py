"""From replies to cues: what models send in place of what they were asked for."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.cues.parsing import Unusable, cue_of, parse_reply
from vicur.endpoints.request import Reply

CUE = "Two chords cross; one is labelled 4 and 6."


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"cue": CUE}),
        json.dumps({"Visual Cue": CUE}),
        json.dumps({"visual_cue": CUE, "confidence": 0.9}),
        json.dumps([{"cue": CUE}]),
        json.dumps({"cue": CUE.split("; ")}).replace("cross", "cross;"),
        f"```json\n{json.dumps({'cue': CUE})}\n```",
        f"Here it is:\n```json\n{json.dumps({'cue': CUE})}\n```\nI hope it helps!",
        f"Sure: {json.dumps({'cue': CUE})} Anything else?",
        f'Let {{x}} be. {{"thought": 1}} {json.dumps({"cue": CUE})}',
        f"<think>The answer is {{17}}.</think>\n{json.dumps({'cue': CUE})}",
        json.dumps({"cue": CUE})[:-1],
        json.dumps({"cue": CUE})[:-2],
        json.dumps({"cue": f"{CUE} And then it"})[:-4],
        f"```json\n{json.dumps({'cue': CUE})[:-1]}",
        CUE,
        f'"{CUE}"',
        f"Cue: {CUE}",
        f"**Visual cue:** {CUE}",
        f"```\n{CUE}\n```",
        f'{{"cue": "{CUE}",}}',
    ],
)
def test_the_cue_is_found(text):
    assert parse_reply(text) == CUE


def test_line_breaks_and_latex_inside_a_string_are_forgiven():
    assert parse_reply('{"cue": "One.\nTwo."}') == "One.\nTwo."
    assert parse_reply(r'{"cue": "An angle \alpha."}') == r"An angle \alpha."


def test_a_reply_that_was_cut_off_keeps_its_whole_sentences():
    assert parse_reply("A circle. A radius of 3.5 cm. A cho", cut_off=True) == "A circle. A radius of 3.5 cm."
    assert parse_reply('{"cue": "A circle. A cho', cut_off=True) == "A circle."
    assert parse_reply('{"cue": "red 4"}', cut_off=True) == "red 4"  # the object is whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"cue": ""}', "an empty text"),
        ('{"cue": "A circle with a ra', "cut off before the end of its first sentence"),
        ('{"cu', "broken JSON"),
        ("{", "broken JSON"),
        ('{"error": "overloaded"}', 'without "cue"; it has error'),
        ('{"cue": 3}', "is a int"),
        ('{"cue": {"a": "b"}}', "is a dict"),
        ("<think>Let me see. It shows", "still thinking"),
        ('Ah.</think>{"cue": "A box."}<think>Or rather', "still thinking"),
        ("I see a box.\n</think>\n", "is empty"),
        ("```json\n{}\n```", "without"),
        ("[]", "is a list"),
    ],
)
def test_what_has_no_cue_says_why(text, reason):
    with pytest.raises(Unusable, match=reason):
        parse_reply(text)


DRAFT = json.dumps({"cue": "A draft with the answer 12."})


@pytest.mark.parametrize("opening", ["", "<think>", "<thinking>\n", "<think>a</think><think>"])
@pytest.mark.parametrize(
    "reply", [json.dumps({"cue": CUE}), f"```json\n{json.dumps({'cue': CUE})}\n```", CUE]
)
def test_a_draft_inside_of_thoughts_is_no_cue(opening, reply):
    closing = "</thinking>" if "thinking" in opening else "</think>"
    assert parse_reply(f"{opening}Perhaps {DRAFT}? No: {DRAFT}{closing}\n\n{reply}") == CUE


def test_a_tag_inside_of_a_whole_object_belongs_to_the_cue():
    text = "The sign reads </think>, in red."
    assert parse_reply(json.dumps({"cue": text})) == text


def test_a_draft_in_thoughts_that_were_cut_off_is_no_cue():
    aloud = (
        "Let me look at the image closely. There are two chords, and the question asks for the product, so "
    )
    with pytest.raises(Unusable, match="think aloud") as caught:
        parse_reply(f"{aloud}perhaps {DRAFT}. But", cut_off=True)
    assert not caught.value.again
    assert parse_reply(f"Sure, here is the cue: {json.dumps({'cue': CUE})} And", cut_off=True) == CUE


@pytest.mark.parametrize(
    "cut_off, advice", [(True, "--asking.max_tokens"), (False, "without its reasoning parser")]
)
def test_words_in_the_reasoning_field_are_named(cut_off, advice):
    with pytest.raises(Unusable, match="reasoning field") as caught:
        cue_of(Reply("", thoughts="Let me see", cut_off=cut_off))
    assert advice in str(caught.value) and "enable_thinking: false" in str(caught.value)
    assert not caught.value.again
    assert cue_of(Reply(json.dumps({"cue": CUE}), thoughts=DRAFT, cut_off=cut_off)) == CUE


def test_what_no_file_can_hold_is_left_out():
    assert parse_reply('{"cue": "a\\ud800b\\u0000c\\td"}') == "a?bc\td"


def test_another_field_is_asked_for_by_its_name():
    assert parse_reply('{"rationale": "So it is 3."}', "rationale") == "So it is 3."
    with pytest.raises(Unusable):
        parse_reply('{"cue": "So it is 3."}', "rationale")


@pytest.mark.parametrize("text", ["{" * 20_000, "[" * 20_000, '{"a":' * 20_000, "```" * 5_000, '"' * 9_999])
def test_hostile_replies_end(text):
    with contextlib.suppress(Unusable):
        parse_reply(text)


@given(st.text(alphabet='{}[]":,\\ncue`thik<>/. \n\ud800', max_size=60))
def test_any_reply_gives_a_text_or_a_reason(text):
    try:
        cue = parse_reply(text)
    except Unusable as error:
        assert str(error)
    else:
        assert cue.strip() and cue.encode()


@given(st.text(min_size=1).filter(str.strip))
def test_any_cue_in_proper_json_comes_back(cue):
    try:
        cue.encode()
    except UnicodeEncodeError:
        return
    kept = "".join(c for c in cue if c in "\n\t" or (c >= " " and c != "\x7f")).strip()
    if kept:
        assert parse_reply(json.dumps({"cue": cue})) == kept


@given(st.integers(0, 200))
def test_json_cut_anywhere_gives_whole_sentences_or_a_reason(cut):
    text = json.dumps({"cue": 'A "red" box. A line, 3.5 long. Both meet at P.'})[:cut]
    try:
        cue = parse_reply(text, cut_off=True)
    except Unusable:
        return
    assert cue in (
        'A "red" box.',
        'A "red" box. A line, 3.5 long.',
        'A "red" box. A line, 3.5 long. Both meet at P.',
    )
