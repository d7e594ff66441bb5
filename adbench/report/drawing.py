"""How charts and slices of a report look: charts as PNG, or as SVG in the colours of the page; slices as PNG inside the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.evaluation.pictures import brain_box
from adbench.metrics.score_bins import predict
from adbench.report.collect import Report
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from PIL.Image import Image

INK, MUTED, GRID, PAPER = "#1c2530", "#5b6672", "#dde2e8", "#fefefe"
SERIES = ("#2463c8", "#d0480b", "#2b8541", "#9534b0", "#c0265a", "#0b7d90", "#84600a", "#5f3ec2", "#4d5966", "#a33b2f")
# What the page calls each colour; report.css gives them a value in light and in dark.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
OUTSIDE = 0  # palette index of what is not brain: transparent
STROKES = ("-", "--", ":", "-.")
Draw = Callable[[Report], "Figure | None"]


def colour(index: int) -> str:
    """The colour of the part at ``index``."""
    return SERIES[index % len(SERIES)]


def stroke(index: int) -> str:
    """Its line style: more parts than colours differ in their dashes."""
    return STROKES[index // len(SERIES) % len(STROKES)]


def styled(draw: Draw, report: Report) -> Figure | None:
    """The chart that ``draw`` makes of ``report`` in :data:`STYLE`; None when it has nothing to show."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return draw(report)


def svg(figure: Figure, name: str, label: str) -> str:
    """``figure`` as inline SVG whose colours are the page's variables.

    Args:
        figure: drawn with :data:`STYLE`.
        name: unique on the page.
        label: what it shows, for those who cannot see it.
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


def png(figure: Figure, path: Path) -> None:
    """Write ``figure`` on white, and fix its layout."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # what follows takes the same layout and need not compute it again


def plain(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis in full, and enough of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if 0 < low < high < 50 * low:  # less than two decades: powers of ten alone would be too few
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def line(index: int) -> dict[str, Any]:
    """Style of the curve of the part at ``index``, as keyword arguments of ``plot``."""
    return {"color": colour(index), "linestyle": stroke(index)}


def mark(index: int, marker: str) -> dict[str, Any]:
    """Style of a marker on the curve of the part at ``index``, as keyword arguments of ``plot``."""
    size = 13 if marker == "*" else 8  # a star of one size with a dot looks smaller
    return {"color": colour(index), "markersize": size, "markeredgecolor": PAPER, "markeredgewidth": 0.8, "zorder": 4}


def point(
    axes: Axes, x: float, y: float, ends: tuple[float | None, float | None], index: int, label: str | None = None
) -> None:
    """A number of the part at ``index`` with its interval, where both ends are known."""
    low, high = ends
    if low is not None and high is not None:
        axes.vlines(x, low, high, color=colour(index), linewidth=2.2, alpha=0.45)
    axes.plot(x, y, "o", markersize=5.5, color=colour(index), label=label)


def shade(axes: Axes, x: np.ndarray, rows: np.ndarray, index: int, crowd: int) -> None:
    """The band between the 2.5 % and 97.5 % quantiles of (R, K) resampled curves.

    Args:
        axes: to draw on.
        x: (K,) abscissae.
        rows: (R, K) ordinates; NaN is left out.
        index: of the part.
        crowd: how many bands share the axes: more are paler.
    """
    low, high = np.nanquantile(rows, [0.025, 0.975], axis=0)
    alpha = 0.18 if crowd <= 2 else 0.1 if crowd <= 4 else 0.05
    axes.fill_between(x, low, high, color=colour(index), alpha=alpha, linewidth=0)


def one(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one panel and its axes' labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def grid_of(count: int, x: str, y: str, *, columns: int = 4, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in at most ``columns`` columns, labelled at their outer sides."""
    from matplotlib.figure import Figure

    columns = 3 if columns > 3 and count in (3, 5, 6, 9) else min(columns, count)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(5.6 if columns == 1 else 11.2, {1: 4.4, 2: 4.0, 3: 3.5, 4: 3.1}[columns] * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    flat = list(grid.flat)
    for axes in flat[count:]:
        axes.remove()
    for place, axes in enumerate(flat[:count]):
        axes.set_xlabel(x)
        if place % columns == 0:
            axes.set_ylabel(y)
    return figure, flat[:count]


def tilt(count: int) -> dict[str, Any]:
    """Style of the tick labels of ``count`` groups: many are tilted."""
    return {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if count > 4 else {}


def legend(axes: Axes, place: Any = "best") -> None:
    """Draw a legend unless it would be empty, or too long to be read."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and len(labels) <= 12:
        axes.legend(loc=place)


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
