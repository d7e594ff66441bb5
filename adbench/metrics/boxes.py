"""Findings as boxes: what a map finds of the boxes that annotators drew (NOVA, fastMRI+), or of the boxes around lesions.

The rule, slice by slice on the grid of the evaluation: a finding is the box around a connected region of the mask
(8 neighbours), so boxes that touch or overlap are one finding; a detection is the box around a connected region of the
map at or above a threshold, inside the brain. Detections and findings are paired one to one, pairs with the largest
intersection over union (IoU) first, and a pair counts from an IoU of :data:`HIT`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from adbench.metrics.base import Metric, Subject
from adbench.metrics.lesion import Volume
from adbench.metrics.score_bins import predict

HIT = 0.1  # smallest IoU of a hit: maps rarely fill a box
THRESHOLDS = 20  # of the curve of one volume
LOWEST = 0.25  # share of the brain that its lowest threshold predicts


class BoxF1(Metric):
    """F1 of boxes around map regions against the annotated boxes, at the threshold :attr:`rule`, pooled."""

    name = "box_f1@val"
    rule: ClassVar[str] = "val"
    needs_maps = True
    undefined = "no validation split chose the threshold, or there is neither finding nor detection"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        if volume is None or self.rule not in subject.thresholds:
            return None
        findings, found = boxes(volume.lesion), _detected(volume, subject.thresholds[self.rule])
        return 2.0 * hits(findings, found), float(len(findings) + len(found))


class BoxF1Alarms(BoxF1):
    """F1 of boxes around map regions against the annotated boxes, at the threshold of 1 % of healthy validation voxels."""

    name, rule = "box_f1@fpr1", "fpr1"


class BoxAP(Metric):
    """Average precision of boxes around map regions against the annotated boxes, by volume.

    The thresholds of a volume are the scores that rising shares of its brain reach, so a strictly increasing transform
    of the map changes nothing. Precision is interpolated: at each recall, the best that is reached at it or above
    (Everingham et al. 2010, IJCV 88:303, section 4.2, at every recall that occurs).
    """

    name = "box_ap"
    needs_maps = True
    undefined = "no volume has a finding"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        if volume is None or not volume.lesion.any():
            return None
        findings, points = boxes(volume.lesion), []
        scores = np.sort(volume.maps[volume.brain])[::-1]
        ranks = np.unique(np.geomspace(1, max(1.0, LOWEST * len(scores)), THRESHOLDS).astype(int)) - 1
        for threshold in np.unique(scores[ranks])[::-1].tolist():
            found = _detected(volume, threshold)
            true = hits(findings, found)
            points.append((true / len(findings), true / len(found)))
        return average_precision(points), 1.0


def average_precision(points: list[tuple[float, float]]) -> float:
    """Area under interpolated precision, of (recall, precision) points in any order; recall need not rise with them."""
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


def boxes(mask: np.ndarray) -> np.ndarray:
    """(n, 5) slice, first row, first column, and the row and column behind the last, of the regions of a (S, H, W) mask."""
    from scipy.ndimage import find_objects, label

    within = np.zeros((3, 3, 3), bool)
    within[1] = True
    places = find_objects(label(mask, within)[0])
    found = [(at[0].start, at[1].start, at[2].start, at[1].stop, at[2].stop) for at in places]
    return np.array(found, np.int64).reshape(-1, 5)


def hits(findings: np.ndarray, detections: np.ndarray) -> int:
    """How many of (n, 5) ``findings`` and (m, 5) ``detections``, see :func:`boxes`, are pairs."""
    pairs = []
    for place, one in enumerate(findings):
        same = np.flatnonzero(detections[:, 0] == one[0])
        other = detections[same]
        height, width = (
            np.clip(np.minimum(one[i + 2], other[:, i + 2]) - np.maximum(one[i], other[:, i]), 0, None) for i in (1, 2)
        )
        areas = [(b[..., 3] - b[..., 1]) * (b[..., 4] - b[..., 2]) for b in (one, other)]
        iou = height * width / (areas[0] + areas[1] - height * width)
        pairs += [(-share, place, int(at)) for share, at in zip(iou.tolist(), same, strict=True) if share >= HIT]
    taken: tuple[set[int], set[int]] = (set(), set())
    for _, finding, detection in sorted(pairs):
        if finding not in taken[0] and detection not in taken[1]:
            taken[0].add(finding)
            taken[1].add(detection)
    return len(taken[0])


def _detected(volume: Volume, threshold: float) -> np.ndarray:
    return boxes(predict(volume.maps, threshold) & volume.brain)
