"""The settings of an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import re
from dataclasses import field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from vicur.settings.section import PRIVATE, JsonTable, Text, section

_VARIABLE = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
"""Names of environment variables."""
_HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]{1,100}", re.ASCII)
"""Names of HTTP headers: RFC 9110's tokens."""
Structured = Literal["auto", "schema", "object", "off"]


@section
class EndpointConfig:
    """An OpenAI-compatible endpoint."""

    base_url: Annotated[Text | None, PRIVATE] = None
    """Base URL, usually ending in /v1, e.g. http://127.0.0.1:8000/v1; null for OpenAI."""
    api_key_env: Annotated[Text, PRIVATE] = "OPENAI_API_KEY"
    """Environment variable with the API key; a local endpoint may need none."""
    header_envs: Annotated[dict[Text, Text], PRIVATE] = field(default_factory=dict)
    """Additional HTTP headers: each header's name, and the environment variable with its value."""
    structured: Structured = "auto"
    """How to request a JSON reply: with a JSON "schema", as any JSON "object", "off" for free text, or "auto"
    for the strictest of these that the endpoint supports."""
    extra_body: JsonTable = field(default_factory=dict)
    """Additional fields of every request, e.g. {chat_template_kwargs: {enable_thinking: false}}. No keys or
    other secrets: it is written to the store."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Timeout of a request in seconds, from its first byte to the last one of the reply."""

    def __post_init__(self) -> None:
        # No message shows a value: it may be the key.
        if self.base_url is not None:
            _check_address(self.base_url)
        variables = {"api_key_env": self.api_key_env}
        for header, variable in self.header_envs.items():
            if not _HEADER.fullmatch(header):
                raise ValueError(
                    "header_envs has a name that no HTTP header can have: it may have only letters without "
                    "accents, digits, and signs such as - and _."
                )
            variables[f"header_envs.{header}"] = variable
        for setting, variable in variables.items():
            if not _VARIABLE.fullmatch(variable):
                raise ValueError(
                    f"{setting} must be the name of an environment variable, such as OPENAI_API_KEY, and not "
                    "the key."
                )


def _check_address(base_url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        ValueError: it is no address, or holds more than one.
    """
    if not (base_url.isascii() and base_url.isprintable() and " " not in base_url):
        raise ValueError(
            "base_url must have only ASCII characters and no spaces; write a host name in another script in "
            "its form that begins with xn--."
        )
    try:
        parts = urlsplit(base_url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        named = False
    if not named:
        raise ValueError("base_url must be like http://127.0.0.1:8000/v1.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The parts of an address end up in messages.
        raise ValueError(
            "base_url must not have a user, a password or anything behind the path; put keys into "
            "environment variables, and name these in api_key_env or header_envs."
        )
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("The port in base_url must be a number from 1 to 65535.")


def endpoint_identity(model: str, config: EndpointConfig) -> str:
    """Everything about an endpoint that decides its reply.

    The address is left out, so that a moved server keeps its cues; so is the request format of JSON objects.
    """
    extra = f" {json.dumps(config.extra_body, sort_keys=True)}" if config.extra_body else ""
    return f"endpoint {model}{extra}"
