"""Synthetic lesions: where they may be, how large they are, and that only the seed and the slice decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from adbench.datasets.synthetic_lesions import KINDS, SMALLEST, Kind, SyntheticLesionParams, _Blob, _foreign, insert
from adbench.errors import UserError
from adbench.params import build

SIZE = 64


def slices(count: int = 8, subjects: int = 4) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int]]]:
    """Ellipses of smooth tissue with noise, ``count`` of them from ``subjects`` subjects."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    images, brains = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        brain = (rows / rng.uniform(0.36, 0.44)) ** 2 + (columns / rng.uniform(0.36, 0.44)) ** 2 < 1
        tissue = 0.5 + 0.15 * np.sin(25 * rows + rng.normal()) * np.cos(20 * columns + rng.normal())
        images.append(np.where(brain, tissue + rng.normal(0, 0.02, brain.shape), 0))
        brains.append(brain)
    ids = [(f"s{number % subjects}", number) for number in range(count)]
    return np.stack(images).astype(np.float16), np.stack(brains), ids


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
    lesions=st.integers(1, 3),
    smallest=st.floats(0.002, 0.05),
    largest=st.floats(0.05, 0.5),
)
def test_lesions_lie_in_the_brain_and_nothing_else_changes(
    kind: Kind, seed: int, lesions: int, smallest: float, largest: float
) -> None:
    images, brains, ids = slices(4, 2)
    params = SyntheticLesionParams(kinds=(kind,), seed=seed, lesions=lesions, smallest=smallest, largest=largest)
    made = insert(images, brains, ids, params)
    assert not (made.lesions & ~brains).any()
    assert (made.images[~made.lesions] == images[~made.lesions]).all()
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert np.isfinite(made.images).all()
    for index, brain in enumerate(brains):
        area, count = int(made.lesions[index].sum()), len(made.kinds[index])
        assert 1 <= count <= lesions
        assert area <= max(SMALLEST, largest * brain.sum() + 1) * count
        assert area >= SMALLEST
        if count == 1:
            assert area >= smallest * brain.sum() - 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows(kind: Kind) -> None:
    images, brains, ids = slices()
    made = insert(images, brains, ids, SyntheticLesionParams(kinds=(kind,), smallest=0.03, largest=0.05))
    for before, after, lesion in zip(images, made.images, made.lesions, strict=True):
        change = (after - before)[lesion]
        assert np.abs(change).mean() > 0.02
        if kind == "bright":
            assert change.min() >= 0
        if kind == "dark":
            assert change.max() <= 0


def test_the_seed_and_the_slice_decide() -> None:
    images, brains, ids = slices()
    params = SyntheticLesionParams()
    once, again = insert(images, brains, ids, params), insert(images, brains, ids, params)
    assert (once.images == again.images).all()
    assert (once.lesions == again.lesions).all()
    turned = insert(images[::-1], brains[::-1], ids[::-1], params)
    assert (turned.images == once.images[::-1]).all()
    # Which other slices there are decides the donor of foreign tissue and nothing else.
    part = insert(images[:3], brains[:3], ids[:3], params)
    assert (part.lesions == once.lesions[:3]).all()
    assert part.kinds == once.kinds[:3]
    own = [index for index, kinds in enumerate(part.kinds) if "foreign" not in kinds]
    assert (part.images[own] == once.images[own]).all()
    other = insert(images, brains, ids, SyntheticLesionParams(seed=1))
    assert (other.lesions != once.lesions).any(axis=(1, 2)).all()


def test_areas_are_log_uniform() -> None:
    images, brains, _ = slices(1)
    count = 400
    ids = [("s", number) for number in range(count)]
    params = SyntheticLesionParams(kinds=("bright",), smallest=0.01, largest=0.16)
    made = insert(np.repeat(images, count, 0), np.repeat(brains, count, 0), ids, params)
    shares = made.lesions.sum(axis=(1, 2)) / brains[0].sum()
    # A quarter of the areas in each doubling.
    found = np.histogram(np.log2(shares / 0.01), bins=[-0.1, 1, 2, 3, 4.1])[0] / count
    assert found == pytest.approx([0.25] * 4, abs=0.07)


def test_a_share_of_the_slices_stays_healthy() -> None:
    images, brains, _ = slices(1)
    count = 300
    ids = [("s", number) for number in range(count)]
    made = insert(
        np.repeat(images, count, 0), np.repeat(brains, count, 0), ids, SyntheticLesionParams(kinds=("dark",), share=0.3)
    )
    ill = made.lesions.any(axis=(1, 2))
    assert ill.mean() == pytest.approx(0.3, abs=0.08)
    assert [bool(kinds) for kinds in made.kinds] == ill.tolist()


def test_all_kinds_are_drawn() -> None:
    images, brains, ids = slices(40, 4)
    made = insert(images, brains, ids, SyntheticLesionParams())
    assert {kind for kinds in made.kinds for kind in kinds} == set(KINDS)


def test_foreign_tissue_solves_poissons_equation() -> None:
    images, brains, _ = slices(2)
    image, brain = images[0].astype(np.float32), brains[0]
    mask = np.zeros_like(brain)
    mask[28:36, 24:40] = True
    rows, columns = np.nonzero(mask)
    middle = np.array([32, 32])
    blob = _Blob(middle, mask, np.stack([rows, columns]) - middle[:, None], np.zeros(len(rows)))
    # A donor that can only be taken from its own place, so the guiding gradients are known.
    donor, covered = images[1].astype(np.float32), np.zeros_like(brain)
    covered[32, 32] = True
    donor[32, 32] += 0.2
    result = image.astype(np.float64)
    result[mask] = _foreign(image, brain, blob, (donor, covered), np.random.default_rng(0))
    guide = image.astype(np.float64)
    guide[32, 32] = donor[32, 32]
    # The discrete Laplacian of the result is the guide's in the blob; around it the slice is as it was.
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    found, wanted = (ndimage.convolve(picture, laplacian) for picture in (result, guide))
    assert found[mask] == pytest.approx(wanted[mask], abs=1e-5)
    assert np.abs(result - image).max() > 0.05


def test_a_lone_subject_and_a_tiny_brain_are_no_problem() -> None:
    images, brains, _ = slices(1)
    made = insert(images, brains, [("only", 3)], SyntheticLesionParams(kinds=("foreign",)))
    assert made.lesions.any()
    tiny = np.zeros_like(brains)
    tiny[0, 10:13, 10:13] = True
    untouched = insert(images * tiny, tiny, [("tiny", 0)], SyntheticLesionParams())
    assert not untouched.lesions.any()
    assert (untouched.images == images * tiny).all()


def test_parameters_are_checked() -> None:
    with pytest.raises(UserError, match="smallest may not exceed largest"):
        build(SyntheticLesionParams, "pseudo lesions", {"smallest": 0.2, "largest": 0.1})
    with pytest.raises(UserError, match="Did you mean 'kinds'"):
        build(SyntheticLesionParams, "pseudo lesions", {"kind": ["bright"]})
