"""Metrics against scikit-learn and a literal loop: speed and peak memory, each side in its own process.

    python benchmarks/metrics.py                 # the table of docs/metrics.md: 100 M and 1 G voxels, about 5 minutes
    python benchmarks/metrics.py --scale 0.01    # the same in a few seconds, sizes divided by 100
    python benchmarks/metrics.py --only counting # the table of what a run counts in a volume, by part, about a minute

Times are CPU seconds of the process, all threads together, so that other work on the machine counts little; data are
made and libraries imported outside the timed parts. Peak memory is the high-water mark of the resident set of the process,
interpreter and libraries included; on the scikit-learn side it holds the pooled arrays that scikit-learn needs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SUBJECTS, CHUNK = 250, 400_000
MADAD_SLICES, LITERAL_SLICES, VOLUME, SIDE = 2000, 20, 20, 256
COUNTED, VOLUMES = 100, 5  # slices of a counted volume, and how many of these


def voxels(
    total: int, subjects: int, prefix: str, lesion: float = 0.01
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(subject, float32 scores, bool labels) in chunks of at most ``CHUNK``: half-normal scores, lesions one higher."""
    rng = np.random.default_rng(len(prefix))
    for i in range(subjects):
        left = total // subjects
        while left > 0:
            size = min(left, CHUNK)
            left -= size
            labels = rng.random(size, dtype=np.float32) < lesion
            scores = np.abs(rng.standard_normal(size, dtype=np.float32)) * np.float32(0.1)
            scores[labels] += np.float32(0.1)
            yield f"{prefix}{i:03d}", scores, labels


def side_sklearn(total: int) -> dict[str, float]:
    """CPU seconds of average precision and AUROC by scikit-learn on pooled arrays, and their values."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = np.empty(total, np.float32), np.empty(total, bool)
    start = 0
    for _, score, label in voxels(total, SUBJECTS, "t"):
        scores[start : start + len(score)], labels[start : start + len(label)] = score, label
        start += len(score)
    clock = time.process_time()
    precision, area = (
        average_precision_score(labels[:start], scores[:start]),
        roc_auc_score(labels[:start], scores[:start]),
    )
    return {"seconds": time.process_time() - clock, "auprc": float(precision), "auroc": float(area)}


def side_adbench(total: int) -> dict[str, float]:
    """CPU seconds of counting, of every number and of every interval, and the pooled values."""
    from adbench.metrics import jackknife
    from adbench.metrics.evaluate import evaluate, sample
    from adbench.metrics.histogram import SubjectHistograms

    test, val, update = SubjectHistograms(), SubjectHistograms(), 0.0
    for subject, scores, labels in voxels(total // 10, SUBJECTS // 10, "val"):
        val.update(subject, scores, labels)
    for subject, scores, labels in voxels(total, SUBJECTS, "t"):
        clock = time.process_time()
        test.update(subject, scores, labels)
        update += time.process_time() - clock
    first = test.subset(test.subjects[:2])
    sample(first, evaluate(first, val, intervals=False).subjects, jackknife.weights(2))  # warm-up: imports
    clock = time.process_time()
    result = evaluate(test, val, intervals=False)
    numbers = time.process_time() - clock
    before = _peak()
    clock = time.process_time()
    sample(test, result.subjects, jackknife.weights(len(test)))
    intervals = time.process_time() - clock
    value = result.metrics["auprc"].value or 0
    low, high = result.brackets.get("auprc", (value, value))
    return {
        "update": update,
        "numbers": numbers,
        "seconds": update + numbers,
        "intervals": intervals,
        "peak_before_intervals": before,
        "auprc": value,
        "auroc": result.metrics["auroc"].value or 0,
        "auprc_low": low,
        "auprc_high": high,
    }


def side_floor(total: int) -> dict[str, float]:
    """CPU seconds of what any counting costs: one bincount a piece by the upper 19 bits, one cumulative sum a subject."""
    cells = np.zeros((2, 1 << 18), np.int64)
    seconds = 0.0
    for _, scores, labels in voxels(total, SUBJECTS, "t"):
        clock = time.process_time()
        cell = scores.view(np.int32) >> 13  # none is negative
        lowest = int(cell.min())
        every = np.bincount(cell - lowest)
        lesion = np.bincount(cell[labels] - lowest, minlength=len(every))
        for row, part in zip(cells, (lesion, every), strict=True):
            np.cumsum(part)
            row[lowest : lowest + len(part)] += part
        seconds += time.process_time() - clock
    clock = time.process_time()
    tp, both = (np.cumsum(row[::-1]) for row in cells)
    precision = np.divide(tp, both, out=np.zeros(len(tp)), where=both > 0)
    area = float(np.sum(cells[0][::-1] * precision) / tp[-1])
    return {"seconds": seconds + time.process_time() - clock, "auprc": area}


SCALES = {
    "an offset of 1000": lambda scores: scores * 10 + np.float32(1000),
    "a saturated sigmoid": lambda scores: 1 / (1 + np.exp(np.float32(-40) * scores)),
}


def side_scale(total: int, name: str) -> dict[str, float]:
    """The same voxels after an increasing function that puts many scores close together."""
    from adbench.metrics.evaluate import evaluate
    from adbench.metrics.histogram import SubjectHistograms

    test, seconds = SubjectHistograms(), 0.0
    for subject, scores, labels in voxels(total, SUBJECTS, "t"):
        moved = SCALES[name](scores)
        clock = time.process_time()
        test.update(subject, moved, labels)
        seconds += time.process_time() - clock
    clock = time.process_time()
    result = evaluate(test, intervals=False)
    seconds += time.process_time() - clock
    return {"seconds": seconds, "auprc": result.metrics["auprc"].value or 0}


def side_optional(count: int) -> dict[str, float]:
    """CPU seconds a volume of 100 x 200 x 200 of each metric that is measured when it is asked for."""
    from adbench.metrics.base import Subject, Volume
    from adbench.metrics.histogram import ScoreHistogram
    from adbench.metrics.optional import AUPRO, ECE, HD95, SurfaceDice, VolumeError

    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:100, :200, :200]
    brain = ((z - 50) / 48) ** 2 + ((y - 100) / 90) ** 2 + ((x - 100) / 75) ** 2 < 1
    lesion = ((z - 40) ** 2 + (y - 80) ** 2 + (x - 120) ** 2 < 15**2) & brain
    maps = np.clip(rng.random(brain.shape, dtype=np.float32) * 0.7 + 0.3 * lesion, 0, 1)
    histogram = ScoreHistogram()
    histogram.update(maps[brain], lesion[brain])
    volume = Volume(maps, lesion, brain, np.arange(100), spacing=(1.0, 1.0, 1.0))
    subject = Subject("a", histogram, {"val": 0.7}, volume)
    found = {}
    for metric in (SurfaceDice(), HD95(), VolumeError(), AUPRO(), ECE()):
        metric.measure(subject)  # warm-up: imports
        clock = time.process_time()
        for _ in range(count):
            metric.measure(subject)
        found[metric.name] = (time.process_time() - clock) / count
    return {"seconds": sum(found.values()), **found}


def side_stream(total: int) -> dict[str, float]:
    """CPU seconds of counting and of every number without validation; its peak memory is what counts."""
    from adbench.metrics.evaluate import evaluate
    from adbench.metrics.histogram import SubjectHistograms

    test = SubjectHistograms()
    clock = time.process_time()
    for subject, scores, labels in voxels(total, SUBJECTS, "t"):
        test.update(subject, scores, labels)
    evaluate(test, intervals=False)
    return {"seconds": time.process_time() - clock}


def slices(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(float32 map, bool mask) of 256 x 256: scores in [0, 1] in an ellipse, 0 outside; two of three have a lesion."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    brain = (y / 0.43) ** 2 + (x / 0.35) ** 2 < 1
    for i in range(count):
        lesion = ((y - 0.1) ** 2 + (x - 0.1) ** 2 < 0.05**2) & bool(i % 3)
        score = np.clip(rng.random((SIDE, SIDE), dtype=np.float32) * 0.7 + 0.3 * lesion, 0, 1) * brain
        yield score.astype(np.float32), lesion


def side_literal(count: int) -> dict[str, float]:
    """201 thresholds, one slice after the other, copies set to 0 and 1 in place, NumPy sums: as the rule reads."""
    data = [(score, lesion.astype(np.float32)) for score, lesion in slices(count)]

    def dice(predicted: np.ndarray, lesion: np.ndarray, threshold: float) -> float:
        predicted[predicted > threshold] = 1
        predicted[predicted < 1] = 0
        if np.sum(lesion) == 0:
            return float(np.sum(predicted) == 0)
        overlap = (predicted.flatten() * lesion.flatten()).sum(dtype=np.float64)
        return 2 * overlap / (predicted.sum(dtype=np.float64) + lesion.sum(dtype=np.float64) + 1e-6)

    clock = time.process_time()
    best = 0.0
    for threshold in np.linspace(0, 1, 201):
        best = max(best, float(np.mean([dice(score.copy(), lesion.copy(), threshold) for score, lesion in data])))
    return {"seconds": time.process_time() - clock, "dice": best}


def side_madad(count: int) -> dict[str, float]:
    """CPU seconds of the official-madad preset on ``count`` slices, and its Dice."""
    from adbench.metrics.presets import PresetCase, official_madad

    data, volumes = list(slices(min(count, 200))), []
    for start in range(0, len(data), VOLUME):
        maps, lesion = (np.stack([pair[k] for pair in data[start : start + VOLUME]]) for k in range(2))
        volumes.append(PresetCase(str(start), maps, lesion, np.broadcast_to(True, maps.shape)))
    cases = [volumes[i % len(volumes)] for i in range(count // VOLUME)]  # repeated: what is measured is the counting
    official_madad(cases[:1])  # warm-up: imports
    clock = time.process_time()
    result = official_madad(cases)
    return {"seconds": time.process_time() - clock, "dice": result.values["dice"] or 0}


def counted_volume(side: int, seed: int) -> Any:
    """A volume of 100 slices of ``side`` x ``side``, and a reconstruction: smooth noise in a disc, lesions a little higher."""
    from scipy.ndimage import gaussian_filter

    from adbench.metrics.lesion import checked_volume

    rng = np.random.default_rng(seed)
    shape, r, c = (COUNTED, side, side), *np.ogrid[:side, :side]
    brain = np.broadcast_to((r - side / 2) ** 2 + (c - side / 2) ** 2 < (0.42 * side) ** 2, shape).copy()
    lesion = np.zeros(shape, bool)
    lesion[40:60, side // 3 : side // 3 + side // 8, side // 3 : side // 3 + side // 8] = True
    maps = np.abs(gaussian_filter(rng.standard_normal(shape, np.float32), (0, 2, 2)))
    maps[lesion] += 0.05
    image = rng.random(shape, np.float32)
    recon = np.clip(image + rng.normal(0, 0.1, shape), 0, 1).astype(np.float32)
    return checked_volume(f"case {seed}", maps, lesion, brain, None, recon, image, (1.0, 1.0, 1.0))


def counting_thresholds(side: int) -> list[float]:
    """The threshold ``val`` and those of a FROC curve, as a run takes them from two validation volumes."""
    from adbench.metrics.histogram import SubjectHistograms
    from adbench.metrics.spatial import froc_thresholds
    from adbench.metrics.thresholds import choose_thresholds

    val = SubjectHistograms()
    for seed in (100, 101):
        volume = counted_volume(side, seed)
        val.update(str(seed), volume.scores, volume.lesion[volume.brain])
    return [choose_thresholds(val)[0]["val"], *froc_thresholds(val)]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    clock = time.process_time()
    found = work()
    return 1e3 * (time.process_time() - clock) / COUNTED, found


def side_counting(side: int) -> dict[str, float]:
    """CPU ms a slice of everything that a run counts in a volume, by part; and two sums of what was counted."""
    from adbench.metrics import lesion
    from adbench.metrics.histogram import MANY_BINS, SubjectHistograms
    from adbench.metrics.lesion import checked_volume
    from adbench.metrics.spatial import SpatialAccumulator

    val, *froc = counting_thresholds(side)
    test, spatial = SubjectHistograms([val, *froc], most=MANY_BINS), SpatialAccumulator({"val": val}, froc)
    spatial.row("warm-up", counted_volume(side, 99))
    parts: dict[str, list[float]] = {}
    for seed in range(VOLUMES):
        made = counted_volume(side, seed)
        given = (made.maps, made.lesion, made.brain, None, made.recon, made.image, made.spacing)
        spent, volume = _timed(partial(checked_volume, str(seed), *given))
        parts.setdefault("checks", []).append(spent)
        parts.setdefault("slices", []).append(_timed(partial(lesion.slice_scores, volume))[0])
        spent, (_, found) = _timed(partial(lesion.detect, volume, [val, *froc]))
        parts.setdefault("lesions", []).append(spent)
        spent, (_, similarity) = _timed(partial(lesion.reconstruction, volume))
        parts.setdefault("reconstruction", []).append(spent)
    labels, before = volume.lesion[volume.brain], []
    while not len(test.partition.seen):  # until scores are joined
        before.append(_timed(partial(test.update, str(len(test)), volume.scores, labels))[0])
    parts["voxels"] = [_timed(partial(test.update, str(len(test)), volume.scores, labels))[0] for _ in range(VOLUMES)]
    return {
        "thresholds": 1 + len(froc),
        "before": sum(before) * COUNTED / 1e3,
        **{name: float(np.median(spent)) for name, spent in parts.items()},
        "components": sum(one.found + one.false for one in found),
        "ssim": similarity,
    }


def side_counting_peer(side: int) -> dict[str, float]:
    """CPU ms a slice of SciPy's labels at one threshold after the other and of five filtered images, of the last volume."""
    from scipy.ndimage import gaussian_filter, label

    thresholds, volume = counting_thresholds(side), counted_volume(side, VOLUMES - 1)

    def labels() -> int:
        return sum(label((volume.maps >= one) & volume.brain, np.ones((3, 3, 3)))[1] for one in thresholds)

    def similarity() -> float:
        smooth, healthy, total = partial(gaussian_filter, sigma=1.5, radius=5), volume.brain & ~volume.lesion, 0.0
        for first, second, inside in zip(volume.recon, volume.image, healthy, strict=True):
            x, y = first.astype(np.float64), second.astype(np.float64)
            a, b = smooth(x), smooth(y)
            above = (2 * a * b + 1e-4) * (2 * (smooth(x * y) - a * b) + 9e-4)
            below = (a**2 + b**2 + 1e-4) * (smooth(x * x) - a**2 + smooth(y * y) - b**2 + 9e-4)
            total += float((above / below)[inside].sum())
        return total / int(healthy.sum())

    (lesions, components), (reconstruction, ssim) = _timed(labels), _timed(similarity)
    return {"lesions": lesions, "reconstruction": reconstruction, "components": components, "ssim": ssim}


def report_counting() -> str:
    """What is counted in a volume, ms a slice, beside the literal way; as Markdown."""
    sizes = (128, 256)
    own, peer = ({side: measure(name, side) for side in sizes} for name in ("counting", "counting peer"))
    names = {
        "checks": "checks, scores of the brain",
        "voxels": "voxels by score",
        "slices": "slice scores",
        "lesions": f"lesions and components at {own[256]['thresholds']:g} thresholds",
        "reconstruction": "SSIM and error of a reconstruction",
    }
    rows = [[text, *(f"{found[side][name]:.2f}" if name in found[side] else "" for side in sizes for found in (own, peer))] for name, text in names.items()]  # fmt: skip
    total = ["all", *(value for side in sizes for value in (f"{sum(own[side][name] for name in names):.2f}", ""))]
    return "\n".join(
        [
            "| CPU ms a slice | 128 x 128 | literal | 256 x 256 | literal |",
            "|---|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in [*rows, total]),
            "",
            "The voxels of the first volumes, while every score has a bin of its own, take "
            + " and ".join(f"{own[side]['before']:.1f} s" for side in sizes)
            + " once a run.",
            "Components at all thresholds together, here and by SciPy: "
            + ", ".join(f"{own[side]['components']} and {peer[side]['components']}" for side in sizes)
            + "; SSIM differs by "
            + ", ".join(f"{abs(own[side]['ssim'] - peer[side]['ssim']):.0e}" for side in sizes)
            + ".",
        ]
    )


SIDES = {
    "counting": side_counting,
    "counting peer": side_counting_peer,
    **{f"scale {name}": partial(side_scale, name=name) for name in SCALES},
    "optional": side_optional,
    "sklearn": side_sklearn,
    "adbench": side_adbench,
    "floor": side_floor,
    "stream": side_stream,
    "literal": side_literal,
    "madad": side_madad,
}


def _peak() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def measure(side: str, size: int, subjects: int = SUBJECTS) -> dict[str, float]:
    """Run one side in a process of its own; its numbers and its peak memory in MB."""
    sizes = ["--size", str(size), "--subjects", str(subjects)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--side", side, *sizes],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(scale: float) -> str:
    """Measure everything; the table as Markdown."""
    total = int(100e6 * scale)
    peer, own, bare = measure("sklearn", total), measure("adbench", total), measure("floor", total)
    fewer = {subjects: measure("adbench", total // 10, subjects)["seconds"] for subjects in (SUBJECTS // 10, SUBJECTS)}
    tenth = measure("sklearn", total // 10)["seconds"]
    flat = {size: measure("stream", size)["peak"] for size in (total // 10, total, 10 * total)}
    count, few = VOLUME * max(1, int(MADAD_SLICES * scale) // VOLUME), LITERAL_SLICES
    literal, fast, same = measure("literal", few), measure("madad", count), measure("madad", few)
    slow_slice, fast_slice = literal["seconds"] / few, fast["seconds"] / count
    moved = {name: measure(f"scale {name}", total) for name in SCALES}
    optional = measure("optional", 3)
    rows = [
        ("AP and AUROC, scikit-learn", f"{peer['seconds']:.1f} s", f"{peer['peak']:.0f} MB", "1"),
        (
            "every pooled and per-subject metric, adbench",
            f"{own['seconds']:.2f} s ({own['update']:.2f} counting, {own['numbers']:.2f} numbers)",
            f"{own['peak_before_intervals']:.0f} MB",
            f"{peer['seconds'] / own['seconds']:.0f} x faster, {peer['peak'] / own['peak_before_intervals']:.0f} x less memory",
        ),
        (
            "counting voxels and a cumulative sum alone, NumPy",
            f"{bare['seconds']:.2f} s",
            f"{bare['peak']:.0f} MB",
            f"{peer['seconds'] / bare['seconds']:.0f} x faster",
        ),
        *(
            (
                f"the same, {total / 1e7:g} M voxels of {subjects} subjects",
                f"{seconds:.2f} s",
                "",
                f"{tenth / seconds:.0f} x faster than scikit-learn's {tenth:.1f} s",
            )
            for subjects, seconds in fewer.items()
        ),
        (
            "intervals of all of them (every subject left out once), adbench",
            f"{own['intervals']:.2f} s",
            f"{own['peak']:.0f} MB",
            "",
        ),
        *(
            (
                f"the same after {name}, without validation",
                f"{one['seconds']:.2f} s",
                f"{one['peak']:.0f} MB",
                f"{peer['seconds'] / one['seconds']:.0f} x faster",
            )
            for name, one in moved.items()
        ),
        ("official-madad rule, literal loop", f"{1e3 * slow_slice:.1f} ms a slice", f"{literal['peak']:.0f} MB", "1"),
        (
            f"official-madad, adbench, {count} slices (with pooled AP, AUROC, F1)",
            f"{1e3 * fast_slice:.2f} ms a slice",
            f"{fast['peak']:.0f} MB",
            f"{slow_slice / fast_slice:.0f} x faster",
        ),
    ]
    lines = [
        f"{total / 1e6:g} M brain voxels, {SUBJECTS} subjects, float32 scores; "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}.",
        "",
        "| what | CPU time | peak memory | ratio |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Peak memory, streamed: "
        + ", ".join(f"{size / 1e6:g} M voxels {peak:.0f} MB" for size, peak in flat.items())
        + ".",
        f"AP {own['auprc']:.6f} against {peer['auprc']:.6f} (stated bracket [{own['auprc_low']:.6f}, {own['auprc_high']:.6f}]); "
        f"AUROC {own['auroc']:.6f} against {peer['auroc']:.6f}; "
        f"official-madad on {few} slices differs from the loop by {abs(same['dice'] - literal['dice']):.1e}.",
        "AP after " + ", ".join(f"{name}: {one['auprc']:.6f}" for name, one in moved.items()) + ".",
        "Metrics on request, ms a volume of 100 x 200 x 200: "
        + ", ".join(f"{name} {1e3 * optional[name]:.0f}" for name in optional if name not in ("seconds", "peak"))
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table, or measure one side in this process."""
    global SUBJECTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size (1.0: 100 M voxels)")
    parser.add_argument("--only", choices=["counting"], help="that table alone")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    SUBJECTS = given.subjects
    if not 1e-4 <= given.scale < math.inf:
        parser.error(f"--scale {given.scale:g} is not a share of at least 0.0001")
    if given.side:
        print(json.dumps({**SIDES[given.side](given.size), "peak": _peak()}))
    else:
        print(report_counting() if given.only else report(given.scale))


if __name__ == "__main__":
    main()
