"""Variational autoencoder with a dense latent (Baur et al. 2021, Med. Image Anal. 69, 101952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import SIGN, BottleneckParams, Sign
from adbench.methods.trained_network import TrainedNetwork
from adbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch


class VAEParams(BottleneckParams):
    """Parameters of :class:`VAE`."""

    kl_weight: float = param(
        1e-3,
        "Weight of the divergence (mean over the latent) beside the reconstruction error (mean over the pixels).",
        source="Baur 2021",
        ge=0,
        le=10,
    )
    scoring: Literal["reconstruction", "restoration"] = param(
        "reconstruction",
        "Compare with the decoded mean, or with the decoded latent that gradient descent on the latent's ELBO reaches.",
        source="Baur 2021, Chen 2020",
        scores=True,
    )
    restoration_steps: int = param(
        50, "Gradient steps of the restoration.", unit="steps", source="adbench", ge=1, le=10_000, scores=True
    )
    restoration_lr: float = param(
        0.1, "Step size (Adam) of the restoration.", source="adbench", gt=0, le=10, scores=True
    )
    prior_weight: float = param(
        1e-3,
        "Weight of the mean of z²/2 beside the L1 error in the restoration; larger stays nearer the healthy mean.",
        source="adbench (kl_weight)",
        ge=0,
        le=10,
        scores=True,
    )
    residual: Literal["abs", "ssim"] = param(
        "abs",
        "Map: absolute difference, or (1 - SSIM)/2 with an 11 px window of sigma 1.5 px.",
        source="Baur 2021",
        scores=True,
    )
    sign: Sign = SIGN(
        "abs",
        doc="Which differences count: both, only brighter, or only darker. Not with residual = ssim.",
        source="adbench",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.sign != "abs" and self.residual == "ssim":
            raise ValueError(f"sign = {self.sign} is of differences, and ssim has no sign: set residual = abs")
        return self


def divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over the latent and the batch."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class VAE(TrainedNetwork):
    """An autoencoder whose latent is drawn towards a unit normal; lesions have no place in it, the map is the residual.

    Reconstruction compares the slice with the decoded mean of its posterior. Restoration looks for the most probable healthy
    slice nearby instead: it descends on the latent from that mean.
    """

    name = "vae"
    stage = "vae"
    Params = VAEParams
    params: VAEParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "image_size": 96,
            "channels": (16, 32, 64, 64, 64),
            "steps": 400,
            "batch": 16,
            "lr": 2e-3,
            "warmup": 20,
            "schedule": "cosine",
            "standardise": True,
            "sigma": 5.0,
        },
        "base": {"schedule": "cosine", "standardise": True, "sigma": 5.0},
        "paper": {},
    }
    smoke: ClassVar[dict[str, Any]] = {"image_size": 32, "channels": (8, 16), "latent": 8, "steps": 6, "batch": 4}

    def build(self) -> nn.Module:
        from adbench.methods.common.networks import VariationalAutoencoder

        return VariationalAutoencoder(self.params.image_size, self.params.channels, self.params.latent)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        import torch

        from adbench.methods.common.image_ops import augment

        image, brain = slices.get(indices)
        shape = (len(image), self.params.latent)
        if not training:  # the mean of the posterior
            return {"image": image, "draw": torch.zeros(shape, device=image.device)}
        if self.params.augment:
            image, brain = augment(image, brain, generator)
        return {"image": image, "draw": torch.randn(shape, generator=generator).to(image.device)}

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean absolute error of the reconstruction and ``kl_weight`` times the divergence of the posterior."""
        recon, mean, logvar = network(batch["image"], batch["draw"])
        error: torch.Tensor = recon - batch["image"]
        return error.abs().mean() + self.params.kl_weight * divergence(mean.float(), logvar.float())

    def _restored(self, image: torch.Tensor) -> torch.Tensor:
        """The decoded latents that descend on ``mean|x - D(z)| + v mean(z²)/2``, each slice for itself.

        The network computes in the run's precision; latents, energies and the steps of Adam are float32.
        """
        import torch

        from adbench.methods.common.preprocess import autocast

        p = self.params
        network: Any = self._network
        with torch.inference_mode(False), torch.enable_grad():
            target = image.clone()  # made in inference mode, it could not take part in a gradient

            def decoded(latent: torch.Tensor) -> torch.Tensor:
                with autocast(target.device):
                    image: torch.Tensor = network.decoder(latent)
                return image.float()

            with autocast(target.device):
                start = network(target)[1]
            latent = start.detach().float().requires_grad_()
            optimizer = torch.optim.Adam([latent], lr=p.restoration_lr)
            for _ in range(p.restoration_steps):
                error = (decoded(latent) - target).abs().mean(dim=(1, 2, 3))
                energy = error + p.prior_weight * 0.5 * latent.square().mean(dim=1)
                (latent.grad,) = torch.autograd.grad(energy.sum(), latent)
                optimizer.step()
            return decoded(latent).detach()

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common import perceptual
        from adbench.methods.common.image_ops import gaussian_blur, one_sided
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            recon = self._restored(seen.image) if p.scoring == "restoration" else self.apply(seen.image)
            recon = recon * seen.brain
            if p.residual == "abs":
                residual = one_sided(seen.image - recon, p.sign)
            else:
                residual = perceptual.ssim(recon, seen.image)
            maps = seen.to_slice_grid(residual * seen.brain) * batch.brain
            return gaussian_blur(maps, p.sigma), seen.restore(recon)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            "lr": {"low": 3e-5, "high": 3e-3, "log": True},
            "latent": {"choices": [32, 64, 128, 256]},
            "kl_weight": {"low": 1e-5, "high": 1e-1, "log": True},
            "sigma": {"low": 0.0, "high": 6.0},
        }
