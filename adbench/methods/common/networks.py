"""Networks of the methods in pixel space. The module imports torch; methods import it inside functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 8  # of the group normalisation of autoencoders; their channels are multiples of it


def _activation(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(GROUPS, channels), nn.LeakyReLU(0.2, inplace=True)]


def _encoder(channels: Sequence[int], side: int, outputs: int) -> list[nn.Module]:
    """(B, 1, S, S) -> (B, outputs): 4x4 stride-2 convolutions, GroupNorm and LeakyReLU; then one dense layer."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *channels), channels, strict=False):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), *_activation(after)]
    return [*layers, nn.Flatten(), nn.Linear(channels[-1] * side * side, outputs)]


def _decoder(channels: Sequence[int], side: int, latent: int) -> list[nn.Module]:
    """(B, latent) -> (B, 1, S, S), unbounded: one dense layer, then transposed convolutions that double the grid."""
    last = channels[-1]
    layers = [nn.Linear(latent, last * side * side), nn.Unflatten(1, (last, side, side)), *_activation(last)]
    for before, after in zip(channels[:0:-1], channels[-2::-1], strict=True):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), *_activation(after)]
    return [*layers, nn.ConvTranspose2d(channels[0], 1, 4, stride=2, padding=1)]


def autoencoder(image_size: int, channels: Sequence[int], latent: int) -> nn.Sequential:
    """Encoder, dense latent, decoder: (B, 1, S, S) in [0, 1] -> (B, 1, S, S), unbounded.

    Args:
        image_size: S in px; a multiple of 2 ** len(channels).
        channels: of the blocks, each of which halves the grid; multiples of 8.
        latent: length of the dense latent.
    """
    side = image_size // 2 ** len(channels)
    return nn.Sequential(*_encoder(channels, side, latent), *_decoder(channels, side, latent))


class VariationalAutoencoder(nn.Module):
    """((B, 1, S, S), unit normal (B, latent) or None) -> (reconstruction, mean, log-variance).

    Arguments as of :func:`autoencoder`. Without a draw the mean is decoded.
    """

    def __init__(self, image_size: int, channels: Sequence[int], latent: int) -> None:
        super().__init__()
        side = image_size // 2 ** len(channels)
        self.encoder = nn.Sequential(*_encoder(channels, side, 2 * latent))
        self.decoder = nn.Sequential(*_decoder(channels, side, latent))

    def forward(
        self, image: torch.Tensor, draw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, logvar = self.encoder(image).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latent = mean if draw is None else mean + (0.5 * logvar).exp() * draw
        return self.decoder(latent), mean, logvar


class DenoisingUNet(nn.Module):
    """A UNet with skips: (B, inputs, S, S) -> (B, 1, S, S), unbounded.

    A level is two 3x3 convolutions, each with GroupNorm and SiLU; grids are halved by averaging, doubled by repetition.

    Args:
        channels: by level; multiples of 8.
        stem: side of the pixel squares that are folded into channels before the first level.
        inputs: pictures that are seen together.
    """

    def __init__(self, channels: Sequence[int], stem: int = 1, inputs: int = 1) -> None:
        super().__init__()
        self.stem = stem
        self.down = nn.ModuleList(
            self._level(a, b) for a, b in zip((inputs * stem * stem, *channels[:-1]), channels, strict=True)
        )
        pairs = list(zip(channels[1:], channels[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(self._level(below + here, here) for below, here in pairs)
        self.out = nn.Conv2d(channels[0], stem * stem, 1)

    @staticmethod
    def _level(before: int, after: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for entry in (before, after):
            layers += [nn.Conv2d(entry, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.SiLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(image, self.stem)
        skips: list[torch.Tensor] = []
        for depth, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if depth else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return F.pixel_shuffle(self.out(x), self.stem)


class DiffusionUNet(nn.Module):
    """MONAI's ``DiffusionModelUNet`` in 2-D: ((B, 1, S, S), steps (B,)) -> (B, 1, S, S).

    Args:
        stem: side of the pixel squares that are folded into channels around it.
        options: further arguments of ``DiffusionModelUNet``.
    """

    def __init__(self, stem: int, **options: Any) -> None:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        super().__init__()
        self.stem = stem
        self.unet = DiffusionModelUNet(spatial_dims=2, in_channels=stem * stem, out_channels=stem * stem, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As of every module; on a GPU attention then is torch's, without the matrix of all pairs. A CPU's bits stay."""
        from monai.networks.blocks.selfattention import SABlock

        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module in self.modules():
            if isinstance(module, SABlock):
                module.use_flash_attention = next(self.parameters()).is_cuda
        return self

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, self.stem), t), self.stem)


class ConditionedUNet(DiffusionUNet):
    """A :class:`DiffusionUNet` that is told of a whole slice: ((B, 1, S, S), steps (B,), slice (B, 1, S, S)) -> (B, 1, S, S).

    A dense code of the slice is added to the embedding of the step.

    Args:
        image_size: S in px; a multiple of 2 ** len(encoder).
        encoder: channels of its blocks, each of which halves the grid; multiples of 8.
        stem: as of :class:`DiffusionUNet`.
        channels: of the levels of the UNet.
        options: further arguments of ``DiffusionModelUNet``.
    """

    def __init__(
        self, image_size: int, encoder: Sequence[int], stem: int, channels: Sequence[int], **options: Any
    ) -> None:
        super().__init__(stem, channels=channels, num_class_embeds=1, **options)
        side, width = image_size // 2 ** len(encoder), 4 * channels[0]  # the width of MONAI's embedding of the step
        self.unet.class_embedding = nn.Sequential(*_encoder(encoder, side, width))  # type: ignore[assignment]

    def forward(self, x: torch.Tensor, t: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        out = self.unet(F.pixel_unshuffle(x, self.stem), t, class_labels=seen)
        return F.pixel_shuffle(out, self.stem)
