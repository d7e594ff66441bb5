"""Grey PNG images and masks, read the same way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class PNGError(UserError):
    """A file that is not what it should be; ``code`` is that of the finding."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[PNGError], tuple[str, str]]:
        return type(self), (self.code, str(self))  # it may come back from a worker process


def _open(path: Path) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(path, formats=["PNG"])
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> PNGError:
    what = "it is empty" if path.exists() and not path.stat().st_size else f"{type(error).__name__}: {error}"
    return PNGError("unreadable", f"{path} cannot be read as a PNG image ({what}). Replace or remove the file.")


def shape(path: Path) -> tuple[int, int]:
    """(H, W) by the header alone.

    Raises:
        PNGError: unreadable.
    """
    with _open(path) as image:
        return image.height, image.width


def _pixels(path: Path) -> np.ndarray:
    """(H, W) of the stored type; colour images whose channels are equal count as grey."""
    with _open(path) as image:
        try:
            image.load()
            if image.mode in ("RGB", "RGBA", "P", "LA", "PA"):
                colour = np.asarray(image.convert("RGB"))
                if (colour != colour[..., :1]).any():
                    raise PNGError("dtype", f"{path} is a colour image, expected grey: save it as 8-bit greyscale.")
                return colour[..., 0]
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from None


def read_image(path: Path) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the stored grey values over the largest of their type.

    Raises:
        PNGError: unreadable, or colour.
    """
    pixels = _pixels(path)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535)


def read_mask(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool of a mask with two values, 0 and one other.

    Args:
        path: of the mask.
        image: its image, for messages.
        shape: (H, W) of the image.

    Raises:
        PNGError: unreadable, another shape, or other values.
    """
    mask = _pixels(path)
    if mask.shape != shape:
        raise PNGError(
            "off-grid",
            f"{path} is {mask.shape[0]}x{mask.shape[1]} and its image {image.name} is {shape[0]}x{shape[1]} "
            f"(height x width): masks must lie on the image's grid.",
        )
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(map(str, values[:6].tolist())) + (" ..." if len(values) > 6 else "")
        raise PNGError(
            "label",
            f"{path} holds the values {shown}: a mask has two, 0 and one other. Was it resized without nearest neighbour, or "
            "does it hold several classes? Write it again with 0 and 255.",
        )
    return mask > 0
