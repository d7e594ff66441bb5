"""VAE: divergence and loss against closed forms, restoration, maps, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.vae import VAE, divergence
from adbench.testing import check_method

SMALL: dict[str, Any] = {**VAE.smoke, "steps": 2, "sigma": 0.0, "standardise": False}


def method(**overrides: Any) -> VAE:
    vae = VAE(VAE.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))
    with training.seeded(0, "test"):
        vae._network = vae.build().eval()
    return vae


def slices(count: int = 3) -> SliceBatch:
    image = torch.rand((count, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, tuple("abc"[:count]), (3,) * count, "FLAIR")


def test_divergence_equals_the_closed_form_of_torch() -> None:
    mean, logvar = torch.randn(4, 6), torch.randn(4, 6)
    normal = torch.distributions.Normal
    closed = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).mean()
    assert float(divergence(mean, logvar)) == pytest.approx(float(closed), rel=1e-5)
    assert float(divergence(torch.zeros(2, 3), torch.zeros(2, 3))) == 0.0


def test_divergence_equals_a_monte_carlo_estimate() -> None:
    mean, logvar = torch.tensor([[0.8]]), torch.tensor([[-0.5]])
    z = 0.8 + np.exp(-0.25) * np.random.default_rng(0).normal(size=400_000)
    log_ratio = -0.5 * (z - 0.8) ** 2 / np.exp(-0.5) + 0.25 + 0.5 * z**2
    assert float(divergence(mean, logvar)) == pytest.approx(log_ratio.mean(), abs=0.01)


def test_loss_equals_numpy(train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[training.Stage] = []

    def catch(stage: training.Stage, ctx: Context) -> training.StageResult:
        seen.append(stage)
        return training.StageResult(0, [], 0, None, 0.0)

    monkeypatch.setattr(training, "train_stage", catch)
    vae = method(kl_weight=0.5)
    vae.fit(train, None)
    stage = seen[0]
    batch = stage.draw(torch.arange(4), torch.Generator().manual_seed(0))
    network: Any = stage.module
    with torch.no_grad():
        value = float(stage.loss(network, batch, 0))
        mean, logvar = network.encoder(batch["image"]).chunk(2, dim=1)
        latent = mean + torch.sqrt(torch.exp(logvar)) * batch["draw"]
        error = np.abs((network.decoder(latent) - batch["image"]).numpy()).mean()
    m, v = mean.numpy().astype(float), logvar.numpy().astype(float)
    assert value == pytest.approx(error + 0.5 * np.mean(0.5 * (m**2 + np.exp(v) - 1 - v)), rel=1e-5)
    assert batch["draw"].std() == pytest.approx(1.0, abs=0.35)


def test_reconstruction_map_decodes_the_mean() -> None:
    vae, batch = method(), slices()
    network: Any = vae._network
    with torch.no_grad():
        recon = network.decoder(network.encoder(batch.image)[:, : vae.params.latent])
    maps, shown = vae.score_and_reconstruct(batch)
    expected = (batch.image - recon * batch.brain).abs() * batch.brain
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(shown, (recon * batch.brain).clamp(0, 1), atol=1e-6, rtol=0)


def test_restoration_descends_and_finds_the_minimum_of_a_linear_decoder() -> None:
    """With D(z) = z everywhere the energy of one slice is mean|x - z| + v z²/2; on x = c its minimum is z = min(c, 1/v)."""
    vae = method(scoring="restoration", latent=1, restoration_steps=400, restoration_lr=0.02, prior_weight=2.0)

    class Flat(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return image, torch.zeros(len(image), 1), torch.zeros(len(image), 1)

        def decoder(self, latent: torch.Tensor) -> torch.Tensor:
            return latent.view(-1, 1, 1, 1).expand(-1, 1, 32, 32)

    vae._network = Flat()
    restored = vae._restored(torch.stack([torch.full((1, 32, 32), c) for c in (0.2, 0.9)]))
    assert float(restored[0].mean()) == pytest.approx(0.2, abs=0.03)
    assert float(restored[1].mean()) == pytest.approx(0.5, abs=0.03)


def test_restoration_works_inside_inference_mode_and_leaves_the_weights_alone() -> None:
    vae, batch = method(scoring="restoration", restoration_steps=10), slices()
    before = {key: value.clone() for key, value in vae.state().items()}
    with torch.inference_mode():
        whole = vae.score(batch)
        alone = vae.score(SliceBatch(batch.image[1:2], batch.brain[1:2], ("b",), (3,), "FLAIR"))
    torch.testing.assert_close(alone, whole[1:2], atol=1e-4, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in vae.state().items())
    plain = method()
    error = [(m.reconstruct(batch) - batch.image).abs().mean() for m in (vae, plain)]
    assert float(error[0]) < float(error[1])  # the latent was moved towards the slice


def test_ssim_option_changes_the_map() -> None:
    batch = slices()
    maps = method(residual="ssim").score(batch)
    assert float(maps.min()) >= -1e-6
    assert float(maps.max()) <= 1 + 1e-6
    assert not torch.equal(maps, method().score(batch))


def test_contract_with_other_parameters() -> None:
    """The defaults are checked with every built-in method in tests/testing."""
    overrides = {"scoring": "restoration", "restoration_steps": 3}
    assert not [finding for finding in check_method(VAE, overrides=overrides) if finding.problem]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_size": 34}, "multiple of 4"),
        ({"channels": (12, 16)}, "multiples of 8"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"scoring": "magic"}, "scoring"),
        ({"residual": "l7"}, "residual"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)
