"""Scores responses: runs a model under a view over prompts and their responses.

Shape suffixes: N response tokens, D hidden size, J terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vicur import distributed
from vicur.data.sample import Sample
from vicur.data.views import Attempt, Plain, View, at_step, in_hindsight, show
from vicur.encoding.layout import Sequences, build_sequences, responses_per_sequence
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.models.out_of_memory import BatchSize
from vicur.models.vocabulary import ScoringVocabulary
from vicur.scoring.chunks import Reading, Weighted, sampled_log_probs, weighted_terms
from vicur.scoring.term import Scores, Term
from vicur.settings.section import Count, section

Result = TypeVar("Result")


@section
class ScoringConfig:
    """Settings for scoring responses. Only `vocabulary` changes results beyond rounding."""

    vocabulary: ScoringVocabulary = "shared"
    """Tokens over which distributions are normalised and compared. "shared": all tokens of the tokenizer, as
    in the authors' code. "sampleable": only the tokens that can be sampled, i.e. without media and chat
    special tokens other than end of turn. Those special tokens are never sampled in either case."""
    prompts_per_batch: Count = 64
    """Number of problems per forward pass without gradient. With gradient it is
    optimizer.prompts_per_micro_batch."""
    share_prompts: Literal["auto", "always", "never"] = "auto"
    """Whether the responses to a prompt share one sequence that holds the prompt once; "auto" picks the
    cheaper layout by an estimate."""
    chunk_tokens: Count | None = None
    """Number of response tokens whose logits are in memory at a time; null for as many as fit in about 96 MiB
    (1 GiB on a GPU), counting all distributions that are compared."""
    gradient_checkpointing: bool = False
    """Recompute the student's layers in the backward pass instead of storing their activations."""


class Scorer:
    """Scores responses under views.

    Args:
        loaded: the model with its processor and vocabulary.
        config: settings for scoring.
        limits: pixel limits of images and frames; by default the checkpoint's own.
        view: what the recipe shows the model.
        keep_head: whether to keep the head of the first scores until `clear_cache`, for a model that changes
            in between: old hidden states must not be combined with a new head.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: ScoringConfig | None = None,
        limits: PixelLimits | None = None,
        view: View | None = None,
        *,
        keep_head: bool = False,
    ) -> None:
        self.view: View = view or Plain()
        self.config = config or ScoringConfig()
        self.batch_size = BatchSize(self.config.prompts_per_batch, "scoring.prompts_per_batch")
        self.loaded = loaded
        self.keep_head = keep_head
        self._head: Tensor | None = None
        self.policy = loaded.policy
        self.encoder = PromptEncoder.of(loaded, limits)
        self.vocabulary = loaded.vocabulary
        self.hidden_size = loaded.model.config.text_config.hidden_size
        self._prompts = _PromptMemory()

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return self.policy.device

    def encode(self, samples: Sequence[Sample], view: View) -> list[EncodedPrompt]:
        """The samples' prompts under the view.

        The prompts of a batch are cached, also for parts of the batch, until another batch is encoded.
        """
        return self._prompts.get(samples, view, self.encoder)

    def begin_step(self, step: int) -> None:
        """Start a step of training: views that change at random are drawn anew, and nothing is cached."""
        self.view = at_step(self.view, step)
        self.clear_cache()

    def clear_cache(self) -> None:
        """Drop the cached prompts, which would pile up from step to step, and the kept head."""
        self._prompts = _PromptMemory()
        self._head = None

    def weights_changed(self) -> None:
        """Drop the head's copy after an update, unless `keep_head` is set."""
        if not self.keep_head:
            self._head = None

    def reading(self, response_ids: Tensor) -> Reading:
        """The response tokens together with the scoring vocabulary."""
        kept = self.vocabulary.scored_ids(self.config.vocabulary).to(self.device)
        ends = self.vocabulary.stop_ids
        return Reading(response_ids.to(self.device), kept, self.config.chunk_tokens, ends)

    def sequences(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[Tensor]]) -> Sequences:
        """Lay out prompts and the responses to each, on the model's device, in the flat order."""
        shared_prompts: list[EncodedPrompt] = []
        shared_responses: list[Sequence[Tensor]] = []
        for prompt, group in zip(prompts, responses, strict=True):
            # Responses to one prompt share sequences of `width` responses, so that the prompt is computed
            # once.
            width = self.responses_per_sequence(len(prompt), [len(ids) for ids in group])
            for first in range(0, len(group), width):
                shared_prompts.append(prompt)
                shared_responses.append(group[first : first + width])
        sequences = build_sequences(shared_prompts, shared_responses, pad_id=self.vocabulary.pad_id).to(
            self.device
        )
        _check_alignment(sequences, responses)
        return sequences

    def responses_per_sequence(self, prompt_length: int, response_lengths: Sequence[int]) -> int:
        """Number of responses that share a sequence and its prompt, as `scoring.share_prompts` says."""
        if self.config.share_prompts == "auto":
            return responses_per_sequence(prompt_length, response_lengths, self.hidden_size)
        return len(response_lengths) if self.config.share_prompts == "always" else 1

    def batches(
        self,
        prompts: Sequence[EncodedPrompt],
        responses: Sequence[Sequence[Tensor]],
        prompts_per_batch: int,
    ) -> Iterator[tuple[Sequences, slice]]:
        """Sequences of a few samples at a time, with their slice of the flat token order.

        Every rank gets the same number of batches, because ranks run a sharded model together. A rank with
        fewer samples than another gets sequences without responses at the end: zero in every sum.
        """
        first = 0
        starts = range(0, len(prompts), prompts_per_batch)
        count = distributed.largest(len(starts))  # before any pass, which ranks make together
        for start in starts:
            part = slice(start, start + prompts_per_batch)
            sequences = self.sequences(prompts[part], responses[part])
            tokens = slice(first, first + len(sequences.response_ids))
            first = tokens.stop
            yield sequences, tokens
        for _ in range(count - len(starts)):
            yield self._filler(), slice(first, first)

    def _filler(self) -> Sequences:
        """A prompt of one token without any response."""
        prompt = EncodedPrompt.of_text([self.vocabulary.pad_id])
        return build_sequences([prompt], [()], pad_id=self.vocabulary.pad_id).to(self.device)

    def run(self, sequences: Sequences, read: Callable[[Tensor, Tensor], Result]) -> Result:
        """Run sequences through the model.

        Args:
            sequences: prompts and responses.
            read: called inside the policy with the hidden states (N, D) that predict the response tokens, and
                the LM head's weight (W, D).
        """
        return self.policy(
            sequences.model_inputs(self.policy.dtype),
            lambda hidden_BLD, head_WD: read(sequences.predicting(hidden_BLD), head_WD),
        )

    @torch.no_grad()
    def scores(
        self,
        samples: Sequence[Sample],
        responses: Sequence[Sequence[Tensor]],
        view: View,
        attempts: Sequence[Sequence[Attempt]] | None = None,
    ) -> Scores:
        """The next-token distributions at the tokens of the responses, under a view, without gradient.

        If memory runs out, the batches are halved, also for later calls.

        Args:
            samples: the problems.
            responses: the responses to each problem.
            view: what the model is shown.
            attempts: the same responses, for a view in hindsight, under which each has its own prompt.

        Raises:
            OutOfMemory: memory is exhausted even with batches of one problem.
        """
        self.policy.eval()
        if in_hindsight(view):
            prompts, responses = prompts_in_hindsight(self.encoder, samples, responses, view, attempts)
        else:
            prompts = self.encode(samples, view)

        def hidden(size: int) -> Tensor:
            # Only hidden states are kept: (N, D) numbers; logits would be (N, V), 75 times as many for 2B.
            batches = self.batches(prompts, responses, size)
            return torch.cat([self.run(sequences, self._hidden) for sequences, _ in batches])

        with self.loaded.mode():  # adapters or recovery off, if this model is a self-teacher
            # A rank without problems still joins the passes of the others.
            most = max(1, len(prompts))
            hidden_ND = self.batch_size.run(hidden, self.policy.abandon_pass, most=most)
        self.policy.reshard()
        assert self._head is not None
        return Scores(hidden_ND, self._head)

    def _hidden(self, hidden_ND: Tensor, head_WD: Tensor) -> Tensor:
        """The hidden states; the head is kept beside them for as long as they are valid."""
        if self._head is None:
            # A sharded head exists only here. A copy of any other is needed only if the weights change while
            # the scores are in use.
            is_copied = self.keep_head or self.policy.is_sharded
            self._head = head_WD.detach().clone() if is_copied else head_WD.detach()
        return hidden_ND

    def log_probs(
        self, samples: Sequence[Sample], responses: Sequence[Sequence[Tensor]], view: View
    ) -> Float[Tensor, " N"]:
        """log p(y_t) of the responses under a view, without gradient, in the flat order."""
        ids = torch.cat([ids for group in responses for ids in group])
        return sampled_log_probs(self.scores(samples, responses, view), self.reading(ids))

    def weighted_terms(
        self,
        sequences: Sequences,
        terms: Sequence[Term],
        others: Mapping[str, Scores],
        *,
        add_head_gradient: bool = False,
    ) -> Weighted:
        """The weighted sum of terms over the response tokens of the sequences, with gradient, and their
        values.

        Args:
            sequences: prompts and responses.
            terms: weighted and observed terms.
            others: the distributions other than the student's that the terms read.
            add_head_gradient: add the head's gradient to `grad` in this call, not in `backward()`: no second
                tensor of its size is allocated, but the loss must not be scaled afterwards.
        """
        reading = self.reading(sequences.response_ids)

        def read(hidden_ND: Tensor, head_WD: Tensor) -> Weighted:
            gradient_WD = _gradient_of(head_WD) if add_head_gradient else None
            return weighted_terms(hidden_ND, head_WD, reading, terms, others, gradient_WD)

        return self.run(sequences, read)


def prompts_in_hindsight(
    encoder: PromptEncoder,
    samples: Sequence[Sample],
    responses: Sequence[Sequence[Tensor]],
    view: View,
    attempts: Sequence[Sequence[Attempt]] | None,
) -> tuple[list[EncodedPrompt], list[list[Tensor]]]:
    """The prompt of every response under a view in hindsight, and the response as its only one, in the flat
    order."""
    assert attempts is not None, "a view in hindsight needs the responses and their grades"
    pairs = zip(samples, attempts, strict=True)
    prompts = encoder.encode([show(view, sample, attempt) for sample, group in pairs for attempt in group])
    return prompts, [[ids] for group in responses for ids in group]


def _gradient_of(head_WD: Tensor) -> Tensor | None:
    """The head's `grad`, to add to; None if it has none or is in half precision."""
    # Half-precision `grad` would round every chunk's contribution; the chunks are then summed in float32.
    if not head_WD.requires_grad or head_WD.dtype.itemsize < 4:
        return None
    if head_WD.grad is None:
        head_WD.grad = torch.zeros_like(head_WD)
    return head_WD.grad


class _PromptMemory:
    """A cache of the prompts of one batch of samples, by view."""

    def __init__(self) -> None:
        self._samples: dict[int, Sample] = {}  # by id(); holding the samples keeps these ids valid
        self._prompts: dict[View, dict[int, EncodedPrompt]] = {}

    def get(self, samples: Sequence[Sample], view: View, encoder: PromptEncoder) -> list[EncodedPrompt]:
        # An unknown sample means a new batch: keeping the old one too would double the pixels in memory.
        if any(id(sample) not in self._samples for sample in samples):
            self._samples, self._prompts = {id(sample): sample for sample in samples}, {}
        by_sample = self._prompts.setdefault(view, {})
        missing = [sample for sample in samples if id(sample) not in by_sample]
        if missing:
            prompts = encoder.encode([view.show(sample) for sample in missing])
            by_sample |= {id(sample): prompt for sample, prompt in zip(missing, prompts, strict=True)}
            self._check_tokens(view, missing)
        return [by_sample[id(sample)] for sample in samples]

    def _check_tokens(self, view: View, samples: Sequence[Sample]) -> None:
        """Check that views that change only pixels agree in every token, including visual tokens."""
        others = [known for known in self._prompts if known.keeps_tokens and known != view]
        for other in others if view.keeps_tokens else []:
            for sample in samples:
                prompt, known_prompt = self._prompts[view][id(sample)], self._prompts[other].get(id(sample))
                same = known_prompt is None or torch.equal(prompt.input_ids, known_prompt.input_ids)
                assert same, f"the view {view.name} changed the visual tokens of sample {sample.id}"


def _check_alignment(sequences: Sequences, responses: Sequence[Sequence[Tensor]]) -> None:
    """Check that a view has not changed the responses or shifted them by a token.

    In the sequences, the token after each predicting position must be the response's. First tokens are
    exempt: they are predicted by the prompt's last token, which another response may follow.
    """
    expected = torch.cat([ids for group in responses for ids in group]).to(sequences.input_ids.device)
    inner = torch.cat([sequences.response_index.new_ones(1), sequences.response_index.diff()]) == 0
    following = sequences.input_ids[sequences.predicts_sequence[inner], sequences.predicts_column[inner] + 1]
    assert torch.equal(following, expected[inner]), "response tokens are shifted between views"
    assert torch.equal(sequences.response_ids, expected), "a view must not change a response"
