"""`import vicur`: quick, complete, and the student is registered in whatever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vicur

KIND = "from transformers import AutoConfig\nprint(type(AutoConfig.for_model('vicur_qwen3_vl')).__name__)"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_loads_neither_torch_nor_transformers():
    code = "import sys, vicur\nprint({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    assert run(code) == ["set()"]


@pytest.mark.parametrize(
    "imports",
    [
        "import vicur\nfrom transformers import AutoModelForImageTextToText",
        "import vicur\nfrom transformers import PreTrainedModel",
        "from transformers import AutoModelForImageTextToText\nimport vicur",
        "import vicur\nfrom vicur import load_recipe\nload_recipe",
        "import vicur.compat",
        "import vicur.cues.settings",
    ],
)
def test_the_student_is_registered(imports):
    assert run(f"{imports}\n{KIND}") == ["ViCuRQwen3VLConfig"]


@pytest.mark.parametrize("name", vicur.__all__)
def test_every_public_name_is_there(name):
    assert getattr(vicur, name).__name__ == name and name in dir(vicur)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vicur.nothing
