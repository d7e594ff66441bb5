"""Noise fields: statistics, determinism, and a NumPy simplex to compare with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adbench.methods.common import noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(field: torch.Tensor, lag: int) -> float:
    """Correlation of pixels ``lag`` px apart along a row."""
    a, b = field[..., :-lag].flatten(), field[..., lag:].flatten()
    return float((a * b).mean() / (field**2).mean())


def numpy_simplex(x: float, y: float, order: np.ndarray, angle: np.ndarray) -> float:
    """2-D simplex noise at one point, from its textbook description: three corners, radial kernel, gradient ramp."""
    f, g = 0.5 * (math.sqrt(3) - 1), (3 - math.sqrt(3)) / 6
    i, j = math.floor(x + (x + y) * f), math.floor(y + (x + y) * f)
    inside = x - i > y - j
    total = 0.0
    for a, b in [(0, 0), (1, 0) if inside else (0, 1), (1, 1)]:
        corner = np.array([i + a, j + b], float)
        corner -= corner.sum() * g  # back to the plane
        dx, dy = x - corner[0], y - corner[1]
        phi = angle[order[(i + a + order[(j + b) % 256]) % 256]]
        total += max(0.0, 0.5 - dx * dx - dy * dy) ** 4 * (math.cos(phi) * dx + math.sin(phi) * dy)
    return 99.2 * total


def test_simplex_equals_numpy_point_by_point() -> None:
    shape = noise.Simplex(octaves=3, persistence=0.7, wavelength=9.0)
    field = noise.simplex(1, (12, 10), generator(4), shape, unit=False)[0, 0]
    draws = generator(4)
    order = torch.rand((1, 256), generator=draws, dtype=torch.float64).argsort(dim=1)[0].numpy()
    angle = (torch.rand((1, 256), generator=draws) * 2 * math.pi)[0].numpy()
    offset = (torch.rand((1, 3, 2), generator=draws) * 256)[0].numpy()
    for row, column in [(0, 0), (3, 7), (11, 9), (6, 2)]:
        expected = sum(
            0.7**k * numpy_simplex(column * 2**k / 9 + offset[k, 1], row * 2**k / 9 + offset[k, 0], order, angle)
            for k in range(3)
        )
        assert float(field[row, column]) == pytest.approx(expected, abs=2e-3)  # float32 at coordinates up to 256


@pytest.mark.parametrize("wavelength", [0.04, 0.5, 30.0])
def test_lattice_of_any_width_equals_numpy(wavelength: float) -> None:
    """Finer than the pixels, where gradients repeat within the image, to coarser than the image."""
    shape = noise.Simplex(octaves=1, wavelength=wavelength)
    field = noise.simplex(6, (7, 12), [generator(seed) for seed in range(6)], shape, unit=False)
    for number in (0, 5):
        draws = generator(number)
        order = torch.rand((1, 256), generator=draws, dtype=torch.float64).argsort(dim=1)[0].numpy()
        angle = (torch.rand((1, 256), generator=draws) * 2 * math.pi)[0].numpy()
        offset = torch.rand((1, 1, 2), generator=draws) * 256
        for row, column in [(0, 0), (3, 7), (6, 11), (6, 2)]:
            # The same float32 coordinates: they are up to 500, and the field changes much from cell to cell.
            scale = torch.tensor(1.0 / wavelength)
            x, y = (float(k * scale + offset[0, 0, axis]) for k, axis in ((column, 1), (row, 0)))
            expected = numpy_simplex(x, y, order, angle)
            assert float(field[number, 0, row, column]) == pytest.approx(expected, abs=5e-3)


def test_simplex_statistics() -> None:
    one = noise.simplex(60, (64, 64), generator(), noise.Simplex(octaves=1, wavelength=8.0), unit=False)
    assert float(one.abs().max()) <= 1.0
    assert float(one.abs().max()) > 0.95
    assert abs(float(one.mean())) < 0.01
    assert float(one.std()) == pytest.approx(noise.SIMPLEX_STD, rel=0.03)
    unit = noise.simplex(200, (64, 64), generator(1), noise.Simplex(wavelength=32.0))
    assert float(unit.std()) == pytest.approx(1.0, rel=0.06)


def test_simplex_correlation_follows_the_wavelength() -> None:
    def half_width(wavelength: float) -> int:
        field = noise.simplex(100, (16, 96), generator(2), noise.Simplex(octaves=1, wavelength=wavelength))
        return next(lag for lag in range(1, 90) if correlation(field, lag) < 0.5)

    short, long = half_width(12.0), half_width(36.0)
    assert long / short == pytest.approx(3.0, rel=0.25)
    white = noise.gaussian(50, (32, 32), generator(3))
    assert abs(correlation(white, 1)) < 0.02


def test_octaves_add_fine_structure() -> None:
    coarse = noise.simplex(40, (64, 64), generator(5), noise.Simplex(octaves=1, wavelength=32.0))
    fine = noise.simplex(40, (64, 64), generator(5), noise.Simplex(octaves=5, wavelength=32.0))
    assert correlation(coarse, 2) > 0.9 > correlation(fine, 2) > 0.2


@pytest.mark.parametrize("kind", ["gaussian", "simplex", "pyramid"])
def test_a_slice_has_its_own_noise_in_any_batch(kind: str) -> None:
    draw = {"gaussian": noise.gaussian, "simplex": noise.simplex, "pyramid": noise.pyramid}[kind]
    pair = draw(2, (16, 16), [generator(11), generator(12)])
    alone = draw(1, (16, 16), [generator(12)])
    assert torch.equal(pair[1:], alone)
    many = draw(9, (16, 16), [generator(4 + seed) for seed in range(9)])
    assert torch.equal(many[8:], alone)
    assert not torch.equal(pair[:1], alone)


def test_pyramid_noise_is_a_sum_over_grids_and_has_unit_variance_in_each_slice() -> None:
    field = noise.pyramid(3, (64, 64), generator(6), 0.8)
    np.testing.assert_allclose(field.std(dim=(2, 3)), 1, rtol=1e-5)
    # Far apart only grids 2 and 3 agree, whose variances are about .14 and .26 of 2.7.
    assert correlation(noise.pyramid(60, (64, 64), [generator(k) for k in range(60)]), 8) == pytest.approx(
        0.17, abs=0.05
    )
    assert abs(correlation(noise.pyramid(60, (64, 64), generator(7), 0.0), 8)) < 0.05  # white

    draws = generator(6)
    expected = torch.randn((3, 1, 64, 64), generator=draws).numpy()
    side = 64
    for level, ratio in enumerate((2 + 2 * torch.rand(10, generator=draws)).numpy().astype(float)):
        side = max(1, math.floor(side / ratio**level))
        grid = torch.randn((3, 1, side, side), generator=draws).numpy()
        at = np.clip((np.arange(64) + 0.5) * side / 64 - 0.5, 0, side - 1)
        low = np.minimum(at.astype(int), max(side - 2, 0))
        high, share = np.minimum(low + 1, side - 1), at - low
        rows = grid[:, :, low] * (1 - share)[:, None] + grid[:, :, high] * share[:, None]
        expected += 0.8**level * (rows[..., low] * (1 - share) + rows[..., high] * share)
        if side == 1:
            break
    expected /= expected.std(axis=(2, 3), ddof=1, keepdims=True)
    np.testing.assert_allclose(field, expected, atol=1e-4)


def test_coarse_noise_statistics() -> None:
    field = noise.coarse(600, (48, 48), generator(), cells=12, std=0.3)
    assert field.shape == (600, 1, 48, 48)
    assert abs(float(field.mean())) < 0.005
    # Bilinear interpolation at a uniform place: E[(1-u)² + u²] = 2/3 of the variance along each axis.
    assert float(field.std()) == pytest.approx(0.3 * 2 / 3, rel=0.03)
    per_pixel = field.std(dim=0)
    assert float(per_pixel.min()) > 0.85 * 0.2  # the lattice is not tied to the picture
    # Autocorrelation at lag d (in cells, d < 1) of the stretched noise is the cubic B-spline 1 - 3d²/2 + 3d³/4.
    for lag in (1, 2, 3):
        d = lag / 4
        assert correlation(field, lag) == pytest.approx(1 - 1.5 * d**2 + 0.75 * d**3, abs=0.03)


def test_coarse_noise_is_deterministic_and_differs_between_slices() -> None:
    first, second = noise.coarse(2, (32, 32), generator(7)), noise.coarse(2, (32, 32), generator(7))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("strength", "total", "common"), [(2.0, 2.5, 2.0), (1.0, 1.0, 0.5)])
def test_coloured_noise_with_an_offset_has_the_stated_covariance(strength: float, total: float, common: float) -> None:
    """Over slices: one cell has (s² + 1) / 2 times Σ about μ, two cells of a slice s² / 2 times Σ."""
    mean = torch.tensor([3.0, -1.0])
    factor = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    sigma = (factor @ factor.T).numpy()
    random, count = generator(5), 200_000
    white, offset = torch.randn((count, 2, 1, 2), generator=random), torch.randn((count, 2, 1, 1), generator=random)
    share = torch.rand(count, generator=random)
    plain = noise.with_offset(white, offset, share, strength)
    found = noise.coloured(plain, mean, factor)
    one, other = found[:, :, 0, 0].double().numpy(), found[:, :, 0, 1].double().numpy()
    np.testing.assert_allclose(one.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(one.T), total * sigma, atol=0.15)
    across = (one - one.mean(0)).T @ (other - other.mean(0)) / count
    np.testing.assert_allclose(across, common * sigma, atol=0.15)
    assert torch.equal(noise.coloured(plain, torch.zeros(2), torch.eye(2)), plain)
    nothing = torch.zeros(count)
    assert torch.equal(noise.with_offset(white, offset, nothing, strength), white)
