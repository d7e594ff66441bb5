"""Small synthetic datasets in the layouts of real ones: the folders, names, channels and labels of ``layout_table.yaml``.

Heads are ellipsoids of 8 mm voxels, made in a moment; :mod:`adbench.datasets.phantom.layouts` writes phantoms with the true
grids of IXI, ATLAS and BraTS'21.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from adbench.datasets.io import nifti
from adbench.datasets.phantom.layout_table import LAYOUTS
from adbench.datasets.preprocessing import template

VOXEL, SHAPE = 8.0, (30, 30, 20)
GRID = np.array([[-VOXEL, 0, 0, 116], [0, -VOXEL, 0, 116], [0, 0, VOXEL, -76], [0, 0, 0, 1.0]])  # LPS
COARSE, COARSE_SHAPE = np.diag([10.0, 10.0, 10.0, 1.0]), (24, 24, 16)
COARSE[:3, 3] = (-115, -115, -75)
MNI = np.eye(4)
MNI[:3, 3] = template.ORIGIN
GRIDS = {"coarse": (COARSE, COARSE_SHAPE), "mni": (MNI, template.SHAPE)}
BRIGHTNESS = {"T1": 300, "T2": 260, "FLAIR": 340, "T1CE": 320, "PD": 280, "DWI": 200, "ADC": 420}


def head(number: int, modality: str, affine: np.ndarray = GRID, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(X, Y, Z) int16: one subject in one sequence, skull-stripped, a bright lesion on the left."""
    rng = np.random.default_rng([number, *modality.encode()])
    place = _world(affine, shape)
    brain = ((place / np.array([80, 100, 70])[:, None, None, None]) ** 2).sum(axis=0) < 1
    tissue = (
        BRIGHTNESS[modality] + 0.6 * place[1] + rng.normal(0, 15, shape) + 150 * (lesion(number, affine, shape) > 0)
    )
    return np.asarray((brain * tissue.clip(1)).astype(np.int16))


def lesion(number: int, affine: np.ndarray = GRID, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(X, Y, Z) uint8: 1 within 22 to 28 mm of a point on the left."""
    place = _world(affine, shape) - np.array([-35, 10, 0])[:, None, None, None]
    return np.asarray(((place**2).sum(axis=0) < (22 + number % 7) ** 2).astype(np.uint8))


def _world(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    voxels = np.indices(shape).reshape(3, -1)
    return np.asarray((affine[:3, :3] @ voxels + affine[:3, 3:]).reshape(3, *shape))


def halves(number: int, lower: int, upper: int) -> np.ndarray:
    """The lesion with the label ``lower`` in the lower half of the head and ``upper`` above."""
    mask = lesion(number)
    mask[..., SHAPE[2] // 2 :] *= upper
    mask[..., : SHAPE[2] // 2] *= lower
    return mask


def write_small(
    layout: str, root: Path, n: int | None = None, *, first: int | None = None, **names: int | str | list[str]
) -> list[Path]:
    """Write a small dataset.

    Args:
        layout: a name in :data:`adbench.datasets.phantom.layout_table.LAYOUTS`.
        root: folder, made if need be.
        n: subjects (slice folders: in each role); None: enough for every role.
        first: number of the first subject. A number is a head in every layout.
        names: other values of the layout's own.

    Returns:
        The files, sorted.
    """
    known = LAYOUTS[layout]
    first = known.first if first is None else first
    numbers = range(first, first + (known.n if n is None else n))
    if known.tar:
        with TemporaryDirectory() as place:
            _write(layout, Path(place), numbers, names)
            root.mkdir(parents=True, exist_ok=True)
            shutil.make_archive(str(root / "data"), "tar", place)
    else:
        _write(layout, root, numbers, names)
    return sorted(path for path in root.rglob("*") if path.is_file())


def _write(layout: str, root: Path, numbers: range, names: Mapping[str, int | str | list[str]]) -> None:
    known = LAYOUTS[layout]
    subjects = [_fields(number, {**known.names, **names}) for number in numbers]
    for number, fields in zip(numbers, subjects, strict=True):
        for files in (known.files, known.odd if number % 2 else {}):
            for path, what in _each(files, fields):
                _save(root / path, what, number * known.heads)
    for path, what in known.once.items():
        _save(root / path, what, 0)
    texts = {path: json.dumps(content) for path, content in known.json.items()}
    for path, (header, row) in known.rows.items():
        texts[path] = "\n".join([header, *(row.format(**fields) for fields in subjects)]) + "\n"
    for path, text in texts.items():
        (root / path).write_text(text, encoding="utf-8")


def _fields(number: int, names: Mapping[str, int | str | list[str]]) -> dict[str, int | str]:
    """What stands in the names of the files of one subject."""
    found: dict[str, int | str] = {"number": number}
    for name, value in names.items():
        if isinstance(value, int):
            found[name] = number + value
        else:
            found[name] = value.format(**found) if isinstance(value, str) else value[number % len(value)]
    return found


def _each(files: Mapping[str, str | dict[str, str]], fields: Mapping[str, int | str]) -> Iterator[tuple[str, str]]:
    """(path, what it holds) of every file of one subject."""
    for path, what in files.items():
        for file, one in (what if isinstance(what, dict) else {"": what}).items():
            yield path.format(**fields, file=file), one.format(**fields)


def _save(path: Path, what: str, number: int) -> None:
    """Write what the table says in words of the head ``number``."""
    kind, *words = what.split()
    number += sum(int(word) for word in words if word.startswith("+"))
    affine, shape = next((GRIDS[word] for word in words if word in GRIDS), (GRID, SHAPE))
    labels = [int(word) for word in words if word.isdigit()]
    if kind == "brain":
        data = (head(number, words[0], affine, shape) > 0).astype(np.uint8)
    elif kind == "lesion":
        data = halves(number, *labels) if labels else lesion(number, affine, shape)
    else:
        data = np.stack([head(number, modality, affine, shape) for modality in kind.split(",")], axis=-1)
        data = data if "," in kind else data[..., 0]
    if "raw" in words:
        data = data + (data > 0).astype(data.dtype)
    if "other-disease" in words:  # on the right, in a slice with a hyperintensity and in one without
        data[8, 14:16, 9] = data[8, 14:16, 16] = 2
    if slices := [int(word[1:]) for word in words if word.startswith("@")]:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rot90(data[..., slices[0]] / data.max() * 255).astype(np.uint8)).save(path)
    else:
        nifti.write(path, data, affine)
