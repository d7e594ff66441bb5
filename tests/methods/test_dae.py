"""DAE: what it is trained on, its loss, its map, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.common import image_ops, noise
from adbench.methods.common.networks import DenoisingUNet
from adbench.methods.dae import DAE

SMALL: dict[str, Any] = {**DAE.smoke, "steps": 2, "sigma": 0.0, "standardise": False, "flip": False}


def method(**overrides: Any) -> DAE:
    return DAE(DAE.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def slices(size: int = 32) -> SliceBatch:
    image = torch.rand((2, 1, size, size), generator=torch.Generator().manual_seed(0))
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, ("a", "b"), (3, 4), "FLAIR")


def stage_of(dae: DAE, train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> training.Stage:
    seen: list[training.Stage] = []

    def catch(stage: training.Stage, ctx: Context) -> training.StageResult:
        seen.append(stage)
        return training.StageResult(0, [], 0, None, 0.0)

    monkeypatch.setattr(training, "train_stage", catch)
    dae.fit(train, None)
    return seen[0]


def test_coarse_noise_is_added_inside_the_brain_only(train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(method(noise_std=0.3, cells=4), train, monkeypatch)
    batch = stage.draw(torch.arange(12), torch.Generator().manual_seed(5))
    added = batch["noisy"] - batch["image"]
    assert float(added[~batch["brain"]].abs().max()) == 0.0
    expected = noise.coarse(12, (32, 32), torch.Generator().manual_seed(5), cells=4, std=0.3)
    torch.testing.assert_close(added[batch["brain"]], expected[batch["brain"]], atol=1e-6, rtol=0)
    again = stage.draw(torch.arange(12), torch.Generator().manual_seed(5))
    assert torch.equal(batch["noisy"], again["noisy"])


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_equals_numpy(loss: str, train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(method(loss=loss), train, monkeypatch)
    batch = stage.draw(torch.arange(4), torch.Generator().manual_seed(0))
    value = float(stage.loss(lambda x: x, batch, 0))  # type: ignore[arg-type]  # a network that leaves the noise in
    brain = batch["brain"].numpy()
    error = (batch["noisy"] - batch["image"]).numpy()[brain]
    assert value == pytest.approx(float(np.mean(np.abs(error) if loss == "l1" else error**2)), rel=1e-5)


@pytest.mark.parametrize("sign", ["abs", "positive", "negative"])
def test_map_equals_scipy(sign: str) -> None:
    batch = slices()
    dae = method(sign=sign, sigma=2.0)
    dae._network = lambda x: torch.full_like(x, 0.4)  # type: ignore[assignment]
    residual = (batch.image.numpy() - 0.4) * batch.brain.numpy()
    part = {"abs": np.abs(residual), "positive": np.maximum(residual, 0), "negative": np.maximum(-residual, 0)}[sign]
    maps, recon = dae.score_and_reconstruct(batch)
    for k in range(2):
        expected = ndimage.gaussian_filter(part[k, 0], 2.0, mode="constant")
        np.testing.assert_allclose(maps[k, 0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(recon, 0.4 * batch.brain.float())


def test_smoothing_before_the_sign_cancels_noise() -> None:
    residual = torch.ones(1, 1, 32, 32)
    residual[..., ::2, :] = -1
    before = image_ops.signed_map(residual, "abs", 3.0, "signed")[0, 0, 16, 16]
    after = image_ops.signed_map(residual, "abs", 3.0)[0, 0, 16, 16]
    assert float(before) < 1e-3
    assert float(after) > 0.99


def test_standardised_slices_give_equal_maps_whatever_the_scanner() -> None:
    batch = slices()
    dae = method(standardise=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dae._network = DenoisingUNet((8, 16)).eval()
    rescaled = SliceBatch(
        (batch.image * 0.5 + 0.2) * batch.brain, batch.brain, batch.subjects, batch.slices, batch.modality
    )
    torch.testing.assert_close(dae.score(rescaled), dae.score(batch), atol=1e-4, rtol=0)


def test_skips_carry_the_picture_through() -> None:
    for stem in (1, 2):
        network = DenoisingUNet((8, 16, 24), stem)
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 1, 32, 32)
    out = network(x := torch.rand(1, 1, 32, 32, requires_grad=True))
    out[0, 0, 16, 16].backward()
    assert x.grad is not None
    assert float(x.grad[0, 0, 14:18, 14:18].abs().sum()) > 0


def test_mirror_and_move_keep_image_and_mask_together() -> None:
    batch = slices(48)
    image = batch.brain.float() * 0.7
    for change in (image_ops.random_flip, image_ops.random_affine):
        out, brain = change(image, batch.brain, torch.Generator().manual_seed(1))
        assert float(out[~brain].abs().max()) == 0.0
        assert float(out[brain].min()) > 0.3
    flipped, _ = image_ops.random_flip(batch.image, batch.brain, torch.Generator(), probability=1.0)
    assert torch.equal(flipped, batch.image.flip(-1))


def test_learns_to_take_the_noise_away(train: SliceSet) -> None:
    dae = method(steps=80, batch=8, lr=5e-3, noise_std=0.4, cells=4)
    report = dae.fit(train, None)
    losses = [point["loss"] for point in report.curves["denoiser"]]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_size": 50}, "multiple of 4"),
        ({"channels": (8, 12)}, "multiples of 8"),
        ({"cells": 64}, "cells may not"),
        ({"noise_std": 0}, "noise_std"),
        ({"sign": "up"}, "sign"),
        ({"lr": -1}, "lr"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**({"stem": 2} | overrides))
