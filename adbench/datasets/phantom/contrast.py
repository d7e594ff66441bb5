"""Simulated acquisition: tissue contrast of a modality, coil bias, Rician noise, and intensity normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adbench.datasets.phantom.anatomy import Anatomy
from adbench.datasets.phantom.fields import power
from adbench.datasets.phantom.lesions import Pathology


@dataclass(frozen=True)
class Contrast:
    """How bright things are in one modality, in units of normal white matter on T1; plausible values, not measured ones.

    Attributes:
        gm, wm, csf: mean of the tissue.
        water: of tissue full of water: what a lesion tends to.
        detail: how much myelin and iron (:attr:`Anatomy.detail`) show.
        spread: relative standard deviation of the tissue means between subjects.
        csf_spread: the same for CSF (inversion time, flow).
        noise: (low, high) Rician noise.
        agent: how much tissue that takes up contrast agent gains.
    """

    gm: float
    wm: float
    csf: float
    water: float
    detail: float
    spread: float
    csf_spread: float
    noise: tuple[float, float]
    agent: float = 0.0


CONTRASTS = {
    "FLAIR": Contrast(0.59, 0.52, 0.13, 0.95, -0.5, 0.03, 0.35, (0.012, 0.026)),
    "T1": Contrast(0.66, 0.98, 0.26, 0.46, 1.0, 0.03, 0.12, (0.014, 0.032)),
    "T2": Contrast(0.62, 0.50, 1.15, 1.02, -0.5, 0.03, 0.08, (0.014, 0.032)),
    "T1CE": Contrast(0.68, 0.98, 0.26, 0.46, 1.0, 0.03, 0.12, (0.014, 0.032), agent=0.95),
    "PD": Contrast(0.92, 0.76, 0.88, 1.05, -0.3, 0.03, 0.05, (0.014, 0.032)),
}
REGIONAL = 0.03  # relative variation of a tissue over the brain
BIAS = (0.02, 0.08)  # standard deviation of the coil's log sensitivity
COARSE, COIL = 24.0, 75.0  # mm


def tissue_signal(rng: np.random.Generator, anatomy: Anatomy, pathology: Pathology, modality: str) -> np.ndarray:
    """Noise-free signal of one subject.

    Args:
        rng: source of every draw: the same one for every part of a volume.
        anatomy: the tissues.
        pathology: what differs from them.
        modality: one of :data:`CONTRASTS`.

    Returns:
        (P,) float32, at least 0.
    """
    c = CONTRASTS[modality]
    gm, wm, water = (mean * rng.normal(1, c.spread) for mean in (c.gm, c.wm, c.water))
    csf = c.csf * max(rng.normal(1, c.csf_spread), 0.3)
    regional = 1 + np.float32(REGIONAL) * anatomy.field(rng, COARSE)
    tissue = anatomy.gm * gm * regional + anatomy.wm * wm * (2 - regional) + c.detail * anatomy.detail
    signal = tissue * (1 - pathology.water) + (1 - anatomy.csf) * pathology.water * water + anatomy.csf * csf
    signal = signal * (1 - pathology.fluid) + pathology.fluid * csf
    if c.agent and pathology.enhancing is not None:
        signal = signal + c.agent * pathology.enhancing
    bias = np.exp(np.float32(rng.uniform(*BIAS)) * anatomy.field(rng, COIL))
    return np.asarray(np.clip(signal * bias * power(2 * anatomy.rim - 1, 0.7), 0, None), np.float32)


def add_noise(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of ``signal`` with complex Gaussian noise: Rician (Gudbjartsson & Patz 1995, eq. 1).

    Args:
        signal: any shape, at least 0.
        sigma: standard deviation in each channel, in units of the signal.
        rng: source of the noise.
    """
    real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    return np.asarray(np.sqrt((signal + real) ** 2 + imaginary**2))


def normalise(volume: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The shared recipe: clip to the 0.5-99.5 percentile inside the brain, scale to [0, 1], background 0.

    Args:
        volume: any shape.
        brain: the same shape, bool.
    """
    low, high = np.percentile(volume[brain], (0.5, 99.5))
    scaled = (volume - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, 0, 1) * brain, np.float32)
