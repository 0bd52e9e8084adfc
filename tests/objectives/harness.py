"""From the references' batches to the library's inputs: logits become hidden states and heads."""

from __future__ import annotations

import torch
from torch import Tensor

from vicur.objectives.objective import (
    OLD,
    REFERENCE,
    TEACHER,
    TEACHER_PLAIN,
    ScoredTokens,
)
from vicur.objectives.policy import STUDENT_MASKED
from vicur.objectives.visual_advantage import TEACHER_DEGRADED
from vicur.objectives.visual_steering import STUDENT_BLIND, TEACHER_BLIND
from vicur.scoring.chunks import Reading, observed_terms, sampled_log_probs, weighted_terms
from vicur.scoring.term import Scores, Term
from vicur.scoring.terms import reverse_kl

LOOKS = (TEACHER, TEACHER_PLAIN, TEACHER_DEGRADED, TEACHER_BLIND, STUDENT_BLIND)


def flatten(batch, name) -> Tensor:
    return torch.cat([getattr(response, name).detach() for prompt in batch for response in prompt])


def identity(logits: Tensor, width: int = 0) -> Scores:
    """Hidden states that are the logits, and a head that passes them through; more columns change nothing."""
    tokens, words = logits.shape
    head = torch.cat([torch.eye(words), torch.zeros(words, width)], 1).to(logits)
    return Scores(torch.cat([logits, torch.ones(tokens, width).to(logits)], 1), head)


class Batch:
    """A reference batch as the library sees it.

    Args:
        batch: what the reference takes.
        chunk_size: tokens of a chunk.
        removed: logits of words that are not in the scoring vocabulary, by id; every model has them.
    """

    def __init__(self, batch, chunk_size=None, removed=None) -> None:
        removed = removed or {}
        words = flatten(batch, "student").shape[1] + len(removed)
        self.kept = torch.tensor([i for i in range(words) if i not in removed])

        def logits(name):
            own = flatten(batch, name)
            every = own.new_zeros(len(own), words)
            every[:, self.kept] = own
            for i, value in removed.items():
                every[:, i] = value
            return every

        self.student = identity(logits("student"))
        head = self.student.head_WD
        self.scores = {
            name: identity(logits(name), width=3 if name.startswith("teacher") else 0) for name in LOOKS
        }
        self.scores[STUDENT_BLIND] = Scores(logits(STUDENT_BLIND), head)
        ids = self.kept[flatten(batch, "ids")]
        self.reading = Reading(ids, self.kept, chunk_size)
        lengths = torch.tensor([len(response.ids) for prompt in batch for response in prompt])
        group_sizes = torch.tensor([len(prompt) for prompt in batch])
        log_probs = {name: sampled_log_probs(self.scores[name], self.reading) for name in LOOKS}
        log_probs |= {
            OLD: flatten(batch, "old_log_probs"),
            REFERENCE: log_probs[TEACHER_PLAIN],
            STUDENT_MASKED: flatten(batch, "masked_log_probs"),
        }
        kl = Term("kl", lambda b: reverse_kl(b.log_p_CV, b.distribution("blind")), reads=("blind",))
        blind = {"blind": self.scores[TEACHER_BLIND]}
        self.scored = ScoredTokens(
            response_index=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
            prompt_index=torch.repeat_interleave(torch.arange(len(group_sizes)), group_sizes),
            log_probs=log_probs,
            divergences={"vds": observed_terms(self.scores[TEACHER], self.reading, [kl], blind)[0]},
            rewards=torch.tensor([r.reward for prompt in batch for r in prompt], dtype=torch.float64),
        )

    def run(self, objective) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and its gradients in the logits of the seeing and of the blind student."""
        hidden = self.student.hidden_ND.clone().requires_grad_()
        head = self.student.head_WD.clone().requires_grad_()
        terms = objective.weigh(self.scored).terms
        result = weighted_terms(hidden, head, self.reading, terms, self.scores)
        result.loss.backward()
        blind = result.hidden_gradients.get(STUDENT_BLIND, torch.zeros_like(hidden))
        # The head's gradient holds both: d loss / d head = sum of logit gradients times hidden states.
        expected = hidden.grad.T @ self.student.hidden_ND + blind.T @ self.scores[STUDENT_BLIND].hidden_ND
        torch.testing.assert_close(head.grad, expected)
        removed = [i for i in range(hidden.shape[1]) if i not in self.kept]
        assert not hidden.grad[:, removed].any() and not blind[:, removed].any()
        return result.loss.detach(), hidden.grad[:, self.kept], blind[:, self.kept]
