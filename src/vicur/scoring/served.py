"""A teacher on servers of vLLM: it scores the tokens that the student sampled, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.checkpoints import read_config, read_processor, without_weights
from vicur.models.load import LoadedModel
from vicur.models.vocabulary import ScoringVocabulary, Vocabulary, check_same_vocabulary
from vicur.scoring.teacher import TeacherConfig
from vicur.vllm.backend import EngineError
from vicur.vllm.settings import VLLMConfig

NO_PROBABILITY = -1000.0
"""A log-prob in nats below which a token has no probability: JSON has no infinity."""


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
        merge = settings.vision_config.spatial_merge_size
        self._served = ServedModel(config.servers, merge, max_model_len, VLLMConfig().timeout_seconds)
        self._check_vocabulary(student.vocabulary, settings, vocabulary)

    def log_probs(
        self, samples: Sequence[Sample], responses: Sequence[Sequence[Tensor]], view: View
    ) -> Float[Tensor, " N"]:
        """log q(y_t) of the responses under a view, in nats, in the flat order.

        Raises:
            EngineError: a server fails.
        """
        prompts = self.encoder.encode([view.show(sample) for sample in samples])
        return torch.cat(self._served.score(prompts, responses))

    def _check_vocabulary(self, vocabulary: Vocabulary, settings: Any, which: ScoringVocabulary) -> None:
        """Check over which tokens the servers normalise: a special token has a probability or has none.

        Raises:
            EngineError: over others than the run.
        """
        media = {settings.image_token_id, settings.video_token_id}
        special = next(token for token in vocabulary.forbidden_ids if token not in media)
        prompt = EncodedPrompt.of_text([int(vocabulary.kept_ids[0])])
        (log_prob,) = self._served.score([prompt], [[torch.tensor([special])]])
        theirs = "sampleable" if float(log_prob) < NO_PROBABILITY else "shared"
        if theirs != which:
            raise EngineError(
                f"The teacher's servers normalise over the {theirs} tokens, and scoring.vocabulary={which}. "
                f"Start them with `vicur serve CHECKPOINT vocabulary={which}`."
            )
