"""Parameters and presets of MAD-AD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from adbench.methods.base import DESCRIPTION, WEIGHTS
from adbench.methods.common.params import (
    AUGMENT,
    BATCH,
    CLIP,
    EMA,
    IMAGE_SIZE,
    LR,
    SIGMA,
    SIGN,
    STANDARDISE,
    STEPS,
    WARMUP,
    Sign,
    TrainedParams,
)
from adbench.params import param
from adbench.utils.named_files import NamesFile

PAPER = "arXiv 2502.16943"
CODE = "official code"

# What the paper describes and what the published code does; each entry can be overridden by the parameter of that name.
# The paper searches λ and γ; γ of the squared difference is the square of the official one.
VARIANTS: dict[str, dict[str, Any]] = {
    "official": {
        "mask_loss": "mse",
        "mask_weight": 0.001,
        "eta": 0.5,
        "difference": "absolute",
        "compare_with": "decoded",
        "gamma": 0.25,
        "sigma": 5.0,
    },
    "paper": {
        "mask_loss": "bce",
        "mask_weight": 0.001,
        "eta": 0.0,
        "difference": "squared",
        "compare_with": "input",
        "gamma": 0.0625,
        "sigma": 5.0,
    },
}
# Base channels and attention heads. XL has 10 heads: the 12 first published do not divide its channels.
UNET_SIZES = {"nano": (32, 4), "XS": (64, 4), "S": (128, 4), "M": (192, 6), "L": (256, 8), "XL": (320, 10)}


class AutoencoderParams(TrainedParams):
    """The KL autoencoder whose latents a method works on, how it is trained, and which cells count as brain."""

    image_size: int = IMAGE_SIZE(256, source=PAPER, le=1024)
    standardise: bool = STANDARDISE(False, source="adbench")

    autoencoder: Annotated[str, NamesFile(("train",), hub=True)] = param(
        "train",
        'KL autoencoder: "train" trains one here; else start from a diffusers-format folder or hub id, or from a saved fit of madad or latent.',
        source=PAPER,
    )
    ae_channels: tuple[int, ...] = param(
        (128, 256, 512, 512),
        "Channels of the autoencoder's levels (one halving between two); unused when it is pre-trained.",
        source="KL-f8",
        min_length=1,
        max_length=6,
    )
    ae_layers: int = param(2, "Residual blocks per level; unused when pre-trained.", source="KL-f8", ge=1, le=4)
    ae_attention: bool = param(True, "Self-attention at the lowest level; unused when pre-trained.", source="KL-f8")
    ae_patch: int = param(
        1,
        "Side of the pixel blocks that become channels in front of the autoencoder (cheaper on a CPU); unused when pre-trained.",
        unit="px",
        source="adbench",
        ge=1,
        le=8,
    )
    ae_base: bool = param(
        False,
        "The first latent channel is the mean of its cell's pixels and the decoder adds to it; unused when pre-trained.",
        source="adbench",
    )
    latent_channels: int = param(4, "Channels of the latent; unused when pre-trained.", source="KL-f8", ge=1, le=64)
    ae_steps: int = param(
        20_000,
        "Optimiser steps of the autoencoder; 0 leaves a pre-trained one as it is.",
        unit="steps",
        source="adbench",
        ge=0,
    )
    ae_batch: int = BATCH(16, doc="Slices per step of the autoencoder.", source="adbench")
    ae_lr: float = LR(1e-4, doc="Peak learning rate of the autoencoder.", source="adbench")
    kl_weight: float = param(1e-6, "Weight of the KL term, both terms summed over their elements.", source=PAPER, ge=0)
    ae_perceptual_weight: float = param(
        0.0,
        "Weight of the perceptual term of the autoencoder beside the L1 error per pixel, 0: none; its weights must be installed.",
        source="KL-f8 (1 there)",
        ge=0,
    )
    ae_perceptual: Literal["stlpips", "lpips"] = param(
        "stlpips", "Network of the perceptual term; the published KL-f8 has LPIPS with VGG16.", source="adbench"
    )
    gan_weight: float = param(
        0.0, "Weight of the patch discriminator's term, 0: none. The paper's code uses 0.5.", source="adbench", ge=0
    )
    gan_start: int = param(5_000, "Step at which the discriminator joins.", unit="steps", source="adbench", ge=0)
    warmup: int = WARMUP(500, doc="Linear warm-up of each stage, at most a tenth of its steps.", source="adbench")
    ema: float = EMA(0.999, source="adbench")
    clip: float = CLIP(1.0, source="adbench")
    accumulate: int = param(1, "Micro-batches per step, to save memory.", source="adbench", ge=1)
    augment: bool = AUGMENT(True, source=CODE)
    sigma: float = SIGMA(5.0, unit="px of the model's grid", source=PAPER)
    background_share: float = param(
        0.9, "A 16x16 px block with a smaller share of brain is never noised.", source=CODE, ge=0, le=1
    )

    @model_validator(mode="after")
    def _autoencoder_fits_together(self) -> Self:
        if self.autoencoder == "train":
            if self.ae_steps < 1:
                raise ValueError('ae_steps must be at least 1 when autoencoder = "train"')
            if any(c % 8 for c in self.ae_channels):
                raise ValueError("ae_channels must be multiples of 8")
            self.check_latent(self.ae_patch * 2 ** (len(self.ae_channels) - 1))
        return self

    def autoencoder_files(self) -> list[Path]:
        """Files of the autoencoder that is started from; of a saved fit, what decides its weights."""
        if self.autoencoder == "train":
            return []
        folder = Path(self.autoencoder).expanduser()
        if (folder / DESCRIPTION).exists():
            return [path for path in (folder / DESCRIPTION, folder / WEIGHTS) if path.is_file()]
        return sorted(path for path in folder.rglob("*") if path.is_file())

    @property
    def block(self) -> int:
        """Side in px of the image blocks of which ``background_share`` is asked; a larger cell is asked as a whole."""
        return 16

    @property
    def halvings(self) -> int:
        """How often the network behind the autoencoder halves the grid of latent cells."""
        return 0

    def check_latent(self, factor: int) -> int:
        """Latent cells along a side for an autoencoder that shrinks ``factor`` times; ``ValueError`` when they cannot be halved."""
        multiple = factor * 2**self.halvings
        if self.image_size % multiple:
            unet = f" and the UNet halves {self.halvings} times" if self.halvings else ""
            raise ValueError(
                f"image_size = {self.image_size} must be a multiple of {multiple}: the autoencoder shrinks {factor} times{unet}"
            )
        return self.image_size // factor


class MADADParams(AutoencoderParams):
    """Parameters of MAD-AD beside its autoencoder's: UNet, training masks and their noise, sampler and map."""

    variant: Literal["official", "paper"] = param(
        "official",
        "Which description sets the defaults of mask_loss, mask_weight, eta, difference, compare_with, gamma and sigma.",
        source=CODE,
    )
    unet_size: Literal["nano", "XS", "S", "M", "L", "XL"] = param(
        "L", "Width and heads: nano 32/4, XS 64/4, S 128/4, M 192/6, L 256/8, XL 320/10.", source=PAPER
    )
    unet_multipliers: tuple[int, ...] = param(
        (1, 2, 4), "Channels of the levels as multiples of the width.", source=PAPER, min_length=1, max_length=6
    )
    unet_layers: int = param(2, "Residual blocks per level.", source=PAPER, ge=1, le=6)
    unet_attention: tuple[bool, ...] = param((True, True, True), "Self-attention, one entry per level.", source=PAPER)
    dropout: float = param(0.4, "Dropout in the UNet.", source=PAPER, ge=0, lt=1)
    prediction: Literal["direct", "residual"] = param(
        "direct", "The clean head gives z0, or its difference from z_t (learns faster in few steps).", source=PAPER
    )

    zero_init: bool = param(
        False,
        "The second convolution of each residual block, attention outputs and both heads start at 0, as in the official code; else the mask head alone (and the clean head with prediction = residual).",
        source=CODE,
    )

    steps: int = STEPS(60_000, doc="Optimiser steps of the UNet.", source="adbench")
    batch: int = BATCH(96, doc="Slices per step of the UNet.", source=PAPER, le=8192)
    lr: float = LR(4e-5, doc="Peak learning rate of AdamW for the UNet, cosine schedule.", source=CODE)
    weight_decay: float = param(1e-4, "Weight decay of the UNet.", source=CODE, ge=0)
    augmented_copies: int = param(
        4, "Augmented latents cached per slice, besides the plain one.", source="adbench", ge=0, le=256
    )

    mask_loss: Literal["mse", "bce"] = param("mse", "Loss of the mask head.", source=CODE)
    mask_weight: float = param(0.001, "λ, weight of the mask loss.", source=CODE, ge=0)
    mask_share: float = param(0.4, "Largest noised share of a training mask.", source=PAPER, gt=0, le=1)
    patch_sizes: tuple[int, ...] = param(
        (1, 2, 4, 8), "Heights and widths of noised rectangles.", unit="cells", source=PAPER, min_length=1
    )
    patch_probabilities: tuple[float, ...] = param(
        (0.2, 0.3, 0.3, 0.2), "Probability of each of patch_sizes.", source=CODE
    )
    patch_per_batch: bool = param(
        False, "One rectangle size for a whole batch, as in the official code.", source="adbench"
    )
    noise: Literal["white", "offset", "matched"] = param(
        "white",
        "What the rectangles are filled with: unit white noise; with an offset common to the cells of a slice; or that with the mean and covariance of the healthy latents.",
        source=f"{PAPER} (white), adbench",
    )
    noise_offset: float = param(
        2.0, "Standard deviation of the common offset, in those of the white noise; unused when white.", source="adbench", ge=0, le=100,
    )  # fmt: skip
    noise_scope: Literal["slice", "rectangle"] = param(
        "slice", "Whether a slice has one offset or each of its rectangles; unused when white.", source="adbench"
    )

    score: Literal["repair", "probability", "both"] = param(
        "repair",
        "The map: difference of repaired and plain slice; the mask probability of one pass at t = T, without repair; or their mean.",
        source=f"{PAPER} (repair), adbench",
        scores=True,
    )
    eta: float = param(0.5, "η of the sampler: 0 deterministic, 1 ancestral.", source=CODE, ge=0, le=1, scores=True)
    threshold: float = param(
        0.5, "Mask probability above which a cell is repaired.", source=PAPER, ge=0, le=1, scores=True
    )
    unflagged: Literal["keep", "restore"] = param(
        "keep",
        "A cell flagged early and not at the end: keep its partly noised value, or restore the original.",
        source=CODE,
        scores=True,
    )
    difference: Literal["absolute", "squared"] = param(
        "absolute", "d, between images in [-1, 1].", source=CODE, scores=True
    )
    compare_with: Literal["decoded", "input"] = param(
        "decoded", "d compares D(ẑ0) with D(E(x)) or with x.", source=CODE, scores=True
    )
    sign: Sign = SIGN("abs", source="adbench")
    gamma: float = param(0.25, "γ, where d is cut off; in units of d.", source=CODE, gt=0, scores=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, values: Any) -> Any:
        variant = values.get("variant", "official") if isinstance(values, dict) else None
        if isinstance(variant, str) and variant in VARIANTS:
            return {**VARIANTS[variant], **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.unet_attention) != len(self.unet_multipliers):
            raise ValueError("unet_attention and unet_multipliers must have one entry per level each")
        if len(self.patch_probabilities) != len(self.patch_sizes) or abs(sum(self.patch_probabilities) - 1) > 1e-6:
            raise ValueError("patch_probabilities must have one entry for each of patch_sizes and sum to 1")
        if min(self.patch_sizes) < 1 or min(self.patch_probabilities) < 0:
            raise ValueError("patch_sizes must be at least 1 and patch_probabilities at least 0")
        return self

    @property
    def halvings(self) -> int:
        return len(self.unet_multipliers) - 1


# Autoencoders of the presets, shared with the method ``latent``.
AUTOENCODERS: dict[str, dict[str, Any]] = {
    # Two cores, no GPU, half a minute.
    "tiny": {
        "image_size": 128,
        "standardise": True,
        "ae_channels": (32, 64),
        "ae_layers": 1,
        "ae_attention": False,
        "ae_patch": 4,
        "ae_base": True,
        "latent_channels": 1,
        "ae_steps": 200,
        "ae_batch": 8,
        "ae_lr": 2e-3,
        "kl_weight": 1e-4,
        "warmup": 20,
        "ema": 0.99,
        "sigma": 2.5,
    },
    "base": {
        "image_size": 128,
        "standardise": True,
        "ae_channels": (64, 128, 256),
        "ae_steps": 10_000,
        "sigma": 2.5,
    },
    "paper": {"ae_perceptual_weight": 1.0, "gan_weight": 0.5},
}
PRESETS: dict[str, dict[str, Any]] = {
    # Two cores, no GPU, about two minutes; madad.md says what decided.
    "tiny": {
        **AUTOENCODERS["tiny"],
        "unet_size": "nano",
        "unet_multipliers": (1, 2),
        "unet_layers": 1,
        "unet_attention": (False, True),
        "dropout": 0.0,
        "prediction": "residual",
        "steps": 700,
        "batch": 16,
        "lr": 1e-3,
        "augmented_copies": 3,
        "mask_loss": "bce",
        "mask_weight": 0.01,
        "eta": 1.0,
        "threshold": 0.3,
    },
    # The latent is learnt, where white noise finds nothing at the lengths tried; what does is taken from smaller networks.
    "base": {
        **AUTOENCODERS["base"],
        "unet_size": "S",
        "steps": 30_000,
        "noise": "matched",
        "score": "both",
        "mask_loss": "bce",
        "mask_weight": 0.1,
    },
    "paper": AUTOENCODERS["paper"],
}
