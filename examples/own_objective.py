"""An objective defined outside the package, with its own view and token weights.

It minimises the reverse KL to the recipe's teacher, and weights each token by how much the teacher's log-prob
of it falls when the image is blurred: tokens that need no fine detail count little.

    vicur cuebench make --family segments --split train --n 64 --output train.parquet
    vicur train cuebench/opsd_cue data.train=train.parquet training.steps=2 training.prompts_per_step=8 \
        objective.custom.path=examples/own_objective.py:SharpTokens objective.custom.radius=3
"""

from dataclasses import dataclass, replace

from PIL import ImageFilter

from vicur.data.views import Plain
from vicur.objectives.objective import TEACHER, Look, Needs, Weighed
from vicur.scoring.term import Term
from vicur.scoring.terms import reverse_kl


@dataclass(frozen=True)
class Blurred:
    """A view: the problem with its images blurred."""

    radius: float
    name = "blurred"
    keeps_tokens = True  # only pixels differ from the student's prompt

    def applies(self, sample):
        return True

    def show(self, sample):
        blur = ImageFilter.GaussianBlur(self.radius)
        return replace(Plain().show(sample), images=tuple(image.filter(blur) for image in sample.images))


@dataclass(frozen=True)
class SharpTokens:
    """Reverse KL to the teacher. A token's weight is `floor` plus the drop of its log-prob under the blur."""

    weight: float = 1.0
    radius: float = 2.0
    floor: float = 0.1

    def needs(self, step):
        looks = {"sharp": Look("teacher", Plain()), "blurred": Look("teacher", Blurred(self.radius))}
        # A look without a view uses the recipe's view of the teacher: here the hinted prompt.
        return Needs(log_probs=looks, distributions={TEACHER: Look("teacher")})

    def weigh(self, scored):
        fall = (scored.log_probs["sharp"] - scored.log_probs["blurred"]).clamp(min=0)
        weights = (self.floor + fall) / (self.floor + fall).sum()  # the whole reduction, 1/N included
        kl = Term("kl", teacher_kl, weights, reads=(TEACHER,))
        return Weighed([kl], tokens={"fall": fall}, summaries={"fall": "top_mass"})


def teacher_kl(block):
    return reverse_kl(block.log_p_CV, block.distribution(TEACHER))
