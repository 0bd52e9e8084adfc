"""Controls of an evaluation: the same questions with images that cannot help.

A model that answers as well without the image, or with another problem's, is not looking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from vicur.bad_rows import BadRowError
from vicur.data.digests import media_digest
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Blank, Blind, Degraded, Plain, View

Control = Literal["blank", "degraded", "blind", "other"]
"""blank: black images of the same size. degraded: fine detail destroyed, at the same size (VA-OPD section
2.1). blind: no images at all. other: the images of another problem."""
_MOST_TRIED = 100
"""Number of problems that are tried as the source of another image."""


def control_view(control: Control | None) -> View:
    """The view under which a model is asked."""
    views: dict[Control | None, View] = {"blank": Blank(), "degraded": Degraded(), "blind": Blind()}
    return views.get(control, Plain())


class NoOtherMedia(ValueError):
    """A problem for which no other has as many images and videos of other pixels.

    Args:
        problem: its id.
        counts: number of its images and videos.
    """

    def __init__(self, problem: str, counts: tuple[int, int]) -> None:
        super().__init__(
            f"no problem near {problem} has other media, and as many: {counts[0]} image(s) and {counts[1]} "
            "video(s)"
        )
        self.problem = problem


class OtherMedia(Sequence[Sample]):
    """Problems with the images and videos of another problem, the next one with as many.

    Args:
        source: the problems.
    """

    def __init__(self, source: FileSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        """A problem with another one's media.

        Raises:
            BadRowError: it cannot be read.
            NoOtherMedia: no problem near it has as many images and videos of other pixels.
        """
        sample: Sample = self.source[index]
        counts, pixels = (len(sample.images), len(sample.videos)), media_digest(sample)
        if counts == (0, 0):  # a problem in words alone is its own control
            return sample
        for distance in range(1, min(len(self), _MOST_TRIED)):
            try:
                other = self.source[(index + distance) % len(self)]
            except BadRowError:
                continue
            if (len(other.images), len(other.videos)) == counts and media_digest(other) != pixels:
                return replace(sample, images=other.images, videos=other.videos)
        raise NoOtherMedia(sample.id, counts)

    def column(self, name: str) -> list[str | None]:
        """Same as `FileSource.column`."""
        return self.source.column(name)
