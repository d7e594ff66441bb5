"""``itermask``: condition, masks, unmasking and threshold against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from memory_sets import make_set

from adbench.context import Context
from adbench.datasets.slices import SliceBatch
from adbench.errors import UserError
from adbench.methods.common.preprocess import preprocess
from adbench.methods.itermask import IterMask, IterMaskParams, square_clusters, unmask, without_low_frequencies, worst

SMALL = {**IterMask.smoke, "steps": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_condition_has_unit_amplitude_at_low_frequencies_and_keeps_the_rest() -> None:
    image = torch.rand((2, 1, 24, 24), generator=generator(), dtype=torch.float64)
    assert torch.allclose(without_low_frequencies(image, 0.0), image, atol=1e-12)
    found = np.fft.fft2(without_low_frequencies(image, 5.0).numpy()[:, 0])
    before = np.fft.fft2(image.numpy()[:, 0])
    row, column = np.meshgrid(np.fft.fftfreq(24, 1 / 24), np.fft.fftfreq(24, 1 / 24), indexing="ij")
    low = np.hypot(row, column) < 5
    np.testing.assert_allclose(np.abs(found[:, low]), 1, atol=1e-9)
    np.testing.assert_allclose(found[:, low], before[:, low] / np.abs(before[:, low]), atol=1e-9)
    np.testing.assert_allclose(found[:, ~low], before[:, ~low], atol=1e-9)


def test_training_masks_are_clusters_of_squares_in_the_brain() -> None:
    brain = torch.zeros((12, 1, 240, 240), dtype=torch.bool)
    brain[:, :, 40:200, 50:190] = True
    mask = square_clusters(brain, generator())
    assert not bool((mask & ~brain).any())
    share = mask.float().mean(dim=(1, 2, 3)) * 240**2 / (160 * 140)
    assert 0.01 < float(share.min()) < float(share.mean()) < 0.25
    # All is made of squares of at least 4 px, where no edge of the brain cuts them.
    opened = -torch.nn.functional.max_pool2d(-mask.float(), 4, 1)
    again = torch.nn.functional.max_pool2d(torch.nn.functional.pad(opened, (3, 3, 3, 3)), 4, 1) > 0
    inner = (slice(None), slice(None), slice(44, 196), slice(54, 186))
    assert torch.equal(again[inner], mask[inner])
    assert not bool(square_clusters(torch.zeros_like(brain[:2]), generator()).any())


def test_the_worst_pixels_of_the_brain() -> None:
    error = torch.rand((3, 1, 20, 20), generator=generator())
    brain = torch.rand((3, 1, 20, 20), generator=generator(1)) < 0.7
    mask = worst(error, brain, 0.6)
    for one, inside, found in zip(error, brain, mask, strict=True):
        expected = (one > np.quantile(one[inside], 0.4)) & inside
        assert torch.equal(found, expected)
    assert not bool(worst(torch.zeros_like(error), brain, 0.6).any())


def test_unmasking_is_nested_and_stops() -> None:
    image = torch.zeros((3, 1, 10, 10))
    image[0, 0, 2:4, 2:4] = 3.0  # a lesion that is never painted
    start = torch.ones((3, 1, 10, 10), dtype=torch.bool)
    start[2] = False
    masks: list[torch.Tensor] = []

    def paint(mask: torch.Tensor) -> torch.Tensor:
        masks.append(mask)
        out = torch.zeros_like(image)
        out[1, 0, :, min(5, len(masks)) :] = 9.0  # right in one column more with each call, and never in the right half
        return out

    painted, mask, times = unmask(image, start, paint, 0.3)
    assert all(not bool((after & ~before).any()) for before, after in pairwise(masks))
    assert torch.equal(mask[0], image[0] > 0)
    assert torch.equal(mask[1, 0], (torch.arange(10) >= 5).expand(10, 10))
    assert not bool(mask[2].any())
    assert times.tolist() == [2, 6, 1]  # 96 pixels, none; a column five times, none; nothing to lose
    assert float(painted[0].abs().max()) == 0


def test_perfect_networks_stop_at_once_with_an_empty_map() -> None:
    image = torch.rand((2, 1, 12, 12), generator=generator())
    painted, mask, times = unmask(image, torch.ones_like(image, dtype=torch.bool), lambda mask: image, 0.0)
    assert torch.equal(painted, image)
    assert not bool(mask.any())
    assert times.tolist() == [1, 1]


def test_the_cap_on_iterations_and_the_share_that_ends() -> None:
    image = torch.arange(100.0).view(1, 1, 10, 10)
    calls = 0

    def paint(mask: torch.Tensor) -> torch.Tensor:  # each call gets one pixel more right
        nonlocal calls
        calls += 1
        return torch.where(image < calls, image, image + 1)

    full = torch.ones_like(image, dtype=torch.bool)
    assert int(unmask(image, full, paint, 0.5, shrink=0.0, iterations=7)[2]) == 7
    calls = 0
    assert int(unmask(image, full, paint, 0.5, shrink=0.02, iterations=20)[2]) == 1  # 1 of 100 is less than 2 %


def test_the_threshold_is_a_percentile_of_healthy_errors() -> None:
    method = IterMask(IterMask.resolve("tiny", {**SMALL, "percentile": 0.7}), Context(seed=1))
    val = make_set(5, seed=1, name="v")
    report = method.fit(make_set(6), val)
    with torch.inference_mode():
        image, mask, paint = method._started(preprocess(val.batch(slice(None)), 32, True))
        errors = ((image - paint(mask)) ** 2)[mask].double()
    assert len(errors) == pytest.approx(0.6 * int((image != 0).sum()), rel=0.02)
    assert report.best["threshold"] == pytest.approx(np.quantile(errors, 0.7), rel=1e-6)
    assert method.notes() == {"threshold": report.best["threshold"]}


def test_the_map_is_the_squared_error_of_what_was_painted_last() -> None:
    method = IterMask(IterMask.resolve("tiny", {**SMALL, "sigma": 0.0}), Context())
    brain = torch.zeros((2, 1, 32, 32), dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    image = (0.2 + 0.6 * torch.rand(brain.shape, generator=generator())) * brain
    network = {"whole": lambda x: torch.zeros_like(x), "inside": lambda x: torch.full_like(x[:, :1], 0.3)}
    method._network = network  # type: ignore[assignment]
    maps, recon = method.score_and_reconstruct(SliceBatch(image, brain, ("a", "b"), (0, 1), "FLAIR"))
    for one, inside, found, painted in zip(image.numpy(), brain.numpy(), maps.numpy(), recon.numpy(), strict=True):
        low, middle, high = np.quantile(one[inside], [0.25, 0.5, 0.75])
        expected = ((one[inside] - middle) / (high - low) - 0.3) ** 2
        np.testing.assert_allclose(found[inside], expected, atol=1e-4)
        np.testing.assert_allclose(painted[inside], middle + 0.3 * (high - low), atol=1e-4)
        assert not found[~inside].any()


def test_the_two_networks_learn_apart() -> None:
    method = IterMask(IterMask.resolve("tiny", SMALL), Context(seed=1))
    network = method.build()
    image, brain = torch.rand((2, 1, 32, 32)), torch.ones((2, 1, 32, 32), dtype=torch.bool)
    batch = {"image": image, "condition": image, "mask": square_clusters(brain, generator()), "noise": image + 5}
    method.loss(network, batch).backward()
    both = {key: value.grad for key, value in network.named_parameters()}
    network.zero_grad()
    torch.nn.functional.mse_loss(network["whole"](image), image).backward()  # type: ignore[index, operator]
    for key, value in network.named_parameters():
        assert (value.grad is None) == key.startswith("inside")
        assert value.grad is None or torch.allclose(value.grad, both[key], atol=1e-6)


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="image_size must be a multiple of 8"):
        IterMask.resolve("tiny", {"image_size": 36})
    assert isinstance(IterMask.resolve("paper", {}), IterMaskParams)
