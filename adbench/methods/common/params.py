"""Parameters that methods share: how long a network is trained, on which grid, and how a residual becomes a map.

A field that several methods have with defaults of their own is described once, as a function of default and source:
``lr: float = LR(1e-4, source="THOR")``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, Self

from pydantic import model_validator

from adbench.params import ParamSet, param

Sign = Literal["abs", "positive", "negative"]

IMAGE_SIZE = partial(
    param, doc="Side of the network's square grid; slices are resized to it.", unit="px", ge=32, le=512
)
CHANNELS = partial(param, doc="Channels by level; each level halves the grid.", min_length=1, max_length=7)
STEM = partial(
    param,
    doc="Squares of this many px are folded into channels before the network: 2 quarters the cost.",
    unit="px",
    ge=1,
    le=4,
)
STANDARDISE = partial(
    param,
    doc="Put every slice on one intensity scale: median of its brain at 0.4, interquartile range 0.15 (undone in the reconstruction).",
)
STEPS = partial(param, doc="Optimiser steps.", unit="steps", ge=1)
BATCH = partial(param, doc="Slices per step.", unit="slices", ge=1, le=4096)
LR = partial(param, doc="Peak learning rate of Adam.", gt=0, le=1)
WARMUP = partial(param, doc="Linear warm-up of the learning rate.", unit="steps", ge=0)
SCHEDULE = partial(param, doc="Learning rate after warm-up.")
EMA = partial(param, doc="Decay of the exponential moving average of the weights; 0: no average.", ge=0, lt=1)
CLIP = partial(param, doc="Largest gradient norm; 0: no clipping.", ge=0)
AUGMENT = partial(param, doc="Rotate, shift, brighten and contrast training slices.")
SIGMA = partial(param, doc="Gaussian smoothing of the map; 0: none.", unit="px of the slice", scores=True, ge=0, le=50)
SIGN = partial(
    param,
    doc="Which differences count: both, only brighter than expected, or only darker (a prior on the contrast of lesions).",
    scores=True,
)


class TrainedParams(ParamSet):
    """Training length of a method that is trained; its own ``steps`` counts unless one of these is given."""

    epochs: float | None = param(
        None, "Passes over the training slices, in place of steps.", unit="epochs", source="adbench", gt=0
    )
    minutes: float | None = param(
        None,
        "Training time, in place of steps; how far it gets, and so every number, depends on the machine.",
        unit="minutes",
        source="adbench",
        gt=0,
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("give epochs or minutes, not both")
        return self

    @property
    def counted(self) -> bool:
        """Whether the parameters alone say how many optimiser steps a fit takes."""
        return self.epochs is None and self.minutes is None

    def length(self, samples: int, steps: int, batch: int) -> int:
        """Optimiser steps of a stage over ``samples`` slices, ``batch`` per step, that has ``steps`` of its own."""
        return steps if self.epochs is None else max(1, math.ceil(self.epochs * samples / batch))

    def seconds(self, share: float = 1.0) -> float | None:
        """Wall-clock budget in seconds of a stage that gets ``share`` of the whole; None: it is counted in steps."""
        return None if self.minutes is None else 60 * self.minutes * share


class NetworkParams(TrainedParams):
    """What :class:`adbench.methods.trained_network.TrainedNetwork` needs to train and apply one network."""

    image_size: int = IMAGE_SIZE(128, source="adbench")
    standardise: bool = STANDARDISE(False, source="adbench")
    steps: int = STEPS(20_000, source="adbench")
    batch: int = BATCH(32, source="adbench")
    lr: float = LR(1e-4, source="adbench")
    warmup: int = WARMUP(0, source="adbench")
    ema: float = EMA(0.0, source="adbench")
    clip: float = CLIP(1.0, source="adbench")
    sigma: float = SIGMA(0.0, source="adbench")

    @property
    def lr_schedule(self) -> str:
        """Learning rate after the warm-up: "cosine" or "constant"."""
        return str(getattr(self, "schedule", "cosine"))


# What the tiny presets of the methods with a UNet of convolutions share: its size, and what suits it on two cores.
TINY_UNET: dict[str, Any] = {
    "image_size": 96,
    "channels": (32, 64, 128),
    "stem": 2,
    "lr": 2e-3,
    "warmup": 20,
    "sigma": 5.0,
}


def check_unet(side: int, channels: tuple[int, ...], stem: int) -> None:
    """Raise ``ValueError`` unless :class:`adbench.methods.common.networks.DenoisingUNet` can be made for slices of ``side`` px."""
    unit = stem * 2 ** (len(channels) - 1)
    if side % unit or any(c < 8 or c % 8 for c in channels):
        raise ValueError(
            f"image_size must be a multiple of {unit} (stem, and one halving per level) and channels multiples of 8"
        )


class BottleneckParams(NetworkParams):
    """Shape and training of the autoencoders with a dense latent (Baur et al. 2021)."""

    image_size: int = IMAGE_SIZE(128, source="Baur 2021")
    channels: tuple[int, ...] = CHANNELS((32, 64, 128, 128, 128), source="Baur 2021, UPD")
    latent: int = param(
        128, "Length of the dense latent; a spatial latent would copy the lesion.", source="Baur 2021", ge=1, le=4096
    )
    lr: float = LR(1e-4, source="Baur 2021")
    schedule: Literal["constant", "cosine"] = SCHEDULE("constant", source="Baur 2021")
    augment: bool = AUGMENT(False, source="arXiv 2502.16943, official code")

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        if self.image_size % 2 ** len(self.channels) or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(
                f"image_size must be a multiple of {2 ** len(self.channels)} (one halving per block) "
                "and channels multiples of 8"
            )
        return self
