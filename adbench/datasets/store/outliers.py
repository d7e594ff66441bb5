"""Outliers among prepared cases: an implausible brain volume, a failed registration, a lesion that was lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

FAR = 4.0  # robust standard deviations
FEWEST = 8  # cases below which a spread says nothing
ABSOLUTE = {"brain_ml": (500.0, 2600.0), "registration_overlap": (0.85, 1.0)}  # plausible for any case
KEPT = 0.05  # share of a lesion that may get lost or grow
SMALL = 0.1  # ml; a smaller lesion may lose more by the size of one voxel
LEAST = {"clipped_share": 0.002}  # nearly the same by construction: a smaller difference means nothing
COMPARED = ("brain_ml", "clipped_share", "registration_correlation", "registration_overlap")


def outliers(cases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures worth a look.

    Args:
        cases: what the manifest says of each case; ``subject``, ``session`` and ``quality`` are read.

    Returns:
        ``case``, ``figure``, ``value`` and ``why``, in the order of the cases.
    """
    named = [(f"{c['subject']}_{c['session']}" if c["session"] else c["subject"], c["quality"]) for c in cases]
    spread = {name: _spread([quality[name] for _, quality in named if name in quality]) for name in COMPARED}
    found = []
    for case, quality in named:
        for figure, value in quality.items():
            why = _why(figure, value, quality, spread.get(figure))
            if why:
                found.append({"case": case, "figure": figure, "value": value, "why": why})
    return found


def _spread(values: list[float]) -> tuple[float, float] | None:
    if len(values) < FEWEST:
        return None
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(np.asarray(values) - middle)))


def _why(figure: str, value: float, quality: dict[str, float], spread: tuple[float, float] | None) -> str:
    low, high = ABSOLUTE.get(figure, (-np.inf, np.inf))
    if not low <= value <= high:
        return f"outside {low:g} to {high:g}"
    if spread is not None and abs(value - spread[0]) > max(FAR * spread[1], LEAST.get(figure, 0.0)) and spread[1] > 0:
        return f"the median of all cases is {spread[0]:.4g}"
    if figure == "lesion_ml":
        before = quality["lesion_ml_source"]
        if before > 0 and abs(value - before) > max(KEPT * before, SMALL):
            return f"the source holds {before:.4g} ml"
    if figure == "lesion_outside_brain_ml" and value > max(KEPT * quality["lesion_ml"], SMALL):
        return f"of {quality['lesion_ml']:.4g} ml: the brain mask misses it"
    return ""
