"""The common square grid of a dataset: pad to a square, resize images and masks, find what a resize lost."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MULTIPLE = 32  # a network that halves the grid five times fits every side


def square_side(shapes: Iterable[tuple[int, int]], multiple: int = 1) -> int:
    """The side of the smallest square that holds every shape, and a pixel, and is a multiple of ``multiple``, in px."""
    largest = max(map(max, shapes), default=1)
    return -(-largest // multiple) * multiple


def pad_square(stack: np.ndarray, side: int) -> np.ndarray:
    """Centre each slice in a square of zeros.

    Args:
        stack: (..., H, W), any type.
        side: of the square, px; at least ``max(H, W)``.

    Returns:
        (..., side, side) of the same type. An odd margin has its extra pixel at the end.

    Raises:
        ValueError: ``side`` is too small.
    """
    height, width = stack.shape[-2:]
    if max(height, width) > side:
        raise ValueError(f"slices of {height}x{width} do not fit a square of {side}")
    top, left = (side - height) // 2, (side - width) // 2
    margins = [(0, 0)] * (stack.ndim - 2) + [(top, side - height - top), (left, side - width - left)]
    return np.pad(stack, margins)


def resize_image(stack: np.ndarray, side: int) -> np.ndarray:
    """Resize slices to squares: bilinear, with anti-aliasing when they shrink.

    Args:
        stack: (S, H, W) float.
        side: new side, px.

    Returns:
        (S, side, side) float32, within the range of the input.
    """
    from PIL import Image

    stack = np.asarray(stack, np.float32)
    if stack.shape[-2:] == (side, side):
        return stack
    if not len(stack):
        return np.empty((0, side, side), np.float32)
    resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in stack]
    return np.stack([np.asarray(image, np.float32) for image in resized])


def resize_mask(stack: np.ndarray, side: int) -> np.ndarray:
    """Resize masks to squares by nearest neighbour: never a value that was not there.

    Args:
        stack: (S, H, W), any type.
        side: new side, px.

    Returns:
        (S, side, side) of the same type. A region smaller than the sampling step can vanish: see :func:`lost`.
    """
    if stack.shape[-2:] == (side, side):
        return stack
    rows, columns = (((np.arange(side) + 0.5) * size / side).astype(np.int64) for size in stack.shape[-2:])
    return stack[:, rows[:, None], columns[None, :]]


def lost(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Positions of the slices whose mask held something before and holds nothing after.

    Args:
        before: (S, ...) bool.
        after: (S, ...) bool.
    """
    had, has = (stack.any(axis=tuple(range(1, stack.ndim))) for stack in (before, after))
    return np.flatnonzero(had & ~has)
