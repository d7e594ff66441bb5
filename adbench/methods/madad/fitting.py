"""Fitting MAD-AD: the UNet on the cached latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.methods import training
from adbench.methods.base import FitReport
from adbench.methods.common.noise import coloured, with_offset
from adbench.methods.common.preprocess import pieces
from adbench.methods.madad import diffusion
from adbench.methods.madad.autoencoder import CELLS, Encoded, Healthy, fit_codec, plan_of
from adbench.methods.madad.networks import LatentCodec, TwoHeadUNet, new_unet

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.datasets.slices import SliceSet
    from adbench.methods.madad.autoencoder import Latents
    from adbench.methods.madad.params import MADADParams

VALIDATION_SHARE = 0.3  # largest noised share in validation, arXiv 2502.16943
VALIDATION_PROBABILITIES = (0.3, 0.3, 0.2, 0.2)
NARROW = 100.0  # first over last eigenvalue of the latents, above which white noise lies off them in most directions


def filling(
    p: MADADParams, white: torch.Tensor, rectangle: torch.Tensor, healthy: Healthy | None, generator: torch.Generator
) -> torch.Tensor:
    """What noised cells are filled with, made of unit white noise (B, C, h, w) on the CPU.

    Args:
        p: parameters; for ``noise = white`` nothing is drawn and ``white`` comes back.
        white: the noise.
        rectangle: (B, 1, h, w) from :func:`adbench.methods.madad.diffusion.random_masks`.
        healthy: of the scaled latents, needed for ``noise = matched``.
        generator: a CPU generator.
    """
    if p.noise == "white":
        return white
    count, channels, *cells = white.shape
    share = torch.rand(count, generator=generator)
    if p.noise_scope == "slice":
        offset = torch.randn((count, channels, 1, 1), generator=generator)
    else:
        values = torch.randn((count, channels, cells[0] * cells[1]), generator=generator)
        offset = values.gather(2, rectangle.flatten(2).expand(-1, channels, -1)).view(white.shape)
    noise = with_offset(white, offset, share, p.noise_offset)
    if p.noise == "offset":
        return noise
    assert healthy is not None
    return coloured(noise, healthy.mean, healthy.factor)


def _fit_unet(
    p: MADADParams, unet: TwoHeadUNet, data: Encoded, healthy: Healthy | None, ctx: Context
) -> training.StageResult:
    alphas = diffusion.alphas_cumprod().to(training.device_of(ctx.device))
    last = len(alphas) - 1
    copies, count = data.train.mean.shape[:2]
    usual = p.patch_sizes == (1, 2, 4, 8)
    validation_masks = {
        "largest_share": min(p.mask_share, VALIDATION_SHARE),
        "probabilities": VALIDATION_PROBABILITIES if usual else p.patch_probabilities,
    }

    def noised(
        source: Latents, copy: torch.Tensor, indices: torch.Tensor, generator: torch.Generator, **masks: Any
    ) -> training.Batch:
        where = (copy.to(source.mean.device), indices.to(source.mean.device))
        shape = (len(indices), *source.mean.shape[2:])
        sample = torch.randn(shape, generator=generator).to(source.mean.device)
        if p.noise == "matched":  # noise like the posterior means that are seen at test: no sample may tell them apart
            sample.zero_()
        mask, rectangle = diffusion.random_masks(source.allowed[where], generator, sizes=p.patch_sizes, **masks)
        white = torch.randn(shape, generator=generator)
        t = torch.randint(1, last + 1, (len(indices),), generator=generator)
        return {
            "z0": (source.mean[where] + source.std[where] * sample) * data.scale,
            "mask": mask,
            "noise": filling(p, white, rectangle, healthy, generator),
            "t": t,
        }

    def draw(indices: torch.Tensor, generator: torch.Generator) -> training.Batch:
        copy = torch.randint(0, copies, (len(indices),), generator=generator)
        return noised(
            data.train, copy, indices, generator,
            largest_share=p.mask_share, probabilities=p.patch_probabilities, per_batch=p.patch_per_batch,
        )  # fmt: skip

    def forward(module: nn.Module, batch: training.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latent and mask logit of a batch that is noised here."""
        z = diffusion.q_sample(batch["z0"], batch["mask"], batch["noise"], batch["t"], alphas)
        clean, logit = module(z, batch["t"])
        return clean, logit

    def loss(module: nn.Module, batch: training.Batch, step: int = 0) -> torch.Tensor:
        return diffusion.diffusion_loss(*forward(module, batch), batch["z0"], batch["mask"], p.mask_loss, p.mask_weight)

    def held_out(module: nn.Module, where: torch.Tensor, *names: object) -> training.Batch:
        assert data.val is not None
        generator = training.generator(ctx.seed, "madad", *names)
        batch = noised(data.val, torch.zeros_like(where), where, generator, **validation_masks)
        device = next(module.parameters()).device
        return {key: value.to(device) for key, value in batch.items()}

    portions = training.Portions("unet, validation", ctx.logger)

    def validate(module: nn.Module) -> dict[str, float]:
        assert data.val is not None
        total, number = 0.0, data.val.mean.shape[1]
        for where in pieces(number, 64):
            # Each slice takes part with one time of every third of the schedule, so that the figure is not all luck.
            for turn in range(3):
                batch = held_out(module, where, "unet-val", int(where[0]), turn)
                batch["t"] = ((torch.arange(len(where)) + turn * (last // 3)) % last + 1).to(batch["z0"].device)
                total += float(portions.mean(lambda part: loss(module, part), batch)) * len(where) / 3
        return {"val_loss": total / number, **_figures(module)}

    def _figures(module: nn.Module) -> dict[str, float]:
        """What the two heads do on healthy slices at each time, and what the mask head flags where nothing is noised."""
        assert data.val is not None
        parts: dict[int, list[dict[str, torch.Tensor]]] = {t: [] for t in range(last + 1)}
        for where in pieces(data.val.mean.shape[1], 64):
            batch = held_out(module, where, "unet-figures", int(where[0]))
            inside = data.val.allowed[0][where.to(data.val.allowed.device)].to(batch["z0"].device)
            for t in parts:  # 0: nothing is noised, and the network looks at time T as it does first when it repairs
                batch["t"] = torch.full((len(where),), t or last, device=batch["z0"].device)
                shown = batch if t else {**batch, "mask": torch.zeros_like(batch["mask"])}
                outputs = [out for out, _ in portions.pieces(lambda part: forward(module, part), shown)]
                clean, logit = (torch.cat(parts_of) for parts_of in zip(*outputs, strict=True))
                errors = ((clean.float() - batch["z0"]) ** 2).mean(dim=1, keepdim=True)
                parts[t].append(
                    {
                        "probability": logit.float().sigmoid()[inside].cpu(),
                        "noised": shown["mask"][inside].cpu() > 0,
                        "error": errors.flatten().cpu(),
                        "mask_error": diffusion.mask_loss(logit, shown["mask"], p.mask_loss).cpu().expand(len(where)),
                    }
                )
        found = {t: {key: torch.cat([one[key] for one in parts[t]]) for key in parts[t][0]} for t in parts}
        return mask_figures(found)

    plan = plan_of(
        p, count, p.steps, p.batch, p.lr, weight_decay=p.weight_decay, share=p.steps / (p.ae_steps + p.steps)
    )
    before = p.ae_steps / (p.ae_steps + p.steps)
    stage = training.Stage(
        "unet",
        unet,
        count,
        draw,
        loss,
        plan,
        validate if data.val else None,
        data.identity,
        watched_from=before,
        steady=True,
    )
    return training.train_stage(stage, ctx)


def mask_figures(found: dict[int, dict[str, torch.Tensor]]) -> dict[str, float]:
    """The figures of a learning curve beside its loss.

    Args:
        found: by time t (0: nothing was noised), over cells that may be noised: "probability" and "noised", (n,); over all
            cells and slices: "error" of the clean latent and "mask_error".

    Returns:
        "val_latent_loss" and "val_mask_loss", means over t; "flagged", the share of cells with a probability above .5 where
        nothing is noised;
        "auroc_t1" ... and "recall_t1" ..., of the probability of noised cells against the others, where there are both.
    """
    from sklearn.metrics import roc_auc_score

    figures = {
        f"val_{name}": float(torch.stack([found[t][key].mean() for t in found if t]).mean())
        for name, key in (("latent_loss", "error"), ("mask_loss", "mask_error"))
    }
    if len(found[0]["probability"]):
        figures["flagged"] = float((found[0]["probability"] > 0.5).float().mean())
    for t in found:
        probability, noised = found[t]["probability"], found[t]["noised"]
        if noised.any() and not noised.all():
            figures[f"auroc_t{t}"] = float(roc_auc_score(noised.numpy(), probability.numpy()))
            figures[f"recall_t{t}"] = float((probability[noised] > 0.5).float().mean())
    return figures


def healthy_latents(p: MADADParams, data: Encoded, ctx: Context) -> tuple[Healthy | None, list[str]]:
    """Mean and covariance of the healthy latents, None where they are too few and not needed; what a reader must know."""
    if p.noise != "matched" and int(data.train.allowed[0].sum()) < CELLS * data.train.mean.shape[2]:
        return None, []
    healthy = Healthy.of(data.train, data.scale)
    values = healthy.spectrum
    text = ", ".join(f"{value:.3g}" for value in values)
    ctx.logger.info("madad: eigenvalues of the healthy latents' covariance: %s.", text)
    if p.noise != "white" or values[0] <= NARROW * values[-1]:
        return healthy, []
    note = (
        f"The healthy latents are nearly of fewer dimensions than they have channels (eigenvalues {text}): the mask head learns to "
        "tell white noise by its lying off them, and a lesion that moves along them is not flagged; compare "
        "--set madad.noise=matched."
    )
    ctx.logger.warning("madad: %s", note)
    return healthy, [note]


def zeroed_by_authors(unet: TwoHeadUNet) -> list[nn.Module]:
    """The layers that the official code starts at 0, so that every block passes on what it gets: 35 of UNet XS."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    layers: list[nn.Module] = [module.conv2 for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    layers += [module.to_out[0] for module in unet.modules() if isinstance(module, Attention)]
    return [*layers, unet.clean_head[-1], unet.mask_head[-1]]


def set_to_zero(layers: list[nn.Module]) -> None:
    """Weights and biases of ``layers``, in place."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def fit(
    p: MADADParams,
    train: SliceSet,
    val: SliceSet | None,
    ctx: Context,
    ready: Callable[[LatentCodec, TwoHeadUNet, float, Healthy | None], None],
) -> FitReport:
    """Train (or load, or fine-tune) the autoencoder, freeze it, cache the latents and train the UNet.

    ``ready`` is given the codec, the UNet, the scale of the latents and what is known of the healthy ones before the UNet is
    trained in place.
    """
    if p.noise == "white" and p.autoencoder == "train" and not (p.ae_base and p.latent_channels == 1):
        ctx.logger.warning(
            "madad: with noise = white and a latent that is learnt, next to nothing was found at the lengths tried so far "
            '(docs/results.md, "What the mask head of MAD-AD learns"): compare --set madad.noise=matched.'
        )
    copies = p.augmented_copies if p.augment else 0
    data = fit_codec(p, train, val, ctx, copies, share=p.ae_steps / (p.ae_steps + p.steps))
    healthy, notes = healthy_latents(p, data, ctx)
    with training.seeded(ctx.seed, "madad", "unet"):
        unet = new_unet(p, data.codec.channels)
    if p.zero_init:
        set_to_zero(zeroed_by_authors(unet))
    ready(data.codec, unet, data.scale, healthy)
    data.stages.append(("unet", _fit_unet(p, unet, data, healthy, ctx)))
    unet.eval().requires_grad_(False)
    report = training.report(data.stages, [data.codec, unet])
    report.notes += notes
    return report
