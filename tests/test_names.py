"""Every name that code reads exists. Linters cannot tell: shapes in annotations look like undefined names."""

from __future__ import annotations

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import vicur

MODULES = sorted(module.name for module in pkgutil.walk_packages(vicur.__path__, "vicur."))
NOT_IMPORTED = {"vicur.rewards.worker"}  # a script, run in a process of its own


def global_names(code: CodeType) -> Iterator[str]:
    """Names that a module's functions look up in the module when they run."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


WITH_VLLM = {f"vicur.vllm.{name}" for name in ("model", "nccl", "scheduler", "whole_prompts")}
"""Modules that vLLM imports, or that are imported for it only: they import vLLM."""
WITH_HARNESS = {
    **{f"vicur.integrations.lmms_eval.{name}": "lmms_eval" for name in ("cuebench", "manifest", "model")},
    "vicur.integrations.vlmevalkit.model": "vlmeval",
}
"""Modules that a harness imports, and the harness."""


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_IMPORTED])
def test_every_name_exists(name):
    if name in WITH_VLLM:
        pytest.importorskip("vllm")
    if name in WITH_HARNESS:
        pytest.importorskip(WITH_HARNESS[name])
    module = importlib.import_module(name)
    path = Path(str(module.__file__))
    code = compile(path.read_text(), str(path), "exec")
    known = set(vars(module)) | set(vars(builtins))
    assert sorted(set(global_names(code)) - known) == []
