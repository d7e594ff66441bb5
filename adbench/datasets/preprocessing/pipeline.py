"""The preprocessing pipeline: every step from one volume to its prepared slices."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adbench.datasets.base import Stack
from adbench.datasets.geometry import Geometry, matrix, resample, to_ras, voxel_ml, zooms
from adbench.datasets.preprocessing import brain_extraction, registration, slicing, template
from adbench.datasets.preprocessing.recipe import EXTRA, RECIPE_VERSION, RawVolume, RecipeParams, lesion_of
from adbench.datasets.preprocessing.resize import lost, resize_image, resize_mask
from adbench.errors import UserError
from adbench.utils.files import replacing
from adbench.utils.hashing import digest

CROPPED = 0.02  # share of a brain that the square may cut off
_VOLUME_CHANGE = 0.2  # share of a lesion by which resampling may change its volume unsaid


def recipe_steps(params: RecipeParams, *, skull: bool, on_template: bool) -> list[dict[str, Any]]:
    """Every step in order, with its parameters and the version of the tool it uses, for the manifest and its hash.

    Args:
        params: of the recipe.
        skull: a tool may have to find the brain.
        on_template: the images lie on the template's grid already.

    Raises:
        UserError: an unknown tool, or one that is not installed.
    """
    tool = tool_of(params, skull)
    brain: dict[str, Any] = {"step": "brain", "rule": params.brain, "without a mask": tool}
    if tool not in brain_extraction.RULES:
        chosen = brain_extraction.tool(tool)
        if not chosen.installed:
            raise UserError(f"Brain extraction with {tool} needs {chosen.package}: {chosen.obtain}.")
        brain["tool"] = chosen.version
    elif tool == "template":
        brain |= {"tool": "MNI152 2009a symmetric", "margin_mm": params.template_margin}
    register = "none" if on_template else params.registration
    if (register != "none" or (tool == "template" and not on_template) or params.n4) and not registration.installed():
        why = "Registration" if register != "none" or tool == "template" else "N4 bias correction"
        raise UserError(f"{why} needs SimpleITK: {EXTRA}.")
    described: list[dict[str, Any]] = [{"step": "orient", "to": "RAS", "interpolation": "none"}, brain]
    if params.n4:
        described.append({"step": "n4", "tool": registration.tool_version(), "shrink": registration.SHRINK})
    if register != "none":
        described.append({"step": "register", "kind": register, "to": "MNI152 2009a symmetric 1 mm", "tool": registration.tool_version(), "metric": "Mattes mutual information", "interpolation": "trilinear (image), nearest (masks)"})  # fmt: skip
    return [
        *described,
        {"step": "intensity", "percentiles": [params.clip_low, params.clip_high], "inside": "brain", "to": [0, 1]},
        {"step": "slices", "plane": "axial", "min_brain": params.min_brain, "every": params.slice_step},
        {"step": "square", "mm": params.square},
        {"step": "resize", "px": params.size, "interpolation": "bilinear with anti-aliasing (image), nearest (masks)"},
        {"step": "version", "of": "recipe", "is": RECIPE_VERSION},
    ]


def tool_of(params: RecipeParams, skull: bool) -> str:
    """The brain extraction of an image that has neither a mask nor a background of 0."""
    if params.brain != "auto":
        return params.brain
    return brain_extraction.automatic() if skull else "background"


def run_recipe(raw: RawVolume, params: RecipeParams, *, on_template: bool = False, cache: Path | None = None) -> Stack:
    """Prepare one volume.

    Args:
        raw: from the adapter.
        params: of the recipe.
        on_template: the image claims to lie on the template's grid: no registration, the template's mask fits.
        cache: folder that keeps brain masks, bias fields and registrations; None keeps nothing.

    Returns:
        The slices with their geometry and quality figures: ``brain_ml`` and ``lesion_ml_source`` (as drawn),
        ``lesion_ml`` (in the prepared slices, in the patient's size), ``lesion_outside_brain_ml``, ``clipped_share``,
        ``intensity_low`` and ``intensity_high``, and on the template's grid ``registration_correlation`` of the
        intensities and ``registration_overlap`` (Dice) of the brains, which also holds for sequences other than T1.

    Raises:
        UserError: masks on another grid, no brain, a constant image, a missing tool; names the case and the file.
    """
    return _VolumePipeline(raw, params, on_template, cache).prepare()


class _VolumePipeline:
    """One volume in RAS order on its way through the steps."""

    def __init__(self, raw: RawVolume, params: RecipeParams, on_template: bool, folder: Path | None) -> None:
        self.raw, self.params, self.folder = raw, params, folder
        if raw.image.ndim != 3:
            raise UserError(f"{raw}: the image has shape {raw.image.shape}, expected three axes.")
        self.image, self.affine = to_ras(raw.image, raw.affine)
        self.given = self._beside(raw.brain, "brain mask")
        lesion = self._beside(raw.lesion, "lesion mask")
        self.lesion = None if lesion is None else lesion_of(lesion, raw.lesion_labels, raw.not_counted)
        self.other = lesion_of(lesion, raw.not_counted) if lesion is not None and raw.not_counted else None
        self.uncovered = None if raw.uncovered is None else to_ras(raw.uncovered, raw.affine)[0]
        self.said = list(raw.remarks)
        self.on_template_grid = template.same_grid(self.image.shape, self.affine)
        if on_template and not self.on_template_grid:
            raise UserError(
                f"{raw}: its grid of {self.image.shape} voxels from {self.affine[:3, 3].round(1).tolist()} is not the "
                f"template's, {template.SHAPE} from {list(template.ORIGIN)}: is this file of the dataset it claims to be? "
                f"If it is another, register it with --set dataset.registration=affine."
            )
        self.kind = "none" if self.on_template_grid else params.registration
        self.companion = None if raw.companion is None else _VolumePipeline(raw.companion, params, on_template, folder)

    def _beside(self, mask: np.ndarray | None, what: str) -> np.ndarray | None:
        if mask is None:
            return None
        if mask.shape != self.raw.image.shape:
            raise UserError(f"{self.raw}: its {what} has shape {mask.shape}, the image {self.raw.image.shape}.")
        if mask.dtype.kind == "i" and mask.min(initial=0) < 0:  # everything but 0 would count
            raise UserError(
                f"{self.raw}: its {what} holds the value {int(mask.min())}, where 0 is the background and values above mark "
                "something: write it again with 0."
            )
        return to_ras(mask, self.raw.affine)[0]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the voxels and where they are."""
        return array_digest(self.image, self.affine)

    # -- brain ----------------------------------------------------------------------------------------------------

    @cached_property
    def brain(self) -> np.ndarray:
        """(X, Y, Z) bool on this volume's grid."""
        rule, where = self.params.brain, str(self.raw)
        if self.given is None and rule == "given":
            raise UserError(
                f"{where}: there is no brain mask beside the image. Add it, or use --set dataset.brain=auto."
            )
        if self.given is not None and rule in ("auto", "given"):
            mask = np.ascontiguousarray(self.given.T != 0).T
            if not mask.any():
                raise UserError(f"{where}: its brain mask is empty.")
            return mask
        if rule == "background" or (rule == "auto" and not self.raw.skull):
            corner, *others = brain_extraction.background_values(self.image)
            if corner or others:
                beside = "".join(f" nor {value:g}, that of most voxels besides," for value in others)
                self.said.append(
                    f"brain: every voxel that is not {corner:g}, the value of all corners,{beside} and what it encloses"
                )
            return brain_extraction.background(self.image, self.raw.modality, where)
        if other := self.companion:  # the same subject's T1
            to_other = np.linalg.inv(other.affine) @ self.to_companion @ self.affine
            return self._on_own_grid(
                other.brain, to_other, f"the brain of {other.raw} lies outside it: are both of one subject and session?"
            )
        tool = brain_extraction.automatic() if rule == "auto" else rule
        if tool == "template":
            return self._brain_of_template()
        what = ["brain", RECIPE_VERSION, brain_extraction.tool(tool).version, self.raw.modality, self.fingerprint]

        def extract() -> np.ndarray:
            return brain_extraction.extract(tool, self.image, self.affine, self.raw.modality, where)

        return cached(self.folder, what, "bits", extract)

    def _brain_of_template(self) -> np.ndarray:
        mask = template.mask(self.params.template_margin)
        if self.on_template_grid:
            return np.asarray(mask & ~brain_extraction.outside(self.image))
        to_template = np.linalg.inv(template.AFFINE) @ np.linalg.inv(self.to_head("affine", None)) @ self.affine
        failed = "registration to the template failed: its brain lies outside the image."
        return self._on_own_grid(mask, to_template, failed)

    def _on_own_grid(self, mask: np.ndarray, to_voxel: np.ndarray, failed: str) -> np.ndarray:
        moved = resample(mask, to_voxel, self.image.shape, linear=False)
        if not moved.any():
            raise UserError(f"{self.raw}: {failed}")
        return moved

    # -- registration ---------------------------------------------------------------------------------------------

    @cached_property
    def to_companion(self) -> np.ndarray:
        """(4, 4): this volume's world to the companion's, mm: the head moved between two sequences."""
        other = self.companion
        assert other is not None
        inside = other.brain
        what = ["companion", RECIPE_VERSION, registration.tool_version(), registration.LEVELS, array_digest(inside)]
        what += [other.fingerprint, self.fingerprint]

        def register() -> np.ndarray:
            return registration.register(other.image, other.affine, inside, self.image, self.affine, np.eye(4), "rigid")

        return np.linalg.inv(cached(self.folder, what, "matrix", register))

    def to_head(self, kind: Literal["rigid", "affine"], inside: np.ndarray | None) -> np.ndarray:
        """(4, 4): template world to this volume's world, mm.

        Args:
            kind: "rigid" or "affine".
            inside: (X, Y, Z) bool, the brain; None: not known yet, the whole head is registered.
        """
        if self.companion is not None and inside is not None:
            there = self.companion.to_head(kind, self.companion.brain)
            return np.asarray(np.linalg.inv(self.to_companion) @ there)
        moving = np.asarray(self.image, np.float32)
        start = np.eye(4)
        if inside is None:
            # The skull tells where the brain ends, so compare a little beyond it.
            around = template.mask(template.HEAD_MARGIN)
            if kind == "affine":
                start[:3, :3] *= template.HEAD_SCALE
            start[:3, 3] = _crown(moving, self.affine) - start[:3, :3] @ template.CROWN
        else:
            around = template.mask(template.BRAIN_MARGIN)
            moving = moving * inside
            start[:3, 3] = _centre(moving, self.affine) - _centre(template.brain(), template.AFFINE)
        what = [kind, RECIPE_VERSION, registration.tool_version(), registration.LEVELS, start[0, 0]]
        what += [array_digest(around), self.fingerprint, "head" if inside is None else array_digest(inside)]

        def register() -> np.ndarray:
            return registration.register(template.brain(), template.AFFINE, around, moving, self.affine, start, kind)

        return cached(self.folder, what, "matrix", register)

    # -- all of it ------------------------------------------------------------------------------------------------

    def corrected(self, inside: np.ndarray) -> np.ndarray:
        """The image, its bias field removed when the recipe says so."""
        if not self.params.n4:
            return self.image
        what = ["n4", RECIPE_VERSION, registration.tool_version(), registration.SHRINK]
        what += [self.fingerprint, array_digest(inside)]
        log = cached(self.folder, what, "log", lambda: registration.bias_field(self.image, self.affine, inside))
        return registration.unbiased(self.image, self.affine, log)

    def prepare(self) -> Stack:
        """Run every step."""
        params, raw = self.params, self.raw
        inside = self.brain
        image = self.corrected(inside)
        levels = slicing.intensity_window(image, inside, params)
        if not levels.high > levels.low:
            raise UserError(f"{raw}: the image is constant inside the brain ({levels.low:g} everywhere).")
        quality = {
            "brain_ml": float(inside.sum()) * voxel_ml(self.affine),
            "clipped_share": levels.clipped,
            "intensity_low": levels.low,
            "intensity_high": levels.high,
        }
        lesion, other, affine, back = self.lesion, self.other, self.affine, np.eye(4)
        if self.uncovered is not None:
            unknown = self.uncovered & inside
            other = unknown if other is None else other | unknown
        if self.kind != "none":
            back = self.to_head(self.kind, inside)
            affine = template.AFFINE
            to_voxel = np.linalg.inv(self.affine) @ back @ affine
            image = resample(image, to_voxel, template.SHAPE, linear=True)
            inside = resample(inside, to_voxel, template.SHAPE, linear=False)
            lesion, other = (
                None if mask is None else resample(mask, to_voxel, template.SHAPE, linear=False)
                for mask in (lesion, other)
            )
            if not inside.any():
                raise UserError(f"{raw}: registration failed: the brain lies outside the template.")
        if self.kind != "none" or self.on_template_grid:
            core = template.mask(0.0)
            quality["registration_correlation"] = float(np.corrcoef(image[core], template.brain()[core])[0, 1])
            quality["registration_overlap"] = float(2 * (inside & core).sum() / (inside.sum() + core.sum()))
        cut = slicing.cut(inside, affine, params)
        self._refuse_cropped(inside, affine, cut)
        geometry = Geometry(
            original_shape=tuple(int(n) for n in raw.image.shape),
            original_affine=matrix(raw.affine),
            registered_shape=tuple(int(n) for n in inside.shape),
            registered_affine=matrix(affine),
            to_original_world=matrix(back),
            registration=self.kind,
            corner=cut.corner,
            side=cut.side,
            size=params.size,
            step=params.slice_step,
        )
        remarks = list(self.said)
        if cut.thin:
            remarks.append(f"slices {ranges(cut.thin)}: left out, too little brain")
        if cut.outside:
            remarks.append(f"{cut.outside} brain voxels lie beyond the field of view")
        wide = slicing.slices(inside, cut)
        brain_slices = resize_mask(wide, params.size)
        image_slices = slicing.scaled(slicing.slices(image, cut), wide, levels)
        if image_slices.shape[-2:] != (params.size, params.size):
            image_slices = np.clip(resize_image(image_slices, params.size), 0, 1) * brain_slices
        lesion_slices = None
        if lesion is not None:
            full = slicing.slices(lesion, cut)
            lesion_slices = resize_mask(full, params.size)
            remarks += self._lesions(lesion, full, lesion_slices, brain_slices, cut, geometry, quality)
        stack = Stack(image_slices, brain_slices, lesion_slices, cut.planes, remarks, geometry, quality, raw.labels)
        if other is not None and other.any():
            _blank(stack, resize_mask(slicing.slices(other, cut), params.size))
        return stack

    def _refuse_cropped(self, inside: np.ndarray, affine: np.ndarray, cut: slicing.Cut) -> None:
        """Refuse a square that cuts off more than :data:`CROPPED` of the brain."""
        share, params = cut.outside / int(inside.sum()), self.params
        if share <= CROPPED:
            return
        box = brain_extraction.bounds(inside)
        assert box is not None
        extent = max((box[axis].stop - box[axis].start) * zooms(affine)[axis] for axis in (0, 1))
        wide = 8 * math.ceil(extent / 8)
        option = f"mm={math.ceil(100 * wide / params.size) / 100:g}" if params.mm else f"field_of_view={wide}"
        raise UserError(
            f"{self.raw}: its brain is {extent:.0f} mm wide, and {share:.1%} of it lie beyond the square of {params.square:g} mm "
            f"({params.size} pixels of {params.square / params.size:.3g} mm). Use at least --set dataset.{option}."
        )

    def _lesions(
        self,
        registered: np.ndarray,
        full: np.ndarray,
        prepared: np.ndarray,
        brain: np.ndarray,
        cut: slicing.Cut,
        geometry: Geometry,
        quality: dict[str, float],
    ) -> list[str]:
        """Enter the lesion volumes into ``quality``; remarks about what was lost on the way."""
        assert self.lesion is not None
        unit = geometry.prepared_voxel_ml * geometry.volume_scale
        outside = int((prepared & ~brain).sum())
        here = float(self.lesion.sum()) * voxel_ml(self.affine)
        drawn = here if self.raw.lesion_ml is None else self.raw.lesion_ml
        quality["lesion_ml_source"] = drawn
        quality["lesion_ml"] = float(prepared.sum()) * unit
        quality["lesion_outside_brain_ml"] = float(outside) * unit
        remarks = []
        if abs(here - drawn) > _VOLUME_CHANGE * drawn:
            remarks.append(f"lesion: {drawn:.3g} ml where it was drawn are {here:.3g} ml on the grid of the image")
        every = registered.sum(axis=(0, 1))
        skipped = [z for z in np.flatnonzero(every) if z not in cut.planes and z % geometry.step == 0]
        if skipped:
            voxels = int(every[skipped].sum())
            remarks.append(f"lesion: {voxels} of {int(every.sum())} voxels lie in slices left out ({ranges(skipped)})")
        if cropped := int(every[list(cut.planes)].sum()) - int(full.sum()):
            remarks.append(f"lesion: {cropped} voxels lie beyond the field of view")
        for position in lost(full, prepared):
            voxels = int(full[position].sum())
            remarks.append(f"slice {cut.planes[position]}: its lesion ({voxels} voxels) was lost in resizing")
        if outside:
            remarks.append(f"lesion: {outside} of {int(prepared.sum())} prepared voxels lie outside the brain mask")
        return remarks


def _blank(stack: Stack, other: np.ndarray) -> None:
    """Take what is neither lesion nor healthy, (S, H, W) bool, out of the brain, and out of ``stack`` what holds nothing else."""
    assert stack.lesion is not None
    hidden = other & stack.brain
    stack.brain = stack.brain & ~other
    stack.image = stack.image * stack.brain
    stack.lesion = stack.lesion & ~other
    kept = np.asarray(~other.any(axis=(1, 2)) | stack.lesion.any(axis=(1, 2)))
    left = [index for index, keep in zip(stack.slices, kept, strict=True) if not keep]
    stack.remarks.append(f"other: {int(hidden.sum())} prepared voxels are neither lesion nor healthy and do not count")
    if left:
        stack.remarks.append(f"slices {ranges(left)}: left out, they hold what is not counted and no lesion")
    stack.slices = [index for index, keep in zip(stack.slices, kept, strict=True) if keep]
    stack.image, stack.brain, stack.lesion = stack.image[kept], stack.brain[kept], stack.lesion[kept]


def _centre(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in world mm, from every fourth voxel."""
    few = np.maximum(image[::4, ::4, ::4], 0).astype(np.float64)
    sums = [few.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    voxel = [4 * float((s * np.arange(len(s))).sum() / s.sum()) for s in sums]
    return np.asarray(affine[:3, :3] @ voxel + affine[:3, 3])


def _crown(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Middle of a head seen from above, and its highest point, in world mm: unlike its centre, no neck can move them."""
    import cc3d

    step = np.maximum(1, np.round(3 / zooms(affine))).astype(int)
    few = image[tuple(slice(None, None, int(n)) for n in step)]
    head = cc3d.largest_k(few > few.mean(), k=1, connectivity=6) > 0
    points = np.argwhere(head) * step @ affine[:3, :3].T + affine[:3, 3]
    top = np.percentile(points[:, 2], 99.9)
    low, high = np.percentile(points[points[:, 2] > top - 130], [1, 99], axis=0)
    return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, top])


def ranges(numbers: Any) -> str:
    """Ascending whole numbers in short: "3-7, 9"."""
    parts: list[list[int]] = []
    for number in map(int, numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def array_digest(*arrays: np.ndarray) -> str:
    """SHA-256 of shapes, types and values."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.shape}{array.dtype.str}".encode())
        # The order in memory of a NIfTI volume; a view in the other order is copied.
        state.update(np.ascontiguousarray(array.T).data)
    return state.hexdigest()


def cached(folder: Path | None, what: list[Any], name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is slow to make (a brain mask, a bias field, a registration): read if it is there and whole, else made.

    ``what`` it is are its step, the step's parameters and versions, and the voxels it was made from. So a change of slicing
    or size costs no second extraction, T2 and PD share what was made of their T1, and an interrupted case goes on.

    Args:
        folder: None keeps nothing.
        what: JSON values: step, version, parameters, fingerprints of its inputs.
        name: of the array in its file; a mask of the name "bits" is kept as eight voxels a byte.
        make: gives the array.
    """
    if folder is None:
        return make()
    path = folder / f"{what[0]}-{digest(what)[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            array = np.asarray(stored[name])
            if name != "bits":
                return array
            shape = tuple(int(n) for n in stored["shape"])
        return np.unpackbits(array, count=int(np.prod(shape))).view(np.bool_).reshape(shape)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError):
        path.unlink(missing_ok=True)  # half a file, or one that a disk spoiled: make it again
    array = make()
    arrays = {"bits": np.packbits(array), "shape": np.array(array.shape)} if name == "bits" else {name: array}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return array
