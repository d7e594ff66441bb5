"""Restoration of synthetic anomalies: DISYRE (arXiv 2311.15453, 2407.06635); as a detector FPI, PII and NSA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.errors import UserError
from adbench.methods.base import FitReport
from adbench.methods.common.params import (
    BATCH,
    CHANNELS,
    EMA,
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

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch


class RestoreParams(NetworkParams):
    """Parameters of :class:`Restore`."""

    image_size: int = IMAGE_SIZE(128, source="DISYRE")
    channels: tuple[int, ...] = CHANNELS((32, 64, 96, 128, 256, 256), source="DISYRE", min_length=2)
    stem: int = STEM(1, source="adbench")
    corruption: Literal["fpi", "dag", "bias", "poisson"] = param(
        "dag",
        "What training slices suffer: foreign patch; patch of matched range, then tissue bias; bias alone; patch without seam.",
        source="FPI; DISYRE v2 (dag, bias); PII, NSA (poisson)",
    )
    detect: bool = param(
        False, "The network predicts where the slice was changed and restores nothing.", source="FPI, PII, NSA"
    )
    label: Literal["graded", "binary"] = param(
        "graded",
        "With detect, what it predicts: the share of what is foreign in a pixel, or whether there is any.",
        source="FPI, PII (graded); NSA (binary)",
    )
    severities: int = param(
        5,
        "Severities, evenly spread up to strength, that the network is told at test, one pass each; 0: it is told none, ever. Not with detect.",
        source="DISYRE v2 (4 to 5)",
        ge=0,
        le=50,
    )
    sampler: Literal["mean", "cold"] = param(
        "mean",
        "Residuals of the slice at each severity, averaged; or of the slice that is led from the largest severity down to 0.",
        source="DISYRE v2 (mean-single-step, multi-step)",
        scores=True,
    )
    smallest: float = param(10.0, "Shortest side of a shape on a grid of 128 px.", unit="px", source="DISYRE", ge=1)
    largest: float = param(44.0, "Longest side of a shape on a grid of 128 px.", unit="px", source="DISYRE", le=128)
    strength: float = param(1.0, "Largest strength; each slice has U(0, strength).", source="DISYRE", gt=0, le=1)
    loss: Literal["l1", "l2"] = param(
        "l2", "Distance to the clean slice, inside the brain. Not with detect.", source="DISYRE"
    )
    steps: int = STEPS(100_000, source="DISYRE")
    batch: int = BATCH(96, source="DISYRE")
    lr: float = LR(1e-4, source="DISYRE")
    warmup: int = WARMUP(500, source="DISYRE")
    schedule: Literal["constant", "cosine"] = SCHEDULE("cosine", source="DISYRE")
    ema: float = EMA(0.0, source="DISYRE")
    flip: bool = param(True, "Mirror training slices left-right with probability 0.5.", source="DISYRE")
    sign: Sign = SIGN(
        "abs", doc="Which differences count: both, only brighter, or only darker. Not with detect.", source="adbench"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_unet(self.image_size, self.channels, self.stem)
        if self.smallest > self.largest:
            raise ValueError(f"smallest ({self.smallest:g} px) may not exceed largest ({self.largest:g} px)")
        if self.detect and self.corruption in ("dag", "bias"):
            raise ValueError("detect works with corruption=fpi or poisson: a bias has no foreign share to predict")
        if self.detect and self.loss != "l2":
            raise ValueError(
                f"loss = {self.loss} is of restored slices, and detect restores none: leave one of them out"
            )
        if self.label != "graded" and not self.detect:
            raise ValueError(f"label = {self.label} is what detect predicts: set detect = true, or leave label out")
        if self.sampler == "cold" and (self.detect or not self.severities):
            raise ValueError("sampler=cold restores severity by severity: it needs severities above 0 and no detect")
        return self

    @property
    def told(self) -> bool:
        """Whether the network is told a severity."""
        return self.severities > 0 and not self.detect


class Restore(TrainedNetwork):
    """A UNet repairs slices that were damaged on purpose, told how badly; at test it repairs what looks damaged: lesions.

    With ``detect`` it predicts the damage instead of repairing it.
    """

    name = "restore"
    gpu_memory_gb = 6.0
    stage = "restorer"
    Params = RestoreParams
    params: RestoreParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**TINY_UNET, "steps": 400, "batch": 16, "standardise": True},
        "base": {"steps": 20_000, "batch": 32, "lr": 3e-4, "ema": 0.999, "standardise": True, "sigma": 5.0},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 32, "channels": (8, 16), "stem": 1, "steps": 6, "batch": 4}

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Train the network; foreign tissue is that of another slice, so there must be two.

        Raises:
            UserError: there is one training slice, and it would be damaged with itself.
        """
        alone = val is not None and len(val) == 1
        if self.params.corruption == "bias":
            return super().fit(train, val)
        if len(train) == 1:
            raise UserError(
                f"restore.corruption = {self.params.corruption} takes foreign tissue from another training slice, and there is "
                "one slice in all: give more, or set restore.corruption=bias."
            )
        report = super().fit(train, None if alone else val)
        if alone:
            said = "One validation slice has no other that it could be damaged with: the last weights were kept."
            report.notes.append(said)
        return report

    def build(self) -> nn.Module:
        from adbench.methods.common.networks import DenoisingUNet

        return DenoisingUNet(self.params.channels, self.params.stem, 2 if self.params.told else 1)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        import torch

        from adbench.methods.common import image_ops

        p = self.params
        image, brain = slices.get(indices)
        donors = (indices + torch.randint(1, max(2, len(slices)), (len(indices),), generator=generator)) % len(slices)
        foreign, covered = slices.get(donors)
        if training and p.flip:
            image, brain = image_ops.random_flip(image, brain, generator)
            foreign, covered = image_ops.random_flip(foreign, covered, generator)
        corrupted, severity, label = self._corrupted(image, brain, foreign, covered, generator)
        return {"image": image, "brain": brain, "corrupted": corrupted, "severity": severity, "label": label}

    def _corrupted(
        self,
        image: torch.Tensor,
        brain: torch.Tensor,
        foreign: torch.Tensor,
        covered: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Slices with one anomaly each, its severity (B, 1, 1, 1), and the share of what is foreign (B, 1, S, S), both in [0, 1].

        Args:
            image: (B, 1, S, S) in [0, 1].
            brain: (B, 1, S, S) bool.
            foreign: of other slices.
            covered: their brains.
            generator: a CPU generator.
        """
        import torch

        from adbench.methods.common import corruptions, image_ops

        p, count, scale = self.params, len(image), self.params.image_size / 128
        shape = corruptions.shapes(brain, generator, p.smallest * scale, p.largest * scale)
        strength, change = (
            image_ops.uniform((count, 1, 1, 1), 0, p.strength, generator).to(image.device) for _ in range(2)
        )
        up = (torch.rand((count, 1, 1, 1), generator=generator) < 0.5).to(image.device)
        known = shape * covered  # nothing comes from a foreign background
        out, severity = image, torch.zeros_like(strength)
        if p.corruption == "poisson":
            out, severity = corruptions.poisson(image, foreign, known, brain, strength), strength
        elif p.corruption != "bias":
            other = corruptions.matched(image, foreign, known) if p.corruption == "dag" else foreign
            out, severity = corruptions.blend(image, other, known, strength).clamp(0, 1), strength
        if p.corruption in ("dag", "bias"):
            where = corruptions.tissue(image, brain, shape, generator)
            biased = corruptions.shifted(out, where, torch.where(up, change, -change))
            severity = torch.maximum(severity, (biased - out).abs().amax(dim=(2, 3), keepdim=True))
            out = biased
        return out, severity, strength * known

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Squared or absolute error of the restored slices, or cross entropy of the label, over their brains."""
        import torch.nn.functional as F

        p, brain = self.params, batch["brain"]
        if p.detect:
            label = batch["label"] if p.label == "graded" else (batch["label"] > 0).float()
            distance = F.binary_cross_entropy_with_logits(network(batch["corrupted"]), label, reduction="none")
        else:
            error = network(self._seen(batch["corrupted"], batch["severity"])) - batch["image"]
            distance = error.abs() if p.loss == "l1" else error.square()
        inside = distance[brain] if brain.is_cpu else distance * brain
        return inside.sum() / brain.sum().clamp(min=1)

    def _seen(self, image: torch.Tensor, severity: torch.Tensor | float) -> torch.Tensor:
        """What the network is shown: slices, and a plane that holds the severity."""
        import torch

        if not self.params.told:
            return image
        return torch.cat([image, torch.ones_like(image) * severity], dim=1)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur, one_sided
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            if p.detect:
                maps = seen.to_slice_grid(torch.sigmoid(self.apply(seen.image)) * seen.brain) * batch.brain
                return gaussian_blur(maps, p.sigma), None
            restored = self._restored(seen.image)
            parts = [one_sided(seen.residual(one), p.sign) for one in restored]
            return gaussian_blur(torch.stack(parts).mean(0), p.sigma), seen.restore(torch.stack(restored).mean(0))

    def _restored(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Slices as restored at each severity, or once in the end (``cold``)."""
        p = self.params
        levels = [p.strength * (k + 1) / p.severities for k in range(p.severities)] if p.told else [0.0]
        if p.sampler == "mean":
            return [self.apply(self._seen(image, level)) for level in levels]
        x = image
        for level, to in zip(levels[::-1], [*levels[-2::-1], 0.0], strict=True):
            x = cold_step(x, self.apply(self._seen(x, level)), level, to)
        return [x]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return None if self.params.detect else super().reconstruct(batch)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 1e-4, "high": 5e-3, "log": True},
            "corruption": {"choices": ["fpi", "dag", "bias", "poisson"]},
            "largest": {"low": 15.0, "high": 60.0},
            "strength": {"low": 0.2, "high": 1.0},
            "sigma": {"low": 0.0, "high": 8.0},
        }


def cold_step(x: torch.Tensor, restored: torch.Tensor, level: float, to: float) -> torch.Tensor:
    """One step of cold diffusion, from severity ``level`` in (0, 1] to ``to``: the damage that is left shrinks in proportion.

    With ``x_s = (1 - s) x_0 + s x_1`` and the predicted ``x_0``, ``x_1`` follows from ``x``, and ``x_to`` from both.
    """
    full = (x - (1 - level) * restored) / level
    return (1 - to) * restored + to * full
