"""Fitting MAD-AD: the autoencoder, the cache of latents, the UNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.base import FitReport
from adbench.methods.common import image_ops, perceptual
from adbench.methods.common.perceptual import Difference
from adbench.methods.common.preprocess import SliceLoader, pieces
from adbench.methods.madad import diffusion
from adbench.methods.madad.networks import (
    LatentCodec,
    TwoHeadUNet,
    kl_divergence,
    new_codec,
    new_unet,
    pretrained_codec,
)

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.datasets.slices import SliceSet
    from adbench.methods.madad.params import MADADParams

VALIDATION_SLICES = 512
VALIDATION_SHARE = 0.3  # largest noised share in validation, arXiv 2502.16943
VALIDATION_PROBABILITIES = (0.3, 0.3, 0.2, 0.2)


def _perceptual(p: MADADParams, device: str) -> Difference | None:
    """The perceptual term of the autoencoder, if it has one; missing weights are reported before anything is trained."""
    if not (p.ae_steps and p.ae_perceptual_weight):
        return None
    load = {"stlpips": perceptual.load_stlpips, "lpips": perceptual.load_lpips}[p.ae_perceptual]
    return load("train without the term: --set madad.ae_perceptual_weight=0").to(device)


def _autoencoder_loss(
    p: MADADParams, module: nn.Module, batch: training.Batch, difference: Difference | None
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


def _plan(p: MADADParams, samples: int, steps: int, batch: int, lr: float, weight_decay: float = 0.0) -> training.Plan:
    """The plan of a stage that has ``steps`` of its own; a budget in minutes is shared in proportion to the steps."""
    length = p.length(samples, steps, batch)
    return training.Plan(
        steps=length,
        seconds=p.seconds(steps / (p.ae_steps + p.steps)),
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        warmup=min(p.warmup, length // 10),
        clip=p.clip,
        ema=p.ema,
        accumulate=p.accumulate,
    )


def _opponent(p: MADADParams, ctx: Context) -> training.Opponent | None:
    if p.gan_weight == 0:
        return None
    from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

    with training.seeded(ctx.seed, "madad", "discriminator"):
        network = PatchDiscriminator(spatial_dims=2, channels=64, in_channels=1, out_channels=1, num_layers_d=3)

    def hinge(module: nn.Module, judge: nn.Module, batch: training.Batch) -> torch.Tensor:
        with torch.no_grad():
            fake = module(batch["image"], batch["noise"])[0]
        real_part = nn.functional.relu(1 - judge(batch["image"])[-1]).mean()
        return 0.5 * (real_part + nn.functional.relu(1 + judge(fake)[-1]).mean())

    return training.Opponent(network, hinge, start=p.gan_start, lr=p.ae_lr)


def _fit_autoencoder(
    p: MADADParams,
    codec: LatentCodec,
    slices: SliceLoader,
    healthy: SliceLoader | None,
    difference: Difference | None,
    identity: dict[str, Any],
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

    def validate(module: nn.Module) -> float:
        assert healthy is not None
        total = 0.0
        for where in pieces(len(healthy), 32):
            image = healthy.get(where)[0] * 2 - 1
            noise = torch.randn(
                (len(where), *shape), generator=training.generator(ctx.seed, "madad", "ae-val", int(where[0]))
            )
            value, _ = _autoencoder_loss(p, module, {"image": image, "noise": noise.to(image.device)}, difference)
            total += float(value) * len(where)
        return total / len(healthy)

    plan = _plan(p, len(slices), p.ae_steps, p.ae_batch, p.ae_lr)
    stage = training.Stage(
        "autoencoder", codec, len(slices), draw, loss, plan, validate if healthy else None, identity, opponent,
        watched_from=None,
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
    p: MADADParams, codec: LatentCodec, slices: SliceLoader, copies: int, name: str, ctx: Context
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
                mean, std = codec.encode(image * 2 - 1)
                means.append(mean.to(keep))
                stds.append(std.to(keep))
                allowed.append(diffusion.allowed_cells(brain, (cells, cells), share=p.background_share).to(keep))
                done += 1
                ctx.progress.update(f"encode {name}", done, len(parts) * (copies + 1))
    shape = (copies + 1, len(slices))
    # clone: tensors made in inference mode cannot take part in training
    mean, std, cells_allowed = (torch.cat(kept).clone() for kept in (means, stds, allowed))
    return Latents(*(kept.view(*shape, *kept.shape[1:]) for kept in (mean, std, cells_allowed)))


def _fit_unet(
    p: MADADParams,
    unet: TwoHeadUNet,
    latents: Latents,
    healthy: Latents | None,
    scale: float,
    identity: dict[str, Any],
    ctx: Context,
) -> training.StageResult:
    alphas = diffusion.alphas_cumprod()
    last = len(alphas) - 1
    copies, count = latents.mean.shape[:2]

    def noised(
        source: Latents, copy: torch.Tensor, indices: torch.Tensor, generator: torch.Generator, **masks: Any
    ) -> training.Batch:
        where = (copy.to(source.mean.device), indices.to(source.mean.device))
        shape = (len(indices), *source.mean.shape[2:])
        sample = torch.randn(shape, generator=generator).to(source.mean.device)
        return {
            "z0": (source.mean[where] + source.std[where] * sample) * scale,
            "mask": diffusion.random_masks(source.allowed[where], generator, sizes=p.patch_sizes, **masks),
            "noise": torch.randn(shape, generator=generator),
            "t": torch.randint(1, last + 1, (len(indices),), generator=generator),
        }

    def draw(indices: torch.Tensor, generator: torch.Generator) -> training.Batch:
        copy = torch.randint(0, copies, (len(indices),), generator=generator)
        return noised(
            latents, copy, indices, generator,
            largest_share=p.mask_share, probabilities=p.patch_probabilities, per_batch=p.patch_per_batch,
        )  # fmt: skip

    def loss(module: nn.Module, batch: training.Batch, step: int = 0) -> torch.Tensor:
        z = diffusion.q_sample(batch["z0"], batch["mask"], batch["noise"], batch["t"], alphas)
        clean, logit = module(z, batch["t"])
        return diffusion.diffusion_loss(clean, logit, batch["z0"], batch["mask"], p.mask_loss, p.mask_weight)

    def validate(module: nn.Module) -> float:
        assert healthy is not None
        total, number = 0.0, healthy.mean.shape[1]
        usual = p.patch_sizes == (1, 2, 4, 8)
        probabilities = VALIDATION_PROBABILITIES if usual else p.patch_probabilities
        device = next(module.parameters()).device
        for where in pieces(number, 64):
            # Each slice takes part with one time of every third of the schedule, so that the figure is not all luck.
            for turn in range(3):
                generator = training.generator(ctx.seed, "madad", "unet-val", int(where[0]), turn)
                batch = noised(
                    healthy, torch.zeros_like(where), where, generator,
                    largest_share=min(p.mask_share, VALIDATION_SHARE), probabilities=probabilities,
                )  # fmt: skip
                batch["t"] = (torch.arange(len(where)) + turn * (last // 3)) % last + 1
                total += float(loss(module, {key: value.to(device) for key, value in batch.items()})) * len(where) / 3
        return total / number

    plan = _plan(p, count, p.steps, p.batch, p.lr, p.weight_decay)
    before = p.ae_steps / (p.ae_steps + p.steps)
    stage = training.Stage(
        "unet", unet, count, draw, loss, plan, validate if healthy else None, identity, watched_from=before
    )
    return training.train_stage(stage, ctx)


def latent_scale(latents: Latents) -> float:
    """1 / standard deviation of the posterior samples of the plain slices, over all cells and channels."""
    mean, std = latents.mean[0].double(), latents.std[0].double()
    return float(1 / (mean.var() + (std**2).mean()).sqrt().clamp(min=1e-6))


def fit(
    p: MADADParams,
    train: SliceSet,
    val: SliceSet | None,
    ctx: Context,
    ready: Callable[[LatentCodec, TwoHeadUNet, float], None],
) -> FitReport:
    """Train (or load, or fine-tune) the autoencoder, freeze it, cache the latents and train the UNet.

    ``ready`` is given the codec, the UNet and the scale of the latents before the UNet is trained in place.
    """
    difference = _perceptual(p, ctx.device)
    slices = SliceLoader(train, p.image_size, ctx.device, standardise=p.standardise)
    healthy = (
        SliceLoader(val.limited(VALIDATION_SLICES), p.image_size, ctx.device, standardise=p.standardise)
        if val is not None and len(val)
        else None
    )
    identity = {
        "params": p.model_dump(mode="json"),
        "train": train.digest,
        "val": val.digest if healthy and val else None,
    }
    scale = None
    if p.autoencoder == "train":
        with training.seeded(ctx.seed, "madad", "autoencoder"):
            codec = new_codec(p.ae_channels, p.ae_layers, p.latent_channels, p.ae_attention, p.ae_patch, p.ae_base)
    else:
        codec, scale = pretrained_codec(p.autoencoder)
        try:
            p.check_latent(codec.factor)
        except ValueError as error:
            raise UserError(f"method madad with autoencoder = {p.autoencoder!r}: {error}.") from None
    stages = []
    if p.ae_steps:
        stages.append(("autoencoder", _fit_autoencoder(p, codec, slices, healthy, difference, identity, ctx)))
    codec.eval().requires_grad_(False).to(ctx.device)
    latents = encode_all(p, codec, slices, p.augmented_copies if p.augment else 0, "train", ctx)
    checked = encode_all(p, codec, healthy, 0, "val", ctx) if healthy else None
    scale = scale or latent_scale(latents)
    with training.seeded(ctx.seed, "madad", "unet"):
        unet = new_unet(p, codec.channels)
    ready(codec, unet, scale)
    stages.append(("unet", _fit_unet(p, unet, latents, checked, scale, identity, ctx)))
    unet.eval().requires_grad_(False)
    return training.report(stages, [codec, unet])
