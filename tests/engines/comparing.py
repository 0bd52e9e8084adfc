"""Compares an engine with the trainer, on inputs that make differences visible."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from vicur.data.views import Plain
from vicur.encoding.prompts import PromptEncoder
from vicur.scoring.scorer import Scorer, ScoringConfig

BOUND = 1e-5
"""Largest difference of log-probs between engine and trainer in float32, in nats."""


def trainer_log_probs(loaded, samples, responses, view):
    """The trainer's log-probs of responses over the words, in the flat order."""
    scorer = Scorer(loaded, ScoringConfig(vocabulary="sampleable"))
    return scorer.log_probs(samples, responses, view)


def respond(engine, loaded, samples, *, siblings=1, temperature=1.0, most=12, view=None):
    """The engine's responses."""
    prompts = PromptEncoder.of(loaded).encode([(view or Plain()).show(sample) for sample in samples])
    seeds = [[100 * i + k for k in range(siblings)] for i in range(len(samples))]
    stops = list(loaded.vocabulary.stop_ids)
    sampling = {"temperature": temperature, "max_tokens": most, "stop_token_ids": stops, "ignore_eos": True}
    return engine.generate(prompts, seeds, sampling | {"detokenize": False})


def difference(engine, loaded, samples, **settings):
    """The largest difference of log-probs between engine and trainer over sampled responses."""
    made = respond(engine, loaded, samples, **settings)
    responses = [[torch.tensor(one.ids) for one in group] for group in made]
    theirs = torch.tensor([value for group in made for one in group for value in one.log_probs])
    ours = trainer_log_probs(loaded, samples, responses, settings.get("view") or Plain())
    return float((theirs - ours).abs().max())


def picture(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """The model with larger weights than the default, so that images matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    return model
