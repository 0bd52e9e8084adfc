"""Published recipes: their headers, what each differs in from the row beside it, and their index."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from vicur.run.recipe import load_recipe

ROOT = Path(__file__).parents[2] / "src" / "vicur" / "recipes"
RUNNABLE = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in sorted(ROOT.rglob("*.yaml"))
    if path.parent.name != "bases"
}
PUBLISHED = {name: path for name, path in RUNNABLE.items() if not name.startswith("cuebench/")}
BASES = [path for path in sorted(ROOT.rglob("*.yaml")) if path.parent.name == "bases"]
INDEX = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
LABELS = ["Paper", "Table", "Row", "Command", "Hardware", "Score", "Assumed"]


def header(path):
    """The entries of the comment at the top, by label."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    entries = {}
    for line in lines[:end]:
        label = re.match(r"# (\w+):\s{2,}", line)
        if label:
            entries[label[1]] = [line[label.end() :]]
        elif entries:
            next(reversed(entries.values())).append(line.lstrip("# "))
    return entries


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_header_has_its_labels_in_order(name):
    path = RUNNABLE[name]
    assert re.match(r"# \w.*\n#", path.read_text()), "one sentence says what it is"
    labels = list(header(path))
    optional = {"Table", "Row"} if name.startswith("cuebench/") else set()
    assert labels == [label for label in LABELS if label in labels or label not in optional]
    assert all("".join(text).strip() for text in header(path).values())


@pytest.mark.parametrize("path", BASES, ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_a_base_says_what_it_holds_and_where_from(path):
    assert path.read_text().startswith("# ")
    assert list(header(path)) == ["Stated", "Assumed"]


def test_every_base_is_some_recipes_base():
    named = {
        (path.parent / name).resolve()
        for path in [*RUNNABLE.values(), *BASES]
        for line in re.findall(r"^base: (.*)$", path.read_text(), flags=re.MULTILINE)
        for name in re.findall(r"[\w./]+\.yaml", line)
    }
    assert {path.resolve() for path in BASES} <= named


@cache
def loaded(name):
    return load_recipe(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_loads_and_its_command_is_about_it(name):
    recipe = loaded(name)
    assert recipe.training.name == name
    vicur, train, named, *overrides = shlex.split(" ".join(header(PUBLISHED[name])["Command"]))
    assert (vicur, train, named) == ("vicur", "train", name)
    with_overrides = load_recipe(name, overrides)
    assert with_overrides.data.train != "train.parquet"
    if with_overrides.has_teacher and recipe.teacher.privilege == "cue":
        assert "cue" in with_overrides.data.train


def differences(one, other, prefix=""):
    """The settings in which two recipes differ; an optional section that one lacks counts as a whole."""
    if is_dataclass(one) and is_dataclass(other):
        own = (f.name for f in fields(one))
        return {
            key
            for name in own
            for key in differences(getattr(one, name), getattr(other, name), f"{prefix}.{name}".lstrip("."))
        }
    return set() if one == other else {prefix}


RECOVERY = {"student.recovery.enabled", "student.recovery.interval", "student.recovery.output_init"}
PRIVILEGE = {"teacher.privilege"}
TEACHER = {"teacher.model"}
PARTS = {"objective.divergence", "objective.visual_advantage"}
STEERING = "objective.visual_steering"
VA = "objective.visual_advantage"
PRIMARY = "va_opd/geometry3k_8b"

PAIRS = [
    # ViCuR, table 1: cue and recovery against the answer or nothing; OPSD and OPD by their teacher.
    *((f"vicur/{s}/opsd", f"vicur/{s}/opsd_vicur", PRIVILEGE | RECOVERY) for s in ("2b", "8b")),
    *((f"vicur/{s}/opd", f"vicur/{s}/opd_vicur", PRIVILEGE | RECOVERY) for s in ("2b", "8b")),
    *((f"vicur/{s}/opsd", f"vicur/{s}/opd", PRIVILEGE | TEACHER) for s in ("2b", "8b")),
    *(
        (
            f"vicur/{s}/opsd",
            f"vicur/{s}/grpo",
            # A GRPO run has no teacher: what is said of one there is nowhere used.
            {"objective.sampled_token", "objective.grpo", "rollout.group_size", *PRIVILEGE, "teacher.dtype"},
        )
        for s in ("2b", "8b")
    ),
    *((f"vicur/2b/{row}", f"vicur/8b/{row}", {"student.model"}) for row in ("grpo", "opsd", "opsd_vicur")),
    *((f"vicur/2b/{row}", f"vicur/8b/{row}", {"student.model", *TEACHER}) for row in ("opd", "opd_vicur")),
    # ViCuR, tables 2 and 5: {answer, cue} x {without, with recovery}, and the same with a larger teacher.
    *(
        (f"vicur/geometry3k/{s}/{one}", f"vicur/geometry3k/{s}/{other}", expected)
        for s in ("2b", "8b")
        for one, other, expected in (
            ("opsd_answer", "opsd_cue", PRIVILEGE),
            ("opsd_answer", "opsd_recovery", RECOVERY),
            ("opsd_cue", "opsd_vicur", RECOVERY),
            ("opsd_recovery", "opsd_vicur", PRIVILEGE),
            ("opd", "opd_answer", PRIVILEGE),
            ("opd", "opd_cue", PRIVILEGE),
            ("opd_cue", "opd_vicur", RECOVERY),
            ("opsd_vicur", "opd_vicur", TEACHER),
        )
    ),
    *(
        (
            f"vicur/{s}/opsd_vicur",
            f"vicur/geometry3k/{s}/opsd_vicur",
            {
                "data.train",
                "data.max_prompt_tokens",
                "rollout.sampling.max_new_tokens",
                "training.epochs",
            },
        )
        for s in ("2b", "8b")
    ),
    # VA-OPD, table 2: the method; then teacher and data.
    *(
        (f"va_opd/{config}/standard_opd", f"va_opd/{config}/va_opd", PARTS)
        for config in ("geometry3k_4b", "geometry3k_8b", "geometry3k_32b", "virl39k_8b")
    ),
    *((f"{PRIMARY}/va_opd", f"va_opd/geometry3k_{t}/va_opd", TEACHER) for t in ("4b", "32b")),
    (f"{PRIMARY}/va_opd", "va_opd/virl39k_8b/va_opd", {"data.train"}),
    # VA-OPD, table 1 and figures 4a and 2b.
    (
        f"{PRIMARY}/standard_opd",
        f"{PRIMARY}/off_policy_kd",
        {"objective.divergence.kind", "rollout.source"},
    ),
    (
        f"{PRIMARY}/off_policy_kd",
        f"{PRIMARY}/cot_sft",
        {"objective.divergence", "objective.supervised"},
    ),
    (f"{PRIMARY}/standard_opd", f"{PRIMARY}/grpo", {"objective.divergence", "objective.grpo", *TEACHER}),
    (f"{PRIMARY}/grpo", f"{PRIMARY}/papo", {"objective.grpo", "objective.papo"}),
    (f"{PRIMARY}/va_opd", f"{PRIMARY}/rollout_weights", {f"{VA}.grouped"}),
    (f"{PRIMARY}/va_opd", f"{PRIMARY}/grouped_kl", {f"{VA}.rollout_weights"}),
    *((f"{PRIMARY}/standard_opd", f"{PRIMARY}/mask_{d}", PARTS) for d in ("top", "lowest", "random")),
    *((f"{PRIMARY}/mask_top", f"{PRIMARY}/mask_{d}", {f"{VA}.drop"}) for d in ("lowest", "random")),
    # VGS, table 1, table 5, figures 4 and 5.
    *((f"vgs/{s}/standard_opd", f"vgs/{s}/vgs", {"objective.divergence", STEERING}) for s in ("2b", "4b")),
    ("vgs/2b/standard_opd", "vgs/4b/standard_opd", {"student.model"}),
    ("vgs/2b/vgs", "vgs/4b/vgs", {"student.model", f"{STEERING}.scale"}),
    ("vgs/2b/vgs", "vgs/2b/vgs_adaptive", {f"{STEERING}.adaptive"}),
    ("vgs/2b/vgs", "vgs/2b/vgs_no_preservation", {f"{STEERING}.beta"}),
    ("vgs/2b/vgs", "vgs/2b/language_steering", {f"{STEERING}.steering", f"{STEERING}.scale"}),
    # VGS, table 2, and the teacher, which is GRPO of another model for twice as long.
    (
        "vgs/2b/grpo",
        "vgs/2b/grpo_standard_opd",
        {"objective.grpo.weight", "objective.divergence", *TEACHER, *PRIVILEGE, "teacher.dtype"},
    ),
    ("vgs/2b/grpo_standard_opd", "vgs/2b/grpo_vgs", {"objective.divergence", STEERING}),
    ("vgs/2b/grpo", "vgs/teacher", {"student.model", "training.epochs"}),
    # VCSD and Vision-OPD, table 1; V-Zero with its gate and without.
    ("vcsd/2b", "vcsd/4b", {"student.model"}),
    ("vcsd/4b", "vcsd/8b", {"student.model"}),
    ("vision_opd/4b", "vision_opd/8b", {"student.model"}),
    ("v_zero/4b_opd", "v_zero/4b", {"objective.sampled_token.gate.evidence"}),
]


@pytest.mark.parametrize("one, other, expected", PAIRS)
def test_two_rows_differ_only_where_the_paper_says(one, other, expected):
    assert differences(loaded(one), loaded(other)) - {"training.name", "training.output"} == expected


def test_every_row_is_in_some_pair():
    assert set(PUBLISHED) <= {name for one, other, _ in PAIRS for name in (one, other)}


def test_every_student_of_vgs_learns_from_its_own_teacher():
    """The teacher's recipe writes the checkpoint that the others load."""
    folder = f"{loaded('vgs/teacher').training.output}/checkpoints/final"
    students = [name for name in PUBLISHED if name.startswith("vgs/") and loaded(name).has_teacher]
    assert len(students) == 9
    assert {loaded(name).teacher.model for name in students} == {folder}


INDEXED = re.findall(r"^\| .*? \| (.*?) \| `([\w/]+)` \|$", INDEX, flags=re.MULTILINE)


def test_the_index_has_every_published_recipe_and_no_other():
    assert {name for _, name in INDEXED} == set(PUBLISHED)
    mentioned = set(re.findall(r"(?:vicur|va_opd|vgs|vcsd|vision_opd|v_zero)/[\w/]+", INDEX))
    assert mentioned <= set(PUBLISHED) | {"vgs/teacher"}


@pytest.mark.parametrize("score, name", INDEXED)
def test_the_index_gives_the_score_of_the_header(score, name):
    told = " ".join(header(PUBLISHED[name])["Score"])
    numbers = re.findall(r"\d+\.\d+", score)
    assert all(number in told for number in numbers)
    assert numbers or (score == "figure only" and "figure" in told) or score == told == "not read"
