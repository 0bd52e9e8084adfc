"""`vicur cues build | audit | worth`: parsing and printing, as in `cli`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from vicur.cues.audit import (
    Audit,
    AuditConfig,
    Flag,
    ModelVerifier,
    Verifier,
    audit_cues,
    correction,
    cue_rows,
    drop,
)
from vicur.cues.audit.cuebench import CueBenchVerifier
from vicur.cues.audit.endpoint import EndpointAsk
from vicur.cues.build import build_cues, plan_cues
from vicur.cues.clients import EndpointConfig
from vicur.cues.output import check_output, write_output
from vicur.cues.prompts import load_prompt
from vicur.cues.settings import BuildConfig
from vicur.cues.summary import BuildSummary, Tick
from vicur.data.files import write_json, write_whole
from vicur.data.sources import FileSource
from vicur.data.tables import open_table
from vicur.diagnostics.privilege import PrivilegeConfig, measure_privileges
from vicur.diagnostics.privilege_responses import read_responses, sample_responses
from vicur.diagnostics.privilege_worth import privilege_worth
from vicur.models.load import load_model
from vicur.reporting.privilege import rank_lines, reading, worth_table
from vicur.scoring.teacher import Teacher, TeacherConfig
from vicur.training.progress import Progress

MOST_SHOWN = 10
"""Flags that are printed."""


def add_cues(parser: argparse.ArgumentParser) -> None:
    """The commands below `vicur cues`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", add_help=False, help="ask a vision-language model for the cue of every problem"
    )
    build.set_defaults(run=build_command, rest=[])

    audit = commands.add_parser("audit", help="look for cues that leak, guess or say nothing")
    audit.add_argument("--data", required=True, help="file, folder or hub id, with @split")
    audit.add_argument("--column", choices=("cue", "rationale", "answer"), default="cue")
    audit.add_argument(
        "--cuebench", action="store_true", help="the data is CueBench's: check every claim against its boxes"
    )
    audit.add_argument("--verifier", metavar="MODEL", help="a model that checks every claim, with the image")
    audit.add_argument("--base-url", help="its endpoint, e.g. http://127.0.0.1:8000/v1")
    audit.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable that holds its key")
    audit.add_argument("--flags", help="parquet file for every flag, with its span and reason")
    audit.add_argument("--drop", help="write the data here, without the cues that certainly leak")
    audit.add_argument("--possible", action="store_true", help="drop what is only a possible fault too")
    audit.add_argument("--json", action="store_true", help="print counts and rates as JSON")
    audit.set_defaults(run=audit_command)

    worth = commands.add_parser("worth", help="what cue, rationale and answer change in a teacher's mind")
    worth.add_argument("--data", required=True, help="problems with what the teacher may be shown")
    worth.add_argument("--student", required=True, help="who answers: checkpoint folder, hub id, vicur:NAME")
    worth.add_argument("--teacher", default="self", help="who is shown the texts (default: the student)")
    worth.add_argument("--run", dest="folder", help="take the student's responses of this training run")
    worth.add_argument("--problems", type=int, help="only the first so many")
    worth.add_argument("--siblings", type=int, default=4, help="responses to each problem (default 4)")
    worth.add_argument(
        "--kinds", nargs="+", choices=("cue", "rationale", "answer"), help="default: all there"
    )
    worth.add_argument("--batch", type=int, default=16, help="problems scored together (default 16)")
    worth.add_argument("--seed", type=int, default=0)
    worth.add_argument("--output", help="folder for worth.json and tokens.parquet")
    worth.set_defaults(run=worth_command)


def build_command(options: argparse.Namespace, console: Console) -> None:
    """`vicur cues build`: the settings of `BuildConfig`, by their names."""
    config, dry_run, repairs = _build_settings(options.rest)
    check = Progress("checking the data", transient=True).over
    if dry_run:
        for sentence in plan_cues(config, progress=check).sentences():
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        return
    summary = _built(config, {})
    remarks: dict[str, str] = {}
    for number in range(1, repairs + 1):
        faulty = {} if summary.out is None else _remarks(summary.out, config)
        if not faulty:
            break
        console.print(f"{len(faulty)} cues leak or say nothing; asking for these again.")
        # What an earlier round mended keeps its remark, or its first cue would come back; what it did not
        # needs another, or the same reply would be taken from the store.
        again = f" (Correction {number}.)" if number > 1 else ""
        remarks |= {own: remark + again for own, remark in faulty.items()}
        summary = _built(replace(config, overwrite=True), remarks)
    for sentence in summary.sentences():
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if summary.stopped is not None:
        raise ValueError("The build stopped early; the same command goes on where it was.")


def _build_settings(rest: list[str]) -> tuple[BuildConfig, bool, int]:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog="vicur cues build")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="tell what it would do and cost")
    parser.add_argument("--repair", type=int, default=0, help="audit, and ask again so often for what leaks")
    parser.add_class_arguments(BuildConfig)
    values = parser.parse_args(rest)
    settings = parser.instantiate(values).as_dict()
    dry_run, repairs = settings.pop("dry_run"), settings.pop("repair")
    config = BuildConfig(**settings)
    if repairs and load_prompt(config.prompt).field != "cue":
        raise ValueError(f"--repair mends cues; the prompt {config.prompt} asks for something else.")
    return config, dry_run, repairs


def _built(config: BuildConfig, remarks: dict[str, str]) -> BuildSummary:
    bar = Progress("asking for cues")

    def watch(ticks: Any, count: int) -> Any:
        for tick in bar.over(ticks, count):
            assert isinstance(tick, Tick)
            bar.note(tick.note)
            yield tick

    check = Progress("checking the data", transient=True).over
    return build_cues(config, watch=watch, progress=check, remarks=remarks)


def _remarks(built: Path, config: BuildConfig) -> dict[str, str]:
    """What to tell the model about the cues that are certainly faulty."""
    columns = config.columns | {"cue": config.column or "cue"}
    source = FileSource(built, image_dir=config.image_dir, columns=columns, bad_rows="skip")
    flags = audit_cues(source).by_sample()
    certain = {own: [f for f in found if f.severity == "certain"] for own, found in flags.items()}
    rows = {row.id: row for row in cue_rows(source, "cue") if certain.get(row.id)}
    return {own: correction(certain[own], row) for own, row in rows.items()}


def audit_command(options: argparse.Namespace, console: Console) -> None:
    """`vicur cues audit`."""
    bar = Progress("checking the data", transient=True)
    source = FileSource(options.data, bad_rows="skip", progress=bar.over)
    config = AuditConfig(column=options.column)
    verifier: Verifier | None = CueBenchVerifier() if options.cuebench else None
    if options.verifier:
        endpoint = EndpointConfig(base_url=options.base_url, api_key_env=options.api_key_env)
        verifier = ModelVerifier(EndpointAsk(options.verifier, endpoint))
    found = Progress("reading cues", transient=True).during(
        lambda: audit_cues(source, config, verifier=verifier)
    )
    if options.flags:
        _write_flags(found, Path(options.flags))
    if options.drop:
        _write_dropped(source, found, Path(options.drop), options)
    if options.json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
        return
    _print_audit(found, console)


def _write_flags(found: Audit, path: Path) -> None:
    """Of no flags, the columns alone."""
    numbers = {"start": pa.int64(), "end": pa.int64()}
    schema = pa.schema([(field.name, numbers.get(field.name, pa.string())) for field in fields(Flag)])
    table = pa.Table.from_pylist(found.rows(), schema=schema)
    write_whole(path, lambda partial: pq.write_table(table, partial))


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


def _write_dropped(source: FileSource, found: Audit, out: Path, options: argparse.Namespace) -> None:
    """The same rows, without the text where it is faulty."""
    gone = drop(found, possible=options.possible)
    column = source.schema[options.column]
    assert column is not None, "an audited column has a name"
    if "." in column:
        raise ValueError(f"--drop cannot leave out {column}, which is inside another column.")
    numbers = {source.row_number(i): own for i, own in enumerate(source.column("id"))}
    table = open_table(options.data)
    check_output(table, Path(options.data), out, [column], replace=True)
    kept = [
        None if numbers.get(number) in gone else row.get(column) for number, row in enumerate(table.rows())
    ]
    write_output(table, out, range(len(kept)), {column: kept}, {column: pa.string()})


def worth_command(options: argparse.Namespace, console: Console) -> None:
    """`vicur cues worth`."""
    source = FileSource(options.data, bad_rows="skip", progress=Progress("checking", transient=True).over)
    samples = source if options.problems is None else source.select(range(min(options.problems, len(source))))
    loading = Progress("loading the models", transient=True)
    student = loading.during(lambda: load_model(options.student))
    teacher = loading.during(lambda: Teacher.of(TeacherConfig(model=options.teacher), student))
    if options.folder:
        responses = read_responses(Path(options.folder), samples, student.processor.tokenizer)
    else:
        answering = Progress("answering")
        responses = sample_responses(
            student, samples, siblings=options.siblings, seed=options.seed, progress=answering
        )
    config = PrivilegeConfig(
        kinds=None if options.kinds is None else tuple(options.kinds),
        seed=options.seed,
        samples_per_batch=options.batch,
    )
    scoring = Progress("scoring")
    tokens = measure_privileges(teacher.scorer, samples, responses, config, progress=scoring)
    found = privilege_worth(tokens, seed=options.seed)
    if options.output:
        write_json(Path(options.output) / "worth.json", found.as_dict())
        tokens.write(Path(options.output) / "tokens.parquet")
    console.print(worth_table(found))
    for line in [*rank_lines(found), reading(found)]:
        console.print(line, markup=False, highlight=False)
