"""Drawing for the page of a report: charts as SVG in its colours, slices as embedded PNG."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.datasets.contact_sheet import brain_box
from adbench.metrics.plots import GRID, INK, MUTED, PAPER, SERIES, STYLE
from adbench.metrics.score_bins import predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# What the page calls each colour; report.css gives them a value in light and in dark.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES)}
OUTSIDE = 0  # palette index of what is not brain: transparent


def svg(figure: Figure, name: str, label: str) -> str:
    """``figure``, drawn with :data:`STYLE`, as inline SVG whose colours are the page's variables; ``name`` is unique on
    the page, ``label`` for those who cannot see it.
    """
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"adbench-{name}"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+px) 'DejaVu Sans'", r"font-size: \1", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0], body)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    return f'<svg xmlns="http://www.w3.org/2000/svg" {view[0]} role="img" aria-label="{escape(label)}">{rest.strip()}'


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


def _uri(picture: Image, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@cache
def _palette() -> bytes:
    from matplotlib import colormaps

    shades = (colormaps["inferno"](np.linspace(0, 1, 255))[:, :3] * 255).round().astype(np.uint8)
    return bytes(3) + shades.tobytes()
