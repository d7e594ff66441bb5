"""Grey PNG images and masks, read the same way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench.datasets.io.archive import FileError

if TYPE_CHECKING:
    from PIL import Image


def read_shape(path: Path) -> tuple[int, int]:
    """(H, W) by the header alone.

    Raises:
        FileError: unreadable.
    """
    image = _open(path, pixels=False)
    return image.height, image.width


def read_stored(path: Path) -> np.ndarray:
    """(H, W) int64 of a grey image as it is stored; of an image with a palette its indices.

    Raises:
        FileError: unreadable, or colour.
    """
    values = np.asarray(_open(path))
    if values.ndim != 2:
        raise FileError("dtype", f"{path} has shape {values.shape}: give a grey image, not a coloured one.")
    return values.astype(np.int64)


def used_bits(path: Path) -> int:
    """Bits that the values of a 16-bit image take; 0 for an image of 8 bits, by its header alone.

    Raises:
        FileError: unreadable.
    """
    if not _open(path, pixels=False).mode.startswith("I"):
        return 0
    return int(_grey(path).max()).bit_length()


def read_image(path: Path, white: int = 65535) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the stored grey values over the largest of their type.

    Args:
        path: of the image.
        white: value of a 16-bit image that becomes 1.

    Raises:
        FileError: unreadable, or colour.
    """
    pixels = _grey(path)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else white)


def read_mask(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool of a mask with two values, 0 and one other.

    Args:
        path: of the mask.
        image: its image, for messages.
        shape: (H, W) of the image.

    Raises:
        FileError: unreadable, another shape, or other values.
    """
    mask = _grey(path)
    if mask.shape != shape:
        raise FileError(
            "off-grid",
            f"{path} is {mask.shape[0]}x{mask.shape[1]} and its image {image.name} is {shape[0]}x{shape[1]} "
            f"(height x width): masks must lie on the image's grid.",
        )
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(map(str, values[:6].tolist())) + (" ..." if len(values) > 6 else "")
        raise FileError(
            "label",
            f"{path} holds the values {shown}: a mask has two, 0 and one other. Was it resized without nearest neighbour, or "
            "does it hold several classes? Write it again with 0 and 255.",
        )
    return mask > 0


def _grey(path: Path) -> np.ndarray:
    """(H, W) of the stored type; colour images whose channels are equal count as grey."""
    image = _open(path)
    if image.mode not in ("RGB", "RGBA", "P", "LA", "PA"):
        return np.asarray(image)
    colour = np.asarray(image.convert("RGB"))
    if (colour != colour[..., :1]).any():
        raise FileError("dtype", f"{path} is a colour image, expected grey: save it as 8-bit greyscale.")
    return colour[..., 0]


def _open(path: Path, *, pixels: bool = True) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if pixels:
                image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        what = "it is empty" if path.exists() and not path.stat().st_size else f"{type(error).__name__}: {error}"
        message = f"{path} cannot be read as a PNG image ({what}). Replace or remove the file."
        raise FileError("unreadable", message) from None
