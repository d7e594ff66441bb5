"""What running a grid costs beyond its cells: ``python benchmarks/grid.py [--only PART] [--cells 10000]``.

Parts and budgets:

* ``plan``: 10,000 cells that are complete are planned in < 2 s of CPU time.
* ``overhead``: a cell on Ray, on one core, takes at most 0.25 s more than in a bare loop in one process.
* ``scaling``: two CPU workers finish CPU-bound cells at least 1.7 times as fast as the serial executor.
* ``together``: two small trainings (on a GPU four too) on one device at once, against one after the other; no budget.

Exits with 1 when one is missed. ``scaling``, ``overhead`` and ``together`` need an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same in every process

from adbench.config.run_config import load
from adbench.executors import Options, serial
from adbench.executors.launch import Launch
from adbench.results.record import RECORD
from adbench.utils.cluster import connect

PHANTOM = ("dataset.n_train=8", "dataset.n_val=4", "dataset.n_test=4", "dataset.slices=2", "dataset.resolution=3.4")
FIT = ("madad.image_size=64", "madad.ae_channels=[16,16]", "madad.ae_steps=40", "madad.batch=4")


def launch(
    folder: Path, out: str, methods: str, seeds: int, *assignments: str, device: str = "cpu", first: int = 0
) -> Launch:
    """A grid of ``methods`` times ``seeds`` on a small phantom."""
    flags: dict[str, Any] = {"method": methods, "dataset": "phantom", "device": device}
    flags["seed"] = tuple(range(first, first + seeds))
    flags |= {"out": str(folder / out), "cache": str(folder / "cache")}
    return Launch(load(None, flags, [*PHANTOM, *assignments]), Options(force=True))


def resident() -> float:
    """Memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def plan(folder: Path, count: int) -> bool:
    """Plan ``count`` complete cells."""
    for cell in launch(folder, "plan", "madad", count).plan():
        cell.run_folder.mkdir(parents=True)
        head = f'{{\n "schema_version": 1,\n "run_key": "{cell.run_key}",\n "padding": "'
        (cell.run_folder / RECORD).write_text(f'{head}{"x" * 50_000}"\n}}\n')
    grid = launch(folder, "plan", "madad", count)
    grid.options = Options()
    before, begin, wall = resident(), time.process_time(), time.perf_counter()
    grid.plan()
    spent, used = time.process_time() - begin, resident() - before
    assert not grid.missing
    wall = time.perf_counter() - wall
    print(f"plan      {count:6} complete cells: {spent:.2f} s CPU, {wall:.2f} s, {used:+.1f} MiB")
    return spent < 2


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    for outcome in run():
        assert outcome.error is None, outcome.reason
    return time.perf_counter() - begin


def on_ray(grid: Launch, workers: int, *sets: str, **more: Any) -> float:
    """Seconds of a grid on a local Ray that has run something already."""
    from adbench.executors.ray import RayExecutor

    with connect("local", cpus=workers) as cluster:
        executor = RayExecutor(cluster, grid.out, grid.cache, Options("ray", force=True, **more))
        method, device = grid.settings.method[0], grid.settings.device
        # The first cell of a worker waits for its fork server, which imports the libraries.
        warm = launch(grid.out.parent, grid.out.name, method, 2 * workers, *sets, device=device, first=1000)
        warm.plan(), grid.plan()
        seconds(lambda: executor.run(warm.plans))
        return seconds(lambda: executor.run(grid.plans))


def overhead(folder: Path, count: int = 12) -> bool:
    """Cells that do next to nothing, on one core."""
    bare, there = (launch(folder, out, "constant", count) for out in ("bare", "one"))
    seconds(lambda: serial(launch(folder, "warm", "constant", 1).plan(), options=Options(force=True)))
    loop = seconds(lambda: serial(bare.plan(), options=bare.options))
    ray = on_ray(there, 1)
    extra = (ray - loop) / count
    print(
        f"overhead  {count} small cells: bare loop {loop / count:.2f} s a cell, Ray {ray / count:.2f} s: {extra:+.2f} s a cell"
    )
    return extra <= 0.25


def scaling(folder: Path, count: int = 6, steps: int = 300) -> bool:
    """Trainings on two cores, one thread each."""
    sets = (*FIT, f"madad.steps={steps}")
    here, there = (launch(folder, out, "madad", count, *sets) for out in ("serial", "two"))
    seconds(lambda: serial(launch(folder, "warm", "madad", 1, *sets).plan(), options=Options(force=True)))
    alone = seconds(lambda: serial(here.plan(), options=here.options))
    together = on_ray(there, 2, *sets, cpus=1)
    print(
        f"scaling   {count} trainings: serial {alone:.1f} s, two workers {together:.1f} s: {alone / together:.2f} times as fast"
    )
    return alone / together >= 1.7


def together(folder: Path, steps: int = 300) -> bool:
    """Trainings on one device at once, against one after the other: the GPU, or the CPU where there is none."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sets = (*FIT, f"madad.steps={steps}")
    seconds(
        lambda: serial(launch(folder, "warm2", "madad", 1, *sets, device=device).plan(), options=Options(force=True))
    )
    for count in (2, 4) if device == "cuda" else (2,):
        here, there = (
            launch(folder, f"{out}{count}", "madad", count, *sets, device=device) for out in ("after", "once")
        )
        alone = seconds(lambda here=here: serial(here.plan(), options=here.options))  # type: ignore[misc]
        share = {"gpus": 1 / count} if device == "cuda" else {"cpus": 1}
        both = on_ray(there, max(count, len(os.sched_getaffinity(0))), *sets, **share)
        print(
            f"together  {count} trainings on one {device}: one after the other {alone:.1f} s, at once {both:.1f} s: {alone / both:.2f} times as fast"
        )
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("plan", "overhead", "scaling", "together"), action="append")
    parser.add_argument("--cells", type=int, default=10_000, help="cells of `plan`")
    chosen = parser.parse_args()
    parts: dict[str, Callable[[Path], bool]] = {
        "plan": lambda folder: plan(folder, chosen.cells),
        "overhead": overhead,
        "scaling": scaling,
        "together": together,
    }
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            if not chosen.only or name in chosen.only:
                met &= part(Path(folder))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
