"""The command `vicur serve`."""

from __future__ import annotations

import os

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_text, say
from vicur.models.checkpoints import has_recovery, read_config
from vicur.vllm.installed import check_installed
from vicur.vllm.serve import ServeSettings, server_command


def serve(settings: ServeSettings, arguments: Arguments, console: Console) -> None:
    """Become a server of vLLM.

    Raises:
        ValueError: vLLM is missing, or there is no such checkpoint.
    """
    check_installed()
    command, environment = server_command(settings)
    recovery = "with cue recovery" if has_recovery(read_config(settings.model)) else "without cue recovery"
    print_text(f"Serving {settings.model} {recovery} at http://{settings.host}:{settings.port}/v1", console)
    if settings.trainable:
        say("Anyone who reaches this port can replace the weights (trainable=true).")
    os.execve(command[0], command, os.environ | environment)
