"""What a search optimises, always on validation slices.

``val_auprc`` needs lesions that somebody drew; ``pseudo`` draws its own (:mod:`adbench.datasets.synthetic_lesions`); ``recon`` needs
no lesion, and rewards a network that copies its input: it tells an untrained network from a trained one, not a good
detector from a bad one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.synthetic_lesions import PseudoParams
from adbench.errors import UserError, unknown
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import SubjectHistograms
from adbench.runner.inference import score_volumes
from adbench.tune.table import Mode

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.methods.base import Method
    from adbench.runner.plan import Data

OBJECTIVES: dict[str, tuple[Mode, str]] = {
    "val_auprc": ("max", "AUPRC over the brain voxels of the labelled validation slices"),
    "pseudo": ("max", "AUPRC on healthy validation slices with synthetic lesions"),
    "recon": ("min", "mean absolute error of the reconstruction of healthy validation slices, in the brain"),
}


def mode_of(objective: str) -> Mode:
    """Whether ``objective`` is to be large or small.

    Raises:
        UserError: there is no such objective.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective][0]


def slices_for(objective: str, data: Data, lesions: PseudoParams) -> SliceSet:
    """The validation slices that ``objective`` looks at; for ``pseudo`` with ``lesions`` in them.

    Raises:
        UserError: there are none, or none with a lesion.
    """
    if objective == "val_auprc":
        if not len(data.threshold) or not data.threshold.lesion_voxels.any():
            raise UserError(
                "The validation split of the test dataset has no lesion to select by: "
                "use --objective pseudo, which draws lesions into healthy validation slices, or recon."
            )
        return data.threshold
    if data.val is None:
        raise UserError(f"--objective {objective} needs healthy validation slices, and the training source has none.")
    return InsertedSet(data.train_store, data.val.rows, lesions) if objective == "pseudo" else data.val


def measure(objective: str, method: Method, slices: SliceSet, ctx: Context) -> float:
    """``objective`` of a method that can score.

    Raises:
        UserError: ``recon`` of a method that makes no reconstruction; scores that are not finite.
    """
    if objective == "recon":
        return _reconstruction_error(method, slices, ctx.device)
    assert isinstance(slices, LabelledSet)
    histograms = SubjectHistograms()
    for scored in score_volumes(method, slices, ctx, "score validation"):
        brain = slices.brains(scored.positions)
        histograms.update(scored.subject, scored.maps[brain], slices.lesions(scored.positions)[brain])
    return Curve(histograms.pooled()).average_precision()


def _reconstruction_error(method: Method, slices: SliceSet, device: str) -> float:
    import torch

    total, voxels = 0.0, 0
    for batch in slices.batches(32):
        moved = batch.to(device)
        with torch.inference_mode():
            recon = method.reconstruct(moved)
        if recon is None:
            raise UserError(f"{method.name} makes no reconstruction: use --objective val_auprc or pseudo.")
        error = (recon.float() - moved.image).abs()[moved.brain]
        total += float(error.double().sum())
        voxels += int(moved.brain.sum())
    value = total / max(voxels, 1)
    if not np.isfinite(value):
        raise UserError(f"{method.name} gave a reconstruction that is not finite.")
    return value
