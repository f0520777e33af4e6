"""``python -m jobs`` is the sweep command."""

from jobs.cli import main

main()
