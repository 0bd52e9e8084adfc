"""Cues for all problems of a data set: `vicur cues build`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from vicur.bad_rows import BadRowError
from vicur.cues.asking import Asker, new_columns, num_problems, requests_of
from vicur.cues.clients.client import CueClient
from vicur.cues.clients.fixed import ExactClient, NullClient
from vicur.cues.clients.local import LocalClient
from vicur.cues.output import check_output
from vicur.cues.prompts import CuePrompt, load_prompt
from vicur.cues.requests import (
    MissingAnswer,
    estimated_tokens,
    question_for,
    request_key,
)
from vicur.cues.settings import BuildConfig
from vicur.cues.store import CueStore
from vicur.cues.summary import BuildPlan, BuildSummary, Watch
from vicur.data.digests import media_digest
from vicur.data.sources import FileSource, Progress
from vicur.data.tables import Table, open_table
from vicur.data.views import Shown
from vicur.endpoints.client import EndpointClient
from vicur.endpoints.config import endpoint_identity
from vicur.paths import check_distinct, check_file


def build_cues(
    config: BuildConfig,
    *,
    watch: Watch | None = None,
    progress: Progress | None = None,
    remarks: Mapping[str, str] | None = None,
    client: CueClient | None = None,
) -> BuildSummary:
    """Get a cue for every problem, and write the data with the cues added.

    Args:
        config: all settings.
        watch: shows the progress of the requests.
        progress: shows the progress of checking the rows.
        remarks: additional remarks to the model by problem id, such as the faults of an earlier cue. A
            remark changes the request, so its reply is stored beside the earlier one.
        client: the cue source, in place of the one in the settings.

    Raises:
        ValueError: a setting does not fit the data, the output or the store.
        OSError: a file cannot be written.
        KeyboardInterrupt: on Ctrl-C, once the requests in flight are answered and stored.
    """
    prompt = _prompt(config)
    table, source = _open(config, prompt, progress)
    with CueStore(config.store_path) as store:
        _check_files(config, store)
        owned = client is None
        client = client or make_client(config, source, prompt)
        build = Asker(config, source, prompt, client, store, remarks or {})
        build.run(watch, close=owned)
        return build.finish(table)


def plan_cues(
    config: BuildConfig, *, progress: Progress | None = None, remarks: Mapping[str, str] | None = None
) -> BuildPlan:
    """The plan of `build_cues`: a dry run, without requests or output.

    Raises:
        ValueError: as `build_cues`.
    """
    prompt = _prompt(config)
    _, source = _open(config, prompt, progress)
    count = num_problems(config, source)
    client = make_client(config, source, prompt) if config.backend != "endpoint" else None
    # A dry run needs no key.
    identity = (
        client.identity
        if client is not None
        else lambda _: endpoint_identity(str(config.model), config.endpoint)
    )
    path = config.store_path
    with CueStore(path, read_only=True) if path.is_file() else nullcontext() as store:
        _check_files(config, store)
        kept, prompt_tokens, first = _missing(config, source, prompt, identity, remarks or {}, store)
    if client is not None:
        asyncio.run(client.close())
    cues = count * config.cues_per_problem
    completion_tokens = (cues - kept) * config.asking.max_tokens
    return BuildPlan(
        problems=count,
        bad_rows=len(source.bad_rows),
        cues=cues,
        kept=kept,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=config.price(prompt_tokens, completion_tokens),
        request="" if first is None else request_text(first),
    )


def _missing(
    config: BuildConfig,
    source: FileSource,
    prompt: CuePrompt,
    identity: Callable[[int], str],
    remarks: Mapping[str, str],
    store: CueStore | None,
) -> tuple[int, int, Shown | None]:
    """Number of cues in the store, estimated prompt tokens of the others, and the first request."""
    kept = prompt_tokens = 0
    first: Shown | None = None
    for index in range(num_problems(config, source)):
        try:
            if store is None:  # then nothing needs to be decoded
                outline = source.outline(index)
                remark = remarks.get(outline.id)
                question = question_for(outline, prompt, include_answer=config.include_answer, remark=remark)
                first = first or question
                prompt_tokens += config.cues_per_problem * estimated_tokens(question, config.asking)
                continue
            sample = source[index]
            requests = requests_of(config, prompt, sample, index, remarks)
        except (BadRowError, MissingAnswer):
            continue
        first = first or requests[0].question
        media = media_digest(sample)
        for request in requests:
            if request_key(request, identity(index), prompt, config.asking, media) in store:
                kept += 1
            else:
                prompt_tokens += estimated_tokens(request.question, config.asking)
    return kept, prompt_tokens, first


def make_client(config: BuildConfig, source: FileSource, prompt: CuePrompt) -> CueClient:
    """The cue source that the settings name.

    Raises:
        ValueError: a key is missing, or the data has no texts for "exact" to copy.
    """
    if config.backend == "null":
        return NullClient()
    if config.backend == "exact":
        texts = source.column(prompt.field)
        if not any(text is not None for text in texts):
            raise ValueError(
                f"{source.name} has no {prompt.field} that backend=exact could copy; choose another backend."
            )
        return ExactClient(texts, prompt.field)
    assert config.model is not None
    if config.backend == "local":
        return LocalClient(config.model, engine=config.engine, vllm=config.vllm)
    return EndpointClient(config.model, config.endpoint, config.asking.image_format)


def request_text(question: Shown) -> str:
    """A request as readable text, with placeholders for its media."""
    images, videos = iter(question.images), iter(question.videos)
    texts = []
    for message in question.messages:
        text = f"[{message['role']}]\n"
        for part in message["content"]:
            if part["type"] == "image":
                width, height = next(images).size
                text += f"<image of {width} x {height} pixels>"
            elif part["type"] == "video":
                video = next(videos)
                width, height = video.size
                text += f"<video: {len(video.frames)} frames of {width} x {height} pixels>"
            else:
                text += part["text"]
        texts.append(text)
    return "\n\n".join(texts)


def _open(config: BuildConfig, prompt: CuePrompt, progress: Progress | None) -> tuple[Table, FileSource]:
    """Open the data, after checking that the output can be written."""
    table, out = open_table(config.data.train), Path(config.output)
    replace_own = config.replace or config.backend == "exact"  # whose texts are that column
    columns = list(new_columns(config, prompt))
    check_output(table, _data_path(config), out, columns, replace=replace_own, overwrite=True)
    check_file(config.failed_path, "The list of failures", table.files, overwrite=True)
    check_distinct({"output": out, "store": config.store_path, "the list of failures": config.failed_path})
    if not config.store_path.exists():  # otherwise it knows which files are its own
        _check_files(config, None)
    # Images are decoded when they are sent, and a broken one fails only its own problem.
    source = replace(config.data, check_images=0).open(table, progress=progress)
    return table, source


def _check_files(config: BuildConfig, store: CueStore | None) -> None:
    """Make sure that the build replaces no file that it has not written itself.

    Raises:
        ValueError: it would.
    """
    if config.overwrite:
        return
    outputs = {"The output": Path(config.output), "The list of failures": config.failed_path}
    for name, path in outputs.items():
        if path.exists() and (store is None or not store.has_written(path)):
            changed = "" if store is None else f" and is not what a build with the store {store.path} wrote"
            raise ValueError(
                f"{name} {path} already exists{changed}; choose another output, or set overwrite=true to "
                "replace it."
            )


def _data_path(config: BuildConfig) -> Path:
    """The data file; the first of several."""
    train = config.data.train
    return Path(train if isinstance(train, str) else train[0])


def _prompt(config: BuildConfig) -> CuePrompt:
    prompt = load_prompt(config.prompt)
    if config.include_answer:
        prompt.answer_text("")  # raises an error before anything is opened
    return prompt
