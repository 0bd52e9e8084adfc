"""Prints the folder of the tasks, for lmms-eval's --include_path."""

from __future__ import annotations

from vicur.packaged import resolve_packaged

if __name__ == "__main__":
    print(resolve_packaged("integrations/lmms_eval/tasks"))
