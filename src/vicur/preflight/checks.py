"""Checks before the first step that the teacher sees what it should, and the student nothing else.

Each check covers one way in which distillation goes wrong while the loss looks fine: a teacher
scored without the image, response tokens shifted between views, a hint in the student's prompt, a
teacher whose distribution is uniform. They run the real models on a few of the real problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.data.views import (
    EXAMPLE,
    Blind,
    Plain,
    View,
    is_privileged,
    privileged_texts,
    show,
    without_privilege,
)
from vicur.models.load import LoadedModel
from vicur.models.recovery import RecoveryObserver
from vicur.objectives.objective import TEACHER, Needs
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.chunks import divergence, observed_terms
from vicur.scoring.parity import ParityCheck
from vicur.scoring.scorer import Scorer
from vicur.scoring.served import ServedTeacher
from vicur.scoring.teacher import Teacher
from vicur.scoring.term import STUDENT, Scores, Term
from vicur.scoring.terms import entropy
from vicur.wording import counted

PROBLEMS = 2
"""Number of problems that the models are run on."""
RESPONSE_TOKENS = 24
"""Maximum length of the responses that the checks use, in tokens."""
SAME = 1e-4
"""Nats per token: two passes over the same prompt differ by less."""
SEES = 1e-3
"""Nats per token: removing the image changes the predictions of a teacher that sees it by more."""
UNIFORM = 0.98
"""Entropy, as a share of log V, at or above which a model counts as untrained."""
LONG = 20
"""Minimum length in characters: a shorter privilege, such as the answer 12, may occur in a question by
chance."""


class PreflightError(ValueError):
    """A check failed, so the run must not start."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: name of the check.
        passed: None where it does not apply.
        finding: a sentence with the numbers, or with the fault and its remedy.
    """

    name: str
    passed: bool | None
    finding: str


@dataclass(frozen=True)
class Preflight:
    """The result of the checks before the first step.

    Attributes:
        checks: the checks in order.
        student_prompt: the student's prompt for the first problem, as text.
        teacher_prompt: the same for the teacher, if there is one.
    """

    checks: tuple[Check, ...]
    student_prompt: str
    teacher_prompt: str | None

    def raise_if_failed(self) -> None:
        """Raise an error if a check failed.

        Raises:
            PreflightError: a check failed; the message names the first one and its finding.
        """
        for check in self.checks:
            if check.passed is False:
                raise PreflightError(f"Preflight failed, {check.name}: {check.finding}")


def run_preflight(
    samples: Sequence[Sample],
    student: Scorer,
    teachers: Mapping[str, Teacher],
    needs: Needs,
    *,
    engine: Engine | None = None,
    parity: ParityCheck | None = None,
    fitting: Sequence[Check] = (),
    text_only: bool = False,
    served: ServedTeacher | None = None,
    max_start_kl: float | None = None,
    resumes: bool = False,
) -> Preflight:
    """Run all checks, with the models on a few problems.

    No model is run if a check that needs none has failed.

    Args:
        samples: the training problems, those with an image or a video before those without; the first ones
            are taken.
        student: the model that learns.
        teachers: its teachers by name; none without one, or if it is on servers.
        needs: needs of the objective.
        engine: engine of the student's responses; PyTorch if not given.
        parity: compares the engine with the student; None if the student itself samples.
        fitting: results of `check_lengths`.
        text_only: whether problems without media are intended.
        served: the teacher on servers; None if there is none.
        max_start_kl: bound on the change of predictions by a fresh recovery module, in nats per token; None
            for no bound.
        resumes: whether the run will continue with the weights of a checkpoint, which are not loaded yet.
    """
    problems = _problems_to_check(samples)
    checks = _Checks(problems, student, teachers, needs, text_only, served)
    results = (checks.problems_have_media(), *fitting)
    if all(check.passed is not False for check in results):
        results += tuple(checks.by_models())
        if student.loaded.recovery is not None:
            results += (checks.start_of_recovery(max_start_kl, resumes=resumes),)
        if engine is not None and parity is not None:
            results += (checks.engine_agrees(engine, parity),)
    teacher_prompt = None
    if checks.teacher_view is not None:
        reader = served or teachers[TEACHER].scorer
        teacher_prompt = reader.encoder.render(show(checks.teacher_view, problems[0], EXAMPLE))
    return Preflight(
        checks=results,
        student_prompt=student.encoder.render(student.view.show(problems[0])),
        teacher_prompt=teacher_prompt,
    )


def check_lengths(who: str, sizes: PromptSizes, positions: int, max_new_tokens: int) -> Check:
    """Check, without running the model, that prompt and response fit its positions.

    Args:
        who: the model: "student" or "teacher".
        sizes: sizes of its prompts.
        positions: number of positions that the model supports.
        max_new_tokens: maximum length of a training response.
    """
    name, longest = f"{who}'s prompts fit", sizes.most_tokens
    if longest + max_new_tokens <= positions:
        return Check(
            name,
            True,
            f"longest prompt {longest} + response {max_new_tokens} tokens, of {positions} positions",
        )
    if max_new_tokens >= positions or longest <= max_new_tokens:
        fix = "Lower rollout.sampling.max_new_tokens."
    else:
        prefix = "" if who == "student" else "teacher_"
        fix = (
            f"Lower data.max_pixels, or skip such problems with data.max_{prefix}prompt_tokens="
            f"{positions - max_new_tokens}."
        )
    return Check(
        name,
        False,
        f"the prompt of problem {sizes.longest} has {longest} tokens; with a response of {max_new_tokens} "
        f"that is more than the {who}'s {positions} positions. {fix}",
    )


class _Checks:
    """The checks on a few problems and a short response to each."""

    def __init__(
        self,
        samples: Sequence[Sample],
        student: Scorer,
        teachers: Mapping[str, Teacher],
        needs: Needs,
        text_only: bool,
        served: ServedTeacher | None = None,
    ) -> None:
        self.samples, self.student, self.teachers, self.served = samples, student, teachers, served
        self.teacher_view = teachers[TEACHER].view if TEACHER in teachers else None
        if served is not None:
            self.teacher_view = served.view
        self.needs, self.text_only = needs, text_only
        self.has_media = any(sample.images or sample.videos for sample in samples)

    @cached_property
    def responses(self) -> list[Tensor]:
        """A short response of the student to each problem."""
        return _respond(self.student, self.samples)

    def by_models(self) -> Iterator[Check]:
        """The checks that need the models."""
        yield self.student_sees_no_privilege()
        yield self.working_order("student", self.student)
        if self.served is not None:
            yield self.hint_is_shown("the teacher", self.served.view)
            yield self.served_teacher_sees(self.served)
        for name, teacher in self.teachers.items():
            who = "the teacher" if name == TEACHER else f"the teacher {name}"
            yield self.hint_is_shown(who, teacher.view)
            yield self.working_order(who.removeprefix("the "), teacher.scorer)
            yield self.same_view_twice(who, teacher)
            yield self.same_weights(who, teacher)
            yield self.teacher_sees(who, teacher)
        if self.teachers:
            yield self.same_response()

    def start_of_recovery(self, most: float | None, *, resumes: bool) -> Check:
        """Check that a fresh recovery module leaves the student able to do what its base can."""
        name = "cue recovery at the start"
        if resumes:
            return Check(name, None, "the run continues from a checkpoint")
        if not self.has_media:
            return Check(name, None, "no problem has an image or a video")
        model, is_fresh = self.student.loaded.model, self.student.loaded.has_fresh_recovery
        with RecoveryObserver(self.student.loaded.recovery) as observer:
            recovering = self._scores(self.student, self.student.view)
        with model.without_recovery():
            base = self._scores(self.student, self.student.view)
        kl_N = divergence(recovering, base, self.student.reading(torch.cat(self.responses)))
        mean = float(kl_N.mean())
        measured = (
            f"KL between with and without recovery {mean:.2g} nats per token, up to "
            f"{float(kl_N.max()):.2g}; |change|/|h_sink| {_by_layer(observer)}"
        )
        if not is_fresh:
            return Check(name, True, f"{measured}. The module is trained, so there is no bound")
        if most is None or mean <= most:
            return Check(name, True, measured)
        return Check(
            name,
            False,
            f"{measured}. A fresh module may change the predictions by student.recovery.max_start_kl="
            f"{most:g} nats per token. Start with student.recovery.output_init=zero and a higher "
            "student.recovery.learning_rate, e.g. 1e-4 (with vicur init: --output-init zero), or raise the "
            "bound.",
        )

    def engine_agrees(self, engine: Engine, parity: ParityCheck) -> Check:
        """Check that the engine computes what the student computes, on responses that it samples."""
        name = f"the engine {parity.engine} agrees with the trainer"
        generator = ModelGenerator(
            engine, SamplingConfig(max_new_tokens=RESPONSE_TOKENS), encode=self.student.encode
        )
        difference = parity.measure(generator.generate(self.samples, self.student.view))
        if parity.passes(difference):
            return Check(
                name,
                True,
                f"log-probs differ by {difference.mean:.1e} nats, by up to {difference.largest:.1e}",
            )
        return Check(name, False, f"it {parity.fault(difference)}")

    def problems_have_media(self) -> Check:
        """Check that there are images or videos, unless the data is meant to have none."""
        name = "problems have images"
        if self.has_media:
            return Check(name, True, f"checking the first {counted(len(self.samples), 'problem')} with media")
        if self.text_only:
            return Check(name, None, "data.text_only=true")
        return Check(
            name,
            False,
            "no problem has an image or a video. See what was read with vicur data inspect, name the column "
            "with data.columns.images=..., or set data.text_only=true if that is intended.",
        )

    def student_sees_no_privilege(self) -> Check:
        """Check that removing answer and privileges changes no prompt of the student."""
        name = "no privilege reaches the student"
        models: dict[str, View] = {STUDENT: self.student.view}
        looks = [look for look in self.needs.looks if look.who == STUDENT]
        views = {look.resolved(models) for look in looks} | {self.student.view}
        for sample in self.samples:
            bare = without_privilege(sample)
            for view in views:
                content, bare_content = view.show(sample), view.show(bare)
                if is_privileged(view) or content != bare_content:
                    return Check(name, False, f"the view {view.name} shows the student a hint.")
                prompt = self.student.encoder.render(content)
                for kind, text in privileged_texts(sample).items():
                    if len(text) >= LONG and text in prompt:
                        return Check(
                            name,
                            False,
                            f"the question of problem {sample.id} contains its {kind}; remove it there.",
                        )
        views_checked, problems = counted(len(views), "view"), counted(len(self.samples), "problem")
        return Check(name, True, f"{views_checked} of {problems}")

    def hint_is_shown(self, who: str, view: View) -> Check:
        """Check that a teacher's prompt holds the privilege that the recipe gives it."""
        name = f"{who} is shown its privilege"
        if view == Plain():
            return Check(name, None, "the recipe has no privilege")
        having = [sample for sample in self.samples if view.applies(sample)]
        if not having:
            return Check(name, None, f"none of the checked problems has what {view.name} shows")
        students = self.student.view
        same = sum(show(view, sample, EXAMPLE) == students.show(sample) for sample in having)
        if same == len(having):
            return Check(
                name,
                None if len(having) < len(self.samples) else False,
                f"in the checked problems the view {view.name} shows {who} what the student sees",
            )
        problems = counted(len(self.samples), "problem")
        return Check(name, True, f"{view.name}, for {len(having)} of {problems}")

    def working_order(self, who: str, scorer: Scorer) -> Check:
        """Check that the distributions are finite and not uniform."""
        name = f"{who}'s entropy is plausible"
        reading = scorer.reading(torch.cat(self.responses))
        term = Term("entropy", lambda block: entropy(block.log_p_CV))
        mean = float(observed_terms(self._scores(scorer, Plain()), reading, [term], {})[0].mean())
        most = math.log(len(reading.kept_V))
        if math.isfinite(mean) and mean < UNIFORM * most:
            return Check(name, True, f"entropy {mean:.2f} nats per token; uniform distribution {most:.2f}")
        return Check(
            name,
            False,
            f"its entropy is {mean:.2f} nats per token; a uniform distribution has {most:.2f}. Does the "
            "checkpoint have trained weights?",
        )

    def same_view_twice(self, who: str, teacher: Teacher) -> Check:
        """Check that two passes over the same prompt agree."""
        name = _about(who, "same view twice")
        kl = self._kl(*(self._scores(teacher.scorer, Plain()) for _ in range(2)))
        if kl < SAME:
            return Check(name, True, f"KL {kl:.1e} nats per token")
        return Check(
            name,
            False,
            f"two forward passes of {who} on one prompt differ by {kl:.1e} nats per token. Is dropout on?",
        )

    def same_weights(self, who: str, teacher: Teacher) -> Check:
        """Check that a self-teacher under the student's view predicts what the student predicts."""
        name = _about(who, "same weights, same view")
        if not _same_function(teacher.loaded, self.student.loaded):
            return Check(name, None, "the teacher is another model, or the student has trained cue recovery")
        kl = self._kl(self._scores(self.student, Plain()), self._scores(teacher.scorer, Plain()))
        if kl < SAME:
            return Check(name, True, f"KL {kl:.1e} nats per token")
        return Check(
            name, False, f"the self-teacher differs from the student by {kl:.1e} nats per token at the start."
        )

    def teacher_sees(self, who: str, teacher: Teacher) -> Check:
        """Check that a teacher's predictions change without the image."""
        name = f"{who} sees the image"
        if not self.has_media:
            return Check(name, None, "no problem has an image or a video")
        seeing, blind = (self._scores(teacher.scorer, view) for view in (Plain(), Blind()))
        kl = self._kl(seeing, blind)
        if kl > SEES:
            return Check(name, True, f"KL between with and without the image {kl:.3f} nats per token")
        return Check(
            name,
            False,
            f"the predictions of {who} are the same with and without the image (KL {kl:.1e} nats per "
            "token). Does its processor pass the pixels on, and does the checkpoint have vision weights?",
        )

    def served_teacher_sees(self, served: ServedTeacher) -> Check:
        """Check that the log-probs of a teacher on servers change without the image."""
        name = "the teacher sees the image"
        if not self.has_media:
            return Check(name, None, "no problem has an image or a video")
        responses = [[ids] for ids in self.responses]
        seeing, blind = (served.log_probs(self.samples, responses, view) for view in (Plain(), Blind()))
        change = float((seeing - blind).abs().mean())
        if change > SEES:
            return Check(name, True, f"its log-probs change by {change:.3f} nats per token without the image")
        return Check(
            name,
            False,
            f"the log-probs of the teacher's servers are the same with and without the image ({change:.1e} "
            "nats per token). Does the checkpoint have vision weights?",
        )

    def same_response(self) -> Check:
        """Check that every view has the same response tokens."""
        scorers = {STUDENT: self.student} | {name: t.scorer for name, t in self.teachers.items()}
        models = {name: scorer.view for name, scorer in scorers.items()}
        asked = [look for look in self.needs.looks if look.who in scorers]  # others are on servers
        looks = {*models.items(), *((look.who, look.resolved(models)) for look in asked)}
        expected = torch.cat(self.responses)
        for who, view in looks:
            scorer = scorers[who]
            try:
                sequences = scorer.sequences(
                    scorer.encode(self.samples, view), [[ids] for ids in self.responses]
                )
            except AssertionError as error:  # from the builders of sequences and prompts
                return Check("same response in every view", False, f"{who}, {view.name}: {error}.")
            if not torch.equal(sequences.response_ids.cpu(), expected):
                return Check(
                    "same response in every view", False, f"{who}, {view.name}: the response tokens differ."
                )
        finding = f"{len(expected)} tokens, {counted(len(looks), 'pair')} of model and view"
        return Check("same response in every view", True, finding)

    def _scores(self, scorer: Scorer, view: View) -> Scores:
        return scorer.scores(self.samples, [[ids] for ids in self.responses], view)

    def _kl(self, first: Scores, second: Scores) -> float:
        return float(divergence(first, second, self.student.reading(torch.cat(self.responses))).mean())


def _about(who: str, what: str) -> str:
    """The name of a check of one of several teachers."""
    return what if who == "the teacher" else f"{what}, {who}"


def _problems_to_check(samples: Sequence[Sample]) -> list[Sample]:
    """The first problems that can be read.

    Raises:
        BadRowError: none can.
    """
    readable: list[Sample] = []
    unreadable: list[BadRowError] = []
    for index in range(len(samples)):
        try:
            readable.append(samples[index])
        except BadRowError as error:  # the loop decides whether such rows end the run
            unreadable.append(error)
        if len(readable) == PROBLEMS:
            break
    if not readable:
        raise unreadable[0]
    return readable


def _by_layer(observer: RecoveryObserver) -> str:
    """The mean of |change| / |h_sink| of each recovery layer, in words."""
    means = {layer: sum(ratios) / len(ratios) for layer, ratios in observer.change_ratios().items()}
    return ", ".join(f"{mean:.2g} (layer {layer})" for layer, mean in means.items())


def _respond(student: Scorer, samples: Sequence[Sample]) -> list[Tensor]:
    sampling = SamplingConfig(max_new_tokens=RESPONSE_TOKENS)
    generator = ModelGenerator(make_engine(student.loaded), sampling, encode=student.encode)
    rollouts = generator.generate(samples, student.view)
    return [response.ids for response in rollouts.flat_responses]


def _same_function(teacher: LoadedModel, student: LoadedModel) -> bool:
    """Whether both must predict the same: a self-teacher, with no recovery active in only one of them."""
    if teacher.processor is not student.processor:
        return False
    recovery = student.recovery
    if recovery is None or (teacher.recovery is not None and teacher.mode is student.mode):
        return True
    return not any(bool(p.any()) for name, p in recovery.named_parameters() if "output" in name)
