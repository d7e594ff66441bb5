"""The training-free rows and the autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_sets import make_set
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from adbench.context import Context
from adbench.datasets.slices import SliceSet
from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.methods.common import image_ops
from adbench.methods.simple import Constant, HistEq, ZScore
from adbench.utils.compute import to_device

AE_SMALL = {"image_size": 32, "channels": (8, 16), "latent": 8, "steps": 10, "batch": 4}


@pytest.mark.parametrize(
    ("modality", "polarity", "dark"),
    [
        ("FLAIR", "auto", False),
        ("T2", "auto", False),
        ("T1", "auto", True),
        ("T1", "bright", False),
        ("FLAIR", "dark", True),
    ],
)
def test_histeq_is_the_smoothed_rank(train: SliceSet, modality: str, polarity: str, dark: bool) -> None:
    batch = replace(train.batch(slice(0, 3)), modality=modality)
    found = HistEq(HistEq.resolve("tiny", {"polarity": polarity}), Context()).score(batch)
    for image, brain, one in zip(batch.image[:, 0].numpy(), batch.brain[:, 0].numpy(), found[:, 0], strict=True):
        rank = np.zeros_like(image)
        rank[brain] = rankdata(-image[brain] if dark else image[brain], method="max") / brain.sum()
        np.testing.assert_allclose(one, gaussian_filter(rank, 3.0, mode="constant"), atol=1e-5)


def test_zscore_against_numpy(train: SliceSet, tmp_path: Path) -> None:
    params = ZScore.resolve("tiny", {"sigma": 0, "standardise": False, "floor": 0, "sign": "positive", "window": 9})
    method = ZScore(params, Context())
    method.fit(train, None)
    images, brains = train.images().astype(np.float64), train.brains()
    inside = brains.all(axis=0)
    values = images[:, inside]
    whole = images[brains]
    # one pseudo-observation with the mean and variance of the whole brain
    mean = (values.sum(0) + whole.mean()) / (len(values) + 1)
    var = ((values**2).sum(0) + whole.var() + whole.mean() ** 2) / (len(values) + 1) - mean**2
    batch = make_set(2, seed=9).batch(slice(None))
    z = (batch.image[:, 0].numpy()[:, inside] - mean) / np.sqrt(var)
    found = method.score(batch)[:, 0].numpy()
    np.testing.assert_allclose(found[:, inside], np.maximum(z, 0), atol=1e-3)
    assert found[:, ~brains.any(axis=0)].max() == 0
    method.save(tmp_path)
    assert torch.equal(ZScore.load(tmp_path, Context()).score(batch), method.score(batch))


def test_zscore_ignores_gain_and_offset_of_the_scanner(train: SliceSet) -> None:
    method = ZScore(ZScore.resolve("tiny", {}), Context())
    method.fit(train, None)
    batch = train.batch(slice(0, 4))
    other = replace(batch, image=(batch.image * 0.7 + 0.1) * batch.brain)
    assert torch.allclose(method.score(batch), method.score(other), atol=1e-3)


def test_zscore_without_training_slices_is_one_clear_sentence() -> None:
    with pytest.raises(UserError, match="zscore needs healthy training slices"):
        ZScore(ZScore.resolve("tiny", {}), Context()).fit(make_set(0), None)


def test_constant_is_the_brain_mask(train: SliceSet) -> None:
    batch = train.batch(slice(0, 2))
    method = Constant(Constant.resolve("tiny", {}), Context())
    assert method.fit(train, None).steps == 0
    assert torch.equal(method.score(batch), batch.brain.float())


def test_slices_without_brain_score_zero(train: SliceSet) -> None:
    batch = train.batch(slice(0, 2))
    empty = replace(batch, image=torch.zeros_like(batch.image), brain=torch.zeros_like(batch.brain))
    for cls in (HistEq, ZScore, Constant):
        method = cls(cls.resolve("tiny", {}), Context())
        method.fit(train, None)
        assert float(method.score(empty).abs().max()) == 0


def test_autoencoder_learns_saves_and_continues(train: SliceSet, val: SliceSet, tmp_path: Path) -> None:
    params = AE.resolve("tiny", {**AE_SMALL, "steps": 60, "lr": 3e-3})
    method = AE(params, Context(workdir=tmp_path))
    report = method.fit(train, val)
    curve = [point["val_loss"] for point in report.curves["autoencoder"] if "val_loss" in point]
    assert min(curve) < 0.7 * curve[0]
    assert report.steps == 60
    method.save(tmp_path)
    batch = val.batch(slice(None))
    maps, recon = method.score_and_reconstruct(batch)
    assert maps.shape == recon.shape == batch.image.shape
    assert 0 <= float(recon.min()) <= float(recon.max()) <= 1
    assert torch.equal(AE.load(tmp_path, Context()).score(batch), maps)
    assert torch.allclose(maps[2:3], method.score(val.batch(slice(2, 3))), atol=1e-5)
    again = AE(params, Context(workdir=tmp_path))
    assert again.fit(train, val).curves == report.curves
    assert torch.equal(again.score(batch), maps)


def test_autoencoder_refuses_a_size_it_cannot_halve() -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        AE.resolve("base", {"image_size": 120})
    with pytest.raises(UserError, match="latent = 0"):
        AE.resolve("base", {"latent": 0})


def test_a_checkpoint_of_another_shape_is_refused(train: SliceSet, tmp_path: Path) -> None:
    method = AE(AE.resolve("tiny", {**AE_SMALL, "steps": 1}), Context())
    method.fit(train, None)
    method.save(tmp_path)
    card = tmp_path / "method.json"
    card.write_text(card.read_text().replace('"latent": 8', '"latent": 9'))
    with pytest.raises(UserError, match="do not fit ae"):
        AE.load(tmp_path, Context())


def test_blur_equals_scipy() -> None:
    image = torch.rand(2, 1, 30, 21)
    expected = [gaussian_filter(one[0].numpy(), 2.5, mode="constant") for one in image]
    np.testing.assert_allclose(image_ops.gaussian_blur(image, 2.5)[:, 0], expected, atol=1e-6)
    assert image_ops.gaussian_blur(image, 0) is image


@pytest.mark.parametrize("count", [1, 3, 32])
@pytest.mark.parametrize(("size", "sigma"), [((40, 33), 1.5), ((20, 64), 5.0), ((9, 9), 4.0)])
def test_blur_has_the_same_bits_with_images_as_channels(count: int, size: tuple[int, int], sigma: float) -> None:
    image = torch.rand((count, 2, *size), generator=torch.Generator().manual_seed(count)) - 0.3
    kernel = image_ops.gaussian_kernel(sigma)
    flat, radius = image.reshape(-1, 1, *size), len(kernel) // 2
    flat = torch.nn.functional.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    flat = torch.nn.functional.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, radius))
    found = image_ops.gaussian_blur(image, sigma)
    assert torch.equal(found, flat.view_as(image))
    expected = gaussian_filter(image.double().numpy(), (0, 0, sigma, sigma), mode="constant")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_augmentation_keeps_range_background_and_seed() -> None:
    batch = make_set(20).batch(slice(None))
    results = [image_ops.augment(batch.image, batch.brain, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    image, brain = results[0]
    assert float(image[~brain].abs().max()) == 0
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    untouched, mask = image_ops.augment(batch.image, batch.brain, torch.Generator().manual_seed(0), probability=0.0)
    assert torch.allclose(untouched, batch.image, atol=1e-4)
    assert torch.equal(mask, batch.brain)
    areas = brain.sum(dim=(1, 2, 3)) / batch.brain.sum(dim=(1, 2, 3))
    assert float((areas - 1).abs().max()) < 0.15  # a rigid move keeps the area


def test_resizing_does_not_alias() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    assert torch.allclose(image_ops.resize(stripes, (16, 16))[..., 2:-2], torch.tensor(0.5), atol=0.05)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., :30] = True
    assert int(image_ops.resize_mask(mask, (16, 16)).sum()) in (16 * 7, 16 * 8)


def test_quantiles_of_a_batch_are_numpys_and_torchs_to_the_last_bit() -> None:
    draws = torch.Generator().manual_seed(2)
    image = torch.rand((5, 1, 17, 13), generator=draws).half().float()  # as stored: values repeat
    brain = torch.rand(image.shape, generator=draws) < torch.tensor([0.9, 0.5, 0.1, 0.0, 0.0]).view(-1, 1, 1, 1)
    brain[3, 0, 4, 4] = True  # one voxel; the last slice has none
    shares = (0.0, 0.25, 0.5, 0.99)
    found = image_ops.brain_quantiles(image, brain, shares)
    for n in range(4):
        values = image[n][brain[n]]
        assert torch.equal(found[n], torch.quantile(values, torch.tensor(shares)))
        np.testing.assert_allclose(found[n].numpy(), np.quantile(values.numpy(), shares), rtol=1e-6)
    figures = image_ops.standardise(image, brain)[1]
    assert figures[4].tolist() == [0.0, 1.0]
    assert figures[3].tolist() == [float(image[3, 0, 4, 4]), pytest.approx(0.01)]


def test_operations_take_what_plug_ins_give() -> None:
    """Images without channels, tensors with gradients, and a device that is no string."""
    image = torch.rand((3, 9, 8), generator=torch.Generator().manual_seed(1), requires_grad=True)
    for shape in ((3, 9, 8), (9, 8)):
        flat = image.detach().reshape(-1, 9, 8)[: shape[0] if len(shape) == 3 else 1].reshape(shape)
        expected = image_ops.gaussian_blur(flat.reshape(-1, 1, 9, 8), 1.0).reshape(shape)
        torch.testing.assert_close(image_ops.gaussian_blur(flat, 1.0), expected)
    image_ops.brain_quantiles(image[:, None], torch.ones(3, 1, 9, 8, dtype=torch.bool), (0.5,)).sum().backward()
    assert image.grad is not None
    assert to_device(image.detach(), torch.device("cpu")).device.type == "cpu"
