"""Starts Python for a script that only this package's own environment may influence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Folders go to the end of the path: a module of the standard library or of the environment comes first.
_RUN = (
    "import os, runpy, sys\n"
    "sys.path += [f for f in sys.argv[2].split(os.pathsep) if f and f not in sys.path]\n"
    "sys.argv[:3] = [sys.argv[1]]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def isolated_command(script: Path, *arguments: str) -> list[str]:
    """The command that runs a script in a Python of its own.

    Nothing in the working folder or in PYTHONPATH can shadow a module of the standard library or of the
    environment. What this process can import from elsewhere (the user's site-packages, folders in PYTHONPATH)
    is found after those.

    Args:
        script: the script.
        arguments: its arguments.
    """
    folders = [folder for folder in sys.path if isinstance(folder, str) and folder and not _is_here(folder)]
    return [sys.executable, "-I", "-c", _RUN, str(script), os.pathsep.join(folders), *arguments]


def _is_here(folder: str) -> bool:
    """Whether a folder is the working folder, which may have been deleted."""
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False
