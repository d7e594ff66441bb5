"""How long the command line takes to answer: ``python benchmarks/startup.py``.

Budgets: ``adbench --help`` < 0.5 s, ``adbench list methods`` < 1 s. Exits with 1 when the median of five is over.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BUDGETS = {("--help",): 0.5, ("list", "methods"): 1.0, ("describe", "madad"): 1.0}


def seconds(arguments: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "adbench.cli", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> int:
    over = 0
    for arguments, budget in BUDGETS.items():
        seconds(arguments)  # warm the file cache
        median = statistics.median(seconds(arguments) for _ in range(5))
        over += median > budget
        print(f"adbench {' '.join(arguments):16} {median:6.2f} s  (budget {budget} s)")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
