"""The papers' figures on CueBench: trains 14 tiny students and draws every figure in docs/figures.

    python benchmarks/paper_figures.py FOLDER [--only NAME ...]

FOLDER gets the data and the runs; a run that is finished there is not repeated. Takes about half an hour on
two idle cores. docs/diagnostics.md shows the figures and says what they show here.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from vicur.cli.main import main as vicur

DOCS = Path(__file__).parents[1] / "docs" / "figures"
COMMON = (
    *("rollout.group_size=4", "training.steps=40", "training.prompts_per_step=16", "training.device=cpu"),
    *(
        "optimizer.prompts_per_micro_batch=16",
        "training.checkpoints.every=10",
        "training.checkpoints.keep=null",
    ),
    *("training.evaluate.every=10", "training.evaluate.problems=200", "training.observe.every=10"),
    "training.observe.of=[visual_advantage, vds, language_kl, visual_kl, gap_split]",
)
LARGER = ("teacher.model=vicur:tiny-teacher", "teacher.privilege=none", "objective.sampled_token=null")
RUNS: dict[str, tuple[str, ...]] = {
    "OPSD answer": ("cuebench/opsd_cue", "teacher.privilege=answer"),
    "OPSD cue": ("cuebench/opsd_cue",),
    "OPSD cue + recovery": (
        *("cuebench/opsd_cue", "student.recovery.enabled=true", "student.recovery.interval=2"),
        "student.recovery.learning_rate=1e-3",
    ),
    "Standard OPD": ("cuebench/opsd_cue", *LARGER, "objective.divergence={}"),
    "VA-OPD": ("cuebench/va_opd",),
    "VGS": ("cuebench/vgs", "objective.visual_steering.beta=0", "objective.visual_steering.scale=measured"),
    "VGS + LP": ("cuebench/vgs", "objective.visual_steering.scale=measured"),
}
"""Recipe and settings of each run, by its name in the figures."""
SWEEPS = {
    "visual": ("objective.visual_steering.steering=visual", "objective.visual_steering.alpha=0,0.5,2,4"),
    "language": ("objective.visual_steering.steering=language", "objective.visual_steering.alpha=0.5,2,4"),
}
"""Settings of each sweep of the steering coefficient, which is 0 for Standard OPD."""
SWEPT = (
    "objective.visual_steering.beta=0",
    *("objective.visual_steering.scale=measured", "teacher.privilege=none", "training.device=cpu"),
    *("training.checkpoints.every=null", "training.save_model=false"),
)


def run(*words: str) -> None:
    """One command of vicur.

    Raises:
        SystemExit: it failed.
    """
    print("vicur", *words, flush=True)
    code = vicur(list(words))
    if code:
        raise SystemExit(code)


def figures(folder: Path, runs: dict[str, str]) -> dict[str, list[str]]:
    """The command of each figure, without its output."""
    test = str(folder / "test.parquet")
    teacher = ["--teacher", "vicur:tiny-teacher", "--data", test]

    def named(*names: str) -> list[str]:
        return [*(runs[name] for name in names), "--names", *names]

    privileges = ("OPSD answer", "OPSD cue", "OPSD cue + recovery")
    larger = ("Standard OPD", "VA-OPD", "VGS", "VGS + LP")
    final = {name: f"{path}/checkpoints/final" for name, path in runs.items()}
    students = ["--student", "vicur:tiny-student", final["Standard OPD"], final["VA-OPD"]]
    names = ["--names", "base", "Standard OPD", "VA-OPD"]
    return {
        "gap": ["diagnose", "gap", *named(*privileges), "--smooth", "5"],
        "leakage": ["diagnose", "leakage", *named(*privileges, "Standard OPD"), "--smooth", "5"],
        "time": ["diagnose", "time", *named("Standard OPD", "VA-OPD", "VGS", "VGS + LP", "OPSD cue")],
        "drift": ["diagnose", "drift", *named(*larger), "--smooth", "5"],
        "advantage": ["diagnose", "advantage", *students, *names, *teacher, "--group-size", "4"],
        "advantage_path": ["diagnose", "advantage", "--run", *(runs[n] for n in larger), "--names", *larger],
        "tokens": ["diagnose", "tokens", *students, *names, *teacher, "--problem", "3"],
        "stability": [
            *(
                "diagnose",
                "stability",
                "--model",
                "vicur:tiny-student",
                final["OPSD cue"],
                "vicur:tiny-teacher",
            ),
            *("--names", "base", "OPSD cue", "teacher", "--data", test, "--problem", "3", "5"),
            *("--preset", "greedy", "sampling.temperature=1", "sampling.max_new_tokens=256"),
        ],
        "gradients": ["diagnose", "gradients", "--student", "vicur:tiny-student", *teacher],
        "attention": ["diagnose", "attention", "--model", final["OPSD cue + recovery"], "--data", test],
    }


def sweep(folder: Path, data: tuple[str, ...]) -> None:
    """Accuracy over the steering coefficient, visual and language (VGS figure 5)."""
    folders = {name: folder / "sweeps" / name for name in SWEEPS}
    for name, settings in SWEEPS.items():
        run("sweep", "cuebench/vgs", *SWEPT, *settings, *data, "--output", str(folders[name]))
    output = folder / "figures" / "sweep"
    left = ("--names", *SWEEPS, "--left", "language", "--output", str(output), "--overwrite")
    run("diagnose", "sweep", *map(str, folders.values()), *left)
    copy_to_docs(output)


def copy_to_docs(drawn: Path) -> None:
    """Copy the one figure of a folder into the docs, under the name of the folder."""
    DOCS.mkdir(exist_ok=True)
    (picture,) = drawn.glob("*.png")
    shutil.copy(picture, DOCS / f"{drawn.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=None, help="figures to draw; all if not given")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 640), ("test", 400)):
        path = folder / f"{split}.parquet"
        if not path.exists():
            run("cuebench", "make", "--split", split, "--n", str(count), "--output", str(path))
    data = (f"data.train={folder / 'train.parquet'}", f"training.evaluate.data={folder / 'test.parquet'}")
    runs = {name: str(folder / "runs" / name.replace(" ", "_").replace("+", "and")) for name in RUNS}
    for name, (recipe, *settings) in RUNS.items():
        run("train", recipe, *COMMON, *data, *settings, f"training.output={runs[name]}", "--resume")
    for name, words in figures(folder, runs).items():
        if arguments.only is None or name in arguments.only:
            run(*words, "--output", str(folder / "figures" / name), "--overwrite")
            copy_to_docs(folder / "figures" / name)
    if arguments.only is None or "sweep" in arguments.only:
        sweep(folder, data)
    run("report", *runs.values(), "--names", *runs, "--output", str(folder / "report.html"), "--overwrite")


if __name__ == "__main__":
    main()
