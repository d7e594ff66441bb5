"""REFLECT: a rectified flow carries corrupted latents back to healthy ones (Beizaee et al., MICCAI 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.errors import UserError
from adbench.methods.base import FitReport, Method, Resources
from adbench.methods.common import textures
from adbench.methods.common.params import BATCH, LR, SIGMA, SIGN, STEPS, Sign
from adbench.methods.madad.params import AUTOENCODERS, UNET_SIZES, AutoencoderParams
from adbench.params import ParamSet, param
from adbench.utils.named_files import NamesFile

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.madad.autoencoder import Encoded
    from adbench.methods.madad.networks import LatentCodec
    from adbench.methods.training import Batch, StageResult

PAPER = "arXiv 2508.02889"
CODE = "official code"
OBJECTS = 4  # in a slice, at most
LONGEST = (200, 120, 100, 80)  # steps of a walk on 32 x 32 cells, for 1, 2, 3 and 4 objects
PICTURES = 32  # of each kind that are drawn for texture = simplex

Velocity = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


class ReflectParams(AutoencoderParams):
    """Parameters of :class:`Reflect` beside its autoencoder's."""

    unet_size: Literal["nano", "XS", "S", "M", "L"] = param("M", "Width and heads, as in madad.", source=CODE)
    unet_multipliers: tuple[int, ...] = param(
        (1, 2, 4), "Channels of the levels as multiples of the width.", source=CODE, min_length=1, max_length=6
    )
    unet_layers: int = param(2, "Residual blocks per level.", source=CODE, ge=1, le=6)
    unet_attention: tuple[bool, ...] = param((True, True, True), "Self-attention, one entry per level.", source=CODE)
    dropout: float = param(0.4, "Dropout in the UNet.", source=CODE, ge=0, lt=1)

    steps: int = STEPS(60_000, doc="Optimiser steps of the UNet.", source="adbench")
    batch: int = BATCH(96, doc="Slices per step of the UNet.", source=CODE, le=8192)
    lr: float = LR(5e-4, doc="Peak learning rate of AdamW for the UNet, cosine schedule.", source=PAPER)
    weight_decay: float = param(1e-4, "Weight decay of the UNet.", source=CODE, ge=0)
    augmented_copies: int = param(4, "Augmented latents cached per slice.", source="adbench", ge=0, le=256)
    reflow_steps: int = param(
        0, "Steps of REFLECT-2: the flow is trained again towards its own ends; 0: REFLECT-1.", unit="steps", source=PAPER, ge=0,
    )  # fmt: skip
    reflow_lr: float = LR(1e-5, doc="Peak learning rate of REFLECT-2.", source=CODE)
    reflow_euler: int = param(5, "Euler steps to the ends that REFLECT-2 learns from.", source=CODE, ge=1, le=100)

    background_share: float = param(
        0.001, "A latent cell with a smaller share of brain is never corrupted.", source=CODE, ge=0, le=1
    )
    walk_scale: float = param(
        1.0, "Factor on the length of the walks that outline an object, which follows the number of cells.", source=CODE, gt=0, le=16,
    )  # fmt: skip
    empty_share: float = param(0.1, "Share of training slices that stay as they are.", source=CODE, ge=0, lt=1)
    texture: Literal["simplex", "foreign", "noise", "pictures"] = param(
        "simplex",
        "What half of the objects are filled with: drawn simplex noise and gratings, the latent of another slice, noise like the other half, or the pictures of the folder textures.",
        source="adbench (DTD in the paper)",
    )
    textures: Annotated[str, NamesFile(("",))] = param(
        "", "Folder of grey PNG pictures for texture = pictures.", source="adbench"
    )
    texture_share: float = param(
        0.5, "Share of objects that have a texture. Not with texture = noise.", source=CODE, ge=0, le=1
    )
    strength: float = param(0.2, "Smallest corruption of an object; the largest is 1.", source=CODE, gt=0, le=1)

    euler_steps: int = param(1, "Euler steps at test.", source=CODE, ge=1, le=100, scores=True)
    compare_with: Literal["decoded", "input"] = param(
        "decoded", "The pixel part compares D(ẑ) with D(E(x)) or with x.", source=CODE, scores=True
    )
    gamma: float = param(
        0.4, "Where differences are cut off, of pixels in [-1, 1] and of latents.", source=CODE, gt=0, scores=True
    )
    sigma: float = SIGMA(3.0, doc="Smoothing of the pixel part.", unit="px of the model's grid", source=CODE)
    sign: Sign = SIGN(
        "abs",
        doc="Which differences of pixels count: both, only brighter than expected, or only darker; those of latents have no sign.",
        source="adbench",
    )
    latent_sigma: float = SIGMA(1.0, doc="Smoothing of the latent part.", unit="cells", source=CODE)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.unet_attention) != len(self.unet_multipliers):
            raise ValueError("unet_attention and unet_multipliers must have one entry per level each")
        if (self.texture == "pictures") != bool(self.textures):
            raise ValueError("texture = pictures and textures = FOLDER go together: set both or none")
        if not self.texture_share and self.texture != "noise":
            raise ValueError(f"texture_share = 0 leaves nothing of texture = {self.texture}: set texture = noise")
        return self

    @property
    def halvings(self) -> int:
        return len(self.unet_multipliers) - 1

    @property
    def block(self) -> int:
        return 1

    def texture_files(self) -> list[Path]:
        """The pictures of the folder ``textures``, by name.

        Raises:
            UserError: no such folder, no PNG picture in it, or a file that is none.
        """
        if not self.textures:
            return []
        folder = Path(self.textures).expanduser()
        found = textures.pictures_of(folder)
        if not found:
            what = "holds no .png picture" if folder.is_dir() else "is no folder"
            raise UserError(
                f"textures = '{self.textures}' {what}: name a folder of grey PNG pictures, or set reflect.texture=simplex."
            )
        return found


def contour_objects(
    brain: torch.Tensor, generator: torch.Generator, *, scale: float = 1.0, empty: float = 0.1
) -> torch.Tensor:
    """Random objects in the brain: each is what a closed random walk over cells surrounds.

    A slice has 1 to 4 objects with probability ∝ 1/k. A walk begins in a random brain cell, moves to a neighbour or stays, and keeps
    to the brain; its length n has a weight falling linearly from 10 (0) to 1 (``LONGEST`` · cells / 1024 · ``scale``).

    Args:
        brain: (B, 1, h, w) bool on the CPU.
        generator: a CPU generator.
        scale: factor on the longest walks.
        empty: share of slices without an object.

    Returns:
        (B, 1, h, w) int64: 0 nothing, k inside object k; where two overlap, the first.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    count, _, height, width = brain.shape
    inside = brain.flatten(1)
    number = torch.multinomial(1 / torch.arange(1.0, OBJECTS + 1), count, replacement=True, generator=generator)
    longest = (torch.tensor(LONGEST) * scale * height * width / 1024).round().long().clamp(min=1)
    at = torch.arange(int(longest.max()) + 1)
    weights = (10 - 9 * at / longest[:, None]) * (at <= longest[:, None])
    lengths = torch.multinomial(weights[number], OBJECTS, replacement=True, generator=generator)
    possible = inside | ~inside.any(dim=1, keepdim=True)
    place = torch.multinomial(possible.float(), OBJECTS, replacement=True, generator=generator)
    moves = torch.randint(9, (int(lengths.max()), count, OBJECTS), generator=generator)
    path = [place]
    for move in moves:
        row, column = place // width + move // 3 - 1, place % width + move % 3 - 1
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        target = torch.where(there, row * width + column, place)
        place = torch.where(possible.gather(1, target), target, place)
        path.append(place)
    walks = torch.stack(path, dim=-1).numpy()  # (B, 4, n + 1)
    out = np.zeros((count, height, width), np.uint8)
    stay = torch.rand(count, generator=generator) < empty
    for index in (~stay).nonzero().flatten().tolist():
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for k in range(int(number[index]), -1, -1):  # the first is drawn last
            cells = walks[index, k, : int(lengths[index, k]) + 1]
            points = np.stack([cells % width, cells // width], axis=1).ravel().tolist()
            if len(points) > 4:
                draw.polygon(points, fill=k + 1)
            draw.line(points, fill=k + 1)
            draw.point(points, fill=k + 1)
        out[index] = np.asarray(image)
    return torch.from_numpy(out)[:, None].long() * brain


def corrupted(
    clean: torch.Tensor, objects: torch.Tensor, strength: torch.Tensor, filling: torch.Tensor
) -> torch.Tensor:
    """``z0 = √(1-m) z1 + √m r`` inside the objects, z1 elsewhere.

    Args:
        clean: z1, (B, C, h, w).
        objects: (B, 1, h, w) from :func:`contour_objects`.
        strength: m, (B, 4) in [0, 1], one an object.
        filling: r, (B, 4, C, h, w).
    """
    import torch

    index = (objects - 1).clamp(min=0)
    m = strength.gather(1, index.flatten(1)).view(objects.shape)
    r = filling.gather(1, index[:, :, None].expand(-1, -1, *clean.shape[1:2], -1, -1))[:, 0]
    return torch.where(objects > 0, (1 - m).sqrt() * clean + m.sqrt() * r, clean)


def euler(velocity: Velocity, z: torch.Tensor, steps: int) -> torch.Tensor:
    """``z_{t + 1/K} = z_t + v(z_t, t) / K`` from t = 0 to 1 in K = ``steps``; z is (B, C, h, w), t (B,)."""
    import torch

    for step in range(steps):
        z = z + velocity(z, torch.full((len(z),), step / steps, device=z.device)) / steps
    return z


def anomaly_map(
    pixels: torch.Tensor, latent: torch.Tensor, gamma: float, sigma: float, latent_sigma: float
) -> torch.Tensor:
    """``(G_σ * min(|d|, γ)/γ + resized G_σz * min(mean |δ|, γ)/γ) / 2`` in [0, 1].

    Args:
        pixels: d, difference (B, 1, S, S) of images in [-1, 1].
        latent: δ, difference (B, C, h, w) of latents; the mean is over channels.
        gamma: where both are cut off.
        sigma: smoothing of the first part in px.
        latent_sigma: smoothing of the second part in cells.
    """
    from adbench.methods.common.image_ops import gaussian_blur
    from adbench.methods.madad.networks import cells_to_pixels

    a = gaussian_blur(pixels.abs().clamp(max=gamma) / gamma, sigma)
    b = gaussian_blur(latent.abs().mean(dim=1, keepdim=True).clamp(max=gamma) / gamma, latent_sigma)
    return (a + cells_to_pixels(b, pixels.shape[-1])) / 2


def velocity_unet(p: ReflectParams, channels: int) -> nn.Module:
    """``(z_t, t) -> v``, zero at first: the trunk of MAD-AD with one head; t in [0, 1] enters through one linear layer."""
    from torch import nn

    from adbench.methods.madad.networks import TwoHeadUNet

    width, heads = UNET_SIZES[p.unet_size]
    levels = (p.unet_multipliers, p.unet_layers, p.unet_attention)
    both = TwoHeadUNet(channels, width, *levels, heads, p.dropout, residual=True)
    trunk: Any = both.trunk
    trunk.conv_norm_out, trunk.conv_act, trunk.conv_out = both.clean_head
    trunk.time_proj = nn.Unflatten(0, (-1, 1))
    trunk.time_embedding = nn.Linear(1, 4 * width)
    return both.trunk


class Reflect(Method):
    """A flow that carries corrupted latents back to healthy ones, straight.

    Healthy slices are encoded by the frozen autoencoder of MAD-AD. Random contours of latent cells are mixed with textures or
    noise, and a UNet learns the velocity from the corrupted to the healthy latent. At test one step is taken from the latent of
    the slice; the map is what changed, in pixels and in the latent.
    """

    name = "reflect"
    Params = ReflectParams
    params: ReflectParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **AUTOENCODERS["tiny"],
            "unet_size": "nano", "unet_multipliers": (1, 2), "unet_layers": 1, "unet_attention": (False, True), "dropout": 0.0,
            "steps": 700, "batch": 16, "lr": 1e-3, "augmented_copies": 3,
        },
        "base": {**AUTOENCODERS["base"], "unet_size": "S", "steps": 30_000},
        "paper": {**AUTOENCODERS["paper"], "reflow_steps": 15_000},
    }  # fmt: skip
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "ae_channels": (16, 16), "ae_steps": 4, "steps": 4, "batch": 4}
    _codec: LatentCodec
    _unet: nn.Module
    _scale: float

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Train (or load) the autoencoder, cache the latents, train the flow, and once more for REFLECT-2."""
        import copy
        import hashlib

        from adbench.methods import training
        from adbench.methods.madad.autoencoder import fit_codec

        p, ctx = self.params, self.ctx
        if p.texture == "foreign" and len(train) == 1:
            raise UserError(
                "reflect.texture = foreign fills objects with the latent of another training slice, and there is one slice in "
                "all: give more, or set reflect.texture=simplex."
            )
        pictures = self._pictures()  # before anything is trained: one of them may be unreadable
        total = p.ae_steps + p.steps + p.reflow_steps
        data = fit_codec(p, train, val, ctx, p.augmented_copies if p.augment else 0, share=p.ae_steps / total)
        self._codec, self._scale = data.codec, data.scale
        bank = self._bank(data, pictures)
        with training.seeded(ctx.seed, self.name, "unet"):
            self._unet = velocity_unet(p, data.codec.channels)
        data.stages.append(("unet", self._train("unet", data, bank, p.steps, p.lr, p.ae_steps / total, None)))
        if p.reflow_steps:
            teacher = copy.deepcopy(self._unet).eval().requires_grad_(False)
            again = self._train("reflow", data, bank, p.reflow_steps, p.reflow_lr, 1 - p.reflow_steps / total, teacher)
            data.stages.append(("reflow", again))
        self._unet.eval().requires_grad_(False)
        report = training.report(data.stages, [self._codec, self._unet])
        if pictures is not None:
            sha = hashlib.sha256((pictures.float() * 255).round().byte().numpy().tobytes()).hexdigest()
            kind = "pictures of a folder" if p.textures else "drawn pictures of simplex noise and gratings"
            report.notes.append(f"Textures: {len(pictures)} {kind}, SHA-256 of their 8-bit values {sha}.")
        if p.textures and (others := textures.left_out(Path(p.textures).expanduser())):
            report.notes.append(
                f"Textures: {others} other pictures of the folder were left out, since PNG alone is read."
            )
        return report

    def _pictures(self) -> torch.Tensor | None:
        """(M, 1, S, S) in [0, 1], the pictures that are textures, those of a user as float16; None where there are none."""
        from adbench.methods import training

        p = self.params
        if p.texture == "pictures":
            return textures.read(p.texture_files(), p.image_size)
        if p.texture != "simplex":
            return None
        return textures.drawn(p.image_size, PICTURES, training.generator(self.ctx.seed, self.name, "pictures"))

    def _bank(self, data: Encoded, pictures: torch.Tensor | None) -> torch.Tensor | None:
        """(M, C, h, w) scaled latents that objects may be filled with; None: noise alone."""
        import torch

        if self.params.texture == "foreign":
            return data.train.mean.flatten(0, 1) * data.scale
        if pictures is None:
            return None
        with torch.inference_mode():
            some = torch.split(pictures.to(self.ctx.device), 32)
            parts = [data.codec.encode(part.float() * 2 - 1)[0] for part in some]
        return torch.cat(parts).clone() * data.scale

    def _train(
        self, name: str, data: Encoded, bank: torch.Tensor | None, steps: int, lr: float, before: float,
        teacher: nn.Module | None,
    ) -> StageResult:  # fmt: skip
        """Train the UNet in a stage called ``name``, for REFLECT-2 towards the ends of the flow of ``teacher``."""
        import torch
        from torch.nn import functional as F

        from adbench.methods import training
        from adbench.methods.common.preprocess import pieces
        from adbench.methods.madad.autoencoder import Latents, plan_of

        p, ctx = self.params, self.ctx
        copies, count, *shape = data.train.mean.shape
        brains = {id(part): part.allowed.cpu() for part in (data.train, data.val) if part is not None}

        def draw(source: Latents, copy: torch.Tensor, indices: torch.Tensor, generator: torch.Generator) -> Batch:
            where = copy.to(source.mean.device), indices.to(source.mean.device)
            mean, std = source.mean[where], source.std[where]
            sample = torch.randn(mean.shape, generator=generator).to(mean.device)
            brain = brains[id(source)][copy, indices]
            own = (
                (indices.repeat_interleave(OBJECTS), count) if p.texture == "foreign" and source is data.train else None
            )
            filling = textures.fillings(len(indices) * OBJECTS, tuple(shape), bank, p.texture_share, generator, own)
            return {
                "z1": (mean + std * sample) * data.scale,
                "objects": contour_objects(brain, generator, scale=p.walk_scale, empty=p.empty_share),
                "strength": torch.rand((len(indices), OBJECTS), generator=generator) * (1 - p.strength) + p.strength,
                "filling": filling.view(len(indices), OBJECTS, *shape),
                "t": torch.rand(len(indices), generator=generator),
            }

        def loss(module: nn.Module, batch: Batch, step: int = 0) -> torch.Tensor:
            start = corrupted(batch["z1"], batch["objects"], batch["strength"], batch["filling"])
            end = batch["z1"]
            if teacher is not None:
                with torch.no_grad():
                    end = euler(lambda z, t: teacher(z, t).sample.float(), start, p.reflow_euler)
            t = batch["t"].view(-1, 1, 1, 1)
            return F.mse_loss(module(start + t * (end - start), batch["t"]).sample.float(), end - start)

        portions = training.Portions(f"{name}, validation", ctx.logger)

        def validate(module: nn.Module) -> float:
            assert data.val is not None
            total, number = 0.0, data.val.mean.shape[1]
            for where in pieces(number, 64):
                generator = training.generator(ctx.seed, self.name, name, "val", int(where[0]))
                batch = draw(data.val, torch.zeros_like(where), where, generator)
                batch["t"] = (torch.arange(len(where)) + 0.5) / len(where)  # evenly, so that the figure is steady
                there = {key: value.to(ctx.device) for key, value in batch.items()}
                total += float(portions.mean(lambda part: loss(module, part), there)) * len(where)
            return total / number

        plan = plan_of(p, count, steps, p.batch, lr, p.weight_decay, steps / (p.ae_steps + p.steps + p.reflow_steps))
        plan = plan if teacher is None else replace(plan, warmup=0)

        def draw_train(indices: torch.Tensor, generator: torch.Generator) -> Batch:
            return draw(data.train, torch.randint(copies, (len(indices),), generator=generator), indices, generator)

        check = validate if data.val else None
        stage = training.Stage(
            name, self._unet, count, draw_train, loss, plan, check, data.identity, watched_from=before, steady=True
        )
        return training.train_stage(stage, ctx)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode, follow the flow, decode; compare pixels and latents."""
        import torch

        from adbench.methods.common.image_ops import one_sided
        from adbench.methods.common.preprocess import preprocess

        p = self.params

        def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.infer(self._unet, z, t)[0]

        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            image = seen.image * 2 - 1
            latent = self.infer(self._codec, image, call="encode")[0] * self._scale
            healthy = euler(velocity, latent, p.euler_steps)
            ends = [healthy, latent] if p.compare_with == "decoded" else [healthy]
            (decoded,) = self.infer(self._codec, torch.cat(ends) / self._scale, call="decode")
            images = decoded.chunk(len(ends))
            reference = images[1] if p.compare_with == "decoded" else image
            pixels = one_sided(reference - images[0], p.sign)
            maps = anomaly_map(pixels, healthy - latent, p.gamma, p.sigma, p.latent_sigma)
            return seen.to_slice_grid(maps), seen.restore((images[0] * 0.5 + 0.5).clamp(0, 1))

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
        return {**self._codec.to_notes(), "scale": self._scale}

    def load_notes(self, notes: dict[str, Any]) -> None:
        from adbench.methods.madad.networks import LatentCodec

        self._codec = LatentCodec.from_notes(notes)
        self._scale = float(notes["scale"])

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import frozen

        self._unet = velocity_unet(self.params, self._codec.channels)
        for prefix, module in (("autoencoder.", self._codec.vae), ("unet.", self._unet)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            frozen(module, self.ctx.device)

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        known = isinstance(params, ReflectParams) and params.counted
        return sum(getattr(params, name) for name in ("ae_steps", "steps", "reflow_steps")) if known else None

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        return [*params.autoencoder_files(), *params.texture_files()] if isinstance(params, ReflectParams) else []

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        size = params.unet_size if isinstance(params, ReflectParams) else "L"
        return Resources(cpus=2.0, gpu_memory_gb={"nano": 2.0, "XS": 8.0, "S": 12.0, "M": 18.0, "L": 24.0}[size])

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 1e-5, "high": 2e-3, "log": True},
            "walk_scale": {"low": 0.5, "high": 4.0, "log": True},
            "texture": {"choices": ["simplex", "foreign", "noise"]},
            "strength": {"low": 0.05, "high": 0.8},
            "euler_steps": {"choices": [1, 2, 5]},
            "gamma": {"low": 0.1, "high": 2.0, "log": True},
            "sigma": {"low": 0.0, "high": 8.0},
        }
