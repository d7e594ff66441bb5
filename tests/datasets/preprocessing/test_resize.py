"""Pad and resize: nothing of an image or a mask is moved, invented or silently lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adbench.datasets.preprocessing import resize

sides = st.integers(1, 40)
masks = st.tuples(st.integers(0, 3), sides, sides).flatmap(lambda shape: hnp.arrays(np.bool_, shape))


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=5), st.sampled_from([1, 8, 32]))
def test_square_side_is_the_smallest_multiple_that_holds_every_shape(shapes, multiple):
    side = resize.square_side(shapes, multiple)
    largest = max(max(shape) for shape in shapes)
    assert side % multiple == 0
    assert largest <= side < largest + multiple


def test_square_side_of_the_grids_named_in_the_docs():
    assert resize.square_side([(189, 157)], resize.MULTIPLE) == 192
    assert resize.square_side([(240, 240)], resize.MULTIPLE) == 256
    assert resize.square_side([(128, 123)], resize.MULTIPLE) == 128


@given(masks, st.integers(0, 20))
def test_padding_keeps_the_content_in_the_middle(mask, extra):
    side = max(mask.shape[1:]) + extra
    padded = resize.pad_square(mask, side)
    assert padded.shape == (len(mask), side, side)
    assert padded.dtype == mask.dtype
    assert padded.sum() == mask.sum()
    height, width = mask.shape[1:]
    top, left = (side - height) // 2, (side - width) // 2
    np.testing.assert_array_equal(padded[:, top : top + height, left : left + width], mask)


def test_padding_refuses_a_square_that_is_too_small():
    with pytest.raises(ValueError, match="12x10 do not fit a square of 11"):
        resize.pad_square(np.zeros((1, 12, 10)), 11)


@given(st.integers(0, 3), sides, st.integers(1, 80), st.randoms(use_true_random=False))
def test_mask_resize_only_copies_values_from_the_right_place(count, side, new, random):
    mask = np.random.default_rng(random.randint(0, 2**31)).random((count, side, side)) < 0.3
    resized = resize.resize_mask(mask, new)
    assert resized.shape == (count, new, new)
    assert resized.dtype == np.bool_
    if new % side == 0:  # enlarged by a whole number: every pixel becomes a block
        np.testing.assert_array_equal(resized, mask.repeat(new // side, 1).repeat(new // side, 2))
    if side % new == 0 and (side // new) % 2 == 1:  # shrunk by an odd number: the centre of every block
        step = side // new
        np.testing.assert_array_equal(resized, mask[:, step // 2 :: step, step // 2 :: step])
    for i in range(count):
        if not mask[i].any():
            assert not resized[i].any()
        if mask[i].all():
            assert resized[i].all()


@given(st.integers(2, 40), st.integers(1, 60))
def test_nothing_is_lost_without_being_reported(side, new):
    mask = np.eye(side, dtype=bool)[:, :, None] & np.eye(side, dtype=bool)[:, None, :]  # one pixel a slice
    resized = resize.resize_mask(mask, new)
    gone = set(resize.lost(mask, resized).tolist())
    assert gone == {i for i in range(side) if not resized[i].any()}
    if new >= side:
        assert not gone


@given(st.integers(2, 40), st.integers(2, 60))
def test_image_resize_stays_in_range_and_keeps_constants(side, new):
    rng = np.random.default_rng(side * 100 + new)
    stack = rng.random((2, side, side)).astype(np.float32)
    resized = resize.resize_image(stack, new)
    assert resized.shape == (2, new, new)
    assert resized.dtype == np.float32
    assert resized.min() >= stack.min() - 1e-6
    assert resized.max() <= stack.max() + 1e-6
    np.testing.assert_allclose(resize.resize_image(np.full((1, side, side), 0.3), new), 0.3, atol=1e-6)


def test_shrinking_is_anti_aliased():
    checkers = (np.indices((64, 64)).sum(0) % 2).astype(np.float32)[None]
    inner = resize.resize_image(checkers, 16)[0, 2:-2, 2:-2]
    np.testing.assert_allclose(inner, 0.5, atol=0.02)


def test_an_empty_stack_has_the_new_shape():
    assert resize.resize_image(np.empty((0, 8, 8)), 4).shape == (0, 4, 4)
    assert resize.resize_mask(np.empty((0, 8, 8), bool), 4).shape == (0, 4, 4)
