"""The model `vicur` of lmms-eval: any checkpoint of this package or of Qwen3-VL.

lmms-eval's own `qwen3_vl` loads the stock class and drops a recovery module without a word. This one loads a
checkpoint completely or refuses it, and answers as `vicur eval` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from vicur import distributed
from vicur.consoles import error_console
from vicur.data.sample import Sample
from vicur.evaluation.responses import StoredResponse
from vicur.integrations.answering import Answering
from vicur.integrations.chats import ChatReader, Turn
from vicur.integrations.lmms_eval.generation import cut, sampling_of, stops_of
from vicur.integrations.settings import decides_sampling, harness_settings, notes
from vicur.models.devices import choose_device
from vicur.progress import Progress

MULTI_ROUND = "The model vicur answers a chat once; tasks of several rounds need a model class with rounds."
LIKELIHOODS = (
    "The model vicur generates responses and gives no likelihoods of texts. Choose a task with output_type "
    "generate_until."
)


class ViCuR(lmms):  # type: ignore[misc]
    """A checkpoint in lmms-eval.

    Args:
        pretrained: checkpoint folder, hub id, or "vicur:NAME".
        batch_size: number of problems answered together.
        device: "cpu", "cuda" or "cuda:N"; by default a GPU if there is one.
        max_batch_size: not used.
        settings: settings of `vicur eval` by their names, such as preset, dtype, engine, seed,
            sampling.temperature, data.max_pixels; also min_pixels, max_pixels, system_prompt (a text, or a
            file with it).

    Raises:
        ValueError: the checkpoint is missing or broken, lacks weights or has unexpected ones; or a setting
            does not exist or fit.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not pretrained:
            raise ValueError("Name the checkpoint: --model_args pretrained=FOLDER.")
        if not str(batch_size).isdecimal():
            raise ValueError(f"--batch_size must be a number for the model vicur, not {batch_size}.")
        if "system_prompt" in settings:
            settings["system_prompt"] = self._resolve_system_prompt(str(settings["system_prompt"]))
        arguments = {"pretrained": str(pretrained), "batch_size": int(batch_size), **settings}
        self._replaces_sampling = decides_sampling(settings)
        self.settings = harness_settings(arguments, "--model_args")
        for note in notes(self.settings):
            error_console().print(note, markup=False, highlight=False, soft_wrap=True)
        # Of several processes of the harness, each has a GPU of its own.
        own_device = choose_device(device or "auto", distributed.local_rank())
        self._answering = Answering(self.settings, own_device)
        self.device = self._answering.device
        self._reader = ChatReader(self.settings.data)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests.

        A request that comes several times, as with --repeats, gets a response each time.

        Raises:
            ValueError: a task samples as this model cannot, or a medium cannot be read.
            EngineError: an engine other than PyTorch failed.
        """
        results: list[GenerationResult | None] = [None] * len(requests)
        ids = self._ids(requests)
        batches = list(self._batches(requests))
        progress = Progress("answering", transient=True)
        for places, kwargs in progress.over(batches, len(batches)):
            sampling = self.settings.sampling if self._replaces_sampling else sampling_of(kwargs)
            problems = [self._problem(requests[same[0]], ids[same[0]]) for same in places]
            groups = self._answering.answer(problems, sampling, len(places[0]))
            for same, group in zip(places, groups, strict=True):
                for place, response in zip(same, group, strict=True):
                    results[place] = _result(response, () if self._replaces_sampling else stops_of(kwargs))
        return [result for result in results if result is not None]

    def _batches(self, requests: Sequence[Instance]) -> Iterator[tuple[list[list[int]], Mapping[str, Any]]]:
        """Requests that are sampled in the same way: for each problem the places of its requests."""
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            _, _, _, doc_id, task, split = request.args
            places.setdefault((task, split, doc_id), []).append(place)
        alike: dict[tuple[str, int], list[list[int]]] = {}
        for same in places.values():
            kwargs = requests[same[0]].args[2]
            alike.setdefault((repr(sorted(kwargs.items())), len(same)), []).append(same)
        size = self.settings.prompts_per_batch
        for group in alike.values():
            for start in range(0, len(group), size):
                yield group[start : start + size], requests[group[start][0]].args[2]

    def _ids(self, requests: Sequence[Instance]) -> list[str]:
        """The ids that random numbers are keyed by: those of the data where they tell its rows apart.

        `vicur eval` then draws the same responses from the same data.
        """
        columns: dict[tuple[str, str], list[str] | None] = {}
        ids = []
        for request in requests:
            _, _, _, doc_id, task, split = request.args
            if (task, split) not in columns:
                columns[task, split] = _column_of_ids(self.task_dict[task][split])
            column = columns[task, split]
            ids.append(f"{task}/{doc_id}" if column is None else column[doc_id])
        return ids

    def _problem(self, request: Instance, problem: str) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return self._reader.read(problem, _turns(doc_to_messages(self.task_dict[task][split][doc_id])))

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raise NotImplementedError: the model only generates."""
        raise NotImplementedError(LIKELIHOODS)

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Raise NotImplementedError: the model answers once."""
        raise NotImplementedError(MULTI_ROUND)

    def clean(self) -> None:
        """Free the model, as the harness asks for before it scores."""
        self._answering.close()
        del self._answering
        super().clean()


def _column_of_ids(docs: Any) -> list[str] | None:
    """The ids of a data set's rows; None if there are none, or two are equal."""
    if "id" not in getattr(docs, "column_names", ()):
        return None
    ids = [str(value) for value in docs["id"]]
    return ids if len(set(ids)) == len(ids) else None


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The harness's messages, whose media are under `url`, with a start and an end for videos."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": part["text"]}
                if part["type"] == "text"
                else {"type": part["type"], "entry": _entry(part)}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _entry(part: Mapping[str, Any]) -> Any:
    bounds = {"video_start": part.get("start_time"), "video_end": part.get("end_time")}
    limits = {name: value for name, value in bounds.items() if value is not None}
    return {part["type"]: part["url"], **limits} if limits else part["url"]


def _result(response: StoredResponse, stops: tuple[str, ...]) -> GenerationResult:
    tokens = TokenCounts(output_tokens=response.response_tokens)
    return GenerationResult(cut(response.response, stops), tokens)
