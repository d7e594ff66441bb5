"""Asymmetry: the midline of masks whose midline is known, the mirror, the map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from adbench.context import Context
from adbench.datasets.slices import SliceBatch
from adbench.errors import UserError
from adbench.methods.simple import Asymmetry, midline, mirrored


def egg(tilt: float, x: float, y: float, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the midline of each pixel, and the mask of an egg that is symmetric about it."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    across = (columns - x) * math.cos(tilt) + (rows - y) * math.sin(tilt)
    along = -(columns - x) * math.sin(tilt) + (rows - y) * math.cos(tilt)
    return across, (across / (24 - 0.15 * along)) ** 2 + (along / 38) ** 2 < 1


@pytest.mark.parametrize(("tilt", "x", "y"), [(0, 48, 48), (6, 46, 50), (-8, 52, 47)])
def test_midline_is_found(tilt: float, x: float, y: float) -> None:
    mask = egg(math.radians(tilt), x, y)[1]
    found = midline(torch.from_numpy(mask)[None, None])[0]
    assert math.degrees(float(found[0])) == pytest.approx(tilt, abs=1.5)
    # Both ends of the brain lie on the found line, to a pixel.
    for reach in (-25, 25):
        px, py = x - reach * math.sin(math.radians(tilt)), y + reach * math.cos(math.radians(tilt))
        distance = (px - float(found[1])) * math.cos(float(found[0])) + (py - float(found[2])) * math.sin(
            float(found[0])
        )
        assert abs(distance) < 1.5


def test_upright_mirror_is_a_flip() -> None:
    image = torch.rand(2, 1, 20, 24)
    line = torch.tensor([[0.0, 12.0, 10.0], [0.0, 12.0, 3.0]])
    torch.testing.assert_close(mirrored(image, line), image.flip(-1), atol=1e-5, rtol=0)


def test_mirror_across_a_tilted_line_equals_numpy() -> None:
    across, mask = egg(math.radians(5), 47, 49)
    side = torch.from_numpy(np.where(across > 0, 1.0, 0.0) * mask)[None, None].float()
    line = torch.tensor([[math.radians(5), 47.0, 49.0]])
    expected = np.where(across < 0, 1.0, 0.0) * mask
    assert float(np.abs(mirrored(side, line)[0, 0].numpy() - expected).mean()) < 0.02


def batch_with_lesion(value: float | None) -> tuple[SliceBatch, np.ndarray]:
    across, mask = egg(math.radians(4), 47, 48)
    image = (0.4 + 0.1 * np.cos(across / 5)) * mask
    rows, columns = np.mgrid[:96, :96]
    lesion = (rows - 50) ** 2 + (columns - 60) ** 2 < 25
    image = image if value is None else np.where(lesion, value, image)
    tensors = (torch.from_numpy(part)[None, None] for part in (image.astype(np.float32), mask))
    return SliceBatch(*tensors, ("a",), (3,), "FLAIR"), lesion


def score(batch: SliceBatch, **overrides: Any) -> np.ndarray:
    params = Asymmetry.resolve("tiny", {"presmooth": 2.0, "sigma": 3.0, **overrides})
    return Asymmetry(params, Context()).score(batch)[0, 0].numpy()


def test_symmetric_brain_scores_low_and_a_lesion_high() -> None:
    plain, lesion = batch_with_lesion(0.9)
    maps = score(plain)
    healthy, _ = batch_with_lesion(None)
    assert maps[lesion].mean() > 5 * score(healthy)[lesion].mean()
    assert maps[~plain.brain[0, 0].numpy()].max() < maps[lesion].mean() / 4


def test_sign_tells_the_ill_side_from_the_healthy_one() -> None:
    batch, lesion = batch_with_lesion(0.9)
    other = mirrored(torch.from_numpy(lesion)[None, None].float(), torch.tensor([[math.radians(4), 47.0, 48.0]]))
    healthy_side = other[0, 0].numpy() > 0.5
    absolute, positive, negative = (score(batch, sign=sign) for sign in ("abs", "positive", "negative"))
    assert absolute[healthy_side].mean() == pytest.approx(absolute[lesion].mean(), rel=0.2)
    assert positive[lesion].mean() > 10 * positive[healthy_side].mean()
    assert negative[healthy_side].mean() > 10 * negative[lesion].mean()


def test_an_empty_slice_gives_zeros() -> None:
    empty = torch.zeros(1, 1, 32, 32)
    assert float(score(SliceBatch(empty, empty.bool(), ("a",), (1,), "T1")).max()) == 0.0


@pytest.mark.parametrize("overrides", [{"sign": "left"}, {"max_tilt": 90}, {"sigma": -1}])
def test_bad_parameters_are_named(overrides: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(overrides))):
        Asymmetry.resolve("tiny", overrides)
