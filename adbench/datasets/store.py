"""The slice store: one dataset and modality, prepared once, memory-mapped, hashed.

A store is a folder with ``images.npy`` (N, H, W) float16 in [0, 1], ``brains.npy`` and ``lesions.npy`` (N, H, W) bool and
``manifest.json``: the recipe, every case with its rows, digests, geometry and quality figures, every source file with its
size and hash, and what was left out. :mod:`adbench.datasets.building` writes it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy

from adbench.context import Progress
from adbench.datasets.base import Dataset, Split
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.errors import UserError, unknown
from adbench.hashing import digest, digest_file

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from adbench.datasets.geometry import Geometry

STORE_VERSION = 2
MANIFEST = "manifest.json"
NO_SLICE = "no slice left"  # remark of a case of which nothing could be kept
ARRAYS: dict[str, DTypeLike] = {"images": np.float16, "brains": np.bool_, "lesions": np.bool_}


@dataclass(frozen=True)
class StoredCase:
    """One case of a store: its rows are ``start <= row < start + len(slices)``.

    Attributes:
        digests: SHA-256 of the case's bytes in each array.
        lesion_voxels: per slice.
        masked: False when the case came without a lesion mask (its rows then hold no lesion).
        geometry: as :meth:`adbench.datasets.geometry.Geometry.to_json` gives it; None for slices without a volume.
        quality: figures about the preparation, by name.
    """

    subject: str
    session: str
    split: str
    site: str
    flags: tuple[str, ...]
    start: int
    slices: tuple[int, ...]
    lesion_voxels: tuple[int, ...]
    brain_voxels: tuple[int, ...]
    masked: bool
    digests: dict[str, str]
    geometry: dict[str, Any] | None = None
    quality: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Self:
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in case.items()}
        return cls(**fields)

    @property
    def id(self) -> str:
        """Subject and session in one word, as :attr:`adbench.datasets.base.Case.id`."""
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.start, self.start + len(self.slices))


class SliceStore:
    """An open store. Use :meth:`open`; pixels are read only when asked for."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.modality: str = manifest["modality"]
        self.shape: tuple[int, int] = tuple(manifest["shape"])
        self.cases = [StoredCase.from_json(case) for case in manifest["cases"]]
        self._case_of_row = np.repeat(np.arange(len(self.cases)), [len(case.slices) for case in self.cases])
        self._maps: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store and check that its files are those that were written.

        Sizes are always compared; a file whose modification time differs from the manifest's is hashed whole.

        Raises:
            UserError: a file is missing, truncated or changed, or the store is of another version.
        """
        folder = Path(folder)
        again = f"Delete {folder} and run the command again to prepare it anew."
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["store_version"] != STORE_VERSION:
                raise UserError(
                    f"The store {folder} has version {manifest['store_version']}, this adbench reads {STORE_VERSION}. {again}"
                )
            for name, written in manifest["files"].items():
                found = (folder / name).stat()
                if found.st_size != written["bytes"]:
                    raise UserError(
                        f"{folder / name} has {found.st_size} bytes where {written['bytes']} were written: "
                        f"the store was truncated or changed after preparation. {again}"
                    )
                if found.st_mtime_ns != written["mtime_ns"] and digest_file(folder / name) != written["sha256"]:
                    raise UserError(
                        f"{folder / name} was changed after preparation (its hash differs from the manifest). {again}"
                    )
            if digest(manifest["cases"]) != manifest["cases_digest"]:
                raise UserError(
                    f"{folder / MANIFEST} was changed after preparation (its case list does not match its hash). {again}"
                )
            return cls(folder, manifest)
        except FileNotFoundError as error:
            raise UserError(
                f"The store {folder} is incomplete: {Path(error.filename).name} is missing. {again}"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}). {again}") from None

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._maps[name]

    @property
    def images(self) -> np.ndarray:
        """(N, H, W) float16 in [0, 1], memory-mapped."""
        return self._map("images")

    @property
    def brains(self) -> np.ndarray:
        """(N, H, W) bool, memory-mapped."""
        return self._map("brains")

    @property
    def lesions(self) -> np.ndarray:
        """(N, H, W) bool, memory-mapped; opened on first use."""
        return self._map("lesions")

    @property
    def empty_cases(self) -> list[str]:
        """Ids of cases that were found and have no usable slice (no brain in any, say): they are in no split."""
        end = f": {NO_SLICE}"
        return [remark.removesuffix(end) for remark in self.manifest["remarks"] if remark.endswith(end)]

    def case(self, case_id: str) -> StoredCase:
        """The case called ``case_id``.

        Raises:
            UserError: there is none (the nearest is given).
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        raise unknown(f"case of {self.manifest['dataset']} {self.modality}", case_id, (case.id for case in self.cases))

    def geometry(self, case_id: str) -> Geometry:
        """Where the slices of ``case_id`` lie in its original volume.

        Raises:
            UserError: no such case, or its slices never were part of a volume.
        """
        from adbench.datasets.geometry import Geometry

        stored = self.case(case_id).geometry
        if stored is None:
            raise UserError(f"The slices of {case_id} come from no volume, so they have no place in one.")
        return Geometry.from_json(stored)

    def subject_of(self, row: int) -> str:
        return self.cases[self._case_of_row[row]].subject

    def case_id_of(self, row: int) -> str:
        return self.cases[self._case_of_row[row]].id

    def slice_of(self, row: int) -> int:
        case = self.cases[self._case_of_row[row]]
        return case.slices[row - case.start]

    def site_of(self, row: int) -> str | None:
        return self.cases[self._case_of_row[row]].site or None

    def spacing_of(self, row: int) -> tuple[float, float, float] | None:
        """Mm from one slice index to the next, from row to row, from column to column; None for slices of no volume."""
        from adbench.datasets.geometry import Geometry

        stored = self.cases[self._case_of_row[row]].geometry
        if stored is None:
            return None
        column, line, plane = np.linalg.norm(Geometry.from_json(stored).prepared_affine()[:3, :3], axis=0).tolist()
        return plane, line, column

    def lesion_voxels_of(self, row: int) -> int:
        case = self.cases[self._case_of_row[row]]
        return case.lesion_voxels[row - case.start]

    def rows(self, split: Split, *, healthy_only: bool = False) -> np.ndarray:
        """Row numbers of ``split``; with ``healthy_only`` those whose lesion mask, where there is one, is empty."""
        chosen = [np.empty(0, np.int64)]
        for case in self.cases:
            if case.split == split:
                chosen.append(case.rows[np.array(case.lesion_voxels) == 0] if healthy_only else case.rows)
        return np.concatenate(chosen)

    def healthy(self, split: Split) -> SliceSet:
        """Lesion-free slices of ``split``, without masks: what a method may be given."""
        return SliceSet(self, self.rows(split, healthy_only=True))

    def labelled(self, split: Split) -> LabelledSet:
        """All slices of ``split`` that belong to cases with a lesion mask, with their masks."""
        rows = self.rows(split)
        masked = np.array([self.cases[self._case_of_row[row]].masked for row in rows], dtype=bool)
        return LabelledSet(self, rows[masked] if len(rows) else rows)

    def volumes_of(self, rows: np.ndarray) -> dict[str, str]:
        """Hash of all image pixels -> subject, of every case that has one of ``rows``."""
        cases = (self.cases[index] for index in np.unique(self._case_of_row[rows]))
        return {case.digests["images"]: case.subject for case in cases}

    def describe_rows(self, rows: np.ndarray, *, lesions: bool) -> list[Any]:
        """What identifies ``rows``: per case its ids, slices and digests (those of the lesion masks only if asked)."""
        arrays = ["images", "brains", "lesions"] if lesions else ["images", "brains"]
        described: list[Any] = [self.modality, list(self.shape)]
        owners = self._case_of_row[rows]
        for index in dict.fromkeys(owners.tolist()):
            case = self.cases[index]
            slices = [case.slices[row - case.start] for row in rows[owners == index]]
            described.append([case.subject, case.session, slices, [case.digests[name] for name in arrays]])
        return described


class _Writer:
    """Streams one array to a ``.npy`` file, from its beginning or from a row on; the row count enters the header at the end."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")
        self.rows = 0
        self.shape: tuple[int, ...] = ()

    def append(self, block: np.ndarray) -> None:
        if not self.shape:
            self.resume(0, block.shape[1:])
        block = np.ascontiguousarray(block, dtype=self.dtype)
        self.file.write(block.data)
        self.rows += len(block)

    def resume(self, rows: int, shape: tuple[int, ...]) -> None:
        """Keep the first ``rows`` rows and go on behind them."""
        self.file.seek(0)
        self._header((rows, *shape))
        self.file.truncate(self.file.tell() + rows * int(np.prod(shape)) * self.dtype.itemsize)
        self.file.seek(0, os.SEEK_END)
        self.rows, self.shape = rows, shape

    def _header(self, shape: tuple[int, ...]) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        npy.write_array_header_1_0(
            self.file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )

    def close(self) -> None:
        self.file.seek(0)
        self._header((self.rows, *self.shape))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def prepare(
    dataset: Dataset, modality: str, cache: Path, progress: Progress | None = None, *, workers: int | None = None
) -> SliceStore:
    """The store of ``dataset`` and ``modality`` below ``cache``, prepared first unless a valid one is there.

    A store is found by recipe and by the paths, sizes and times of its sources; touched sources give a new store, which
    takes over the cases that did not change. What was interrupted goes on where it stopped.

    Args:
        dataset: with its root and parameters.
        modality: sequence.
        cache: folder of all stores.
        progress: receives progress.
        workers: cases at a time; None: as many as the machine has cores and memory for, one for a dataset whose cases
            take no time.

    Raises:
        UserError: from the dataset (nothing there, unreadable file, ...), cases that cannot be prepared (the others are
            kept for the next attempt), no room on the disk, or a damaged store.
    """
    from adbench.datasets.building import prepare_all

    return prepare_all(dataset, (modality,), cache, progress, workers=workers)[modality]
