"""Distance of a slice's latents from the healthy ones, without diffusion: the floor for methods that work on latents."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adbench.methods.base import FitReport, Method, Resources
from adbench.methods.common.params import SIGN, Sign
from adbench.methods.madad.params import AUTOENCODERS, AutoencoderParams
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.madad.autoencoder import Healthy
    from adbench.methods.madad.networks import LatentCodec


class LatentParams(AutoencoderParams):
    """Parameters of :class:`Latent` beside its autoencoder's."""

    distance: Literal["norm", "origin", "component", "mahalanobis"] = param(
        "norm",
        "Length of the difference to the healthy mean; of the latent itself; main component of the difference, in standard deviations; or its Mahalanobis length.",
        source="adbench",
        scores=True,
    )
    sign: Sign = SIGN(
        "abs",
        doc="With distance = component, what counts: both sides, only where brighter tissue lies, or only where darker lies.",
        source="adbench",
    )


class Latent(Method):
    """Distance of each latent cell from the latents of healthy brain, smoothed.

    Trains the autoencoder of MAD-AD and nothing else. A method that repairs or flags such latents has learnt something only
    where it does better than this.
    """

    name = "latent"
    Params = LatentParams
    params: LatentParams
    presets = AUTOENCODERS
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "ae_channels": (16, 16), "ae_steps": 4}
    _codec: LatentCodec
    _scale: float
    _healthy: Healthy

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Train the autoencoder; take mean and covariance of its latents."""
        from adbench.methods import training
        from adbench.methods.madad.autoencoder import Healthy, fit_codec

        data = fit_codec(self.params, train, val, self.ctx, copies=0, share=1.0)
        self._codec, self._scale = data.codec, data.scale
        self._healthy = Healthy.of(data.train, data.scale)
        return training.report(data.stages, [data.codec])

    @cached_property
    def _component(self) -> torch.Tensor:
        """(C,) float64 direction of largest variance, in units of its standard deviation, towards what decodes brighter."""
        import torch

        values, vectors = torch.linalg.eigh(self._healthy.covariance)
        step = vectors[:, -1] * values[-1].sqrt()
        ends = torch.stack([self._healthy.mean + step, self._healthy.mean - step]) / self._scale
        uniform = ends.float().to(self.ctx.device)[:, :, None, None].expand(-1, -1, 8, 8)
        up, down = self._codec.decode(uniform).float().mean(dim=(1, 2, 3)).tolist()
        component: torch.Tensor = vectors[:, -1] / values[-1].sqrt() * (1.0 if up >= down else -1.0)
        return component

    def _apart(self, image: torch.Tensor) -> torch.Tensor:
        """Scaled latents of images (B, 1, S, S) in [0, 1], less the healthy mean: (B, C, h, w) float32."""
        latent = self.infer(self._codec, image * 2 - 1, call="encode")[0] * self._scale
        return latent - self._healthy.mean.to(latent)[:, None, None]

    def score(self, batch: SliceBatch) -> torch.Tensor:
        """The distance in each cell, on the pixels of the slice."""
        import torch

        from adbench.methods.common.image_ops import gaussian_blur, one_sided
        from adbench.methods.common.preprocess import preprocess
        from adbench.methods.madad.networks import cells_to_pixels

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            apart = self._apart(seen.image)
            if p.distance == "norm":
                distance = apart.norm(dim=1, keepdim=True)
            elif p.distance == "origin":
                distance = (apart + self._healthy.mean.to(apart)[:, None, None]).norm(dim=1, keepdim=True)
            elif p.distance == "component":
                main = torch.einsum("c,bchw->bhw", self._component.to(apart), apart)
                distance = one_sided(main[:, None], p.sign)
            else:
                rows = torch.linalg.inv(self._healthy.factor).to(apart)
                distance = torch.einsum("dc,bchw->bdhw", rows, apart).norm(dim=1, keepdim=True)
            return seen.to_slice_grid(gaussian_blur(cells_to_pixels(distance, p.image_size), p.sigma))

    def state(self) -> dict[str, torch.Tensor]:
        return {f"autoencoder.{key}": value for key, value in self._codec.vae.state_dict().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import frozen

        self._codec.vae.load_state_dict({key.removeprefix("autoencoder."): value for key, value in state.items()})
        frozen(self._codec.vae, self.ctx.device)

    def notes(self) -> dict[str, Any]:
        return {**self._codec.to_notes(), "scale": self._scale, "healthy": self._healthy.to_notes()}

    def load_notes(self, notes: dict[str, Any]) -> None:
        from adbench.methods.madad.autoencoder import Healthy
        from adbench.methods.madad.networks import LatentCodec

        self._codec = LatentCodec.from_notes(notes)
        self._scale = float(notes["scale"])
        self._healthy = Healthy.from_notes(notes["healthy"])

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        return params.ae_steps if isinstance(params, LatentParams) and params.counted else None

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        return params.autoencoder_files() if isinstance(params, LatentParams) else []

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=8.0)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "ae_lr": {"low": 1e-5, "high": 2e-3, "log": True},
            "kl_weight": {"low": 1e-6, "high": 1e-2, "log": True},
            "sigma": {"low": 0.0, "high": 8.0},
        }
