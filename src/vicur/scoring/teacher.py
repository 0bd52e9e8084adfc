"""Teachers: a model that scores the student's responses, and the view under which it reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Literal

import torch
from torch import Tensor

from vicur.data.views import View, teacher_view
from vicur.distributed import Sharding
from vicur.media.pixels import PixelLimits
from vicur.models.adapters import LoRAConfig, adapter_parameters, add_adapter, has_adapters
from vicur.models.checkpoints import Dtype
from vicur.models.load import LoadedModel, as_base, copy_of, load_model, with_adapter
from vicur.models.sharding import local, shard
from vicur.models.vocabulary import check_same_vocabulary
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.settings.section import Decay, PathText, Text, section

SELF = "self"
_SHARED = (
    "Only a teacher with weights of its own can be offloaded, and {} shares the student's. Remove "
    "teacher.offload; training.offload=true offloads the student."
)
AVERAGE = "average"
"""Name of the adapter that is the moving average of a LoRA student's."""


@section
class TeacherConfig:
    """The teacher model, and what it sees beyond the student's prompt."""

    model: PathText = SELF
    """Checkpoint of the teacher: a folder, a hub id or "vicur:NAME" (OPD), or "self" for the student's own
    weights without cue recovery and adapters (self-distillation, OPSD)."""
    dtype: Dtype = "float32"
    """Compute dtype of a teacher with a checkpoint of its own; a self-teacher uses the student's."""
    update: Literal["frozen", "ema", "live"] = "frozen"
    """Weights of a self-teacher: the student's initial weights (frozen), an exponential moving average of its
    weights (ema), or its current weights (live)."""
    ema_decay: Decay = 0.999
    """Decay of the moving average per update, for update=ema."""
    offload: bool = False
    """Keep the weights of a teacher that does not share the student's in CPU memory; each layer is copied to
    the GPU when it runs, and all of them while the teacher writes responses."""
    keep_modules: bool = False
    """Whether a self-teacher keeps the student's cue recovery and adapters."""
    servers: list[Text] = field(default_factory=list)
    """URLs of servers of vLLM that run teacher.model instead of this process, each started with `vicur serve
    CHECKPOINT`. They return log-probs of sampled tokens, which is enough for objective.sampled_token and
    objective.grpo."""
    privilege: Text = "cue"
    """What the teacher is shown instead of the student's prompt: a view (docs/views.md), or none. Texts: cue,
    rationale, answer, `column:NAME` as a hint after the question; teacher_prompt. Media: crop,
    images(privileged), frames. Joined by " + ", e.g. "crop + cue"."""
    missing_privilege: Literal["plain", "skip", "error"] = "plain"
    """What to do with a problem that lacks what the teacher is to be shown: show it the plain problem
    (plain), skip the problem, or stop."""

    def __post_init__(self) -> None:
        if self.model != SELF and (self.update != "frozen" or self.keep_modules):
            raise ValueError(
                "teacher.update and teacher.keep_modules apply only to a self-teacher; any other checkpoint "
                "is frozen. Set teacher.model=self, or remove these settings."
            )
        if self.offload and self.update == "live":
            raise ValueError(_SHARED.format("teacher.update=live"))
        if self.servers and (self.model == SELF or self.offload):
            raise ValueError(
                "teacher.servers run a teacher with a checkpoint of its own: set teacher.model to the "
                "checkpoint that they were started with, and remove teacher.offload."
            )
        teacher_view(self.privilege, setting="privilege")

    @property
    def view(self) -> View:
        """The teacher's view."""
        return teacher_view(self.privilege, "plain" if self.missing_privilege == "plain" else "error")


class Teacher:
    """A model that scores rollouts without gradient, under its own view or another.

    Args:
        loaded: the model; it may share its weights with the student.
        view: the view that the recipe sets.
        scoring: layout and batching of its forward passes.
        average: updates the weights, if the teacher is the student's moving average.
        changes: whether the weights change between the updates of a rollout batch.
        limits: pixel limits of images and frames.
        offload: whether `shard` leaves the weights in CPU memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        view: View,
        scoring: ScoringConfig | None = None,
        average: MovingAverage | None = None,
        limits: PixelLimits | None = None,
        *,
        changes: bool = False,
        offload: bool = False,
    ) -> None:
        self.loaded = loaded
        self.offload = offload
        self.scorer = Scorer(loaded, scoring, limits, view, keep_head=changes)
        self.average = average

    @property
    def view(self) -> View:
        """What the recipe shows the teacher."""
        return self.scorer.view

    @classmethod
    def of(
        cls,
        config: TeacherConfig,
        student: LoadedModel,
        scoring: ScoringConfig | None = None,
        lora: LoRAConfig | None = None,
        limits: PixelLimits | None = None,
    ) -> Teacher:
        """Load the teacher, or make one from the student's current weights.

        Args:
            config: checkpoint, updates and privilege.
            student: the model that learns.
            scoring: layout and batching of the teacher's forward passes.
            lora: settings of the student's adapters.
            limits: pixel limits of images and frames.

        Raises:
            ValueError: the vocabularies differ, or the settings contradict each other.
        """
        if config.model != SELF:
            return cls(_other(config, student), config.view, scoring, limits=limits, offload=config.offload)
        make = _self_with_adapters if has_adapters(student.model) else _self
        loaded, average = make(config, student, lora)
        if config.offload and loaded.policy is student.policy:
            raise ValueError(_SHARED.format("the self-teacher of a LoRA student"))
        changes = config.update != "frozen"
        return cls(loaded, config.view, scoring, average, limits, changes=changes, offload=config.offload)

    def under(self, view: View, scoring: ScoringConfig | None, limits: PixelLimits | None) -> Teacher:
        """A teacher with the same weights under another view. The weights are updated through this one."""
        changes = self.scorer.keep_head
        return Teacher(self.loaded, view, scoring, None, limits, changes=changes, offload=self.offload)

    def shard(self, sharding: Sharding, device: torch.device) -> None:
        """Shard the weights, which must not be the student's own; those of a moving average in float32."""
        float32 = self.average is not None
        shard(self.loaded.policy, sharding, device, float32=float32, offload=self.offload)

    def tensors(self) -> dict[str, Tensor]:
        """The weights that change during training and are not the student's, by name, for checkpoints."""
        average = {} if self.average is None else self.average.average()
        return {f"average.{name}": tensor.detach() for name, tensor in average.items()}

    def update(self) -> None:
        """Move an EMA teacher one step towards the student; call it after each update of the student."""
        if self.average is not None:
            self.average.update()


def load_teachers(
    configs: Mapping[str, TeacherConfig],
    student: LoadedModel,
    scoring: ScoringConfig | None = None,
    lora: LoRAConfig | None = None,
    limits: PixelLimits | None = None,
) -> dict[str, Teacher]:
    """Several teachers by name; those that differ only in what they are shown share their weights.

    Args:
        configs: their settings.
        student, scoring, lora, limits: as in `Teacher.of`.

    Raises:
        ValueError: as in `Teacher.of`, or a LoRA student has two different moving averages.
    """
    teachers: dict[str, Teacher] = {}
    known: list[tuple[dict[str, object], Teacher]] = []
    for name, config in configs.items():
        of_view = ("privilege", "missing_privilege")
        weights = {key: value for key, value in vars(config).items() if key not in of_view}
        same = next((teacher for settings, teacher in known if settings == weights), None)
        if same is None:
            averages = config.model == SELF and config.update == "ema"
            if averages and has_adapters(student.model) and any(t.average for _, t in known):
                raise ValueError(
                    "A LoRA student has one moving average: give all teachers with update=ema the same "
                    "ema_decay."
                )
            teachers[name] = Teacher.of(config, student, scoring, lora, limits)
            known.append((weights, teachers[name]))
        else:
            teachers[name] = same.under(config.view, scoring, limits)
    return teachers


Weights = Callable[[], Mapping[str, Tensor]]
"""Looks up weights by name. Sharding replaces a model's parameters, so they are looked up when needed."""


class MovingAverage:
    """Exponential moving average of weights: average <- decay * average + (1 - decay) * student.

    The averaged weights must be float32, or a step of (1 - decay) times a small change would be rounded away;
    `vicur.models.sharding.shard` stores them so.

    Args:
        average: looks up the averaged weights.
        student: looks up the student's weights, with at least the same names.
        decay: share of the average that each update keeps.
    """

    def __init__(self, average: Weights, student: Weights, decay: float) -> None:
        self.average, self.student, self.decay = average, student, decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the student."""
        students = self.student()
        for name, averaged in self.average().items():
            assert averaged.dtype.itemsize >= 4, f"the average of {name} is in {averaged.dtype}"
            # Either may be offloaded.
            moved = local(students[name]).to(local(averaged).device, averaged.dtype)
            local(averaged).lerp_(moved, 1 - self.decay)


def _loading_device(config: TeacherConfig, student: LoadedModel) -> torch.device:
    """Where a teacher is before it is sharded: an offloaded one may be too large for the student's device."""
    return torch.device("cpu") if config.offload else student.device


def _other(config: TeacherConfig, student: LoadedModel) -> LoadedModel:
    return as_teacher_of(student, load_model(config.model, config.dtype, _loading_device(config, student)))


def as_teacher_of(student: LoadedModel, loaded: LoadedModel) -> LoadedModel:
    """A model with weights of its own as a student's teacher: frozen, scored over the student's vocabulary.

    Raises:
        ValueError: the vocabularies differ.
    """
    check_same_vocabulary(student.processor.tokenizer, loaded.processor.tokenizer)
    if loaded.model.get_output_embeddings().weight.shape[0] < student.vocabulary.size:
        raise ValueError(
            f"The teacher's head has fewer rows than the student's vocabulary of "
            f"{student.vocabulary.size} tokens."
        )
    _freeze(loaded)
    # Both are scored over the student's vocabulary, whatever stop tokens the teacher's files state.
    return replace(loaded, vocabulary=student.vocabulary)


def _self(
    config: TeacherConfig, student: LoadedModel, lora: LoRAConfig | None
) -> tuple[LoadedModel, MovingAverage | None]:
    """The self-teacher of a student without adapters: a copy, unless it is live."""
    if config.update == "live":
        return (student if config.keep_modules else as_base(student)), None
    device = _loading_device(config, student)
    copied = copy_of(student, with_recovery=config.keep_modules, device=device)
    _freeze(copied)
    if config.update == "frozen":
        return copied, None
    return copied, MovingAverage(
        lambda: dict(copied.model.named_parameters()),
        lambda: dict(student.model.named_parameters()),
        config.ema_decay,
    )


def _self_with_adapters(
    config: TeacherConfig, student: LoadedModel, lora: LoRAConfig | None
) -> tuple[LoadedModel, MovingAverage | None]:
    """The self-teacher of a LoRA student: its base, or for a moving average a second adapter.

    Raises:
        ValueError: the teacher would be the frozen base, or would need a second recovery module.
    """
    if config.update == "frozen" and not config.keep_modules:
        return as_base(student), None
    if config.update == "frozen":
        raise ValueError(
            "A frozen self-teacher of a LoRA student is its base: new adapters change nothing. Remove "
            "teacher.keep_modules, or set teacher.update=live or ema."
        )
    if not config.keep_modules:
        raise ValueError(
            f"teacher.update={config.update} without the adapters of a LoRA student is the frozen base. Set "
            "teacher.update=frozen, or teacher.keep_modules=true."
        )
    if config.update == "live":
        return student, None
    if student.recovery is not None:
        raise ValueError(
            "teacher.update=ema follows the adapters of a LoRA student, not its cue recovery module. Set "
            "teacher.update=live or frozen, or train all weights."
        )
    assert lora is not None, "a student with adapters needs their settings"
    add_adapter(student.model, lora, AVERAGE, trained=False)
    average, students = adapter_parameters(student.model, AVERAGE), adapter_parameters(student.model)
    with torch.no_grad():
        for name, parameter in average.items():
            parameter.copy_(students[name])
    return with_adapter(student, AVERAGE), MovingAverage(
        lambda: adapter_parameters(student.model, AVERAGE),
        lambda: adapter_parameters(student.model),
        config.ema_decay,
    )


def _freeze(loaded: LoadedModel) -> None:
    loaded.model.requires_grad_(False)
    loaded.model.eval()
