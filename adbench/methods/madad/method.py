"""MAD-AD: masked latent diffusion that finds and repairs its own anomalies (Beizaee et al., IPMI 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adbench.errors import UserError
from adbench.methods.base import FitReport, Method, Resources
from adbench.methods.madad.params import PRESETS, MADADParams
from adbench.params import ParamSet
from adbench.utils.compute import to_device

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.madad.autoencoder import Healthy
    from adbench.methods.madad.networks import LatentCodec, TwoHeadUNet


def anomaly_map(
    repaired: torch.Tensor, reference: torch.Tensor, difference: str, gamma: float, sigma: float, sign: str = "abs"
) -> torch.Tensor:
    """``G_σ * min(d, γ)/γ`` in [0, 1], for images (B, 1, H, W) in [-1, 1].

    Args:
        repaired: the repaired image.
        reference: what it is compared with.
        difference: d is the "absolute" or "squared" difference.
        gamma: where d is cut off.
        sigma: Gaussian smoothing in px.
        sign: which differences count, as in :func:`adbench.methods.common.image_ops.one_sided`.
    """
    from adbench.methods.common.image_ops import gaussian_blur, one_sided

    d = one_sided(reference - repaired, sign)
    if difference == "squared":
        d = d**2
    return gaussian_blur(d.clamp(max=gamma) / gamma, sigma)


class MADAD(Method):
    """Masked latent diffusion that finds and repairs its own anomalies.

    Healthy slices are encoded by a frozen KL autoencoder. Random rectangles of latent cells are noised, and one UNet learns to
    say which they are and what was there. At test the latent of the slice is taken for a partly noised one: step by step the
    cells that the network flags are replaced, the others stay, and the map is the difference of the decoded images.
    """

    name = "madad"
    Params = MADADParams
    params: MADADParams
    presets = PRESETS
    smoke: ClassVar[dict[str, Any]] = {"image_size": 64, "ae_channels": (16, 16), "ae_steps": 4, "steps": 4, "batch": 4}
    _codec: LatentCodec
    _unet: TwoHeadUNet
    _scale: float
    _healthy: Healthy | None

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        from adbench.methods.madad.fitting import fit

        def ready(codec: LatentCodec, unet: TwoHeadUNet, scale: float, healthy: Healthy | None) -> None:
            self._codec, self._unet, self._scale, self._healthy = codec, unet, scale, healthy

        return fit(self.params, train, val, self.ctx, ready)

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode; repair in latent space, decode and compare, or ask for the mask once; only a repair gives a reconstruction."""
        import torch

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import preprocess
        from adbench.methods.madad.diffusion import STEPS
        from adbench.methods.madad.networks import cells_to_pixels

        p, device = self.params, batch.image.device
        maps: list[torch.Tensor] = []
        repaired = None
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            image = seen.image * 2 - 1
            mean, _ = self.infer(self._codec, image, call="encode")
            if p.score != "repair":
                time = torch.full((len(mean),), STEPS, device=device)
                probability = self._heads(mean * self._scale, time)[1]
                maps.append(gaussian_blur(cells_to_pixels(probability, p.image_size), p.sigma))
            if p.score != "probability":
                repaired, reference = self._repaired(batch, image, mean)
                maps.append(anomaly_map(repaired, reference, p.difference, p.gamma, p.sigma, p.sign))
                repaired = seen.restore((repaired * 0.5 + 0.5).clamp(0, 1))
            return seen.to_slice_grid(torch.stack(maps).mean(dim=0)), repaired

    def _heads(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latent and mask probability, float32."""
        clean, logit = self.infer(self._unet, z, t)
        return clean, logit.sigmoid()

    def _repaired(
        self, batch: SliceBatch, image: torch.Tensor, mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The repaired images (B, 1, S, S) in [-1, 1] and what they are compared with; ``mean`` is the latent of ``image``.

        Compared with the decoded slice, a slice of which no cell was flagged has an empty map, and only the others are decoded
        again. Compared with the input none is left out: the map of such a slice is the error of the autoencoder.
        """
        import torch

        from adbench.methods.madad.diffusion import alphas_cumprod, masked_ddim
        from adbench.methods.training import generator

        p, codec = self.params, self._codec
        alphas = alphas_cumprod()
        noise = None
        if p.eta > 0:  # each slice has a stream of its own, so the draw does not depend on the batch
            shape = (len(alphas) - 2, *mean.shape[1:])
            slices = zip(batch.subjects, batch.slices, strict=True)
            draws = [torch.randn(shape, generator=generator(self.ctx.seed, "score", *each)) for each in slices]
            noise = to_device(torch.stack(draws), self.ctx.device)
        latent, _ = masked_ddim(
            self._heads,
            mean * self._scale,
            alphas,
            eta=p.eta,
            noise=noise,
            threshold=p.threshold,
            restore=p.unflagged == "restore",
        )
        latent = torch.where(latent == mean * self._scale, mean, latent / self._scale)  # unmoved to the last bit
        if p.compare_with != "decoded":
            return self.infer(codec, latent, call="decode")[0], image
        moved = (latent != mean).flatten(1).any(dim=1)  # the others are decoded once: their map is 0
        (decoded,) = self.infer(codec, torch.cat([mean, latent[moved]]), call="decode")
        reference = decoded[: len(mean)]
        repaired = reference.clone()
        repaired[moved] = decoded[len(mean) :]
        return repaired, reference

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return self.score_and_reconstruct(batch)[1]

    def state(self) -> dict[str, torch.Tensor]:
        return {
            **{f"autoencoder.{key}": value for key, value in self._codec.vae.state_dict().items()},
            **{f"unet.{key}": value for key, value in self._unet.state_dict().items()},
        }

    def notes(self) -> dict[str, Any]:
        return {
            **self._codec.to_notes(),
            "scale": self._scale,
            "noise": self.params.noise,
            "healthy": self._healthy.to_notes() if self._healthy else None,
        }

    def load_notes(self, notes: dict[str, Any]) -> None:
        from adbench.methods.madad.autoencoder import Healthy
        from adbench.methods.madad.networks import LatentCodec

        learned = notes.get("noise", "white")  # fits from before there was another
        if learned != self.params.noise:
            raise UserError(
                f"This fit of madad learned noise = {learned}, and its parameters say {self.params.noise}: fit it again."
            )
        self._codec = LatentCodec.from_notes(notes)
        self._scale = float(notes["scale"])
        self._healthy = Healthy.from_notes(notes["healthy"]) if notes.get("healthy") else None

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import frozen
        from adbench.methods.madad.networks import new_unet

        unet = new_unet(self.params, self._codec.channels)
        for prefix, module in (("autoencoder.", self._codec.vae), ("unet.", unet)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            frozen(module, self.ctx.device)
        self._unet = unet

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        return params.ae_steps + params.steps if isinstance(params, MADADParams) and params.counted else None

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        return params.autoencoder_files() if isinstance(params, MADADParams) else []

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
