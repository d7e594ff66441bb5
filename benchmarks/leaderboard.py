"""How long leaderboards take: ``python benchmarks/leaderboard.py [RESULTS]`` (default 200).

Copies of committed results (or of a run made here, when there are none) under other names and seeds are built into
tables and a page, shown, and one of them is verified. Budgets for 200 results: build < 10 s, page < 5 MB, show < 1 s.
Exits with 1 when one is over.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adbench import api
from adbench.leaderboard import submission as files
from adbench.leaderboard.build import build
from adbench.leaderboard.checks import RUN_FIELDS, check
from adbench.leaderboard.submission import Submission, pack
from adbench.utils.hashing import digest

COMMITTED = Path(__file__).parents[1] / "leaderboards" / "phantom" / "records"


def originals(scratch: Path) -> list[Submission]:
    """One result of each method, seed 0."""
    found = sorted(COMMITTED.glob("phantom-flair-*-seed0-*.json"))
    if found:
        return [files.read(path) for path in found]
    runs = api.run("histeq,zscore,constant", "phantom", device="cpu", out=scratch / "runs")
    return [pack(run.folder) for run in runs]


def another(original: Submission, number: int) -> Submission:
    """A copy under another name, modality or seed: rows of three seeds, four modalities."""
    raw = copy.deepcopy(original.raw)
    record = raw["record"]
    name, modality, seed = f"{record['method']['name']}-{number // 12}", f"M{number // 3 % 4}", number % 3
    record["method"]["name"] = record["identity"]["method"] = name
    record["identity"] |= {"modality": modality, "seed": seed, "test_slices": digest(modality)}
    record["seed"], record["test"]["digest"] = seed, digest(modality)
    record["fit"]["steps"] = 0  # equal scores of two trainings would be refused as copies
    for part in ("train", "val", "threshold", "test"):
        record[part]["modality"] = modality
    record["run_key"] = digest(record["identity"])
    record["fit_key"] = digest({k: v for k, v in record["identity"].items() if k not in RUN_FIELDS})
    raw["digest"] = files.own_digest(raw)
    return files.parse(json.dumps(raw).encode(), original.path)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        first = originals(Path(folder))
        root = Path(folder) / "boards"
        records = root / "phantom" / "records"
        records.mkdir(parents=True)
        for number in range(count):
            made = another(first[number // 12 % len(first)], number)
            (records / files.file_name(made.record)).write_text(made.text, encoding="utf-8")
        size = sum(path.stat().st_size for path in records.iterdir())
        start = time.perf_counter()
        build(root)
        building = time.perf_counter() - start
        page = (root / "index.html").stat().st_size
        command = [sys.executable, "-m", "adbench.cli", "leaderboard", "show", str(root)]
        shows = []
        for _ in range(4):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            shows.append(time.perf_counter() - start)
        showing = sorted(shows[1:])[1]
        start = time.perf_counter()
        problems = check(max(first, key=lambda one: one.path.stat().st_size))
        verifying = time.perf_counter() - start
        assert not problems, problems
    print(f"{count} results            {size / 1e6:6.1f} MB")
    print(f"leaderboard build      {building:6.2f} s   (budget 10 s)")
    print(f"index.html             {page / 1e6:6.2f} MB  (budget 5 MB)")
    print(f"leaderboard show       {showing:6.2f} s   (budget 1 s)")
    print(f"verify, largest result {verifying:6.2f} s")
    return int(building > 10 or page > 5e6 or showing > 1)


if __name__ == "__main__":
    sys.exit(main())
