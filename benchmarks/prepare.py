"""Speed and memory of data preparation, on synthetic BraTS'21 files: ``python benchmarks/prepare.py [--cases 1000] [--all]``.

Budgets: headers of 1,000 cases checked in 20 s; a BraTS case with its four sequences prepared in 3 s of one core with
less than 1.5 GB, of which the fingerprint takes less than a tenth; more than 2,000 slices a second read from a store in random order from a cold cache, checksums included;
these at most a fifth of reading a store. ``--all`` also times
the slow steps of a head with skull: brain extraction, N4, affine registration (needs the extra ``prepare``).
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore

SEQUENCES = ("FLAIR", "T1", "T1CE", "T2")
HEADERS_S, CASE_S, WORKER_GB, PRINT_PERCENT, SLICES_PER_S, CHECKSUM_PERCENT = 20.0, 3.0, 1.5, 10.0, 2000.0, 20.0


def cpu() -> float:
    """CPU seconds of this process: what another job on the machine does not change."""
    return time.process_time()


def peak_gb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def many_cases(source: Path, count: int, folder: Path) -> Path:
    """``count`` cases that are links to the first one, in the layout of the real dataset."""
    first = sorted(path for path in source.rglob("BraTS2021_*") if path.is_dir())[0]
    for number in range(count):
        name = f"BraTS2021_{number:05d}"
        (folder / name).mkdir(parents=True)
        for file in first.iterdir():
            (folder / name / file.name.replace(first.name, name)).symlink_to(file.resolve())
    return folder


def inflate(file: Path) -> tuple[float, float]:
    """CPU seconds that nibabel and adbench take to decode one volume; both must give the same voxels."""
    import nibabel

    from adbench.datasets.io import nifti

    times = []
    results = []
    for read in (lambda: np.asarray(nibabel.load(file).dataobj), lambda: nifti.read(file).data):  # type: ignore[attr-defined]
        read()
        start = cpu()
        for _ in range(5):
            results.append(read())
        times.append((cpu() - start) / 5)
    assert np.array_equal(results[0], results[-1])
    return times[0], times[1]


def cold(folder: Path) -> None:
    """Drop the files of a cache from the page cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fingerprint(store: SliceStore) -> float:
    """CPU seconds of the fingerprint and the slice hashes of the first case."""
    from adbench.datasets.store import similarity

    case = store.cases[0]
    arrays = np.asarray(store.images[case.rows]), np.asarray(store.brains[case.rows])
    start = cpu()
    for _ in range(5):
        similarity.of_case(*arrays, case.slices, case.geometry)
    return (cpu() - start) / 5


def reading(folder: Path) -> tuple[float, float]:
    """CPU seconds of reading all training slices as batches from the page cache, with checksums and without."""
    import torch  # noqa: F401 - not while the clock runs

    from adbench.datasets.store.slice_store import SliceStore

    times: dict[bool, list[float]] = {True: [], False: []}
    for checked in (True, False) * 5:
        slices = SliceStore.open(folder).healthy("train")
        for rows in (slices._pixels.images, slices._pixels.brains):
            rows._unread[:] = checked
        start = cpu()
        for _ in slices.batches(32):
            pass
        times[checked].append(cpu() - start)
    return min(times[True]), min(times[False])


def slow_steps() -> dict[str, float]:
    """CPU seconds of each step that a head with skull needs, on the template's brain inside a synthetic skull."""
    from adbench.datasets.preprocessing import brain_extraction, registration, template

    rng = np.random.default_rng(0)
    brain = template.brain().astype(np.float32)
    skull = template.mask(14.0) & ~template.mask(8.0)
    head = brain + rng.normal(8, 2, brain.shape).clip(0) + 90 * skull
    mask, found = template.mask(0.0), {}
    if brain_extraction.BUILTIN["deepbet"].installed:
        brain_extraction.extract("deepbet", head, template.AFFINE, "T1", "the template")  # loads the network
        start = cpu()
        brain_extraction.extract("deepbet", head, template.AFFINE, "T1", "the template")
        found["brain extraction, deepbet"] = cpu() - start
    start = cpu()
    registration.bias_field(head, template.AFFINE, mask)
    found["N4"] = cpu() - start
    offset = np.eye(4)
    offset[:3, 3] = 8, -6, 10
    start = cpu()
    registration.register(brain, template.AFFINE, template.mask(template.BRAIN_MARGIN), head * mask, template.AFFINE, offset, "affine")  # fmt: skip
    found["affine registration"] = cpu() - start
    return found


def main() -> int:
    from adbench.datasets.adapters.brats import BraTS21
    from adbench.datasets.phantom.layouts import synthesise
    from adbench.datasets.store import case_file
    from adbench.datasets.store.prepare import prepare
    from adbench.datasets.validation.check import check

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="cases whose headers are checked")
    parser.add_argument("--all", action="store_true", help="also the steps of a head with skull")
    parser.add_argument("--data", type=Path, help="a BraTS'21 folder to use instead of a synthetic one")
    arguments = parser.parse_args()
    failed = []

    def report(what: str, value: float, unit: str, budget: float | None = None, more_is_better: bool = False) -> None:
        missed = budget is not None and (value < budget if more_is_better else value > budget)
        failed.extend([what] * missed)
        limit = "" if budget is None else f"  (budget {'>' if more_is_better else '<'} {budget:g}{', MISSED' * missed})"
        print(f"{what:<58}{value:10.2f} {unit}{limit}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.data is None:
            synthesise("brats21", 2, folder / "data", seed=0, workers=1)
        data = arguments.data or folder / "data"
        dataset = BraTS21(BraTS21.Params(), data)  # type: ignore[arg-type]
        case = dataset.discover("FLAIR")[0]
        flair = next(file for file in case.files if "flair" in file.name.lower())

        many = BraTS21(BraTS21.Params(), many_cases(data, arguments.cases, folder / "many"))  # type: ignore[arg-type]
        start, wall = cpu(), time.perf_counter()
        check(many, workers=1)
        report(
            f"headers of {arguments.cases} cases checked, one core",
            cpu() - start,
            "s",
            HEADERS_S * arguments.cases / 1000,
        )
        report("  wall-clock time", time.perf_counter() - wall, "s")
        shutil.rmtree(folder / "many")

        slow, fast = inflate(flair)
        report("one volume decoded by nibabel", slow * 1000, "ms")
        report("one volume decoded by adbench", fast * 1000, "ms")
        content = gzip.decompress(flair.read_bytes())
        report("  ratio", slow / fast, f"x ({len(content) / 1e6:.0f} MB)")

        case_file.run(dataset, [("FLAIR", case, folder / "once")])  # imports
        start = cpu()
        case_file.run(dataset, [(modality, dataset.discover(modality)[0], folder / modality) for modality in SEQUENCES])
        prepared = cpu() - start
        report("one case, four sequences, prepared and written", prepared, "s of one core", CASE_S)
        report("  peak memory", peak_gb(), "GB", WORKER_GB)

        store = prepare(dataset, "FLAIR", folder / "cache", workers=1)
        report("  of it the fingerprint", 100 * fingerprint(store) * len(SEQUENCES) / prepared, "%", PRINT_PERCENT)
        report("store of one slice", sum(file.stat().st_size for file in store.files) / len(store) / 1e3, "kB")
        order = np.random.default_rng(0).permutation(len(store))
        cold(folder / "cache")
        start = time.perf_counter()
        for row in order:
            store.images[row]
        report("slices read in random order, cold cache", len(order) / (time.perf_counter() - start), "slices/s", SLICES_PER_S, True)  # fmt: skip
        checked, unchecked = reading(store.folder)
        report("checksums, taken when a case is first read, of that reading", 100 * (checked / unchecked - 1), "%", CHECKSUM_PERCENT)  # fmt: skip

    if arguments.all:
        for step, seconds in slow_steps().items():
            report(f"head with skull: {step}", seconds, "s of one core")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
