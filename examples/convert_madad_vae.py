"""Convert the autoencoder that the authors of MAD-AD publish into a folder that ``madad.autoencoder`` takes.

    python examples/convert_madad_vae.py vae.pt --out madad-vae
    adbench run --method madad --set madad.autoencoder=madad-vae --set madad.ae_steps=0 --dataset phantom --preset base

The published file is a pickled diffusers ``AutoencoderKL``; the folder holds config.json and safetensors.

A pickle is a program: it names functions and calls them. Here nothing in it is executed. Every name is looked up in a
table that is made again for every file, so that no file changes how the next one is read: rebuilding a tensor gives a note of
where its numbers lie; classes of networks become inert stand-ins that only hold what they are given; any other name is
refused. No module that the file names is imported. What a file asks for is held against its size. Both layouts are read: the zip
archive that torch has written since 1.6, and the older sequence of pickles. Needs torch and diffusers, nothing else.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

MAGIC = 0x1950A86A20F9469CFC6C  # opens the older layout
PARTS = 100_000  # of a pickled module
PROGRAM = 1_500_000  # bytes of a pickle, the numbers aside
ITEMS = 1_000_000  # that all its collections are made from
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


class ConversionError(Exception):
    """The file cannot be converted; the message is one sentence for the user."""


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
        ends = [(side - 1) * step for side, step in zip(self.size, self.stride, strict=True)]
        whole = all(isinstance(n, int) and n >= 0 for n in (self.offset, *self.size, *self.stride))
        empty = 0 in self.size
        if not whole or (not empty and max(self.offset + sum(ends) + 1, math.prod(self.size)) > self.storage.count):
            raise Refused(f"a tensor of size {list(self.size)} reaches beyond its data")
        dtype = getattr(torch, self.storage.dtype)
        if empty:
            return torch.zeros(self.size, dtype=dtype)
        if self.storage.data is None:
            raise Refused(f"the data of a tensor of size {list(self.size)} is missing")
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


class _Program:
    """A file that gives at most :data:`PROGRAM` bytes, and never more at once than it holds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._left = file, size, PROGRAM

    def _taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise Refused(f"beside its numbers it has more than {PROGRAM} bytes")
        return data

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self._size:
            raise EOFError
        return self._taken(self._file.read(min(count, self._left + 1)))

    def readline(self, count: int | None = -1) -> bytes:
        return self._taken(self._file.readline(self._left + 1))


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Reads one pickle; ``storage`` gives the storage with a key.

    It is the unpickler in Python: that in C makes room for as many objects as a pickle says.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[str, str, int], Storage]) -> None:
        super().__init__(file)
        self._storage = storage
        self._classes: dict[tuple[str, str], type[Inert]] = {}
        self._items = ITEMS

    def _refuse(self) -> None:
        raise Refused("it asks for room that no file of network weights needs")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _refuse}  # type: ignore[attr-defined]

    def _collection(self, kind: Callable[..., Any], items: Any = ()) -> Any:
        self._items -= len(items)
        if self._items < 0:
            raise Refused(f"its collections are made from more than {ITEMS} items")
        return kind(items)

    def find_class(self, module: str, name: str) -> Any:
        # Objects of this file alone: what a pickle is given, it may change.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *parts: _view(*parts)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda *parts: _parameter(*parts)
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *items: self._collection(OrderedDict, *items)
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return lambda *items: self._collection(set, *items)
        if module == "torch" and name in DTYPES:
            return Kind(DTYPES[name])
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
            return _Reader(_Program(file, path.stat().st_size), storage).load()  # type: ignore[arg-type]


def _read_sequence(path: Path) -> Any:
    held: dict[str, Storage] = {}

    def storage(key: str, dtype: str, count: int) -> Storage:
        return held.setdefault(key, Storage(dtype, count))

    size = path.stat().st_size
    with open(path, "rb") as file:

        def following() -> Any:
            return _Reader(_Program(file, size), storage).load()  # type: ignore[arg-type]

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
            if count * _width(found.dtype) > size - file.tell():
                raise EOFError
            found.data = file.read(count * _width(found.dtype))
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
        ConversionError: not there, damaged, holding anything but weights, or without a tensor.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_sequence(path)
        tensors, room = {}, 2 * path.stat().st_size  # parameters may share their numbers
        for name, view in _walk(content, iter(range(PARTS))):
            tensors[name] = view.tensor()
            room -= tensors[name].nbytes
            if room < 0:
                raise Refused("its tensors have more numbers than the file holds")
    except FileNotFoundError:
        raise ConversionError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise ConversionError(f"{path} is a folder; expected a file written by torch.save.") from None
    except Refused as error:
        raise ConversionError(f"{path} is refused: {error}. Nothing in it was executed.") from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
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
        raise ConversionError(
            f"{path} cannot be read as a file of torch.save ({type(error).__name__}): it is damaged, cut short or something else."
        ) from None
    if not tensors:
        raise ConversionError(f"{path} holds no tensor of a module or state dict.")
    state = content.state if isinstance(content, Inert) else {}
    config = state.get("_internal_dict")
    named = content.named if isinstance(content, Inert) else ""
    return Contents(tensors, dict(config) if isinstance(config, dict) else {}, named)


SCALE = 0.18215  # of the latents of KL-f8, where the file says nothing
GROUPS = 32
# Names that attention layers had in older versions of diffusers.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current(name: str) -> str:
    name = name.removeprefix("module.")
    parts = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{parts[1]}.{RENAMED[parts[2]]}.{parts[3]}" if parts else name


def architecture(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``: what the shapes of the tensors say, and the rest from the file's own configuration.

    Raises:
        KeyError: the tensors are not those of an ``AutoencoderKL``.
    """
    found = [re.match(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", name) for name in tensors]
    places = {(int(one[1]), int(one[2])) for one in found if one}
    levels = range(1 + max((level for level, _ in places), default=-1))
    channels = [tensors[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    groups, scale = config.get("norm_num_groups"), config.get("scaling_factor")
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": channels,
        "layers_per_block": sum(level == 0 for level, _ in places),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in tensors),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "norm_num_groups": groups if type(groups) is int and 0 < groups <= min(channels) else GROUPS,
        "act_fn": act if (act := config.get("act_fn")) in ("silu", "swish", "relu", "gelu", "mish") else "silu",
        "scaling_factor": float(scale) if type(scale) is float and math.isfinite(scale) and scale > 0 else SCALE,
    }


def convert(file: Path, out: Path) -> dict[str, Any]:
    """Write the autoencoder in ``file`` as a folder in diffusers format that ``madad.autoencoder`` takes.

    Args:
        file: a whole ``AutoencoderKL``, or its state dict, written by ``torch.save``; only its tensors are read.
        out: the folder; must not hold anything yet.

    Returns:
        What was found: the configuration, the number of parameters and of tensors.

    Raises:
        ConversionError: not such a file, damaged, asking for code to be run, or ``out`` is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"{out} is there already: name a new folder with --out.")
    contents = read(file)
    tensors = {_current(name): value for name, value in contents.tensors.items()}

    from diffusers import AutoencoderKL

    try:
        config = architecture(tensors, contents.config)
        with torch.device("meta"):
            model: Any = AutoencoderKL(**config)
        model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        what = " ".join(str(error).split())[:200]
        raise ConversionError(f"The tensors in {file} are not those of a diffusers AutoencoderKL: {what}.") from None
    if any(not bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise ConversionError(f"The tensors in {file} hold NaN or infinite numbers.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)  # safetensors and config.json
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(out),
        "config": config,
        "parameters": sum(value.numel() for value in model.parameters()),
        "tensors": len(tensors),
    }


def main() -> int:
    """Command line; 2 with one sentence on standard error when the file cannot be converted."""
    parser = argparse.ArgumentParser(
        description="Convert the published autoencoder of MAD-AD; nothing in the file is executed."
    )
    parser.add_argument("file", type=Path, help="The published file: a pickled AutoencoderKL, or its state dict.")
    parser.add_argument("--out", type=Path, required=True, help="New folder for config.json and safetensors.")
    given = parser.parse_args()
    try:
        found = convert(given.file, given.out)
    except ConversionError as error:
        print(f"convert_madad_vae: {error}", file=sys.stderr)
        return 2
    config = found["config"]
    print(
        f"{found['tensors']} tensors, {found['parameters'] / 1e6:.2f} M parameters: {config['in_channels']} channel(s) in, "
        f"{config['latent_channels']} in the latent, {2 ** (len(config['block_out_channels']) - 1)} times smaller.\n"
        f"Use it with --set madad.autoencoder={given.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
