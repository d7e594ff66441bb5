"""Autoencoder with a dense bottleneck (Baur et al. 2021, Med. Image Anal. 69, 101952)."""

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


class AEParams(TrainedParams):
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
    latent: int = param(
        128, "Length of the dense latent; a spatial latent would copy the lesion.", source="Baur 2021", ge=1, le=4096
    )
    steps: int = param(20_000, "Optimiser steps.", unit="steps", source="adbench", ge=1)
    batch: int = param(32, "Slices a step.", unit="slices", source="adbench", ge=1, le=4096)
    lr: float = param(1e-4, "Peak learning rate of Adam.", source="Baur 2021", gt=0, le=1)
    warmup: int = param(0, "Linear warm-up.", unit="steps", source="adbench", ge=0)
    schedule: Literal["constant", "cosine"] = param("constant", "Learning rate after warm-up.", source="Baur 2021")
    ema: float = param(0.0, "Decay of the averaged weights, 0: none.", source="adbench", ge=0, lt=1)
    clip: float = param(1.0, "Largest gradient norm, 0: not clipped.", source="adbench", ge=0)
    standardise: bool = param(
        False,
        "Put each slice on one intensity scale first: median of the brain at 0.4, interquartile range 0.15 (undone in the reconstruction).",
        source="adbench",
    )
    augment: bool = param(
        False, "Rotate, shift, brighten and contrast training slices.", source="arXiv 2502.16943, official code"
    )
    sigma: float = param(
        0.0,
        "Gaussian smoothing of the residual, 0: none.",
        unit="px of the network's grid",
        source="adbench",
        ge=0,
        le=50,
    )

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        if self.image_size % 2 ** len(self.channels) or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(
                f"image_size must be a multiple of {2 ** len(self.channels)} (one halving a block) and channels multiples of 8"
            )
        return self


def build_network(params: AEParams) -> nn.Sequential:
    """Encoder, dense latent, decoder: (B, 1, S, S) in [0, 1] -> (B, 1, S, S), unbounded.

    A block is a 4x4 stride-2 convolution (transposed in the decoder), GroupNorm with 8 groups and LeakyReLU.
    """
    from torch import nn

    def active(channels: int) -> list[nn.Module]:
        return [nn.GroupNorm(8, channels), nn.LeakyReLU(0.2, inplace=True)]

    side = params.image_size // 2 ** len(params.channels)
    last = params.channels[-1]
    layers: list[nn.Module] = []
    before = 1
    for channels in params.channels:
        layers += [nn.Conv2d(before, channels, 4, stride=2, padding=1), *active(channels)]
        before = channels
    layers += [nn.Flatten(), nn.Linear(last * side * side, params.latent)]
    layers += [nn.Linear(params.latent, last * side * side), nn.Unflatten(1, (last, side, side)), *active(last)]
    for channels in reversed(params.channels[:-1]):
        layers += [nn.ConvTranspose2d(before, channels, 4, stride=2, padding=1), *active(channels)]
        before = channels
    return nn.Sequential(*layers, nn.ConvTranspose2d(before, 1, 4, stride=2, padding=1))


class AE(NetworkMethod):
    """A plain autoencoder: healthy anatomy passes a dense bottleneck, lesions do not; the map is what is lost.

    Input and reconstruction are compared on the network's grid, inside the brain; the residual is smoothed there and brought
    back to the grid of the slice. A spatial latent would copy the lesion, so the latent is a vector.
    """

    name = "ae"
    Params = AEParams
    params: AEParams
    card = Card(
        paper="Baur et al. 2021, Med. Image Anal. 69, 101952, doi 10.1016/j.media.2020.101952",
        equations=("training: min mean|x - D(E(x))|", "map: G_sigma * |x - D(E(x))|"),
        variants={"standardise": "slices on one intensity scale first", "sigma": "smoothing of the residual"},
        deviations=("no median filter and no connected components: post-processing is the same for every method",),
        published=(
            "MSLUB FLAIR: pooled Dice .271 with an oracle threshold (Meissen et al. 2021, arXiv 2109.06023)",
            "per-volume Dice .15 to .33 on BraTS T2 when trained on IXI",
        ),
        tried=(
            "real FLAIR strokes, validation AUPRC of tiny: without standardising .068, with it .173 (sigma 2), .204 (3), .225 (4), .238 (5)",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "channels": (16, 32, 64, 64, 64),
            "steps": 400,
            "batch": 16,
            "lr": 1e-3,
            "warmup": 20,
            "schedule": "cosine",
            "sigma": 4.0,
            "standardise": True,
        },
        "base": {},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "channels": (8, 16, 16), "steps": 6}

    def build(self) -> nn.Module:
        return build_network(self.params)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        from adbench.methods import training
        from adbench.methods.common import fit_network, image_ops
        from adbench.methods.common.prefetch import Pictures

        p = self.params
        with training.seeded(self.ctx.seed, self.name, "init"):
            self._network = self.build()

        def make(source: Pictures, indices: torch.Tensor, generator: torch.Generator, vary: bool) -> training.Batch:
            image, brain = source.get(indices)
            return {"image": image_ops.augment(image, brain, generator)[0] if vary and p.augment else image}

        def loss(module: nn.Module, batch: training.Batch) -> torch.Tensor:
            return (module(batch["image"]) - batch["image"]).abs().mean()

        return fit_network.fit_network(
            "autoencoder", self.name, self._network, make, loss, p, (train, val), self.ctx, schedule=p.schedule
        )

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import Frame, fast

        with torch.inference_mode():
            frame = Frame.of(batch, self.params.image_size, self.params.standardise)
            with fast(frame.image.device):
                recon = self._network(frame.image)
            recon = recon.float().clamp(0, 1)
            residual = gaussian_blur((frame.image - recon).abs() * frame.brain, self.params.sigma)
            return frame.stretched(residual), frame.restored(recon)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=2.0)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 3e-5, "high": 3e-3, "log": True},
            "latent": {"choices": [32, 64, 128, 256]},
            "sigma": {"low": 0.0, "high": 6.0},
        }
