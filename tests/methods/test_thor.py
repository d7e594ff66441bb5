"""THOR: blend, harmonic mean, the walk with an oracle network, the paper's size, missing weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.common import schedulers
from adbench.methods.thor import PAPER_PARAMETERS, THOR, harmonic_mean, region_mask
from adbench.testing import check_method

SMALL: dict[str, Any] = {
    **THOR.smoke,
    "steps": 2,
    "sigma": 0.0,
    "standardise": False,
    "target": "epsilon",
    "noise": "gaussian",
    "t_max": None,
    "perceptual": "gms",
}


def method(**overrides: Any) -> THOR:
    return THOR(THOR.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def slices(size: int = 32) -> SliceBatch:
    image = torch.full((2, 1, size, size), 0.4)
    image[..., 10:16, 12:18] = 0.9
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 3:-3, 3:-3] = True
    return SliceBatch(image * brain, brain, ("a", "b"), (1, 2), "FLAIR")


def test_region_mask_equals_grey_morphology() -> None:
    maps = np.random.default_rng(0).random((2, 1, 40, 36)).astype(np.float32) ** 6
    for window in (3, 13):
        got = region_mask(torch.from_numpy(maps), window).numpy()
        for k in range(2):
            m = maps[k, 0]
            # Outside the picture nothing is added by a dilation (-inf) and nothing removed by an erosion (+inf).
            closed = ndimage.grey_dilation(m, size=window, mode="constant", cval=-np.inf)
            closed = ndimage.grey_erosion(closed, size=window, mode="constant", cval=np.inf)
            wide = ndimage.grey_dilation(closed, size=window, mode="constant", cval=-np.inf)
            np.testing.assert_allclose(got[k, 0], np.clip((wide + m) / 2, 0, 1), atol=1e-6)


def test_region_mask_by_hand() -> None:
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1.0
    mask = region_mask(maps, 3)[0, 0]
    assert float(mask[4, 4]) == 1.0  # (1 + 1) / 2
    assert float(mask[3, 5]) == 0.5  # (1 + 0) / 2
    assert float(mask[2, 4]) == 0.0


def test_harmonic_mean_by_hand() -> None:
    maps = [torch.tensor([0.5, 1.0, 0.0, 0.2]), torch.tensor([0.25, 1.0, 0.0, 0.0])]
    got = harmonic_mean(maps)
    assert got[0] == pytest.approx(2 / (2 + 4))
    assert got[1] == pytest.approx(1.0)
    assert got[2] == 0.0
    assert got[3] < 1e-5  # one map that sees nothing vetoes the others


def test_presets_have_the_paper_steps() -> None:
    gaussian, simplex = THOR.resolve("paper", {}), THOR.resolve("paper", {"noise": "simplex"})
    assert (gaussian.first, gaussian.marks) == (350, (300, 150, 50))
    assert (simplex.first, simplex.marks) == (250, (200, 150, 100, 50))
    assert (gaussian.timesteps, gaussian.schedule, gaussian.target, gaussian.stride) == (1000, "linear", "epsilon", 1)
    assert (simplex.octaves, simplex.persistence, simplex.frequency) == (6, 0.8, 64.0)
    assert (gaussian.image_size, gaussian.lr, gaussian.batch, gaussian.window) == (128, 1e-4, 16, 13)


def test_paper_network_has_the_published_size() -> None:
    with torch.device("meta"):
        network = THOR(THOR.resolve("paper", {}), Context()).build()
    count = sum(p.numel() for p in network.parameters())
    assert count == PAPER_PARAMETERS
    assert round(count / 1e6, 1) == 18.5


def test_walk_equals_numpy() -> None:
    """The whole inference, redone in NumPy with a network that always sees the same healthy slice."""
    thor = method(perceptual="none", normalise=False, stride=100, timesteps=1000, window=13)
    batch = slices()
    healthy = np.full(batch.image.shape, 0.35, np.float32) * batch.brain.numpy()
    schedule = schedulers.Schedule("linear", 1000)

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return schedule.noise_in(x, torch.from_numpy(2 * healthy - 1), int(t[0]))

    thor._network = oracle  # type: ignore[assignment]
    maps, recon = thor.score_and_reconstruct(batch)
    expected = np.abs(healthy - batch.image.numpy()) * batch.brain.numpy()  # every stored map, hence their mean
    np.testing.assert_allclose(maps.numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(recon.numpy(), healthy, atol=2e-3)


def test_harmonisation_leads_back_to_the_slice_outside_the_region() -> None:
    """After a harmonisation the network is shown M x0 + (1 - M) x under the first noise."""
    thor = method(perceptual="none", stride=350, window=1, harmonise=(200,), start=350)
    batch = slices()
    batch = SliceBatch(batch.image, batch.brain, batch.subjects, batch.slices, batch.modality)
    schedule = schedulers.Schedule("linear", 1000)
    wanted = torch.from_numpy(np.full(batch.image.shape, -0.3, np.float32))
    seen: dict[int, list[torch.Tensor]] = {}

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.setdefault(int(t[0]), []).append(x.clone())
        return schedule.noise_in(x, wanted, int(t[0]))

    thor._network = network  # type: ignore[assignment]
    thor.score(batch)
    assert len(seen[200]) == 2  # before and after the blend
    epsilon = schedule.noise_in(seen[350][0], 2 * batch.image - 1, 350)
    clean, image, brain = (np.full(batch.image.shape, 0.35), batch.image.numpy(), batch.brain.numpy())
    m = np.abs(clean - image) * brain
    m = m / m.max(axis=(1, 2, 3), keepdims=True)
    mask = np.clip((m + m) / 2, 0, 1)  # a window of one px closes and dilates nothing
    blend = mask * clean + (1 - mask) * image
    bar = schedule.at(200)
    expected = np.sqrt(bar) * (2 * blend - 1) + np.sqrt(1 - bar) * epsilon.numpy()
    np.testing.assert_allclose(seen[200][1].numpy(), expected, atol=1e-4)


def test_contract_with_other_parameters() -> None:
    """The defaults are checked with every built-in method in tests/testing."""
    overrides = {"noise": "gaussian", "target": "epsilon", "t_max": None, "perceptual": "ssim", "normalise": True}
    assert not [finding for finding in check_method(THOR, overrides=overrides) if finding.problem]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"harmonise": (400,)}, "harmonise must lie"),
        ({"start": 1000}, "below timesteps"),
        ({"stride": 600}, "stride"),
        ({"t_max": 300}, "below t_max"),
        ({"perceptual": "vgg"}, "perceptual"),
        ({"image_size": 34}, "multiple of 4"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)


def test_absent_weights_are_reported_before_training(train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps stlpips-pytorch"):
        method(perceptual="stlpips").fit(train, None)
