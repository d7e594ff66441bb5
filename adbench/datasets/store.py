"""The slice store: one dataset and modality, prepared once, memory-mapped, hashed.

A store is a folder with ``images.npy`` (N, H, W) float16 in [0, 1], ``brains.npy`` and ``lesions.npy`` (N, H, W) bool and
``manifest.json``: the recipe, every case with its rows, digests and lesion sizes, every source file with its size, and
what was left out. It is written beside its final place and renamed, so a store is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from uuid import uuid4

import numpy as np
from numpy.lib import format as npy

from adbench.context import Progress
from adbench.datasets.base import Case, Dataset, Split, Stack
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.errors import UserError
from adbench.files import write_json
from adbench.hashing import digest, digest_file

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

STORE_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS: dict[str, DTypeLike] = {"images": np.float16, "brains": np.bool_, "lesions": np.bool_}


@dataclass(frozen=True)
class StoredCase:
    """One case of a store: its rows are ``start <= row < start + len(slices)``.

    Attributes:
        digests: SHA-256 of the case's bytes in each array.
        lesion_voxels: per slice.
        masked: False when the case came without a lesion mask (its rows then hold no lesion).
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

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Self:
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in case.items()}
        return cls(**fields)

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

    def subject_of(self, row: int) -> str:
        return self.cases[self._case_of_row[row]].subject

    def case_id_of(self, row: int) -> str:
        case = self.cases[self._case_of_row[row]]
        return f"{case.subject}_{case.session}" if case.session else case.subject

    def slice_of(self, row: int) -> int:
        case = self.cases[self._case_of_row[row]]
        return case.slices[row - case.start]

    def site_of(self, subject: str) -> str | None:
        return next((case.site for case in self.cases if case.subject == subject), "") or None

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


def _source_state(cases: Iterable[Case]) -> str:
    """Hash of every source file's path, size and time: cheap to take, and different when a source was touched."""
    seen = []
    for case in cases:
        for file in case.files:
            state = file.stat()
            seen.append([str(file), state.st_size, state.st_mtime_ns])
        seen.append([case.id, case.split])
    return digest(seen)


def _check(stack: Stack, case: Case, shape: tuple[int, int] | None) -> None:
    """Hold what an adapter (possibly a stranger's) gave against its contract."""
    where = f"case {case.id} ({case.files[0] if case.files else 'generated'})"
    count = len(stack.slices)
    if stack.image.ndim != 3 or stack.image.shape[0] != count or (shape and stack.image.shape[1:] != shape):
        raise UserError(
            f"{where}: image stack of shape {stack.image.shape}, expected ({count}, {shape or ('H', 'W')})."
        )
    for name, mask in (("brain", stack.brain), ("lesion", stack.lesion)):
        if mask is not None and (mask.shape != stack.image.shape or mask.dtype != np.bool_):
            raise UserError(f"{where}: {name} mask {mask.shape} {mask.dtype}, expected {stack.image.shape} bool.")
    if not np.isfinite(stack.image).all():
        raise UserError(f"{where}: the image holds NaN or infinite values. Repair or remove the file.")
    if count and (stack.image.min() < 0 or stack.image.max() > 1):
        raise UserError(f"{where}: image values from {stack.image.min():g} to {stack.image.max():g}, expected [0, 1].")
    if list(stack.slices) != sorted(set(stack.slices)):
        raise UserError(f"{where}: slice indices must ascend and be unique, got {list(stack.slices)[:8]}.")


class _Writer:
    """Streams one array to a ``.npy`` file; the row count enters the header at the end."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.file: BinaryIO = open(path, "wb")
        self.rows = 0

    def append(self, block: np.ndarray) -> str:
        block = np.ascontiguousarray(block, dtype=self.dtype)
        if self.rows == 0 and self.file.tell() == 0:
            self._header((0, *block.shape[1:]))
        self.shape = block.shape[1:]
        self.file.write(block.data)
        self.rows += len(block)
        return hashlib.sha256(block.data).hexdigest()

    def _header(self, shape: tuple[int, ...]) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        npy.write_array_header_1_0(
            self.file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )

    def close(self) -> None:
        start = self.file.tell()
        self.file.seek(0)
        self._header((self.rows, *self.shape))
        self.file.seek(start)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def prepare(dataset: Dataset, modality: str, cache: Path, progress: Progress | None = None) -> SliceStore:
    """The store of ``dataset`` and ``modality`` below ``cache``, prepared first unless a valid one is there.

    A store is found by recipe and by the paths, sizes and times of its sources; touched sources give a new store.

    Raises:
        UserError: from the dataset (nothing there, unreadable file, ...) or from a damaged store.
    """
    progress = progress or Progress()
    # Sorted, so that the slices of one subject stand together.
    cases = sorted(dataset.discover(modality), key=lambda case: (case.split, case.subject, case.session))
    key = digest([STORE_VERSION, dataset.recipe(), modality, _source_state(cases)])
    folder = Path(cache) / "stores" / f"{dataset.info.name}-{modality.lower()}-{key[:16]}"
    if folder.exists():
        return SliceStore.open(folder)
    _sweep(folder)
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:12]}.partial")  # two threads may prepare one store
    partial.mkdir(parents=True)
    try:
        _write(dataset, modality, cases, partial, progress)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster: use its store
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SliceStore.open(folder)


def _sweep(folder: Path) -> None:
    """Remove what a killed preparation of the store ``folder`` left behind, once nothing was written to it for a day."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        with suppress(OSError):  # another process sweeps too
            if max(item.stat().st_mtime for item in (partial, *partial.iterdir())) < time.time() - 86400:
                shutil.rmtree(partial, ignore_errors=True)


def _write(dataset: Dataset, modality: str, cases: list[Case], folder: Path, progress: Progress) -> None:
    writers = {name: _Writer(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    try:
        stored, remarks, shape, start = [], [], None, 0
        for done, case in enumerate(cases, 1):
            stack = dataset.load(case, modality)
            _check(stack, case, shape)
            remarks += [f"{case.id}: {remark}" for remark in stack.remarks]
            if not len(stack.slices):
                remarks.append(f"{case.id}: no slice left")
            else:
                shape = stack.image.shape[1:]
                lesion = np.zeros_like(stack.brain) if stack.lesion is None else stack.lesion
                blocks = {"images": stack.image, "brains": stack.brain, "lesions": lesion}
                stored.append({
                    "subject": case.subject, "session": case.session, "split": case.split, "site": case.site,
                    "flags": list(case.flags), "start": start, "slices": [int(s) for s in stack.slices],
                    "lesion_voxels": lesion.sum(axis=(1, 2)).tolist(), "brain_voxels": stack.brain.sum(axis=(1, 2)).tolist(),
                    "masked": stack.lesion is not None,
                    "digests": {name: writers[name].append(block) for name, block in blocks.items()},
                })  # fmt: skip
                start += len(stack.slices)
            progress.update(f"prepare {dataset.info.name} {modality}", done, len(cases))
        if shape is None:
            raise UserError(
                f"No usable slice of {modality} in {dataset.root or dataset.info.name}: {'; '.join(remarks[:5])}."
            )
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            with suppress(OSError):  # a full disk: the first error is the one to report
                writer.file.close()
    files = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        state = path.stat()
        files[path.name] = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": digest_file(path)}
    write_json(
        folder / MANIFEST,
        {
            "store_version": STORE_VERSION,
            "dataset": dataset.info.name,
            "licence": dataset.info.licence,
            "modality": modality,
            "recipe": dataset.recipe(),
            "shape": list(shape),
            "rows": start,
            "cases": stored,
            "cases_digest": digest(stored),
            "sources": [{"file": str(file), "bytes": file.stat().st_size} for case in cases for file in case.files],
            "remarks": remarks,
            "files": files,
        },
    )
