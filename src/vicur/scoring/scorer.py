"""A model, its rows and a view: the log-probabilities of given responses.

Shape suffixes: N response tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vicur.data.rows import EncodedPrompt, PromptEncoder, Rows, build_rows
from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.models.load import LoadedModel
from vicur.scoring.vocabulary import sampled_log_probs


class Policy(nn.Module):
    """Backbone and head in one module: rows in, log-probabilities of their responses out.

    Full logits never leave it, so the head can be sharded with the rest and gathered only here.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        self.recovery = loaded.recovery
        self.vocabulary = loaded.vocabulary

    def forward(self, rows: Rows) -> Float[Tensor, " N"]:
        """log p(y_t) of every response token, at temperature 1, in nats and at least float32."""
        backbone: Any = self.model.model
        hidden_BLD = backbone(**rows.model_inputs(self.model.dtype), use_cache=False).last_hidden_state
        head: Any = self.model.lm_head
        kept = self.vocabulary.kept_ids.to(head.weight.device)
        return sampled_log_probs(rows.predicting(hidden_BLD), head.weight, rows.response_ids, kept)


class Scorer:
    """Scores responses under views.

    Args:
        loaded: the model with its processor and vocabulary.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.policy = Policy(loaded)
        self.encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index)
        self.vocabulary = loaded.vocabulary
        self.device = loaded.model.device

    def encode(self, samples: Sequence[Sample], view: View) -> list[EncodedPrompt]:
        """The prompts that the view makes of the samples."""
        return self.encoder.encode([view.show(sample) for sample in samples])

    def rows(
        self,
        prompts: Sequence[EncodedPrompt],
        responses: Sequence[Sequence[Tensor]],
        *,
        share_prompts: bool = True,
    ) -> Rows:
        """Lay prompts and their responses out, on the model's device.

        Args:
            prompts: one for each sample.
            responses: the sibling responses to each.
            share_prompts: siblings share one row and its prompt; else one row for each response.
        """
        if not share_prompts:
            prompts = [p for p, siblings in zip(prompts, responses, strict=True) for _ in siblings]
            responses = [[response] for siblings in responses for response in siblings]
        return build_rows(prompts, responses, pad_id=self.vocabulary.pad_id).to(self.device)

    @torch.no_grad()
    def log_probs(
        self,
        samples: Sequence[Sample],
        responses: Sequence[Sequence[Tensor]],
        view: View,
        *,
        samples_per_batch: int,
    ) -> Float[Tensor, " N"]:
        """log p(y_t) of given responses under a view, without gradient, in the flat order."""
        self.policy.eval()
        prompts = self.encode(samples, view)
        parts = []
        for start in range(0, len(prompts), samples_per_batch):
            part = slice(start, start + samples_per_batch)
            rows = self.rows(prompts[part], responses[part])
            _check_alignment(rows, responses[part])
            parts.append(self.policy(rows))
        return torch.cat(parts)


def _check_alignment(rows: Rows, responses: Sequence[Sequence[Tensor]]) -> None:
    """A view may change the prompt, never the response, and never by a shift of one token.

    The token after each predicting position, in the rows themselves, must be the given one; a
    sibling's first token is predicted by the prompt's last, which other siblings may follow.
    """
    given = torch.cat([ids for siblings in responses for ids in siblings]).to(rows.input_ids.device)
    inner = torch.cat([rows.response_index.new_ones(1), rows.response_index.diff()]) == 0
    following = rows.input_ids[rows.predicts_row[inner], rows.predicts_column[inner] + 1]
    assert torch.equal(following, given[inner]), "response tokens are shifted between views"
    assert torch.equal(rows.response_ids, given), "a view must not change a response"
