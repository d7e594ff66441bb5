"""An open slice store: one dataset and modality, prepared once.

A store is a folder below ``stores/`` of the cache with ``manifest.json``: the recipe, every case with its rows, digests,
geometry, quality figures and the name of its case file, every source file with its size and hash, and what was left out.
The case files lie below ``cases/`` of the cache, a folder a recipe: stores of the same recipe share them.
:mod:`adbench.datasets.store.prepare` writes both, :mod:`adbench.datasets.pixels` reads the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from adbench.datasets.base import Split
from adbench.datasets.pixels import ARRAYS, PREPARE_AGAIN, PixelStore, Rows, StoredCase
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.errors import UserError, unknown
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    from adbench.datasets.geometry import Geometry

STORE_VERSION = 3
MANIFEST = "manifest.json"
STORES, CASES = "stores", "cases"  # folders below the cache
NO_SLICE = "no slice left"  # remark of a case of which nothing could be kept


class IncompleteStore(UserError):
    """The manifest or a case file is not there; preparing again makes what is missing."""


class SliceStore(PixelStore):
    """An open store. Use :meth:`open`; pixels are read and compared with their checksums when they are first used.

    Attributes:
        images: (H, W) float16 in [0, 1] a row.
        brains: (H, W) bool a row.
        lesions: (H, W) bool a row.
        files: the case file of each case.
    """

    cases: list[StoredCase]

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        cases = [StoredCase.from_json(case) for case in manifest["cases"]]
        below = case_folder(folder, manifest)
        self.files = [below / case.file for case in cases]
        shape = tuple(manifest["shape"])
        images, brains, self.lesions = (Rows(name, cases, shape, self.files) for name in ARRAYS)
        super().__init__(manifest["modality"], shape, cases, images, brains)
        self._seen: dict[tuple[int, int], PixelStore] = {}

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store; the sizes of its files and the list of cases are checked now, pixels when they are read.

        Raises:
            IncompleteStore: the manifest or a case file is missing.
            UserError: a file was truncated or changed, or the store is of another version.
        """
        folder = Path(folder)
        path, again = folder / MANIFEST, f"Delete {folder}, then {PREPARE_AGAIN} it again."
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["store_version"] != STORE_VERSION:
                raise UserError(
                    f"The store {folder} has version {manifest['store_version']}, this adbench reads {STORE_VERSION}. {again}"
                )
            if (found := digest(manifest["cases"])) != manifest["cases_digest"]:
                raise UserError(
                    f"{path} was changed after preparation: its case list has the digest {found[:16]} and was "
                    f"written with {str(manifest['cases_digest'])[:16]}. {again}"
                )
            below = case_folder(folder, manifest)
            for name, written in manifest["files"].items():
                size = (below / name).stat().st_size
                if size != written["bytes"]:
                    raise UserError(
                        f"{below / name} has {size} bytes where {written['bytes']} were written: it was truncated or "
                        f"changed after preparation. Delete {below / name}, then {PREPARE_AGAIN} the case again."
                    )
            return cls(folder, manifest)
        except FileNotFoundError as error:
            raise IncompleteStore(
                f"The store {folder} is incomplete: {error.filename} is missing; {PREPARE_AGAIN} it again."
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). {again}") from None

    def seen(self, rows: np.ndarray) -> PixelStore:
        """The cases from the first of ``rows`` to the last, without labels and without a path.

        Cases are sorted by split, so those of a split's rows hold no case of another. Sets of the same cases share what
        they have read.
        """
        owner = self.owner(rows)
        low, high = cases = (int(owner.min()), int(owner.max()) + 1) if len(owner) else (0, 0)
        if cases not in self._seen:
            seen, files = [case.seen() for case in self.cases[low:high]], self.files[low:high]
            images, brains = (Rows(name, seen, self.shape, files) for name in ("images", "brains"))
            self._seen[cases] = PixelStore(self.modality, self.shape, seen, images, brains)
        return self._seen[cases]

    def faults(self) -> Iterator[tuple[str, str]]:
        """Of every array and case, the case's id and one sentence if its pixels are not those that were written, else ""."""
        for rows in (self.images, self.brains, self.lesions):
            yield from ((case.id, rows.fault(index, deep=True)) for index, case in enumerate(self.cases))

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
        """Voxel grid of the slices of ``case_id`` in its original volume.

        Raises:
            UserError: no such case, or its slices never were part of a volume.
        """
        from adbench.datasets.geometry import Geometry

        stored = self.case(case_id).geometry
        if stored is None:
            raise UserError(f"The slices of {case_id} come from no volume, so they have no place in one.")
        return Geometry.from_json(stored)

    def case_of(self, row: int) -> StoredCase:
        """The case that ``row`` belongs to."""
        return self.cases[int(self.owner(np.array([row]))[0])]

    def spacing_of(self, row: int) -> tuple[float, float, float] | None:
        """Mm from one slice index to the next, from row to row, from column to column; None for slices of no volume."""
        from adbench.datasets.geometry import Geometry

        stored = self.case_of(row).geometry
        if stored is None:
            return None
        column, line, plane = np.linalg.norm(Geometry.from_json(stored).prepared_affine()[:3, :3], axis=0).tolist()
        return plane, line, column

    def groups_of(self, row: int) -> dict[str, str]:
        """Grouping -> group of the case that ``row`` belongs to: its site, sex, age, ... as far as they are known."""
        case = self.case_of(row)
        known: dict[str, str] = self.manifest.get("groups", {}).get(case.id, {})
        return ({"site": case.site} if case.site else {}) | known

    def pixel_sizes(self, rows: np.ndarray) -> dict[str, tuple[float, float] | None]:
        """Mm from row to row and from column to column, by case of ``rows``; None for a case of single slices."""
        found: dict[str, tuple[float, float] | None] = {}
        for index in np.unique(self.owner(rows)).tolist():
            spacing = self.spacing_of(self.cases[index].start)
            found[self.cases[index].id] = None if spacing is None else spacing[1:]
        return found

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
        chosen = [np.empty(0, np.int64)]
        return LabelledSet(self, np.concatenate(chosen + [c.rows for c in self.cases if c.split == split and c.masked]))


def case_folder(store: Path, manifest: dict[str, Any]) -> Path:
    """Folder of the case files of a store."""
    return store.parent.parent / CASES / str(manifest["case_folder"])
