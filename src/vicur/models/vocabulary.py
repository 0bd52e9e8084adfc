"""The tokens that are sampled and scored, and a check that two models share them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

ScoringVocabulary = Literal["sampleable", "shared"]
""""sampleable": the tokens that a response may consist of. "shared": every token of the tokenizer."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that are sampled and scored.

    Rows of the head beyond the tokenizer's tokens are padding and always cut off. Media and chat special
    tokens, except the stop tokens, are never sampled: a sampled image placeholder would make every later
    scoring fail. Whether they keep their share of the probability in scoring is a setting,
    `scoring.vocabulary`.

    Attributes:
        size: number of tokens of the tokenizer; logits beyond are cut off.
        forbidden_ids: special tokens that a response cannot contain, sorted.
        stop_ids: tokens that end a response.
        pad_id: token that pads short sequences.
    """

    size: int
    forbidden_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    pad_id: int

    @classmethod
    def of(cls, model: Any, processor: Any) -> Vocabulary:
        """The vocabulary of a model and its processor.

        Raises:
            ValueError: the checkpoint names no token that ends a response, or one that does not exist.
        """
        return cls.from_settings(model.config, model.generation_config.eos_token_id, processor.tokenizer)

    @classmethod
    def from_settings(cls, config: Any, stop: Any, tokenizer: Any) -> Vocabulary:
        """The vocabulary of a checkpoint, without its weights.

        Args:
            config: configuration of the model.
            stop: eos_token_id of its generation configuration; None for the tokenizer's.
            tokenizer: its tokenizer.

        Raises:
            ValueError: as in `of`.
        """
        if stop is None:
            stop = tokenizer.eos_token_id
        stop_ids = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
        special = {
            *tokenizer.all_special_ids,
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        }
        pad_id = tokenizer.pad_token_id
        size = min(len(tokenizer), config.text_config.vocab_size)
        if not stop_ids:
            raise ValueError("The checkpoint's eos_token_id in generation_config.json is an empty list.")
        _check_ids("eos_token_id in generation_config.json", stop_ids, size)
        _check_ids("pad_token in tokenizer_config.json", () if pad_id is None else (pad_id,), size)
        return cls(
            size=size,
            forbidden_ids=tuple(sorted(special - set(stop_ids))),
            stop_ids=stop_ids,
            pad_id=stop_ids[0] if pad_id is None else pad_id,
        )

    @cached_property
    def kept_ids(self) -> Int[Tensor, " V"]:
        """The ids that a response may consist of, ascending."""
        allowed = torch.ones(self.size, dtype=torch.bool)
        allowed[[i for i in self.forbidden_ids if i < self.size]] = False
        return allowed.nonzero()[:, 0]

    def scored_ids(self, which: ScoringVocabulary) -> Int[Tensor, " V"]:
        """The ids over which distributions are normalised and compared, ascending.

        Args:
            which: "sampleable" removes the forbidden ids, "shared" keeps them.
        """
        return self.kept_ids if which == "sampleable" else torch.arange(self.size)


def _check_ids(where: str, ids: tuple[Any, ...], size: int) -> None:
    """Check that ids are those of tokens, of which there are `size`."""
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            raise ValueError(
                f"The checkpoint's {where} is {token!r}, and its tokens have the ids from 0 to {size - 1}."
            )


def check_same_vocabulary(student: Any, teacher: Any) -> None:
    """Make sure that two tokenizers give every token the same id.

    Raises:
        ValueError: they differ; the message names both sizes and the first differing token.
    """
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    if student_vocab == teacher_vocab:
        return
    by_id = {i: token for token, i in teacher_vocab.items()}
    for token, i in sorted(student_vocab.items(), key=lambda item: item[1]):
        if by_id.get(i) != token:
            other = repr(by_id[i]) if i in by_id else "unused"
            difference = f"id {i} is {token!r} for the student and {other} for the teacher"
            break
    else:
        i = min(set(by_id) - set(student_vocab.values()))
        difference = f"id {i} is unused for the student and {by_id[i]!r} for the teacher"
    raise ValueError(
        "Student and teacher have different vocabularies "
        f"({len(student_vocab)} and {len(teacher_vocab)} tokens): {difference}. A teacher can score the "
        "student's tokens only if every id means the same token to both."
    )
