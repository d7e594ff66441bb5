"""MAD-AD against plain NumPy, closed forms and published figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_sets import SMALL, make_set

from adbench.context import Context, Progress
from adbench.datasets.slices import SliceSet
from adbench.errors import UserError
from adbench.methods.base import FitReport
from adbench.methods.madad import diffusion
from adbench.methods.madad.autoencoder import Encoded, Healthy, Latents
from adbench.methods.madad.fitting import filling, healthy_latents, mask_figures, set_to_zero, zeroed_by_authors
from adbench.methods.madad.method import MADAD
from adbench.methods.madad.params import UNET_SIZES, MADADParams

ALPHAS = diffusion.alphas_cumprod()


def test_schedule_is_the_published_one() -> None:
    listed = [1, 0.972, 0.899, 0.787, 0.647, 0.494, 0.341, 0.203, 0.094, 0.024, 2e-5]
    assert ALPHAS.tolist() == pytest.approx(listed, abs=6e-4)
    assert float(ALPHAS[-1]) == pytest.approx(2e-5, rel=0.3)


def test_q_sample_noises_where_the_mask_is_one() -> None:
    rng = np.random.default_rng(0)
    z0, noise = rng.normal(size=(2, 3, 2, 4, 4)).astype(np.float32)
    mask = (rng.random((3, 1, 4, 4)) < 0.5).astype(np.float32)
    t = np.array([1, 5, 10])
    a = ALPHAS.numpy()[t][:, None, None, None]
    expected = np.where(mask > 0, np.sqrt(a) * z0 + np.sqrt(1 - a) * noise, z0)
    found = diffusion.q_sample(*map(torch.from_numpy, (z0, mask, noise, t)), ALPHAS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(
        found.numpy()[np.broadcast_to(mask == 0, z0.shape)], z0[np.broadcast_to(mask == 0, z0.shape)]
    )


@pytest.mark.parametrize("flip", ["nothing", "forward mask", "head", "gate of the loss"])
def test_polarity_gating_and_heads_together(flip: str) -> None:
    """An oracle that knows z0 and M repairs exactly the noised cells; turning any polarity round breaks it."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn((2, 4, 8, 8), generator=generator)
    mask = (torch.rand((2, 1, 8, 8), generator=generator) < 0.3).float()
    noise = torch.randn(z0.shape, generator=generator)
    forward = 1 - mask if flip == "forward mask" else mask
    z_t = diffusion.q_sample(z0, forward, noise, torch.tensor([10, 10]), ALPHAS)
    untouched = z_t.clone()

    def oracle(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Its clean head is wrong on clean cells: only the gate keeps them as they are.
        return torch.where(mask > 0, z0, torch.full_like(z0, 9.0)), 1 - mask if flip == "head" else mask

    eta_noise = torch.randn((2, 9, 4, 8, 8), generator=generator)
    out, flagged = diffusion.masked_ddim(oracle, z_t, ALPHAS, eta=0.5, noise=eta_noise)
    clean = (mask == 0).expand_as(z0)
    repaired = torch.allclose(out[~clean], z0[~clean], atol=1e-5)
    kept = torch.equal(out[clean], untouched[clean])
    restored = torch.allclose(out, z0, atol=1e-5)
    logit = (2 * (1 - mask if flip == "gate of the loss" else mask) - 1) * 20
    perfect = float(diffusion.diffusion_loss(z0, logit, z0, mask, "bce", 1.0)) < 1e-6
    assert (repaired and kept and restored and perfect and torch.equal(flagged, mask)) == (flip == "nothing")


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("restore", [False, True])
def test_masked_ddim_against_numpy(eta: float, restore: bool) -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=(2, 3, 4, 4))
    noise = rng.normal(size=(2, 9, 3, 4, 4))
    bias = rng.normal(size=(2, 1, 4, 4))

    def heads(z: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        return 0.3 * z + 0.1 * t, 1 / (1 + np.exp(-(bias + np.sin(z.sum(axis=1, keepdims=True) + t))))

    abar = np.cos((np.arange(11) / 10 + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    abar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    z = start.copy()
    for t in range(10, 0, -1):
        clean, probability = heads(z, t)
        gate = probability > 0.5
        estimate = (z - np.sqrt(abar[t]) * clean) / np.sqrt(1 - abar[t])
        sigma = eta * np.sqrt((1 - abar[t - 1]) / (1 - abar[t])) * np.sqrt(1 - abar[t] / abar[t - 1])
        step = np.sqrt(abar[t - 1]) * clean + np.sqrt(1 - abar[t - 1] - sigma**2) * estimate
        if t > 1:
            step = step + sigma * noise[:, 10 - t]
        z = np.where(gate, step, z)
    if restore:
        z = np.where(gate, z, start)

    def network(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clean, probability = heads(x.numpy(), int(t[0]))
        return torch.from_numpy(clean), torch.from_numpy(probability)

    found, flagged = diffusion.masked_ddim(
        network, torch.from_numpy(start), ALPHAS, eta=eta, noise=torch.from_numpy(noise), restore=restore
    )
    np.testing.assert_allclose(found, z, atol=2e-4)
    np.testing.assert_array_equal(flagged.numpy() > 0, gate)


def test_training_masks_have_the_stated_share_and_sizes() -> None:
    allowed = torch.ones((4000, 1, 32, 32), dtype=torch.bool)
    masks, _ = diffusion.random_masks(allowed, torch.Generator().manual_seed(0))
    share = masks.mean(dim=(1, 2, 3))
    assert float(share.mean()) == pytest.approx(0.2, abs=0.01)  # U(0, .4)
    assert float(share.std()) == pytest.approx(0.4 / 12**0.5, abs=0.01)
    assert float(share.max()) <= 0.4 + 0.04  # the nearest whole rectangle of 16
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    # Of masks with exactly one size, the rectangles have that size.
    for sides in ((1, 1), (8, 8), (4, 4)):
        one, _ = diffusion.random_masks(
            allowed[:50], torch.Generator().manual_seed(1), sizes=(sides[0],), probabilities=(1.0,)
        )
        tiles = one.view(50, 32 // sides[0], sides[0], 32 // sides[1], sides[1])
        assert torch.equal(tiles.amax(dim=(2, 4)), tiles.amin(dim=(2, 4)))
    # Height and width are drawn apart with the stated probabilities: count by the shortest run along each axis.
    heights = [_shortest(mask[0]) for mask in masks[share > 0.1][:1500]]
    widths = [_shortest(mask[0].T) for mask in masks[share > 0.1][:1500]]
    for runs in (heights, widths):
        found = [np.mean(np.array(runs) == size) for size in (1, 2, 4, 8)]
        np.testing.assert_allclose(found, [0.2, 0.3, 0.3, 0.2], atol=0.05)
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.1
    same, _ = diffusion.random_masks(
        allowed[:64], torch.Generator().manual_seed(3), sizes=(1, 8), probabilities=(0.5, 0.5), per_batch=True
    )
    assert len({_shortest(mask[0]) for mask in same if float(mask.mean()) > 0.1}) == 1


def _shortest(mask: torch.Tensor) -> int:
    """Length of the shortest run of ones or zeros down the columns."""
    changes = np.diff(mask.numpy().astype(int), axis=0) != 0
    lengths = [32]
    for column in changes.T:
        edges = np.concatenate([[0], np.flatnonzero(column) + 1, [32]])
        lengths.append(int(np.diff(edges).min()))
    return min(lengths)


def test_background_is_never_noised() -> None:
    brain = torch.zeros((6, 1, 128, 128), dtype=torch.bool)
    brain[:, :, 30:100, 30:100] = True
    allowed = diffusion.allowed_cells(brain, (32, 32))
    blocks = brain.float().view(6, 1, 8, 16, 8, 16).mean(dim=(3, 5)) >= 0.9
    assert torch.equal(allowed, blocks.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert 0 < int(allowed[0].sum()) < 1024
    masks, _ = diffusion.random_masks(allowed, torch.Generator().manual_seed(0), largest_share=1.0)
    assert float(masks[~allowed].sum()) == 0
    assert float(masks.sum()) > 0


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_loss_against_numpy(kind: str) -> None:
    rng = np.random.default_rng(2)
    clean, z0 = rng.normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
    logit = rng.normal(size=(2, 1, 4, 4)).astype(np.float32)
    mask = (rng.random((2, 1, 4, 4)) < 0.4).astype(np.float32)
    p = 1 / (1 + np.exp(-logit))
    second = np.mean((p - mask) ** 2) if kind == "mse" else -np.mean(mask * np.log(p) + (1 - mask) * np.log(1 - p))
    found = diffusion.diffusion_loss(*map(torch.from_numpy, (clean, logit, z0, mask)), kind, 0.01)
    assert float(found) == pytest.approx(np.mean((clean - z0) ** 2) + 0.01 * second, rel=1e-5)


@pytest.mark.parametrize(("difference", "gamma"), [("absolute", 0.25), ("squared", 0.0625)])
def test_map_against_scipy(difference: str, gamma: float) -> None:
    from scipy.ndimage import gaussian_filter

    from adbench.methods.madad.method import anomaly_map

    rng = np.random.default_rng(3)
    one, other = rng.uniform(-1, 1, (2, 2, 1, 40, 32))
    d = np.abs(one - other) if difference == "absolute" else (one - other) ** 2
    expected = [gaussian_filter(np.minimum(x[0], gamma) / gamma, 2.0, mode="constant") for x in d]
    found = anomaly_map(torch.from_numpy(one).float(), torch.from_numpy(other).float(), difference, gamma, 2.0)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    assert float(found.max()) <= 1 + 1e-6


@pytest.mark.parametrize(("size", "millions"), [("XS", 16.1), ("S", 64.5), ("M", 145.0), ("L", 257.7), ("XL", 402.7)])
def test_unet_has_the_published_size(size: str, millions: float) -> None:
    from adbench.methods.madad.networks import new_unet

    params = MADAD.resolve("paper", {"unet_size": size})
    assert isinstance(params, MADADParams)
    with torch.device("meta"):
        unet = new_unet(params, 4)
    trunk = sum(p.numel() for p in unet.parameters()) - sum(p.numel() for p in unet.mask_head.parameters())
    assert trunk / 1e6 == pytest.approx(millions, abs=0.06)
    width, heads = UNET_SIZES[size]
    assert width % heads == 0
    assert sum(p.numel() for p in unet.mask_head.parameters()) == 2 * width + 9 * width + 1


def test_paper_autoencoder_has_the_published_size_and_grid() -> None:
    from adbench.methods.madad.networks import new_codec

    p = MADAD.resolve("paper", {})
    assert isinstance(p, MADADParams)
    with torch.device("meta"):
        codec = new_codec(p.ae_channels, p.ae_layers, p.latent_channels, p.ae_attention, p.ae_patch)
    assert sum(x.numel() for x in codec.parameters()) / 1e6 == pytest.approx(83.65, abs=0.01)
    assert (codec.factor, p.check_latent(codec.factor), codec.channels) == (8, 32, 4)


def test_mask_head_starts_undecided_and_heads_are_set() -> None:
    from diffusers.models.attention_processor import Attention

    from adbench.methods.madad.networks import TwoHeadUNet

    unet = TwoHeadUNet(4, 32, heads=4, residual=True).eval()
    z = torch.randn(2, 4, 8, 8)
    clean, logit = unet(z, torch.tensor([1, 10]))
    assert torch.equal(logit, torch.zeros(2, 1, 8, 8))
    assert torch.equal(clean, z)
    assert {m.heads for m in unet.modules() if isinstance(m, Attention)} == {4}


def test_the_layers_that_the_authors_start_at_zero() -> None:
    """35 of UNet XS; with them every block passes on what it gets, and both heads say 0."""
    from adbench.methods.madad.networks import TwoHeadUNet, new_unet

    params = MADAD.resolve("paper", {"unet_size": "XS"})
    assert isinstance(params, MADADParams)
    with torch.device("meta"):
        assert len(zeroed_by_authors(new_unet(params, 4))) == 35
    unet = TwoHeadUNet(3, 32, (1, 2), 1, (False, True), heads=4).eval()
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 10])
    assert float(unet(z, t)[0].detach().abs().max()) > 0
    set_to_zero(zeroed_by_authors(unet))
    assert [float(found.detach().abs().max()) for found in unet(z, t)] == [0, 0]
    first = unet.trunk.down_blocks[0].resnets[0]  # type: ignore[union-attr, index]
    features = torch.randn(1, 32, 8, 8)
    assert torch.equal(first(features, torch.randn(1, 128)), features)


def _tiny_vae(channels: int, folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.18215,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("nested", [False, True])
def test_three_channels_become_one(tmp_path: Path, nested: bool) -> None:
    """The grey codec equals the colour one fed with three copies and averaged."""
    from diffusers import AutoencoderKL

    from adbench.methods.madad.networks import pretrained_codec

    _tiny_vae(3, tmp_path / "vae" if nested else tmp_path)
    codec, scale = pretrained_codec(str(tmp_path), {})
    colour = AutoencoderKL.from_pretrained(tmp_path / "vae" if nested else tmp_path)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = colour.encode(image.expand(-1, 3, -1, -1)).latent_dist
        mean, std = codec.encode(image)
        assert torch.allclose(mean, expected.mean, atol=1e-5)
        assert torch.allclose(std, expected.std, atol=1e-5)
        assert torch.allclose(codec.decode(mean), colour.decode(mean).sample.mean(1, keepdim=True), atol=1e-5)
    assert scale == 0.18215


def test_pretrained_autoencoder_is_used_saved_and_loaded(tmp_path: Path, train: SliceSet, val: SliceSet) -> None:
    _tiny_vae(1, tmp_path / "vae")
    params = MADAD.resolve("tiny", {**SMALL, "autoencoder": str(tmp_path / "vae"), "ae_steps": 0})
    method = MADAD(params, Context())
    report = method.fit(train, None)
    assert method._scale == 0.18215
    assert report.steps == 8
    method.save(tmp_path / "fit")
    for path in (tmp_path / "vae").iterdir():
        path.unlink()  # the saved method stands on its own
    loaded = MADAD.load(tmp_path / "fit", Context())
    batch = val.batch(slice(None))
    assert torch.equal(method.score(batch), loaded.score(batch))


@pytest.mark.parametrize("source", ["some-owner/some-vae", "./no-such-folder"])
def test_missing_autoencoder_is_one_clear_sentence(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from adbench.methods.madad.networks import pretrained_codec

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"autoencoder = '{source}'.*(AutoencoderKL|diffusers format)"):
        pretrained_codec(source, {})


@pytest.fixture(scope="module")
def fitted() -> MADAD:
    method = MADAD(MADAD.resolve("tiny", SMALL), Context(seed=4))
    method.fit(make_set(12), make_set(5, seed=1, name="v"))
    method.params = MADAD.resolve("tiny", {**SMALL, "threshold": 0.0})
    return method


def test_maps_do_not_depend_on_the_batch(fitted: MADAD) -> None:
    data = make_set(7, seed=5, name="t")
    whole = fitted.score(data.batch(slice(None)))
    for size in (1, 3):
        parts = torch.cat([fitted.score(batch) for batch in data.batches(size)])
        assert torch.allclose(whole, parts, atol=1e-4)
    assert float(whole.std()) > 1e-3
    backwards = fitted.score(data.batch(np.arange(7)[::-1].copy()))
    assert torch.allclose(whole, backwards.flip(0), atol=1e-4)


def test_maps_and_reconstructions_keep_the_contract(fitted: MADAD, tmp_path: Path) -> None:
    batch = make_set(3, seed=6, name="t").batch(slice(None))
    maps, recon = fitted.score_and_reconstruct(batch)
    for out in (maps, recon):
        assert out.shape == batch.image.shape
        assert out.dtype == torch.float32
        assert bool(out.isfinite().all())
    assert float(recon.min()) >= 0
    assert float(recon.max()) <= 1
    assert torch.equal(maps, fitted.score(batch))
    fitted.save(tmp_path)
    assert torch.equal(MADAD.load(tmp_path, Context(seed=4)).score(batch), maps)
    assert not torch.equal(MADAD.load(tmp_path, Context(seed=5)).score(batch), maps)  # the sampler follows the seed


def test_fit_is_decided_by_the_seed(train: SliceSet, val: SliceSet) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))
        method = MADAD(MADAD.resolve("tiny", {**SMALL, "ae_steps": 2, "steps": 2}), Context(seed=seed))
        report = method.fit(train, val)
        states.append(method.state())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())
    assert {"autoencoder.val_loss", "unet.val_loss", "unet.step"} <= set(report.best)
    assert report.parameters == sum(value.numel() for value in states[0].values())
    json.dumps([report.best, report.curves], allow_nan=False)


def test_discriminator_joins_the_autoencoder(train: SliceSet) -> None:
    """The patch-GAN changes the result once it has started."""
    states = []
    for start in (4, 100):
        over = {**SMALL, "gan_weight": 0.5, "gan_start": start, "steps": 1}
        method = MADAD(MADAD.resolve("tiny", over), Context())
        method.fit(train, None)
        states.append(method.state())
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0] if key.startswith("autoencoder"))


def test_perceptual_term_joins_the_autoencoder(
    train: SliceSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loss = L1 + KL / pixels + weight * mean difference; missing weights stop the fit before it begins."""
    from adbench.methods.common import perceptual
    from adbench.methods.madad import autoencoder

    def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b) ** 2

    over = {**SMALL, "ae_perceptual_weight": 3.0, "kl_weight": 0.5, "steps": 1}
    p = MADAD.resolve("tiny", over)
    assert isinstance(p, MADADParams)
    image = torch.rand(2, 1, 8, 8) * 2 - 1

    def module(x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 0.5, noise, torch.full_like(noise, 2.0)

    noise = torch.randn(2, 1, 4, 4)
    loss, recon = autoencoder._autoencoder_loss(p, module, {"image": image, "noise": noise}, squared)  # type: ignore[arg-type]
    kl = 0.5 * (noise.numpy() ** 2 + 4 - 1 - np.log(4)).sum() / image.numel()
    x = image.numpy()
    assert float(loss) == pytest.approx(np.abs(x / 2).mean() + 0.5 * kl + 3 * ((x / 4) ** 2).mean(), rel=1e-5)
    assert torch.equal(recon, image * 0.5)

    monkeypatch.setattr(perceptual, "package_file", lambda *_: None)
    with pytest.raises(UserError, match=r"pip install --no-deps stlpips-pytorch, or .*ae_perceptual_weight=0"):
        MADAD(p, Context(workdir=tmp_path)).fit(train, None)
    assert not list(tmp_path.iterdir())
    frozen = {**over, "autoencoder": str(_tiny_vae(1, tmp_path / "vae")), "ae_steps": 0}
    assert MADAD(MADAD.resolve("tiny", frozen), Context()).fit(train, None).steps == 1  # nothing to train with it


def test_perceptual_term_with_the_wheels_weights(train: SliceSet) -> None:
    from adbench.utils.installed import package_file

    if package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth") is None:
        pytest.skip("stlpips-pytorch is not installed")
    states = []
    for weight in (0.0, 1.0):
        method = MADAD(MADAD.resolve("tiny", {**SMALL, "ae_perceptual_weight": weight, "steps": 1}), Context())
        method.fit(train, None)
        states.append(method.state())
    assert all(bool(value.isfinite().all()) for value in states[1].values())
    assert not torch.equal(*(state["autoencoder.decoder.conv_out.weight"] for state in states))


def test_variants_set_their_knobs_and_can_be_overridden() -> None:
    official, paper = MADAD.resolve("paper", {}), MADAD.resolve("paper", {"variant": "paper", "eta": 0.2})
    assert isinstance(official, MADADParams)
    assert isinstance(paper, MADADParams)
    knobs = ("mask_loss", "mask_weight", "eta", "difference", "compare_with", "gamma", "sigma")
    assert [getattr(official, k) for k in knobs] == ["mse", 0.001, 0.5, "absolute", "decoded", 0.25, 5.0]
    assert [getattr(paper, k) for k in knobs] == ["bce", 0.001, 0.2, "squared", "input", 0.0625, 5.0]
    assert MADAD.resolve("paper", paper.model_dump(mode="json")) == paper


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eta": 1.5}, "eta = 1.5 is not valid"),
        ({"lr": 0}, "lr = 0 is not valid"),
        ({"gama": 1}, "Did you mean 'gamma'"),
        ({"image_size": 100}, "must be a multiple of 32"),
        ({"patch_probabilities": (0.5, 0.5)}, "one entry for each of patch_sizes"),
        ({"unet_attention": (True,)}, "one entry per level"),
        ({"variant": "other"}, "variant = 'other' is not valid"),
        ({"ae_steps": 0}, "ae_steps must be at least 1"),
    ],
)
def test_wrong_parameters_are_one_clear_sentence(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MADAD.resolve("paper", values)


def test_parameters_are_read_without_torch() -> None:
    code = (
        "import sys; from adbench.methods.madad.method import MADAD; from adbench.methods.ae import AE; "
        "from adbench.methods.simple import HistEq; MADAD.resolve('paper', {}); AE.resolve('tiny', {}); "
        "assert not {'torch', 'diffusers', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_codec_with_a_base_starts_as_averaging_and_interpolation() -> None:
    from adbench.methods.madad.networks import new_codec

    codec = new_codec((16, 16), 1, 2, False, patch=2, base=True).eval()
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, _ = codec.encode(image)
        assert mean.shape == (2, 2, 4, 4)
        assert torch.equal(mean[:, :1], torch.nn.functional.avg_pool2d(image, 4))
        smooth = torch.nn.functional.interpolate(mean[:, :1], scale_factor=4, mode="bilinear")
        assert torch.allclose(codec.decode(mean), smooth, atol=1e-6)


def test_standardised_slices_ignore_gain_and_are_undone() -> None:
    from adbench.methods.common import image_ops

    batch = make_set(4).batch(slice(None))
    one, figures = image_ops.standardise(batch.image, batch.brain)
    other, _ = image_ops.standardise((batch.image * 0.5 + 0.2) * batch.brain, batch.brain)
    assert torch.allclose(one, other, atol=1e-3)
    assert torch.allclose(image_ops.unstandardise(one, batch.brain, figures), batch.image, atol=0.02)
    values = one[0][batch.brain[0]]
    assert float(values.median()) == pytest.approx(0.4, abs=0.01)
    assert float(values.quantile(0.75) - values.quantile(0.25)) == pytest.approx(0.15, abs=0.01)
    empty, _ = image_ops.standardise(batch.image, torch.zeros_like(batch.brain))
    assert float(empty.abs().max()) == 0


NOISED = {**SMALL, "image_size": 64, "ae_patch": 4, "ae_base": False, "latent_channels": 3, "background_share": 0.5}


def _params(**values: object) -> MADADParams:
    found = MADAD.resolve("tiny", {**NOISED, **values})
    assert isinstance(found, MADADParams)
    return found


def _healthy(variances: tuple[float, ...]) -> Healthy:
    return Healthy(torch.arange(len(variances)).double(), torch.tensor(variances).double().diag(), 100)


def test_white_noise_draws_nothing_else() -> None:
    white, generator = torch.randn(2, 3, 4, 4), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert filling(_params(), white, torch.zeros(2, 1, 4, 4).long(), None, generator) is white
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("scope", ["slice", "rectangle"])
def test_filling_against_numpy(scope: str) -> None:
    rng = np.random.default_rng(0)
    white = torch.from_numpy(rng.normal(size=(2, 3, 4, 6))).float()
    rectangle = torch.from_numpy(rng.integers(0, 4, (2, 1, 4, 6)))
    healthy, random = _healthy((4.0, 1.0, 0.25)), torch.Generator().manual_seed(7)
    alpha = torch.rand(2, generator=random).numpy()[:, None, None, None]
    if scope == "slice":
        offset = torch.randn((2, 3, 1, 1), generator=random).numpy()
    else:
        values = torch.randn((2, 3, 24), generator=random).numpy()
        offset = np.stack([values[n][:, rectangle[n, 0].numpy()] for n in range(2)])
    plain = np.sqrt(alpha) * 3 * offset + np.sqrt(1 - alpha) * white.numpy()
    scale = np.array([2, 1, 0.5])[:, None, None]
    expected = {"offset": plain, "matched": np.arange(3)[:, None, None] + scale * plain}
    for noise, values in expected.items():
        p = _params(noise=noise, noise_offset=3.0, noise_scope=scope)
        found = filling(p, white, rectangle, healthy, torch.Generator().manual_seed(7))
        np.testing.assert_allclose(found, values, atol=2e-5)


def test_rectangles_are_numbered_as_they_are_cut() -> None:
    allowed = torch.ones((3, 1, 8, 8), dtype=torch.bool)
    mask, rectangle = diffusion.random_masks(
        allowed, torch.Generator().manual_seed(0), largest_share=1.0, sizes=(4,), probabilities=(1.0,)
    )
    expected = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert all(torch.equal(one[0], expected) for one in rectangle)
    assert all(len(set(mask[rectangle == number].tolist())) <= 2 for number in range(4))


@pytest.fixture(scope="module")
def matched() -> tuple[MADAD, FitReport]:
    torch.set_num_threads(1)
    method = MADAD(_params(noise="matched", steps=4), Context(seed=1))
    return method, method.fit(make_set(12), make_set(5, seed=1, name="v"))


def test_the_curve_says_what_each_head_does(matched: tuple[MADAD, FitReport]) -> None:
    last = matched[1].curves["unet"][-1]
    assert {"val_loss", "val_latent_loss", "val_mask_loss", "flagged"} <= set(last)
    assert {f"{name}_t{t}" for name in ("auroc", "recall") for t in range(1, 11)} <= set(last)
    assert len({point["val_latent_loss"] for point in matched[1].curves["unet"]}) > 1


def test_figures_against_counting() -> None:
    rng = np.random.default_rng(4)
    found = {}
    for t in (0, 1, 2):
        probability, noised = rng.random(40).round(1), rng.random(40) < 0.4 * (t > 0)
        found[t] = {
            "probability": torch.from_numpy(probability),
            "noised": torch.from_numpy(noised),
            "error": torch.full((6,), 2.0 * t),
            "mask_error": torch.full((3,), 1.0 + t),
        }
    figures = mask_figures(found)
    assert figures["val_latent_loss"] == 3.0
    assert figures["val_mask_loss"] == 2.5
    assert figures["flagged"] == pytest.approx(float((found[0]["probability"] > 0.5).double().mean()))
    assert "auroc_t0" not in figures
    for t in (1, 2):
        p, noised = found[t]["probability"].numpy(), found[t]["noised"].numpy()
        pairs = p[noised][:, None] - p[~noised][None]
        assert figures[f"auroc_t{t}"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
        assert figures[f"recall_t{t}"] == pytest.approx(np.mean(p[noised] > 0.5))


def test_map_of_the_probability_is_one_pass_at_the_last_time(matched: tuple[MADAD, FitReport]) -> None:
    from scipy.ndimage import gaussian_filter

    from adbench.methods.common.preprocess import preprocess

    method, _ = matched
    batch = make_set(3, size=(64, 64), seed=6, name="t").batch(slice(None))
    with torch.inference_mode():
        z = method._codec.encode(preprocess(batch, 64, True).image * 2 - 1)[0] * method._scale
        logit = method._unet(z, torch.full((3,), 10))[1]
    p = torch.nn.functional.interpolate(logit.sigmoid(), size=(64, 64), mode="bilinear")
    expected = np.stack([gaussian_filter(one[0], 2.5, mode="constant") for one in p.numpy()])
    maps, own = {}, method.params
    for score in ("repair", "probability", "both"):
        method.params = own.model_copy(update={"score": score})
        maps[score], recon = method.score_and_reconstruct(batch)
        assert (recon is None) == (score == "probability")
    method.params = own
    np.testing.assert_allclose(maps["probability"][:, 0], expected, atol=1e-5)
    assert torch.allclose(maps["both"], (maps["probability"] + maps["repair"]) / 2, atol=1e-6)


def test_a_fit_keeps_its_noise(matched: tuple[MADAD, FitReport], tmp_path: Path) -> None:
    method, _ = matched
    method.save(tmp_path)
    loaded = MADAD.load(tmp_path, Context(seed=1))
    assert loaded._healthy is not None
    assert method._healthy is not None
    assert torch.equal(loaded._healthy.covariance, method._healthy.covariance)
    file = tmp_path / "method.json"
    file.write_text(file.read_text().replace('"noise": "matched"', '"noise": "white"', 1))
    with pytest.raises(UserError, match=r"learned noise = (white|matched), and its parameters say (white|matched)"):
        MADAD.load(tmp_path, Context())


def test_a_fit_from_before_there_were_noises_is_white(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"noise": "white", "image_size": 64, "ae_channels": (16, 16), "ae_steps": 1, "steps": 1, "batch": 4}
    method = MADAD(MADAD.resolve("tiny", small), Context())
    method.fit(make_set(4, size=(64, 64)), None)
    assert "nothing was found" not in caplog.text, "the latent of tiny is the brightness"
    method.save(tmp_path)
    file = tmp_path / "method.json"
    saved = json.loads(file.read_text())
    for part, names in (("notes", ("noise", "healthy")), ("params", ("noise", "noise_offset", "noise_scope"))):
        for name in names:
            del saved[part][name]
    file.write_text(json.dumps(saved))
    loaded = MADAD.load(tmp_path, Context())
    batch = make_set(2, size=(64, 64), seed=6, name="t").batch(slice(None))
    assert torch.equal(loaded.score(batch), method.score(batch))
    assert loaded._healthy is None
    file.write_text(json.dumps({**saved, "notes": {**saved["notes"], "healthy": None, "noise": "matched"}}))
    with pytest.raises(UserError, match="learned noise = matched, and its parameters say white"):
        MADAD.load(tmp_path, Context())
    del saved["notes"]["scale"]
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"The saved madad in .* has no 'scale' among the notes in its method.json"):
        MADAD.load(tmp_path, Context())


def test_white_noise_on_a_learnt_latent_is_warned_about_before_it_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    class Stop(Progress):
        def update(self, phase: str, done: int, total: int, **figures: object) -> None:
            raise KeyboardInterrupt

    small = {"image_size": 64, "ae_channels": (16, 16), "ae_steps": 1, "steps": 1, "batch": 4, "latent_channels": 2}
    for noise, warned in (("matched", False), ("white", True)):
        with pytest.raises(KeyboardInterrupt):
            MADAD(MADAD.resolve("tiny", {**small, "noise": noise}), Context(progress=Stop())).fit(make_set(4), None)
        assert ("next to nothing was found" in caplog.text) == warned


def test_latents_along_a_line_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn((1, 8, 3, 4, 4), generator=generator) * torch.tensor([10.0, 1.0, 0.3]).view(3, 1, 1)
    allowed = torch.ones((1, 8, 1, 4, 4), dtype=torch.bool)
    data = Encoded(None, 1.0, Latents(mean, 0 * mean, allowed), None, {}, [])  # type: ignore[arg-type]
    healthy, notes = healthy_latents(_params(), data, Context())
    assert healthy is not None
    assert len(notes) == 1
    assert re.search(r"eigenvalues \d+, [\d.]+, 0\.0\d+\).* --set madad.noise=matched", notes[0])
    assert notes[0] in caplog.text
    assert healthy_latents(_params(noise="matched"), data, Context())[1] == []
    few = Encoded(None, 1.0, Latents(mean, 0 * mean, allowed & False), None, {}, [])  # type: ignore[arg-type]
    assert healthy_latents(_params(), few, Context()) == (None, [])  # white noise does without
    with pytest.raises(UserError, match="0 latent cells inside the brain"):
        healthy_latents(_params(noise="matched"), few, Context())


def test_only_slices_with_a_flagged_cell_are_decoded_again(fitted: MADAD, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of which nothing was flagged has an empty map by construction, to the last bit."""
    batch = make_set(4, seed=3, name="u").batch(slice(0, 4))
    decoded: list[int] = []
    decode = fitted._codec.decode

    def counted(latent: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latent))
        return decode(latent)

    def heads(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probability = torch.zeros_like(z[:, :1])
        probability[flagged, :, 1, 2] = 1.0
        return z + 1, probability

    monkeypatch.setattr(fitted._codec, "decode", counted)
    monkeypatch.setattr(fitted, "_heads", heads)
    for compare, flagged, expected in (("decoded", [], 4), ("decoded", [1, 3], 6), ("input", [1], 4)):
        monkeypatch.setattr(fitted, "params", fitted.params.model_copy(update={"compare_with": compare}))
        decoded.clear()
        maps = fitted.score(batch)
        assert sum(decoded) == expected, (compare, flagged)
        moved = [number for number in range(4) if compare == "input" or number in flagged]
        assert (maps.amax(dim=(1, 2, 3)) > 0).nonzero().flatten().tolist() == moved
