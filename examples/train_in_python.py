"""Load, train and evaluate from Python: the steps of `vicur train` and `vicur eval` in your own script.

    python examples/train_in_python.py

It draws CueBench problems, trains the tiny student for 20 updates with a self-teacher that is shown the cue,
and prints the accuracy on held-out problems before and after. It takes about two minutes on two CPU cores.
To use your own data and model, set `data.train` and `student.model`.
"""

from pathlib import Path
from tempfile import mkdtemp

import vicur
from vicur.cuebench.generate import write_parquet


def main(steps: int = 20, test_problems: int = 200) -> tuple[float, float]:
    """Train, and return the accuracy in percent before and after."""
    folder = Path(mkdtemp(prefix="vicur-"))
    write_parquet("segments", "train", 64 * steps, folder / "train.parquet")
    write_parquet("segments", "test", test_problems, folder / "test.parquet")

    # Every setting of a recipe can be overridden, as on the command line.
    recipe = vicur.load_recipe(
        "cuebench/opsd_cue", [f"data.train={folder}/train.parquet", f"training.steps={steps}"]
    )
    run = vicur.build(recipe)  # student, teacher, objective, optimizer, problems

    problems = vicur.FileSource(folder / "test.parquet")
    greedy = vicur.EvaluationConfig(vicur.SamplingConfig(temperature=0.0, max_new_tokens=64))
    before = vicur.evaluate(run.student, problems, greedy).accuracy.value

    run.execute(folder / "run")  # preflight, training, records, checkpoint, summary

    student = vicur.load_model(str(folder / "run" / "checkpoints" / "final"))
    after = vicur.evaluate(student, problems, greedy).accuracy.value
    print(f"accuracy {before:.1f} % before, {after:.1f} % after {steps} updates; the run is in {folder}/run")
    return before, after


if __name__ == "__main__":
    main()
