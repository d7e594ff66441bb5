"""Draw the pictures of ``docs/failures.md``: methods without training on a small phantom, one fault a picture.

    python docs/failures.py                 runs and pictures; about a minute on one core
    python docs/failures.py --out FOLDER    the pictures somewhere else

Where a fault is not the method's (a wrong mask, scale, window or tilt), it is put into a test slice here; the method, its fit
and its threshold are those of a finished run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from adbench import api
from adbench.datasets.contact_sheet import brain_box
from adbench.datasets.preprocessing.resize import resize_image, resize_mask
from adbench.evaluation.run import Run
from adbench.metrics.curves import Curve

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"n_train": 8, "n_val": 8, "n_test": 10, "slices": 6}
UNEVEN = {**SMALL, "n_test": 7, "kinds": ["tumour", "ms", "ms", "ms", "ms", "ms"]}  # one large lesion among small ones
COLOURS = 96  # of a picture's palette
Panel = tuple[str, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]  # title, values, brain, truth, found


class Trial:
    """A finished run, and what its method says of test slices that were changed."""

    def __init__(
        self, out: Path, method: str, modality: str = "FLAIR", data: Mapping[str, object] = SMALL, **params: object
    ) -> None:
        settings = {"dataset": dict(data), **({method: params} if params else {})}
        self.run: Run = api.run(method, "phantom", set=settings, modality=modality, out=out, device="cpu")[0]
        self.test = self.run.data.test
        self.method = self.run.method()
        self.threshold = float(self.run.record.thresholds["val"])

    def most_lesion(self, kind: str) -> int:
        """Position of the slice with most lesion among the subjects with this kind of it."""
        cell = self.run.cell
        flags = {case.subject: case.flags for case in cell.test.open().discover(cell.modality)}
        of_kind = np.array([kind in flags[self.test.subjects[index]] for index in self.test.subject_index])
        return int(np.argmax(np.where(of_kind, self.test.lesion_voxels, -1)))

    def healthy(self) -> np.ndarray:
        """Positions of the subjects without a lesion."""
        ill = {int(index) for index in self.test.subject_index[self.test.lesion_voxels > 0]}
        return np.flatnonzero([int(index) not in ill for index in self.test.subject_index])

    def slice(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H, W) image, brain and lesion."""
        at = np.array([position])
        return self.test.images(at)[0].astype(np.float32), self.test.brains(at)[0], self.test.lesions(at)[0]

    def score(self, position: int, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """(H, W) map of a changed slice."""
        batch = self.test.batch(np.array([position]))
        changed = replace(batch, image=torch.from_numpy(image)[None, None], brain=torch.from_numpy(brain)[None, None])
        with torch.inference_mode():
            return self.method.score(changed)[0, 0].numpy()

    def panels(self, position: int, said: str, image: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> list[Panel]:
        """The slice with the true contour, and the map with what is found."""
        scores = self.score(position, image, brain)
        return [(said, image, brain, lesion, None), ("map", scores, brain, lesion, (scores >= self.threshold) & brain)]


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """One row: images in grey with the truth in red, maps in colour, all on one scale, with what is found in cyan."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.75 * len(panels), 2.15), dpi=100, layout="constrained")
    scores = np.concatenate([values[brain] for _, values, brain, _, found in panels if found is not None])
    low, high = np.percentile(scores, [1, 99.5])
    for axis, (title, values, brain, truth, found) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        frame = brain_box(brain)
        if found is None:
            axis.imshow(values[frame], cmap="gray", vmin=0, vmax=1)
        else:
            shown = np.where(brain, values, np.nan)[frame]
            axis.imshow(shown, cmap="inferno", vmin=low, vmax=max(high, low + 1e-9))
        for mask, colour in ((truth, "red"), (found, "cyan")):
            if mask is not None and mask[frame].any():
                axis.contour(mask[frame], levels=[0.5], colors=colour, linewidths=0.9)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    _save(figure, path)


def bars(path: Path, run: Run) -> None:
    """AUPRC of all subjects, and without each of them."""
    from matplotlib.figure import Figure

    counts = run.histograms
    ill = [subject for subject in counts if counts[subject].n_positive]
    whole = Curve(counts.pooled()).average_precision()
    others = [counts.subset([one for one in counts if one != subject]) for subject in ill]
    without = [Curve(some.pooled()).average_precision() for some in others]
    figure = Figure(figsize=(7, 2.3), dpi=100, layout="constrained")
    axis = figure.subplots()
    shares = np.array([counts[subject].n_positive for subject in ill]) / sum(
        counts[subject].n_positive for subject in ill
    )
    axis.bar(range(len(ill)), without, color="0.6")
    axis.axhline(whole, color="C0", linewidth=1)
    axis.set_xticks(
        range(len(ill)), [f"{one[-3:]}\n{share:.0%}" for one, share in zip(ill, shares, strict=True)], fontsize=7
    )
    axis.set_ylabel("AUPRC without it", fontsize=8)
    axis.set_title("left-out test subject, with its share of the lesion voxels; blue: all subjects", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    from PIL import Image

    figure.savefig(path, format="png", metadata={"Software": None})  # type: ignore[attr-defined]
    with Image.open(path) as opened:
        reduced = opened.convert("RGB").quantize(COLOURS)
    reduced.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "images" / "failures", help="folder of the pictures"
    )
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        pictures(Path(name), out)


def pictures(runs: Path, out: Path) -> None:
    """Make every picture."""
    bright = Trial(runs, "histeq")
    stroke = bright.most_lesion("stroke")
    image, brain, lesion = bright.slice(stroke)

    wide = ndimage.binary_dilation(brain, iterations=5)
    scalp = np.where(wide & ~brain, np.float32(1), image)
    draw(out / "rim.png", [*bright.panels(stroke, "brain mask", image, brain, lesion),
                           *bright.panels(stroke, "mask 5 px too wide", scalp, wide, lesion)])  # fmt: skip

    window = np.clip(image * np.float32(2.2), 0, 1)
    draw(out / "saturated.png", [*bright.panels(stroke, "as prepared", image, brain, lesion),
                                 *bright.panels(stroke, "cut at 45 % of white", window, brain, lesion)])  # fmt: skip

    healthy = bright.healthy()
    ageing = max(healthy, key=lambda at: _marked(bright, int(at)))
    draw(out / "variant.png", bright.panels(int(ageing), "healthy subject", *bright.slice(int(ageing))))

    small = bright.most_lesion("ms")
    sharp = Trial(runs, "histeq", sigma=0)
    draw(out / "small.png", [*bright.panels(small, "sigma = 3 px", *bright.slice(small)),
                             *sharp.panels(small, "sigma = 0", *sharp.slice(small))])  # fmt: skip

    dark, wrong = Trial(runs, "histeq", "T1"), Trial(runs, "histeq", "T1", polarity="bright")
    at = dark.most_lesion("stroke")
    draw(out / "dark.png", [*wrong.panels(at, "polarity = bright", *wrong.slice(at)),
                            *dark.panels(at, "polarity = dark", *dark.slice(at))])  # fmt: skip

    atlas = Trial(runs, "zscore")
    at = int(healthy[len(healthy) // 4])
    image, brain, lesion = atlas.slice(at)
    side = image.shape[0]
    larger = round(side * 1.2) // 2 * 2
    cut = slice((larger - side) // 2, (larger - side) // 2 + side)
    masks = [resize_mask(mask[None], larger)[0][cut, cut] for mask in (brain, lesion)]
    grown = resize_image(image[None], larger)[0][cut, cut] * masks[0]
    draw(out / "scale.png", [*atlas.panels(at, "voxel size right", image, brain, lesion),
                             *atlas.panels(at, "stated 20 % too large", grown, *masks)])  # fmt: skip

    both, brighter = Trial(runs, "asymmetry", sign="abs"), Trial(runs, "asymmetry", sign="positive")
    draw(out / "mirror.png", [*both.panels(stroke, "sign = abs", *both.slice(stroke)),
                              *brighter.panels(stroke, "sign = positive", *brighter.slice(stroke))])  # fmt: skip

    bars(out / "one-subject.png", Trial(runs, "histeq", data=UNEVEN).run)


def _marked(trial: Trial, position: int) -> int:
    image, brain, _ = trial.slice(position)
    return int(((trial.score(position, image, brain) >= trial.threshold) & brain).sum())


if __name__ == "__main__":
    main()
