"""Turns logits into the distribution that is sampled from.

Shape suffixes: B sequences, V kept vocabulary entries.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vicur.settings.section import NonNegative, Number, PositiveShare, TokenCount, section
from vicur.vllm.settings import EngineName


@section
class SamplingConfig:
    """Settings for sampling responses."""

    temperature: NonNegative = 1.0
    """Sampling temperature; 0 for greedy decoding."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling: sample from the smallest set of most likely tokens whose probabilities sum to at
    least this; 1 to disable."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from only this many most likely tokens; 0 to disable."""
    presence_penalty: Number = 0.0
    """Amount subtracted from the logit of every token that the response already contains."""
    max_new_tokens: TokenCount = 256
    """Maximum length of a response in tokens; a longer one is cut off."""

    def check_engine(self, engine: EngineName) -> None:
        """Check that an engine can sample like this.

        Raises:
            ValueError: it cannot.
        """
        if engine == "torch" or (self.temperature <= 2 and abs(self.presence_penalty) <= 2):
            return
        raise ValueError(
            f"engine={engine} takes temperatures of at most 2 and presence penalties from -2 to 2, not "
            f"temperature={self.temperature:g} and presence_penalty={self.presence_penalty:g}. Change them, "
            "or set engine=torch."
        )

    @property
    def is_policy(self) -> bool:
        """Whether responses are sampled from the model's own, unchanged distribution."""
        return (self.temperature, self.top_p, self.top_k, self.presence_penalty) == (1, 1, 0, 0)


def sampling_log_probs(
    logits_BV: Float[Tensor, "B V"], present_BV: Float[Tensor, "B V"], config: SamplingConfig
) -> Float[Tensor, "B V"]:
    """Log-probabilities, in nats, of the distribution that is sampled from; -inf for tokens that are cut off.

    The order is the usual one: presence penalty, temperature, top-k, top-p. Greedy sampling keeps
    only the most likely token.

    Args:
        logits_BV: the model's logits.
        present_BV: 1 where the response already contains the token.
        config: settings for sampling.
    """
    logits = logits_BV.double() - config.presence_penalty * present_BV
    if config.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        mass = ordered.softmax(-1)
        before = mass.cumsum(-1) - mass  # the token that crosses the limit is still kept
        cut = (before >= config.top_p).scatter(-1, order, before >= config.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits.log_softmax(-1)
