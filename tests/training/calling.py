"""Calls a function of a test module in this rank: `python calling.py MODULE FUNCTION [TEXT ...]`."""

from __future__ import annotations

import importlib
import sys

import torch

from vicur import distributed


def main(module: str, function: str, *texts: str) -> None:
    distributed.start(torch.device("cpu"))
    getattr(importlib.import_module(module), function)(*texts)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
    distributed.exit_if_joined(0)
