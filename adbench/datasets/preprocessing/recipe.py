"""Input of the recipe: its parameters, and one decoded volume with everything that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationInfo, field_validator

from adbench.params import ParamSet, param

if TYPE_CHECKING:
    from adbench.datasets.io.archive import File

RECIPE_VERSION = "2"  # raised when any step may give other pixels
MIN_SQUARE, MAX_SQUARE = 32, 512  # mm, of the side of a slice
WIDE = 256.0  # mm: every head fits
EXTRA = 'pip install "adbench-mri[prepare]"'


class RecipeParams(ParamSet):
    """How a volume becomes slices. An adapter's parameters extend these and may change the defaults."""

    brain: str = param(
        "auto",
        "where the brain mask comes from: given (a mask beside the image), background (every voxel that is not 0), "
        "template (the MNI152 mask after registration), deepbet, hd-bet, or a plug-in's name; auto: given, else "
        "background for images without skull, else the first installed of deepbet and hd-bet, else template",
        source="adbench",
    )
    template_margin: float = param(
        1.0, "how far the template's brain mask is dilated before it is used", unit="mm", source="adbench", ge=0, le=20
    )
    n4: bool = param(
        False,
        "correct the bias field inside the brain (N4)",
        source="Tustison et al. 2010, doi:10.1109/TMI.2010.2046908",
    )
    registration: Literal["none", "rigid", "affine"] = param(
        "none", "how the volume is brought onto the MNI152 2009a 1 mm grid", source="adbench"
    )
    clip_low: float = param(0.5, "percentile inside the brain that becomes 0", unit="%", source="adbench", ge=0, lt=50)
    clip_high: float = param(
        99.5, "percentile inside the brain that becomes 1", unit="%", source="adbench", gt=50, le=100
    )
    min_brain: float = param(
        0.02,
        "axial slices with less brain than this share of the square field of view are left out",
        source="adbench",
        ge=0,
        lt=1,
    )
    slice_step: int = param(1, "keep every n-th axial slice", unit="slices", source="adbench", ge=1)
    field_of_view: float = param(
        WIDE,
        "side of the square that each slice is padded or cropped to; 0: by the data, the smallest multiple of 8 that holds "
        "every brain of the set",
        unit="mm",
        source="adbench",
        ge=0,
        le=MAX_SQUARE,
    )
    size: int = param(256, "side of the prepared square slices", unit="px", source="adbench", ge=16, le=2048)
    mm: float = param(
        0.0,
        "side of a prepared pixel, in place of field_of_view: the square is size times as wide; 0: field_of_view / size",
        unit="mm",
        source="adbench",
        ge=0,
        le=16,
    )
    exclude: tuple[str, ...] = param((), "subjects or cases (by id) to leave out", source="adbench")

    @field_validator("field_of_view")
    @classmethod
    def _holds_something(cls, value: float) -> float:
        if 0 < value < MIN_SQUARE:
            raise ValueError(f"a square is at least {MIN_SQUARE} mm wide; 0 leaves it to the data")
        return value

    @field_validator("mm")
    @classmethod
    def _holds_a_head(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("field_of_view") != WIDE:
            raise ValueError("field_of_view is given too, and both say how large a pixel is: give one of them")
        size = info.data.get("size") or 256  # as for volumes of your own
        if value and not MIN_SQUARE <= value * size <= MAX_SQUARE:
            raise ValueError(
                f"with size {size} the square is {value * size:g} mm wide, not {MIN_SQUARE} to {MAX_SQUARE}"
            )
        return value

    @property
    def square(self) -> float:
        """Side of the square that slices are padded or cropped to, mm; a wide one where the data have not said it yet."""
        return self.mm * self.size if self.mm else self.field_of_view or WIDE

    @property
    def by_data(self) -> bool:
        """Whether the data are to say how wide the square is."""
        return not (self.mm or self.field_of_view)


@dataclass
class RawVolume:
    """One decoded image of one case, and what belongs to it; everything on the image's own grid.

    Attributes:
        case: id of the case, for messages.
        modality: "T1", "T2", ...
        image: (X, Y, Z) of a real type, as stored (scaled by the header). No orientation is assumed.
        affine: (4, 4) voxel to world in mm, RAS+.
        source: the image's file, for messages.
        brain: (X, Y, Z) bool or 0/1, when a mask lies beside the image.
        lesion: (X, Y, Z) integers, when there is a lesion mask.
        lesion_labels: values of ``lesion`` that count; None: every value but 0.
        not_counted: values of ``lesion`` that are neither lesion nor healthy; they count in no case.
        uncovered: (X, Y, Z) bool, where the lesion mask says nothing: beyond its field of view, when it was brought here from
            another grid.
        lesion_ml: volume of the lesion on the grid that it was drawn on, ml; None: it was drawn on this one.
        labels: values above 0 of the lesion masks as they are stored, where ``lesion_labels`` chooses among them.
        remarks: what the adapter did to it, for the manifest.
        skull: False when the provider removed everything but brain and set it to 0.
        companion: the T1 of the same subject and session, for a modality whose brain mask (and registration) come from
            there; on a grid of its own.
    """

    case: str
    modality: str
    image: np.ndarray
    affine: np.ndarray
    source: File | None = None
    brain: np.ndarray | None = None
    lesion: np.ndarray | None = None
    lesion_labels: tuple[int, ...] | None = None
    skull: bool = True
    companion: RawVolume | None = None
    not_counted: tuple[int, ...] = ()
    uncovered: np.ndarray | None = None
    lesion_ml: float | None = None
    labels: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.modality} of case {self.case}{f' ({self.source})' if self.source else ''}"


def lesion_of(mask: np.ndarray, labels: tuple[int, ...] | None, not_counted: tuple[int, ...] = ()) -> np.ndarray:
    """Lesion mask: bool, where ``mask`` holds one of ``labels`` (None: every value but 0) and none of ``not_counted``."""
    flat = mask.T  # x fastest in memory
    lesion = flat != 0 if labels is None else np.isin(flat, labels)
    return (lesion & ~np.isin(flat, not_counted) if not_counted else lesion).T
