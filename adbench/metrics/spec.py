"""What every metric is called, which way is better, and what it is over: the one table that all code and pages read.

The formulas are in ``docs/metrics.md``. Nothing here imports NumPy, so that ``adbench list metrics`` is fast; the facts of
a plug-in come from its class, see :func:`adbench.metrics.base.spec_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

WIDE = 1e-3  # a number whose bins leave more open than this is marked in tables
FROC_RATES = (1, 2, 4, 8)  # false components a volume
RANKED_BY = "auprc"  # what boards rank by, and what says whether a method tells lesions from the rest at all
HEADLINE = (RANKED_BY, "dice@val")  # what pages show first
Scope = Literal["pooled", "subject mean", "lesion", "slice", "reconstruction", "healthy", "subjects"]
_OVER_LESIONS = ("pooled", "subject mean", "lesion", "slice")
_NO_LESION = "no lesion in the test split"
_NOT_BOTH = "not both kinds of slices, with and without lesion, in the test split"


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
        rule: at whose threshold, chosen on validation, it is measured; "" for none.
        needs_maps: whether it is measured while the maps are streamed; otherwise histograms are enough.
        undefined: the reason that is shown when the test split leaves it undefined.
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
    rule: str = ""
    needs_maps: bool = False
    undefined: str = "no lesion voxel in the whole test split"

    @property
    def bounds(self) -> tuple[float, float]:
        """Natural range of the value; either end may be infinite."""
        return self.low, float("inf") if self.high is None else self.high

    @property
    def over_lesions(self) -> bool:
        """Whether it is computed over subjects with lesions; their number then decides whether there is an interval."""
        return self.scope in _OVER_LESIONS

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "less is better" if self.less_is_better else "more is better"

    @property
    def column(self) -> str:
        """The heading with its unit, what marks an oracle, and an arrow down where less is better."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.heading}{unit}{' ↓' if self.less_is_better else ''}{' (oracle)' if self.oracle else ''}"

    def as_dict(self) -> dict[str, str | bool]:
        """What tables in JSON say about a column."""
        names = ("name", "heading", "definition", "less_is_better", "oracle", "unit", "scope", "group")
        return {name: getattr(self, name) for name in names}


def _mean_dice(rule: str, where: str, *, oracle: bool = False) -> MetricSpec:
    definition = f"Mean per-volume Dice at {where}"
    return MetricSpec(
        f"dice@{rule}", f"Dice@{rule}", definition, "subject mean", oracle=oracle, rule="" if oracle else rule
    )


def _lesions(name: str, heading: str, definition: str, rule: str = "") -> MetricSpec:
    return MetricSpec(name, heading, definition, "lesion", rule=rule, needs_maps=True, undefined=_NO_LESION)


def _healthy(name: str, heading: str, definition: str, rule: str, undefined: str, **more: Any) -> MetricSpec:
    facts: dict[str, Any] = {"less_is_better": True, "rule": rule, "undefined": undefined, **more}
    return MetricSpec(name, heading, definition, "healthy", **facts)


def _images(name: str, heading: str, by: str, area: str, chance: float | None) -> MetricSpec:
    definition = f"Slices with against slices without lesion, by {by}: {area}"
    return MetricSpec(name, heading, definition, "slice", chance=chance, needs_maps=True, undefined=_NOT_BOTH)


def _reconstruction(name: str, heading: str, definition: str, **more: Any) -> MetricSpec:
    why = "the method gives no reconstruction"
    return MetricSpec(name, heading, definition, "reconstruction", needs_maps=True, undefined=why, **more)


def _asked(name: str, heading: str, definition: str, scope: Scope, **more: Any) -> MetricSpec:
    return MetricSpec(name, heading, definition, scope, group="optional", **more)


_FAIL = {"conformal05": 5, "conformal10": 10}  # rule -> % of healthy subjects that may fail
_TOP, _MAX = "the median of the highest 1 % of scores", "a slice's highest score"
_BY_SLICES: tuple[tuple[str, str, str, Scope, dict[str, Any]], ...] = (
    ("dice_pooled", "Pooled Dice", "Dice over all test voxels", "pooled", {}),
    ("dice_slice", "Lesion-slice Dice", "Mean Dice of the slices with a lesion", "slice", {}),
    (
        "fa_slice",
        "False-alarm slices",
        "Share of lesion-free slices with a positive",
        "healthy",
        {"less_is_better": True},
    ),
)
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
    _mean_dice("val", "the threshold that maximises pooled Dice on validation"),
    _mean_dice("fpr1", "1 % false-positive voxels on healthy validation subjects"),
    _mean_dice("fpr5", "5 % false-positive voxels on healthy validation subjects"),
    *(
        _mean_dice(rule, f"the threshold that {percent} % of healthy subjects may fail at (split-conformal)")
        for rule, percent in _FAIL.items()
    ),
    _mean_dice("best", "the best common threshold, chosen on test: an oracle, for comparison only", oracle=True),
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
    *(
        _healthy(
            f"fpr_healthy@{rule}",
            f"Healthy failures @{percent} %",
            f"Share of healthy test subjects above 1 % false-positive voxels, of which at most {percent} % are promised",
            rule,
            "no lesion-free subject in the test split",
            chance=percent / 100,
        )
        for rule, percent in _FAIL.items()
    ),
    _lesions(
        "lesion_recall@val",
        "Lesion recall",
        "Share of lesions (26-connected) that a predicted component is matched with, at the val threshold",
        "val",
    ),
    _lesions("lesion_f1@val", "Lesion F1", "F1 of lesions and of predicted components at the val threshold", "val"),
    _lesions(
        "lesion_iou@val",
        "Lesion IoU",
        "Mean over lesions of the intersection over union with the matched component (0: not found)",
        "val",
    ),
    _lesions(
        "pq@val",
        "Panoptic quality",
        "Mean intersection over union of the found lesions times lesion_f1@val",
        "val",
    ),
    _lesions("froc", "FROC", "Mean lesion recall at 1, 2, 4 and 8 false components a volume"),
    *(
        _lesions(
            f"froc@{rate}",
            f"FROC @{rate}",
            f"Lesion recall at {rate} false component{'s' if rate > 1 else ''} a volume",
        )
        for rate in FROC_RATES
    ),
    *(
        _healthy(
            name,
            heading,
            f"Share of lesion-free slices with {where}",
            rule,
            "every slice has a lesion",
            needs_maps=True,
        )
        for name, heading, where, rule in (
            ("fa_slice", "False-alarm slices", "any voxel above the val threshold", "val"),
            *(
                (
                    f"fa_slice@{rule}",
                    f"False-alarm slices @{rule}",
                    f"a positive where {percent} % of healthy subjects may fail",
                    rule,
                )
                for rule, percent in _FAIL.items()
            ),
        )
    ),
    *(
        _healthy(
            f"fa_scan@{rule}",
            f"False alarms a scan @{rule}",
            f"Predicted components of a lesion-free volume where {percent} % of healthy subjects may fail",
            rule,
            "no lesion-free volume in the test split",
            needs_maps=True,
            high=None,
        )
        for rule, percent in _FAIL.items()
    ),
    _images("image_auroc", "Image AUROC", _TOP, "ROC area", 0.5),
    _images("image_auprc", "Image AUPRC", _TOP, "average precision", None),
    _images("image_auroc@max", "Image AUROC (max)", _MAX, "ROC area", 0.5),
    _images("image_auprc@max", "Image AUPRC (max)", _MAX, "average precision", None),
    _reconstruction(
        "recon_l1",
        "Reconstruction L1",
        "Mean absolute reconstruction error on healthy tissue",
        less_is_better=True,
        high=None,
    ),
    _reconstruction(
        "recon_ssim",
        "Reconstruction SSIM",
        "Structural similarity of the reconstruction on healthy tissue",
        low=-1.0,
    ),
    *(
        _asked(
            f"alarms@fpr{percent}",
            f"False alarms @{percent} %",
            f"Share of lesion-free test voxels above the threshold that {percent} % of healthy validation voxels exceed",
            "healthy",
            less_is_better=True,
            chance=percent / 100,
            rule=f"fpr{percent}",
        )
        for percent in (1, 5)
    ),
    *(
        _asked(f"{name}@{rule}", f"{heading} @{short}", f"{what} {where}", scope, rule=rule, **more)
        for rule, short, where in (
            ("val", "val", "at the val threshold"),
            ("slice05", "5 % of slices", "where 5 % of the lesion-free validation slices may have a positive voxel"),
            ("slice10", "10 % of slices", "where 10 % of the lesion-free validation slices may have a positive voxel"),
        )
        for name, heading, what, scope, more in _BY_SLICES
        if (name, rule) != ("fa_slice", "val")  # which every run has
    ),
    _asked(
        "surface_dice@2mm",
        "Surface Dice 2 mm",
        "Share of the surfaces of lesion and prediction within 2 mm of each other, at the val threshold, by volume",
        "subject mean",
        rule="val",
    ),
    _asked(
        "hd95",
        "HD95",
        "95th percentile of the distances between the surfaces of lesion and prediction, at the val threshold, by volume",
        "subject mean",
        less_is_better=True,
        unit="mm",
        high=None,
        rule="val",
    ),
    _asked(
        "volume_error",
        "Volume error",
        "Mean absolute difference of predicted and true lesion volume, at the val threshold",
        "subjects",
        less_is_better=True,
        unit="ml",
        high=None,
        rule="val",
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
    _asked(
        "box_ap",
        "Box AP",
        "Average precision of boxes around map regions against boxes around lesions, IoU 0.1, by volume",
        "subject mean",
    ),
    *(
        _asked(
            f"box_f1@{rule}",
            f"Box F1 @{rule}",
            f"F1 of boxes around map regions against boxes around lesions, IoU 0.1, pooled, at the {rule} threshold",
            "lesion",
            rule=rule,
        )
        for rule in ("val", "fpr1")
    ),
)
SPECS: dict[str, MetricSpec] = {one.name: one for one in _TABLE}
"""Every built-in metric by its name, in the order of tables: those of every run, then those that are asked for."""
HISTOGRAM_METRICS = tuple(name for name, one in SPECS.items() if one.group == "headline" and not one.needs_maps)
MAP_METRICS = tuple(name for name, one in SPECS.items() if one.group == "headline" and one.needs_maps)
