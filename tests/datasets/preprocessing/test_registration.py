"""N4 and registration against distortions that are known, on the template at 4 mm."""

from __future__ import annotations

import numpy as np
import pytest

from adbench.datasets.geometry import resample
from adbench.datasets.preprocessing import registration, template
from adbench.datasets.preprocessing.pipeline import _crown
from adbench.errors import UserError

pytestmark = pytest.mark.skipif(not registration.installed(), reason="the extra `prepare` is not installed")
STEP = 4
COARSE = template.AFFINE @ np.diag([STEP, STEP, STEP, 1.0])


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return template.brain()[::STEP, ::STEP, ::STEP].astype(np.float32)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return template.mask(0.0)[::STEP, ::STEP, ::STEP]


def test_n4_takes_a_smooth_field_away(brain: np.ndarray, mask: np.ndarray) -> None:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in brain.shape), indexing="ij")
    field = np.exp(0.6 * x - 0.5 * y * z + 0.4 * z).astype(np.float32)
    log = registration.bias_field(brain * field, COARSE, mask)
    assert log.dtype == np.float16
    corrected = registration.unbiased(brain * field, COARSE, log)

    def spread(image: np.ndarray) -> float:
        ratio = np.log(image[mask] / brain[mask])
        return float(ratio.std())

    assert spread(brain * field) > 0.2
    assert spread(corrected) < 0.35 * spread(brain * field)
    np.testing.assert_array_equal(registration.bias_field(brain * field, COARSE, mask), log)


def movement(kind: str) -> np.ndarray:
    """World of the template to world of a head that is turned, shifted and (affine) larger, with a shear."""
    angle = np.deg2rad(9)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    found = np.eye(4)
    found[:3, :3] = turn @ (np.diag([1.06, 0.95, 1.04]) if kind == "affine" else np.eye(3))
    if kind == "affine":
        found[0, 1] += 0.04
    found[:3, 3] = 11, -7, 5
    return found


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_registration_finds_a_known_movement(brain: np.ndarray, mask: np.ndarray, kind: str) -> None:
    """In a head stored from right to left, on voxels of other size: within 0.6 voxels everywhere in the brain."""
    truth = movement(kind)
    shape, affine = (70, 80, 50), np.array([[-3.2, 0, 0, 112], [0, 3.0, 0, -130], [0, 0, 4.0, -90], [0, 0, 0, 1.0]])
    to_brain = np.linalg.inv(COARSE) @ np.linalg.inv(truth) @ affine
    moving = resample(brain, to_brain, shape, linear=True)
    moving += 5 * np.random.default_rng(0).standard_normal(shape).astype(np.float32) * (moving > 0)
    start = np.eye(4)
    start[:3, 3] = 8, -4, 4
    found = registration.register(brain, COARSE, mask, moving, affine, start, kind)  # type: ignore[arg-type]
    points = np.argwhere(mask)[::50] @ COARSE[:3, :3].T + COARSE[:3, 3]
    apart = (points @ found[:3, :3].T + found[:3, 3]) - (points @ truth[:3, :3].T + truth[:3, 3])
    assert np.sqrt((apart**2).sum(axis=1)).max() < 2.4
    if kind == "rigid":
        again = registration.register(brain, COARSE, mask, moving, affine, start, kind)
        np.testing.assert_array_equal(found, again)


def test_a_level_that_leads_away_is_taken_back(
    brain: np.ndarray, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sequences of one head, a millimetre apart, and first steps of many voxels: no worse than where it started."""
    truth = np.eye(4)
    truth[:3, 3] = 1, -0.5, 1
    moving = resample(brain, np.linalg.inv(COARSE) @ np.linalg.inv(truth) @ COARSE, brain.shape, linear=True)
    monkeypatch.setattr(registration, "STRIDE", 12.0)
    found = registration.register(brain, COARSE, mask, moving, COARSE, np.eye(4), "rigid")
    points = np.argwhere(mask)[::50] @ COARSE[:3, :3].T + COARSE[:3, 3]
    apart = (points @ found[:3, :3].T + found[:3, 3]) - (points + truth[:3, 3])
    assert np.sqrt((apart**2).sum(axis=1)).max() <= 1.5


def test_the_crown_of_a_head_ignores_its_neck() -> None:
    """A ball of 90 mm on a thick neck that leans forward."""
    x, y, z = np.meshgrid(*(np.arange(-110, 111, 4.0) for _ in range(2)), np.arange(-200, 121, 4.0), indexing="ij")
    head = ((x - 5) ** 2 + (y + 12) ** 2 + z**2 < 90**2) | ((z < -45) & (np.abs(x) < 60) & (np.abs(y - 40) < 60))
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -110, -110, -200
    np.testing.assert_allclose(_crown(head * 100.0, affine), [5, -12, 88], atol=4)


def test_what_itk_refuses_is_one_sentence(brain: np.ndarray, mask: np.ndarray) -> None:
    far = np.eye(4)
    far[:3, 3] = 5000
    with pytest.raises(UserError, match=r"^Registration failed: .*[^\n]*\. Look at the image"):
        registration.register(brain, COARSE, mask, brain, COARSE, far, "rigid")
