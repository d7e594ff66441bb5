"""The MNI152 2009a symmetric template that ships in the nilearn wheel: tissue maps, distances, and the grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from adbench.datasets.io import nifti
from adbench.datasets.preprocessing.template import ORIGIN, SHAPE, template_files

FIELD = ((-98.0, 98.0), (-128.0, 87.5), (-72.0, 116.0))  # mm, what a phantom volume shows: any head fits with a margin


@dataclass(frozen=True)
class PhantomGrid:
    """The grid of a phantom volume: the template's brain with a margin, in RAS, at ``resolution`` mm.

    Attributes:
        resolution: voxel size, mm, isotropic.
        planes: axial voxel indices that are wanted; None for the whole volume.
    """

    resolution: float
    planes: tuple[int, ...] | None = None

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(low, high) in mm along each axis; does not depend on the resolution."""
        return FIELD

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of the voxel centres along x, y, z in mm, float32."""
        x, y, z = (np.arange(low, high + 1e-3, self.resolution, dtype=np.float32) for low, high in self.bounds)
        return x, y, z if self.planes is None else z[list(self.planes)]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Axial voxel index, in the whole volume, of every plane."""
        return self.planes if self.planes is not None else tuple(range(len(self.axes[2])))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.axes
        return len(x), len(y), len(z)


class Template:
    """Maps of the template at 1 mm, ready to be sampled.

    Attributes:
        maps: name -> (197, 233, 189) array. ``gm``, ``wm``, ``brain``: uint8 fraction * 255. ``detail``: uint8, the T1
            intensity that the three tissues do not explain (deep nuclei, myelin), offset 128, in 1/255 of the white
            matter's intensity. ``ventricle``: uint8 distance to the lateral ventricles in 1/4 mm.
    """

    def __init__(self) -> None:
        from scipy import ndimage

        t1, gm, wm = (np.asarray(nifti.read(file).data, np.float32) / 255 for file in template_files().values())
        brain = t1 > 0
        csf = np.where(brain, 1 - gm - wm, 0).clip(0, 1)
        # The T1 template as a mixture of its tissues: what is left over is myelin and iron, the deep nuclei above all.
        tissues = np.stack([gm[brain], wm[brain], csf[brain]], axis=1)[::37]
        means = np.linalg.lstsq(tissues, t1[brain][::37], rcond=None)[0].round(
            4
        )  # LAPACK's last digits vary by threads
        detail = np.where(brain, t1 - gm * means[0] - wm * means[1] - csf * means[2], 0) / means[1]
        depth = _distance(brain)  # mm below the surface of the brain
        ventricles = _lateral_ventricles(csf[::2, ::2, ::2], depth[::2, ::2, ::2])
        self.maps: dict[str, np.ndarray] = {
            "gm": _quantise(gm),
            "wm": _quantise(wm),
            "brain": _quantise(ndimage.gaussian_filter(brain.astype(np.float32), 0.7)),
            "detail": (ndimage.gaussian_filter(detail, 0.5) * 255 + 128).clip(0, 255).round().astype(np.uint8),
            "ventricle": (_upsampled(2.0 * ndimage.distance_transform_edt(~ventricles)) * 4)
            .clip(0, 255)
            .astype(np.uint8),
        }
        # Outward unit-height pull towards the ventricles, for their size; 4 mm lattice, smooth.
        blurred = ndimage.gaussian_filter(ventricles.astype(np.float32), 3.5)[::2, ::2, ::2]
        pull = np.stack(np.gradient(blurred, 4.0))
        self.pull = (pull / np.sqrt((pull**2).sum(0)).max()).astype(np.float32)
        self.depth = depth[::4, ::4, ::4]
        self.lattice = np.stack(
            np.meshgrid(*(np.arange(0, n, 4) + o for n, o in zip(SHAPE, ORIGIN, strict=True)), indexing="ij"), axis=-1
        ).astype(np.float32)

    def at(self, name: str) -> np.ndarray:
        """The map ``name`` on the 4 mm lattice, as stored."""
        return self.maps[name][::4, ::4, ::4]

    def sample(self, name: str, points: np.ndarray) -> np.ndarray:
        """Trilinear value of the map ``name``.

        Args:
            name: one of :attr:`maps`.
            points: (3, P) template coordinates in mm.

        Returns:
            (P,) float32 as stored (0..255); outside the template the nearest edge.
        """
        from scipy import ndimage

        voxels = points - np.asarray(ORIGIN, np.float32)[:, None]
        return np.asarray(ndimage.map_coordinates(self.maps[name], voxels, order=1, output=np.float32, mode="nearest"))


@cache
def template() -> Template:
    """The template, read once per process (about a second)."""
    return Template()


def _quantise(fraction: np.ndarray) -> np.ndarray:
    return (fraction.clip(0, 1) * 255).round().astype(np.uint8)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel of ``mask`` (1 mm) to the nearest voxel outside, computed at 2 mm."""
    from scipy import ndimage

    return _upsampled(ndimage.distance_transform_edt(mask[::2, ::2, ::2], sampling=2.0))


def _upsampled(coarse: np.ndarray) -> np.ndarray:
    """A 2 mm map on the 1 mm grid, by repetition."""
    full = coarse.astype(np.float32).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return full[: SHAPE[0], : SHAPE[1], : SHAPE[2]]


def _lateral_ventricles(csf: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The lateral ventricles on the 2 mm grid: deep fluid, off the midline fissures and the cisterns."""
    from scipy import ndimage

    axes = (np.arange(n) * 2.0 + o for n, o in zip(csf.shape, ORIGIN, strict=True))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inner = (csf > 0.5) & (depth > 22) & (np.abs(x) < 40) & (z > -2) & (z < 32) & ((z > 6) | (y > -20))
    midline = (np.abs(x) < 9) & (y < -22) | (np.abs(x) < 3)
    labels, count = ndimage.label(inner & ~midline)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes > 60))
