"""Prints the folder of the tasks, for `lmms-eval --include_path "$(python -m vicur.integrations.lmms_eval)"`."""

from __future__ import annotations

from vicur.packaged import resolve_packaged

if __name__ == "__main__":
    print(resolve_packaged("integrations/lmms_eval/tasks"))
