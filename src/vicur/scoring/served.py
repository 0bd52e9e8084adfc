"""A teacher on servers of vLLM: it scores the tokens that the student sampled, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Attempt, View, in_hindsight
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.checkpoints import read_config, read_processor, without_weights
from vicur.models.load import LoadedModel
from vicur.models.vocabulary import ScoringVocabulary, Vocabulary, check_same_vocabulary
from vicur.scoring.scorer import prompts_in_hindsight
from vicur.scoring.teacher import TeacherConfig
from vicur.vllm.backend import EngineError
from vicur.vllm.settings import VLLMConfig

NO_PROBABILITY = -1000.0
"""A log-prob in nats below which a token has no probability: JSON has no infinity."""
SAME_MODEL = 0.5
"""Mean difference of log-probs in nats up to which two servers run the same model, in any dtype."""


class ServedTeacher:
    """A teacher without weights in this process. Its servers return log-probs of given tokens.

    A whole distribution over the vocabulary would be a hundred thousand numbers for every token, so
    objectives that need one take a teacher with weights in this process.

    Args:
        config: checkpoint of the teacher, for its processor; its servers and its view.
        student: the model that learns.
        vocabulary: the tokens over which the run normalises log-probs.
        max_model_len: maximum number of tokens of a prompt and its response.
        limits: pixel limits of images and frames.

    Raises:
        ValueError: student and teacher have different vocabularies.
        EngineError: a server cannot be reached, takes only shorter prompts, or normalises over other tokens.
    """

    def __init__(
        self,
        config: TeacherConfig,
        student: LoadedModel,
        vocabulary: ScoringVocabulary,
        max_model_len: int,
        limits: PixelLimits | None = None,
    ) -> None:
        from vicur.vllm.remote import ServedModel

        processor, settings = read_processor(config.model), read_config(config.model)
        check_same_vocabulary(student.processor.tokenizer, processor.tokenizer)
        self.view, self.servers = config.view, config.servers
        self.encoder = PromptEncoder(processor, without_weights(settings).model.get_rope_index, limits)
        self._servers = partial(
            ServedModel,
            merge=settings.vision_config.spatial_merge_size,
            max_model_len=max_model_len,
            timeout=VLLMConfig().timeout_seconds,
        )
        self._served = self._servers(config.servers)
        self._check_servers(student.vocabulary, settings, vocabulary)

    def log_probs(
        self,
        samples: Sequence[Sample],
        responses: Sequence[Sequence[Tensor]],
        view: View,
        attempts: Sequence[Sequence[Attempt]] | None = None,
    ) -> Float[Tensor, " N"]:
        """log q(y_t) of the responses under a view, in nats, in the flat order.

        Args:
            samples, responses, view, attempts: as in `Scorer.scores`.

        Raises:
            EngineError: a server fails.
        """
        if in_hindsight(view):
            prompts, responses = prompts_in_hindsight(self.encoder, samples, responses, view, attempts)
        else:
            prompts = self.encoder.encode([view.show(sample) for sample in samples])
        return torch.cat(self._served.score(prompts, responses))

    def _check_servers(self, vocabulary: Vocabulary, settings: Any, which: ScoringVocabulary) -> None:
        """Check that all servers run the same model, and normalise over the tokens of the run.

        A special token has a probability in one vocabulary and none in the other.

        Raises:
            EngineError: they do not.
        """
        media = {settings.image_token_id, settings.video_token_id}
        special = next(token for token in vocabulary.forbidden_ids if token not in media)
        words = vocabulary.kept_ids[:8]
        prompt = EncodedPrompt.of_text(words[:1].tolist())
        values = []
        for url in self.servers:
            forbidden, usual = self._servers([url]).score([prompt], [[torch.tensor([special]), words[1:]]])
            theirs = "sampleable" if float(forbidden) < NO_PROBABILITY else "shared"
            if theirs != which:
                raise EngineError(
                    f"The teacher's server {url} normalises over the {theirs} tokens, and "
                    f"scoring.vocabulary={which}. Start it with `vicur serve CHECKPOINT vocabulary={which}`."
                )
            values.append(usual)
        for url, value in zip(self.servers, values, strict=True):
            if float((value - values[0]).abs().mean()) > SAME_MODEL:
                raise EngineError(
                    f"The teacher's servers {self.servers[0]} and {url} do not run the same checkpoint."
                )
