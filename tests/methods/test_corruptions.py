"""Synthetic anomalies that networks are trained on: where they lie, their formulas, Poisson's equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from adbench.methods.common import corruptions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brains(count: int = 6, size: int = 48) -> torch.Tensor:
    brain = torch.zeros((count, 1, size, size), dtype=torch.bool)
    brain[..., 6:-6, 8:-8] = True
    return brain


def pictures(seed: int, brain: torch.Tensor) -> torch.Tensor:
    return (0.2 + 0.6 * torch.rand(brain.shape, generator=generator(seed))) * brain


def test_shapes_lie_in_the_brain_and_have_the_sizes_asked_for() -> None:
    brain = brains(200, 64)
    brain[0] = False
    shape = corruptions.shapes(brain, generator(), 8.0, 16.0)
    assert float(shape[~brain].abs().max()) == 0
    assert float(shape.min()) >= 0
    assert float(shape.max()) <= 1
    areas = shape.sum(dim=(1, 2, 3))
    assert areas[0] == 0
    assert 8.0**2 * 0.78 * 0.8 < float(areas[1:].median()) < 16.0**2
    assert float(((shape > 0) & (shape < 1)).any(dim=(1, 2, 3)).float().mean()) == pytest.approx(0.6, abs=0.12)
    assert torch.equal(shape, corruptions.shapes(brain, generator(), 8.0, 16.0))


def test_blending_is_linear_in_its_strength() -> None:
    brain = brains()
    image, foreign = pictures(1, brain), pictures(2, brain)
    shape = corruptions.shapes(brain, generator(), 10.0, 20.0)
    none, half, full = (corruptions.blend(image, foreign, shape, torch.full((6, 1, 1, 1), a)) for a in (0.0, 0.5, 1.0))
    assert torch.equal(none, image)
    assert torch.equal(corruptions.blend(image, foreign, torch.zeros_like(shape), torch.ones(6, 1, 1, 1)), image)
    torch.testing.assert_close(half, (none + full) / 2)
    torch.testing.assert_close(full[shape == 1], foreign[shape == 1])
    assert torch.equal(full[shape == 0], image[shape == 0])


def test_matching_gives_the_foreign_patch_the_range_of_the_slice() -> None:
    brain = brains()
    image, foreign = pictures(1, brain), 0.5 * pictures(2, brain)
    shape = corruptions.shapes(brain, generator(), 10.0, 20.0)
    found = corruptions.matched(image, foreign, shape)
    for own, its, where in zip(image, found, shape > 0, strict=True):
        assert float(its[where].min()) == pytest.approx(float(own[where].min()), abs=1e-5)
        assert float(its[where].max()) == pytest.approx(float(own[where].max()), abs=1e-5)
    correlation = np.corrcoef(found[shape > 0], foreign[shape > 0])[0, 1]
    assert correlation > 0.9


@pytest.mark.parametrize("change", [0.15, -0.15])
def test_bias_moves_the_inside_by_exactly_its_change(change: float) -> None:
    brain = brains()
    image = pictures(1, brain)
    where = (corruptions.shapes(brain, generator(), 10.0, 20.0) == 1).float()
    out = corruptions.shifted(image, where, torch.full((6, 1, 1, 1), change))
    torch.testing.assert_close((out - image)[where == 1], torch.full((int(where.sum()),), change), atol=1e-6, rtol=0)
    assert torch.equal(out[where == 0], image[where == 0])
    assert torch.equal(corruptions.shifted(image, where, torch.zeros(6, 1, 1, 1)), image)


def test_a_tissue_is_a_fifth_of_the_intensities() -> None:
    brain = brains(40)
    image = pictures(1, brain)
    shape = brain.float()
    where = corruptions.tissue(image, brain, shape, generator())
    assert float(where[~brain].abs().max()) == 0
    shares = (where.sum(dim=(1, 2, 3)) / brain.sum(dim=(1, 2, 3))).numpy()
    # One class or two of five; the blur takes a little of it over the edge of the brain.
    assert all(min(abs(share - 0.2), abs(share - 0.4)) < 0.03 for share in shares)
    # Two draws from five equal classes coincide in a fifth of the slices.
    assert np.mean(shares < 0.3) == pytest.approx(0.2, abs=0.15)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_poisson_blending_equals_a_sparse_solver(strength: float) -> None:
    brain = brains(2, 24)
    brain[..., :, 15:] = False  # the shape touches the edge of the brain
    image, foreign = pictures(1, brain), pictures(2, brain)
    shape = torch.zeros_like(image)
    shape[..., 8:16, 9:17] = 1
    found = corruptions.poisson(image, foreign, shape, brain, torch.full((2, 1, 1, 1), strength)).numpy()
    for own, its, known, out in zip(image.numpy(), foreign.numpy(), brain.numpy(), found, strict=True):
        own, its, known, out = own[0].astype(float), its[0].astype(float), known[0], out[0]
        inside = (shape[0, 0].numpy() > 0) & known
        number = {tuple(at): k for k, at in enumerate(np.argwhere(inside))}
        matrix, right = lil_matrix((len(number), len(number))), np.zeros(len(number))
        for (r, c), k in number.items():
            for other in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if not known[other]:
                    continue
                slopes = (1 - strength) * (own[r, c] - own[other]), strength * (its[r, c] - its[other])
                matrix[k, k] += 1
                right[k] += max(slopes, key=abs)
                if other in number:
                    matrix[k, number[other]] -= 1
                else:
                    right[k] += own[other]
        expected = np.clip(spsolve(matrix.tocsr(), right), 0, 1)
        np.testing.assert_allclose(out[inside], expected, atol=1e-4)
        np.testing.assert_array_equal(out[~inside], own[~inside].astype(np.float32))


def test_poisson_blending_at_no_strength_or_without_a_shape_leaves_the_slice() -> None:
    brain = brains()
    image, foreign = pictures(1, brain), pictures(2, brain)
    shape = corruptions.shapes(brain, generator(), 10.0, 20.0)
    assert torch.equal(corruptions.poisson(image, foreign, shape, brain, torch.zeros(6, 1, 1, 1)), image)
    assert torch.equal(corruptions.poisson(image, foreign, 0 * shape, brain, torch.ones(6, 1, 1, 1)), image)
