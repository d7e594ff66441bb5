"""Prepared arrays back to NIfTI files that other tools put in the right place."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import small_brats
from PIL import Image
from scipy import ndimage

from adbench.datasets.export import export_case, export_stack, original_volume, prepared_volume
from adbench.datasets.geometry import Geometry, matrix, resample
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_brats.write(tmp_path_factory.mktemp("brats"), 4)


@pytest.fixture(scope="module")
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return prepare(small_brats.dataset(root, min_brain=0.0), "FLAIR", tmp_path_factory.mktemp("cache"), workers=1)


def seg(root: Path, case: str) -> nibabel.Nifti1Image:
    return nibabel.load(root / case / f"{case}_seg.nii.gz")  # type: ignore[return-value]


def test_the_lesion_comes_back_voxel_for_voxel(root: Path, store: SliceStore, tmp_path: Path) -> None:
    for case in store.cases:
        paths = {
            path.name: path for path in export_case(store, case.id, tmp_path / "Näme mit Leerzeichen", space="original")
        }
        assert sorted(paths) == [f"{case.id}_{name}_space-original.nii.gz" for name in ("FLAIR", "brain", "lesion")]
        source = seg(root, case.id)
        lesion = nibabel.load(paths[f"{case.id}_lesion_space-original.nii.gz"])
        np.testing.assert_array_equal(lesion.affine, source.affine)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(lesion.dataobj), np.asarray(source.dataobj) > 0)  # type: ignore[attr-defined]


def test_both_grids_agree_in_the_world(root: Path, store: SliceStore, tmp_path: Path) -> None:
    """A map of one bright voxel, in either space, lies at the same millimetre."""
    case = store.cases[0]
    rows = len(case.slices)
    map_ = np.zeros((rows, 32, 32), np.float32)
    map_[rows // 2, 12, 20] = 1
    places = []
    for space in ("prepared", "original"):
        image = nibabel.load(export_stack(store, case.id, map_, tmp_path, space=space))  # type: ignore[arg-type]
        data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        assert data.dtype == np.float32
        where = (np.argwhere(data) * data[data > 0][:, None]).sum(axis=0) / data.sum()
        places.append(nibabel.affines.apply_affine(image.affine, where))  # type: ignore[attr-defined]
    np.testing.assert_allclose(places[0], places[1], atol=0.5)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")  # type: ignore[attr-defined]


def test_the_same_map_gives_the_same_bytes(store: SliceStore, tmp_path: Path) -> None:
    case = store.cases[0]
    scores = np.random.default_rng(0).random((len(case.slices), 32, 32), np.float32)
    one, two = (export_stack(store, case.id, scores, tmp_path / name) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_a_registered_map_goes_home() -> None:
    """Through a shift of (6, -3, 9) mm, a resize by two and every second slice, a block finds back to its place."""
    back = np.eye(4)
    back[:3, 3] = 6, -3, 9
    geometry = Geometry(
        original_shape=(60, 60, 60),
        original_affine=matrix(np.array([[-1.0, 0, 0, 60], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        registered_shape=(64, 64, 64),
        registered_affine=matrix(np.eye(4)),
        to_original_world=matrix(back),
        registration="rigid",
        corner=(0, 0),
        side=(64, 64),
        size=32,
        step=2,
    )
    array = np.zeros((20, 32, 32), np.uint8)
    array[4:8, 10:14, 5:9] = 3
    slices = list(range(10, 50, 2))
    volume, affine = prepared_volume(geometry, slices, array)
    assert volume.shape == (32, 32, 20)
    middle = np.argwhere(volume).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = 2 * 6.5 + 0.5, 63 - (2 * 11.5 + 0.5), 10 + 2 * 5.5
    np.testing.assert_allclose(middle, [x, y, z])
    home = original_volume(geometry, slices, array, linear=False)
    assert set(np.unique(home)) <= {0, 3}
    found = np.argwhere(home).mean(axis=0) * [-1, 1, 1] + [60, 0, 0]  # to world: the x axis runs to the left
    np.testing.assert_allclose(found, [x + 6, y - 3, z + 9], atol=1)
    assert (home > 0).sum() == pytest.approx(8 * 4 * 4 * 4, rel=0.15)
    assert geometry.prepared_voxel_ml == pytest.approx(8 / 1000)


def test_what_cannot_be_exported(store: SliceStore, tmp_path: Path) -> None:
    case = store.cases[0].id
    good = np.zeros((len(store.cases[0].slices), 32, 32))
    with pytest.raises(UserError, match=r"array of shape \(1, 2, 3\) cannot be exported, expected \(\d+, 32, 32\)"):
        export_stack(store, case, np.zeros((1, 2, 3)), tmp_path)
    with pytest.raises(
        UserError, match=r"Unknown case of brats21 FLAIR 'BraTS2021_0000'. Did you mean 'BraTS2021_0000\d'"
    ):
        export_stack(store, "BraTS2021_0000", good, tmp_path)
    with pytest.raises(UserError, match=r"no space 'mni' to export to\. Known: prepared, original"):
        export_stack(store, case, good, tmp_path, space="mni")  # type: ignore[arg-type]


def test_slices_without_a_volume(tmp_path: Path) -> None:
    from adbench.datasets.adapters.folder import Folder, FolderParams

    (tmp_path / "png").mkdir()
    for index in range(3):
        Image.fromarray(np.linspace(90 + index, 120, 400).astype(np.uint8).reshape(20, 20)).save(
            tmp_path / f"png/p1-slice_{index}-T1.png"
        )
    store = prepare(Folder(FolderParams(), tmp_path / "png"), "T1", tmp_path)
    case = store.cases[0]
    scores = np.random.default_rng(0).random((3, *store.shape))
    path = export_stack(store, case.id, scores, tmp_path)
    assert nibabel.load(path).shape[:2] == store.shape[::-1]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="come from no volume"):
        export_stack(store, case.id, scores, tmp_path, space="original")


def test_whole_steps_are_copies() -> None:
    """Axes in any order and direction, beyond the edges too: what interpolation gives, bit by bit."""
    rng = np.random.default_rng(0)
    for turn in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            array = rng.normal(size=(5, 6, 7)).round().astype(np.float32)
            move = np.zeros((4, 4))
            move[range(3), turn], move[3, 3] = signs, 1
            ends = zip(signs, array.shape, rng.integers(-3, 4, 3), strict=True)
            move[:3, 3] = [offset if sign > 0 else size - 1 + offset for sign, size, offset in ends]
            shape = (4, 8, 6)
            expected = ndimage.affine_transform(
                array, move[:3, :3], move[:3, 3], shape, order=1, output=np.float32, mode="grid-constant"
            )
            assert resample(array, move, shape, linear=True).tobytes() == expected.tobytes()
