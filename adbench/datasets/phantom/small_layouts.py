"""Small synthetic datasets in the layouts of real ones: their folders, names, channels and labels.

Heads are ellipsoids of 8 mm voxels, made in a moment; :mod:`adbench.datasets.phantom.layouts` writes phantoms with the true
grids of IXI, ATLAS and BraTS'21.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from adbench.datasets.io import nifti
from adbench.datasets.phantom.layout_table import LAYOUTS

VOXEL, SHAPE = 8.0, (30, 30, 20)
GRID = np.array([[-VOXEL, 0, 0, 116], [0, -VOXEL, 0, 116], [0, 0, VOXEL, -76], [0, 0, 0, 1.0]])  # LPS
COARSE, COARSE_SHAPE = np.diag([10.0, 10.0, 10.0, 1.0]), (24, 24, 16)
COARSE[:3, 3] = (-115, -115, -75)
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


def _shells(number: int, inner: int, outer: int) -> np.ndarray:
    """The lesion with label ``inner`` in its lower half and ``outer`` above."""
    mask = lesion(number)
    mask[..., SHAPE[2] // 2 :] *= outer
    mask[..., : SHAPE[2] // 2] *= inner
    return mask


def ixi(root: Path, n: int = 8, first: int = 0) -> None:
    """``IXI-T1/IXI002-Guys-0828-T1.nii.gz``, here without the skull; ``first`` as in :func:`pddpm_ixi`."""
    for number in range(first, first + n):
        stem = f"IXI{number + 2:03d}-{('Guys', 'HH', 'IOP')[number % 3]}-{800 + number:04d}"
        for modality in ("T1", "T2"):
            nifti.write(root / f"IXI-{modality}" / f"{stem}-{modality}.nii.gz", head(number, modality), GRID)


def atlas(root: Path, n: int = 5, below: str = "ATLAS_2/Training/R001") -> None:
    """``ATLAS_2/Training/R001/sub-r001s001/ses-1/anat/..._T1w.nii.gz`` with its mask, on the true grid; ``below`` is its start."""
    affine, shape = np.eye(4), (197, 233, 189)
    affine[:3, 3] = -98, -134, -72
    for number in range(1, n + 1):
        subject = f"sub-r001s{number:03d}"
        stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
        folders, names = [root / below / subject / "ses-1" / "anat"] * 2, ["_T1w", "_label-L_desc-T1lesion_mask"]
        if not below:  # flat
            folders, names = [root / "Images", root / "Masks"], ["", ""]
        nifti.write(folders[0] / f"{stem}{names[0]}.nii.gz", head(number, "T1", affine, shape), affine)
        nifti.write(folders[1] / f"{stem}{names[1]}.nii.gz", lesion(number, affine, shape), affine)


def brats21(root: Path, n: int = 6, folders: bool = False) -> None:
    """``BraTS2021_00000/BraTS2021_00000_flair.nii.gz``; in copies of Kaggle ``..._flair.nii`` is a folder with the file."""
    for number in range(n):
        stem = f"BraTS2021_{number:05d}"
        images = {name: head(number, name.upper()) for name in ("flair", "t1", "t1ce", "t2")}
        for name, data in {**images, "seg": _shells(number, 1, 4)}.items():
            file = f"{stem}_{name}.nii/{number:05d}_brain_{name}.nii" if folders else f"{stem}_{name}.nii.gz"
            nifti.write(root / stem / file, data, GRID)


def brats23(root: Path, n: int = 6, group: str = "GLI", visits: int = 1) -> None:
    """``BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz``."""
    names = {"t1n": "T1", "t1c": "T1CE", "t2w": "T2", "t2f": "FLAIR"}
    for number in range(n):
        for visit in range(visits):
            stem = f"BraTS-{group}-{number:05d}-{visit:03d}"
            for name, modality in names.items():
                nifti.write(root / stem / f"{stem}-{name}.nii.gz", head(10 * number + visit, modality), GRID)
            nifti.write(root / stem / f"{stem}-seg.nii.gz", _shells(number, 2, 3), GRID)


def _decathlon(root: Path, names: list[str], modalities: list[str], title: str) -> None:
    for number, name in enumerate(names):
        channels = np.stack([head(number, modality) for modality in modalities], axis=-1)
        nifti.write(root / "imagesTr" / f"{name}.nii.gz", channels, GRID)
        nifti.write(root / "labelsTr" / f"{name}.nii.gz", _shells(number, 1, 3), GRID)
    unlabelled = np.stack([head(100, modality) for modality in modalities], axis=-1)
    nifti.write(root / "imagesTs" / "BRATS_600.nii.gz", unlabelled, GRID)
    described = {
        "name": title,
        "modality": dict(enumerate(["T1w" if m == "T1" else "T1gd" if m == "T1CE" else m for m in modalities])),
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    }
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def msd_brain(root: Path, n: int = 6) -> None:
    """``Task01_BrainTumour/imagesTr/BRATS_001.nii.gz`` with four channels."""
    names = [f"BRATS_{number:03d}" for number in range(1, n + 1)]
    _decathlon(root / "Task01_BrainTumour", names, ["FLAIR", "T1", "T1CE", "T2"], "BRATS")


def nnunet(root: Path, n: int = 6) -> None:
    """``imagesTr/case_001_0000.nii.gz``, a file a channel."""
    for number in range(n):
        for channel, modality in enumerate(("FLAIR", "T1")):
            nifti.write(root / "imagesTr" / f"case_{number:03d}_{channel:04d}.nii.gz", head(number, modality), GRID)
        nifti.write(root / "labelsTr" / f"case_{number:03d}.nii.gz", lesion(number), GRID)
    described = {
        "channel_names": {"0": "FLAIR", "1": "T1w"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n,
    }
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def isles22(root: Path, n: int = 6) -> None:
    """``sub-strokecase0001/ses-0001/dwi/..._dwi.nii.gz``, the FLAIR on another grid, the mask in ``derivatives``."""
    for number in range(1, n + 1):
        subject = f"sub-strokecase{number:04d}"
        folder, stem = root / subject / "ses-0001", f"{subject}_ses-0001"
        nifti.write(folder / "anat" / f"{stem}_FLAIR.nii.gz", head(number, "FLAIR", COARSE, COARSE_SHAPE), COARSE)
        for name, modality in (("dwi", "DWI"), ("adc", "ADC")):
            nifti.write(folder / "dwi" / f"{stem}_{name}.nii.gz", head(number, modality), GRID)
        nifti.write(root / "derivatives" / subject / "ses-0001" / f"{stem}_msk.nii.gz", lesion(number), GRID)


def soop(root: Path, n: int = 6) -> None:
    """``sub-1/anat/sub-1_FLAIR.nii.gz``, TRACE on another grid, masks in ``derivatives/lesion_masks``."""
    for number in range(1, n + 1):
        subject = f"sub-{number}"
        for name, modality in (("T1w", "T1"), ("FLAIR", "FLAIR")):
            path = root / subject / "anat" / f"{subject}_{name}.nii.gz"
            nifti.write(path, head(number, modality, COARSE, COARSE_SHAPE), COARSE)
        for name, modality in (("trace", "DWI"), ("adc", "ADC")):
            nifti.write(root / subject / "dwi" / f"{subject}_rec-TRACE_{name}.nii.gz", head(number, modality), GRID)
        masks = root / "derivatives" / "lesion_masks" / subject / "dwi"
        nifti.write(masks / f"{subject}_space-TRACE_desc-lesion_mask.nii.gz", lesion(number), GRID)


def mslub(root: Path, n: int = 6) -> None:
    """``patient01/patient01_FLAIR.nii.gz`` with ``_consensus_gt`` and ``_brainmask``."""
    names = {"FLAIR": "FLAIR", "T1W": "T1", "T1WKS": "T1CE", "T2W": "T2"}
    for number in range(1, n + 1):
        stem = f"patient{number:02d}"
        for name, modality in names.items():
            nifti.write(root / stem / f"{stem}_{name}.nii.gz", head(number, modality), GRID)
        nifti.write(root / stem / f"{stem}_consensus_gt.nii.gz", lesion(number), GRID)
        nifti.write(root / stem / f"{stem}_brainmask.nii.gz", (head(number, "T1") > 0).astype(np.uint8), GRID)
        nifti.write(root / stem / "raw" / f"{stem}_FLAIR.nii.gz", head(number, "FLAIR", COARSE, COARSE_SHAPE), COARSE)


def wmh(root: Path, n: int = 6) -> None:
    """``Utrecht/0/pre/FLAIR.nii.gz`` with ``Utrecht/0/wmh.nii.gz``; label 2 is another disease."""
    for number in range(n):
        folder = root / ("Utrecht", "Singapore", "Amsterdam/GE3T")[number % 3] / str(number)
        for stage in ("pre", "orig"):
            for modality in ("FLAIR", "T1"):
                data = head(number, modality) + (stage == "orig") * (head(number, modality) > 0).astype(np.int16)
                nifti.write(folder / stage / f"{modality}.nii.gz", data, GRID)
        mask = lesion(number)
        mask[8, 14:16, 9] = 2  # on the right, in a slice with a hyperintensity
        mask[8, 14:16, 16] = 2  # and in one without
        nifti.write(folder / "wmh.nii.gz", mask, GRID)


def bids(root: Path, n: int = 8) -> None:
    """OASIS-3 and CamCAN are alike: controls and patients told apart by ``participants.tsv``, repeated runs."""
    rows = ["participant_id\tage\tsex\tgroup"]
    for number in range(n):
        subject = f"sub-{number:03d}"
        rows.append(f"{subject}\t{50 + number}\t{'FM'[number % 2]}\t{('control', 'patient')[number % 2]}")
        folder = root / subject / "ses-d0129" / "anat"
        for run in (1, 2):
            nifti.write(folder / f"{subject}_ses-d0129_run-{run:02d}_T1w.nii.gz", head(10 * number + run, "T1"), GRID)
        if number % 2:
            mask = root / "derivatives" / "masks" / subject / f"{subject}_ses-d0129_label-lesion_mask.nii.gz"
            nifti.write(mask, lesion(10 * number + 1), GRID)
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def msseg(root: Path, n: int = 4) -> None:
    """MSSEG-2016: the patient two folders up, a consensus and seven raters."""
    for number in range(1, n + 1):
        folder = root / f"Center_{number % 2 + 1:02d}_Patient_{number:02d}"
        for modality, name in (("FLAIR", "FLAIR"), ("T1", "T1"), ("T1CE", "GADO")):
            nifti.write(folder / "Preprocessed_Data" / f"{name}_preprocessed.nii.gz", head(number, modality), GRID)
        for rater in range(1, 4):
            nifti.write(folder / "Masks" / f"ManualSegmentation_{rater}.nii.gz", lesion(number + rater), GRID)
        nifti.write(folder / "Masks" / "Consensus.nii.gz", lesion(number), GRID)
        nifti.write(folder / "Masks" / "Brain_Mask.nii.gz", (head(number, "T1") > 0).astype(np.uint8), GRID)


def ucsf_pdgm(root: Path, n: int = 4) -> None:
    """``UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR_bias.nii.gz`` with ``_tumor_segmentation``."""
    for number in range(n):
        stem = f"UCSF-PDGM-{number:04d}"
        for modality, name in (("FLAIR", "FLAIR_bias"), ("T1", "T1_bias"), ("T1CE", "T1c_bias")):
            nifti.write(root / f"{stem}_nifti" / f"{stem}_{name}.nii.gz", head(number, modality), GRID)
        nifti.write(root / f"{stem}_nifti" / f"{stem}_tumor_segmentation.nii.gz", _shells(number, 1, 4), GRID)


def torchio(root: Path, n: int = 4) -> None:
    """``image/{id}_image.nii.gz`` and ``label/{id}_label.nii.gz``, as TorchIO's IXITiny."""
    for number in range(n):
        stem = f"IXI{number:03d}-Guys-{number:04d}"
        nifti.write(root / "image" / f"{stem}_image.nii.gz", head(number, "T1"), GRID)
        nifti.write(root / "label" / f"{stem}_label.nii.gz", (head(number, "T1") > 0).astype(np.uint8), GRID)


def hcp(root: Path, n: int = 4) -> None:
    """``100206/T1w/T1w_acpc_dc_restore_brain.nii.gz`` with ``brainmask_fs``."""
    for number in range(n):
        folder = root / str(100206 + number) / "T1w"
        for modality in ("T1", "T2"):
            nifti.write(folder / f"{modality}w_acpc_dc_restore_brain.nii.gz", head(number, modality), GRID)
        nifti.write(folder / "brainmask_fs.nii.gz", (head(number, "T1") > 0).astype(np.uint8), GRID)


def pddpm_ixi(root: Path, n: int = 8, first: int = 0) -> None:
    """IXI as the code of pDDPM lays it out: ``t2/IXI015-HH-1258_t2.nii.gz`` and ``mask/``, skull-stripped.

    A number is a head in every layout: with another ``first``, these are no heads of a small set that is tested.
    """
    for number in range(first, first + n):
        stem = f"IXI{number:03d}-HH-{1000 + number}"
        nifti.write(root / "t2" / f"{stem}_t2.nii.gz", head(number, "T2"), GRID)
        nifti.write(root / "mask" / f"{stem}_mask.nii.gz", (head(number, "T2") > 0).astype(np.uint8), GRID)


def ixi_bet(root: Path, n: int = 8) -> None:
    """``IXI002-Guys-0800-T1_bet.nii.gz`` with ``_bet_mask`` beside: IXI after FSL's brain extraction."""
    for number in range(n):
        stem = f"IXI{number + 2:03d}-Guys-{800 + number:04d}-T1_bet"
        nifti.write(root / f"{stem}.nii.gz", head(number, "T1"), GRID)
        nifti.write(root / f"{stem}_mask.nii.gz", (head(number, "T1") > 0).astype(np.uint8), GRID)


def slice_folder(root: Path, n: int = 4) -> None:
    """``train/p00-slice_17-FLAIR.png`` with ``-brainmask``, in ``val/`` and ``test/`` with ``-segmentation``: 8-bit, as MAD-AD."""
    for number in range(3 * n):
        split = ("train", "val", "test")[number // n]
        for index in (17,) if split == "train" else (10, 17):
            stem, image = f"p{number:02d}-slice_{index}", _bright(number)[..., index]
            _png(root / split, f"{stem}-FLAIR", image)
            _png(root / split, f"{stem}-brainmask", (image > 0) * 255)
            if split != "train":
                _png(root / split, f"{stem}-segmentation", lesion(number)[..., index] * 255)


def bmad(root: Path, n: int = 4) -> None:
    """``Brain/test/Ungood/{img,label}/00001_60.png``: slices of BraTS'21, FLAIR, 8-bit."""
    for number in range(n):
        _png(root / "Brain" / "train" / "good", f"{number:05d}_17", _bright(number)[..., 17])
        for split, first in (("valid", 100), ("test", 200)):
            for verdict, index in (("good", 17), ("Ungood", 10)):
                folder, name = root / "Brain" / split / verdict, f"{first + number:05d}_{index}"
                _png(folder / "img", name, _bright(first + number)[..., index])
                _png(folder / "label", name, lesion(first + number)[..., index] * 255)


def _png(folder: Path, name: str, data: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rot90(data).astype(np.uint8)).save(folder / f"{name}.png")


def _bright(number: int) -> np.ndarray:
    image = head(number, "FLAIR")
    return np.asarray(image / image.max() * 255)


def write_small(layout: str, root: Path, n: int | None = None) -> list[Path]:
    """Write a small dataset.

    Args:
        layout: a name in :data:`adbench.datasets.phantom.layout_table.LAYOUTS`.
        root: folder, made if need be.
        n: subjects (slice folders: in each role); None: enough for every role.

    Returns:
        The files, sorted.
    """
    known = LAYOUTS[layout]
    write: Callable[..., None] = globals()[known.write]
    many = {} if n is None else {"n": n}
    if known.tar:
        with TemporaryDirectory() as place:
            write(Path(place), **many, **known.how)
            root.mkdir(parents=True, exist_ok=True)
            shutil.make_archive(str(root / "data"), "tar", place)
    else:
        write(root, **many, **known.how)
    return sorted(path for path in root.rglob("*") if path.is_file())
