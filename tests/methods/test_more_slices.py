"""``benchmarks/more_slices.py``: slices of elsewhere beside those of a dataset, and none where there are none."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.errors import UserError

_spec = util.spec_from_file_location("more_slices", Path(__file__).parents[2] / "benchmarks" / "more_slices.py")
assert _spec is not None
assert _spec.loader is not None
more_slices = util.module_from_spec(_spec)
_spec.loader.exec_module(more_slices)


def _png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    brain = np.zeros((20, 16))
    brain[4:16, 4:12] = 255
    for number in range(3):
        _png(tmp_path / "data" / "train" / f"p{number}-slice_1-FLAIR.png", brain / 2)
        _png(tmp_path / "data" / "train" / f"p{number}-slice_1-brainmask.png", brain)
    return tmp_path / "data"


@pytest.mark.parametrize("shape", [(20, 16), (25, 11), (10, 30)])
def test_an_image_is_cut_and_padded_around_its_centre(shape: tuple[int, int]) -> None:
    image = np.zeros(shape)
    image[shape[0] // 2, shape[1] // 2] = 1
    placed = more_slices.centred(image, (20, 16))
    assert placed.shape == (20, 16)
    assert np.abs(np.argwhere(placed)[0] - (10, 8)).max() <= 1


def test_slices_of_a_folder_are_shown_inside_the_shared_brain(root: Path, tmp_path: Path) -> None:
    _png(tmp_path / "far" / "a.png", np.full((30, 30), 200))
    copy = more_slices.with_more(root, str(tmp_path / "far"), "FLAIR", tmp_path / "out")
    assert len(list((copy / "train").glob("*-FLAIR.png"))) == 4
    with Image.open(copy / "train" / "more0000-slice_0-FLAIR.png") as opened:
        image = np.asarray(opened)
    assert (image > 0).sum() == 12 * 8
    _png(tmp_path / "far" / "b.png", np.full((30, 30), 100))  # other content, another copy
    again = more_slices.with_more(root, str(tmp_path / "far"), "FLAIR", tmp_path / "out")
    assert len(list((again / "train").glob("*-FLAIR.png"))) == 5


def test_a_folder_without_slices_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no PNG slices"):
        more_slices.with_more(root, str(tmp_path / "nowhere"), "FLAIR", tmp_path / "out")
    with pytest.raises(UserError, match="has no brain masks"):
        more_slices.with_more(tmp_path / "nowhere", "phantom", "FLAIR", tmp_path / "out")
