"""The tensors in a file written by ``torch.save``, read without executing anything that the file says.

A pickle is a program: it names functions and calls them. Here every name is looked up in a fixed table. Rebuilding a tensor
gives a note of where its numbers lie; classes of networks become inert stand-ins that only hold what they are given; any
other name is refused. No module that the file names is ever imported. Both layouts are read: the zip archive that torch has
written since 1.6, and the older sequence of pickles.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from adbench.errors import UserError

if TYPE_CHECKING:
    import torch

MAGIC = 0x1950A86A20F9469CFC6C  # opens the older layout
PARTS = 100_000  # of a pickled module
PREFIXES = ("diffusers.", "torch.nn.")  # packages whose classes become stand-ins
DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Refused(Exception):
    """The file holds something that is not read; the message says what."""


class Inert(dict[Any, Any]):
    """Stands for an object of a class that is not imported: holds its items and its state, and does nothing.

    Attributes:
        named: the class, as the file names it.
        state: the attributes of the object, where it has any.
    """

    named = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


@dataclass
class Storage:
    """A run of numbers; ``data`` is filled in when it is read."""

    dtype: str
    count: int
    data: bytes | None = None


@dataclass(frozen=True)
class Kind:
    """A storage class of torch, by the type of its numbers."""

    dtype: str


@dataclass(frozen=True)
class View:
    """A tensor: where it lies in its storage, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            Refused: it does not lie within its storage.
        """
        import torch

        ends = [(side - 1) * step for side, step in zip(self.size, self.stride, strict=True)]
        whole = all(isinstance(n, int) and n >= 0 for n in (self.offset, *self.size, *self.stride))
        empty = 0 in self.size
        if not whole or (not empty and max(self.offset + sum(ends) + 1, math.prod(self.size)) > self.storage.count):
            raise Refused(f"a tensor of size {list(self.size)} reaches beyond its data")
        dtype = getattr(torch, self.storage.dtype)
        if empty or self.storage.data is None:
            return torch.zeros(self.size, dtype=dtype)
        numbers = torch.frombuffer(bytearray(self.storage.data), dtype=dtype)
        return numbers.as_strided(self.size, self.stride, self.offset).clone()


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> View:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("a tensor is not described as torch describes one")
    if len(size) != len(stride):
        raise Refused("a tensor has as many sizes as strides in no file of torch")
    return View(storage, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    **{("torch", name): Kind(dtype) for name, dtype in DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Reads one pickle; ``storage`` gives the storage with a key."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, str, int], Storage]) -> None:
        super().__init__(file)
        self._storage = storage
        self._classes: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if f"{module}.".startswith(PREFIXES):
            made = self._classes.get((module, name))
            if made is None:
                made = self._classes[module, name] = type("Inert", (Inert,), {"named": f"{module}.{name}"})
            return made
        raise Refused(f"it asks for {module}.{name}, which no file of network weights needs")

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":  # older layout: a class and its source text
            return pid[1]
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], Kind)):
            raise Refused("it refers to data in a way that torch does not")
        if len(pid) > 5 and pid[5] is not None:
            raise Refused("its tensors share storage as only torch before 0.4 wrote them")
        _, kind, key, _, count = pid[:5]
        if not isinstance(count, int) or count < 0:
            raise Refused(f"it says that a storage holds {count!r} numbers")
        return self._storage(str(key), kind.dtype, count)


def _width(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        tops = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(tops) != 1:
            raise Refused("it is a zip archive, but not one that torch wrote")
        top = tops[0]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Refused("its entries are compressed, which torch never does")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise Refused("its numbers are big-endian")
        held: dict[str, Storage] = {}

        def storage(key: str, dtype: str, count: int) -> Storage:
            if key not in held:
                entry = entries.get(f"{top}data/{key}")
                if entry is None or entry.file_size != count * _width(dtype):
                    raise Refused(f"storage {key} is missing or has another size than stated")
                held[key] = Storage(dtype, count, archive.read(entry))
            return held[key]

        with archive.open(f"{top}data.pkl") as file:
            return _Reader(file, storage).load()  # type: ignore[arg-type]


def _read_sequence(path: Path) -> Any:
    held: dict[str, Storage] = {}

    def storage(key: str, dtype: str, count: int) -> Storage:
        return held.setdefault(key, Storage(dtype, count))

    with open(path, "rb") as file:

        def following() -> Any:
            return _Reader(file, storage).load()

        if following() != MAGIC:
            raise Refused("it was not written by torch.save")
        _version, system = following(), following()
        if not isinstance(system, dict) or not system.get("little_endian", True):
            raise Refused("its numbers are big-endian")
        content = following()
        for key in following():
            (count,) = struct.unpack("<q", file.read(8))
            found = held.get(str(key))
            if found is None or found.count != count:
                raise Refused(f"storage {key} has another size than stated")
            found.data = file.read(count * _width(found.dtype))
            if len(found.data) != count * _width(found.dtype):
                raise EOFError
    return content


def _walk(node: Any, left: Iterator[int], prefix: str = "") -> Iterator[tuple[str, View]]:
    """Tensors of a pickled module (parameters, buffers, then its parts) or of a mapping of names to tensors.

    ``left`` counts the parts that may still be visited: a few nodes that refer to each other could stand for endless ones.
    """
    if next(left, None) is None:
        raise Refused(f"it has more than {PARTS} parts")
    if isinstance(node, Inert) and "_modules" in node.state:
        for part in ("_parameters", "_buffers"):
            for name, value in dict(node.state.get(part) or {}).items():
                if isinstance(value, View):
                    yield f"{prefix}{name}", value
        for name, child in dict(node.state["_modules"]).items():
            yield from _walk(child, left, f"{prefix}{name}.")
    elif isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, View):
                yield f"{prefix}{name}", value


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        tensors: by name, as in a state dict.
        config: the configuration stored in a pickled diffusers model; empty when there is none.
        named: the class of a pickled module, as the file names it; "" for a plain state dict.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    named: str


def read(path: Path) -> Contents:
    """The tensors in ``path``, a module or a state dict written by ``torch.save``.

    Raises:
        UserError: not there, damaged, holding anything but weights, or without a tensor.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_sequence(path)
        tensors = {name: view.tensor() for name, view in _walk(content, iter(range(PARTS)))}
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file written by torch.save.") from None
    except Refused as error:
        raise UserError(f"{path} is refused: {error}. Nothing in it was executed.") from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        struct.error,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
        NotImplementedError,
        RecursionError,
        MemoryError,
    ) as error:  # fmt: skip - what a damaged pickle or archive raises
        raise UserError(
            f"{path} cannot be read as a file of torch.save ({type(error).__name__}): it is damaged, cut short or something else."
        ) from None
    if not tensors:
        raise UserError(f"{path} holds no tensor of a module or state dict.")
    state = content.state if isinstance(content, Inert) else {}
    config = state.get("_internal_dict")
    named = content.named if isinstance(content, Inert) else ""
    return Contents(tensors, dict(config) if isinstance(config, dict) else {}, named)
