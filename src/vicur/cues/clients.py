"""Cue sources: an endpoint, a model in this process, a column of the data, or none.

All have the same two methods. What goes wrong is one of three things: the client cannot be reached just
now (`Unreachable`: no fault of the problem), this one request failed (`RequestFailed`), or no request will
ever work (`Hopeless`). Keys and headers never leave this module: they are put on a request as it is sent,
and every message that comes back is searched for them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from PIL import Image

from vicur.cues.requests import Asking, CueRequest
from vicur.encoding.prompts import PromptEncoder
from vicur.files import folder_digest
from vicur.models.load import LoadedModel, load_model
from vicur.rewards.thinking import opened_thought
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.sampler import Sampler
from vicur.settings.section import Positive, section

Sleep = Callable[[float], Awaitable[Any]]
Structured = Literal["auto", "schema", "object", "off"]

OPENAI = "https://api.openai.com/v1"
_FORM_WORDS = ("response_format", "json_schema", "json schema", "json_object", "guided", "structured")
"""Words in the message of an endpoint that does not support our `response_format`."""
REASONING = ("reasoning_content", "reasoning")
"""Names of the field for a model's thoughts: of vLLM, SGLang and DeepSeek; of newer vLLM and OpenRouter."""
_BUSY = (429, 502, 503, 504)
"""Statuses of an endpoint that is overloaded or about to start."""
_AGAIN = (408, 409, 500)
"""Statuses that another try may not get; a problem that always gets them is set aside."""
_HOPELESS = {
    401: "does not accept the key; check the environment variable that holds it",
    402: "asks for payment",
    403: "refuses access; check the key's rights",
    404: "has no such model or path; check the model's name and base_url, which usually ends in /v1",
    405: "does not answer chat requests at this path; base_url usually ends in /v1",
}


class Unreachable(Exception):
    """The client cannot answer just now.

    Args:
        reason: the reason, as half a sentence.
        after: seconds to wait, if it said so.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class RequestFailed(Exception):
    """One request failed.

    Args:
        reason: the reason, as half a sentence.
        again: whether another try may help.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Hopeless(Exception):
    """No request will work, and why, in half a sentence."""


@dataclass(frozen=True)
class Reply:
    """A model's reply.

    Attributes:
        text: the reply, verbatim.
        prompt_tokens, completion_tokens: as counted by the model's server; None where it gives no count.
        cut_off: whether it ended because there were no tokens left.
        thoughts: the model's reasoning, where the server keeps it apart from the text.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut_off: bool = False
    thoughts: str = ""


class CueClient(Protocol):
    """A source of cues."""

    @property
    def name(self) -> str:
        """Name of the model, for records."""
        ...

    def identity(self, index: int) -> str:
        """All about the client that decides on its reply to a problem."""
        ...

    async def ask(self, request: CueRequest) -> Reply:
        """Send one request.

        Raises:
            Unreachable, RequestFailed, Hopeless: as these say.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


class NullClient:
    """Says the same of everything, at once: for measuring all the rest."""

    name = "null"

    def identity(self, index: int) -> str:
        return "null"

    async def ask(self, request: CueRequest) -> Reply:
        return Reply(json.dumps({request.field: "Nothing was looked at."}), 0, 0)

    async def close(self) -> None:
        return None


class ExactClient:
    """The texts that the data itself has: CueBench's exact cues, derived from its scenes.

    Args:
        texts: the cues of the problems, in the order of the source.
        column: the column that they were read from.
    """

    def __init__(self, texts: Sequence[str | None], column: str = "cue") -> None:
        self.texts = texts
        self.name = f"exact {column}"

    def identity(self, index: int) -> str:
        text = self.texts[index] or ""
        return f"{self.name} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    async def ask(self, request: CueRequest) -> Reply:
        text = self.texts[request.index]
        if text is None:
            raise RequestFailed("the data has no text of its own for this problem", again=False)
        return Reply(json.dumps({request.field: text}), 0, 0)

    async def close(self) -> None:
        return None


class LocalClient:
    """A model in this process; one request at a time.

    Args:
        name: folder, hub id or "vicur:NAME".
        load: loads it, with the first request, so that a build that has all it needs loads none.
    """

    def __init__(self, name: str, load: Callable[[str], LoadedModel] = load_model) -> None:
        self.name = name
        self._load = load
        self._identity = f"local {name} {folder_digest(Path(name))}"
        self._loaded: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, "local model")

    def identity(self, index: int) -> str:
        return self._identity

    async def ask(self, request: CueRequest) -> Reply:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)

    async def close(self) -> None:
        self._thread.shutdown()

    def _answer(self, request: CueRequest) -> Reply:
        if self._loaded is None:
            try:
                self._loaded = self._load(self.name)
            except ValueError as error:
                raise Hopeless(str(error)) from error
        loaded = self._loaded
        encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index)
        temperature = 1.0 if request.temperature is None else request.temperature
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=request.max_tokens)
        try:
            (prompt,) = encoder.encode([request.question])
        except ValueError as error:
            raise RequestFailed(f"the model's processor refuses it: {error}", again=False) from error
        ((response,),) = Sampler(loaded, sampling, 1).sample([prompt], [request.sample_id], seed=request.seed)
        text = opened_thought(encoder.render(request.question))
        text += loaded.processor.tokenizer.decode(response.ids, skip_special_tokens=True)
        return Reply(text, len(prompt), len(response.ids), response.finish_reason == "length")


@section
class EndpointConfig:
    """An OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Base URL, usually ending in /v1, e.g. http://127.0.0.1:8000/v1; null for OpenAI."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; a local endpoint may need none."""
    header_envs: dict[str, str] = field(default_factory=dict)
    """Additional HTTP headers: each header's name, and the environment variable with its value."""
    structured: Structured = "auto"
    """How to request a JSON reply: with a JSON "schema", as any JSON "object", "off" for free text, or "auto"
    for the strictest of these that the endpoint supports."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Additional fields of every request, e.g. {chat_template_kwargs: {enable_thinking: false}}. No keys or
    other secrets: it is written to the store."""
    timeout_seconds: Positive = 120.0
    """Timeout of a request in seconds."""

    def __post_init__(self) -> None:
        if self.base_url is None:
            return
        try:
            parts = urlsplit(self.base_url)
            named = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            named = False
        if not named:
            raise ValueError("base_url must be like http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            # The parts of an address end up in messages.
            raise ValueError(
                "base_url must not have a user, a password or anything behind the path; put keys into "
                "environment variables, and name these in api_key_env or header_envs."
            )


def endpoint_identity(model: str, config: EndpointConfig) -> str:
    """Everything about an endpoint that decides its reply.

    Not the address, so that a moved server keeps its cues; nor the form in which a JSON object is asked for.
    """
    extra = f" {json.dumps(config.extra_body, sort_keys=True)}" if config.extra_body else ""
    return f"endpoint {model}{extra}"


class EndpointClient:
    """An OpenAI-compatible endpoint.

    Args:
        model: name of the model at the endpoint.
        config: settings of the endpoint.
        asking: settings of the requests, e.g. the image format.
        environ: environment variables that hold keys.

    Raises:
        ValueError: an environment variable is missing, or holds what cannot be a header; or the package
            openai is not installed.
    """

    def __init__(
        self,
        model: str,
        config: EndpointConfig,
        asking: Asking | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        openai = _openai()
        self.name = model
        self.config = config
        self._asking = asking or Asking()
        self._errors = openai
        headers, secrets = _headers(config, environ)
        self._secrets = sorted(secrets, key=len, reverse=True)

        def sign(request: Any) -> Any:
            request.headers.update(headers)
            return request

        # The SDK gets a dummy key, so that the true one is in no object that it prints or logs. A
        # redirect could carry headers to another host: an endpoint has no need of one.
        self._client = openai.AsyncOpenAI(
            api_key="unset",
            base_url=config.base_url or OPENAI,
            max_retries=0,
            timeout=config.timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(auth=sign, follow_redirects=False),
        )
        self._form: Structured = "schema" if config.structured == "auto" else config.structured
        self._length = "max_tokens"
        self._seed = True

    def __repr__(self) -> str:
        return f"EndpointClient({self.name!r})"

    def identity(self, index: int) -> str:
        return endpoint_identity(self.name, self.config)

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, request: CueRequest) -> Reply:
        messages = await asyncio.to_thread(chat_messages, request, self._asking.image_format)
        while True:
            form, length, seed = self._form, self._length, self._seed
            try:
                completion = await self._client.chat.completions.create(**self._body(request, messages))
                return self._reply(completion)
            except (self._errors.BadRequestError, self._errors.UnprocessableEntityError) as error:
                # Another request in flight may have learned the same in the meantime.
                if (form, length, seed) == (self._form, self._length, self._seed) and not self._adapt(error):
                    reason = f"the endpoint refuses the request: {self._said(error)}"
                    raise RequestFailed(reason, again=False) from None
            except self._errors.APIStatusError as error:
                raise self._of_status(error) from None
            except self._errors.APITimeoutError as error:
                if "ConnectTimeout" in type(error.__cause__).__name__:
                    raise Unreachable("the endpoint cannot be reached") from None
                reason = f"no reply within {self.config.timeout_seconds:g} seconds"
                raise RequestFailed(reason, again=True) from None
            except self._errors.APIConnectionError:
                raise Unreachable("the endpoint cannot be reached") from None
            except (self._errors.APIError, ValueError) as error:
                # Not JSON, or a stream of something else. The SDK's own words may hold the whole reply.
                reason = f"the endpoint's reply is not a chat completion ({type(error).__name__})"
                raise RequestFailed(reason, again=True) from None

    def _body(self, request: CueRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            self._length: request.max_tokens,
        }
        if self._seed:
            body["seed"] = request.seed
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if self.config.extra_body:
            body["extra_body"] = self.config.extra_body
        if self._form == "schema":
            body["response_format"] = response_schema(request)
        elif self._form == "object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _adapt(self, error: Any) -> bool:
        """Leave out what the endpoint does not know; whether there was anything of the kind."""
        reason = self._said(error).lower()
        if self._form != "off" and any(word in reason for word in _FORM_WORDS):
            if self.config.structured != "auto":
                return False
            self._form = "object" if self._form == "schema" else "off"
            return True
        if self._length == "max_tokens" and "max_completion_tokens" in reason:
            self._length = "max_completion_tokens"
            return True
        if self._seed and "seed" in reason:
            self._seed = False
            return True
        return False

    def _reply(self, completion: Any) -> Reply:
        """Whatever the endpoint left out of what the SDK's types promise is missing here, not an error."""
        choices = (
            completion.choices if isinstance(completion, self._errors.types.chat.ChatCompletion) else None
        )
        if not choices or choices[0].message is None:
            raise RequestFailed("the endpoint's reply is not a chat completion", again=True)
        usage, message = completion.usage, choices[0].message
        reason = choices[0].finish_reason
        text = message.content if isinstance(message.content, str) else ""
        if not text and reason == "content_filter":
            raise RequestFailed("the endpoint's content filter stopped the reply", again=False)
        if not text and isinstance(message.refusal, str):
            refusal = " ".join(self._without_secrets(message.refusal).split())[:200]
            raise RequestFailed(f"the model refuses: {refusal}", again=False)
        return Reply(
            self._without_secrets(text),
            None if usage is None else usage.prompt_tokens,
            None if usage is None else usage.completion_tokens,
            reason == "length",
            self._without_secrets(_reasoning(message)),
        )

    def _of_status(self, error: Any) -> Exception:
        status, reason = error.status_code, self._said(error)
        if status == 429 and error.code == "insufficient_quota":
            return Hopeless(f"the endpoint says that the quota is used up: {reason}")
        if status in _BUSY:
            return Unreachable(
                f"the endpoint answers {status}: {reason}", _retry_after(error.response.headers)
            )
        if status in _HOPELESS:
            return Hopeless(f"the endpoint answers {status}, it {_HOPELESS[status]}: {reason}")
        again = status in _AGAIN or status > 504
        return RequestFailed(f"the endpoint answers {status}: {reason}", again=again)

    def _said(self, error: Any) -> str:
        """An error's own words: one line, not too long, and without secrets."""
        body = error.body
        if isinstance(body, dict):
            words = body.get("message") or body.get("detail") or body.get("error") or error.message
        else:
            words = body or error.message
        line = " ".join(self._without_secrets(str(words)).split())
        return line if len(line) <= 200 else line[:200] + "..."

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[removed]")
        return text


def _reasoning(message: Any) -> str:
    """The reasoning field of a message, which OpenAI's own protocol does not have; "" if it has none."""
    extra = message.model_extra or {}
    reasoning = next((extra[name] for name in REASONING if isinstance(extra.get(name), str)), "")
    return str(reasoning)


def response_schema(request: CueRequest) -> dict[str, Any]:
    """`response_format` for the JSON object that a request asks for."""
    schema = request.schema or {
        "type": "object",
        "properties": {request.field: {"type": "string"}},
        "required": [request.field],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": request.field, "strict": True, "schema": schema}}


def chat_messages(request: CueRequest, image_format: Literal["png", "jpeg"] = "png") -> list[dict[str, Any]]:
    """A request as the endpoint takes it: images as data URIs, videos as frames with their seconds."""
    images, videos = iter(request.question.images), iter(request.question.videos)
    messages = []
    for message in request.question.messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                content.append(_image_part(next(images), image_format))
            elif part["type"] == "video":
                video = next(videos)
                for number, frame in enumerate(video.frames):
                    second = number / video.frames_per_second
                    content.append({"type": "text", "text": f"\nFrame at {second:.1f} s: "})
                    content.append(_image_part(frame, image_format))
            else:
                content.append(dict(part))
        if all(part["type"] == "text" for part in content):  # some servers take nothing else of a system
            messages.append({"role": message["role"], "content": "".join(p["text"] for p in content)})
        else:
            messages.append({"role": message["role"], "content": content})
    return messages


def _image_part(image: Image.Image, image_format: Literal["png", "jpeg"]) -> dict[str, Any]:
    buffer = io.BytesIO()
    if image_format == "jpeg":
        image.convert("RGB").save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{image_format};base64,{encoded}"}}


def _headers(config: EndpointConfig, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The headers to sign with, and the values to keep out of messages."""
    key = environ.get(config.api_key_env, "").strip()
    if not key and config.base_url is None:
        raise ValueError(
            f"The environment variable {config.api_key_env} (api_key_env) is not set; OpenAI needs a key. "
            "For an endpoint of your own, give its base_url."
        )
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    values = {config.api_key_env: key} if key else {}
    for header, variable in config.header_envs.items():
        value = environ.get(variable, "").strip()
        if not value:
            raise ValueError(f"The environment variable {variable} (header_envs.{header}) is not set.")
        headers[header] = values[variable] = value
    for variable, value in values.items():
        if not (value.isascii() and value.isprintable()):  # otherwise the HTTP library would quote it
            raise ValueError(
                f"The environment variable {variable} holds a value that is not allowed in a header."
            )
    # What is shorter is no secret, and would be found in every other word.
    return headers, [value for value in values.values() if len(value) >= 4]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait; a date is left to our own backoff."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, 300.0) if seconds >= 0 else None


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ValueError(
            "Endpoints are asked through the package openai, which is not installed: "
            "pip install 'vicur[cues]'."
        ) from error
    return openai


class RateLimit:
    """Limits the requests per minute, by even distances between them.

    Args:
        per_minute: None for no limit.
        clock, sleep: functions that read the time and wait, in seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._distance = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = clock()

    async def turn(self) -> None:
        """Wait until the next request may go."""
        if not self._distance:
            return
        now = self._clock()
        turn = max(self._next, now)
        self._next = turn + self._distance
        if turn > now:
            await self._sleep(turn - now)


def backoff(attempt: int, base: float, after: float | None = None) -> float:
    """Seconds to wait before another attempt: doubled each time up to a minute, with a random part, so that
    requests that were refused together do not return together.

    Args:
        attempt: number of the attempt, from 0.
        base: seconds before the first.
        after: seconds that the endpoint asked to wait, which are a lower bound.
    """
    seconds = min(base * 2.0 ** min(attempt, 16), 60.0) * random.uniform(0.5, 1.0)
    return seconds if after is None else max(seconds, after)
