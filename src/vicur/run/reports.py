"""Reports of runs with the images and hints of their problems, which the recipes name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from pathlib import Path

from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.data.sources import DataConfig, FileSource
from vicur.files import RECIPE_FILE
from vicur.reporting.config import ReportConfig
from vicur.reporting.responses import Lookup, Split
from vicur.reporting.runs import RecordedRun
from vicur.reporting.settings import RunsSettings
from vicur.run.recipe import load_recipe
from vicur.settings.section import Count, PathText, Text, section

REPORT = "report.html"
"""Name of a run's report in its folder."""


@section
class ReportSettings(RunsSettings):
    """The settings of `vicur report`."""

    output: PathText | None = None
    """HTML file; null for report.html in the folder of a single run, otherwise in the current folder."""
    overwrite: bool = False
    """Whether to replace the file and its figures if they exist. A run's own report is always renewed."""
    smooth: Count = 1
    """Number of steps over which curves are averaged; 1 for no smoothing."""
    responses: Count = ReportConfig.responses
    """Maximum number of responses of each run in the report."""
    against_paper: list[Text] = field(default_factory=list)
    """Results to show beside the scores that the paper published for the recipe of the first run, each as
    BENCHMARK=FILE: the summary.json of `vicur eval`, or a results file of lmms-eval. Scores of different
    harnesses are never in one table."""
    media: bool = True
    """Whether the report has the images and hints of the problems, which are read from the data of the
    recipe."""

    def path(self, runs: Sequence[RecordedRun]) -> Path:
        """The page: `output`, or report.html in the folder of a single run, else in the current folder."""
        if self.output is not None:
            return Path(self.output)
        return runs[0].folder / REPORT if len(runs) == 1 else Path(REPORT)


def lookup_of(run: RecordedRun) -> Lookup:
    """Finds the problems of a run in the data that its recipe names.

    Raises:
        ValueError: the data cannot be read any more.
    """
    recipe = load_recipe(str(run.folder / RECIPE_FILE))
    data, training = recipe.data, recipe.training
    held_out = [training.evaluate.data, training.observe.data]
    opened = [_open(data, path) for path in dict.fromkeys(held_out) if path is not None]
    return lookup_in(opened, _open(data, None))


def _open(data: DataConfig, path: str | None) -> FileSource:
    return replace(data, bad_rows="skip", check_images=0).open(path)


def lookup_in(held_out: Iterable[FileSource], training: FileSource) -> Lookup:
    """Finds problems in sources, the first of a split that has the id.

    Args:
        held_out: the held-out problems.
        training: the training problems.
    """
    places: dict[Split, list[tuple[FileSource, dict[str, int]]]] = {
        "held-out": [(source, _index(source)) for source in held_out],
        "training": [(training, _index(training))],
    }

    def find(problem: str, split: Split) -> Sample | None:
        for source, index in places[split]:
            if problem in index:
                try:
                    return source[index[problem]]
                except BadRowError:
                    return None
        return None

    return find


def _index(source: FileSource) -> dict[str, int]:
    return {str(name): index for index, name in enumerate(source.column("id"))}
