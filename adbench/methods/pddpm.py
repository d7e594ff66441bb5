"""Patched, masked and conditioned diffusion: pDDPM (arXiv 2303.03758), mDDPM (arXiv 2305.19867) and cDDPM (arXiv 2312.04215)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import BATCH, CHANNELS, IMAGE_SIZE, SIGN, Sign
from adbench.methods.diffusion import SEEN, TINY, DiffusionMethod, DiffusionParams, Noise
from adbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch

SIDES = (0.09, 0.18)  # of a frequency patch, as shares of the brain's extent (mDDPM)
CUTS = (2, 10)  # lowest frequencies that a frequency patch misses, or is made of (mDDPM)


class PDDPMParams(DiffusionParams):
    """Parameters of :class:`PDDPM`."""

    image_size: int = IMAGE_SIZE(96, source="pDDPM")
    channels: tuple[int, ...] = CHANNELS((128, 256, 256), source="pDDPM (128 x 1, 2, 2)", max_length=6)
    attention: tuple[bool, ...] = param(
        (False, False, False), "Levels with self-attention.", source="pDDPM", max_length=6
    )
    head_channels: int = param(64, "Channels of an attention head.", source="adbench", ge=8)
    res_blocks: int = param(3, "Residual blocks per level.", source="pDDPM", ge=1, le=4)
    target: Literal["x0"] = param("x0", "What the network predicts: the clean slice (L1).", source="pDDPM")
    schedule: Literal["linear", "cosine"] = param("cosine", "How the noise grows.", source="pDDPM")
    noise: Noise = param("simplex", "Kind of noise, training and test.", source="pDDPM")
    batch: int = BATCH(32, source="pDDPM")
    augment: bool = param(False, "Rotate ±10°, shift ±10 %, scale .9-1.1 and mirror training slices.", source="pDDPM")
    boxes: int = param(
        2,
        "Boxes along a side, of which one at a time is noised while the network sees the others; 1: the whole slice.",
        unit="boxes",
        source="pDDPM",
        ge=1,
        le=8,
    )
    frequency_patches: int = param(
        0,
        "Rectangles at most, in training, that lose or keep their lowest frequencies alone (mDDPM: 5); 0: none.",
        unit="patches",
        source="mDDPM",
        ge=0,
        le=20,
    )
    condition: tuple[int, ...] = param(
        (),
        "Channels of an encoder, each halving the grid, that tells the network of the whole slice (cDDPM); none: no encoder.",
        source="cDDPM",
        max_length=7,
    )
    start: tuple[int, ...] = param(
        (500,),
        "Steps the slice is noised to; predictions from several are averaged.",
        unit="steps",
        source="pDDPM; cDDPM (250, 500, 750)",
        min_length=1,
        max_length=20,
        scores=True,
    )
    sign: Sign = SIGN("abs", source="adbench")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if min(self.start) < 0:
            raise ValueError("start may hold no negative step")
        self.check_start(max(self.start))
        if self.image_size % self.boxes:
            raise ValueError(f"image_size must be a multiple of boxes ({self.boxes})")
        halved = 2 ** len(self.condition)
        if self.image_size % halved or any(c < 8 or c % 8 for c in self.condition):
            raise ValueError(
                f"condition needs channels that are multiples of 8, and an image_size that is a multiple of {halved} "
                "(one halving per level of the encoder)"
            )
        return self


def grid_boxes(side: int, count: int) -> torch.Tensor:
    """Indicators (count * count, 1, side, side) of the boxes that tile a square grid."""
    import torch

    along = torch.arange(side) * count // side
    number = along[:, None] * count + along
    return (number == torch.arange(count * count)[:, None, None]).float()[:, None]


def frequency_patches(image: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, most: int) -> torch.Tensor:
    """Slices in which rectangles come from a version of the slice without its lowest frequencies, or of these alone (mDDPM).

    Args:
        image: (B, 1, S, S) in [0, 1].
        brain: (B, 1, S, S) bool; nothing changes outside.
        generator: a CPU generator.
        most: a slice has 0 to ``most`` rectangles, each number as often.

    Returns:
        (B, 1, S, S) in [0, 1].
    """
    import torch

    from adbench.methods.common.image_ops import uniform

    count, side = len(image), image.shape[-1]
    cut = torch.randint(CUTS[0], CUTS[1] + 1, (count, 1, 1, 1), generator=generator)
    keeps = torch.rand((count, 1, 1, 1), generator=generator) < 0.5
    rectangles = torch.randint(most + 1, (count, 1), generator=generator)
    place = torch.rand((2, count, most), generator=generator)
    extent = uniform((2, count, most), *SIDES, generator)

    frequency = (torch.fft.fftfreq(side) * side).abs()
    low = torch.maximum(frequency[:, None], frequency) < cut
    other = torch.fft.ifft2(torch.fft.fft2(image) * (low == keeps).to(image.device)).real.clamp(0, 1)

    inside = torch.arange(most)[None] < rectangles
    chosen = torch.ones((count, most, side, side), dtype=torch.bool)
    for axis, (at, share) in enumerate(zip(place, extent, strict=True)):
        there = brain.any(dim=3 - axis).squeeze(1).cpu()  # (B, S): rows, then columns, with brain
        first = there.float().argmax(dim=1, keepdim=True)
        length = there.sum(dim=1, keepdim=True)
        apart = torch.arange(side) - (first + at * length)[:, :, None]
        within = apart.abs() < (share * length)[:, :, None] / 2
        chosen &= within[:, :, :, None] if axis == 0 else within[:, :, None, :]
    patch = (chosen & inside[:, :, None, None]).any(dim=1, keepdim=True).to(image.device)
    return torch.where(patch & brain, other, image)


class PDDPM(DiffusionMethod):
    """A diffusion model that noises one box of a slice at a time and fills it in from the others.

    mDDPM also spoils frequencies of small rectangles in training (``frequency_patches=5``); cDDPM tells the network of the
    whole slice instead (``condition``, with ``boxes=1``).
    """

    name = "pddpm"
    gpu_memory_gb = 12.0
    Params = PDDPMParams
    params: PDDPMParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**TINY, "res_blocks": 1, "batch": 16, "t_max": 300, "start": (150,)},
        "base": {
            **SEEN,
            "channels": (64, 128, 128),
            "res_blocks": 1,
            "steps": 30_000,
            "decay": "cosine",
            "t_max": 300,
            "start": (150,),
        },
        "paper": {"epochs": 1600.0},
    }

    def build(self) -> nn.Module:
        from adbench.methods.common.networks import ConditionedUNet

        if not self.params.condition:
            return super().build()
        return ConditionedUNet(self.params.image_size, self.params.condition, self.params.stem, **self.network_options)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        """What ``ddpm`` draws, noised in one random box a slice."""
        import torch

        p = self.params
        batch = super().make_batch(slices, indices, generator, training=training)
        noised, clean = batch["x"], batch["wanted"]
        seen = clean
        if training and p.frequency_patches:
            image = (clean + 1) / 2
            seen = 2 * frequency_patches(image, image > 0, generator, p.frequency_patches) - 1
            left = self.noise_schedule.bar[batch["t"].cpu()].sqrt().to(clean).view(-1, 1, 1, 1)
            noised = noised + left * (seen - clean)
        which = torch.randint(p.boxes**2, (len(clean),), generator=generator)
        box = grid_boxes(p.image_size, p.boxes)[which].to(clean.device)
        batch |= {"x": torch.where(box > 0, noised, seen), "box": box}
        return {**batch, "seen": seen} if p.condition else batch

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the slices of the absolute error inside their boxes."""
        told = [batch["seen"]] if "seen" in batch else []
        error: torch.Tensor = network(batch["x"], batch["t"], *told) - batch["wanted"]
        return (error.abs() * batch["box"]).mean()

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import signed_map
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            clean = 2 * seen.image - 1
            told = [clean] if p.condition else []
            noise = self.draw_noise(len(clean), self.generators(batch))
            filled = torch.zeros_like(clean)
            for start in p.start:
                noised, t = self.noise_schedule.noised(clean, noise, start), clean.new_full((len(clean),), start)
                for box in grid_boxes(p.image_size, p.boxes).to(clean.device):
                    out = self.apply(torch.where(box > 0, noised, clean), t.long(), *told).clamp(-1, 1)
                    filled += box * out / len(p.start)
            recon = (filled + 1) / 2
            return signed_map(seen.residual(recon), p.sign, p.sigma), seen.restore(recon)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            **super().search_space(),
            "boxes": {"choices": [1, 2, 3, 4]},
            "frequency_patches": {"choices": [0, 3, 5]},
        }
