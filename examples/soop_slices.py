"""Write the FLAIR slices of `leaderboards/soop-flair`, patients with stroke, from their public source, and check each of them.

    git clone --depth 1 https://github.com/neurolabusc/StrokeOutcomeOptimizationProjectDemo
    python examples/soop_slices.py StrokeOutcomeOptimizationProjectDemo soop_flair
    adbench run --method histeq --dataset folder --data-root soop_flair --protocol soop-flair --set dataset.name=soop-flair

The Stroke Outcome Optimization Project is OpenNeuro ds004889 (CC0; Absher et al. 2024, doi:10.1038/s41597-024-03667-5). Its authors
brought every FLAIR and lesion to a 157 x 189 x 136 grid of 1 mm in MNI space, extracted the brain, and published a picture a patient
with the axial slice 68 at its left (derived images: BSD-2). These pictures are what is read here:

grey outside the lesion, red over it (half the grey value, so the last bit of all grey values is dropped); lesion = what is red; brain =
largest part brighter than 12, closed by 3 and opened by 2 pixels, its holes filled; nothing is shown or counted outside the brain.

Who trains, validates and is tested is listed in `adbench/results/published/soop-flair.json`, with a hash of every slice, which this
command compares. Slices without lesion are of patients with a stroke elsewhere. 36 patients are tested, drawn by the hash of their names;
with --all the other 329 are written too, for the first table of docs/results.md: results on these are not of the board.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adbench.errors import UserError
from adbench.leaderboard.make_known import data
from adbench.results.known import slices

NAME, MODALITY, WIDTH, DARK = "soop-flair", "FLAIR", 157, 12
FOLDERS = {"train": "train", "threshold": "val", "test": "test", "rest": "test"}  # role -> folder


def read(picture: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The axial slice at the left of a picture.

    Returns:
        (189, 157) uint8 image, 0 outside the brain; bool brain; bool lesion.
    """
    from scipy import ndimage

    with Image.open(picture) as opened:
        red, grey = np.asarray(opened.convert("RGB"))[:, :WIDTH, :2].transpose(2, 0, 1)
    lesion = red != grey
    image = np.where(lesion, 2 * np.minimum(grey, 127), grey & 254).astype(np.uint8)
    tissue = ndimage.binary_opening(ndimage.binary_closing(image > DARK, iterations=3), iterations=2)
    parts, count = ndimage.label(tissue)
    if not count:
        raise UserError(f"{picture} shows no brain: copy it again.")
    brain = ndimage.binary_fill_holes(parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    return image * brain, brain, lesion & brain


def write(clone: Path, out: Path, listed: Mapping[str, Any]) -> int:
    """Write the slices of all listed patients in the layout of the dataset `folder`.

    Args:
        clone: of the repository, with a folder PNG.
        out: folder to write to, new or empty.
        listed: role -> facts, with the names of its patients under "subjects".

    Returns:
        How many slices.

    Raises:
        UserError: a picture is missing or damaged, or ``out`` is not empty.
    """
    if not (clone / "PNG").is_dir():
        raise UserError(f"There is no folder PNG in {clone}: give a clone of StrokeOutcomeOptimizationProjectDemo.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give a new folder.")
    count = 0
    for role, facts in listed.items():
        folder = FOLDERS[role]
        (out / folder).mkdir(parents=True, exist_ok=True)
        for subject in facts["subjects"]:
            picture = clone / f"PNG/r{subject}_lesion.nii.png"
            try:
                image, brain, lesion = read(picture)
            except (OSError, ValueError) as error:
                raise UserError(f"{picture} cannot be read ({error}): pull the clone again.") from None
            masks = {"brainmask": brain, **({} if role == "train" else {"segmentation": lesion})}
            for kind, pixels in {
                MODALITY: image,
                **{k: mask.astype(np.uint8) * 255 for k, mask in masks.items()},
            }.items():
                Image.fromarray(pixels).save(out / folder / f"{subject}-slice_68-{kind}.png")
            count += 1
    return count


def differing(out: Path, listed: Mapping[str, Any]) -> list[str]:
    """The patients in ``out`` whose slices are not the listed ones."""
    with tempfile.TemporaryDirectory() as cache:
        found = data("folder", MODALITY, Path(cache), root=out, name=NAME)
    return [
        subject
        for role, facts in listed.items()
        for subject, hashed in facts["sha256"].items()
        if found["test" if role == "rest" else role]["sha256"].get(subject) != hashed
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="clone of StrokeOutcomeOptimizationProjectDemo")
    parser.add_argument("out", type=Path, help="folder for the slices")
    parser.add_argument("--all", action="store_true", help="write the patients that the board does not test, too")
    args = parser.parse_args()
    try:
        roles = [role for role in FOLDERS if args.all or role != "rest"]
        listed = {role: slices()[NAME][MODALITY][role] for role in roles}
        count = write(args.clone, args.out, listed)
        if odd := differing(args.out, listed):
            raise UserError(f"{len(odd)} of {count} slices are not the published ones, e.g. that of {odd[0]}.")
    except UserError as error:
        sys.exit(str(error))
    print(f"{count} slices in {args.out}, every one the published one.")


if __name__ == "__main__":
    main()
