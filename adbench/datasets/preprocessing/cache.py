"""A cache of what is slow to make: brain masks, bias fields, registrations.

An entry is found by its step, the step's parameters and versions, and the voxels it was made from. So a change of
slicing or size costs no second extraction, T2 and PD share what was made of their T1, and an interrupted case goes on.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adbench.utils.files import replacing
from adbench.utils.hashing import digest


def array_digest(*arrays: np.ndarray) -> str:
    """SHA-256 of shapes, types and values."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.shape}{array.dtype.str}".encode())
        # The order in memory of a NIfTI volume; a view in the other order is copied.
        state.update(np.ascontiguousarray(array.T).data)
    return state.hexdigest()


def cached(folder: Path | None, what: list[Any], name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that ``what`` identifies: read from ``folder`` if it is there and whole, else made and written.

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
