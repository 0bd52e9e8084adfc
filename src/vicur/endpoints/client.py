"""A chat model behind an OpenAI-compatible endpoint.

Keys and headers never leave this module: they are put on a request as it is sent, and every message that
comes back is searched for them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from vicur.endpoints.config import EndpointConfig, Structured, endpoint_identity
from vicur.endpoints.messages import chat_messages, response_schema
from vicur.endpoints.request import (
    ChatRequest,
    Hopeless,
    ImageFormat,
    Reply,
    RequestFailed,
    Unreachable,
)
from vicur.settings.section import unfit_text

OPENAI = "https://api.openai.com/v1"
_FORM_WORDS = ("response_format", "json_schema", "json schema", "json_object", "guided", "structured")
"""Words in the message of an endpoint that does not support our `response_format`."""
REASONING = ("reasoning_content", "reasoning")
"""Names of the field for a model's thoughts: of vLLM, SGLang and DeepSeek; of newer vLLM and OpenRouter."""
_BUSY = (429, 502, 503, 504)
"""Statuses of an endpoint that is overloaded or starting."""
_AGAIN = (408, 409, 500)
"""Statuses that are worth a retry; a problem that always gets them has failed."""
_HOPELESS = {
    401: "does not accept the key; check the environment variable that holds it",
    402: "asks for payment",
    403: "refuses access; check the key's rights",
    404: "has no such model or path; check the model's name and base_url, which usually ends in /v1",
    405: "does not answer chat requests at this path; base_url usually ends in /v1",
}


class EndpointClient:
    """An OpenAI-compatible endpoint.

    Args:
        model: name of the model at the endpoint.
        config: settings of the endpoint.
        image_format: format in which images are sent.
        environ: environment variables that hold keys.

    Raises:
        ValueError: an environment variable is missing, or holds what cannot be a header; the model's name or
            the address cannot be sent; or the package openai is not installed.
    """

    def __init__(
        self,
        model: str,
        config: EndpointConfig,
        image_format: ImageFormat = "png",
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        if (fault := unfit_text(model)) is not None:
            raise ValueError(f"The name of the model has {fault}, and cannot be sent to the endpoint.")
        openai = _openai()
        from httpx2 import InvalidURL  # it comes with openai

        from vicur.endpoints.bounded import ReplyRefused, bound

        self._refused = ReplyRefused
        self.name = model
        self.config = config
        self._image_format = image_format
        self._errors = openai
        headers, secrets = _headers(config, environ)
        self._secrets = sorted(secrets, key=len, reverse=True)

        def sign(request: Any) -> Any:
            request.headers.update(headers)
            request.headers["Accept-Encoding"] = "identity"
            return request

        # Of the timeouts only that for connecting is the SDK's, whose others start anew with every byte.
        seconds = config.timeout_seconds
        # The SDK gets a dummy key, so that the true one is in no object that it prints or logs. A
        # redirect could carry headers to another host: an endpoint has no need of one.
        try:
            self._client = openai.AsyncOpenAI(
                api_key="unset",
                base_url=config.base_url or OPENAI,
                max_retries=0,
                timeout=openai.Timeout(seconds, connect=seconds / 2),
                http_client=openai.DefaultAsyncHttpxClient(
                    auth=sign, follow_redirects=False, event_hooks={"response": [bound]}
                ),
            )
        except InvalidURL as error:
            raise ValueError(f"base_url is not an address: {error}.") from None
        self._form: Structured = "schema" if config.structured == "auto" else config.structured
        self._length = "max_tokens"
        self._seed = True

    def __repr__(self) -> str:
        return f"EndpointClient({self.name!r})"

    def identity(self, index: int) -> str:
        return endpoint_identity(self.name, self.config)

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, request: ChatRequest) -> Reply:
        """Send one request.

        Raises:
            Unreachable, RequestFailed, Hopeless: as these say.
        """
        messages = await asyncio.to_thread(chat_messages, request, self._image_format)
        while True:
            form, length, seed = self._form, self._length, self._seed
            try:
                async with asyncio.timeout(self.config.timeout_seconds):
                    completion = await self._client.chat.completions.create(**self._body(request, messages))
                return self._reply(completion)
            except TimeoutError:
                raise self._too_late() from None
            except self._refused as error:
                raise RequestFailed(f"the endpoint's reply {error}", again=False) from None
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
                raise self._too_late() from None
            except self._errors.APIConnectionError as error:
                if isinstance(error.__cause__, self._refused):  # as early releases of openai 3 report it
                    raise RequestFailed(f"the endpoint's reply {error.__cause__}", again=False) from None
                raise Unreachable("the endpoint cannot be reached") from None
            except UnicodeEncodeError:
                reason = "the request has characters that are not UTF-8, and cannot be sent"
                raise RequestFailed(reason, again=False) from None
            except (self._errors.APIError, ValueError) as error:
                # Not JSON, or a stream of something else. The SDK's own words may hold the whole reply.
                reason = f"the endpoint's reply is not a chat completion ({type(error).__name__})"
                raise RequestFailed(reason, again=True) from None

    def _too_late(self) -> RequestFailed:
        return RequestFailed(f"no complete reply within {self.config.timeout_seconds:g} seconds", again=True)

    def _body(self, request: ChatRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            self._length: request.max_tokens,
        }
        if self._seed:
            body["seed"] = request.seed
        if request.temperature is not None:
            body["temperature"] = request.temperature
        extra = {**request.sampling, **self.config.extra_body}
        if extra:  # merged into the body; the SDK refuses names that OpenAI does not have
            body["extra_body"] = extra
        if request.field is not None and self._form == "schema":
            body["response_format"] = response_schema(request)
        elif request.field is not None and self._form == "object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _adapt(self, error: Any) -> bool:
        """Stop sending a field that the endpoint rejects; return whether there was one."""
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
        """Read a completion; fields that the endpoint omits against the SDK's types are not an error."""
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
            after = _retry_after(error.response.headers)
            return Unreachable(f"the endpoint answers {status}: {reason}", after, answered=True)
        if status in _HOPELESS:
            return Hopeless(f"the endpoint answers {status}, it {_HOPELESS[status]}: {reason}")
        again = status in _AGAIN or status > 504
        return RequestFailed(f"the endpoint answers {status}: {reason}", again=again)

    def _said(self, error: Any) -> str:
        """The message of an error: one line, shortened, and without secrets."""
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


def _headers(config: EndpointConfig, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The headers to sign with, and the values to keep out of messages."""
    key = _value(environ, config.api_key_env)
    if not key and config.base_url is None:
        raise ValueError(
            f"{_variable('api_key_env', config.api_key_env)} is not set; OpenAI needs a key. For your own "
            "endpoint, set base_url."
        )
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    values = {"api_key_env": key} if key else {}
    for header, name in config.header_envs.items():
        setting = f"header_envs.{header}"
        value = _value(environ, name)
        if not value:
            raise ValueError(f"{_variable(setting, name)} is not set.")
        headers[header] = values[setting] = value
    for setting, value in values.items():
        if not (value.isascii() and value.isprintable()):  # otherwise the HTTP library would quote it
            raise ValueError(
                f"The environment variable of {setting} holds a value that is not allowed in a header."
            )
    # Shorter values are not secrets, and occur in ordinary words.
    return headers, [value for value in values.values() if len(value) >= 4]


def _value(environ: Mapping[str, str], name: str) -> str:
    """The value of a variable; "" if it is not set."""
    return environ.get(name, "").strip()


def _variable(setting: str, name: str) -> str:
    """A variable that is not set, in words. A name is shown only if it cannot be a key by mistake."""
    if name.isupper() and not any(letter.isdigit() for letter in name):
        return f"The environment variable {name} ({setting})"
    return f"The environment variable of {setting}"


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
            "Endpoints need the package openai, which is not installed: pip install 'vicur[cues]'."
        ) from error
    return openai
