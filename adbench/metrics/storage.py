"""Arrays of whole numbers in one file: a plain ``.npz`` without pickle, whose bytes depend on the arrays alone."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adbench.errors import UserError
from adbench.utils import limits
from adbench.utils.files import replacing


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write 1-D ``arrays`` to ``path`` atomically; equal arrays give equal bytes."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, 1980-01-01
            member.compress_type = zipfile.ZIP_DEFLATED
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(member, buffer.getvalue(), compresslevel=1)


def read_arrays(path: Path, kinds: Mapping[str, str], what: str) -> dict[str, np.ndarray]:
    """Read what :func:`write_arrays` wrote.

    Args:
        path: the file.
        kinds: name -> NumPy kinds of its type ("i", "u", ...), all of them needed.
        what: the file is, for messages ("histogram file").

    Raises:
        UserError: the file is missing or damaged, its arrays are larger than :data:`adbench.utils.limits.ARRAY_BYTES`, or
            one is missing, of another type or not 1-D.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            limits.check(path, "holds arrays of", unpacked, limits.ARRAY_BYTES)
            return {name: _member(archive, name, kind) for name, kind in kinds.items()}
    except FileNotFoundError:
        raise UserError(f"There is no {what} {path}.") from None
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, what, error) from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, what, error) from None


def damaged(path: Path, what: str, error: Exception) -> UserError:
    """The error for a file that is not what it should be."""
    why = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a {what}, or it is damaged: {why}. Make it again from the maps.")


def _member(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} is of .npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or dtype.kind not in kinds or len(shape) != 1:
            raise ValueError(f"{name} has type {dtype} and shape {shape}")
        body = file.read()  # not read_array, which believes the shape and takes the memory
    if len(body) != dtype.itemsize * shape[0]:
        raise ValueError(f"{name} says {shape[0]} values and holds {len(body)} bytes")
    return np.frombuffer(body, dtype)
