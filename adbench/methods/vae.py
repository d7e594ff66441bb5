"""Variational autoencoder with a dense latent (Baur et al. 2021, Med. Image Anal. 69, 101952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.base import FitReport, NetworkMethod, Resources
from adbench.methods.card import Card
from adbench.methods.common.training_length import TrainedParams
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet


class VAEParams(TrainedParams):
    image_size: int = param(
        128,
        "Side of the network's square grid; slices are resized to it.",
        unit="px",
        source="Baur 2021",
        ge=32,
        le=512,
    )
    channels: tuple[int, ...] = param(
        (32, 64, 128, 128, 128),
        "Channels of the stride-2 blocks, one entry a block.",
        source="Baur 2021, UPD",
        min_length=1,
        max_length=7,
    )
    latent: int = param(128, "Length of the dense latent.", source="Baur 2021", ge=1, le=4096)
    kl_weight: float = param(
        1e-3,
        "Weight of the divergence (mean over the latent) beside the reconstruction error (mean over the pixels).",
        source="Baur 2021",
        ge=0,
        le=10,
    )
    scoring: Literal["reconstruction", "restoration"] = param(
        "reconstruction",
        "Compare with the decoded mean, or with the decoded latent that gradient descent on the latent's ELBO reaches.",
        source="Baur 2021, Chen 2020",
    )
    restoration_steps: int = param(
        50, "Gradient steps of the restoration.", unit="steps", source="adbench", ge=1, le=10_000
    )
    restoration_lr: float = param(0.1, "Step size (Adam) of the restoration.", source="adbench", gt=0, le=10)
    prior_weight: float = param(
        1e-3,
        "Weight of the mean of z²/2 beside the L1 error in the restoration; larger stays nearer the healthy mean.",
        source="adbench (kl_weight)",
        ge=0,
        le=10,
    )
    residual: Literal["abs", "ssim"] = param(
        "abs", "Map: absolute difference, or (1 - SSIM)/2 with an 11 px window of sigma 1.5 px.", source="Baur 2021"
    )
    standardise: bool = param(
        False,
        "Every slice on one intensity scale: its brain's median at 0.4, its interquartile range 0.15 wide.",
        source="adbench",
    )
    steps: int = param(20_000, "Optimiser steps.", unit="steps", source="adbench", ge=1)
    batch: int = param(32, "Slices a step.", unit="slices", source="adbench", ge=1, le=4096)
    lr: float = param(1e-4, "Peak learning rate of Adam.", source="Baur 2021", gt=0, le=1)
    warmup: int = param(0, "Linear warm-up.", unit="steps", source="adbench", ge=0)
    schedule: Literal["constant", "cosine"] = param("constant", "Learning rate after warm-up.", source="Baur 2021")
    ema: float = param(0.0, "Decay of the averaged weights, 0: none.", source="adbench", ge=0, lt=1)
    clip: float = param(1.0, "Largest gradient norm, 0: not clipped.", source="adbench", ge=0)
    augment: bool = param(
        False, "Rotate, shift, brighten and contrast training slices.", source="arXiv 2502.16943, official code"
    )
    sigma: float = param(
        0.0, "Gaussian smoothing of the map, 0: none.", unit="px of the slice", source="adbench", ge=0, le=50
    )

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        if self.image_size % 2 ** len(self.channels) or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(
                f"image_size must be a multiple of {2 ** len(self.channels)} (one halving a block) and channels multiples of 8"
            )
        return self


def build_network(params: VAEParams) -> nn.Module:
    """((B, 1, S, S), unit normal (B, latent) or None) -> (reconstruction, mean, log-variance); ``decode`` takes latents.

    A block is a 4x4 stride-2 convolution (transposed in the decoder), GroupNorm with 8 groups and LeakyReLU.
    """
    from torch import nn

    def active(channels: int) -> list[nn.Module]:
        return [nn.GroupNorm(8, channels), nn.LeakyReLU(0.2, inplace=True)]

    side, last = params.image_size // 2 ** len(params.channels), params.channels[-1]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            before = 1
            for channels in params.channels:
                layers += [nn.Conv2d(before, channels, 4, stride=2, padding=1), *active(channels)]
                before = channels
            self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(last * side * side, 2 * params.latent))
            layers = [nn.Linear(params.latent, last * side * side), nn.Unflatten(1, (last, side, side)), *active(last)]
            for channels in reversed(params.channels[:-1]):
                layers += [nn.ConvTranspose2d(before, channels, 4, stride=2, padding=1), *active(channels)]
                before = channels
            self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(before, 1, 4, stride=2, padding=1))

        def forward(
            self, image: torch.Tensor, draw: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            mean, logvar = self.encoder(image).chunk(2, dim=1)
            logvar = logvar.clamp(-20, 10)
            latent = mean if draw is None else mean + (0.5 * logvar).exp() * draw
            return self.decoder(latent), mean, logvar

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return self.decoder(latent)

    return Network()


def divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over the latent and the batch."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class VAE(NetworkMethod):
    """An autoencoder whose latent is drawn towards a unit normal; lesions have no place in it, the map is the residual.

    Reconstruction compares the slice with the decoded mean of its posterior. Restoration looks for the most probable healthy
    slice nearby instead: it descends on the latent from that mean.
    """

    name = "vae"
    Params = VAEParams
    params: VAEParams
    card = Card(
        paper="Baur et al. 2021, Med. Image Anal. 69, 101952; restoration: Chen et al. 2020, Med. Image Anal. 64, 101713",
        equations=(
            "training: min mean|x - D(z)| + w mean KL(q(z|x) || N(0, 1)), z sampled, w = 1e-3",
            "reconstruction: map |x - D(mu(x))|",
            "restoration: z* = argmin mean|x - D(z)| + v mean(z^2) / 2 by gradient descent from mu(x), map |x - D(z*)|",
        ),
        variants={
            "scoring": "reconstruction or restoration",
            "residual": "abs, or ssim: (1 - SSIM) / 2",
            "standardise": "slices on one intensity scale first",
        },
        deviations=(
            "the restoration descends on the latent, not on the pixels (Chen adds a total-variation term there): the decoded picture stays one the network can make",
        ),
        published=(
            "MSLUB FLAIR, restoration: pooled Dice .333 with an oracle threshold (Meissen et al. 2021, arXiv 2109.06023)",
            "per-volume Dice .15 to .33 on BraTS T2 when trained on IXI",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "image_size": 96,
            "channels": (16, 32, 64, 64, 64),
            "steps": 400,
            "batch": 16,
            "lr": 2e-3,
            "warmup": 20,
            "schedule": "cosine",
            "standardise": True,
            "sigma": 5.0,
        },
        "base": {"standardise": True, "sigma": 3.0},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 32, "channels": (8, 16), "latent": 8, "steps": 6, "batch": 4}

    def build(self) -> nn.Module:
        return build_network(self.params)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        import torch

        from adbench.methods import training
        from adbench.methods.common import fit_network, image_ops
        from adbench.methods.common.prefetch import Pictures

        p = self.params
        with training.seeded(self.ctx.seed, self.name, "init"):
            self._network = self.build()

        def make(source: Pictures, indices: torch.Tensor, generator: torch.Generator, vary: bool) -> training.Batch:
            image, brain = source.get(indices)
            if not vary:  # the mean of the posterior
                return {"image": image, "draw": torch.zeros((len(image), p.latent), device=image.device)}
            if p.augment:
                image, brain = image_ops.augment(image, brain, generator)
            return {"image": image, "draw": torch.randn((len(image), p.latent), generator=generator).to(image.device)}

        def loss(module: nn.Module, batch: training.Batch) -> torch.Tensor:
            recon, mean, logvar = module(batch["image"], batch["draw"])
            return (recon - batch["image"]).abs().mean() + p.kl_weight * divergence(mean.float(), logvar.float())

        return fit_network.fit_network(
            "vae", self.name, self._network, make, loss, p, (train, val), self.ctx, schedule=p.schedule
        )

    def _restored(self, image: torch.Tensor) -> torch.Tensor:
        """The decoded latents that descend on ``mean|x - D(z)| + v mean(z²)/2``, each slice for itself."""
        import torch

        p = self.params
        network: Any = self._network
        with torch.inference_mode(False), torch.enable_grad():
            picture = image.clone()  # made in inference mode, it could not take part in a gradient
            latent = network(picture)[1].detach().requires_grad_()
            optimizer = torch.optim.Adam([latent], lr=p.restoration_lr)
            for _ in range(p.restoration_steps):
                error = (network.decode(latent) - picture).abs().mean(dim=(1, 2, 3))
                energy = error + p.prior_weight * 0.5 * latent.square().mean(dim=1)
                (latent.grad,) = torch.autograd.grad(energy.sum(), latent)
                optimizer.step()
            return network.decode(latent).detach()

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common import perceptual
        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import Frame, fast

        p = self.params
        with torch.inference_mode():
            frame = Frame.of(batch, p.image_size, p.standardise)
            image, brain = frame.image, frame.brain
            if p.scoring == "restoration":
                recon = self._restored(image) * brain
            else:
                with fast(image.device):
                    recon = self._network(image)[0]
                recon = recon.float() * brain
            residual = (image - recon).abs() if p.residual == "abs" else perceptual.ssim(recon, image)
            maps = frame.stretched(residual * brain) * batch.brain
            return gaussian_blur(maps, p.sigma), frame.restored(recon)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=2.0)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 3e-5, "high": 3e-3, "log": True},
            "latent": {"choices": [32, 64, 128, 256]},
            "kl_weight": {"low": 1e-5, "high": 1e-1, "log": True},
            "sigma": {"low": 0.0, "high": 6.0},
        }
