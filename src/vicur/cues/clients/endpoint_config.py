"""The settings of an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from dataclasses import field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from vicur.settings.section import section

Structured = Literal["auto", "schema", "object", "off"]


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
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Timeout of a request in seconds, from its first byte to the last one of the reply."""

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

    The address is left out, so that a moved server keeps its cues; so is the request format of JSON objects.
    """
    extra = f" {json.dumps(config.extra_body, sort_keys=True)}" if config.extra_body else ""
    return f"endpoint {model}{extra}"
