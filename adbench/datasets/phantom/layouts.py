"""Phantoms written as NIfTI in the folders, names, grids and types of IXI, ATLAS v2.0 and BraTS'21.

So that every adapter, every check, the preparation and whole runs can be tried through the real code without the real
data. Grids are those of real files: IXI T1 sagittal and oblique, its T2 and PD axial on another grid; ATLAS on the
MNI152 grid with skull, face removed; BraTS'21 in LPS, skull-stripped, background exactly 0, labels 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.context import Progress
from adbench.datasets.io import nifti
from adbench.datasets.phantom import contrast, head
from adbench.datasets.phantom.dataset import PhantomSubject
from adbench.datasets.phantom.layout_table import LAYOUTS, PHANTOMS
from adbench.datasets.phantom.lesions import Kind
from adbench.datasets.phantom.small_layouts import write_small
from adbench.datasets.phantom.template import PhantomGrid
from adbench.datasets.preprocessing.template import ORIGIN, SHAPE
from adbench.errors import UserError, unknown
from adbench.utils.seeds import derive

if TYPE_CHECKING:
    from adbench.datasets.phantom.anatomy import Anatomy
    from adbench.datasets.phantom.lesions import Pathology

FRAME = PhantomGrid(1.0)
SITES_IXI = (("Guys", 0.55), ("HH", 0.32), ("IOP", 0.13))
COHORTS = ("r001", "r002", "r005", "r009", "r027", "r038", "r052")
BRATS_SHAPE = (240, 240, 155)
BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
BRATS_SHIFT = (-118, 121, 70)  # mm from the template's world to that of SRI24 as the files have it


@dataclass(frozen=True)
class SyntheticCase:
    """One synthetic case.

    Attributes:
        subject: name that the case is drawn from.
        stem: of its files.
        folder: below the output folder.
        seed: the user's.
    """

    subject: str
    stem: str
    folder: str
    seed: int


def synthesise(
    layout: str, n: int, out: Path, *, seed: int = 0, workers: int = 1, progress: Progress | None = None
) -> list[Path]:
    """Write ``n`` synthetic subjects below ``out``; files of phantoms that are there already are kept.

    Args:
        layout: a name in :data:`LAYOUTS`.
        n: subjects. ATLAS gets ``n // 5`` more without masks in ``Testing``.
        out: folder, made if need be.
        seed: of phantoms: the same seed gives the same bytes, whatever ``workers``.
        workers: processes.
        progress: receives the number of finished cases.

    Returns:
        The files, sorted.

    Raises:
        UserError: unknown layout, a seed for a small one, or ``out`` is a file.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    out, progress = Path(out), progress or Progress()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    if layout not in _PHANTOMS:
        if seed:
            raise UserError(
                f"The layout {layout} has small heads that are always the same: --seed is for {', '.join(PHANTOMS)}."
            )
        return write_small(layout, out, n)
    list_jobs, write_case = _PHANTOMS[layout]
    jobs = list(list_jobs(n, seed))
    folders = [out / job.folder for job in jobs]
    written: list[Path] = []
    with ExitStack() as stack:
        each: Any = map
        if workers > 1:
            spawn = get_context("spawn")
            each = stack.enter_context(ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn)).map
        for done, files in enumerate(each(write_case, jobs, folders), 1):
            written += files
            progress.update(f"synthetic {layout}", done, len(jobs))
    return sorted(written)


def _drawn(job: SyntheticCase, kind: Kind | None) -> tuple[Anatomy, Pathology]:
    return PhantomSubject(job.seed, job.subject, kind).draw(FRAME)


def _rng(job: SyntheticCase, *names: object) -> np.random.Generator:
    return np.random.default_rng(derive(job.seed, "layout", job.subject, *names))


def _signal(job: SyntheticCase, anatomy: Anatomy, pathology: Pathology, modality: str) -> np.ndarray:
    return contrast.tissue_signal(_rng(job, "scan", modality), anatomy, pathology, modality)


# -- IXI -----------------------------------------------------------------------------------------------------------------


def _ixi_jobs(n: int, seed: int) -> Iterator[SyntheticCase]:
    rng = np.random.default_rng(derive(seed, "layout", "ixi"))
    number = 0
    for index in range(n):
        number += int(rng.integers(1, 4)) if n < 200 else 1  # the real numbers have gaps too
        site = rng.choice([name for name, _ in SITES_IXI], p=[share for _, share in SITES_IXI])
        stem = f"IXI{number:03d}-{site}-{int(rng.integers(1, 2200)):04d}"
        yield SyntheticCase(f"ixi-{index:04d}", stem, "", seed)


def _rotation(rng: np.random.Generator, pitch: float, spread: float) -> np.ndarray:
    """A rotation by about ``pitch`` degrees around the left-right axis and about ``spread`` around the others."""
    from scipy.spatial.transform import Rotation

    angles = [pitch + rng.normal(0, spread), rng.normal(0, spread), rng.normal(0, spread)]
    return np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())


def _grid(
    rng: np.random.Generator,
    axes: np.ndarray,
    zooms: tuple[float, float, float],
    shape: tuple[int, int, int],
    centre: tuple[float, float, float],
    pitch: float,
) -> np.ndarray:
    """Affine of a scanner's grid.

    Args:
        rng: source of the obliqueness.
        axes: (3, 3), column i is the direction in RAS of the stored axis i before tilting.
        zooms: voxel size, mm.
        shape: voxels.
        centre: of the field of view, mm.
        pitch: mean tilt around the left-right axis, degrees.
    """
    matrix = _rotation(rng, pitch, 1.5) @ axes * zooms
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.asarray(centre) + rng.normal(0, 4, 3) - matrix @ ((np.asarray(shape) - 1) / 2)
    return affine


_PSR = np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], float)  # sagittal: to posterior, to superior, to the right
_LPS = np.diag([-1.0, -1, 1])  # axial


def _ixi(job: SyntheticCase, folder: Path) -> list[Path]:
    from scipy import ndimage

    paths = {m: folder / f"IXI-{m}" / f"{job.stem}-{m}.nii.gz" for m in ("T1", "T2", "PD")}
    if all(path.exists() for path in paths.values()):
        return list(paths.values())
    anatomy, pathology = _drawn(job, None)
    whole = head.grow(_rng(job, "head"), anatomy, below=76, front=24)
    rng = _rng(job, "scanner")
    pose = np.eye(4)  # where the head lies in the scanner
    pose[:3, :3] = _rotation(rng, float(rng.normal(-3, 3)), 2.5)
    pose[:3, 3] = rng.normal((0, 12, -8), 6)
    sagittal = (256, 256, 150 if "IOP" not in job.stem else 146)
    grids = {"T1": (sagittal, _grid(rng, _PSR, (0.9375, 0.9375, 1.2), sagittal, (0, 0, -10), 8.0))}
    axial = (256, 256, 130)
    grids["T2"] = grids["PD"] = (axial, _grid(rng, _LPS, (0.9375, 0.9375, 1.25), axial, (0, 0, 0), -5.0))
    gain = float(rng.uniform(350, 900))
    origin = np.eye(4)
    origin[:3, 3] = whole.origin
    for modality, path in paths.items():
        if path.exists():
            continue
        shape, affine = grids[modality]
        moved = pose.copy()
        if modality != "T1":  # the subject moves a little between the acquisitions; T2 and PD are one
            between = _rng(job, "motion")
            moved[:3, :3] = _rotation(between, 0, 0.4) @ moved[:3, :3]
            moved[:3, 3] += between.normal(0, 0.6, 3)
        signal = whole.signal(modality, anatomy, _signal(job, anatomy, pathology, modality))
        back = np.linalg.inv(moved @ origin) @ affine
        scan = ndimage.affine_transform(signal, back[:3, :3], back[:3, 3], output_shape=shape, order=1, cval=0.0)
        noise = _rng(job, "noise", modality)
        scan = contrast.add_noise(scan, float(noise.uniform(0.015, 0.03)), noise)
        nifti.write(path, (scan * gain).round().clip(0, 32767).astype(np.int16), affine, codes=(1, 1))
    return list(paths.values())


# -- ATLAS ---------------------------------------------------------------------------------------------------------------


def _atlas_jobs(n: int, seed: int) -> Iterator[SyntheticCase]:
    numbers = dict.fromkeys(COHORTS, 0)
    rng = np.random.default_rng(derive(seed, "layout", "atlas"))
    for index in range(n + n // 5):
        cohort = str(rng.choice(COHORTS)) if n > len(COHORTS) else COHORTS[index % len(COHORTS)]
        numbers[cohort] += 1
        stem = f"sub-{cohort}s{numbers[cohort]:03d}"
        part = "Training" if index < n else "Testing"
        folder = f"ATLAS_2/{part}/{cohort.upper()}/{stem}/ses-1/anat"
        yield SyntheticCase(f"atlas-{index:04d}", stem, folder, seed)


def _atlas(job: SyntheticCase, folder: Path) -> list[Path]:
    stem = f"{job.stem}_ses-1_space-MNI152NLin2009aSym"
    image, mask = folder / f"{stem}_T1w.nii.gz", folder / f"{stem}_label-L_desc-T1lesion_mask.nii.gz"
    paths = [image] if "Testing" in job.folder else [image, mask]
    if all(path.exists() for path in paths):
        return paths
    anatomy, pathology = _drawn(job, "stroke")
    whole = head.grow(_rng(job, "head"), anatomy, front=11)
    signal = whole.signal("T1", anatomy, _signal(job, anatomy, pathology, "T1"))
    y, z = (np.arange(signal.shape[axis], dtype=np.float32) + whole.origin[axis] for axis in (1, 2))
    face = (y[:, None] - 0.55 * z[None, :] > 62) & (
        z[None, :] < 0
    )  # as a defacing tool cuts: forward of a slanted plane
    noise = _rng(job, "noise")
    scan = contrast.add_noise(signal, float(noise.uniform(0.012, 0.025)), noise)
    scan[:, face] = np.where(whole.brain[:, face], scan[:, face], 0)
    affine = np.eye(4)
    affine[:3, 3] = ORIGIN
    start = [round(own - low) for own, low in zip(whole.origin, ORIGIN, strict=True)]
    scaled = (np.rint(scan * 1440) / 20).clip(0, 100).astype(np.float32)  # 0 to 100 in steps of .05
    nifti.write(image, _placed(scaled, SHAPE, start), affine, codes=(4, 4))
    if mask in paths:
        start = [round(low - o) for (low, _), o in zip(FRAME.bounds, ORIGIN, strict=True)]
        nifti.write(mask, _placed(anatomy.volume(pathology.mask).astype(np.uint8), SHAPE, start), affine, codes=(4, 4))
    return paths


def _placed(data: np.ndarray, shape: tuple[int, ...], start: list[int]) -> np.ndarray:
    """``data`` in a volume of zeros of ``shape``, its first voxel at ``start``; what does not fit is cut off."""
    volume = np.zeros(shape, data.dtype)
    into, out_of = [], []
    for size, room, first in zip(data.shape, shape, start, strict=True):
        low, high = max(first, 0), min(first + size, room)
        into.append(slice(low, high))
        out_of.append(slice(low - first, high - first))
    volume[tuple(into)] = data[tuple(out_of)]
    return volume


# -- BraTS'21 ------------------------------------------------------------------------------------------------------------


def _brats_jobs(n: int, seed: int) -> Iterator[SyntheticCase]:
    rng = np.random.default_rng(derive(seed, "layout", "brats21"))
    number = -1
    for index in range(n):
        number += 1 + int(rng.random() < 0.25) * int(rng.integers(1, 3))
        stem = f"BraTS2021_{number:05d}"
        folder = f"RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/{stem}"
        yield SyntheticCase(f"brats21-{index:04d}", stem, folder, seed)


def _brats(job: SyntheticCase, folder: Path) -> list[Path]:
    names = {"T1": "t1", "T1CE": "t1ce", "T2": "t2", "FLAIR": "flair", "": "seg"}
    paths = {modality: folder / f"{job.stem}_{name}.nii.gz" for modality, name in names.items()}
    if all(path.exists() for path in paths.values()):
        return list(paths.values())
    anatomy, pathology = _drawn(job, "tumour")
    for modality, path in paths.items():
        if path.exists():
            continue
        if modality:
            noise = _rng(job, "noise", modality)
            signal = _signal(job, anatomy, pathology, modality)
            scan = contrast.add_noise(signal, float(noise.uniform(*contrast.CONTRASTS[modality].noise)), noise)
            gain = noise.uniform(300, 1500)
            values = (scan * gain).round().clip(1, 32767).astype(np.int16)
        else:
            values = np.where(pathology.mask, 2, 0).astype(np.uint8)
            if pathology.enhancing is not None and pathology.necrotic is not None:
                values[pathology.mask & (pathology.enhancing > 0.5)] = 4
                values[pathology.mask & pathology.necrotic] = 1
        nifti.write(path, _to_brats(anatomy.volume(values)), BRATS_AFFINE, codes=(2, 0) if modality else (1, 1))
    return list(paths.values())


def _to_brats(volume: np.ndarray) -> np.ndarray:
    """A RAS volume on the phantom's frame as BraTS'21 stores it."""
    first = np.array([low for low, _ in FRAME.bounds]) + BRATS_SHIFT  # world of the first voxel
    last = first + np.array(volume.shape) - 1
    start = [round(-last[0]), round(239 - last[1]), round(first[2])]
    return _placed(volume[::-1, ::-1], BRATS_SHAPE, start)


_PHANTOMS: dict[
    str, tuple[Callable[[int, int], Iterator[SyntheticCase]], Callable[[SyntheticCase, Path], list[Path]]]
] = {
    "ixi": (_ixi_jobs, _ixi),
    "atlas": (_atlas_jobs, _atlas),
    "brats21": (_brats_jobs, _brats),
}
