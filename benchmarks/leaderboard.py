"""How long leaderboards take, and how large and quick their page is.

Copies of committed results (or of a run made here, when there are none) under other names and seeds are built into
tables and a page, shown, and one of them is verified. Budgets: build in 10 s for 200 results and 20 s for 2,000, in 400 MB;
show in 1 s for 200. The page: 2 MB for 200 results; of 1,000 rows 4 MB, and open in 1 s, where Chromium and chromedriver are there.
Exits with 1 when one is over.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adbench import api
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.submission import Submission, pack
from adbench.results.record import Record
from adbench.runner.keys import RUN_ONLY
from adbench.utils.hashing import digest

COMMITTED = Path(__file__).parents[1] / "leaderboards" / "phantom" / "records"


def originals(scratch: Path) -> list[Submission]:
    """One result of each method, seed 0."""
    found = sorted(COMMITTED.glob("phantom-flair-*-seed0-*.json"))
    if found:
        return [files.read_submission(path) for path in found]
    runs = api.run("histeq,zscore,constant", "phantom", device="cpu", out=scratch / "runs")
    return [pack(run.folder) for run in runs]


def another(original: Submission, number: int, seeds: int) -> tuple[str, str]:
    """Name and text of a copy under another name, modality or seed: rows of so many seeds, four modalities."""
    raw = json.loads(json.dumps(original.raw))
    record = raw["record"]
    row, seed = divmod(number, seeds)
    name, modality = f"{record['method']['name']}-{row // 4}", f"M{row % 4}"
    record["method"]["name"] = record["identity"]["method"] = name
    record["identity"] |= {"modality": modality, "seed": seed, "test_slices": digest(modality)}
    record["seed"], record["test"]["digest"] = seed, digest(modality)
    record["fit"]["steps"] = 0  # equal scores of two trainings would be refused as copies
    for part in ("train", "val", "threshold", "test"):
        record[part]["modality"] = modality
    record["run_key"] = digest(record["identity"])
    record["fit_key"] = digest({k: v for k, v in record["identity"].items() if k not in RUN_ONLY})
    raw["digest"] = files.own_digest(raw)
    return files.file_name(Record(**record)), Submission(original.content, original.path, raw).text


def timed(*arguments: object) -> float:
    """Seconds that a command takes, the start of Python included."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "adbench.cli", "leaderboard", *map(str, arguments)], check=True, capture_output=True
    )
    return time.perf_counter() - start


def opening(page: Path) -> tuple[float, float] | None:
    """Seconds until headless Chromium has loaded a page, and CPU seconds of the page's thread; None where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        browser.get("about:blank")
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        browser.get(page.as_uri())
        took = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        busy = next(one["value"] for one in metrics if one["name"] == "TaskDuration")
    finally:
        browser.quit()
    return float(took) / 1000, float(busy)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example, 1,000 rows: python benchmarks/leaderboard.py 1000 --seeds 1",
    )
    parser.add_argument("results", type=int, nargs="?", default=200, help="how many (default: 200)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of each row (default: 3): RESULTS / SEEDS is the number of rows"
    )
    given = parser.parse_args()
    count = given.results
    if count < 1 or given.seeds < 1:
        parser.error("RESULTS and --seeds are at least 1")
    rows = -(-count // given.seeds)
    with tempfile.TemporaryDirectory() as folder:
        first = originals(Path(folder))
        root = Path(folder) / "boards"
        records = root / "phantom" / "records"
        records.mkdir(parents=True)
        for number in range(count):
            name, text = another(first[number // (4 * given.seeds) % len(first)], number, given.seeds)
            (records / name).write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in records.iterdir())
        building = timed("build", root)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process
        page = (root / "index.html").stat().st_size
        opened = opening(root / "index.html")
        showing = sorted(timed("show", root) for _ in range(3 if count <= 200 else 1))[-1 if count > 200 else 1]
        start = time.perf_counter()
        problems = check(max(first, key=lambda one: one.path.stat().st_size))
        verifying = time.perf_counter() - start
        assert not problems, problems
    seconds = 10 if count <= 200 else count / 100
    megabytes, open_in = max(2, rows * 4 / 1000), max(1, rows / 1000)
    print(f"{count} results            {size / 1e6:6.1f} MB, {rows} rows")
    print(f"leaderboard build      {building:6.2f} s   (budget {seconds:.0f} s)")
    print(f"memory of it           {memory:6.0f} MB  (budget 400 MB)")
    print(f"index.html             {page / 1e6:6.2f} MB  (budget {megabytes:.1f} MB)")
    if opened is None:
        print("opening it: there is no Chromium with its chromedriver here")
    else:
        print(f"opening it in Chromium {opened[0]:6.2f} s   (budget {open_in:.1f} s), of the CPU {opened[1]:.2f} s")
    print(f"leaderboard show       {showing:6.2f} s   (budget {max(count, 200) / 200:.0f} s)")
    print(f"verify, largest result {verifying:6.2f} s")
    over = building > seconds or memory > 400 or page > megabytes * 1e6 or (opened is not None and opened[0] > open_in)
    return int(over or showing > max(count, 200) / 200)


if __name__ == "__main__":
    sys.exit(main())
