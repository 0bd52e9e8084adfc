"""Where the command `vicur` begins. It imports everything else, so that Ctrl-C is one line from the start."""

from __future__ import annotations

import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process.

    Returns:
        exit code, as `vicur.cli.main.main`.
    """
    code = _run()
    distributed = sys.modules.get("vicur.distributed")  # most commands do not import it
    if distributed is not None:
        distributed.exit_if_joined(code)
    return code


def _run() -> int:
    try:
        from vicur.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED
    finally:
        # Another Ctrl-C ends the process while it waits for threads and closes files, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
