"""Denoising autoencoder with coarse noise (Kascenas et al. 2022, MIDL, PMLR 172, 653-664)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import (
    AUGMENT,
    BATCH,
    CHANNELS,
    IMAGE_SIZE,
    LR,
    SCHEDULE,
    SIGN,
    STEM,
    STEPS,
    TINY_UNET,
    WARMUP,
    NetworkParams,
    Sign,
    check_unet,
)
from adbench.methods.trained_network import TrainedNetwork
from adbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch

AFTER = "adbench (after Kascenas 2022)"


class DAEParams(NetworkParams):
    """Parameters of :class:`DAE`."""

    image_size: int = IMAGE_SIZE(128, source="Kascenas 2022")
    channels: tuple[int, ...] = CHANNELS((64, 128, 256, 512), source=AFTER, min_length=2, max_length=6)
    stem: int = STEM(1, source="adbench")
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
    loss: Literal["l1", "l2"] = param("l2", "Distance to the clean slice, inside the brain.", source="Kascenas 2022")
    steps: int = STEPS(67_200, source=AFTER)
    batch: int = BATCH(16, source="Kascenas 2022")
    lr: float = LR(1e-4, source=AFTER)
    warmup: int = WARMUP(100, source="adbench")
    schedule: Literal["constant", "cosine"] = SCHEDULE("cosine", source=AFTER)
    augment: bool = AUGMENT(False, source="arXiv 2502.16943, official code")
    flip: bool = param(False, "Mirror training slices left-right with probability 0.5.", source="adbench")
    sign: Sign = SIGN("abs", source="adbench")
    smooth: Literal["magnitude", "signed"] = param(
        "magnitude", "What is smoothed: the residual after or before its sign is taken.", source="adbench", scores=True
    )

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        check_unet(self.image_size, self.channels, self.stem)
        if self.cells > self.image_size:
            raise ValueError("cells may not be larger than image_size")
        return self


class DAE(TrainedNetwork):
    """A UNet learns to remove coarse noise from healthy slices; at test it removes what looks like it: lesions.

    One pass, no noise at test. Coarseness matters: fine noise teaches a network with skips nothing about lesions.
    """

    name = "dae"
    gpu_memory_gb = 6.0
    stage = "denoiser"
    Params = DAEParams
    params: DAEParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **TINY_UNET,
            "cells": 8,
            "noise_std": 0.1,
            "steps": 400,
            "standardise": True,
            "flip": True,
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
        from adbench.methods.common.networks import DenoisingUNet

        return DenoisingUNet(self.params.channels, self.params.stem)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        from adbench.methods.common import image_ops, noise

        p = self.params
        image, brain = slices.get(indices)
        if training and p.flip:
            image, brain = image_ops.random_flip(image, brain, generator)
        if training and p.augment:
            image, brain = image_ops.augment(image, brain, generator)
        added = noise.coarse(len(image), slices.size, generator, cells=p.cells, std=p.noise_std).to(image.device)
        return {"noisy": image + added * brain, "image": image, "brain": brain}

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean absolute or squared error of the denoised slices over their brains."""
        error: torch.Tensor = network(batch["noisy"]) - batch["image"]
        distance, brain = error.abs() if self.params.loss == "l1" else error.square(), batch["brain"]
        # To pick out pixels the host waits for a GPU; to add zeros moves the last digit on a CPU.
        inside = distance[brain] if brain.is_cpu else distance * brain
        return inside.sum() / brain.sum().clamp(min=1)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import signed_map
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            recon = self.apply(seen.image)
            return signed_map(seen.residual(recon), p.sign, p.sigma, p.smooth), seen.restore(recon)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 1e-4, "high": 5e-3, "log": True},
            "cells": {"choices": [6, 8, 12, 16, 24, 32]},
            "noise_std": {"low": 0.1, "high": 0.6},
            "sigma": {"low": 0.0, "high": 8.0},
        }
