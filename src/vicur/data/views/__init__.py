"""Views: which parts of a sample a model is shown.

`view` has the protocol and the combination of several, `named` reads views from settings, and the other
modules have the views.
"""

from vicur.data.views.controls import Augmented, Blank, Blind, Degraded, Masked
from vicur.data.views.named import PRIVILEGED, student_view, teacher_view, view_of
from vicur.data.views.regions import Crop, Erased
from vicur.data.views.replaced import Frames, Media, Ordered
from vicur.data.views.texts import (
    Hinted,
    Solution,
    TeacherPrompt,
    Verdict,
    privileged_texts,
    without_privilege,
)
from vicur.data.views.view import (
    EXAMPLE,
    Attempt,
    Combined,
    OrPlain,
    Part,
    Plain,
    Shown,
    View,
    at_step,
    combined,
    in_hindsight,
    is_privileged,
    on_top,
    show,
)

__all__ = [
    "EXAMPLE",
    "PRIVILEGED",
    "Attempt",
    "Augmented",
    "Blank",
    "Blind",
    "Combined",
    "Crop",
    "Degraded",
    "Erased",
    "Frames",
    "Hinted",
    "Masked",
    "Media",
    "OrPlain",
    "Ordered",
    "Part",
    "Plain",
    "Shown",
    "Solution",
    "TeacherPrompt",
    "Verdict",
    "View",
    "at_step",
    "combined",
    "in_hindsight",
    "is_privileged",
    "on_top",
    "privileged_texts",
    "show",
    "student_view",
    "teacher_view",
    "view_of",
    "without_privilege",
]
