"""Autoencoder with a dense bottleneck (Baur et al. 2021, Med. Image Anal. 69, 101952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adbench.methods.common.params import SIGMA, SIGN, BottleneckParams, Sign
from adbench.methods.trained_network import TrainedNetwork

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch


class AEParams(BottleneckParams):
    """Parameters of :class:`AE`."""

    sigma: float = SIGMA(0.0, unit="px of the network's grid", source="adbench")
    sign: Sign = SIGN("abs", source="adbench")


class AE(TrainedNetwork):
    """A plain autoencoder: healthy anatomy passes a dense bottleneck, lesions do not; the map is what is lost.

    Input and reconstruction are compared on the network's grid, inside the brain; the residual is smoothed there and brought
    back to the grid of the slice. A spatial latent would copy the lesion, so the latent is a vector.
    """

    name = "ae"
    stage = "autoencoder"
    Params = AEParams
    params: AEParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "channels": (16, 32, 64, 64, 64),
            "steps": 400,
            "batch": 16,
            "lr": 1e-3,
            "warmup": 20,
            "schedule": "cosine",
            "sigma": 4.0,
            "standardise": True,
        },
        "base": {"schedule": "cosine", "standardise": True, "sigma": 4.0},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "channels": (8, 16, 16), "steps": 6}

    def build(self) -> nn.Module:
        from adbench.methods.common.networks import autoencoder

        return autoencoder(self.params.image_size, self.params.channels, self.params.latent)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        from adbench.methods.common.image_ops import augment

        image, brain = slices.get(indices)
        return {"image": augment(image, brain, generator)[0] if training and self.params.augment else image}

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean absolute error of the reconstruction."""
        error: torch.Tensor = network(batch["image"]) - batch["image"]
        return error.abs().mean()

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import signed_map
        from adbench.methods.common.preprocess import preprocess

        with torch.inference_mode():
            seen = preprocess(batch, self.params.image_size, self.params.standardise)
            recon = self.apply(seen.image).clamp(0, 1)
            maps = signed_map((seen.image - recon) * seen.brain, self.params.sign, self.params.sigma)
            return seen.to_slice_grid(maps), seen.restore(recon)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 3e-5, "high": 3e-3, "log": True},
            "latent": {"choices": [32, 64, 128, 256]},
            "sigma": {"low": 0.0, "high": 6.0},
        }
