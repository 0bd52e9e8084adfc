"""The problems that training lost and won, and the hardest ones."""

from __future__ import annotations

from recorded import metrics, response, write_run

from vicur.files import write_rows
from vicur.reporting.problems import SHOWN, hardest_problems
from vicur.training.records import RESPONSE_TYPES


def ids(problems):
    return {kind: [problem["sample"] for problem in found] for kind, found in problems.items()}


def test_what_training_lost_and_won(tmp_path):
    """Between the first and the last evaluation, not those between."""
    evaluations = {
        0: {"kept": True, "lost": True, "won": False, "never": False, "gone": True},
        5: {"kept": False, "lost": True, "won": False, "never": True},
        10: {"kept": True, "lost": False, "won": True, "never": False, "new": True},
    }
    found = hardest_problems(write_run(tmp_path / "run", [metrics(1)], evaluations=evaluations))
    assert ids(found) == {"lost": ["lost"], "won": ["won"]}
    assert found["lost"][0]["change"] == -1.0 and found["won"][0]["question"] == "What is won?"


def test_the_largest_changes_come_first_and_few_are_shown(tmp_path):
    def rows(step, right):
        """Two responses to each problem, as many right as given."""
        return [response(step, name, correct=n < count) for name, count in right.items() for n in range(2)]

    run = write_run(tmp_path / "run", [metrics(1)])
    many = {f"m{n}": 1 for n in range(SHOWN + 2)}
    before, after = {"half": 2, "all": 2, **many}, {"half": 1, "all": 0, **dict.fromkeys(many, 2)}
    for step, right in ((0, before), (9, after)):
        path = run.folder / "evaluation" / f"step-{step:06d}.parquet"
        write_rows(path, rows(step, right), RESPONSE_TYPES)
    found = hardest_problems(run)
    assert ids(found)["lost"] == ["all", "half"]
    assert [problem["change"] for problem in found["lost"]] == [-1.0, -0.5]
    assert len(found["won"]) == SHOWN and {p["change"] for p in found["won"]} == {0.5}


def test_training_problems_by_accuracy(tmp_path):
    """Without two evaluations; responses that were not graded do not count."""
    rows = [
        *(response(1, "easy", correct=True) for _ in range(2)),
        *(response(1, "half", correct=right) for right in (True, False)),
        *(response(1, "hard", correct=False) for _ in range(2)),
        response(1, "unknown", correct=False) | {"correct": None},
    ]
    run = write_run(tmp_path / "run", [metrics(1)], rows, evaluations={0: {"a": True}})
    found = hardest_problems(run)
    assert ids(found) == {"worst": ["hard", "half", "easy"], "best": ["easy", "half", "hard"]}
    assert [problem["share"] for problem in found["worst"]] == [0.0, 0.5, 1.0]
    assert hardest_problems(write_run(tmp_path / "none", [metrics(1)])) == {}
