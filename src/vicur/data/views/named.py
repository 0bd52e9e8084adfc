"""Views by name, as settings write them: `cue`, `crop + cue`, `degraded(0.1)`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vicur.data.sample import COLUMN, TEXT_KINDS
from vicur.data.views.controls import Augmented, Blank, Blind, Degraded, Masked
from vicur.data.views.regions import Crop, Erased
from vicur.data.views.replaced import Frames, Media, Ordered
from vicur.data.views.texts import Hinted, Solution, TeacherPrompt, Verdict
from vicur.data.views.view import Combined, OrPlain, Part, Plain, View, combined

MissingPrivilege = Literal["plain", "error"]
NONE = "none"
"""The privilege of a teacher that is shown the plain problem."""


@dataclass(frozen=True)
class _Named:
    """A part that settings can name.

    Attributes:
        make: the part from its arguments in brackets.
        form: how it is written, for messages.
    """

    make: Callable[..., Part]
    form: str


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _which(text: str) -> Part:
    if text not in ("privileged", "negative"):
        raise ValueError(f"{text!r} is neither privileged nor negative")
    return Media("privileged" if text == "privileged" else "negative")


NAMED: dict[str, _Named] = {
    "plain": _Named(Plain, "plain"),
    **{kind: _Named(lambda kind=kind: Hinted(kind), kind) for kind in TEXT_KINDS},
    "teacher_prompt": _Named(TeacherPrompt, "teacher_prompt"),
    "verdict": _Named(Verdict, "verdict"),
    "solution": _Named(Solution, "solution"),
    "crop": _Named(lambda margin="0": Crop(float(margin)), "crop(margin)"),
    "erased": _Named(lambda margin="0": Erased(float(margin)), "erased(margin)"),
    "images": _Named(_which, "images(privileged) or images(negative)"),
    "frames": _Named(lambda count=None: Frames(count and _integer(count)), "frames(count)"),
    "blind": _Named(Blind, "blind"),
    "blank": _Named(Blank, "blank"),
    "degraded": _Named(lambda ratio="0.1": Degraded(float(ratio)), "degraded(ratio)"),
    "masked": _Named(
        lambda probability="0.6", patch="14": Masked(float(probability), _integer(patch)),
        "masked(probability, patch)",
    ),
    "augmented": _Named(lambda strength="0.5": Augmented(float(strength)), "augmented(strength)"),
    "image_first": _Named(lambda: Ordered("image_first"), "image_first"),
    "question_first": _Named(lambda: Ordered("question_first"), "question_first"),
}
"""The parts of views by name. A hint from any other column is `column:NAME`."""
PRIVILEGED = (*TEXT_KINDS, "teacher_prompt", "images(privileged)", "images(negative)", "crop", "frames")
"""The views, one for each field of a `Privilege`, that a problem must have something for."""
_PART = re.compile(r"(\w+)\s*(?:\(([^()]*)\))?")


def view_of(text: str, setting: str = "A view") -> Part:
    """The view that a text names: parts joined by " + ".

    Args:
        text: e.g. "plain", "crop + cue", "degraded(0.1)", "column:caption".
        setting: the setting that names it, for messages.

    Raises:
        ValueError: a part does not exist, or its arguments are invalid.
    """
    # The name of a column may itself have a plus sign.
    joined = r"\s+\+\s+" if COLUMN in text else r"\s*\+\s*"
    parts = [_part(part, text, setting) for part in re.split(joined, text.strip())]
    if any(isinstance(p, Media) for p in parts) and any(isinstance(p, Crop | Erased) for p in parts):
        raise ValueError(
            f"{setting} has {text!r}: regions are those of the problem's own images, so crop and erased "
            "cannot be combined with images(...)."
        )
    return combined(parts)


def teacher_view(privilege: str, missing: MissingPrivilege = "plain", setting: str = "A privilege") -> View:
    """The view of a teacher that is given a privilege.

    Args:
        privilege: "none", or a view as `view_of` reads it.
        missing: view of a sample that lacks what is shown: the plain problem, or an error.
        setting: the setting that names it, for messages.

    Raises:
        ValueError: there is no such privilege.
    """
    if privilege == NONE:
        return Plain()
    view = view_of(privilege, setting)
    return OrPlain(view) if missing == "plain" and view != Plain() else view


def student_view(text: str, setting: str = "A student's view") -> Part:
    """The view of a student: nothing that only a teacher may see.

    Args:
        text: as `view_of` reads it.
        setting: the setting that names it, for messages.

    Raises:
        ValueError: there is no such view, or it shows a privilege.
    """
    view = view_of(text, setting)
    parts = view.parts if isinstance(view, Combined) else (view,)
    private = [part.name for part in parts if part.privileged]
    if private:
        raise ValueError(
            f"{setting}={text} would show the student {' and '.join(private)}, which only a teacher may see."
        )
    return view


def _part(text: str, whole: str, setting: str) -> Part:
    if text.startswith(COLUMN) and text != COLUMN:
        return Hinted(text)
    match = _PART.fullmatch(text)
    if match is None or match[1] not in NAMED:
        near = difflib.get_close_matches(text if match is None else match[1], NAMED, n=1)
        meant = f" ({near[0]}?)" if near else ""
        part = "" if text == whole else f" of {whole!r}"
        raise ValueError(
            f"{setting} has no part {text!r}{part}{meant}: a view is {', '.join(NAMED)}, {COLUMN}NAME, or "
            'several of these joined by " + ".'
        )
    named = NAMED[match[1]]
    arguments = [] if match[2] is None else [argument.strip() for argument in match[2].split(",")]
    try:
        return named.make(*arguments)
    except (TypeError, ValueError) as error:
        why = f": {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"{setting} has {text!r}, which is written {named.form}{why}") from error
