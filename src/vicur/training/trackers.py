"""Experiment trackers: trackio, TensorBoard, Weights & Biases and MLflow get the numbers of a run.

The files of the run's folder are the record; a tracker is a copy of their numbers. Metrics of steps are under
train/, those of held-out problems under evaluate/ and observe/. Alarms become alerts where a tracker has
them.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from vicur.files import write_json
from vicur.reporting.alarms import Alarm
from vicur.settings.reading import read_json
from vicur.wording import first_reason, listed

TrackerName = Literal["trackio", "tensorboard", "wandb", "mlflow"]
Outcome = Literal["finished", "failed", "interrupted"]
"""How a run ended, for the trackers."""
_STATE = "trackers.json"
"""File in the folder of a run with its id in each tracker, so that a resumed run continues its curves."""


class Tracker(Protocol):
    """A tracker of one run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step, by name."""
        ...

    def alert(self, alarm: Alarm) -> None:
        """Show an alarm."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Send everything and close."""
        ...


class Trackio:
    """trackio: a local data base with a dashboard, `trackio show`."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._trackio: Any = import_module("trackio")
        unique = f"{name}-{_own_id(folder, 'trackio')}"  # runs of one name would share their curves
        self._trackio.init(project=project, name=unique, config=dict(config), resume="allow", embed=False)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def alert(self, alarm: Alarm) -> None:
        self._trackio.alert(title=alarm.kind, text=alarm.text)

    def finish(self, outcome: Outcome) -> None:
        self._trackio.finish()


class TensorBoard:
    """TensorBoard: event files in the folder `tensorboard` of the run."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        module: Any = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def alert(self, alarm: Alarm) -> None:
        self._writer.add_text(f"alarms/{alarm.kind}", alarm.text, alarm.step)

    def finish(self, outcome: Outcome) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=project,
            name=name,
            id=_own_id(folder, "wandb"),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")  # by default each call of log is a step

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def alert(self, alarm: Alarm) -> None:
        self._run.alert(title=alarm.kind, text=alarm.text)

    def finish(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=int(outcome != "finished"))


class MLflow:
    """MLflow: an experiment of the project's name. Alarms become tags of the run."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._mlflow: Any = import_module("mlflow")
        self._mlflow.set_experiment(project)
        known = _ids(folder).get("mlflow")
        run = self._mlflow.start_run(run_id=known, run_name=None if known else name)
        _keep_id(folder, "mlflow", run.info.run_id)
        if known is None:
            self._mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def alert(self, alarm: Alarm) -> None:
        self._mlflow.set_tag(f"alarm.{alarm.kind}", alarm.text)

    def finish(self, outcome: Outcome) -> None:
        self._mlflow.end_run("KILLED" if outcome == "interrupted" else outcome.upper())


TRACKERS: dict[TrackerName, Callable[[str, str, Path, Mapping[str, Any]], Tracker]] = {
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""The class of each tracker; called with project, name and folder of the run, and its flat settings."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Check that trackers are installed, before anything else is loaded.

    Raises:
        ValueError: the package of one, which has its name, is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"training.report_to names {listed(missing)}, which is not installed: pip install "
            f"'vicur[{','.join(missing)}]'."
        )


class Trackers:
    """All trackers of a run, on the main process. One that fails is dropped: no run ends because of it.

    Args:
        trackers: the trackers, by name.
        say: prints a sentence about one that failed; silent if not given.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker] | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.trackers, self._say = dict(trackers or {}), say

    def log(self, step: int, group: str, numbers: Mapping[str, Any]) -> None:
        """Add numbers under `group/NAME`; anything that is not a finite number is left out."""
        finite = {
            f"{group}/{name}": float(value)
            for name, value in numbers.items()
            if isinstance(value, int | float) and math.isfinite(value) and name != "step"
        }
        self._each(lambda tracker: tracker.log(step, finite))

    def alert(self, alarm: Alarm) -> None:
        """Show an alarm."""
        self._each(lambda tracker: tracker.alert(alarm))

    def finish(self, outcome: Outcome) -> None:
        """Close all trackers, once."""
        self._each(lambda tracker: tracker.finish(outcome))
        self.trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # services fail in any way, and the run is worth more
                del self.trackers[name]
                self._say(f"{name} failed, and gets no more numbers of this run: {first_reason(error)}.")


def open_trackers(
    names: Sequence[TrackerName],
    project: str,
    folder: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> Trackers:
    """Open trackers for a run.

    Args:
        names: their names.
        project: project that they file the run under.
        folder: folder of the run, whose name is the run's.
        config: settings of the run by dotted name.
        say: prints a sentence about one that fails later.

    Raises:
        ValueError: a package is missing, or a tracker cannot be opened.
    """
    opened: dict[str, Tracker] = {}
    for name in names:
        try:
            opened[name] = TRACKERS[name](project, folder.name, folder, config)
        except Exception as error:  # of any library: a server that is down, a key that is missing
            Trackers(opened).finish("failed")
            raise ValueError(f"training.report_to={name}: {first_reason(error)}.") from error
    return Trackers(opened, say)


def _ids(folder: Path) -> dict[str, str]:
    """The run's id in each tracker that has had it."""
    path = folder / _STATE
    return {name: str(value) for name, value in read_json(path).items()} if path.is_file() else {}


def _keep_id(folder: Path, tracker: TrackerName, value: str) -> None:
    write_json(folder / _STATE, {**_ids(folder), tracker: value})


def _own_id(folder: Path, tracker: TrackerName) -> str:
    """An id of the run, made at its start and kept in its folder."""
    known = _ids(folder).get(tracker) or secrets.token_hex(4)
    _keep_id(folder, tracker, known)
    return known
