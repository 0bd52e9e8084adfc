"""Reports the worth of privileges, as a table and a few sentences."""

from __future__ import annotations

from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vicur.evaluation.statistics import Estimate
from vicur.wording import counted
from vicur.worth.summary import Certainty, ConditionWorth, PrivilegeWorth

NOTHING = "-"
RANKED = {
    "certainty": "Change of log-prob of correct responses (of all, if none is correct)",
    "discrimination": "Change of log-prob of correct minus incorrect responses",
    "shift": "Shift of the teacher",
    "information": "Information",
}


def condition_title(condition: ConditionWorth) -> str:
    """Conditions in words, e.g. "shuffled cue"."""
    return {
        "plain": "nothing",
        "own": f"{condition.kind}",
        "another": f"shuffled {condition.kind}",
        "blind": "no image",
        "blind_hinted": f"no image, {condition.kind}",
    }[condition.shows]


def worth_table(worth: PrivilegeWorth, title: str = "Worth of privileges") -> Table:
    """Kinds and controls as rows, 80 columns wide; in nats per token."""
    graded = worth.correct > 0 or any(c.incorrect is not None for c in worth.conditions)
    about = f"responses: change of the teacher's log-prob of the student's {worth.responses} responses"
    if graded:
        about = (
            "correct, incorrect: change of the teacher's log-prob of the student's correct or incorrect "
            f"responses ({worth.correct} of {worth.graded} are correct)"
        )
    caption = (
        "nats per token, ± half-width of the 95 % bootstrap interval over "
        f"{counted(worth.problems, 'problem')}; {about} against the teacher shown nothing, whose log-prob is "
        "in brackets; shuffled: the text of another problem; shift: KL from the teacher shown nothing"
    )
    bounds = [c.information for c in worth.conditions if c.information is not None]
    if bounds:
        fewest, most = min(b.num_texts[0] for b in bounds), max(b.num_texts[1] for b in bounds)
        texts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        bound = max(b.bound for b in bounds)
        caption += f"; information from {texts} texts per problem: at most log n = {bound:.2f}"
    if worth.left_out:
        caption += f"; skipped without a text: {counted(worth.left_out, 'problem')}"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("shown", no_wrap=True)
    groups = ("correct", "incorrect") if graded else ("responses",)
    for name in (*groups, "shift", "information"):
        table.add_column(name, justify="right", no_wrap=True)
    for condition in worth.conditions:
        certainties = (condition.correct, condition.incorrect) if graded else (condition.all,)
        table.add_row(
            escape(condition_title(condition)),
            *(_certainty(condition, certainty) for certainty in certainties),
            _cell(None if condition.shift is None else condition.shift.whole, ""),
            _cell(None if condition.information is None else condition.information.estimate, ""),
        )
    return table


def student_loss_table(worth: PrivilegeWorth) -> Table | None:
    """The split of the student's loss by condition, in nats per token; None if it was not measured."""
    measured = [condition for condition in worth.conditions if condition.student_loss is not None]
    if not measured:
        return None
    table = Table(
        title="Student's loss over the texts",
        caption="nats per token, ± half-width of the 95 % bootstrap interval over problems; loss: mean over "
        "the texts of KL(teacher shown the text || student); information: the part about the texts alone, "
        "which no student that does not see them can reduce; rest: KL(mean teacher || student); share: "
        "information over loss",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("shown", no_wrap=True)
    for name in ("loss", "= information", "+ rest", "share, %"):
        table.add_column(name, justify="right", no_wrap=True)
    for condition in measured:
        split = condition.student_loss
        assert split is not None
        share = Estimate(*(100 * end for end in (split.share.value, split.share.low, split.share.high)))
        numbers = [_cell(number, "") for number in (split.loss, split.information, split.rest)]
        percent = f"{share.value:.0f} ±{(share.high - share.low) / 2:.0f}"
        table.add_row(escape(condition_title(condition)), *numbers, percent)
    return table


def reading(worth: PrivilegeWorth) -> str:
    """What the numbers show of the first kind, and what they do not show."""
    condition = next(c for c in worth.conditions if c.shows == "own")
    about, certainty = ("correct", condition.correct) if condition.correct else ("all", condition.all)
    gain = certainty.per_token
    text = (
        f"Given the {condition.kind}, the teacher's log-prob of {about} responses {_verdict(gain)} its "
        f"log-prob without a hint ({_bracket(gain)} nats per token)"
    )
    for pair in worth.comparisons:
        if (pair.ours, pair.theirs) == (condition.name, f"another_{condition.name}"):
            text += (
                f" and {_verdict(pair.difference)} its log-prob given another problem's {condition.kind} "
                f"({_bracket(pair.difference)})"
            )
    text += (
        ". This measures how this teacher uses the texts. It does not show that they are true, that they do "
        "not leak the answer, or that a student learns from them."
    )
    if condition.correct is not None:
        text += " Correct is the grader's verdict, which includes answers that are right by luck."
    return text


def rank_lines(worth: PrivilegeWorth) -> list[str]:
    """The ranking of the kinds, a line for each number; empty with only one kind.

    In the ranking by certainty, neighbours whose paired interval contains 0 are joined by "~".
    """
    pairs = {(pair.ours, pair.theirs): pair.difference for pair in worth.comparisons}
    lines = []
    for name, kinds in worth.rankings.items():
        if len(kinds) < 2:
            continue
        numbers = [f"{kind} {_ranked(worth[kind], name).value:+.3f}" for kind in kinds]
        line = numbers[0]
        for (first, second), number in zip(pairwise(kinds), numbers[1:], strict=True):
            difference = pairs.get((first, second)) or pairs[second, first]
            apart = name != "certainty" or difference.low > 0 or difference.high < 0
            line += f" {'>' if apart else '~'} {number}"
        lines.append(f"{RANKED[name]}: {line}.")
    return lines


def _ranked(condition: ConditionWorth, name: str) -> Estimate:
    known = {
        "certainty": (condition.correct or condition.all).per_token,
        "discrimination": condition.discrimination,
        "shift": condition.shift.whole if condition.shift else None,
        "information": condition.information.estimate if condition.information else None,
    }[name]
    assert known is not None, "only what is known of all kinds is ranked"
    return known


def _verdict(estimate: Estimate) -> str:
    if estimate.low > 0:
        return "is higher than"
    return "is lower than" if estimate.high < 0 else "does not differ clearly from"


def _certainty(condition: ConditionWorth, certainty: Certainty | None) -> str:
    if certainty is None:
        return NOTHING
    # The plain view's difference would be 0 throughout: the others are measured from its log-prob.
    return f"({certainty.level.value:.3f})" if condition.shows == "plain" else _cell(certainty.per_token, "+")


def _cell(estimate: Estimate | None, sign: str) -> str:
    return (
        NOTHING
        if estimate is None
        else f"{estimate.value:{sign}.3f} ±{(estimate.high - estimate.low) / 2:.3f}"
    )


def _bracket(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
