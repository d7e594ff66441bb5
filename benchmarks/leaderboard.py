"""How long leaderboards take: ``python benchmarks/leaderboard.py [RESULTS]`` (default 200).

Copies of committed results (or of a run made here, when there are none) under other names and seeds are built into
tables and a page, shown, and one of them is verified. Budgets: build in 10 s for 200 results and 20 s for 2,000, in 400 MB;
show in 1 s and a page of 5 MB for 200. Exits with 1 when one is over.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adbench import api
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks import RUN_FIELDS, check
from adbench.leaderboard.submission import Submission, pack
from adbench.results.record import Record
from adbench.utils.hashing import digest

COMMITTED = Path(__file__).parents[1] / "leaderboards" / "phantom" / "records"


def originals(scratch: Path) -> list[Submission]:
    """One result of each method, seed 0."""
    found = sorted(COMMITTED.glob("phantom-flair-*-seed0-*.json"))
    if found:
        return [files.read(path) for path in found]
    runs = api.run("histeq,zscore,constant", "phantom", device="cpu", out=scratch / "runs")
    return [pack(run.folder) for run in runs]


def another(original: Submission, number: int) -> tuple[str, str]:
    """Name and text of a copy under another name, modality or seed: rows of three seeds, four modalities."""
    raw = json.loads(json.dumps(original.raw))
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
    return files.file_name(Record(**record)), Submission(original.content, original.path, raw).text


def timed(*arguments: object) -> float:
    """Seconds that a command takes, the start of Python included."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "adbench.cli", "leaderboard", *map(str, arguments)], check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        first = originals(Path(folder))
        root = Path(folder) / "boards"
        records = root / "phantom" / "records"
        records.mkdir(parents=True)
        for number in range(count):
            name, text = another(first[number // 12 % len(first)], number)
            (records / name).write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in records.iterdir())
        building = timed("build", root)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process
        page = (root / "index.html").stat().st_size
        showing = sorted(timed("show", root) for _ in range(3 if count <= 200 else 1))[-1 if count > 200 else 1]
        start = time.perf_counter()
        problems = check(max(first, key=lambda one: one.path.stat().st_size))
        verifying = time.perf_counter() - start
        assert not problems, problems
    seconds = 10 if count <= 200 else count / 100
    print(f"{count} results            {size / 1e6:6.1f} MB")
    print(f"leaderboard build      {building:6.2f} s   (budget {seconds:.0f} s)")
    print(f"memory of it           {memory:6.0f} MB  (budget 400 MB)")
    print(f"index.html             {page / 1e6:6.2f} MB  (budget {max(count, 200) / 40:.0f} MB)")
    print(f"leaderboard show       {showing:6.2f} s   (budget {max(count, 200) / 200:.0f} s)")
    print(f"verify, largest result {verifying:6.2f} s")
    return int(
        building > seconds or memory > 400 or page > max(count, 200) / 40 * 1e6 or showing > max(count, 200) / 200
    )


if __name__ == "__main__":
    sys.exit(main())
