"""Slices as small pictures inside the page: PNG data, contours as vectors on top."""

from __future__ import annotations

import base64
import io
from functools import cache

import numpy as np

from adbench.evaluation.pictures import brain_box
from adbench.metrics.score_bins import predict

OUTSIDE = 0  # palette index of what is not brain: transparent


def image_uri(image: np.ndarray) -> str:
    """A grey (H, W) slice in [0, 1] as a PNG data URI."""
    from PIL import Image

    return _uri(Image.fromarray((np.clip(np.nan_to_num(image), 0, 1) * 255).round().astype(np.uint8)))


def map_uri(scores: np.ndarray, brain: np.ndarray, window: tuple[float, float]) -> str:
    """An anomaly map (H, W) as a PNG data URI: inferno between the ends of ``window``, transparent outside the brain."""
    from PIL import Image

    low, high = window
    share = np.clip((np.nan_to_num(scores.astype(np.float64)) - low) / (high - low), 0, 1)
    picture = Image.fromarray(np.where(brain, 1 + np.round(share * 254), OUTSIDE).astype(np.uint8), "P")
    picture.putpalette(_palette())
    return _uri(picture, transparency=OUTSIDE)


def contour(mask: np.ndarray) -> str:
    """The outline of a (H, W) bool mask as an SVG path, pixel centres at whole numbers plus one half."""
    from contourpy import LineType, contour_generator

    if not mask.any():
        return ""
    padded = np.pad(mask.astype(np.float32), 1)
    lines: list[np.ndarray] = contour_generator(z=padded, line_type=LineType.Separate).lines(0.5)  # type: ignore[assignment]
    # Padding moved every index by one, and the centre of pixel 0 lies at 0.5.
    return "".join("M" + "L".join(f"{x - 0.5:.1f} {y - 0.5:.1f}" for x, y in line[:-1]) + "Z" for line in lines)


def found(scores: np.ndarray, brain: np.ndarray, threshold: float | None) -> np.ndarray:
    """(H, W) bool: the voxels of the brain that are predicted at ``threshold``; none without one."""
    return np.zeros_like(brain) if threshold is None else np.asarray(predict(scores, threshold)) & brain


def box(brain: np.ndarray) -> tuple[int, int, int, int]:
    """(x, y, width, height) around (S, H, W) brain masks, so that the page is spent on tissue."""
    rows, columns = brain_box(np.asarray(brain.any(axis=0)))
    height, width = brain.shape[-2:]
    (top, bottom, _), (left, right, _) = rows.indices(height), columns.indices(width)
    return left, top, right - left, bottom - top


def _uri(picture: object, **options: object) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True, **options)  # type: ignore[attr-defined]
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@cache
def _palette() -> bytes:
    from matplotlib import colormaps

    shades = (colormaps["inferno"](np.linspace(0, 1, 255))[:, :3] * 255).round().astype(np.uint8)
    return bytes(3) + shades.tobytes()
