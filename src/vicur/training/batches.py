"""The order in which problems are trained on, and the position in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vicur import distributed
from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample


@dataclass
class Position:
    """Where a run is in its problems.

    Attributes:
        epoch: passes over the problems that are finished.
        offset: problems of the present epoch's order that are used.
        unreadable: indices of problems that could not be read.
    """

    epoch: int = 0
    offset: int = 0
    unreadable: list[int] = field(default_factory=list)


class Batches:
    """Endless batches of problems, of which each rank reads its share.

    The order of an epoch depends on seed and epoch alone, and the batches on the order alone: they are those
    of one process, whatever the number of ranks. Problems that do not fill a batch at the end of an epoch are
    left out of that epoch. A problem that cannot be read is replaced by the next one.

    Args:
        samples: the problems.
        size: number of problems in a batch.
        update_size: number of problems in an update; ranks share the problems of each update.
        seed: seed of the order.
        skip_bad_rows: whether a problem that cannot be read is skipped; otherwise it raises an error.
        say: called with a sentence about each problem that is skipped.
        position: where to begin.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        update_size: int,
        seed: int,
        *,
        skip_bad_rows: bool,
        say: Callable[[str], None],
        position: Position,
    ) -> None:
        self.samples, self.size, self.update_size, self.seed = samples, size, update_size, seed
        self.skip_bad_rows, self.say, self.position = skip_bad_rows, say, position
        self._read: dict[int, Sample] = {}
        self._order: list[int] = []
        self._order_epoch = -1

    def next(self) -> list[Sample]:
        """This rank's problems of the next batch.

        Raises:
            BadRowError: a problem cannot be read and is not to be skipped.
            PeerError: the same, on another rank.
            ValueError: too few problems can be read to fill a batch.
        """
        while True:
            indices, end = self._candidates()
            if not self._bad_among(indices):
                break
        self.position.offset = end
        batch = [self._read[index] for index in self._own(indices)]
        self._read = {}
        return batch

    def _candidates(self) -> tuple[list[int], int]:
        """Indices of the next problems, as far as known readable, and the offset after the last of them."""
        position = self.position
        usable = len(self.samples) - len(position.unreadable)
        if usable < self.size:
            raise ValueError(f"Only {usable} problems can be read, fewer than one step takes ({self.size}).")
        while True:
            order = self._order_of(position.epoch)
            indices: list[int] = []
            for place in range(position.offset, len(order)):
                if order[place] not in position.unreadable:
                    indices.append(order[place])
                if len(indices) == self.size:
                    return indices, place + 1
            position.epoch, position.offset = position.epoch + 1, 0

    def _order_of(self, epoch: int) -> list[int]:
        if epoch != self._order_epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._order, self._order_epoch = random.permutation(len(self.samples)).tolist(), epoch
        return self._order

    def _own(self, indices: Sequence[int]) -> list[int]:
        """This rank's share of the problems of each update."""
        share = distributed.share(self.update_size)
        starts = range(0, len(indices), self.update_size)
        return [index for start in starts for index in indices[start : start + self.update_size][share]]

    def _bad_among(self, indices: Sequence[int]) -> bool:
        """Read this rank's problems; whether one of any rank's cannot be read."""
        bad = distributed.agree(lambda: self._unreadable(self._own(indices)))
        unreadable = distributed.gather_list(bad)
        for index, message in unreadable:
            self.say(f"Skipped: {message}")
            self.position.unreadable.append(index)
        return bool(unreadable)

    def _unreadable(self, indices: Sequence[int]) -> list[tuple[int, str]]:
        """Read problems; the index of each that cannot be read, and why."""
        bad = []
        for index in indices:
            if index in self._read:
                continue
            try:
                self._read[index] = self.samples[index]
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                bad.append((index, str(error)))
        return bad
