"""Writes what reproduces an update whose loss or gradient was not finite, and reads it for `vicur replay`.

nonfinite/step-000012-update-0/
    update.json             step, update, problems, and their responses token by token
    log_probs.safetensors   log-probs of the response tokens that were scored before the update
    weights/                the trained weights of that moment, as in a checkpoint
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vicur import distributed
from vicur.files import write_json, write_whole
from vicur.rollouts.rollout import Response
from vicur.settings.reading import read_json
from vicur.training.checkpoint import write_tensors
from vicur.training.scoring import ScoredBatch
from vicur.training.whole import whole_batch

FOLDER = "nonfinite"
DUMPS = 3
"""Number of skipped updates of a run that are written: each takes the size of the weights."""
IMPORTANCE = "importance"
"""Name of the importance ratios among the log-probs of an update."""


@dataclass(frozen=True)
class Skipped:
    """An update that was skipped.

    Attributes:
        step: its rollout step.
        update: number of earlier updates.
        batch: this rank's responses with their scores.
    """

    step: int
    update: int
    batch: ScoredBatch


def write_skipped(run: Path, skipped: Skipped, tensors: Mapping[str, Tensor]) -> Path | None:
    """Write what reproduces a skipped update; nothing after the first few of a run.

    All ranks must call this.

    Args:
        run: the run's folder.
        skipped: the update.
        tensors: the weights, by name.

    Returns:
        the folder; None if nothing was written.

    Raises:
        OSError: it cannot be written.
    """
    folder = run / FOLDER / f"step-{skipped.step:06d}-update-{skipped.update}"
    known = len(list((run / FOLDER).glob("step-*"))) if (run / FOLDER).is_dir() else 0
    if distributed.largest(known) >= DUMPS:
        return None
    batch = whole_batch(skipped.batch)
    per_token = dict(skipped.batch.log_probs)
    if skipped.batch.importance is not None:
        per_token[IMPORTANCE] = skipped.batch.importance
    log_probs = {name: distributed.gather_tensor(values).cpu() for name, values in per_token.items()}
    partial = folder.with_name(f"partial-{folder.name}")
    distributed.main_only(lambda: _write(partial, skipped, batch, log_probs))
    write_tensors(partial / "weights", weights_among(tensors))
    distributed.main_only(lambda: _publish(partial, folder))
    return folder


def _write(folder: Path, skipped: Skipped, batch: ScoredBatch, log_probs: dict[str, Tensor]) -> None:
    rollouts = batch.rollouts
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {
        "step": skipped.step,
        "update": skipped.update,
        "samples": [sample.id for sample in rollouts.samples],
        "responses": [[_as_json(response) for response in group] for group in rollouts.responses],
        "texts": [list(group) for group in rollouts.texts],
    }
    write_json(folder / "update.json", content)
    write_whole(folder / "log_probs.safetensors", lambda partial: save_file(log_probs, partial))


def weights_among(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint without the optimizer's states."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}


def _publish(partial: Path, folder: Path) -> None:
    if folder.exists():  # of the same step, before the run was resumed
        shutil.rmtree(folder)
    partial.replace(folder)


def _as_json(response: Response) -> dict[str, Any]:
    sampled = response.log_probs
    return {
        "ids": response.ids.tolist(),
        "log_probs": None if sampled is None else sampled.tolist(),
        "finish_reason": response.finish_reason,
    }


@dataclass(frozen=True)
class Dump:
    """A skipped update, as it was written.

    Attributes:
        folder: its folder.
        run: folder of the run.
        step, update: as in `Skipped`.
        samples: ids of the problems.
        responses, texts: the responses to each, as in `Rollouts`.
        log_probs: log-probs of the response tokens that were scored before the update, and their importance
            ratios if there are any.
    """

    folder: Path
    run: Path
    step: int
    update: int
    samples: tuple[str, ...]
    responses: tuple[tuple[Response, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    log_probs: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Dump:
        """Read a skipped update.

        Raises:
            ValueError: the folder holds none.
        """
        try:
            content = read_json(folder / "update.json", finite=False)
            responses = tuple(tuple(map(_response, group)) for group in content["responses"])
            log_probs = load_file(folder / "log_probs.safetensors")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is not the folder of a skipped update (nonfinite/step-... in a run's folder)."
            ) from error
        return cls(
            folder,
            folder.resolve().parents[1],
            content["step"],
            content["update"],
            tuple(content["samples"]),
            responses,
            tuple(map(tuple, content["texts"])),
            log_probs,
        )


def _response(values: Mapping[str, Any]) -> Response:
    sampled = values["log_probs"]
    return Response(
        torch.tensor(values["ids"]),
        None if sampled is None else torch.tensor(sampled),
        values["finish_reason"],
    )
