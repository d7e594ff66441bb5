"""Wall-clock and peak memory of the whole demo, from nothing prepared: ``python benchmarks/demo.py``.

Budgets on 2 CPU cores: 4 minutes, 4 GB. Then the same command again, which must answer from records.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MINUTES, GIGABYTES = 4.0, 4.0
COMMAND = [
    "run",
    "--method",
    "madad,ae,zscore,histeq,constant",
    "--dataset",
    "phantom",
    "--preset",
    "tiny",
    "--device",
    "cpu",
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ADBENCH_CACHE": str(Path(folder) / "cache")}
        command = [sys.executable, "-m", "adbench.cli", *COMMAND, "--out", str(Path(folder) / "runs")]
        walls = []
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True)
            walls.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    print(f"first run   {walls[0]:6.1f} s  (budget {60 * MINUTES:.0f} s)")
    print(f"second run  {walls[1]:6.1f} s  (answered from records)")
    print(f"peak memory {peak:6.2f} GB (budget {GIGABYTES} GB)")
    return int(walls[0] > 60 * MINUTES or peak > GIGABYTES)


if __name__ == "__main__":
    sys.exit(main())
