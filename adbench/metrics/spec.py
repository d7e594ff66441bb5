"""What every metric is called, which way is better, and what it is over: the one table that all tables and pages read.

The formulas are in ``docs/metrics.md``. Nothing here imports more than the registry; a plug-in's class is loaded when it
is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adbench.errors import UserError

if TYPE_CHECKING:
    from adbench.metrics.base import Metric

WIDE = 1e-3  # a number whose bins leave more open than this is marked in tables
Scope = Literal["pooled", "subject mean", "lesion", "slice", "reconstruction", "healthy", "subjects"]


@dataclass(frozen=True)
class MetricSpec:
    """The facts of one metric.

    Attributes:
        name: key in records and tables.
        heading: of its column.
        definition: one line.
        scope: what it is taken over: all voxels pooled, a mean over subjects, lesions, slices, reconstructions, or
            healthy tissue. Plug-ins are ratios of sums over whichever subjects they measure: "subjects".
        less_is_better: whether a lower value is the better one.
        oracle: whether it chooses something on the test split.
        unit: of the value; "" for a share or another number without one.
        low: no value is below it.
        high: no value is above it; None: there is no such bound.
        chance: what scores without information get: a number, "prevalence", or None where it depends on the data.
        group: "headline" is measured in every run, "optional" when it is asked for by name.
    """

    name: str
    heading: str
    definition: str
    scope: Scope
    less_is_better: bool = False
    oracle: bool = False
    unit: str = ""
    low: float = 0.0
    high: float | None = 1.0
    chance: float | Literal["prevalence"] | None = None
    group: Literal["headline", "optional"] = "headline"

    @property
    def bounds(self) -> tuple[float, float]:
        """Natural range of the value; either end may be infinite."""
        return self.low, float("inf") if self.high is None else self.high

    @property
    def over_lesions(self) -> bool:
        """Whether it is taken over subjects with lesions, so that their number decides what can be said."""
        return self.scope not in ("reconstruction", "healthy", "subjects")

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "less is better" if self.less_is_better else "more is better"

    def as_dict(self) -> dict[str, str | bool]:
        """What tables in JSON say about a column."""
        names = ("name", "heading", "definition", "less_is_better", "oracle", "unit", "scope", "group")
        return {name: getattr(self, name) for name in names}

    @property
    def column(self) -> str:
        """The heading with its unit, what marks an oracle, and an arrow down where less is better."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.heading}{unit}{' ↓' if self.less_is_better else ''}{' (oracle)' if self.oracle else ''}"


def _asked(name: str, heading: str, definition: str, scope: Scope, **facts: object) -> MetricSpec:
    return MetricSpec(name, heading, definition, scope, group="optional", **facts)  # type: ignore[arg-type]


_CONFORMAL = {
    one.name: one
    for rule, percent in (("conformal05", 5), ("conformal10", 10))
    for one in (
        MetricSpec(
            f"dice@{rule}",
            f"Dice@{rule}",
            f"Mean per-volume Dice at the threshold that {percent} % of healthy subjects may fail at (split-conformal)",
            "subject mean",
        ),
        MetricSpec(
            f"fpr_healthy@{rule}",
            f"Healthy failures @{percent} %",
            f"Share of healthy test subjects above 1 % false-positive voxels, of which at most {percent} % are promised",
            "healthy",
            less_is_better=True,
            chance=percent / 100,
        ),
        MetricSpec(
            f"fa_slice@{rule}",
            f"False-alarm slices @{rule}",
            f"Share of lesion-free slices with a positive where {percent} % of healthy subjects may fail",
            "healthy",
            less_is_better=True,
        ),
        MetricSpec(
            f"fa_scan@{rule}",
            f"False alarms a scan @{rule}",
            f"Predicted components of a lesion-free volume where {percent} % of healthy subjects may fail",
            "healthy",
            less_is_better=True,
            high=None,
        ),
    )
}
_FROC = [
    MetricSpec(
        f"froc@{rate}",
        f"FROC @{rate}",
        f"Lesion recall at {rate} false component{'s' if rate > 1 else ''} a volume",
        "lesion",
    )
    for rate in (1, 2, 4, 8)
]
_TABLE = (
    MetricSpec(
        "auprc",
        "AUPRC",
        "Average precision over all test brain voxels, pooled; its chance level is the lesion prevalence",
        "pooled",
        chance="prevalence",
    ),
    MetricSpec("auroc", "AUROC", "Area under the ROC curve over all test brain voxels, pooled", "pooled", chance=0.5),
    MetricSpec(
        "auprc_subject",
        "AUPRC by subject",
        "Mean over lesion-bearing subjects of per-subject average precision",
        "subject mean",
    ),
    MetricSpec(
        "dice@val",
        "Dice@val",
        "Mean per-volume Dice at the threshold that maximises pooled Dice on validation",
        "subject mean",
    ),
    MetricSpec(
        "dice@fpr1",
        "Dice@fpr1",
        "Mean per-volume Dice at 1 % false-positive voxels on healthy validation subjects",
        "subject mean",
    ),
    MetricSpec(
        "dice@fpr5",
        "Dice@fpr5",
        "Mean per-volume Dice at 5 % false-positive voxels on healthy validation subjects",
        "subject mean",
    ),
    *(_CONFORMAL[f"dice@{rule}"] for rule in ("conformal05", "conformal10")),
    MetricSpec(
        "dice@best",
        "Dice@best",
        "Mean per-volume Dice at the best common threshold, chosen on test: an oracle, for comparison only",
        "subject mean",
        oracle=True,
    ),
    MetricSpec(
        "dice_pooled@best",
        "Pooled Dice@best",
        "Pooled Dice at the best threshold, chosen on test (highest F1): an oracle",
        "pooled",
        oracle=True,
    ),
    MetricSpec(
        "dice@subject_best",
        "Dice@subject_best",
        "Mean of each test subject's own best Dice: an oracle, an upper bound",
        "subject mean",
        oracle=True,
    ),
    *(_CONFORMAL[f"fpr_healthy@{rule}"] for rule in ("conformal05", "conformal10")),
    MetricSpec(
        "lesion_recall@val",
        "Lesion recall",
        "Share of lesions (26-connected) that a predicted component is matched with, at the val threshold",
        "lesion",
    ),
    MetricSpec(
        "lesion_f1@val", "Lesion F1", "F1 of lesions and of predicted components at the val threshold", "lesion"
    ),
    MetricSpec(
        "lesion_iou@val",
        "Lesion IoU",
        "Mean over lesions of the intersection over union with the matched component (0: not found)",
        "lesion",
    ),
    MetricSpec(
        "pq@val",
        "Panoptic quality",
        "Mean intersection over union of the found lesions times lesion_f1@val",
        "lesion",
    ),
    MetricSpec("froc", "FROC", "Mean lesion recall at 1, 2, 4 and 8 false components a volume", "lesion"),
    *_FROC,
    MetricSpec(
        "fa_slice",
        "False-alarm slices",
        "Share of lesion-free slices with any voxel above the val threshold",
        "healthy",
        less_is_better=True,
    ),
    *(_CONFORMAL[f"fa_slice@{rule}"] for rule in ("conformal05", "conformal10")),
    *(_CONFORMAL[f"fa_scan@{rule}"] for rule in ("conformal05", "conformal10")),
    MetricSpec(
        "image_auroc",
        "Image AUROC",
        "Slices with against slices without lesion, by the median of the highest 1 % of scores: ROC area",
        "slice",
        chance=0.5,
    ),
    MetricSpec(
        "image_auprc",
        "Image AUPRC",
        "Slices with against slices without lesion, by the median of the highest 1 % of scores: average precision",
        "slice",
    ),
    MetricSpec(
        "image_auroc@max",
        "Image AUROC (max)",
        "Slices with against slices without lesion, by a slice's highest score: ROC area",
        "slice",
        chance=0.5,
    ),
    MetricSpec(
        "image_auprc@max",
        "Image AUPRC (max)",
        "Slices with against slices without lesion, by a slice's highest score: average precision",
        "slice",
    ),
    MetricSpec(
        "recon_l1",
        "Reconstruction L1",
        "Mean absolute reconstruction error on healthy tissue",
        "reconstruction",
        less_is_better=True,
        high=None,
    ),
    MetricSpec(
        "recon_ssim",
        "Reconstruction SSIM",
        "Structural similarity of the reconstruction on healthy tissue",
        "reconstruction",
        low=-1.0,
    ),
    _asked(
        "alarms@fpr1",
        "False alarms @1 %",
        "Share of lesion-free test voxels above the threshold that 1 % of healthy validation voxels exceed",
        "healthy",
        less_is_better=True,
        chance=0.01,
    ),
    _asked(
        "alarms@fpr5",
        "False alarms @5 %",
        "Share of lesion-free test voxels above the threshold that 5 % of healthy validation voxels exceed",
        "healthy",
        less_is_better=True,
        chance=0.05,
    ),
    _asked(
        "surface_dice@2mm",
        "Surface Dice 2 mm",
        "Share of the surfaces of lesion and prediction within 2 mm of each other, at the val threshold, by volume",
        "subject mean",
    ),
    _asked(
        "hd95",
        "HD95",
        "95th percentile of the distances between the surfaces of lesion and prediction, at the val threshold, by volume",
        "subject mean",
        less_is_better=True,
        unit="mm",
        high=None,
    ),
    _asked(
        "volume_error",
        "Volume error",
        "Mean absolute difference of predicted and true lesion volume, at the val threshold",
        "subjects",
        less_is_better=True,
        unit="ml",
        high=None,
    ),
    _asked(
        "aupro",
        "AUPRO",
        "Area under the mean overlap of lesions against a volume's false-positive rate, up to 0.3",
        "lesion",
        chance=0.15,
    ),
    _asked(
        "ece",
        "Calibration error",
        "Expected calibration error of maps that lie in [0, 1], over 15 bins, by volume",
        "subjects",
        less_is_better=True,
    ),
)
SPECS: dict[str, MetricSpec] = {one.name: one for one in _TABLE}


def of_class(metric: type[Metric] | Metric, name: str = "") -> MetricSpec:
    """The facts that a plug-in's class states about itself.

    Args:
        metric: the class, or an object of it.
        name: that it was found by; "" for its own.
    """
    doc = (metric.__doc__ or "").strip().split("\n")[0]
    own = name or metric.name
    if own in SPECS:
        return SPECS[own]
    return MetricSpec(
        own,
        metric.heading or own,
        doc,
        "subjects",
        less_is_better=bool(metric.less_is_better),
        oracle=bool(metric.oracle),
        unit=metric.unit,
        low=metric.bounds[0],
        high=None if metric.bounds[1] == float("inf") else metric.bounds[1],
        group="optional",
    )


def spec(name: str) -> MetricSpec:
    """The facts of the metric called ``name``: a built-in one, or a plug-in's, whose class is loaded.

    A name that nothing here knows (a record from a machine with other plug-ins) stands for itself, more being better;
    :func:`adbench.results.record.facts` reads what such a record says about it.
    """
    found = SPECS.get(name)
    if found is not None:
        return found
    from adbench.config import registry

    try:
        return of_class(registry.load("metrics", name), name)
    except UserError:
        return MetricSpec(
            name, name, "a metric that is not installed here", "subject mean", high=None, group="optional"
        )
