"""``python -m adbench.cli``."""

from adbench.cli import main

main()
