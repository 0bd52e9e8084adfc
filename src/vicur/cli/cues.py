"""`vicur cues build | audit | worth`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from vicur.audit import Audit, Flag, audit_cues, drop
from vicur.audit.cuebench import CueBenchVerifier
from vicur.audit.endpoint import EndpointJudge
from vicur.audit.repair import build_repaired
from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_json, print_text
from vicur.cues.build import build_cues, plan_cues
from vicur.cues.output import check_output, mover, write_output
from vicur.cues.settings import AuditSettings, BuildConfig, WorthSettings
from vicur.cues.summary import BuildSummary, Tick
from vicur.data.sources import FileSource
from vicur.data.tables import Table, open_table
from vicur.files import as_json, write_or_rescue
from vicur.models.load import load_model
from vicur.paths import check_distinct, check_file, check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.engines import make_engine
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig
from vicur.wording import counted
from vicur.worth.measure import PrivilegeConfig, measure_privileges
from vicur.worth.report import rank_lines, reading, student_loss_table, worth_table
from vicur.worth.responses import read_responses, regraded, sample_responses
from vicur.worth.summary import privilege_worth

TOKENS, WORTH = "tokens.parquet", "worth.json"
"""Files of `cues worth`."""
MOST_SHOWN = 10
"""Number of flags that are printed."""


def build(config: BuildConfig, arguments: Arguments, console: Console) -> None:
    """Ask a model for the cue of every problem.

    Raises:
        ValueError: a setting does not fit, or the build stopped early.
    """
    check = passing_bar("checking the data").over
    if "--dry-run" in arguments.switches:
        for sentence in plan_cues(config, progress=check).sentences():
            print_text(sentence, console)
        return
    summary = build_repaired(
        config,
        config.repairs,
        _built,
        lambda count: print_text(f"Regenerating {counted(count, 'cue')} with definite faults.", console),
    )
    for sentence in summary.sentences():
        print_text(sentence, console)
    if summary.stopped is not None:
        raise ValueError("Build stopped early; rerun the same command to resume.")


def _built(config: BuildConfig, remarks: Mapping[str, str]) -> BuildSummary:
    bar = Progress("generating cues")

    def watch(ticks: Any, count: int) -> Any:
        for tick in bar.over(ticks, count):
            assert isinstance(tick, Tick)
            bar.note(tick.note)
            yield tick

    check = passing_bar("checking the data").over
    return build_cues(config, watch=watch, progress=check, remarks=remarks)


def audit(settings: AuditSettings, arguments: Arguments, console: Console) -> None:
    """Look for cues that leak, guess or say nothing.

    Raises:
        ValueError: a setting or the data does not fit.
    """
    _check_outputs(settings)
    source = settings.data.open(progress=passing_bar("checking the data").over)
    _check_outputs(settings, source.files)
    verifier = CueBenchVerifier() if settings.cuebench else None
    judge = None
    if settings.verifier is not None:
        verdicts = None if settings.verdicts is None else Path(settings.verdicts)
        judge = EndpointJudge(settings.verifier, settings.endpoint, store=verdicts)
    table = None if settings.drop is None else open_table(settings.data.train)
    if table is not None:
        _check_drop(table, source, settings)
    result = passing_bar("reading cues").during(
        lambda: audit_cues(source, settings.kind, verifier=verifier, judge=judge)
    )
    if "--json" in arguments.switches:
        print_json(result.as_dict())
    else:
        _print_audit(result, console)
    if settings.flags is not None:
        _write_flags(result, Path(settings.flags), replace=settings.overwrite)
    if table is not None:
        _write_dropped(table, source, result, settings)


def _check_outputs(settings: AuditSettings, inputs: Iterable[Path] = ()) -> None:
    """Make sure that flags and cleaned data can be written, and are not among the files that are read."""
    inputs = list(inputs)
    named = {"--flags": settings.flags, "--drop": settings.drop, "--verdicts": settings.verdicts}
    files = {name: Path(path) for name, path in named.items() if path is not None}
    check_distinct(files)
    for name, path in files.items():
        # The verdicts are a store, which a rerun extends and which takes no file of another kind.
        check_file(path, name, inputs, overwrite=settings.overwrite or name == "--verdicts")


def _write_flags(result: Audit, path: Path, *, replace: bool) -> None:
    """Write the flags; without any, a table of the right columns."""
    numbers = {"start": pa.int64(), "end": pa.int64()}
    schema = pa.schema([(field.name, numbers.get(field.name, pa.string())) for field in fields(Flag)])
    table = pa.Table.from_pylist(result.rows(), schema=schema)
    write_or_rescue(path, lambda partial: pq.write_table(table, partial), replace=replace)


def _print_audit(result: Audit, console: Console) -> None:
    print_text(f"{result.cues} of {result.samples} problems have a {result.kind}.", console)
    print_text(result.table(), console)
    for flag in result.flags[:MOST_SHOWN]:
        print_text(f"{flag.id}, {flag.category} ({flag.severity}): {flag.reason}: {flag.excerpt}", console)
    if len(result.flags) > MOST_SHOWN:
        console.print(
            f"... and {len(result.flags) - MOST_SHOWN} more; --flags FILE writes all of them.",
            highlight=False,
        )


def _check_drop(table: Table, source: FileSource, settings: AuditSettings) -> None:
    """Make sure that the data can be written without some texts, before the audit."""
    column = source.schema[settings.kind]
    if column is None:
        raise ValueError(f"{source.name} has no column that is read as {settings.kind}.")
    if "." in column:
        raise ValueError(f"--drop cannot leave out {column}, which is inside another column.")
    assert settings.drop is not None
    out, overwrite = Path(settings.drop), settings.overwrite
    check_output(table, source.path, out, [column], replace=True, overwrite=overwrite)


def _write_dropped(table: Table, source: FileSource, result: Audit, settings: AuditSettings) -> None:
    """Write the same rows, without the text where it is faulty."""
    gone = drop(result, possible=settings.possible)
    column = source.schema[settings.kind]
    assert column is not None and settings.drop is not None, "_check_drop came first"
    ids = {source.row_number(index): key for index, key in enumerate(source.column("id"))}
    kept = [None if ids.get(number) in gone else row.get(column) for number, row in enumerate(table.rows())]
    out = Path(settings.drop)
    move = mover(table, source, out)
    types = {column: pa.string()}
    write_output(table, out, range(len(kept)), {column: kept}, types, move, replace=settings.overwrite)


def worth(settings: WorthSettings, arguments: Arguments, console: Console) -> None:
    """Measure how cues, rationales and answers change the teacher's log-probs.

    Raises:
        ValueError: a setting, the data or the run does not fit.
    """
    _check_results(settings)
    grader = Grader(settings.rewards)
    source = settings.data.open(progress=passing_bar("checking the data").over)
    _check_results(settings, source.files)
    samples = (
        source if settings.problems is None else source.select(range(min(settings.problems, len(source))))
    )
    limits = settings.data.pixel_limits()
    loading = passing_bar("loading the models")
    student = loading.during(lambda: load_model(settings.student))
    teacher = loading.during(
        lambda: Teacher.of(TeacherConfig(model=settings.teacher), student, limits=limits)
    )
    if settings.run is not None:
        responses = read_responses(Path(settings.run), samples, student.processor.tokenizer)
        if settings.rewards != RewardConfig():
            responses = regraded(responses, samples, grader)
    else:
        with closing(make_engine(student, settings.engine, settings.vllm)) as engine:
            responses = sample_responses(
                engine,
                samples,
                group_size=settings.group_size,
                sampling=settings.sampling,
                seed=settings.seed,
                grader=grader,
                limits=limits,
                progress=Progress("answering"),
            )
    config = PrivilegeConfig(
        kinds=None if settings.kinds is None else tuple(settings.kinds),
        seed=settings.seed,
        prompts_per_batch=settings.prompts_per_batch,
    )
    learner = Scorer(student, limits=limits) if settings.student_loss else None
    scoring = Progress("scoring")
    tokens = measure_privileges(teacher.scorer, samples, responses, config, student=learner, progress=scoring)
    result = privilege_worth(tokens, seed=settings.seed)
    for table in (worth_table(result), student_loss_table(result)):
        if table is not None:
            console.print(table)
    for line in [*rank_lines(result), reading(result)]:
        print_text(line, console)
    if settings.output is not None:
        folder, replace = Path(settings.output), settings.overwrite
        write_or_rescue(folder / TOKENS, tokens.write, replace=replace)
        text = as_json(result.as_dict())
        write_or_rescue(folder / WORTH, lambda partial: partial.write_text(text), replace=replace)


def _check_results(settings: WorthSettings, inputs: Iterable[Path] = ()) -> None:
    """Make sure that the results can be written, and would not replace what is there or is read."""
    if settings.output is None:
        return
    inputs, folder = list(inputs), Path(settings.output)
    check_folder(folder, "--output")
    for name in (TOKENS, WORTH):
        check_file(folder / name, "The result", inputs, overwrite=settings.overwrite)
