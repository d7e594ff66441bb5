"""MAD-AD: parameters, presets and the method itself. Torch is imported inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.errors import UserError
from adbench.methods.base import FitReport, Method, Resources
from adbench.methods.card import Card
from adbench.methods.common.training_length import TrainedParams
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.madad.autoencoder import LatentCodec
    from adbench.methods.madad.network import TwoHeadUNet

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


class MADADParams(TrainedParams):
    variant: Literal["official", "paper"] = param(
        "official",
        "Which description sets the defaults of mask_loss, mask_weight, eta, difference, compare_with, gamma and sigma.",
        source=CODE,
    )
    image_size: int = param(
        256, "Side of the model's square grid; slices are resized to it.", unit="px", source=PAPER, ge=32, le=1024
    )

    standardise: bool = param(
        False,
        "Put each slice on one intensity scale first: median of the brain at 0.4, interquartile range 0.15 (undone in the reconstruction).",
        source="adbench",
    )
    autoencoder: str = param(
        "train",
        'KL autoencoder: "train" trains one here; else a diffusers-format folder or hub id to start from.',
        source=PAPER,
    )
    ae_channels: tuple[int, ...] = param(
        (128, 256, 512, 512),
        "Channels of the autoencoder's levels (one halving between two); unused when it is pre-trained.",
        source="KL-f8",
        min_length=1,
        max_length=6,
    )
    ae_layers: int = param(2, "Residual blocks a level; unused when pre-trained.", source="KL-f8", ge=1, le=4)
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
    ae_batch: int = param(16, "Slices a step of the autoencoder.", unit="slices", source="adbench", ge=1, le=4096)
    ae_lr: float = param(1e-4, "Peak learning rate of the autoencoder.", source="adbench", gt=0, le=1)
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

    unet_size: Literal["nano", "XS", "S", "M", "L", "XL"] = param(
        "L", "Width and heads: nano 32/4, XS 64/4, S 128/4, M 192/6, L 256/8, XL 320/10.", source=PAPER
    )
    unet_multipliers: tuple[int, ...] = param(
        (1, 2, 4), "Channels of the levels as multiples of the width.", source=PAPER, min_length=1, max_length=6
    )
    unet_layers: int = param(2, "Residual blocks a level.", source=PAPER, ge=1, le=6)
    unet_attention: tuple[bool, ...] = param((True, True, True), "Self-attention, one entry a level.", source=PAPER)
    dropout: float = param(0.4, "Dropout in the UNet.", source=PAPER, ge=0, lt=1)
    prediction: Literal["direct", "residual"] = param(
        "direct", "The clean head gives z0, or its difference from z_t (learns faster in few steps).", source=PAPER
    )

    steps: int = param(60_000, "Optimiser steps of the UNet.", unit="steps", source="adbench", ge=1)
    batch: int = param(96, "Slices a step of the UNet.", unit="slices", source=PAPER, ge=1, le=8192)
    lr: float = param(4e-5, "Peak learning rate of AdamW for the UNet, cosine schedule.", source=CODE, gt=0, le=1)
    weight_decay: float = param(1e-4, "Weight decay of the UNet.", source=CODE, ge=0)
    warmup: int = param(
        500, "Linear warm-up of each stage, at most a tenth of its steps.", unit="steps", source="adbench", ge=0
    )
    ema: float = param(0.999, "Decay of the averaged weights of each stage, 0: none.", source="adbench", ge=0, lt=1)
    clip: float = param(1.0, "Largest gradient norm, 0: not clipped.", source="adbench", ge=0)
    accumulate: int = param(1, "Micro-batches a step, to save memory.", source="adbench", ge=1)
    augment: bool = param(True, "Rotate, shift, brighten and contrast training slices.", source=CODE)
    augmented_copies: int = param(
        4, "Augmented latents cached a slice, besides the plain one.", source="adbench", ge=0, le=256
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
    background_share: float = param(
        0.9, "A 16x16 px block with a smaller share of brain is never noised.", source=CODE, ge=0, le=1
    )

    eta: float = param(0.5, "η of the sampler: 0 deterministic, 1 ancestral.", source=CODE, ge=0, le=1)
    threshold: float = param(0.5, "Mask probability above which a cell is repaired.", source=PAPER, ge=0, le=1)
    unflagged: Literal["keep", "restore"] = param(
        "keep",
        "A cell flagged early and not at the end: keep its partly noised value, or restore the original.",
        source=CODE,
    )
    difference: Literal["absolute", "squared"] = param("absolute", "d, between pictures in [-1, 1].", source=CODE)
    compare_with: Literal["decoded", "input"] = param(
        "decoded", "d compares D(ẑ0) with D(E(x)) or with x.", source=CODE
    )
    sign: Literal["abs", "positive", "negative"] = param(
        "abs",
        "Which differences count: both, where the slice is brighter than its repair, darker (a prior on the contrast of lesions).",
        source="adbench",
    )
    gamma: float = param(0.25, "γ, where d is cut off; in units of d.", source=CODE, gt=0)
    sigma: float = param(
        5.0, "Gaussian smoothing of the map.", unit="px of the model's grid", source=PAPER, ge=0, le=50
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("variant", "official") in VARIANTS:
            return {**VARIANTS[values.get("variant", "official")], **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.unet_attention) != len(self.unet_multipliers):
            raise ValueError("unet_attention and unet_multipliers must have one entry a level each")
        if len(self.patch_probabilities) != len(self.patch_sizes) or abs(sum(self.patch_probabilities) - 1) > 1e-6:
            raise ValueError("patch_probabilities must have one entry for each of patch_sizes and sum to 1")
        if min(self.patch_sizes) < 1 or min(self.patch_probabilities) < 0:
            raise ValueError("patch_sizes must be at least 1 and patch_probabilities at least 0")
        if self.autoencoder == "train":
            if self.ae_steps < 1:
                raise ValueError('ae_steps must be at least 1 when autoencoder = "train"')
            if any(c % 8 for c in self.ae_channels):
                raise ValueError("ae_channels must be multiples of 8")
            self.check_latent(self.ae_patch * 2 ** (len(self.ae_channels) - 1))
        return self

    def check_latent(self, factor: int) -> int:
        """Latent cells along a side for an autoencoder that shrinks ``factor`` times; ``ValueError`` when the UNet cannot divide them."""
        halvings = 2 ** (len(self.unet_multipliers) - 1)
        if self.image_size % (factor * halvings):
            raise ValueError(
                f"image_size = {self.image_size} must be a multiple of {factor * halvings}: the autoencoder shrinks {factor} times and the UNet halves {len(self.unet_multipliers) - 1} times"
            )
        return self.image_size // factor


class MADAD(Method):
    """Masked latent diffusion that finds and repairs its own anomalies.

    Healthy slices are encoded by a frozen KL autoencoder. Random rectangles of latent cells are noised, and one UNet learns to
    say which they are and what was there. At test the latent of the slice is taken for a partly noised one: step by step the
    cells that the network flags are replaced, the others stay, and the map is the difference of the decoded pictures.
    """

    name = "madad"
    Params = MADADParams
    params: MADADParams
    card = Card(
        paper="Beizaee et al., IPMI 2025, arXiv 2502.16943",
        equations=(
            "autoencoder: min mean|x - D(z)| + 1e-6 KL(q(z|x) || N(0, 1)) / pixels + perceptual + adversarial; then frozen",
            "noising: z_t = M (sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps) + (1 - M) z_0, T = 10, cosine abar, t uniform",
            "M: rectangles of cells, sides from {1, 2, 4, 8}, a share U(0, 0.4) of them; never on background; 1 = noised",
            "training: min mean(z_0 - f_z(z_t, t))^2 + lambda L(M, f_M(z_t, t)), L squared error or cross entropy",
            "test, z_T = E(x): z_(t-1) = B (sqrt(abar_(t-1)) f_z + sqrt(1 - abar_(t-1) - s^2) e + s eps') + (1 - B) z_t",
            "with B = [f_M > threshold], e = (z_t - sqrt(abar_t) f_z) / sqrt(1 - abar_t), s the DDIM deviation times eta",
            "map: G_sigma * min(d, gamma) / gamma, d = |D(z_0') - D(E(x))| (official) or (D(z_0') - x)^2 (paper)",
        ),
        variants={
            "variant": "official (what the published code does) or paper (what the text says); each part can be set by itself",
            "unflagged": "keep, or restore: cells that the last mask leaves out get their own latent back",
            "autoencoder": "train one here, or a folder or hub id in diffusers format",
            "standardise, ae_base, prediction": "not in the paper: they make small models on a CPU learn something",
        },
        deviations=(
            "the learning rate warms up per step; the published code spends its first epoch at rate 0",
            "the sampler's noise is seeded by subject and slice; the published code does not seed it",
            "rectangle sizes are drawn per sample, patch_per_batch=true draws them once a batch as the code does: less noise",
            "augmentation is a fixed number of cached copies, so that the frozen encoder runs once",
            "the perceptual term uses shift-tolerant AlexNet features, whose weights come with a wheel; KL-f8 used VGG16",
            "XL has 10 attention heads: the 12 that were published do not divide its channels",
        ),
        published=(
            "ATLAS T1: Dice above THOR's by 4 % for small, 11 % for medium lesions and 22 % on average, relative (summary of arXiv 2502.16943, quoted)",
            "methods of this kind: per-volume Dice .4 to .6 on BraTS T2 when trained on IXI",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Two cores, no GPU, about two minutes. What decided, AUPRC on the validation split of the real FLAIR strokes (prevalence
        # .043, 165 training slices, 300 to 500 steps of the UNet):
        #   f4 or f8 autoencoder, 4 channels, as in the paper but small: .06 to .10, whatever threshold, η or γ. With so few steps
        #     its latent is an arbitrary code, and noise in it looks like nothing that a lesion does.
        #   standardised slices, f8, 1 channel: .14; the same with KL weight .3: .08.
        #   the same with ae_base (the channel is the brightness of its cell): .474; with threshold .3 .486; the phantom's
        #     validation split has .793 and .777.
        #   at 500 steps, seed 0, strokes / phantom: as is .494 / .793; threshold .3 .511 / .781; η 1 .516 / .790; both .516 / .776;
        #     1,500 steps with both .556. λ .1: .511. Positive side, with both: .525 / .781; 1,500 steps .570.
        #   restoring unflagged cells: .319 on the strokes, .706 on the phantom.
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
            "unet_size": "nano",
            "unet_multipliers": (1, 2),
            "unet_layers": 1,
            "unet_attention": (False, True),
            "dropout": 0.0,
            "prediction": "residual",
            "steps": 700,
            "batch": 16,
            "lr": 1e-3,
            "warmup": 20,
            "ema": 0.99,
            "augmented_copies": 3,
            "mask_loss": "bce",
            "mask_weight": 0.01,
            "eta": 1.0,
            "threshold": 0.3,
            "sigma": 2.5,
        },
        "base": {
            "image_size": 128,
            "ae_channels": (64, 128, 256),
            "unet_size": "S",
            "steps": 30_000,
            "ae_steps": 10_000,
        },
        "paper": {"ae_perceptual_weight": 1.0, "gan_weight": 0.5},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "ae_channels": (16, 16), "ae_steps": 4, "steps": 4, "batch": 4}
    _codec: LatentCodec
    _unet: TwoHeadUNet
    _scale: float

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        from adbench.methods.madad.fitting import fit

        def ready(codec: LatentCodec, unet: TwoHeadUNet, scale: float) -> None:
            self._codec, self._unet, self._scale = codec, unet, scale

        return fit(self.params, train, val, self.ctx, ready)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        from adbench.methods.madad.scoring import repair

        return repair(self.params, self._codec, self._unet, self._scale, batch, self.ctx)

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[1]

    def state(self) -> dict[str, torch.Tensor]:
        return {
            **{f"autoencoder.{key}": value for key, value in self._codec.vae.state_dict().items()},
            **{f"unet.{key}": value for key, value in self._unet.state_dict().items()},
        }

    def notes(self) -> dict[str, Any]:
        return {
            "autoencoder": self._codec.config,
            "patch": self._codec.patch,
            "base": self._codec.base,
            "scale": self._scale,
        }

    def load_notes(self, notes: dict[str, Any]) -> None:
        from adbench.methods.madad.autoencoder import LatentCodec

        self._codec = LatentCodec(notes["autoencoder"], int(notes["patch"]), bool(notes["base"]))
        self._scale = float(notes["scale"])

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import placed
        from adbench.methods.madad.fitting import new_unet

        unet = new_unet(self.params, self._codec.channels)
        for prefix, module in (("autoencoder.", self._codec.vae), ("unet.", unet)):
            module.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
            placed(module, self.ctx.device)
        self._unet = unet

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        return params.ae_steps + params.steps if isinstance(params, MADADParams) and params.counted else None

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        if not isinstance(params, MADADParams) or params.autoencoder == "train":
            return []
        return sorted(path for path in Path(params.autoencoder).rglob("*") if path.is_file())

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        if not isinstance(params, MADADParams):
            raise UserError("resources of madad need parameters of madad.")
        memory = {"nano": 2.0, "XS": 8.0, "S": 12.0, "M": 18.0, "L": 24.0, "XL": 32.0}[params.unet_size]
        return Resources(cpus=2.0, gpu_memory_gb=memory)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "mask_weight": {"low": 1e-4, "high": 1.0, "log": True},
            "lr": {"low": 1e-5, "high": 2e-3, "log": True},
            "gamma": {"low": 0.05, "high": 1.0, "log": True},
            "sigma": {"low": 0.0, "high": 8.0},
            "eta": {"low": 0.0, "high": 1.0},
            "threshold": {"low": 0.1, "high": 0.9},
            "mask_share": {"low": 0.2, "high": 0.6},
        }
