"""Whether healthy slices of elsewhere help a method: ``python benchmarks/more_slices.py --data-root soop_flair --more phantom --out more``.

Trains on the healthy slices of the folder dataset alone, and then with those of ``--more`` beside them, from the same seeds and for as
many steps; prints AUPRC on the labelled validation slices, and on test with its interval. ``--more`` is ``phantom`` (the training slices of the
embedded phantom, same modality, enlarged to the same length) or a folder of PNG slices of about the same level and resolution, such as IXI's T1: these are
cut or padded to the size of the dataset's and shown inside the brain that nine of ten of its training slices share.

    python benchmarks/more_slices.py --data-root soop_flair --more phantom --more ixi_t1 --set augment=true --out more
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adbench.errors import UserError


def of_phantom(modality: str, shared: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(H, W) images in [0, 1] and brains of the phantom's healthy training slices, enlarged to the length of ``shared``."""
    from adbench.config import run_config
    from adbench.runner.plan import plan

    flags = {"method": "histeq", "dataset": "phantom", "modality": modality, "seed": "0", "device": "cpu"}
    (planned,) = plan(run_config.cells(run_config.load(None, flags, [])), Path(), run_config.default_cache())
    train = planned.data.train
    batch = train.batch(slice(0, len(train)))
    images, brains = batch.image[:, 0].numpy(), batch.brain[:, 0].numpy()
    factor = length(shared) / float(np.median([length(brain) for brain in brains]))

    def enlarged(image: np.ndarray, how: Image.Resampling) -> np.ndarray:
        size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
        return centred(np.asarray(Image.fromarray(image).resize(size, how)), shared.shape)

    pairs = zip(images, brains.astype(np.float32), strict=True)
    return [
        (enlarged(image, Image.Resampling.BILINEAR), enlarged(brain, Image.Resampling.NEAREST) > 0)
        for image, brain in pairs
    ]


def length(brain: np.ndarray) -> int:
    """Rows from the first to the last one with brain."""
    return int(np.ptp(np.flatnonzero(brain.any(1)))) + 1


def of_folder(folder: Path, shared: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The PNG slices of ``folder`` on the grid of ``shared``, the brain outside which nothing is shown."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("L"), np.float32) / 255
        found.append((centred(image, shared.shape) * shared, shared))
    if not found:
        raise UserError(f"{folder} has no PNG slices: give --more phantom, or a folder with them.")
    return found


def centred(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``image`` cut or padded with 0 around its centre."""
    for axis, size in enumerate(shape):
        less = image.shape[axis] - size
        image = image.take(range(max(less, 0) // 2, max(less, 0) // 2 + min(size, image.shape[axis])), axis)
        pad = [(0, 0), (0, 0)]
        pad[axis] = (max(-less, 0) // 2, max(-less, 0) - max(-less, 0) // 2)
        image = np.pad(image, pad)
    return image


def shared_brain(train: Path) -> np.ndarray:
    """(H, W) pixels that are brain in nine of ten training slices."""
    masks = []
    for path in sorted(train.glob("*-brainmask.png")):
        with Image.open(path) as opened:
            masks.append(np.asarray(opened.convert("L")) > 0)
    if not masks:
        raise UserError(
            f"{train} has no brain masks (*-brainmask.png): give --data-root a folder of slices as of the dataset folder."
        )
    return np.mean(masks, axis=0) >= 0.9


def with_more(root: Path, more: str, modality: str, out: Path) -> Path:
    """A copy of the dataset in ``out`` whose training slices have those of ``more`` beside them.

    Raises:
        UserError: the dataset has no brain masks of training slices, or ``more`` no PNG.
    """
    shared = shared_brain(root / "train")
    added = of_phantom(modality, shared) if more == "phantom" else of_folder(Path(more), shared)
    content = [(np.asarray(image).tobytes(), np.asarray(brain).tobytes()) for image, brain in added]
    key = hashlib.sha256(repr((str(root.resolve()), more, modality)).encode() + b"".join(sum(content, ()))).hexdigest()
    folder = out / f"with-{Path(more).name}-{key[:10]}"
    if not folder.exists():
        made = folder.with_name(folder.name + ".part")
        shutil.rmtree(made, ignore_errors=True)
        for path in sorted(root.rglob("*.png")):
            copy = made / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for number, (image, brain) in enumerate(added):
            stem = made / "train" / f"more{number:04d}-slice_0"
            Image.fromarray((255 * np.clip(image, 0, 1)).astype(np.uint8)).save(f"{stem}-{modality}.png")
            Image.fromarray((255 * brain).astype(np.uint8)).save(f"{stem}-brainmask.png")
        made.rename(folder)
    return folder


def row(run: Any) -> tuple[float, Any]:
    """AUPRC of one run on validation, and the estimate on test."""
    from adbench.metrics.curves import Curve

    return Curve(run.val_histograms.pooled()).average_precision(), run.record.metrics["auprc"]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of slices, as of the dataset folder")
    parser.add_argument(
        "--more", action="append", default=[], help="phantom, or a folder of PNG slices; may be repeated"
    )
    parser.add_argument("--modality", default="FLAIR")
    parser.add_argument("--method", default="dae")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method")
    parser.add_argument("--seeds", type=numbers, default=[0], help="comma-separated")
    parser.add_argument("--out", type=Path, required=True, help="where slices and runs are kept")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    try:
        compare(args)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def compare(args: argparse.Namespace) -> None:
    """Train on each set of slices and print a row for each run."""
    import adbench
    from adbench.config import run_config

    values = {
        key: value for _, key, value in (run_config.parse_assignment(f"{args.method}.{text}") for text in args.set)
    }
    roots = {more: with_more(args.data_root, more, args.modality, args.out) for more in args.more}
    print("| trained on | seed | training slices | validation | test [95 %] |\n|---|--:|--:|--:|--:|")
    for more in ["", *args.more]:
        for run in adbench.run(
            args.method, "folder", modality=args.modality, preset=args.preset, device=args.device,
            data_root=roots.get(more, args.data_root), set={args.method: values}, seed=args.seeds, out=args.out / "runs",
        ):  # fmt: skip
            val, test = row(run)
            name = f"the dataset and {Path(more).name}" if more else "the dataset"
            print(
                f"| {name} | {run.cell.seed} | {len(run.data.train)} | {val:.3f} "
                f"| {test.value:.3f} [{test.low:.3f}, {test.high:.3f}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
