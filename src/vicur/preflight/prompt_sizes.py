"""Sizes of the prompts of a run, for the estimate of its memory and for the check of their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vicur.encoding.lengths import MeasuredProblem, Role


@dataclass(frozen=True)
class PromptSizes:
    """Sizes of the prompts that one model is shown.

    Attributes:
        problems: number of problems measured.
        mean_tokens, most_tokens: mean and maximum length of a prompt, media included.
        longest: id of the problem with the longest prompt.
        mean_visual, most_visual: visual tokens of a prompt.
        mean_raw: pixels of a prompt's images and frames before the processor resizes them.
    """

    problems: int
    mean_tokens: float
    most_tokens: int
    longest: str
    mean_visual: float
    most_visual: int
    mean_raw: float

    @classmethod
    def of(cls, measured: Sequence[MeasuredProblem], role: Role) -> PromptSizes:
        """Summarise the prompts of one reader.

        Args:
            measured: the problems, at least one.
            role: the reader.
        """
        sizes = [problem.sizes[role] for problem in measured]
        longest = max(range(len(sizes)), key=lambda index: sizes[index].tokens)
        return cls(
            problems=len(sizes),
            mean_tokens=sum(size.tokens for size in sizes) / len(sizes),
            most_tokens=sizes[longest].tokens,
            longest=measured[longest].id,
            mean_visual=sum(size.visual_tokens for size in sizes) / len(sizes),
            most_visual=max(size.visual_tokens for size in sizes),
            mean_raw=sum(size.raw_pixels for size in sizes) / len(sizes),
        )

    def visual_of(self, prompts: int) -> float:
        """Visual tokens in a batch of prompts that includes the largest."""
        return self.most_visual + (prompts - 1) * self.mean_visual if prompts else 0.0
