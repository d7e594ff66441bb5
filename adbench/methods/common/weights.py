"""The one reader of weights that somebody else made, within the limits of :mod:`adbench.utils.limits`; it imports torch."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import torch

from adbench.errors import UserError
from adbench.utils import limits


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors in ``path`` by name, and the modality that they were made for ("": it does not say).

    Args:
        path: a .safetensors file, or what ``torch.save`` wrote of a state_dict; only the former may say its modality.

    Raises:
        UserError: unreadable, too large, or something else than a tensor a name.
    """
    from safetensors import safe_open

    made_for = ""
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(one.file_size for one in archive.infolist())
        limits.check(path, "holds weights of", size, limits.WEIGHTS_BYTES)
        found: Any
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in list(file.keys())}
                made_for = (file.metadata() or {}).get("modality", "")
        else:
            _check_pickles(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its damage makes
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {first}): give a .safetensors file, or a .pth file that "
            "torch.save wrote of a state_dict."
        ) from None
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(k, str) and _plain(v) for k, v in found.items()):
        raise UserError(
            f"{path} does not hold a state_dict (a tensor a name): save one, torch.save(network.state_dict(), PATH)."
        )
    # A tensor may say that it is larger than what is stored of it.
    limits.check(
        path, "says that it holds", sum(v.numel() * v.element_size() for v in found.values()), limits.WEIGHTS_BYTES
    )
    return found, made_for


def _check_pickles(path: Path) -> None:
    """Refuse a file of ``torch.save`` whose names and shapes are more than a network has, before anything of it is built.

    torch builds nothing but tensors, but as many lists as it is told to, and a ``bytearray`` of any size.

    Raises:
        UserError: too long.
        ValueError: it makes something else than a state_dict.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            named = [one for one in archive.infolist() if one.filename.endswith("data.pkl")]
            limits.check(
                path, "holds a pickle of", max((one.file_size for one in named), default=0), limits.PICKLE_BYTES
            )
            parts = [(io.BytesIO(archive.read(one)), 1) for one in named]
    else:  # of before 2020: magic number, version, system, state_dict, keys of what follows
        with path.open("rb") as file:
            parts = [(io.BytesIO(file.read(limits.PICKLE_BYTES)), 5)]
    for data, count in parts:
        strings: deque[str] = deque(maxlen=2)
        for _ in range(count):
            for code, argument, _ in pickletools.genops(data):
                if isinstance(argument, str):
                    strings.append(argument)
                made = argument if code.name == "GLOBAL" else " ".join(strings) if code.name == "STACK_GLOBAL" else ""
                if made and made.partition(" ")[0] not in ("collections", "torch", "torch._utils"):
                    raise ValueError(f"it makes a {made}")


def _plain(value: Any) -> bool:
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
    return dense and not value.is_complex() and value.device.type == "cpu"
