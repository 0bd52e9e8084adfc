"""What each view shows, and that no privilege ever reaches the student."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.data.sample import Privilege, Sample
from vicur.data.views import Blind, Degraded, Hinted, Masked, Plain, TeacherPrompt, teacher_view
from vicur.media.video import Video
from vicur.scoring.scorer import Scorer


def text_of(shown):
    return "".join(p.get("text", f"<{p['type']}>") for m in shown.messages for p in m["content"])


def test_the_hint_follows_the_question_on_a_new_line(samples):
    sample = samples[0]
    plain = text_of(Plain().show(sample))
    assert text_of(Hinted("cue").show(sample)) == f"{plain}\n[Hint]: {sample.privilege.cue}"
    assert text_of(Hinted("answer").show(sample)) == f"{plain}\n[Hint]: {sample.answer}"
    assert Hinted("cue").show(sample).images == sample.images


def test_hint_goes_to_the_last_user_message(samples):
    first = samples[0].messages[0]
    chat = (
        first,
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "And then?"}]},
    )
    shown = Hinted("cue").show(replace(samples[0], messages=chat))
    assert [len(m["content"]) for m in shown.messages] == [2, 1, 2]


def test_teacher_prompt_replaces_the_messages(samples):
    prompt = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look well."}]},)
    sample = replace(samples[0], privilege=Privilege(teacher_prompt=prompt))
    assert text_of(TeacherPrompt().show(sample)) == "<image>Look well."


def test_missing_privilege(samples):
    bare = replace(samples[0], privilege=Privilege())
    assert teacher_view("cue").show(bare) == Plain().show(bare)
    assert not Hinted("cue").applies(bare) and Plain().applies(bare)
    with pytest.raises(ValueError, match="has no cue"):
        teacher_view("cue", missing="error").show(bare)


def test_blind_keeps_the_words_and_drops_the_media(samples):
    shown = Blind().show(samples[0])
    assert shown.images == () and text_of(shown) == text_of(Plain().show(samples[0]))[len("<image>") :]


def test_placeholders_must_match_media(samples):
    with pytest.raises(ValueError, match=r"1 image placeholder\(s\), but the problem has 0"):
        replace(samples[0], images=())


def tensors_of(prompt):
    return [prompt.input_ids, prompt.token_types, prompt.positions, *prompt.media.values()]


def with_media(samples, *, images=0, frames=0):
    """A problem with some images of different sizes and a video."""
    pictures = [s.images[0].resize((64 + 32 * i, 64)) for i, s in enumerate(samples)]
    content = [{"type": "image"}] * images + ([{"type": "video"}] if frames else [])
    videos = (Video(tuple(s.images[0] for s in samples[:frames]), 2.0),) if frames else ()
    message = {"role": "user", "content": [*content, {"type": "text", "text": "What is there?"}]}
    return Sample("mixed", (message,), tuple(pictures[:images]), videos)


MEDIA = [{"images": 1}, {"images": 3}, {"frames": 4}, {"images": 2, "frames": 3}]


@pytest.mark.parametrize("media", MEDIA, ids=str)
def test_degraded_and_masked_media_keep_the_visual_tokens(shared_student, samples, media):
    """Same tokens, positions and grids; only pixels differ. Every model can score under every view."""
    scorer, sample = Scorer(shared_student), with_media(samples, **media)
    plain = scorer.encode([sample], Plain())[0]
    assert (plain.token_types > 0).any()
    for view in (Degraded(), Masked()):
        other = scorer.encode([sample], view)[0]
        assert torch.equal(other.input_ids, plain.input_ids)
        assert torch.equal(other.token_types, plain.token_types)
        assert torch.equal(other.positions, plain.positions)
        for name, tensor in plain.media.items():
            assert torch.equal(other.media[name], tensor) == name.endswith("grid_thw"), name
    blind = scorer.encode([sample], Blind())[0]
    assert not blind.token_types.any() and not blind.media
    text = scorer.encoder.tokenizer.decode(blind.input_ids)
    assert "What is there?" in text and text.endswith("<|im_start|>assistant\n")
    result = [
        scorer.log_probs([sample], [[torch.tensor([11, 12])]], v)
        for v in (Plain(), Degraded(), Masked(), Blind())
    ]
    assert all(torch.isfinite(f).all() for f in result)
    assert all(not torch.equal(result[0], f) for f in result[1:])


@pytest.mark.parametrize("media", MEDIA, ids=str)
def test_media_of_all_kinds_in_one_batch_equal_one_at_a_time(shared_student, samples, media):
    """With recovery: each sink gathers from its own images and videos."""
    batch = [samples[0], with_media(samples, **media), replace(samples[1], id="other")]
    ids = [[torch.tensor([11, 12, 13])], [torch.tensor([14, 15])], [torch.tensor([16])]]
    together = Scorer(shared_student).log_probs(batch, ids, Plain())
    alone = [Scorer(shared_student).log_probs([s], [i], Plain()) for s, i in zip(batch, ids, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=2e-5)


def test_a_view_that_changes_the_visual_tokens_is_caught(shared_student, samples, monkeypatch):
    half = Image.new("RGB", (32, 32))
    with pytest.raises(AssertionError, match="must not change the size"):
        monkeypatch.setattr(Degraded, "_degrade", lambda self, image: half)
        Degraded().show(samples[0])
    scorer = Scorer(shared_student)
    scorer.encode(samples, Plain())
    with pytest.raises(AssertionError, match="changed the visual tokens of sample"):
        monkeypatch.setattr(Degraded, "show", lambda self, s: replace(Plain().show(s), images=(half,)))
        scorer.encode(samples, Degraded())


def test_degraded_destroys_detail_and_keeps_the_rest():
    """Every tenth of the side has one colour, the mean of the original."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (100, 50, 3), dtype=np.uint8)
    shown = Degraded(0.1)._degrade(Image.fromarray(pixels))
    blocks = np.asarray(shown).reshape(10, 10, 5, 10, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # 10 x 5 blocks of 10 x 10 pixels
    assert len(np.unique(blocks[:, 0, :, 0].reshape(-1, 3), axis=0)) > 40
    assert abs(np.asarray(shown).mean() - pixels.mean()) < 2
    assert np.array_equal(np.asarray(Degraded(1.0)._degrade(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_images_of_any_mode_and_size(mode):
    for size in ((1, 1), (7, 30), (53, 37)):
        image = Image.fromarray(np.full((size[1], size[0]), 200, np.uint8)).convert(mode)
        for changed in (Degraded()._degrade(image), Masked()._mask(image, "x")):
            assert changed.size == size and changed.mode not in ("P", "1")


def test_masked_blacks_out_whole_patches_with_its_probability():
    white = Image.new("RGB", (300, 200), "white")
    shown = np.asarray(Masked(0.6, 14)._mask(white, "a"))
    rows, columns = shown.shape[0] // 14, shown.shape[1] // 14
    patches = shown[: rows * 14, : columns * 14].reshape(rows, 14, columns, 14, 3)
    assert (patches == patches[:, :1, :, :1]).all()
    black = (patches[:, 0, :, 0, 0] == 0).mean()
    assert 0.5 < black < 0.7  # 294 patches: three standard deviations are 0.086
    assert set(np.unique(shown)) == {0, 255}
    assert np.array_equal(np.asarray(Masked(0.0)._mask(white, "a")), np.asarray(white))
    assert not np.asarray(Masked(1.0)._mask(white, "a")).any()


def test_masks_depend_on_sample_image_and_draw_alone(samples):
    def pixels(view, sample):
        return np.asarray(view.show(sample).images[0]).tobytes()

    one = samples[0]
    assert pixels(Masked(), one) == pixels(Masked(), one)
    assert pixels(Masked(), one) != pixels(Masked(draw=1), one)
    assert pixels(Masked(), one) != pixels(Masked(), replace(one, id="another"))
    twice = with_media([one, one], images=1)
    twice = replace(
        twice,
        messages=({"role": "user", "content": [{"type": "image"}, {"type": "image"}]},),
        images=(one.images[0], one.images[0]),
    )
    first, second = Masked(patch=8).show(twice).images
    assert np.asarray(first).tobytes() != np.asarray(second).tobytes()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Degraded(0.0), "ratio above 0"),
        (lambda: Degraded(1.5), "ratio above 0"),
        (lambda: Masked(1.2), "probability between 0 and 1"),
        (lambda: Masked(patch=0), "at least 1 pixel"),
    ],
)
def test_invalid_views(make, message):
    with pytest.raises(ValueError, match=message):
        make()


words = st.text(min_size=1, max_size=30)


@given(words, words, words, st.integers(0, 5))
def test_student_views_do_not_depend_on_answer_or_privilege(
    shared_student, samples, answer, rationale, cue, index
):
    """Bit-identical tensors whatever the answer and every privilege are; the teacher's change."""
    encoder = Scorer(shared_student).encoder
    sample = samples[index]
    other: Sample = replace(
        sample,
        answer=answer,
        privilege=Privilege(answer, rationale, cue, ({"role": "user", "content": []},)),
        target_response=rationale,
    )
    for view in (Plain(), Blind(), Degraded(), Degraded(0.5), Masked(), Masked(0.3, 8, draw=7)):
        ours, theirs = encoder.encode([view.show(sample), view.show(other)])
        pairs = list(zip(tensors_of(ours), tensors_of(theirs), strict=True))
        assert pairs and all(torch.equal(a, b) for a, b in pairs)
    if cue != sample.privilege.cue:
        ours, theirs = encoder.encode([Hinted("cue").show(sample), Hinted("cue").show(other)])
        assert not torch.equal(ours.input_ids, theirs.input_ids)
