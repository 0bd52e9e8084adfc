"""Whatever is given as a setting, in a file or on the command line, is used or refused in one sentence."""

from __future__ import annotations

import datetime
import io
import math
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vicur.cli.commands import COMMANDS
from vicur.cli.main import main
from vicur.cues.prompts import load_prompt
from vicur.run.recipe import MOST_RESPONSES, Recipe, load_recipe
from vicur.settings.reading import LARGEST_YAML, Unreadable, parse_json, parse_yaml
from vicur.settings.schema import Layer, schema_of, setting_types
from vicur.settings.section import PRIVATE, SettingsError, section

COMPONENTS = {command.name: resolve_name(command.settings) for command in COMMANDS}
VALUES = {"n": 1, "size": "student"}


def required(command):
    """Values for the settings that a command cannot do without."""
    kinds = setting_types(COMPONENTS[command.name])
    texts = {name: ["x"] if kinds[name] == list[str] else "x" for name in command.needed}
    return Layer("", texts | {name: VALUES[name] for name in command.needed if name in VALUES})


REQUIRED = {command.name: required(command) for command in COMMANDS}
REQUIRED["cues build"] = Layer("", {"data.train": "x", "model": "x", "output": "x"})
NAMES = sorted(setting_types(Recipe))
SECTIONS = sorted({name.rpartition(".")[0] for name in NAMES} - {""})
TOP = sorted({name.partition(".")[0] for name in NAMES})
LAST = sorted({part for name in NAMES for part in name.split(".")})


@section
class Seeded:
    seed: int = 0


def has_float(kind: Any) -> bool:
    return kind in (float, Any) or any(map(has_float, get_args(kind)))


def nested_in(kind: Any, value: object) -> object:
    """A value as a setting of this type would hold it: in a list, in a mapping, or plain."""
    if kind == dict[str, Any]:
        return {"x": [float(value)]}
    return [value, value] if "tuple" in str(kind) else value


def float_fields(component: type):
    """Every class of settings in this one, with each of its fields that hold a float."""
    for name, kind in get_type_hints(component).items():
        if name in {field.name for field in fields(component)}:
            inner = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
            if inner is not None:
                yield from float_fields(inner)
            elif has_float(kind):
                yield component, name, kind


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "-inf", "1e400"])
def test_no_command_takes_a_number_that_is_not_finite(value):
    count = 0
    for command, component in COMPONENTS.items():
        schema = schema_of(component, command)
        for name, kind in schema.kinds.items():
            if has_float(kind) and name != "objective.custom":  # below
                inside = nested_in(kind, value)
                with pytest.raises(SettingsError, match=rf"^a\.yaml: {name}\S* must be a finite number"):
                    schema.load([REQUIRED[command], Layer("a.yaml", {name: inside})])
                count += 1
    assert count > 70


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_section_takes_one_in_python_either(value):
    found_fields = {item for component in COMPONENTS.values() for item in float_fields(component)}
    assert len(found_fields) > 40
    for component, name, kind in found_fields - {item for item in found_fields if Any in get_args(item[2])}:
        inside = nested_in(kind, value)
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(component).validate_python({name: inside})
        kinds = {error["type"] for error in caught.value.errors() if error["loc"][0] == name}
        assert "finite_number" in kinds, f"{component.__name__}.{name} takes {value}"


@pytest.mark.parametrize("value", [math.nan, math.inf, [0.5, math.nan], [{"x": math.inf}], 10**30])
def test_neither_does_an_objective_of_the_user(value, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Any\n"
        "@dataclass(frozen=True)\nclass Own:\n    weight: float = 1.0\n    other: Any = None\n"
        "    def needs(self, step): pass\n    def weigh(self, scored): pass\n"
    )
    custom = {"path": f"{tmp_path}/own.py:Own", "other": value}
    with pytest.raises(SettingsError, match=r"in objective\.custom, other must be (a finite number|between)"):
        schema_of(Recipe, "train").load([Layer("a.yaml", {"objective.custom": custom})])


def outcome(words: list[str]) -> tuple[int, str]:
    """Exit code and error text of a command."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return code, errors.getvalue()


def check(words: list[str]) -> None:
    code, errors = outcome(words)
    assert code in (0, 1, 2), errors
    assert "Traceback" not in errors and len(errors) < 3000
    assert (code == 0) or errors.strip(), f"{words} ends with {code} and says nothing"
    if code == 1:
        assert errors.startswith("vicur: ")


TEXTS = [
    "null",
    "self",
    "vicur:tiny-student",
    "~nobody/x",
    "[1",
    "{a: &x [*x]}",
    "\0",
    "\ud800",
    "\x1b[31m",
    "[]",
]
NUMBERS = [10**12, -(10**30), 2**63, 2**64, 10**400, 0, 0.0]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(NUMBERS),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(TEXTS),
    st.dates(),
    st.binary(max_size=3),
)
keys = st.one_of(
    st.sampled_from([*TOP, *LAST, *NAMES, *SECTIONS, "base"]), st.text(max_size=6), st.integers(), st.none()
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)


def nested(name: str, value: Any) -> dict[str, Any]:
    """A setting by dotted name as a file would have it."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


recipes = st.one_of(
    st.dictionaries(keys, values, max_size=4), st.builds(nested, st.sampled_from([*NAMES, *SECTIONS]), values)
)


@given(recipes)
@example({"base": 5})
@example({"base": ["\0"]})
@example({"data": {"columns": 5}, "data.columns.answer": "x"})
@example({"data": {"columns": {1: 2}}})
@example({"objective": {"custom": {"path": "x.py:X", "a": math.nan}}})
def test_any_recipe_is_read_or_refused_in_a_sentence(tmp_path_factory, settings):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(yaml.safe_dump(settings, encoding="utf-8", allow_unicode=False))
    check(["train", str(file), "--print-config"])


@given(
    st.one_of(st.binary(max_size=60), st.text("[]{}&*!:-,?'\"#|>%@ \t\na0.~<", max_size=60).map(str.encode))
)
@example(b"training: {seed: 2001-99-99}")
@example(b"a: &a [*a]")
@example(b"x: !!python/object/apply:os.system [echo]")
@example(b"seed: " + b"9" * 5000)
@example(b"student: 0x" + b"f" * 5000)
@example(b"[" * 100_000)
@example(b"{a: " * 100_000)
@example(b"\xff\xfe")
def test_any_file_is_read_or_refused_in_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    check(["train", str(file), "--print-config"])


COMMAND_NAMES = [command.name for command in COMMANDS]
FLAGS = sorted({option.flag for command in COMMANDS for option in (*command.options, *command.switches)})
argument = st.one_of(
    st.builds("{}={}".format, st.one_of(keys, st.sampled_from(LAST)), st.one_of(scalars, values)),
    st.builds("--{}={}".format, keys, scalars),
    st.builds("--{}".format, keys),
    st.sampled_from([*FLAGS, "--", "--column", "-h", "--version", "cuebench/opsd_cue", "-", "=", ""]),
    st.text(max_size=8),
    st.sampled_from(TEXTS),
)


@given(st.sampled_from(COMMAND_NAMES), st.lists(argument, max_size=5))
@example("train", ["cuebench/opsd_cue", "data.columns=5", "data.columns.answer=x"])
@example("train", ["cuebench/opsd_cue", "training.seed=[&a [*a]]"])
@example("train", ["cuebench/opsd_cue", "optimizer.betas={a: *b}"])
@example("train", ["cuebench/opsd_cue", "..=1"])
@example("study", ["objectives", "seeds=\ud800"])
def test_any_arguments_are_used_or_refused_in_a_sentence(command, arguments):
    # In second place, where no option can take it as its value: nothing is run.
    check([*command.split(), "--print-config", *arguments])


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: 5", r"base must be the name of a file or a list of them, not 5"),
        ("base: [a.yaml, {b: c}]", r"base must be the name of a file or a list of them, not \{'b': 'c'\}"),
        ("a: &a [*a]", "has a value that contains itself"),
        ("a: " + "[" * 60 + "]" * 60, "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        ("a: 2001-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: '" + "x" * 2**20 + "'", "is larger than 1 MiB"),
        ("student: {model: " + "9" * 300 + "}", r"student\.model must be a string|between"),
        ("training: {seed: '1" + "0" * 30 + "'}", r"training\.seed must be below 2\^63"),
        ("training: {seed: 1" + "0" * 30 + "}", r"training\.seed must be below 2\^63"),
        ("training: {steps: 1" + "0" * 30 + "}", r"training\.steps must be between -2\^63 and 2\^63"),
    ],
)
def test_a_file_that_takes_much_is_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_recipe(str(tmp_path / "a.yaml"))
    assert len(str(caught.value)) < 600


def test_aliases_that_multiply_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(SettingsError, match="has more than 50,000 values"):
        load_recipe(str(tmp_path / "a.yaml"))
    with pytest.raises(SettingsError, match="has more than 50,000 values"):
        load_recipe("cuebench/opsd_cue", ["optimizer.betas={" + ", ".join(lines) + "}"])


def test_many_unknown_settings_end_at_the_first(tmp_path):
    (tmp_path / "a.yaml").write_text("\n".join(f"unknown{i}: null" for i in range(10_000)))
    with pytest.raises(SettingsError, match="there is no setting 'unknown0'"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_long_name_is_cut(tmp_path):
    (tmp_path / "a.yaml").write_text("? " + "x" * 100_000 + "\n: 1")
    with pytest.raises(SettingsError, match="there is no setting 'xxx") as caught:
        load_recipe(str(tmp_path / "a.yaml"))
    assert len(str(caught.value)) < 600


def test_bases_that_share_bases_are_read_once_and_long_chains_refused(tmp_path):
    for i in range(15):
        bases = "" if i == 0 else f"base: [{i - 1}.yaml, {i - 1}.yaml]\n"
        (tmp_path / f"{i}.yaml").write_text(f"{bases}training: {{seed: {i}}}")
    assert load_recipe(str(tmp_path / "14.yaml")).training.seed == 14
    for i in range(30):
        (tmp_path / f"c{i}.yaml").write_text(f"base: c{i + 1}.yaml")
    with pytest.raises(SettingsError, match="has bases of bases, 20 deep"):
        load_recipe(str(tmp_path / "c0.yaml"))


def test_a_pipe_or_a_device_is_no_recipe(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "own.yaml").write_text("base: pipe.yaml")
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(SettingsError, match=f"{name} is not a regular file"):
            load_recipe(str(tmp_path / name))
    with pytest.raises(SettingsError, match=r"its base pipe\.yaml does not exist or is not a file"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_a_step_has_a_bounded_number_of_responses():
    with pytest.raises(SettingsError, match="responses per step; the most is 1,048,576"):
        load_recipe("cuebench/opsd_cue", [f"rollout.group_size={10**12}"])
    large = ["training.prompts_per_step=1024", f"rollout.group_size={MOST_RESPONSES // 1024}"]
    assert load_recipe("cuebench/opsd_cue", large).rollout.group_size == 1024


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 1000, "name: x\nname: y", "name: 2001-99-99"])
def test_a_cue_prompt_is_read_within_the_same_limits(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^The cue prompt .*own\.yaml (has|is|sets)"):
        load_prompt(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("text", ['!!bool "zz"', '!!timestamp "zz"', '!!int ""', '!!float ""', '!!int "+"'])
def test_a_value_that_does_not_fit_its_tag(text):
    with pytest.raises(Unreadable, match=r"^is not valid YAML: the value does not fit its tag .*line 2"):
        parse_yaml(f"a: 1\nb: {text}")
    with pytest.raises(SettingsError, match=r"^seed=.* is not a value that YAML can read\.$"):
        schema_of(Seeded).override(f"seed={text}")


def test_the_size_of_yaml_is_in_bytes():
    text = "ä" * (LARGEST_YAML // 2)
    assert parse_yaml(text) == text
    with pytest.raises(Unreadable, match=r"^is larger than 1 MiB\.$"):
        parse_yaml(text + "a")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_json_has_only_finite_numbers(number):
    text = f'{{"a": [{number}]}}'
    with pytest.raises(Unreadable, match=rf"^has {number}, where a finite number is expected\.$"):
        parse_json(text)
    assert not math.isfinite(parse_json(text, finite=False)["a"][0])
    assert parse_json('{"a": 1e300, "b": 2.5}') == {"a": 1e300, "b": 2.5}


KEY = "pa55-word"
WITH_A_KEY = [
    f"endpoint.base_url=http://user:{KEY}@h/v1",
    f"--endpoint.base-url=http://h/v1?key={KEY}",
    f"endpoint.base_url=[{KEY}]",
    f"endpoint.base_ur=http://user:{KEY}@h/v1",
    f"base_url=http://user:{KEY}@h/v1",
    f"endpoint=http://user:{KEY}@h/v1",
    f"endpoint={{base_url: 'http://user:{KEY}@h/v1'}}",
    f"endpoint={{base_url: 'http://user:{KEY}@h/v1",
    f"endpoint.api_key_env={KEY}",
    f"endpoint.header_envs={KEY}",
    f"endpoint.header_envs={{X-Key: {KEY}}}",
    f"endpoint.header_envs.X-Key={KEY}",
    f"endpoint.header_envs={{X-Key: [{KEY}]}}",
    f"--base-url=http://user:{KEY}@h/v1",
    f"--base-ur=http://user:{KEY}@h/v1",
    f"--verifier-url=http://user:{KEY}@h/v1",
]


@pytest.mark.parametrize("command", ["cues build", "cues audit"])
@pytest.mark.parametrize("override", WITH_A_KEY)
def test_a_key_in_a_setting_is_never_shown(command, override):
    given = ["--data", "x", "--print-config"] + (["--model", "m"] if command == "cues build" else [])
    flag, _, value = override.partition("=")
    for words in ([override], [flag, value]) if flag.startswith("--") else ([override],):
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            try:
                code = main([*command.split(), *given, *words])
            except SystemExit as end:
                code = end.code
        assert code in (1, 2) and flag.removeprefix("--").split(".")[0] in errors.getvalue()
        assert KEY not in out.getvalue() + errors.getvalue(), errors.getvalue()


def test_a_file_with_a_key_is_named_without_it():
    schema = schema_of(COMPONENTS["cues build"], "cues build")
    for value in ({"base_url": [KEY]}, {"base_url": f"http://a:{KEY}@h"}, {"header_envs": [KEY]}, KEY):
        with pytest.raises(SettingsError, match=r"^a\.yaml: ") as caught:
            schema.load([REQUIRED["cues build"], Layer("a.yaml", schema.flatten({"endpoint": value}))])
        assert KEY not in str(caught.value)


def plain_kinds(kind: Any) -> set[Any]:
    """The types in the type of a setting that nothing bounds."""
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        return plain_kinds(inner) - ({inner} if any(mark != PRIVATE for mark in marks) else set())
    parts = [] if get_origin(kind) is Literal else get_args(kind)
    inside = set().union(*map(plain_kinds, parts)) if parts else {kind}
    return {kind} if kind == dict[str, Any] else inside


def every_setting():
    """Every class of settings of a command, with each of its fields and the field's type."""
    seen: set[type] = set()
    waiting = [*COMPONENTS.values()]
    while waiting:
        component = waiting.pop()
        if component not in seen:
            seen.add(component)
            hints = get_type_hints(component, include_extras=True)
            for field in fields(component):
                parts = (hints[field.name], *get_args(hints[field.name]))
                inner = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
                waiting += inner
                if not inner:
                    yield component, field.name, hints[field.name]


def test_every_number_and_text_of_the_settings_is_bounded():
    found = {(c.__name__, name): plain_kinds(kind) for c, name, kind in every_setting()}
    assert len(found) > 150
    assert not {name: kinds for name, kinds in found.items() if kinds & {float, str, Any, dict[str, Any]}}
    seeds = [kind for _, name, kind in every_setting() if name == "seed"]
    assert len(seeds) >= 6 and all("lt=9223372036854775808" in str(kind) for kind in seeds)


@pytest.mark.parametrize("value", [1e31, -1e31, 1e308])
def test_no_number_is_too_large_for_float32(value):
    for command, component in COMPONENTS.items():
        schema = schema_of(component, command)
        for name, kind in schema.kinds.items():
            if has_float(kind) and kind != dict[str, Any]:
                with pytest.raises(SettingsError, match=rf"^a\.yaml: {name} must be "):
                    schema.load([REQUIRED[command], Layer("a.yaml", {name: nested_in(kind, value)})])


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_no_text_has_what_no_file_can_hold(text):
    count = 0
    for command, component in COMPONENTS.items():
        schema = schema_of(component, command)
        for name, kind in schema.kinds.items():
            if kind in (str, str | None):
                with pytest.raises(
                    SettingsError, match=rf"^a\.yaml: {name} must be a text without (a null|characters)"
                ):
                    schema.load([REQUIRED[command], Layer("a.yaml", {name: text})])
                count += 1
    assert count > 20


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (datetime.date(2026, 1, 2), "a.b is a date"),
        ({1, 2}, "a.b is a set"),
        (b"x", "a.b is a bytes"),
        ([{"c": b"x"}], "a.b.0.c is a bytes"),
        ({1: 2}, "the name 1 is not a text"),
        ("\0", "a.b has a null character"),
    ],
)
@pytest.mark.parametrize("name", ["endpoint.extra_body", "objective.custom"])
def test_a_mapping_holds_what_json_has(value, fault, name):
    command = "cues build" if name.startswith("endpoint") else "train"
    layers = [REQUIRED[command], Layer("a.yaml", {name: {"a": {"b": value}}})]
    with pytest.raises(SettingsError, match=rf"^a\.yaml: {name} must be a mapping .*\({fault}\)"):
        schema_of(COMPONENTS[command], command).load(layers)


@pytest.mark.parametrize(
    ("command", "name", "most"),
    [
        ("cues build", "cues_per_problem", 1000),
        ("cues worth", "group_size", 4096),
        ("cuebench make", "n", 10**7),
        ("study", "test_problems", 10**7),
        ("train", "student.lora.rank", 65_536),
        ("train", "training.evaluate.max_new_tokens", 2**31 - 1),
        ("eval", "sampling.max_new_tokens", 2**31 - 1),
        ("cues build", "asking.max_tokens", 2**31 - 1),
    ],
)
def test_sizes_that_fill_the_memory_have_a_bound(command, name, most):
    schema = schema_of(COMPONENTS[command], command)
    with pytest.raises(
        SettingsError, match=rf"^{name}={most + 1}: {name} must be (at most {most}|below 2147483648), not"
    ):
        schema.load([REQUIRED[command], *schema.overrides([f"{name}={most + 1}"])])
    schema.load([REQUIRED[command], *schema.overrides([f"{name}={most}"])])


@pytest.mark.parametrize(("value", "bound"), [("-1", "0 or more"), (str(2**63), r"below 2\^63")])
def test_a_seed_is_one_that_every_generator_takes(value, bound):
    count = 0
    for command, component in COMPONENTS.items():
        schema = schema_of(component, command)
        for name in schema.kinds:
            if name.rpartition(".")[2] == "seed":
                with pytest.raises(SettingsError, match=f"{name} must be {bound}"):
                    schema.load([REQUIRED[command], *schema.overrides([f"{name}={value}"])])
                count += 1
    assert count >= 7
