"""Starts VLMEvalKit's own run.py with a checkpoint of this package as one of its models.

    python -m vicur.integrations.vlmevalkit --model CKPT --preset vicur --data MathVista_MINI WeMath

Written against VLMEvalKit's interface at commit `launcher.INTERFACE`, and not run with it.
"""

from __future__ import annotations

import sys

from vicur.integrations.vlmevalkit.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
