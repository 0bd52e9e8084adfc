"""On-policy distillation for vision-language models, supervised by what can be seen.

Importing the package registers the student model with transformers' Auto classes.
"""

from vicur.models.student import ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration

__all__ = ["ViCuRQwen3VLConfig", "ViCuRQwen3VLForConditionalGeneration"]
