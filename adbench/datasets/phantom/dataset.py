"""The phantom dataset: subjects generated from a seed, their splits, and the axial slices that are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Split, Stack
from adbench.datasets.geometry import Geometry, matrix
from adbench.datasets.phantom import anatomy as anatomies
from adbench.datasets.phantom import contrast, lesions
from adbench.datasets.phantom.anatomy import Anatomy
from adbench.datasets.phantom.lesions import KINDS, Kind, Pathology
from adbench.datasets.phantom.template import PhantomGrid
from adbench.datasets.preprocessing import resize
from adbench.datasets.preprocessing.template import template_digest
from adbench.errors import unknown
from adbench.params import ParamSet, param
from adbench.utils.seeds import derive

MOST = 100_000  # subjects of a split
LOWEST, HIGHEST = -2.0, 56.0  # mm above the anterior commissure: basal ganglia to high convexity


@dataclass(frozen=True)
class PhantomSubject:
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

    def draw(self, frame: PhantomGrid) -> tuple[Anatomy, Pathology]:
        """Anatomy and pathology on ``frame``: a plane of a volume is the same alone as within the whole."""
        draws = self._rng("lesion")
        tumour = lesions.plan_tumour(draws) if self.kind == "tumour" else None
        anatomy = anatomies.build_anatomy(self._rng("anatomy"), frame, tumour.mass if tumour else None)
        pathology = lesions.draw_ageing(self._rng("ageing"), anatomy)
        if tumour is not None:
            pathology = pathology.joined(lesions.grow_tumour(draws, anatomy, tumour))
        elif self.kind is not None:
            pathology = pathology.joined(lesions.DRAW[self.kind](draws, anatomy))
        return anatomy, pathology

    def scan(self, modality: str, frame: PhantomGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scan in one modality ("FLAIR", "T1", "T2") on ``frame``, as the recipe leaves it.

        Returns:
            (X, Y, Z) RAS each: the image in [0, 1], float32 and 0 outside the brain; brain and lesion, bool.
        """
        anatomy, pathology = self.draw(frame)
        rng = self._rng("scan", modality)
        signal = anatomy.volume(contrast.tissue_signal(rng, anatomy, pathology, modality))
        sigma = rng.uniform(*contrast.CONTRASTS[modality].noise)
        noisy = [
            contrast.add_noise(signal[:, :, i], sigma, self._rng("noise", modality, plane))
            for i, plane in enumerate(frame.numbers)
        ]
        image = contrast.normalise(np.stack(noisy, axis=2), anatomy.brain)
        return image, anatomy.brain, anatomy.volume(pathology.mask)


class PhantomParams(ParamSet):
    """How many synthetic subjects, how large, how ill."""

    n_train: int = param(24, "healthy training subjects", unit="subjects", source="adbench", ge=1, le=MOST)
    n_val: int = param(
        12, "validation subjects, half of them healthy", unit="subjects", source="adbench", ge=2, le=MOST
    )
    n_test: int = param(20, "test subjects, a fifth of them healthy", unit="subjects", source="adbench", ge=1, le=MOST)
    slices: int = param(10, "axial slices per subject, evenly spaced", unit="slices", source="adbench", ge=1, le=60)
    resolution: float = param(1.7, "voxel size, isotropic", unit="mm", source="adbench", ge=0.5, le=4.0)
    kinds: tuple[Kind, ...] = param(
        KINDS, "lesion kinds, taken in turn: stroke, tumour, ms", source="adbench", min_length=1
    )
    seed: int = param(0, "seed of every subject", source="adbench", ge=0)


class Phantom(Dataset):
    """Deformed MNI152 anatomy with synthetic lesions; needs no download.

    Each subject is the ICBM 2009a symmetric template (Fonov et al. 2011, as it ships with nilearn) under a random
    invertible deformation, with contrast, bias field and noise of its own, and in part with strokes, a tumour with mass
    effect, or multiple sclerosis. Healthy subjects of every split have unlabelled age-related changes. Left is at low x.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="phantom",
        version="2",
        modalities=("FLAIR", "T1", "T2"),
        licence="generated; the template is the ICBM 2009a one, free to use and redistribute with its copyright notice",
        obtain="nothing to obtain: it is generated",
        layout="none",
        protocol="phantom",
        needs_root=False,
    )
    Params: ClassVar[type[ParamSet]] = PhantomParams
    params: PhantomParams

    def discover(self, modality: str) -> list[Case]:
        """Every subject; healthy ones first within a split. The kind of lesion is a flag."""
        if modality not in self.info.modalities:
            raise unknown("modality of phantom", modality, self.info.modalities)
        cases = []
        for split, healthy, ill in self._counts():
            for index in range(healthy + ill):
                kind = "" if index < healthy else self.params.kinds[(index - healthy) % len(self.params.kinds)]
                flags = (kind,) if kind else ()
                cases.append(Case(subject=f"phantom-{split}-{index:03d}", split=split, flags=flags))
        return cases

    def _counts(self) -> list[tuple[Split, int, int]]:
        p = self.params
        ill_val, well_test = p.n_val // 2, p.n_test // 5
        return [("train", p.n_train, 0), ("val", p.n_val - ill_val, ill_val), ("test", well_test, p.n_test - well_test)]

    def subject(self, case: Case) -> PhantomSubject:
        """The generator behind ``case``, for whole volumes."""
        return PhantomSubject(self.params.seed, case.subject, case.flags[0] if case.flags else None)  # type: ignore[arg-type]

    def planes(self) -> tuple[int, ...]:
        """Axial voxel indices of the slices: one distance between all neighbours, centred on the supratentorial brain.

        Fewer than asked for when the resolution has fewer planes between :data:`LOWEST` and :data:`HIGHEST`.
        """
        z = PhantomGrid(self.params.resolution).axes[2]
        inside = np.flatnonzero((z > LOWEST) & (z < HIGHEST))
        count = min(self.params.slices, len(inside))
        step = max(1, len(inside) // (count + 1))
        first = inside[0] + (len(inside) - 1 - step * (count - 1)) // 2
        return tuple(int(first + step * index) for index in range(count))

    def load(self, case: Case, modality: str) -> Stack:
        """Generate one subject: (S, H, W) with anterior at the top, padded to a square."""
        planes = self.planes()
        frame = PhantomGrid(self.params.resolution)
        volumes = self.subject(case).scan(modality, replace(frame, planes=planes))
        side = resize.square_side([volumes[0].shape[:2]], resize.MULTIPLE)
        image, brain, lesion = (
            resize.pad_square(np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1]), side) for volume in volumes
        )
        return Stack(image, brain, lesion, planes, geometry=_geometry(frame, side, planes))

    def recipe(self) -> dict[str, Any]:
        """The parameters, the template the anatomy comes from, and a number that changes with what else a store holds."""
        return {**super().recipe(), "template": template_digest(), "made": 2}


def _geometry(frame: PhantomGrid, side: int, planes: tuple[int, ...]) -> Geometry:
    """Where square slices of ``side`` px lie in the whole volume, which is on ``frame``."""
    affine = np.diag([frame.resolution] * 3 + [1.0])
    affine[:3, 3] = [low for low, _ in frame.bounds]
    columns, rows, _ = frame.shape
    return Geometry(
        original_shape=frame.shape,
        original_affine=matrix(affine),
        registered_shape=frame.shape,
        registered_affine=matrix(affine),
        to_original_world=matrix(np.eye(4)),
        registration="none",
        corner=(-((side - columns) // 2), -((side - rows) // 2)),
        side=(side, side),
        size=side,
        step=planes[1] - planes[0] if len(planes) > 1 else 1,
    )
