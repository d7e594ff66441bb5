"""The autoencoder of the methods that work on latents: trained, loaded or fine-tuned, then frozen, and its latents cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.common import image_ops, perceptual
from adbench.methods.common.perceptual import Difference
from adbench.methods.common.preprocess import SliceLoader, autocast, pieces
from adbench.methods.madad.diffusion import allowed_cells
from adbench.methods.madad.networks import LatentCodec, kl_divergence, new_codec, pretrained_codec

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.datasets.slices import SliceSet
    from adbench.methods.madad.params import AutoencoderParams

VALIDATION_SLICES = 512
CELLS = 10  # cells for each latent channel, at least, to estimate a covariance
COLLAPSED = 1e-6  # variance of the latents' posterior means, relative to that within a posterior, that is rounding


def _perceptual(p: AutoencoderParams, device: str) -> Difference | None:
    """The perceptual term of the autoencoder, if it has one; missing weights are reported before anything is trained."""
    if not (p.ae_steps and p.ae_perceptual_weight):
        return None
    load = {"stlpips": perceptual.load_stlpips, "lpips": perceptual.load_lpips}[p.ae_perceptual]
    return load("train without the term: --set madad.ae_perceptual_weight=0").to(device)


def _autoencoder_loss(
    p: AutoencoderParams, module: nn.Module, batch: training.Batch, difference: Difference | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """L1, KL and perceptual difference, each summed over its elements and divided by the number of pixels; the reconstruction."""
    image = batch["image"]
    recon, mean, std = module(image, batch["noise"])
    pixels = image[0].numel()
    loss = (recon.float() - image).abs().mean() + p.kl_weight * kl_divergence(mean.float(), std.float()) / pixels
    if difference is not None:
        with torch.autocast(image.device.type, enabled=False):  # unit features need more digits than bf16 has
            apart = difference(recon.float() * 0.5 + 0.5, image * 0.5 + 0.5)
        loss = loss + p.ae_perceptual_weight * apart.mean()
    return loss, recon


def plan_of(
    p: AutoencoderParams, samples: int, steps: int, batch: int, lr: float, weight_decay: float = 0.0, share: float = 1.0
) -> training.Plan:
    """The plan of a stage that has ``steps`` of its own, or ``share`` of a budget in minutes."""
    length = p.length(samples, steps, batch)
    return training.Plan(
        steps=length,
        seconds=p.seconds(share),
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        warmup=min(p.warmup, length // 10),
        clip=p.clip,
        ema=p.ema,
        accumulate=p.accumulate,
    )


def _opponent(p: AutoencoderParams, ctx: Context) -> training.Opponent | None:
    if p.gan_weight == 0:
        return None
    from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

    with training.seeded(ctx.seed, "madad", "discriminator"):
        network = PatchDiscriminator(spatial_dims=2, channels=64, in_channels=1, out_channels=1, num_layers_d=3)

    def hinge(module: nn.Module, judge: nn.Module, batch: training.Batch) -> torch.Tensor:
        with torch.no_grad():
            fake = module(batch["image"], batch["noise"])[0]
        real_part = nn.functional.relu(1 - judge(batch["image"])[-1].float()).mean()
        return 0.5 * (real_part + nn.functional.relu(1 + judge(fake)[-1].float()).mean())

    return training.Opponent(network, hinge, start=p.gan_start, lr=p.ae_lr)


def _fit_autoencoder(
    p: AutoencoderParams,
    codec: LatentCodec,
    slices: SliceLoader,
    healthy: SliceLoader | None,
    difference: Difference | None,
    identity: dict[str, Any],
    share: float,
    ctx: Context,
) -> training.StageResult:
    cells = p.image_size // codec.factor
    shape = (codec.channels, cells, cells)
    opponent = _opponent(p, ctx)

    def draw(indices: torch.Tensor, generator: torch.Generator) -> training.Batch:
        image, brain = slices.get(indices)
        if p.augment:
            image, _ = image_ops.augment(image, brain, generator)
        return {"image": image * 2 - 1, "noise": torch.randn((len(indices), *shape), generator=generator)}

    def loss(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        value, recon = _autoencoder_loss(p, module, batch, difference)
        if opponent is not None and step >= opponent.start:
            value = value - p.gan_weight * opponent.module(recon)[-1].mean()
        return value

    portions = training.Portions("autoencoder, validation", ctx.logger)

    def validate(module: nn.Module) -> float:
        assert healthy is not None
        total = 0.0
        for where in pieces(len(healthy), 32):
            image = healthy.get(where)[0] * 2 - 1
            noise = torch.randn(
                (len(where), *shape), generator=training.generator(ctx.seed, "madad", "ae-val", int(where[0]))
            )
            batch = {"image": image, "noise": noise.to(image.device)}
            value = portions.mean(lambda part: _autoencoder_loss(p, module, part, difference)[0], batch)
            total += float(value) * len(where)
        return total / len(healthy)

    plan = plan_of(p, len(slices), p.ae_steps, p.ae_batch, p.ae_lr, share=share)
    stage = training.Stage(
        "autoencoder", codec, len(slices), draw, loss, plan, validate if healthy else None, identity, opponent,
        watched_from=None, steady=opponent is None,
    )  # fmt: skip
    return training.train_stage(stage, ctx)


@dataclass
class Latents:
    """Posterior mean and standard deviation of every slice and of its augmented copies, and where noise may fall.

    Attributes:
        mean: (copies, n, C, h, w) float32, unscaled; copy 0 is the plain slice.
        std: the same shape.
        allowed: (copies, n, 1, h, w) bool.
    """

    mean: torch.Tensor
    std: torch.Tensor
    allowed: torch.Tensor


def encode_all(
    p: AutoencoderParams, codec: LatentCodec, slices: SliceLoader, copies: int, name: str, ctx: Context
) -> Latents:
    """Run the frozen encoder once over every slice and ``copies`` augmented versions of it.

    The result stays on the device when it fits in 30 % of its free memory, else on the CPU.
    """
    device = slices.device
    cells = p.image_size // codec.factor
    total = (copies + 1) * len(slices) * (8 * codec.channels + 1) * cells**2
    keep = device
    if device.type == "cuda" and total > 0.3 * torch.cuda.mem_get_info(device)[0]:
        keep = torch.device("cpu")
    means, stds, allowed = [], [], []
    parts = pieces(len(slices), 32)
    done = 0
    with torch.inference_mode():
        for copy in range(copies + 1):
            for where in parts:
                image, brain = slices.get(where)
                if copy:
                    image, brain = image_ops.augment(
                        image, brain, training.generator(ctx.seed, "madad", name, copy, int(where[0]))
                    )
                with autocast(device):
                    mean, std = codec.encode(image * 2 - 1)
                means.append(mean.float().to(keep))
                stds.append(std.float().to(keep))
                allowed.append(allowed_cells(brain, (cells, cells), p.block, p.background_share).to(keep))
                done += 1
                ctx.progress.update(f"encode {name}", done, len(parts) * (copies + 1))
    shape = (copies + 1, len(slices))
    # clone: tensors made in inference mode cannot take part in training
    mean, std, cells_allowed = (torch.cat(kept).clone() for kept in (means, stds, allowed))
    return Latents(*(kept.view(*shape, *kept.shape[1:]) for kept in (mean, std, cells_allowed)))


def latent_scale(latents: Latents) -> float:
    """1 / standard deviation of the posterior samples of the plain slices, over all cells and channels."""
    mean, std = latents.mean[0].double(), latents.std[0].double()
    return float(1 / (mean.var() + (std**2).mean()).sqrt().clamp(min=1e-6))


@dataclass(frozen=True)
class Healthy:
    """Mean and covariance of the scaled latents of healthy brain, over cells and slices.

    Latents are posterior means, as they are at test.

    Attributes:
        mean: (C,) float64.
        covariance: (C, C) float64.
        cells: how many cells they are from.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    cells: int

    @classmethod
    def of(cls, latents: Latents, scale: float) -> Healthy:
        """From the cells of the plain slices that are nearly all brain.

        Raises:
            UserError: they are too few for a covariance, or all alike.
        """
        inside = latents.allowed[0].squeeze(1)  # (n, h, w)
        mean, std = (part[0].movedim(1, -1)[inside].cpu().double() * scale for part in (latents.mean, latents.std))
        needed = CELLS * mean.shape[1]
        if len(mean) < needed:
            raise UserError(
                f"The training slices have {len(mean)} latent cells inside the brain, and a covariance of {mean.shape[1]} channels "
                f"needs {needed}: give more slices, a larger image_size, a smaller background_share or fewer latent_channels."
            )
        covariance = mean.T.cov().reshape(mean.shape[1], -1)
        if float(covariance.diag().max()) <= COLLAPSED * float((std**2).mean(dim=0).max()):
            raise UserError(
                "The autoencoder gives all healthy cells the same latent, so nothing can be told from them: train it longer, "
                "or lower kl_weight."
            )
        return cls(mean.mean(dim=0), covariance, len(mean))

    @property
    def spectrum(self) -> list[float]:
        """Eigenvalues of the covariance, the largest first."""
        return [float(value) for value in torch.linalg.eigvalsh(self.covariance).flip(0)]

    @cached_property
    def factor(self) -> torch.Tensor:
        """Lower triangular (C, C) L with ``L Lᵀ`` = covariance + 1e-6."""
        return torch.linalg.cholesky(self.covariance + 1e-6 * torch.eye(len(self.mean), dtype=torch.float64))  # type: ignore[no-any-return]

    def to_notes(self) -> dict[str, Any]:
        """JSON values, for :meth:`from_notes`."""
        return {"mean": self.mean.tolist(), "covariance": self.covariance.tolist(), "cells": self.cells}

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> Healthy:
        """What :meth:`to_notes` gave."""
        mean, covariance = (torch.tensor(notes[name], dtype=torch.float64) for name in ("mean", "covariance"))
        return cls(mean, covariance, int(notes["cells"]))


@dataclass
class Encoded:
    """A frozen codec and what it makes of the slices.

    Attributes:
        codec: on the device, in evaluation mode.
        scale: factor on its latents.
        train: latents of the training slices.
        val: latents of the validation slices; None without them.
        identity: what the numbers of later stages depend on besides their own plan.
        stages: the training of the codec, if there was one.
    """

    codec: LatentCodec
    scale: float
    train: Latents
    val: Latents | None
    identity: dict[str, Any]
    stages: list[tuple[str, training.StageResult]]


def fit_codec(
    p: AutoencoderParams, train: SliceSet, val: SliceSet | None, ctx: Context, copies: int, share: float
) -> Encoded:
    """Train (or load, or fine-tune) the autoencoder, freeze it and cache the latents.

    Args:
        p: parameters.
        train: healthy slices.
        val: healthy slices that choose the weights, or None.
        ctx: surroundings.
        copies: augmented latents of each training slice, besides the plain one.
        share: of a budget in minutes that the autoencoder gets.
    """
    difference = _perceptual(p, ctx.device)
    slices = SliceLoader(train, p.image_size, ctx.device, standardise=p.standardise)
    healthy = (
        SliceLoader(val.limited(VALIDATION_SLICES), p.image_size, ctx.device, standardise=p.standardise)
        if val is not None and len(val)
        else None
    )
    identity = {
        "params": p.trained_values,
        "train": train.digest,
        "val": val.digest if healthy and val else None,
    }
    scale = None
    if p.autoencoder == "train":
        with training.seeded(ctx.seed, "madad", "autoencoder"):
            codec = new_codec(p.ae_channels, p.ae_layers, p.latent_channels, p.ae_attention, p.ae_patch, p.ae_base)
    else:
        codec, scale = pretrained_codec(p.autoencoder, {"image_size": p.image_size, "standardise": p.standardise})
        try:
            p.check_latent(codec.factor)
        except ValueError as error:
            raise UserError(f"autoencoder = {p.autoencoder!r}: {error}.") from None
    stages = []
    if p.ae_steps:
        stages.append(("autoencoder", _fit_autoencoder(p, codec, slices, healthy, difference, identity, share, ctx)))
    codec.eval().requires_grad_(False).to(ctx.device)
    latents = encode_all(p, codec, slices, copies, "train", ctx)
    checked = encode_all(p, codec, healthy, 0, "val", ctx) if healthy else None
    return Encoded(codec, scale or latent_scale(latents), latents, checked, identity, stages)
