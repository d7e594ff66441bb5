"""N4 bias correction and linear registration with SimpleITK.

Everything runs on one thread: partial sums of several threads are added in another order, and two machines would then
prepare different bytes. Cases, not voxels, are what runs in parallel.

Positions are millimetres along the voxel axes of a RAS volume (voxel index times voxel size), so ITK's own world never
enters; :func:`register` turns what it found into a transform between the affines' worlds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from adbench.datasets.geometry import zooms
from adbench.datasets.preprocessing.recipe import EXTRA
from adbench.errors import UserError

SHRINK = 4  # of the volume that N4 looks at
LEVELS = ((8.0, 4.0), (4.0, 2.0), (3.0, 1.5))  # voxel size and smoothing (mm) of each level of a registration
STRIDE = 0.5  # first step of a level, in its voxels


def installed() -> bool:
    """Whether SimpleITK is there."""
    return find_spec("SimpleITK") is not None


def _toolkit(purpose: str) -> Any:
    """The module SimpleITK.

    Raises:
        UserError: it is not installed (says how to).
    """
    if not installed():
        raise UserError(f"{purpose} needs SimpleITK: {EXTRA}.")
    import SimpleITK

    return SimpleITK


@contextmanager
def _single_threaded(sitk: Any, what: str) -> Iterator[None]:
    """Run on one thread, with ITK's errors made readable."""
    # The filters' own setting does not reach every part of a registration; only this one makes two runs agree.
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    except RuntimeError as error:
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        raise UserError(f"{what} failed: {' '.join(last)}. Look at the image, or leave the case out.") from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def tool_version() -> str:
    """ "SimpleITK 2.5"; the patch level changes no result."""
    return "SimpleITK " + ".".join(version("SimpleITK").split(".")[:2]) if installed() else "SimpleITK missing"


def bias_field(image: np.ndarray, affine: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The logarithm of the bias field inside the brain, on every fourth voxel (Tustison et al. 2010).

    Args:
        image: (X, Y, Z).
        affine: (4, 4), for the voxel sizes.
        brain: (X, Y, Z) bool.

    Returns:
        float16, each axis shrunk by :data:`SHRINK` (less where an axis is short); see :func:`unbiased`.
    """
    sitk = _toolkit("N4 bias correction")
    # Thick slices are few: shrink an axis only as far as its voxels are smaller than the coarsest ones.
    steps = _steps(image.shape, affine)
    few = tuple(slice(None, None, step) for step in steps)
    spacing = zooms(affine) * steps
    coarse = _image(np.maximum(image[few], 0), spacing)
    inside = _image(brain[few], spacing)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations([50, 50, 30, 20])
    filter_.SetConvergenceThreshold(1e-3)
    with _single_threaded(sitk, "N4 bias correction"):
        filter_.Execute(coarse, inside)
        log = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(coarse)).transpose(2, 1, 0)
    return np.ascontiguousarray(log).astype(np.float16)


def unbiased(image: np.ndarray, affine: np.ndarray, log: np.ndarray) -> np.ndarray:
    """``image`` divided by the field that :func:`bias_field` found; (X, Y, Z) float32."""
    from scipy import ndimage

    steps = _steps(image.shape, affine)
    full: np.ndarray = ndimage.affine_transform(
        log.astype(np.float32), 1 / steps, output_shape=image.shape, order=1, mode="nearest", output=np.float32
    )
    np.exp(-full, out=full)
    full *= image
    return full


def _steps(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    size = zooms(affine)
    wanted = np.round(SHRINK * size.min() / size).clip(1, SHRINK)
    return np.asarray(np.minimum(wanted, np.maximum(1, np.asarray(shape) // 16)), int)


def register(
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    fixed_mask: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    initial: np.ndarray,
    kind: Literal["rigid", "affine"],
) -> np.ndarray:
    """The linear transform that brings ``moving`` onto ``fixed``: Mattes mutual information, coarse to fine.

    Args:
        fixed: (X, Y, Z), the target.
        fixed_affine: (4, 4) of the target.
        fixed_mask: (X, Y, Z) bool: where the two are compared.
        moving: (X, Y, Z).
        moving_affine: (4, 4).
        initial: (4, 4) fixed world to moving world, where the search starts.
        kind: "rigid", or "affine" (rigid first).

    Returns:
        (4, 4): fixed world to moving world, mm. The same input gives the same numbers.
    """
    sitk = _toolkit("Registration")
    to_fixed = fixed_affine @ np.diag([*(1 / zooms(fixed_affine)), 1.0])  # mm along the axes to world
    to_moving = moving_affine @ np.diag([*(1 / zooms(moving_affine)), 1.0])
    start = np.linalg.inv(to_moving) @ initial @ to_fixed
    target, subject = _image(fixed, zooms(fixed_affine)), _image(moving, zooms(moving_affine))
    where = _image(fixed_mask, zooms(fixed_affine))
    centre = (np.argwhere(fixed_mask[::4, ::4, ::4]).mean(axis=0) * 4 * zooms(fixed_affine)).tolist()
    found = sitk.Euler3DTransform()
    found.SetCenter(centre)
    with _single_threaded(sitk, "Registration"):
        _search(sitk, target, where, subject, start, found)
        if kind == "affine":
            rigid, found = found, sitk.AffineTransform(3)
            found.SetCenter(centre)
            found.SetMatrix(rigid.GetMatrix())
            found.SetTranslation(rigid.GetTranslation())
            _search(sitk, target, where, subject, start, found)
    return np.asarray(to_moving @ start @ _homogeneous(found) @ np.linalg.inv(to_fixed))


def _search(sitk: Any, fixed: Any, mask: Any, moving: Any, start: np.ndarray, transform: Any) -> None:
    """Improve ``transform`` in place, coarse to fine. A level that ends worse than it began is taken back: where two
    volumes nearly lie on each other, the first steps of the coarsest one may lead out of the head for good."""
    before = sitk.AffineTransform(3)
    before.SetMatrix(start[:3, :3].ravel().tolist())
    before.SetTranslation(start[:3, 3].tolist())
    for size, sigma in LEVELS:
        target, subject = _coarser(sitk, fixed, size, sigma), _coarser(sitk, moving, size, sigma)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricFixedMask(mask)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=STRIDE * size, minStep=0.005, numberOfIterations=100, gradientMagnitudeTolerance=1e-6
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetMovingInitialTransform(before)  # applied after the one that is searched
        method.SetInitialTransform(transform, inPlace=True)
        at_first = transform.GetParameters()
        worth = method.MetricEvaluate(target, subject)  # negative mutual information
        method.Execute(target, subject)
        if not method.GetMetricValue() <= worth:
            transform.SetParameters(at_first)


def _coarser(sitk: Any, image: Any, size: float, sigma: float) -> Any:
    """``image`` smoothed, on voxels of about ``size`` mm; an axis of thick slices stays as it is."""
    steps = [max(1, round(size / spacing)) for spacing in image.GetSpacing()]
    for axis, step in enumerate(steps):
        if step > 1:
            image = sitk.RecursiveGaussian(image, sigma, direction=axis)
    return sitk.Shrink(image, steps)


def _homogeneous(transform: Any) -> np.ndarray:
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - corner for axis in np.eye(3)]
    result = np.eye(4)
    result[:3, :3] = np.stack(columns, axis=1)
    result[:3, 3] = corner
    return result


def _image(array: np.ndarray, spacing: np.ndarray) -> Any:
    import SimpleITK

    kind = np.uint8 if array.dtype == np.bool_ else np.float32
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=kind))
    image.SetSpacing([float(s) for s in spacing])
    return image
