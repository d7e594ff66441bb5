"""Which ensemble of finished runs is best on validation, and on which scale: ``python benchmarks/ensembles.py runs/soop --methods dae,reflect``.

Reads the fits of the runs below a folder, scores the labelled and the healthy validation slices of each once (maps of 0 smoothing
where the method has ``sigma``, smoothed afterwards), and prints the AUPRC over the brain voxels of the former: of each method's
seeds averaged and of all combinations of methods, by the rule that brings maps to one scale, by smoothing, and by a median
(of the cube, or of the plane where slices stand alone). No test slice is read.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

RULES = ("quantile", "rank", "log-rank")


def maps(run: Any) -> dict[str, Any]:
    """Maps of the labelled and the healthy validation slices of a run, (N, H, W), before any smoothing by ``sigma``."""
    import torch

    method = run.method()
    fields = type(method.params).model_fields
    smoothed_after = "sigma" in fields and "latent_sigma" not in fields
    sigma = method.params.sigma if smoothed_after else 0.0
    if smoothed_after:
        method.params = method.params.model_copy(update={"sigma": 0.0})
    with torch.inference_mode():
        found = {
            name: torch.cat([method.score(part) for part in data.batches(32)])
            for name, data in (("labelled", run.data.threshold), ("healthy", run.data.val))
        }
    return {**found, "sigma": sigma, "smoothed_after": smoothed_after}


def scaled(one: dict[str, Any], brain: np.ndarray, rule: str, sigma: float | None) -> np.ndarray:
    """Labelled maps of one fit on the scale that ``rule`` takes from its healthy ones, whose brain is ``brain``."""
    from adbench.methods.common.image_ops import gaussian_blur

    width = one["sigma"] if sigma is None or not one["smoothed_after"] else sigma
    labelled, healthy = (gaussian_blur(one[name], width)[:, 0].numpy() for name in ("labelled", "healthy"))
    scores = np.sort(healthy[brain])
    if rule == "quantile":
        return labelled / np.quantile(scores, 0.99)
    rank = np.searchsorted(scores, labelled) / (len(scores) + 1)
    return rank if rule == "rank" else -np.log1p(-rank)


def main() -> None:
    from sklearn.metrics import average_precision_score

    from adbench import api
    from adbench.runner.inference import median_filtered

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--methods", default="dae,reflect,restore", help="comma-separated; all their seeds are taken")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    found = [
        run
        for run in api.load(args.runs, cache=args.cache, device="cpu")
        if run.record.method.name in args.methods.split(",")
    ]
    made = [(run.record.method.name, maps(run)) for run in found]
    data = found[0].data.threshold
    brain, healthy = data.brains(), found[0].data.val.brains()
    lesion = data.lesions()[brain]
    names = sorted({name for name, _ in made})

    def auprc(members: tuple[str, ...], rule: str, sigma: float | None = None, median: int = 0) -> float:
        whole = np.mean([scaled(one, healthy, rule, sigma) for name, one in made if name in members], axis=0)
        if median:
            for index in range(len(data.cases)):
                at = np.flatnonzero(data.case_index == index)
                whole[at] = median_filtered(whole[at], brain[at], data.slice_numbers[at], median)
        return float(average_precision_score(lesion, whole[brain]))

    print(f"{len(made)} fits; validation AUPRC, prevalence {lesion.mean():.4f}\n")
    print(f"| mean of all seeds of | {' | '.join(RULES)} |\n|---|" + "--:|" * len(RULES))
    for members in (one for count in range(1, len(names) + 1) for one in combinations(names, count)):
        values = [f"{auprc(members, rule):.3f}" for rule in RULES]
        print(f"| {', '.join(members)} | {' | '.join(values)} |", flush=True)
    for sigma in (2.5, 5.0, 9.0):
        print(
            f"* sigma {sigma}, where it is smoothed last: {', '.join(f'{n} {auprc((n,), RULES[0], sigma):.3f}' for n in names)}"
        )
    for side in (3, 9):
        print(
            f"* median {side}: {', '.join(f'{n} {auprc((n,), RULES[0], None, side):.3f}' for n in names)}", flush=True
        )


if __name__ == "__main__":
    main()
