"""Samples responses: each prompt is prefilled once, and all its responses share the cache.

Shape suffixes: B sequences being decoded, L cache length, V kept vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from vicur.compat import SizedCacheLayer, cache_argument
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.models.out_of_memory import BatchSize
from vicur.models.policy import Policy
from vicur.models.vocabulary import Vocabulary
from vicur.rollouts.processors import SamplingConfig, sampling_log_probs
from vicur.rollouts.randomness import stream_key, uniforms
from vicur.rollouts.rollout import Response


class TorchEngine:
    """Samples with PyTorch in this process, from the model that is trained, so there is nothing to sync.

    Args:
        loaded: the model, and its vocabulary with the tokens that may be sampled and those that end a
            response.
        prompts_per_batch: number of prompts that are prefilled and decoded together. It is halved if memory
            runs out.
        setting: the setting that this number came from, for messages.
    """

    def __init__(
        self, loaded: LoadedModel, prompts_per_batch: int = 64, setting: str = "prompts_per_batch"
    ) -> None:
        self.loaded = loaded
        self.batch_size = BatchSize(prompts_per_batch, setting)
        self._is_awake = False

    @contextmanager
    def awake(self) -> Iterator[None]:
        """As described in `Engine.awake`: all weights are gathered."""
        if self._is_awake:
            yield
            return
        policy = self.loaded.policy
        training = policy.training
        with policy.unsharded(), self.loaded.mode():
            policy.eval()
            self._is_awake = True
            try:
                yield
            finally:
                self._is_awake = False
                policy.train(training)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[str],
        sampling: SamplingConfig,
        *,
        group_size: int = 1,
        first: int = 0,
        seed: int = 0,
        step: int = 0,
    ) -> list[list[Response]]:
        """Sample as described in `Engine.sample`.

        Raises:
            OutOfMemory: memory is exhausted even with batches of one prompt.
        """
        responses: list[list[Response]] = []

        def next_responses(size: int) -> list[list[Response]]:
            part = slice(len(responses), len(responses) + size)
            keys = [
                stream_key(seed, step, sample_id, number)
                for sample_id in ids[part]
                for number in range(first, first + group_size)
            ]
            flat = self._sample_batch(prompts[part], keys, group_size, sampling)
            return [flat[i : i + group_size] for i in range(0, len(flat), group_size)]

        with self.awake():
            while len(responses) < len(prompts):
                left = len(prompts) - len(responses)
                # Nothing to recover from: a rank that holds all weights decodes without the others.
                responses += self.batch_size.run(
                    next_responses, lambda: None, most=left, needs_all_ranks=False
                )
        return responses

    def sync(self) -> None:
        """Do nothing: the sampled model is the trained one."""

    def close(self) -> None:
        """Do nothing: the engine holds nothing of its own."""

    def _sample_batch(
        self, prompts: Sequence[EncodedPrompt], keys: list[int], group_size: int, sampling: SamplingConfig
    ) -> list[Response]:
        decoding = _Decoding(self.loaded.policy, self.loaded.vocabulary, prompts, group_size, sampling)
        for position in range(sampling.max_new_tokens):
            live_keys = [keys[row] for row in decoding.live.tolist()]
            draws = torch.from_numpy(uniforms(live_keys, position)).to(decoding.logits.device)
            decoding.step(draws)
            if decoding.finished:
                break
        return decoding.responses()


class _Decoding:
    """The state of one batch while it is decoded. Sequences that have stopped are dropped."""

    def __init__(
        self,
        policy: Policy,
        vocabulary: Vocabulary,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        config: SamplingConfig,
    ) -> None:
        device = policy.device
        self.policy, self.config = policy, config
        self.kept = vocabulary.kept_ids.to(device)
        self.stops = torch.tensor(vocabulary.stop_ids, device=device)
        inputs = build_sequences(
            prompts, [()] * len(prompts), pad_id=vocabulary.pad_id, padding_side="left"
        ).to(device)
        prefill_cache = DynamicCache()
        logits = policy.decode(
            **inputs.model_inputs(), **cache_argument(prefill_cache), logits_to_keep=1
        ).logits[:, -1]
        count = len(prompts) * group_size
        self.cache = expand_cache(prefill_cache, group_size, room=config.max_new_tokens)
        self.mask = inputs.attention_mask.repeat_interleave(group_size, 0)
        next_text = torch.tensor([len(p) for p in prompts], device=device)
        next_rotary = torch.tensor([p.next_position for p in prompts], device=device)
        positions = torch.stack([next_text, next_rotary, next_rotary, next_rotary])
        self.positions = positions.repeat_interleave(group_size, 1)
        self.logits = logits.repeat_interleave(group_size, 0)[:, self.kept].float()
        self.present = torch.zeros_like(self.logits)
        self.live = torch.arange(count, device=device)
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.log_probs: list[list[float]] = [[] for _ in range(count)]
        self.stopped = [False] * count

    @property
    def finished(self) -> bool:
        return len(self.live) == 0

    def step(self, draws_B: Float[Tensor, " B"]) -> None:
        """Pick one token for each live sequence, then compute the next logits."""
        log_probs = sampling_log_probs(self.logits, self.present, self.config)
        slot = pick(log_probs, draws_B)
        self.present.scatter_(1, slot[:, None], 1.0)
        tokens = self.kept[slot]
        picked = log_probs.gather(1, slot[:, None])[:, 0]
        stops = torch.isin(tokens, self.stops)
        for row, token, log_prob, stop in zip(
            self.live.tolist(), tokens.tolist(), picked.tolist(), stops.tolist(), strict=True
        ):
            self.tokens[row].append(token)
            self.log_probs[row].append(log_prob)
            self.stopped[row] = stop
        if stops.any():
            self._drop(~stops)
            tokens = tokens[~stops]
        if not self.finished and max(map(len, self.tokens)) < self.config.max_new_tokens:
            self._advance(tokens)

    def _drop(self, keep_B: Tensor) -> None:
        index = keep_B.nonzero()[:, 0]
        self.live, self.present = self.live[index], self.present[index]
        self.mask, self.positions = self.mask[index], self.positions[:, index]
        for layer in self.cache.layers:
            layer.batch_select_indices(index)

    def _advance(self, tokens_B: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens_B), 1)], 1)
        output = self.policy.decode(
            input_ids=tokens_B[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, :, None],
            **cache_argument(self.cache),
        )
        self.logits = output.logits[:, -1][:, self.kept].float()
        self.positions = self.positions + 1

    def responses(self) -> list[Response]:
        return [
            Response(torch.tensor(ids), torch.tensor(log_probs), "stop" if stopped else "length")
            for ids, log_probs, stopped in zip(self.tokens, self.log_probs, self.stopped, strict=True)
        ]


def pick(log_probs_BV: Float[Tensor, "B V"], draws_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The index at which the cumulative probability passes the draw; never an entry of probability 0."""
    cumulative = log_probs_BV.double().exp().cumsum(-1)
    threshold = draws_B[:, None].double() * cumulative[:, -1:]
    slot = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    last = (cumulative < cumulative[:, -1:]).sum(-1)  # if rounding puts the threshold too high
    return torch.minimum(slot, last)


class _PreallocatedLayer(SizedCacheLayer):
    """Keys and values of one layer in a buffer with room for the whole response.

    Appending writes in place; transformers' growing caches copy everything at each token.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, group_size: int, room: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        self.keys, self.values = (self._buffer(x, group_size, room) for x in (keys, values))
        self.is_initialized = True

    @staticmethod
    def _buffer(states: Tensor, group_size: int, room: int) -> Tensor:
        batch, heads, length, size = states.shape
        buffer = states.new_zeros(batch * group_size, heads, length + room, size)
        buffer[:, :, :length] = states.repeat_interleave(group_size, 0)
        return buffer

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def capacity(self) -> int:
        assert self.keys is not None
        return int(self.keys.shape[2])

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[indices], self.values[indices]


def expand_cache(cache: Cache, group_size: int, room: int) -> Cache:
    """A cache for decoding: every prompt `group_size` times, with room for `room` more tokens."""
    return Cache(
        layers=[_PreallocatedLayer(layer.keys, layer.values, group_size, room) for layer in cache.layers]
    )
