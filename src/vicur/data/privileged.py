"""What a row holds for the teacher alone besides texts: media, and where to look. Nothing is opened here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vicur.data.regions import BoxConfig, RawBox, pixels
from vicur.data.sample import Box, Interval, Privilege
from vicur.media.video import Video


@dataclass(frozen=True)
class PrivilegedMedia:
    """The media of a row that only a teacher may see, and the regions and intervals that matter.

    Attributes:
        images, videos, negative_images: the entries of the row, unopened.
        boxes: for each image of the problem the boxes as the row has them; empty if there are none.
        clips: for each video of the problem the intervals in seconds; empty if there are none.
        prompt_crops: for each image placeholder of the teacher prompt, whether it is a place of the images;
            empty if none is.
        unread: fields whose columns hold something else, with the reason.
    """

    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    negative_images: tuple[Any, ...] = ()
    boxes: tuple[tuple[RawBox, ...], ...] = ()
    clips: tuple[tuple[Interval, ...], ...] = ()
    prompt_crops: tuple[bool, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

    def opened(
        self,
        texts: Privilege,
        image: Callable[[Any], Image.Image],
        video: Callable[[Any], Video],
        regions: Sequence[tuple[Box, ...]],
    ) -> Privilege:
        """A privilege with texts and these media.

        Args:
            texts: the privilege so far.
            image, video: open an entry.
            regions: the boxes in pixels of the opened images.
        """
        return replace(
            texts,
            images=tuple(map(image, self.images)),
            videos=tuple(map(video, self.videos)),
            negative_images=tuple(map(image, self.negative_images)),
            regions=tuple(regions),
            clips=self.clips,
            prompt_crops=self.prompt_crops,
        )


def scaled_regions(
    boxes: Sequence[tuple[RawBox, ...]],
    sizes: Sequence[tuple[int, int]],
    raw_sizes: Sequence[tuple[int, int]],
    form: BoxConfig,
) -> list[tuple[Box, ...]]:
    """The boxes of each image in pixels of the image as it is kept, which may be smaller than its file.

    Args:
        boxes: the boxes of each image as the row has them.
        sizes: width and height of each image as it is kept.
        raw_sizes: width and height of each image in its file, upright.
        form: what the numbers of a box are.

    Raises:
        RowProblem: a box spans nothing, or lies outside its image.
    """
    regions = []
    for image_boxes, (width, height), raw in zip(boxes, sizes, raw_sizes, strict=True):
        across, down = width / raw[0], height / raw[1]
        in_file = [pixels(box, raw, form) for box in image_boxes]
        regions.append(
            tuple(
                (left * across, top * down, right * across, bottom * down)
                for left, top, right, bottom in in_file
            )
        )
    return regions
