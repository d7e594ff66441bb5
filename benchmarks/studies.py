"""Whether intervals cover and ranks hold their level: ``python benchmarks/statistics.py [--studies 1000] [--json]``.

Simulated studies with a known truth. A lesion-bearing subject has a log-normal number of lesion voxels, a shift of its
lesion scores and a noise level of its own; methods share how hard a subject is and differ in the rest; training seeds
shift a method as a whole. Scores fall into bins, so a study is two tables of counts and thousands of them take minutes.
Prints the tables of docs/metrics.md. A number outside its band is measured again with five times the studies, which its
cell then shows with a star; exits with 1 when it leaves the band by more than the error of the simulation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from rich.console import Console
from rich.progress import track

from adbench.metrics import jackknife
from adbench.metrics.compare import MethodSamples, compare
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import SubjectHistograms

METRICS = ("auprc", "auprc_subject", "dice@val", "auroc")
SIZES = (6, 10, 20, 40, 100)
VOXELS = 600
EDGES = np.linspace(8, -4, 59)  # bins of scores, the highest first
COVERAGE, SPLIT = (0.92, 0.98), 0.06
AGAIN = 5  # times the studies for a number outside its band


@dataclass(frozen=True)
class Cohort:
    """What subjects are like.

    Attributes:
        name: of it.
        skew: standard deviation of the logarithm of lesion sizes.
        free: lesion-free subjects for each lesion-bearing one.
        spread: standard deviation of lesion shifts between subjects.
    """

    name: str
    skew: float
    free: float
    spread: float


COHORTS = (Cohort("usual", 1.0, 0.4, 0.5), Cohort("hard", 1.3, 1.0, 0.8))


@dataclass(frozen=True)
class Study:
    """Counts of one method on n subjects in K bins, the highest score first: (n, K) lesion and background voxels."""

    lesion: np.ndarray
    background: np.ndarray

    @property
    def cohort(self) -> tuple[tuple[str, int, int], ...]:
        """As :attr:`adbench.metrics.compare.MethodSamples.cohort`."""
        sums = zip(self.lesion.sum(axis=1), self.background.sum(axis=1), strict=True)
        return tuple((f"s{i:05d}", int(p), int(q)) for i, (p, q) in enumerate(sums))


def draw(
    rng: np.random.Generator,
    cohort: Cohort,
    bearing: int,
    free: int,
    shifts: Sequence[float] = (0.0,),
    own: float = 0.4,
) -> list[Study]:
    """The same subjects under several methods, or training seeds, with mean lesion shift ``1.5 + shift``.

    Args:
        rng: random numbers.
        cohort: what subjects are like.
        bearing: lesion-bearing subjects.
        free: lesion-free subjects.
        shifts: one method each.
        own: standard deviation of what is a method's own in a subject's shift.
    """
    n = bearing + free
    sizes = np.clip(np.round(np.exp(rng.normal(np.log(20), cohort.skew, n))), 2, VOXELS // 2).astype(int)
    sizes[bearing:] = 0
    hard = rng.normal(1.5, math.sqrt(max(cohort.spread**2 - own**2, 0)), n)
    studies = []
    for shift in shifts:
        noise = np.exp(rng.normal(0, 0.2, n))
        lesion = rng.multinomial(sizes, _shares(hard + shift + rng.normal(0, own, n), noise))
        background = rng.multinomial(VOXELS - sizes, _shares(rng.normal(0, 0.2, n), noise))
        studies.append(Study(lesion.astype(float), background.astype(float)))
    return studies


def _shares(mean: np.ndarray, noise: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    above = ndtr((mean[:, None] - EDGES) / noise[:, None])
    whole = np.concatenate([np.zeros((len(mean), 1)), above, np.ones((len(mean), 1))], axis=1)
    return np.diff(whole, axis=1)


def measure(study: Study, weights: np.ndarray, threshold: int) -> np.ndarray:
    """(4, R) :data:`METRICS` under (R, n) weights; Dice with the bins up to ``threshold`` predicted."""
    lesion, background = weights @ study.lesion, weights @ study.background
    tp, fp = np.cumsum(lesion, axis=1), np.cumsum(background, axis=1)
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    auprc = (lesion * precision).sum(axis=1) / tp[:, -1]
    auroc = ((background * tp).sum(axis=1) - 0.5 * (background * lesion).sum(axis=1)) / (tp[:, -1] * fp[:, -1])
    bearing = study.lesion.sum(axis=1) > 0
    size = study.lesion[bearing].sum(axis=1)
    tp, fp = np.cumsum(study.lesion[bearing], axis=1), np.cumsum(study.background[bearing], axis=1)
    own = (study.lesion[bearing] * np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)).sum(axis=1) / size
    dice = 2 * tp[:, threshold] / (tp[:, threshold] + fp[:, threshold] + size)
    weight = weights[:, bearing]
    return np.stack([auprc, weight @ own / weight.sum(axis=1), weight @ dice / weight.sum(axis=1), auroc])


def samples(seeds: Sequence[Study], threshold: int, bearing: int) -> MethodSamples:
    """What :func:`adbench.metrics.compare.sample_method` gives for the training seeds of a method."""
    n = len(seeds[0].lesion)
    weights = np.concatenate([np.ones((1, n)), jackknife.weights(n)])
    found = np.stack([measure(study, weights, threshold) for study in seeds], axis=1)  # metric, seed, row
    return MethodSamples(
        seeds[0].cohort,
        {name: found[i, :, 0] for i, name in enumerate(METRICS)},
        {name: found[i, :, 1:] for i, name in enumerate(METRICS)},
        dict.fromkeys(METRICS, bearing),
    )


@cache
def population(cohort: Cohort, subjects: int = 20_000) -> tuple[np.ndarray, int]:
    """(4,) true values, and the threshold of highest pooled Dice, which a validation split would give."""
    (everyone,) = draw(np.random.default_rng(1), cohort, subjects, round(subjects * cohort.free))
    tp, fp = everyone.lesion.sum(axis=0).cumsum(), everyone.background.sum(axis=0).cumsum()
    threshold = int(np.argmax(2 * tp / (tp + fp + tp[-1])))
    return measure(everyone, np.ones((1, len(everyone.lesion))), threshold)[:, 0], threshold


def fast_path_error(studies: int = 5) -> float:
    """The largest difference between the numbers used here and those of :func:`adbench.metrics.evaluate.evaluate`."""
    worst = 0.0
    for number in range(studies):
        (study,) = draw(np.random.default_rng([9, number]), COHORTS[0], 8, 3)
        threshold = 30
        scores = -np.arange(len(EDGES) + 1, dtype=np.float16)
        test, val = SubjectHistograms(), SubjectHistograms()
        for (subject, positive, negative), lesion, background in zip(
            study.cohort, study.lesion.astype(int), study.background.astype(int), strict=True
        ):
            voxels = np.concatenate([np.repeat(scores, lesion), np.repeat(scores, background)])
            test.update(subject, voxels, np.arange(positive + negative) < positive)
        val.update("v", np.float16([scores[threshold], scores[-1]]), np.array([True, False]))
        expected = evaluate(test, val).metrics
        for name, mine in samples([study], threshold, 8).estimates().items():
            for field in ("value", "low", "high"):
                worst = max(worst, abs(getattr(mine, field) - getattr(expected[name], field)))
    return worst


def coverage(cohort: Cohort, bearing: int, studies: int, seeds: int = 1, between: float = 0.0) -> dict[str, float]:
    """Share of studies whose 95 % interval holds the true value.

    Args:
        cohort: what subjects are like.
        bearing: lesion-bearing subjects of a study.
        studies: how many.
        seeds: training seeds of the method.
        between: standard deviation of the shift of a seed.
    """
    truth, threshold = population(cohort)
    if seeds > 1:  # the mean over the normal shifts of seeds, by Gauss and Hermite's quadrature
        nodes, parts = np.polynomial.hermite_e.hermegauss(9)
        many = [
            draw(np.random.default_rng([3, i]), cohort, 20_000, round(20_000 * cohort.free), [between * node])
            for i, node in enumerate(nodes)
        ]
        found = [measure(one, np.ones((1, len(one.lesion))), threshold)[:, 0] for (one,) in many]
        truth = np.average(found, axis=0, weights=parts)
    held = np.zeros(len(METRICS))
    for number in range(studies):
        rng = np.random.default_rng([7, bearing, seeds, number])
        drawn = draw(rng, cohort, bearing, round(bearing * cohort.free), between * rng.standard_normal(seeds))
        found = samples(drawn, threshold, bearing).estimates()
        held += [found[name].low <= true <= found[name].high for name, true in zip(METRICS, truth, strict=True)]
    return dict(zip(METRICS, (held / studies).tolist(), strict=True))


def split(
    bearing: int,
    studies: int,
    methods: int = 2,
    *,
    free: int | None = None,
    seeds: int = 1,
    gap: float = 0.0,
    metric: str = "auprc",
    above_chance: bool = True,
) -> float:
    """Share of studies in which not every method has rank 1.

    Args:
        bearing: lesion-bearing subjects.
        studies: how many.
        methods: that are compared.
        free: lesion-free subjects; None for those of the usual cohort.
        seeds: training seeds of each method; several seeds differ, by a shift of their own.
        gap: by which the lesion shift of the first method is larger, in units of the noise; 0 for methods that are exchangeable.
        metric: that ranks.
        above_chance: False compares also methods whose interval reaches chance, and those below them.
    """
    cohort = COHORTS[0]
    _, threshold = population(cohort)
    count = 0
    for number in range(studies):
        rng = np.random.default_rng([11, bearing, methods, seeds, number])
        shifts = 0.15 * rng.standard_normal((methods, seeds)) * (seeds > 1)
        shifts[0] += gap
        drawn = draw(rng, cohort, bearing, round(bearing * cohort.free) if free is None else free, shifts.ravel())
        own = {f"m{k:02d}": samples(drawn[k * seeds : (k + 1) * seeds], threshold, bearing) for k in range(methods)}
        table = compare(own, metric, above_chance=above_chance)
        ranked = {rank for rank in table.ranks.values() if rank is not None}
        count += len(ranked) > 1 and (gap == 0 or table.ranks["m00"] == 1)
    return count / studies


NULLS: dict[str, Callable[[int, int], float]] = {
    "2 methods": lambda n, studies: split(n, studies),
    "10 methods": lambda n, studies: split(n, studies, 10),
    "2, among 100 lesion-free": lambda n, studies: split(n, studies, free=100),
    "2 with 3 seeds each": lambda n, studies: split(n, studies, seeds=3),
    "2 by auroc": lambda n, studies: split(n, studies, metric="auroc"),
}
# The first method is truly better; counted where it alone has rank 1 ("1 apart": in units of the noise).
POWERS: dict[str, Callable[[int, int], float]] = {
    "0.5 apart, 2 methods": lambda n, studies: split(n, studies, gap=0.5),
    "1 apart, 2 methods": lambda n, studies: split(n, studies, gap=1.0),
    "1 apart, best of 10": lambda n, studies: split(n, studies, 10, gap=1.0),
    "1 apart, best of 10, all ranked": lambda n, studies: split(n, studies, 10, gap=1.0, above_chance=False),
    "1 apart, 2 with 3 seeds": lambda n, studies: split(n, studies, seeds=3, gap=1.0),
}


def slack(studies: int) -> float:
    """Two standard errors of a share near 5 % or 95 % over so many studies."""
    return 2 * math.sqrt(0.05 * 0.95 / studies)


def outside(name: str, n: int, found: dict[str, float], slack: float = 0.0) -> list[str]:
    """The shares of a cell that leave their band, as sentences; only coverage from ten subjects on and nulls have one."""
    if name in POWERS or (name not in NULLS and n < 10):
        return []
    low, high = (0.0, SPLIT) if name in NULLS else COVERAGE
    return [
        f"{name}, {n} subjects: {what} {share:.3f}"
        for what, share in found.items()
        if not low - slack <= share <= high + slack
    ]


def main() -> int:
    """Run all studies and print the tables; 1 when a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    error = fast_path_error()
    assert error < 1e-9, error
    covering: dict[str, Callable[[int, int], dict[str, float]]] = {
        **{cohort.name: partial(coverage, cohort) for cohort in COHORTS},
        "3 seeds": partial(coverage, COHORTS[0], seeds=3, between=0.15),
    }
    ranking = {**NULLS, **POWERS}
    cells: dict[tuple[str, int], dict[str, float]] = {}
    again, out = set(), []
    every = [(name, n) for name in (*covering, *ranking) for n in SIZES]
    for name, n in track(every, "Studies", console=Console(stderr=True)):
        for studies in (given.studies, AGAIN * given.studies):
            cells[name, n] = covering[name](n, studies) if name in covering else {"": ranking[name](n, studies)}
            if not outside(name, n, cells[name, n]):
                break
            again.add((name, n))
        out += outside(name, n, cells[name, n], slack(studies))
    if given.json:
        tables = [{k: {n: cells[k, n] for n in SIZES} for k in names} for names in (covering, ranking)]
        starred = sorted(again)
        print(
            json.dumps(
                {"studies": given.studies, "coverage": tables[0], "ranks": tables[1], "again": starred, "outside": out},
                indent=1,
            )
        )
        return int(bool(out))
    for what, names, columns in (
        ("Coverage of the 95 % interval", covering, METRICS),
        ("Share in which ranks split", ranking, ("",)),
    ):
        print(f"{what}, {given.studies} studies a cell (*: {AGAIN * given.studies}):\n")
        heads = [f"`{column}`, {name}" if column else name for name in names for column in columns]
        print("| lesion subjects | " + " | ".join(heads) + " |\n|" + "---|" * (1 + len(heads)))
        for n in SIZES:
            shown = [f"{cells[k, n][c]:.3f}{'*' * ((k, n) in again)}" for k in names for c in columns]
            print(f"| {n} | " + " | ".join(shown) + " |")
        print()
    for line in out:
        print(f"outside its band: {line}", file=sys.stderr)
    return int(bool(out))


if __name__ == "__main__":
    sys.exit(main())
