"""Scoring with MAD-AD: encode, repair in latent space, decode, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adbench.methods import training
from adbench.methods.common import image_ops
from adbench.methods.common.augment import one_sided
from adbench.methods.common.preprocess import Frame, fast
from adbench.methods.madad import diffusion

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.datasets.slices import SliceBatch
    from adbench.methods.madad.autoencoder import LatentCodec
    from adbench.methods.madad.method import MADADParams
    from adbench.methods.madad.network import TwoHeadUNet


def sampler_noise(batch: SliceBatch, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """(B, *shape) standard normal; each slice has its own stream, so the draw does not depend on the batch."""
    slices = zip(batch.subjects, batch.slices, strict=True)
    draws = [torch.randn(shape, generator=training.generator(seed, "score", *each)) for each in slices]
    return torch.stack(draws)


def anomaly_map(
    repaired: torch.Tensor, reference: torch.Tensor, difference: str, gamma: float, sigma: float, sign: str = "abs"
) -> torch.Tensor:
    """``G_σ * min(d, γ)/γ`` for pictures (B, 1, H, W) in [-1, 1]; in [0, 1]. ``sign`` as in ``slicewise.one_sided``."""
    d = one_sided(reference - repaired, sign)
    if difference == "squared":
        d = d**2
    return image_ops.gaussian_blur(d.clamp(max=gamma) / gamma, sigma)


def repair(
    p: MADADParams, codec: LatentCodec, unet: TwoHeadUNet, scale: float, batch: SliceBatch, ctx: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """Anomaly maps and pseudo-healthy pictures of a batch, both (B, 1, H, W) on the grid of its slices."""
    device = batch.image.device
    alphas = diffusion.alphas_cumprod()
    with torch.inference_mode():
        frame = Frame.of(batch, p.image_size, p.standardise)
        image = frame.image * 2 - 1
        with fast(device):
            mean = codec.encode(image)[0]
        mean = mean.float()

        def network(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with fast(device):
                clean, logit = unet(z, t)
            return clean.float(), logit.float().sigmoid()

        noise = None
        if p.eta > 0:
            noise = sampler_noise(batch, (len(alphas) - 2, *mean.shape[1:]), ctx.seed).to(device)
        latent, _ = diffusion.masked_ddim(
            network,
            mean * scale,
            alphas,
            eta=p.eta,
            noise=noise,
            threshold=p.threshold,
            restore=p.unflagged == "restore",
        )
        latent, reference = latent / scale, image
        with fast(device):
            if p.compare_with == "decoded":
                repaired, reference = codec.decode(torch.cat([latent, mean])).float().chunk(2)
            else:
                repaired = codec.decode(latent).float()
        maps = frame.stretched(anomaly_map(repaired, reference, p.difference, p.gamma, p.sigma, p.sign))
        return maps, frame.restored((repaired * 0.5 + 0.5).clamp(0, 1))
