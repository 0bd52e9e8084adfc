"""Random numbers keyed by what they are used for, not by when or where they are drawn.

The number that picks a token depends only on (seed, step, sample, response number, position), so the
responses do not change with batch size, row order or number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vicur import distributed

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream_key(seed: int, step: int, sample_id: str, response_number: int) -> int:
    """64-bit key of one response's stream of random numbers."""
    text = f"{seed}/{step}/{sample_id}/{response_number}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one rollout step, for what it draws by itself: the dropout of adapters.

    Nothing else uses torch's random state. Keyed by the step, it need not be saved to resume a run exactly;
    ranks drop different entries.
    """
    torch.manual_seed(stream_key(seed, step, f"rank {distributed.rank()}", 0) % 2**63)


def uniforms(keys: Sequence[int], position: int) -> NDArray[np.float64]:
    """One uniform number in [0, 1) for each stream, at a position of the response.

    Counter-based: the finaliser of SplitMix64 over key + position * golden ratio.
    """
    with np.errstate(over="ignore"):
        z = np.array(keys, dtype=np.uint64) + np.uint64(position + 1) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
