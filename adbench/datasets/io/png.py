"""Grey PNG images and masks, read the same way everywhere."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench.datasets.io.archive import FileError, read_bytes
from adbench.utils import limits

if TYPE_CHECKING:
    from PIL import Image


_SIGNATURE, _HEADER = b"\x89PNG\r\n\x1a\n", 24  # bytes up to the height, which the format puts first
_AROUND = 1 << 20  # bytes beside the pixels: profiles, texts
_REPLACE = "Replace or remove the file."


def read_shape(path: Path) -> tuple[int, int]:
    """(H, W) by the header alone.

    Raises:
        FileError: missing, no PNG image, or larger than :data:`adbench.utils.limits.IMAGE_PIXELS`.
    """
    first = read_bytes(path, 0, _HEADER)
    if len(first) < _HEADER or not first.startswith(_SIGNATURE) or first[12:16] != b"IHDR":
        what = f"it begins with {first[:8]!r}" if first else "it is empty"
        raise FileError("unreadable", f"{path} cannot be read as a PNG image ({what}). {_REPLACE}")
    width, height = struct.unpack(">II", first[16:])
    if problem := limits.exceeded(path, f"is {height}x{width}, which makes", height * width, limits.IMAGE_PIXELS):
        raise FileError("too-large", problem)
    most = 8 * height * width + _AROUND  # 16 bits of four colours, without compression
    if (size := path.stat().st_size) > most:
        raise FileError(
            "too-large",
            f"{path} has {size} bytes for {height}x{width} pixels, where at most {most} are read. {_REPLACE}",
        )
    return height, width


def read_stored(path: Path) -> np.ndarray:
    """(H, W) whole numbers of a grey image as they are stored, of their type; of an image with a palette its indices.

    Raises:
        FileError: unreadable, or colour.
    """
    values = np.asarray(_open(path))
    if values.ndim != 2:
        raise FileError("dtype", f"{path} has shape {values.shape}: give a grey image, not a coloured one.")
    return values.view(np.uint8) if values.dtype == np.bool_ else values


def largest_of_16_bits(path: Path) -> int:
    """The largest value of a 16-bit image; 0 for an image of 8 bits, by its header alone.

    Raises:
        FileError: unreadable.
    """
    if read_bytes(path, _HEADER, 2) != b"\x10\x00":  # bits a sample, grey
        return 0
    return int(_grey(path).max())


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


def _open(path: Path) -> Image.Image:
    from PIL import Image

    read_shape(path)  # before anything is decoded
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # the checksums, which load() does not look at
        with Image.open(path, formats=["PNG"]) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise FileError(
                    "axes", f"{path} is an animated PNG of {frames} images: save each as a file of its own."
                )
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what = f"{type(error).__name__}: {error}"
        raise FileError("unreadable", f"{path} cannot be read as a PNG image ({what}). {_REPLACE}") from None
