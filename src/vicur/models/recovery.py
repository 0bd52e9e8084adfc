"""Cue recovery: a sink token gathers visual evidence by cross-attention (ViCuR section 3.2).

At the chosen decoder layers, after the layer and its DeepStack addition, in prefill only:

    h_sink <- h_sink + W_o MHA(query = W_q N_q(h_sink), keys = W_k N_kv(V), values = W_u N_kv(V))

with V the hidden states, at this layer, of all visual tokens of the same sample. The sink is the sample's
first token, as in the paper, or the last token of the user's turn (our addition): where the image comes
before the question, only the latter can depend on the question.

There is one query per sample, so W_k and W_u never meet the visual tokens: W_k is folded into the query and
W_u is applied after pooling. Same function, same four matrices, about 4 H N D operations instead of
4 N D^2.

Shape suffixes: B sequences, L sequence length, S samples, N visual tokens of the largest sample, D hidden
size, H heads, E head size (D / H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

OutputInit = Literal["zero", "normal"]
Sink = Literal["first", "question"]
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
"""The tokens around a turn in the chats of Qwen."""


class ContinuedPromptError(ValueError):
    """A prompt continues on top of a key-value cache, after the sink has gathered its evidence.

    Args:
        count: number of tokens in the call.
        has_visual: whether some of them are tokens of an image or a video.
    """

    def __init__(self, count: int, has_visual: bool) -> None:
        what = f"{count} token(s){', some of an image or video,' if has_visual else ''}"
        super().__init__(
            "With cue recovery the whole prompt must be in one prefill, because one token gathers from "
            f"every visual token, but {what} came on top of a cache. Chunked prefill, a reused prefix cache "
            "and an image in a later turn are not supported: pass the whole conversation without a cache."
        )


@dataclass(frozen=True)
class RecoveryPlan:
    """Sinks and the visual tokens that each gathers from, the same for all layers of one forward pass.

    Samples without visual tokens are not included.

    Attributes:
        sink_sequence, sink_column: sequence and position of each sample's sink.
        visual_column: columns of each sample's visual tokens, padded with 0.
        visual_mask: true where `visual_column` is a visual token.
    """

    sink_sequence: Int[Tensor, " S"]
    sink_column: Int[Tensor, " S"]
    visual_column: Int[Tensor, "S N"]
    visual_mask: Bool[Tensor, "S N"]

    @classmethod
    def of(
        cls,
        visual_BL: Bool[Tensor, "B L"] | None,
        attention_mask: Tensor | None,
        text_positions_BL: Int[Tensor, "B L"] | None,
        shape: tuple[int, int],
        device: torch.device,
        turns: Turns | None = None,
    ) -> RecoveryPlan:
        """Find each visual token's sink: the first token that it may attend to, or the end of the question.

        This works for every causal layout: padding on either side, several samples packed in a
        sequence, responses that share a prompt.

        Args:
            visual_BL: true at visual tokens; None if there are none.
            attention_mask: (B, L), or (B, 1, L, L) boolean or additive, or None.
            text_positions_BL: read only if there is no mask; in each sequence, a new sample starts at each 0.
            shape: (B, L).
            device: device of the hidden states.
            turns: where turns begin and end, for sinks at the end of the question; None for sinks at the
                first token.

        Raises:
            ValueError: the attention mask is of another kind, or a prompt has no question that ends before
                the answer.
        """
        if visual_BL is None:
            none = torch.zeros(0, dtype=torch.long, device=device)
            return cls(none, none, none[:, None], none[:, None].bool())
        visual_BL = visual_BL.to(device)
        first_BL = _first_attended(attention_mask, text_positions_BL, shape, device)
        sequence_M, column_M = visual_BL.nonzero(as_tuple=True)
        sink_M = first_BL[sequence_M, column_M]
        keys, owner_M, counts = torch.unique(
            sequence_M * shape[1] + sink_M, return_inverse=True, return_counts=True
        )
        order = torch.argsort(owner_M, stable=True)
        first_of_owner = counts.cumsum(0) - counts
        slot = torch.arange(len(order), device=device) - first_of_owner[owner_M[order]]
        width = int(counts.max()) if len(counts) else 0
        visual_column = torch.zeros(len(keys), width, dtype=torch.long, device=device)
        visual_mask = torch.zeros_like(visual_column, dtype=torch.bool)
        visual_column[owner_M[order], slot] = column_M[order]
        visual_mask[owner_M[order], slot] = True
        sequence, column = keys // shape[1], keys % shape[1]
        if turns is not None:
            column = turns.question_ends(first_BL, sequence, column)
        return cls(sequence, column, visual_column, visual_mask)


@dataclass(frozen=True)
class Turns:
    """Where the turns of chats begin and end.

    Attributes:
        ids_BL: the tokens.
        start, end: ids of the tokens that begin and end a turn; a response contains no token that begins one.
    """

    ids_BL: Int[Tensor, "B L"]
    start: int
    end: int

    def question_ends(
        self, first_BL: Int[Tensor, "B L"], sequence_S: Int[Tensor, " S"], first_S: Int[Tensor, " S"]
    ) -> Int[Tensor, " S"]:
        """The column of the token that ends the last turn before the one in which the model answers.

        Args:
            first_BL: column of the first token of each token's sample.
            sequence_S, first_S: sequence and first column of each sample.

        Raises:
            ValueError: a sample has no such token.
        """
        ids_SL = self.ids_BL.to(first_BL.device)[sequence_S]
        columns_L = torch.arange(ids_SL.shape[1], device=ids_SL.device)
        own_SL = (first_BL[sequence_S] == first_S[:, None]) & (columns_L >= first_S[:, None])
        answer_S = torch.where(own_SL & (ids_SL == self.start), columns_L, -1).amax(-1)
        before_SL = own_SL & (ids_SL == self.end) & (columns_L < answer_S[:, None])
        end_S = torch.where(before_SL, columns_L, -1).amax(-1)
        if bool((end_S < 0).any()):
            raise ValueError(
                f"With student.recovery.sink=question a prompt must be a chat whose turns begin with "
                f"{TURN_TOKENS[0]} and end with {TURN_TOKENS[1]}, and end in the beginning of the answer."
            )
        return end_S


def _first_attended(
    mask: Tensor | None, positions_BL: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """The column of the first token that each token attends to, (B, L)."""
    if mask is None and positions_BL is None:
        return torch.zeros(shape, dtype=torch.long, device=device)
    if mask is None:
        assert positions_BL is not None
        columns = torch.arange(shape[1], device=device).expand(shape)
        starts = torch.where(positions_BL.to(device) == 0, columns, 0)
        return starts.cummax(-1).values
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            "Cue recovery needs a 2-D or 4-D attention mask tensor to find each sample's first "
            f"token, not {type(mask).__name__}. Use eager, sdpa or flash attention."
        )
    mask = mask.to(device)
    allowed = mask if mask.dtype == torch.bool else (mask != 0 if mask.ndim == 2 else mask == 0)
    if allowed.ndim == 2:
        return allowed.int().argmax(-1)[:, None].expand(shape)
    return allowed[:, 0].int().argmax(-1).expand(shape)


class OutputProjection(nn.Linear):
    """W_o: a separate class, because its initialisation differs from that of the other three matrices."""


class RecoveryAttention(nn.Module):
    """The four matrices of one layer, in the folded form.

    Args:
        hidden_size: hidden size D of the model.
        heads: H; the head size is D / H.

    Raises:
        ValueError: H does not divide D.
    """

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"{heads} heads do not divide a hidden size of {hidden_size}.")
        self.heads = heads
        self.scale = (hidden_size // heads) ** -0.5
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output = OutputProjection(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        sink_SD: Float[Tensor, "S D"],
        visual_SND: Float[Tensor, "S N D"],
        mask_SN: Bool[Tensor, "S N"],
    ) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S H N"]]:
        """Compute the update of each sink from its visual tokens.

        Args:
            sink_SD: normalised sink states.
            visual_SND: normalised visual states.
            mask_SN: true at real visual tokens; each sample has at least one.

        Returns:
            the change to add to each sink, and the attention weights in at least float32.
        """
        samples, size = sink_SD.shape
        query_SHE = self.query(sink_SD).view(samples, self.heads, -1)
        key_HED = self.key.weight.view(self.heads, -1, size)
        value_HED = self.value.weight.view(self.heads, -1, size)
        folded_SHD = torch.einsum("she,hed->shd", query_SHE, key_HED)
        precise = torch.promote_types(visual_SND.dtype, torch.float32)
        score_SHN = torch.einsum("shd,snd->shn", folded_SHD, visual_SND).to(precise) * self.scale
        score_SHN = score_SHN.masked_fill(~mask_SN[:, None], -torch.inf)
        weight_SHN = score_SHN.softmax(-1)
        pooled_SHD = torch.einsum("shn,snd->shd", weight_SHN.to(visual_SND.dtype), visual_SND)
        mixed_SHE = torch.einsum("shd,hed->she", pooled_SHD, value_HED)
        return self.output(mixed_SHE.reshape(samples, size)), weight_SHN


class CueRecovery(nn.Module):
    """The whole module: norms shared by all layers, and one attention per chosen layer.

    Args:
        hidden_size: D of the language model.
        heads: its number of attention heads.
        layers: indices of the decoder layers after which the sinks gather.
        eps: epsilon of the RMS norms.
    """

    def __init__(self, hidden_size: int, heads: int, layers: list[int], eps: float) -> None:
        super().__init__()
        self.query_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.visual_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.layers = nn.ModuleDict({str(layer): RecoveryAttention(hidden_size, heads) for layer in layers})
        self.observer: RecoveryObserver | None = None

    def forward(
        self, layer: int, hidden_BLD: Float[Tensor, "B L D"], plan: RecoveryPlan
    ) -> Float[Tensor, "B L D"]:
        """The hidden states with every sink updated (equations 3 and 4), out of place.

        Without any visual token the states are returned unchanged, plus zero times the parameters, so that
        every rank of a distributed run has the same graph.
        """
        if len(plan.sink_sequence) == 0:
            return hidden_BLD + self._zero_of(layer) if torch.is_grad_enabled() else hidden_BLD
        sink_SD = hidden_BLD[plan.sink_sequence, plan.sink_column]
        visual_SND = hidden_BLD[plan.sink_sequence[:, None], plan.visual_column]
        module: Any = self.layers[str(layer)]
        change_SD, weight_SHN = module(
            self.query_norm(sink_SD), self.visual_norm(visual_SND), plan.visual_mask
        )
        if self.observer is not None:
            self.observer.see(layer, sink_SD.detach(), change_SD.detach(), weight_SHN.detach(), plan)
        return hidden_BLD.index_put((plan.sink_sequence, plan.sink_column), sink_SD + change_SD)

    def _zero_of(self, layer: int) -> Tensor:
        parameters: list[Tensor] = [*self.layers[str(layer)].parameters()]
        parameters += [self.query_norm.weight, self.visual_norm.weight]
        return 0.0 * torch.stack([p.sum() for p in parameters]).sum()


class RecoveryObserver:
    """Records what the module does, for metrics and figures. Used as a context manager.

    Args:
        recovery: the module; None for a model without one, for which nothing is recorded.
        keep_attention: whether to keep the attention maps, which needs a synchronising copy from the GPU.

    Attributes:
        change_ratio: for each layer, |change| / |h_sink| of every sample seen.
        attention: for each layer, the attention of each head over the visual tokens of every sample
            seen: tensors (H, N). Empty unless `keep_attention` is set.
    """

    def __init__(self, recovery: CueRecovery | None, *, keep_attention: bool = False) -> None:
        self.recovery = recovery
        self.keep_attention = keep_attention
        layers = [] if recovery is None else [int(layer) for layer in recovery.layers]
        self.change_ratio: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        self.attention: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def __enter__(self) -> RecoveryObserver:
        if self.recovery is not None:
            self.recovery.observer = self
        return self

    def __exit__(self, *exception: object) -> None:
        if self.recovery is not None:
            self.recovery.observer = None

    def see(self, layer: int, sink: Tensor, change: Tensor, weight_SHN: Tensor, plan: RecoveryPlan) -> None:
        """Called by the module at each layer of each prefill."""
        self.change_ratio[layer].append(change.norm(dim=-1) / sink.norm(dim=-1))
        if not self.keep_attention:
            return
        self.attention[layer] += [
            weight_HN[:, mask_N]
            for weight_HN, mask_N in zip(weight_SHN.cpu(), plan.visual_mask.cpu(), strict=True)
        ]

    def change_ratios(self) -> dict[int, list[float]]:
        """|change| / |h_sink| of every sample seen, by layer."""
        return {layer: torch.cat(r).tolist() if r else [] for layer, r in self.change_ratio.items()}
