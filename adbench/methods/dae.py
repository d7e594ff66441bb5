"""Denoising autoencoder with coarse noise (Kascenas et al. 2022, MIDL, PMLR 172, 653-664)."""

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

GROUPS = 8


class DAEParams(TrainedParams):
    image_size: int = param(
        128,
        "Side of the network's square grid; slices are resized to it.",
        unit="px",
        source="Kascenas 2022",
        ge=32,
        le=512,
    )
    channels: tuple[int, ...] = param(
        (64, 128, 256, 512),
        "Channels by level; each level halves the grid.",
        source="adbench (after Kascenas 2022)",
        min_length=2,
        max_length=6,
    )
    stem: int = param(
        1,
        "The network sees squares of so many px folded into channels: 2 quarters the cost.",
        unit="px",
        source="adbench",
        ge=1,
        le=4,
    )
    cells: int = param(
        16, "Lattice points of the noise along a side.", unit="points", source="Kascenas 2022", ge=2, le=128
    )
    noise_std: float = param(
        0.2,
        "Standard deviation of the noise at its lattice points.",
        unit="of the intensity range",
        source="Kascenas 2022",
        gt=0,
        le=2,
    )
    standardise: bool = param(
        False,
        "Every slice on one intensity scale: its brain's median at 0.4, its interquartile range 0.15 wide.",
        source="adbench",
    )
    loss: Literal["l1", "l2"] = param("l2", "Distance to the clean slice, inside the brain.", source="Kascenas 2022")
    steps: int = param(67_200, "Optimiser steps.", unit="steps", source="adbench (after Kascenas 2022)", ge=1)
    batch: int = param(16, "Slices a step.", unit="slices", source="Kascenas 2022", ge=1, le=4096)
    lr: float = param(1e-4, "Peak learning rate of Adam.", source="adbench (after Kascenas 2022)", gt=0, le=1)
    warmup: int = param(100, "Linear warm-up.", unit="steps", source="adbench", ge=0)
    schedule: Literal["constant", "cosine"] = param(
        "cosine", "Learning rate after warm-up.", source="adbench (after Kascenas 2022)"
    )
    ema: float = param(0.0, "Decay of the averaged weights, 0: none.", source="adbench", ge=0, lt=1)
    clip: float = param(1.0, "Largest gradient norm, 0: not clipped.", source="adbench", ge=0)
    augment: bool = param(
        False, "Rotate, shift, brighten and contrast training slices.", source="arXiv 2502.16943, official code"
    )
    flip: bool = param(False, "Mirror training slices left-right, p = .5.", source="adbench")
    sign: Literal["abs", "positive", "negative"] = param(
        "abs",
        "Which residuals count: both, brighter than the reconstruction, darker (a prior on the contrast of lesions).",
        source="adbench",
    )
    sigma: float = param(
        0.0, "Gaussian smoothing of the map, 0: none.", unit="px of the slice", source="adbench", ge=0, le=50
    )
    smooth: Literal["magnitude", "signed"] = param(
        "magnitude", "What is smoothed: the residual after or before its sign is taken.", source="adbench"
    )

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        unit = self.stem * 2 ** (len(self.channels) - 1)
        if self.image_size % unit or any(c < GROUPS or c % GROUPS for c in self.channels):
            raise ValueError(
                f"image_size must be a multiple of {unit} (stem, and one halving a level) and channels multiples of {GROUPS}"
            )
        if self.cells > self.image_size:
            raise ValueError("cells may not be larger than image_size")
        return self


def build_network(channels: tuple[int, ...], stem: int = 1) -> nn.Module:
    """A UNet with skips: (B, 1, S, S) -> (B, 1, S, S), unbounded.

    A level is two 3x3 convolutions, each with GroupNorm and SiLU; grids are halved by averaging, doubled by repetition.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    def level(before: int, after: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for entry in (before, after):
            layers += [nn.Conv2d(entry, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.SiLU(inplace=True)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            entries = (stem * stem, *channels[:-1])
            self.down = nn.ModuleList(level(a, b) for a, b in zip(entries, channels, strict=True))
            pairs = list(zip(channels[1:], channels[:-1], strict=True))[::-1]
            self.up = nn.ModuleList(level(below + here, here) for below, here in pairs)
            self.out = nn.Conv2d(channels[0], stem * stem, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = F.pixel_unshuffle(image, stem)
            skips: list[torch.Tensor] = []
            for depth, block in enumerate(self.down):
                x = block(F.avg_pool2d(x, 2) if depth else x)
                skips.append(x)
            skips.pop()
            for block in self.up:
                x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
            return F.pixel_shuffle(self.out(x), stem)

    return UNet()


class DAE(NetworkMethod):
    """A UNet learns to take coarse noise away from healthy slices; at test it takes away what looks like it: lesions.

    One pass, no noise at test. Coarseness matters: fine noise teaches a network with skips nothing about lesions.
    """

    name = "dae"
    Params = DAEParams
    params: DAEParams
    card = Card(
        paper="Kascenas et al. 2022, MIDL, PMLR 172, 653-664, https://proceedings.mlr.press/v172/kascenas22a.html",
        equations=(
            "noise: n = bilinear(N(0, std^2) on a lattice of 16 x 16 points at a random place), inside the brain only",
            "training: min mean (f(x + n) - x)^2 over the brain",
            "map: |x - f(x)|, or its bright or dark side",
        ),
        variants={
            "sign": "absolute, bright or dark residual",
            "cells, noise_std": "coarseness and strength of the noise",
            "loss": "l2 or l1",
            "standardise": "slices on one intensity scale first",
        },
        deviations=(
            "one modality instead of four",
            "no weight standardisation, Adam without AMSGrad: fewer parts with the same role",
            "no median filter: post-processing is the same for every method",
            "the loss counts inside the brain, where maps are compared",
        ),
        published=(
            "better than VAEs and other reconstruction methods on BraTS tumours with four modalities (Kascenas 2022); no number for one modality and another training set is known to us",
        ),
        tried=(
            "real FLAIR strokes, validation AUPRC, abs / positive: noise .2 on 16 points .50 / .55 (150 steps), on 8 points .54 / .58 (200 steps), .60 / .62 (400)",
            "noise .1 on 8 points .62 / .64 (400 steps), .64 / .66 (1,200); noise .06 .61 / .63; the other side of the brain as a second input .61 / .63",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "image_size": 96,
            "channels": (32, 64, 128),
            "stem": 2,
            "cells": 8,
            "noise_std": 0.1,
            "steps": 400,
            "lr": 2e-3,
            "warmup": 20,
            "standardise": True,
            "flip": True,
            "sigma": 5.0,
        },
        "base": {
            "steps": 20_000,
            "lr": 3e-4,
            "ema": 0.999,
            "cells": 8,
            "noise_std": 0.1,
            "standardise": True,
            "flip": True,
            "sigma": 5.0,
        },
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {
        "image_size": 32,
        "channels": (8, 16),
        "stem": 1,
        "steps": 6,
        "batch": 4,
        "cells": 8,
    }

    def build(self) -> nn.Module:
        return build_network(self.params.channels, self.params.stem)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        from adbench.methods import training
        from adbench.methods.common import augment as slicewise
        from adbench.methods.common import fit_network, image_ops, noise
        from adbench.methods.common.prefetch import Pictures

        p = self.params
        size = (p.image_size, p.image_size)
        with training.seeded(self.ctx.seed, self.name, "init"):
            self._network = self.build()

        def make(source: Pictures, indices: torch.Tensor, generator: torch.Generator, vary: bool) -> training.Batch:
            image, brain = source.get(indices)
            if vary and p.flip:
                image, brain = slicewise.mirror(image, brain, generator)
            if vary and p.augment:
                image, brain = image_ops.augment(image, brain, generator)
            added = noise.coarse(len(image), size, generator, cells=p.cells, std=p.noise_std).to(image.device)
            return {"noisy": image + added * brain, "image": image, "brain": brain}

        def loss(module: nn.Module, batch: training.Batch) -> torch.Tensor:
            error = module(batch["noisy"]) - batch["image"]
            distance = error.abs() if p.loss == "l1" else error.square()
            return distance[batch["brain"]].sum() / batch["brain"].sum().clamp(min=1)

        return fit_network.fit_network(
            "denoiser", self.name, self._network, make, loss, p, (train, val), self.ctx, schedule=p.schedule
        )

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common import augment as slicewise
        from adbench.methods.common.preprocess import Frame, fast

        p = self.params
        with torch.inference_mode():
            frame = Frame.of(batch, p.image_size, p.standardise)
            with fast(frame.image.device):
                recon = self._network(frame.image)
            recon = recon.float()
            maps = slicewise.signed_map(frame.residual(recon), p.sign, p.sigma, p.smooth)
            return maps, frame.restored(recon)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=6.0)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 1e-4, "high": 5e-3, "log": True},
            "cells": {"choices": [6, 8, 12, 16, 24, 32]},
            "noise_std": {"low": 0.1, "high": 0.6},
            "sigma": {"low": 0.0, "high": 8.0},
        }
