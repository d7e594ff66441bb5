"""Prepared slices as NIfTI files with BIDS-derivative names, on the prepared grid or on that of the scan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adbench import __version__
from adbench.datasets.export import placed
from adbench.datasets.io import nifti
from adbench.errors import UserError
from adbench.utils.files import write_json

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore

SPACES = {"prepared": "prepared", "original": "orig"}


class VolumeFile(NamedTuple):
    """Content of a NIfTI file: (X, Y, Z), masks as uint8, and the (4, 4) affine to mm."""

    data: np.ndarray
    affine: np.ndarray


class VolumeWriter:
    """Writes below ``OUT/sub-01/[ses-1/]anat/``; the names say subject, session and space.

    Args:
        out: folder to write to.
        space: "prepared" (the slices' own grid) or "original" (the voxels of the provider's file).
    """

    def __init__(self, out: Path, space: str) -> None:
        self._out, self._space = out, space
        self._subjects: dict[str, str] = {}
        self._described = False

    def path(self, store: SliceStore, case: str, tail: str) -> Path:
        """Path of the file of ``case`` whose name ends with ``tail``, e.g. "desc-madad_anomaly.json".

        Raises:
            UserError: another case would have the same name.
        """
        if case not in self._subjects:
            stored = store.case(case)
            name = f"sub-{label(stored.subject.removeprefix('sub-'))}"
            session = f"_ses-{label(stored.session.removeprefix('ses-'))}" if stored.session else ""
            if name + session in self._subjects.values():
                raise UserError(
                    f"Case {case!r} and another one would both be exported as {name}{session}: BIDS names hold letters "
                    "and digits only. Rename one of them."
                )
            self._subjects[case] = name + session
        stem = self._subjects[case]
        return self._out / stem.replace("_", "/") / "anat" / f"{stem}_space-{SPACES[self._space]}_{tail}"

    def write(self, store: SliceStore, case: str, volumes: Mapping[str, VolumeFile]) -> list[Path]:
        """Write the volumes of one case, each under the end of its file's name without the type."""
        if not self._described:
            made_by = [{"Name": "adbench", "Version": __version__}]
            write_json(
                self._out / "dataset_description.json",
                {"Name": "adbench maps", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": made_by},
            )
            self._described = True
        paths = []
        for tail, volume in volumes.items():
            paths.append(self.path(store, case, f"{tail}.nii.gz"))
            nifti.write(paths[-1], volume.data, volume.affine)
        return paths

    def placed(self, store: SliceStore, case: str, slices: Sequence[int], array: np.ndarray) -> VolumeFile:
        """An array of slices on the grid of the files; see :func:`adbench.datasets.export.placed`."""
        return VolumeFile(*placed(store, case, slices, array, self._space))

    def map_placed(
        self, store: SliceStore, case: str, slices: Sequence[int], maps: np.ndarray, counted: np.ndarray
    ) -> tuple[VolumeFile, np.ndarray]:
        """An anomaly map as :meth:`placed`, 0 where nothing counts; and (X, Y, Z) bool, where something does."""
        if not np.isfinite(maps).all():  # where nothing counts; a blend with it would be none
            maps = np.where(np.isfinite(maps), maps, maps.dtype.type(0))
        volume = self.placed(store, case, slices, maps)
        inside = self.placed(store, case, slices, counted).data > 0
        return VolumeFile(np.where(inside, volume.data, volume.data.dtype.type(0)), volume.affine), inside


def label(text: str) -> str:
    """``text`` as a part of a BIDS name: letters and digits alone."""
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"
