"""One synthetic subject, from its seed to a volume of one modality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adbench.datasets.phantom import anatomy as anatomies
from adbench.datasets.phantom import contrast, lesions
from adbench.datasets.phantom.anatomy import Anatomy
from adbench.datasets.phantom.lesions import Kind, Pathology
from adbench.datasets.phantom.template import Frame
from adbench.utils.seeds import derive


@dataclass(frozen=True)
class Volume:
    """A scan as the recipe leaves it.

    Attributes:
        image: (X, Y, Z) float32 in [0, 1], RAS, 0 outside the brain.
        brain: (X, Y, Z) bool.
        lesion: (X, Y, Z) bool, within the brain.
        frame: the grid (its affine gives mm).
    """

    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    frame: Frame


@dataclass(frozen=True)
class Subject:
    """Everything about a subject follows from these; anatomy and lesion do not depend on the modality.

    Attributes:
        seed: of the dataset.
        name: of the subject ("phantom-test-003").
        kind: of lesion, or None.
    """

    seed: int
    name: str
    kind: Kind | None

    def _rng(self, *names: object) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, "phantom", self.name, *names))

    def draw(self, frame: Frame) -> tuple[Anatomy, Pathology]:
        """Anatomy and pathology on ``frame``: a plane of a volume is the same alone as within the whole."""
        draws = self._rng("lesion")
        tumour, mass = lesions.plan_tumour(draws) if self.kind == "tumour" else (None, None)
        anatomy = anatomies.build(self._rng("anatomy"), frame, mass)
        pathology = lesions.ageing(self._rng("ageing"), anatomy)
        if tumour is not None:
            pathology = pathology.joined(lesions.grow_tumour(draws, anatomy, tumour))
        elif self.kind is not None:
            pathology = pathology.joined(lesions.DRAW[self.kind](draws, anatomy))
        return anatomy, pathology

    def scan(self, modality: str, frame: Frame) -> Volume:
        """The scan in one modality ("FLAIR", "T1", "T2") on ``frame``."""
        anatomy, pathology = self.draw(frame)
        rng = self._rng("scan", modality)
        signal = anatomy.volume(contrast.tissue_signal(rng, anatomy, pathology, modality))
        sigma = rng.uniform(*contrast.CONTRASTS[modality].noise)
        noisy = [
            contrast.add_noise(signal[:, :, i], sigma, self._rng("noise", modality, plane))
            for i, plane in enumerate(frame.numbers)
        ]
        return Volume(
            image=contrast.normalise(np.stack(noisy, axis=2), anatomy.brain),
            brain=anatomy.brain,
            lesion=anatomy.volume(pathology.mask),
            frame=frame,
        )
