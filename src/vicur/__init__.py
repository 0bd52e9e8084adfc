"""On-policy distillation for vision-language models, supervised by what can be seen.

Importing the package is quick: it loads neither torch nor transformers. The names below are imported on first
use, and the student is registered with transformers' Auto classes when those are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vicur.registration import register_when_needed

if TYPE_CHECKING:
    from vicur.data.sample import Sample
    from vicur.data.sources import DataConfig, FileSource
    from vicur.data.views import Blind, Degraded, Hinted, Plain
    from vicur.evaluation.runner import EvaluationConfig, evaluate
    from vicur.models.load import StudentConfig, load_model, load_student
    from vicur.models.student import ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration
    from vicur.rewards.grader import Grader, RewardConfig
    from vicur.rollouts.processors import SamplingConfig
    from vicur.run.build import build
    from vicur.run.execute import Run
    from vicur.run.recipe import Recipe, load_recipe
    from vicur.scoring.scorer import Scorer

_NAMES_OF_MODULES = {
    "vicur.data.sample": ["Sample"],
    "vicur.data.sources": ["DataConfig", "FileSource"],
    "vicur.data.views": ["Blind", "Degraded", "Hinted", "Plain"],
    "vicur.evaluation.runner": ["EvaluationConfig", "evaluate"],
    "vicur.models.load": ["StudentConfig", "load_model", "load_student"],
    "vicur.models.student": ["ViCuRQwen3VLConfig", "ViCuRQwen3VLForConditionalGeneration"],
    "vicur.rewards.grader": ["Grader", "RewardConfig"],
    "vicur.rollouts.processors": ["SamplingConfig"],
    "vicur.run.build": ["build"],
    "vicur.run.execute": ["Run"],
    "vicur.run.recipe": ["Recipe", "load_recipe"],
    "vicur.scoring.scorer": ["Scorer"],
}
_MODULE_OF = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

__all__ = [
    "Blind",
    "DataConfig",
    "Degraded",
    "EvaluationConfig",
    "FileSource",
    "Grader",
    "Hinted",
    "Plain",
    "Recipe",
    "RewardConfig",
    "Run",
    "Sample",
    "SamplingConfig",
    "Scorer",
    "StudentConfig",
    "ViCuRQwen3VLConfig",
    "ViCuRQwen3VLForConditionalGeneration",
    "build",
    "evaluate",
    "load_model",
    "load_recipe",
    "load_student",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(_MODULE_OF[name]))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
