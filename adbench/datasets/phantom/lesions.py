"""Lesions (strokes, tumours, multiple sclerosis) and harmless bright spots that resemble them.

Every lesion is drawn in template coordinates as a soft occupancy in [0, 1]; its mask is occupancy > 1/2, exact by
construction. Two maps say what it does to the tissue, the same for every modality: ``water`` (oedema, gliosis,
demyelination: long T2) and ``fluid`` (cavities and necrosis: like CSF).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adbench.datasets.phantom.anatomy import Anatomy, MassEffect
from adbench.datasets.phantom.fields import power
from adbench.datasets.phantom.template import template

Kind = Literal["stroke", "tumour", "ms"]
KINDS: tuple[Kind, ...] = ("stroke", "tumour", "ms")
SOFT = 1.0  # mm over which an edge fades
REACH = (0.0, 52.0)  # mm above the anterior commissure where large lesions have their centres


@dataclass(frozen=True)
class Pathology:
    """Deviations from healthy tissue at the P voxels of a brain.

    Attributes:
        water: (P,) float32 in [0, 1], share of the voxel with long T2.
        fluid: (P,) float32 in [0, 1], share of the voxel that is like CSF.
        mask: (P,) bool, the lesion; what merely looks like one is not in it.
        enhancing: (P,) float32 in [0, 1], share of the voxel that takes up contrast agent; None: nowhere.
        necrotic: (P,) bool, dead parts of a tumour's core; None: nowhere.
    """

    water: np.ndarray
    fluid: np.ndarray
    mask: np.ndarray
    enhancing: np.ndarray | None = None
    necrotic: np.ndarray | None = None

    def joined(self, other: Pathology) -> Pathology:
        """Both together: shares combine as independent events, masks as a union. At most one of them is a tumour."""
        return Pathology(
            1 - (1 - self.water) * (1 - other.water),
            1 - (1 - self.fluid) * (1 - other.fluid),
            self.mask | other.mask,
            other.enhancing if self.enhancing is None else self.enhancing,
            other.necrotic if self.necrotic is None else self.necrotic,
        )


@dataclass(frozen=True)
class Tumour:
    """Position and size of a tumour, needed before the anatomy is built because it displaces tissue.

    Attributes:
        centre: template coordinates, mm.
        core, oedema: mean radii, mm.
        mass: the displacement by the core.
    """

    centre: tuple[float, float, float]
    core: float
    oedema: float
    mass: MassEffect


def _edge(inside: np.ndarray, softness: float = SOFT) -> np.ndarray:
    """Occupancy of a region given by a signed distance in mm, positive inside."""
    return (1 / (1 + np.exp(np.clip(-inside / (0.4 * softness), -30, 30)))).astype(np.float32)


def _place(rng: np.random.Generator, where: np.ndarray) -> np.ndarray:
    """A random point (3,) of the template's 4 mm lattice where ``where`` holds, mm."""
    candidates = template().lattice[where]
    return np.asarray(candidates[rng.integers(len(candidates))] + rng.uniform(-2, 2, 3))


def _distances(anatomy: Anatomy, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offset = anatomy.points - np.asarray(centre, np.float32)[:, None]
    return offset, np.sqrt((offset**2).sum(axis=0))


def plan_tumour(rng: np.random.Generator) -> Tumour:
    """Draw a tumour in deep or subcortical white matter and the displacement that goes with it."""
    maps = template()
    z = maps.lattice[..., 2]
    deep = (
        (maps.at("wm") > 150)
        & (maps.depth > 14)
        & (np.abs(maps.lattice[..., 0]) > 14)
        & (z > REACH[0])
        & (z < REACH[1])
    )
    centre = _place(rng, deep)
    core = rng.uniform(10, 20)
    oedema = core + rng.uniform(5, 15)
    place = (float(centre[0]), float(centre[1]), float(centre[2]))
    return Tumour(place, core, oedema, MassEffect(place, 1.8 * core, rng.uniform(0.4, 0.7)))


def grow_tumour(rng: np.random.Generator, anatomy: Anatomy, tumour: Tumour) -> Pathology:
    """Core, sometimes necrotic, in an oedema that follows the white matter and spares the cortex."""
    _, r = _distances(anatomy, np.asarray(tumour.centre))
    coarse, fine = anatomy.field(rng, 16.0), anatomy.field(rng, 7.0)
    core = _edge(tumour.core + 0.14 * tumour.core * coarse + 0.8 * fine - r)
    spread = tumour.oedema * (0.72 + 0.4 * anatomy.wm - 0.35 * anatomy.gm) + 3.0 * coarse + 1.0 * fine - r
    spread -= 2.5 * np.clip(-np.sign(tumour.centre[0]) * anatomy.points[0], 0, None)  # the falx holds it back
    oedema = np.maximum(_edge(spread, 1.6) * (1 - anatomy.csf), core)
    necrosis = _edge(tumour.core * rng.uniform(0.0, 0.75) + 1.5 * fine - r, 2.0) * (rng.random() < 0.6)
    strength, core_strength = rng.uniform(0.3, 0.65), rng.uniform(0.35, 0.75)
    texture = (1 + 0.18 * fine).clip(0.4, 1.5)
    water = (oedema * (1 - core) * strength + core * core_strength * texture).clip(0, 1)
    fluid = core * necrosis * rng.uniform(0.5, 0.9)
    return Pathology(water, fluid, oedema > 0.5, core * (1 - necrosis), (core > 0.5) & (necrosis > 0.5))


def _wedge(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """Occupancy of a territorial infarct: a wedge from the deep arteries to the cortex."""
    maps = template()
    x, _, z = np.moveaxis(maps.lattice, -1, 0)
    surface = (maps.at("brain") > 200) & (maps.depth < 9) & (np.abs(x) > 22) & (z > REACH[0]) & (z < REACH[1])
    cortex = _place(rng, surface)
    apex = np.array(
        [np.sign(cortex[0]) * rng.uniform(14, 28), 0.45 * cortex[1] + rng.normal(0, 6), 0.6 * cortex[2] + 6]
    )
    axis = cortex - apex
    axis /= np.linalg.norm(axis)
    offset, r = _distances(anatomy, apex)
    along = (offset * axis.astype(np.float32)[:, None]).sum(axis=0)
    across = np.sqrt(np.clip(r**2 - along**2, 0, None))
    opening = np.float64(math.tan(math.radians(rng.uniform(26, 50))))
    start = rng.uniform(0, 12)
    wobble = 3.2 * anatomy.field(rng, 16.0) + 1.6 * anatomy.field(rng, 7.0)
    side = (along * opening + 2 - across) / np.sqrt(1 + opening**2)
    return _edge(np.minimum(side, along - start) + wobble)


def _patch(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """Occupancy of a small infarct: cortical, or in the basal ganglia and white matter."""
    maps = template()
    x, _, z = np.moveaxis(maps.lattice, -1, 0)
    inside = (maps.at("brain") > 200) & (np.abs(x) > 8) & (z > REACH[0]) & (z < REACH[1])
    cortical = rng.random() < 0.5
    shallow = (maps.depth < 12) if cortical else (maps.depth > 16)
    solid = maps.at("gm").astype(np.int32) + maps.at("wm") > 225
    _, r = _distances(anatomy, _place(rng, inside & shallow & solid))
    radius = rng.uniform(8, 15) if cortical else rng.uniform(6, 10)
    return _edge(radius + 2.6 * anatomy.field(rng, 9.0) - r)


def draw_stroke(rng: np.random.Generator, anatomy: Anatomy) -> Pathology:
    """One large or one to three small infarcts, at any age: the older, the more of it is a cavity with a bright rim."""
    if rng.random() < 0.75:
        occupancy = _wedge(rng, anatomy)
    else:
        occupancy = np.max([_patch(rng, anatomy) for _ in range(rng.integers(1, 4))], axis=0)
    occupancy = occupancy * _edge((0.5 - anatomy.csf) * 6)  # fluid around the brain stays fluid
    texture = anatomy.field(rng, 8.0)
    old = rng.random() < 0.35
    strength = rng.uniform(0.3, 0.75)
    water = occupancy * (strength * (1 + 0.22 * texture)).clip(0, 1)
    cavity = _edge(2.5 * texture - rng.uniform(0.0, 2.0), 2.0) * power(occupancy, 3) if old else np.zeros_like(water)
    return Pathology(water, cavity * rng.uniform(0.4, 0.85) if old else cavity, occupancy > 0.5)


def _spot(anatomy: Anatomy, centre: np.ndarray, radii: np.ndarray, wobble: np.ndarray, softness: float) -> np.ndarray:
    """Occupancy of an ellipsoid with its long axis pointing away from the ventricles, irregular by ``wobble`` (mm)."""
    offset, r = _distances(anatomy, centre)
    result = np.zeros(len(r), np.float32)
    near = r < radii.max() + 6
    away = np.array([np.sign(centre[0]), 0.25 * np.sign(centre[1] + 18), 0.4])
    away /= np.linalg.norm(away)
    along = (offset[:, near] * away.astype(np.float32)[:, None]).sum(axis=0)
    across = np.sqrt(np.clip(r[near] ** 2 - along**2, 0, None))
    size = np.sqrt((along / radii[0]) ** 2 + (across / radii[1]) ** 2)
    result[near] = _edge(radii.min() * (1 - size) + wobble[near], softness)
    return result


def draw_multiple_sclerosis(rng: np.random.Generator, anatomy: Anatomy) -> Pathology:
    """Many small plaques in the white matter, most at the ventricles, some black holes on T1."""
    maps = template()
    z = maps.lattice[..., 2]
    white = (maps.at("wm") > 140) & (maps.depth > 8) & (z > -4) & (z < 56)
    at_ventricles = white & (maps.at("ventricle") < 4 * 9)
    wobble = 0.7 * anatomy.field(rng, 6.0)
    load = rng.uniform(0.75, 1.25)
    water, fluid = np.zeros(anatomy.points.shape[1], np.float32), np.zeros(anatomy.points.shape[1], np.float32)
    occupancy = water.copy()
    for _ in range(rng.integers(14, 46)):
        centre = _place(rng, at_ventricles if rng.random() < 0.65 else white)
        radius = 1.6 + rng.gamma(2.0, 0.85)
        spot = _spot(anatomy, centre, np.array([radius * rng.uniform(1.0, 1.7), radius]), wobble, SOFT)
        spot *= _edge((0.45 - anatomy.csf) * 6)
        water = np.maximum(water, spot * np.clip(load * rng.uniform(0.3, 0.75), 0, 1))
        if rng.random() < 0.2:
            fluid = np.maximum(fluid, spot * rng.uniform(0.1, 0.4))
        occupancy = np.maximum(occupancy, spot)
    return Pathology(water, fluid, occupancy > 0.5)


def draw_ageing(rng: np.random.Generator, anatomy: Anatomy) -> Pathology:
    """Age-related changes of healthy people: caps and bands at the ventricles, spots, wide perivascular spaces. No mask."""
    maps = template()
    count = anatomy.points.shape[1]
    severity = np.clip(rng.lognormal(-0.55, 0.6), 0.15, 1.6)
    horns = (0.55 + np.abs(anatomy.points[1] + 12) / 45).clip(
        0, 1.25
    )  # caps are thickest at the ends of the ventricles
    reach = (1.8 + 2.6 * severity) * horns  # mm
    cap = np.exp(-anatomy.ventricle / reach) + 0.2 * anatomy.field(rng, 9.0) * (anatomy.ventricle < 16)
    solid = 1 - anatomy.csf
    water = _edge((cap - 0.5) * 5) * solid * np.float32(min(0.25 + 0.3 * severity, 0.7))
    lining = np.float32(rng.uniform(0.5, 0.75)) * np.exp(-((anatomy.ventricle / np.float32(2.2)) ** 2)) * solid
    water = np.maximum(water, lining)
    white = (maps.at("wm") > 200) & (maps.depth > 10)
    wobble = 0.5 * anatomy.field(rng, 6.0)
    for _ in range(rng.poisson(5 * severity)):
        radius = rng.uniform(0.9, 2.2)
        spot = _spot(anatomy, _place(rng, white), np.array([radius * rng.uniform(1, 2), radius]), wobble, SOFT)
        water = np.maximum(water, spot * np.float32(rng.uniform(0.15, 0.45)))
    return Pathology(water.astype(np.float32), np.zeros(count, np.float32), np.zeros(count, bool))


DRAW: dict[Kind, Callable[[np.random.Generator, Anatomy], Pathology]] = {
    "stroke": draw_stroke,
    "ms": draw_multiple_sclerosis,
}
