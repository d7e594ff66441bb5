"""IterMask2: unmask step by step what can be painted in from its surroundings and edges (Liang et al., MICCAI 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from adbench.methods.base import FitReport
from adbench.methods.common.params import (
    BATCH,
    CHANNELS,
    CLIP,
    IMAGE_SIZE,
    LR,
    SIGN,
    STANDARDISE,
    STEM,
    STEPS,
    TINY_UNET,
    NetworkParams,
    Sign,
    check_unet,
)
from adbench.methods.trained_network import TrainedNetwork
from adbench.params import param
from adbench.utils.compute import to_device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.preprocess import Preprocessed, SliceLoader
    from adbench.methods.training import Batch

PAPER = "arXiv 2406.02422"
GRID = 240  # px of the grid that the sizes of squares are given on
# Sides of the squares of a training mask in px of that grid, and how many a mask has at least and at most.
SQUARES = {4: (20, 60), 8: (5, 9), 16: (3, 9)}
UNIT = 4.0  # px of that grid, in which the variances of their places are given

Network = Callable[["torch.Tensor"], "torch.Tensor"]
Draw = Callable[["torch.Tensor"], "torch.Tensor"]


class IterMaskParams(NetworkParams):
    """Parameters of :class:`IterMask`."""

    image_size: int = IMAGE_SIZE(128, source=PAPER)
    channels: tuple[int, ...] = CHANNELS((32, 64, 96, 128), source="adbench (after the official code)", max_length=6)
    stem: int = STEM(1, source="adbench")
    standardise: bool = STANDARDISE(True, source="adbench (after the official code)")
    steps: int = STEPS(150_000, doc="Optimiser steps, in each of which both networks learn.", source="official code")
    batch: int = BATCH(32, source="official code")
    lr: float = LR(1e-4, source="official code")
    clip: float = CLIP(0.0, source="official code")
    radius: float = param(
        15.0, "Frequencies below it lose their amplitude in the condition.", unit="cycles per slice", source=PAPER, ge=0, le=256,
    )  # fmt: skip
    start: float = param(
        0.6, "Share of the brain that is masked at first, where F errs most.", source=PAPER, gt=0, le=1
    )
    percentile: float = param(
        0.8, "Share of the masked pixels of healthy validation slices whose error is below the threshold.", source=PAPER, gt=0, lt=1,
    )  # fmt: skip
    shrink: float = param(
        0.01, "A slice is done when its mask loses a smaller share.", source="official code", ge=0, lt=1, scores=True
    )
    iterations: int = param(
        20, "Largest number of times that a slice is painted in.", source="adbench", ge=1, le=200, scores=True
    )
    sign: Sign = SIGN("abs", source="adbench")

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        check_unet(self.image_size, self.channels, self.stem)
        return self


def without_low_frequencies(image: torch.Tensor, radius: float) -> torch.Tensor:
    """The condition c(x): amplitude 1 in the 2-D Fourier transform at frequencies below ``radius``, every phase kept.

    Args:
        image: (B, 1, H, W).
        radius: in cycles per image; 0 changes nothing.
    """
    import torch

    spectrum = torch.fft.fft2(image.double())
    rows, columns = (torch.fft.fftfreq(side, 1 / side, device=image.device) for side in image.shape[-2:])
    low = rows[:, None].square() + columns.square() < radius**2
    phase = torch.polar(torch.ones_like(spectrum.real), spectrum.angle())
    changed: torch.Tensor = torch.fft.ifft2(torch.where(low, phase, spectrum)).real
    return changed.to(image.dtype)


def square_clusters(brain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random training masks: squares of three sizes around a random brain pixel, cut to the brain.

    Places are normal around that pixel with two variances ~ U(.3, 10) of ``UNIT``² along random axes; with probability 1/3 they
    spread four times as wide.

    Args:
        brain: (B, 1, S, S) bool.
        generator: a CPU generator.

    Returns:
        (B, 1, S, S) bool, on the device of ``brain``.
    """
    import torch
    import torch.nn.functional as F

    from adbench.methods.common.image_ops import uniform

    count, _, height, width = brain.shape
    px = width / GRID
    inside = brain.flatten(1).cpu()
    possible = inside | ~inside.any(dim=1, keepdim=True)
    centre = torch.multinomial(possible.float(), 1, generator=generator)[..., None]
    centre = torch.cat([centre // width, centre % width], dim=-1)  # (B, 1, 2) row, column
    wide = 1 + 3 * (torch.rand((count, 1, 1), generator=generator) < 1 / 3)
    spread = uniform((count, 1, 2), 0.3, 10.0, generator).sqrt() * wide * (UNIT * px)
    angle = uniform((count, 1), 0.0, math.pi, generator)
    mask = torch.zeros((count, 1, height, width))
    for side, (fewest, most) in SQUARES.items():
        along = torch.randn((count, most, 2), generator=generator) * spread
        turned = [
            along[..., 0] * angle.cos() - along[..., 1] * angle.sin(),
            along[..., 0] * angle.sin() + along[..., 1] * angle.cos(),
        ]
        row, column = (centre + torch.stack(turned, dim=-1)).round().long().unbind(-1)
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        number = torch.randint(fewest, most + 1, (count, 1), generator=generator)
        there &= torch.arange(most) < number
        places = torch.zeros((count, height * width))
        places.scatter_add_(1, row.clamp(0, height - 1) * width + column.clamp(0, width - 1), there.float())
        size = max(1, round(side * px))
        padded = F.pad(places.view(count, 1, height, width), [(size - 1) // 2, size // 2] * 2)
        mask = torch.maximum(mask, F.max_pool2d(padded, size, stride=1).clamp(max=1))
    return (mask > 0).to(brain.device) & brain


def worst(error: torch.Tensor, brain: torch.Tensor, share: float) -> torch.Tensor:
    """The ``share`` of the brain's pixels where ``error`` (B, 1, S, S) is largest, (B, 1, S, S) bool; equal errors count as low."""
    from adbench.methods.common.image_ops import brain_quantiles

    level = brain_quantiles(error, brain, (1 - share,)).view(-1, 1, 1, 1)
    return (error > level) & brain


def unmask(
    image: torch.Tensor,
    mask: torch.Tensor,
    paint: Draw,
    threshold: float,
    *,
    shrink: float = 0.01,
    iterations: int = 20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paint in what is masked, unmask where that comes close to the slice, and again until little changes.

    ``m ← m · [(x - R(x, m))² > τ]``, of each slice until its mask loses less than ``shrink``, or is empty.

    Args:
        image: x, (B, 1, S, S).
        mask: m, (B, 1, S, S) bool, the first.
        paint: R, from a mask to an image; it is called at least once, and a slice's last call counts.
        threshold: τ.
        shrink: share of a mask, below which it is done.
        iterations: calls, at most.

    Returns:
        What was painted last, (B, 1, S, S); the last mask; and how often each slice was painted, (B,).
    """
    import torch

    active = torch.ones(len(image), dtype=torch.bool, device=image.device)
    painted, times = torch.zeros_like(image), torch.zeros(len(image), dtype=torch.long, device=image.device)
    for _ in range(iterations):
        new = paint(mask)
        painted = torch.where(active.view(-1, 1, 1, 1), new, painted)
        times += active
        smaller = mask & ((image - painted).square() > threshold) & active.view(-1, 1, 1, 1)
        before, after = (part.flatten(1).sum(dim=1) for part in (mask, smaller))
        mask = torch.where(active.view(-1, 1, 1, 1), smaller, mask)
        active = active & (before - after >= shrink * before) & (after > 0)
        if not bool(active.any()):
            break
    return painted, mask, times


class IterMask(TrainedNetwork):
    """Two UNets and a mask that shrinks: what cannot be painted in from around it and from fine structure stays masked.

    F makes the slice from its high frequencies alone; where it errs most, the slice is masked. R paints the mask in, from what is
    left and the same frequencies; where that agrees with the slice, the mask is lifted, step by step.
    """

    name = "itermask"
    gpu_memory_gb = 6.0
    stage = "networks"
    Params = IterMaskParams
    params: IterMaskParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**TINY_UNET, "steps": 300, "batch": 16, "clip": 1.0, "radius": 11.0, "shrink": 0.1},
        "base": {"steps": 20_000, "lr": 3e-4, "ema": 0.999, "sigma": 5.0},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {
        "image_size": 32,
        "channels": (8, 16),
        "stem": 1,
        "steps": 6,
        "batch": 4,
        "radius": 4.0,
    }
    _threshold = 0.0  # while the networks are trained: nothing is unmasked, and the first painting counts

    def build(self) -> nn.Module:
        from torch import nn

        from adbench.methods.common.networks import DenoisingUNet

        p = self.params
        return nn.ModuleDict(
            {"whole": DenoisingUNet(p.channels, p.stem), "inside": DenoisingUNet(p.channels, p.stem, inputs=2)}
        )

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        import torch

        from adbench.methods.common.image_ops import centred

        image, brain = slices.get(indices)
        image = centred(image, brain)
        return {
            "image": image,
            "condition": without_low_frequencies(image, self.params.radius),
            "mask": square_clusters(brain, generator),
            "noise": torch.randn(image.shape, generator=generator).to(image.device),
        }

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean square errors over the slice of both networks, added; neither has a weight of the other."""
        import torch
        import torch.nn.functional as F

        both: Any = network
        image, condition = batch["image"], batch["condition"]
        seen = torch.where(batch["mask"], batch["noise"], image)
        inside = both["inside"](torch.cat([seen, condition], dim=1))
        return F.mse_loss(both["whole"](condition), image) + F.mse_loss(inside, image)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Train both networks; take the threshold from healthy validation slices (the training slices where there are none)."""
        import numpy as np
        import torch

        from adbench.methods.common.preprocess import frozen, preprocess

        p = self.params
        report = super().fit(train, val)
        frozen(self._network, self.ctx.device)
        held_out = (val if val is not None and len(val) else train).limited(self.val_slices)
        found = []
        with torch.inference_mode():
            for batch in held_out.batches(self.val_batch):
                seen = preprocess(batch.to(self.ctx.device), p.image_size, p.standardise)
                image, mask, paint = self._started(seen)
                found.append((image - paint(mask)).square()[mask].double().cpu())
        errors = torch.cat(found).numpy()
        self._threshold = float(np.quantile(errors, p.percentile)) if len(errors) else 0.0
        report.best["threshold"] = self._threshold
        return report

    def _started(self, seen: Preprocessed) -> tuple[torch.Tensor, torch.Tensor, Draw]:
        """The slices on the scale of the networks, their first masks, and R with noise of its own for every slice."""
        import torch

        from adbench.methods.common.image_ops import centred
        from adbench.methods.training import generator

        both: Any = self._network
        image = centred(seen.image, seen.brain)
        condition = without_low_frequencies(image, self.params.radius)
        streams = [
            generator(self.ctx.seed, "score", *each)
            for each in zip(seen.batch.subjects, seen.batch.slices, strict=True)
        ]

        def paint(mask: torch.Tensor) -> torch.Tensor:
            noise = torch.stack([torch.randn(image.shape[1:], generator=one) for one in streams])
            noise = to_device(noise, self.ctx.device)
            return self.infer(both["inside"], torch.cat([torch.where(mask, noise, image), condition], dim=1))[0]

        (whole,) = self.infer(both["whole"], condition)
        return image, worst((image - whole).square(), seen.brain, self.params.start), paint

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import CENTRE, SPREAD, gaussian_blur, one_sided
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            image, mask, paint = self._started(seen)
            painted, _, _ = unmask(image, mask, paint, self._threshold, shrink=p.shrink, iterations=p.iterations)
            recon = (painted * SPREAD + CENTRE) * seen.brain
            error = seen.to_slice_grid(one_sided(image - painted, p.sign).square() * seen.brain) * batch.brain
            return gaussian_blur(error, p.sigma), seen.restore(recon.clamp(0, 1))

    def notes(self) -> dict[str, Any]:
        return {"threshold": self._threshold}

    def load_notes(self, notes: dict[str, Any]) -> None:
        self._threshold = float(notes["threshold"])

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 1e-4, "high": 5e-3, "log": True},
            "radius": {"low": 0.0, "high": 30.0},
            "percentile": {"low": 0.5, "high": 0.95},
            "start": {"low": 0.2, "high": 1.0},
            "sigma": {"low": 0.0, "high": 8.0},
        }
