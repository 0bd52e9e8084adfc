"""`python -m vicur`, the same as `vicur`."""

from vicur.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
