"""The file of one prepared case: how it is prepared, checked, named, written and found again.

A case file is named by two hashes, of what is known of its sources without reading them and of their bytes, and lies in a
folder named by a hash of the recipe. It is written
under another name and renamed when it is whole. So an interrupted preparation goes on by finding the files that exist, and
stores of the same recipe share them. After the pixels (:mod:`adbench.datasets.pixels`) come what is known of the
case as JSON, and length and CRC-32 of the JSON as 4 bytes each, the lowest first; a CRC of 0, which earlier versions
wrote, is not compared.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.datasets.base import Case, Dataset, Stack
from adbench.datasets.io.archive import File, Member, digest_of, state_of
from adbench.datasets.pixels import ARRAYS, PREPARE_AGAIN, checksum, digest_block
from adbench.datasets.store import similarity
from adbench.errors import UserError, text_of, trace_of
from adbench.utils import threads
from adbench.utils.files import replacing
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore

SUFFIX = ".case"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # a disk that takes nothing more
_ENDING = struct.Struct("<II")  # length and CRC-32 of the JSON


Task = Sequence[tuple[str, Case, Path]]  # one case: modality, the case as it is for that modality, folder of its file


@dataclass(frozen=True)
class Prepared:
    """The outcome of preparing one case in one modality.

    Attributes:
        file: name of the case file.
        written: bytes that were written; 0 when the file was there.
        record: what the file says of the case: ``slices``, ``shape`` (S, H, W), ``remarks``, ``labels`` where the dataset
            chooses among them and, with slices, what the manifest says of it and its fingerprint.
        sources: name, state (:func:`adbench.datasets.io.archive.state_of`) and SHA-256 of every source file.
        problem: why it failed, one sentence; "" when it did not.
        trace: of the failure.
    """

    modality: str
    case: Case
    file: str = ""
    written: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    trace: str = ""


def run(dataset: Dataset, task: Task) -> list[Prepared]:
    """Prepare one case. A failure is an answer, not an exception, unless it would meet every other case too.

    One thread computes: sums of several end in other digits, and two machines would prepare different bytes.

    Raises:
        OSError: the disk is full or not writable.
    """
    done: list[Prepared] = []
    known: dict[File, dict[str, Any]] = {}  # a mask that all sequences share is hashed once
    for modality, case, folder in task:
        try:
            with threads.limited(1, load_torch=False):
                done.append(_prepare(dataset, modality, case, folder, known))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {text_of(error)}"
            if isinstance(error, MemoryError):
                problem = "out of memory; prepare fewer cases at a time with --workers 1"
            if case.id not in problem:
                problem = f"case {case.id}: {problem}"
            done.append(Prepared(modality, case, problem=problem, trace=trace_of(error)))
    return done


def _prepare(dataset: Dataset, modality: str, case: Case, folder: Path, known: dict[File, dict[str, Any]]) -> Prepared:
    for file in case.files:
        if file not in known:
            known[file] = {"file": str(file), **state_of(file), "sha256": digest_of(file)}
    sources = [known[file] for file in case.files]
    path = folder / f"{start_of_name(case)}{digest([source['sha256'] for source in sources])[:20]}{SUFFIX}"
    record = read_case(path)
    if record is not None:
        with suppress(OSError):
            os.utime(path)  # it is in use: not to be removed
        return Prepared(modality, case, path.name, 0, record, sources)
    stack = dataset.load(case, modality)
    check_stack(stack, case)
    written, record = _write(path, stack)
    return Prepared(modality, case, path.name, written, record, sources)


def start_of_name(case: Case) -> str:
    """How the name of a case's file begins; known without reading the sources.

    With the recipe and the bytes of the sources, it covers everything that shapes the pixels and remarks. A split, a site
    or the place of the data does not.
    """
    files = [[file.name, state_of(file)["bytes"]] for file in case.files]
    return digest([case.subject, case.session, list(case.flags), _plain(case.extra, case.files), files])[:12] + "-"


def _plain(value: Any, used: Sequence[File]) -> Any:
    """``value`` as JSON, files by their names; a mapping without the files that are not ``used``."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if not isinstance(item, Path | Member) or item in used}
        return sorted([str(key), _plain(item, used)] for key, item in kept.items())
    if isinstance(value, list | tuple):
        return [_plain(item, used) for item in value]
    return value.name if isinstance(value, Path | Member) else str(value)


def check_stack(stack: Stack, case: Case) -> None:
    """Compare what a dataset gave with its contract.

    Raises:
        UserError: names the case and what is wrong.
    """
    where = f"case {case.id} ({case.files[0] if case.files else 'generated'})"
    count = len(stack.slices)
    if stack.image.ndim != 3 or stack.image.shape[0] != count:
        raise UserError(f"{where}: image stack of shape {stack.image.shape}, expected ({count}, H, W).")
    for name, mask in (("brain", stack.brain), ("lesion", stack.lesion)):
        if mask is not None and (mask.shape != stack.image.shape or mask.dtype != np.bool_):
            raise UserError(f"{where}: {name} mask {mask.shape} {mask.dtype}, expected {stack.image.shape} bool.")
    if not np.isfinite(stack.image).all():
        raise UserError(f"{where}: the image holds NaN or infinite values. Repair or remove the file.")
    if count and (stack.image.min() < 0 or stack.image.max() > 1):
        raise UserError(f"{where}: image values from {stack.image.min():g} to {stack.image.max():g}, expected [0, 1].")
    if list(stack.slices) != sorted(set(stack.slices)):
        raise UserError(f"{where}: slice indices must ascend and be unique, got {list(stack.slices)[:8]}.")
    if not np.isfinite(list(stack.quality.values())).all():
        raise UserError(f"{where}: quality figures must be finite, got {stack.quality}.")


def _write(path: Path, stack: Stack) -> tuple[int, dict[str, Any]]:
    """Write a case file.

    Returns:
        Its size in bytes, and what it says of the case.
    """
    lesion = np.zeros_like(stack.brain) if stack.lesion is None else stack.lesion
    arrays = {"images": stack.image, "brains": stack.brain, "lesions": lesion}
    blocks = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in ARRAYS.items()}
    slices = [int(index) for index in stack.slices]
    geometry = None if stack.geometry is None else stack.geometry.to_json()
    record: dict[str, Any] = {"slices": slices, "shape": list(blocks["images"].shape), "remarks": list(stack.remarks)}
    if stack.labels is not None:
        record["labels"] = list(stack.labels)
    if slices:
        record["manifest"] = {
            "slices": slices,
            "lesion_voxels": lesion.sum(axis=(1, 2)).tolist(),
            "brain_voxels": stack.brain.sum(axis=(1, 2)).tolist(),
            "masked": stack.lesion is not None,
            "digests": {name: digest_block(block) for name, block in blocks.items()},
            "checksums": {name: checksum(block) for name, block in blocks.items()},
            "geometry": geometry,
            "quality": {name: float(value) for name, value in stack.quality.items()},
        }
        record["likeness"] = similarity.to_json(
            *similarity.of_case(blocks["images"], blocks["brains"], slices, geometry)
        )
    text = json.dumps(record, allow_nan=False).encode()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for block in blocks.values():
            file.write(block.data)
        file.write(text + ending(text))
        size = file.tell()
    return size, record


def ending(text: bytes) -> bytes:
    """Bytes that follow the JSON at the end of a case file."""
    return _ENDING.pack(len(text), zlib.crc32(text))


def read_case(path: Path) -> dict[str, Any] | None:
    """Description of a case in its file; None when the file is missing, cut off or damaged."""
    try:
        with open(path, "rb") as file:
            size = file.seek(-_ENDING.size, os.SEEK_END)
            length, crc = _ENDING.unpack(file.read(_ENDING.size))
            pixels = file.seek(size - length)
            text = file.read(length)
            record: dict[str, Any] = json.loads(text)
            voxels = math.prod(record["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if crc and crc != zlib.crc32(text):
        return None
    return record if pixels == voxels * sum(np.dtype(dtype).itemsize for dtype in ARRAYS.values()) else None


def described(store: SliceStore, index: int) -> dict[str, Any]:
    """Description of a case of ``store`` in its file.

    Raises:
        UserError: it is missing, or says something else than was written.
    """
    file = store.files[index]
    record = read_case(file)
    if record is None:
        raise UserError(
            f"{file}: what it says of case {store.cases[index].id} was changed after preparation. Delete {file}, then "
            f"{PREPARE_AGAIN} the case again."
        )
    return record


def prints(store: SliceStore, rows: np.ndarray) -> similarity.Print:
    """The fingerprints of every case that has one of ``rows``, and the hashes of those rows.

    Raises:
        UserError: a case file is damaged.
    """
    subjects, values, hashes = [], [], []
    for index, case in enumerate(store.cases):
        wanted = np.isin(case.rows, rows)
        if wanted.any():
            likeness = described(store, index)["likeness"]
            if likeness["version"] == similarity.VERSION:
                coarse, fine = similarity.from_json(likeness)
            else:
                images, brains = store.images[case.rows], store.brains[case.rows]
                coarse, fine = similarity.of_case(images, brains, case.slices, case.geometry)
            subjects.append(case.subject)
            values.append(coarse)
            hashes.append(np.where(wanted, fine, np.uint64(0)))
    return similarity.Print(subjects, np.array(values), hashes)
