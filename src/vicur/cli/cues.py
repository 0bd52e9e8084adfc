"""`vicur cues build | audit | worth`: parsing and printing, as in `cli`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from vicur.audit import Audit, Flag, audit_cues, drop
from vicur.audit.cuebench import CueBenchVerifier
from vicur.audit.endpoint import EndpointJudge
from vicur.audit.repair import build_repaired, check_repairable
from vicur.cli.options import Option, layers_of
from vicur.cues.build import build_cues, plan_cues
from vicur.cues.clients import EndpointConfig
from vicur.cues.output import check_output, mover, write_output
from vicur.cues.settings import AuditSettings, BuildConfig, WorthSettings
from vicur.cues.summary import BuildSummary, Tick
from vicur.data.sources import FileSource
from vicur.data.tables import Table, open_table
from vicur.files import write_or_rescue
from vicur.models.load import load_model
from vicur.paths import check_file, check_folder
from vicur.progress import Progress
from vicur.rewards.grader import Grader, RewardConfig
from vicur.scoring.teacher import Teacher, TeacherConfig
from vicur.settings.schema import as_yaml, schema_of
from vicur.worth.measure import PrivilegeConfig, measure_privileges
from vicur.worth.report import rank_lines, reading, worth_table
from vicur.worth.responses import read_responses, regraded, sample_responses
from vicur.worth.summary import privilege_worth

MOST_SHOWN = 10
"""Number of flags that are printed."""


def build_command(options: argparse.Namespace, console: Console) -> None:
    """`vicur cues build`: the settings of `BuildConfig`, by their names."""
    schema = schema_of(BuildConfig, "cues build")
    if options.help:
        sys.stdout.write(options.own.format_help() + "\n" + schema.parser.format_help())
        return
    config = build_settings(options.rest, repairs=options.repair)
    check = Progress("checking the data", transient=True).over
    if options.dry_run:
        for sentence in plan_cues(config, progress=check).sentences():
            _say(sentence, console)
        return
    summary = build_repaired(
        config,
        options.repair,
        _built,
        lambda count: console.print(f"{count} cues leak or say nothing; asking for these again."),
    )
    for sentence in summary.sentences():
        _say(sentence, console)
    if summary.stopped is not None:
        raise ValueError("Build stopped early; rerun the same command to resume.")


def build_settings(overrides: list[str], repairs: int = 0) -> BuildConfig:
    """The settings of a build.

    Args:
        overrides: `key=value` or `--key=value`.
        repairs: how often leaking cues are to be asked for again.

    Raises:
        ValueError: a setting does not fit, or repairs are asked for of something that is not a cue.
    """
    schema = schema_of(BuildConfig, "cues build")
    config = schema.load(schema.overrides(overrides))
    if repairs:
        check_repairable(config)
    return config


def _say(sentence: str, console: Console) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _built(config: BuildConfig, remarks: Mapping[str, str]) -> BuildSummary:
    bar = Progress("asking for cues")

    def watch(ticks: Any, count: int) -> Any:
        for tick in bar.over(ticks, count):
            assert isinstance(tick, Tick)
            bar.note(tick.note)
            yield tick

    check = Progress("checking the data", transient=True).over
    return build_cues(config, watch=watch, progress=check, remarks=remarks)


def audit_command(options: argparse.Namespace, declared: tuple[Option, ...], console: Console) -> None:
    """`vicur cues audit`."""
    schema = schema_of(AuditSettings, "cues audit")
    data = schema.load(layers_of(schema, vars(options), declared, options.rest)).data
    for name in ("flags", "drop"):
        if getattr(options, name):
            check_file(Path(getattr(options, name)), f"--{name}")
    source = data.open(progress=Progress("checking the data", transient=True).over)
    verifier = CueBenchVerifier() if options.cuebench else None
    judge = None
    if options.verifier:
        endpoint = EndpointConfig(base_url=options.base_url, api_key_env=options.api_key_env)
        verdicts = None if options.verdicts is None else Path(options.verdicts)
        judge = EndpointJudge(options.verifier, endpoint, store=verdicts)
    table = open_table(data.train) if options.drop else None
    if table is not None:
        _check_drop(table, source, options)
    found = Progress("reading cues", transient=True).during(
        lambda: audit_cues(source, options.column, verifier=verifier, judge=judge)
    )
    if options.json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        _print_audit(found, console)
    if options.flags:
        _write_flags(found, Path(options.flags))
    if table is not None:
        _write_dropped(table, source, found, Path(options.drop), options)


def _write_flags(found: Audit, path: Path) -> None:
    """Write the flags; without any, a table of the right columns."""
    numbers = {"start": pa.int64(), "end": pa.int64()}
    schema = pa.schema([(field.name, numbers.get(field.name, pa.string())) for field in fields(Flag)])
    table = pa.Table.from_pylist(found.rows(), schema=schema)
    write_or_rescue(path, lambda partial: pq.write_table(table, partial))


def _print_audit(found: Audit, console: Console) -> None:
    console.print(f"{found.cues} of {found.samples} problems have a {found.column}.", highlight=False)
    console.print(found.table(), markup=False, highlight=False, soft_wrap=True)
    for flag in found.flags[:MOST_SHOWN]:
        console.print(
            f"{flag.id}, {flag.category} ({flag.severity}): {flag.reason}: {flag.excerpt}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if len(found.flags) > MOST_SHOWN:
        console.print(f"... and {len(found.flags) - MOST_SHOWN} more; --flags FILE has all.", highlight=False)


def _check_drop(table: Table, source: FileSource, options: argparse.Namespace) -> None:
    """Make sure that the data can be written without some texts, before the audit."""
    column = source.schema[options.column]
    if column is None:
        raise ValueError(f"{source.name} has no column that is read as {options.column}.")
    if "." in column:
        raise ValueError(f"--drop cannot leave out {column}, which is inside another column.")
    check_output(table, source.path, Path(options.drop), [column], replace=True)


def _write_dropped(
    table: Table, source: FileSource, found: Audit, out: Path, options: argparse.Namespace
) -> None:
    """Write the same rows, without the text where it is faulty."""
    gone = drop(found, possible=options.possible)
    column = source.schema[options.column]
    assert column is not None, "_check_drop came first"
    numbers = {source.row_number(i): own for i, own in enumerate(source.column("id"))}
    kept = [
        None if numbers.get(number) in gone else row.get(column) for number, row in enumerate(table.rows())
    ]
    move = mover(table, source, out)
    write_output(table, out, range(len(kept)), {column: kept}, {column: pa.string()}, move=move)


def worth_command(options: argparse.Namespace, declared: tuple[Option, ...], console: Console) -> None:
    """`vicur cues worth`."""
    schema = schema_of(WorthSettings, "cues worth")
    settings = schema.load(layers_of(schema, vars(options), declared, options.rest))
    if options.print_config:
        sys.stdout.write(as_yaml(settings))
        return
    if settings.output is not None:
        check_folder(Path(settings.output), "--output")
    grader = Grader(settings.rewards)
    source = settings.data.open(progress=Progress("checking the data", transient=True).over)
    samples = (
        source if settings.problems is None else source.select(range(min(settings.problems, len(source))))
    )
    limits = settings.data.pixel_limits()
    loading = Progress("loading the models", transient=True)
    student = loading.during(lambda: load_model(settings.student))
    teacher = loading.during(
        lambda: Teacher.of(TeacherConfig(model=settings.teacher), student, limits=limits)
    )
    if settings.run is not None:
        responses = read_responses(Path(settings.run), samples, student.processor.tokenizer)
        if settings.rewards != RewardConfig():
            responses = regraded(responses, samples, grader)
    else:
        responses = sample_responses(
            student,
            samples,
            siblings=settings.siblings,
            sampling=settings.sampling,
            seed=settings.seed,
            grader=grader,
            limits=limits,
            progress=Progress("answering"),
        )
    config = PrivilegeConfig(
        kinds=None if options.kinds is None else tuple(options.kinds),
        seed=settings.seed,
        samples_per_batch=settings.samples_per_batch,
    )
    tokens = measure_privileges(teacher.scorer, samples, responses, config, progress=Progress("scoring"))
    found = privilege_worth(tokens, seed=settings.seed)
    console.print(worth_table(found))
    for line in [*rank_lines(found), reading(found)]:
        console.print(line, markup=False, highlight=False)
    if settings.output is not None:
        folder = Path(settings.output)
        write_or_rescue(folder / "tokens.parquet", tokens.write)
        text = json.dumps(found.as_dict(), indent=2) + "\n"
        write_or_rescue(folder / "worth.json", lambda partial: partial.write_text(text))
