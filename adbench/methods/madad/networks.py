"""The networks of MAD-AD: the KL autoencoder, built here or pre-trained, and the two-headed UNet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from adbench.errors import UserError
from adbench.methods.base import DESCRIPTION, WEIGHTS
from adbench.methods.madad.params import UNET_SIZES

if TYPE_CHECKING:
    from adbench.methods.madad.params import MADADParams


class LatentCodec(nn.Module):
    """diffusers ``AutoencoderKL`` for one-channel images in [-1, 1], with an optional space-to-depth step in front.

    Args:
        config: keyword arguments of ``AutoencoderKL``.
        patch: side of the pixel blocks that become channels before the autoencoder; 1 leaves the image as it is.
        base: the first latent channel is the mean of the cell's pixels, and the decoder adds to its interpolation; the
            autoencoder learns the rest. Without it no channel has a fixed meaning.
    """

    def __init__(self, config: dict[str, Any], patch: int = 1, base: bool = False) -> None:
        super().__init__()
        self.patch, self.base = patch, base
        self.config = {key: value for key, value in config.items() if not key.startswith("_")}
        self.vae: Any = AutoencoderKL(**self.config)  # type: ignore[no-untyped-call]  # diffusers has no types

    def to_notes(self) -> dict[str, Any]:
        """JSON values, for :meth:`from_notes`."""
        return {"autoencoder": self.config, "patch": self.patch, "base": self.base}

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> LatentCodec:
        """An untrained codec of the shape that :meth:`to_notes` gave."""
        return cls(notes["autoencoder"], int(notes["patch"]), bool(notes["base"]))

    @property
    def factor(self) -> int:
        """Image pixels per latent cell, along one side."""
        return int(self.patch * 2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.vae.config.latent_channels)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (B, C, H/f, W/f) of the posterior of images (B, 1, H, W) in [-1, 1]."""
        posterior = self.vae.encode(nn.functional.pixel_unshuffle(image, self.patch)).latent_dist
        if not self.base:
            return posterior.mean, posterior.std
        means = nn.functional.avg_pool2d(image, self.factor).to(posterior.mean.dtype)
        return torch.cat([means, posterior.mean[:, 1:]], dim=1), posterior.std

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W), about [-1, 1], of unscaled latents."""
        image = nn.functional.pixel_shuffle(self.vae.decode(latent).sample, self.patch)
        if not self.base:
            return image
        return image + nn.functional.interpolate(latent[:, :1], scale_factor=self.factor, mode="bilinear")

    def forward(self, image: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction from a posterior sample made with ``noise``, and the posterior's mean and standard deviation."""
        mean, std = self.encode(image)
        return self.decode(mean + std * noise), mean, std


def new_codec(
    channels: Sequence[int], layers: int, latent_channels: int, attention: bool, patch: int = 1, base: bool = False
) -> LatentCodec:
    """An untrained codec. (128, 256, 512, 512), 2 layers, 4 latent channels, attention: KL-f8, 83.65 M parameters."""
    codec = LatentCodec(
        {
            "in_channels": patch**2,
            "out_channels": patch**2,
            "latent_channels": latent_channels,
            "block_out_channels": list(channels),
            "layers_per_block": layers,
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "norm_num_groups": min(32, min(channels) // 2),
            "mid_block_add_attention": attention,
        },
        patch,
        base,
    )
    if base:  # start as plain averaging and interpolation
        nn.init.zeros_(codec.vae.decoder.conv_out.weight)
        nn.init.zeros_(codec.vae.decoder.conv_out.bias)
    return codec


def grey(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a three-channel autoencoder turned into those of a one-channel one.

    Equals feeding the grey image to all three inputs (their filters are added) and averaging the three outputs.
    """
    out = dict(state)
    out["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].sum(dim=1, keepdim=True)
    out["decoder.conv_out.weight"] = state["decoder.conv_out.weight"].mean(dim=0, keepdim=True)
    out["decoder.conv_out.bias"] = state["decoder.conv_out.bias"].mean(dim=0, keepdim=True)
    return out


def codec_of_fit(folder: Path, seen: dict[str, Any]) -> LatentCodec:
    """The autoencoder in a saved fit of a method that has one.

    Args:
        folder: of the fit.
        seen: parameters that decide what the autoencoder sees; the fit must have the same.

    Raises:
        UserError: a fit of another kind, of slices prepared otherwise, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if "autoencoder" not in saved.get("notes", {}):
            raise UserError(f"autoencoder = '{folder}': a fit of {saved['method']} has no autoencoder to start from.")
        for name, value in seen.items():
            if saved["params"][name] != value:
                raise UserError(
                    f"autoencoder = '{folder}': it was trained with {name} = {saved['params'][name]}, and this fit has {value}: "
                    f"set {name} to the same value, or train an autoencoder here."
                )
        codec = LatentCodec.from_notes(saved["notes"])
        start = "autoencoder."
        tensors = load_file(folder / WEIGHTS)
        codec.vae.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"autoencoder = '{folder}': the saved fit cannot be read ({type(error).__name__}: {error})."
        ) from None
    return codec


def pretrained_codec(source: str, seen: dict[str, Any]) -> tuple[LatentCodec, float | None]:
    """The autoencoder that ``source`` names, for one channel, and the factor on its latents.

    Args:
        source: a diffusers-format folder (or its ``vae`` subfolder), a hub id, or the folder of a saved fit.
        seen: for a saved fit, parameters that it must share (:func:`codec_of_fit`).

    Returns:
        The codec; its scaling factor, or None where that follows from the data (a saved fit).

    Raises:
        UserError: nothing there, not an AutoencoderKL, unreadable, or offline and not in the local cache.
    """
    folder = Path(source).expanduser()
    if (folder / DESCRIPTION).exists():
        return codec_of_fit(folder, seen), None
    subfolder = "vae" if (folder / "vae" / "config.json").exists() else ""
    if (folder.exists() or source.startswith((".", "/", "~"))) and not (folder / subfolder / "config.json").exists():
        raise UserError(
            f"autoencoder = {source!r}: no config.json there; expected a folder in diffusers format with an AutoencoderKL "
            "(config.json and diffusion_pytorch_model.safetensors), or a saved fit of madad or latent (OUT/fits/NAME-KEY)."
        )
    try:
        found: Any = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder) if folder.exists() else source, subfolder=subfolder or None, use_safetensors=True
        )
    except Exception as error:  # the hub client raises many unrelated types
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"autoencoder = {source!r} cannot be loaded ({type(error).__name__}: {first}). Give a folder in diffusers format, "
            'a hub id that can be reached or is in the local cache, or autoencoder = "train" to train one here.'
        ) from None
    config, state = dict(found.config), found.state_dict()
    if (config["in_channels"], config["out_channels"]) == (3, 3):
        state = grey(state)
        config |= {"in_channels": 1, "out_channels": 1}
    if (config["in_channels"], config["out_channels"]) != (1, 1):
        raise UserError(
            f"autoencoder = {source!r} has {config['in_channels']} input channels; only 1 or 3 can be used."
        )
    codec = LatentCodec(config)
    codec.vae.load_state_dict(state)
    return codec, float(found.config.scaling_factor)


def cells_to_pixels(values: torch.Tensor, side: int) -> torch.Tensor:
    """Values of latent cells (B, 1, h, w) on the autoencoder's input grid (B, 1, ``side``, ``side``), bilinear."""
    return nn.functional.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)


def kl_divergence(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL from N(mean, std²) to N(0, 1), summed over the latent, averaged over the batch."""
    each = 0.5 * (mean**2 + std**2 - 1 - 2 * std.clamp(min=1e-12).log())
    return each.sum(dim=(1, 2, 3)).mean()


class TwoHeadUNet(nn.Module):
    """``(z_t, t) -> (f_z0, logit of f_M)`` on a diffusers ``UNet2DModel`` trunk.

    Args:
        channels: of the latent, in and out.
        width: base channels.
        multipliers: of the width, one a level.
        layers: residual blocks a level.
        attention: whether a level has self-attention, one entry a level.
        heads: attention heads, the same number at every level.
        dropout: in the residual blocks.
        residual: the clean head predicts ``z0 - z_t`` (starting at 0) instead of ``z0``.
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 256,
        multipliers: Sequence[int] = (1, 2, 4),
        layers: int = 2,
        attention: Sequence[bool] = (True, True, True),
        heads: int = 8,
        dropout: float = 0.4,
        residual: bool = False,
    ) -> None:
        super().__init__()
        levels = list(zip(multipliers, attention, strict=True))
        groups = min(32, width // 4)
        self.residual = residual
        trunk: Any = UNet2DModel(  # type: ignore[no-untyped-call]  # diffusers has no types
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(width * m for m in multipliers),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for _, on in levels),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for _, on in reversed(levels)),
            attention_head_dim=width // heads,
            norm_num_groups=groups,
            dropout=dropout,
        )
        self.trunk: nn.Module = trunk
        for module in trunk.modules():
            if isinstance(module, Attention):
                module.heads = heads  # diffusers would fix the channels a head instead
        # The trunk ends in its features; its own output layers become the head of the clean latent.
        self.clean_head = nn.Sequential(trunk.conv_norm_out, trunk.conv_act, trunk.conv_out)
        trunk.conv_norm_out, trunk.conv_act, trunk.conv_out = nn.Identity(), nn.Identity(), nn.Identity()
        self.mask_head = nn.Sequential(nn.GroupNorm(groups, width), nn.Conv2d(width, 1, 3, padding=1))
        zeroed: list[Any] = [self.mask_head[-1], *([self.clean_head[-1]] if residual else [])]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latent (B, C, h, w) and mask logit (B, 1, h, w) for noisy latents (B, C, h, w) at times (B,) in 1..T."""
        features = self.trunk(z, t).sample
        clean = self.clean_head(features)
        return (z + clean if self.residual else clean), self.mask_head(features)


def new_unet(p: MADADParams, channels: int) -> TwoHeadUNet:
    """The untrained UNet that ``p`` describes, for latents of ``channels``."""
    width, heads = UNET_SIZES[p.unet_size]
    residual = p.prediction == "residual"
    return TwoHeadUNet(channels, width, p.unet_multipliers, p.unet_layers, p.unet_attention, heads, p.dropout, residual)
