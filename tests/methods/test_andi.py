"""ANDi: its mismatch in three forms, its aggregation, one fit with ddpm, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adbench.config import run_config
from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.andi import ANDi
from adbench.methods.common import schedulers
from adbench.methods.ddpm import DDPM
from adbench.methods.diffusion import SMOKE
from adbench.runner import plan as planning
from adbench.runner.run_cell import run_cell

SMALL: dict[str, Any] = {**ANDi.smoke, "steps": 2, "sigma": 0.0, "standardise": False, "passes": 4}


def method(**overrides: Any) -> ANDi:
    return ANDi(ANDi.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def slices(size: int = 32) -> SliceBatch:
    image = torch.rand((2, 1, size, size), generator=torch.Generator().manual_seed(0))
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, ("a", "b"), (3, 4), "FLAIR")


def off_by(difference: torch.Tensor | float, batch: SliceBatch, andi: ANDi) -> ANDi:
    """``andi`` with a network whose prediction of the slice is wrong by ``difference`` of the intensity range."""
    wanted = 2 * (batch.image - difference) - 1

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return wanted if andi.params.target == "x0" else andi.noise_schedule.noise_in(x, wanted, int(t[0]))

    andi._network = oracle  # type: ignore[assignment]
    return andi


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_mismatch_of_the_means_has_the_closed_forms(kind: str) -> None:
    """(mu_q - mu_theta)^2 = w (eps - eps')^2 = w abar / (1 - abar) (x0 - x0')^2, w = (1 - alpha)^2 / (alpha (1 - abar))."""
    schedule = schedulers.Schedule(kind, 1000)
    clean, noise, wrong = np.random.default_rng(0).normal(size=(3, 50))
    for t in (25, 75, 199):
        bar, before = schedule.at(t), schedule.at(t - 1)
        alpha = bar / before
        x = math.sqrt(bar) * clean + math.sqrt(1 - bar) * noise
        keep = math.sqrt(alpha) * (1 - before) / (1 - bar)  # of x_t in the mean of the posterior
        true, found = (schedule.clean_share(t) * x0 + keep * x for x0 in (clean, wrong))
        weight = (1 - alpha) ** 2 / (alpha * (1 - bar))
        its_noise = (x - math.sqrt(bar) * wrong) / math.sqrt(1 - bar)
        np.testing.assert_allclose((true - found) ** 2, weight * (noise - its_noise) ** 2, rtol=1e-8)
        np.testing.assert_allclose((true - found) ** 2, weight * bar / (1 - bar) * (clean - wrong) ** 2, rtol=1e-8)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("target", ["x0", "epsilon"])
def test_a_constant_error_gives_its_square_and_none_gives_nothing(mean: str, target: str) -> None:
    batch, brain = slices(), slices().brain
    maps, recon = off_by(0.2, batch, method(mean=mean, target=target)).score_and_reconstruct(batch)
    np.testing.assert_allclose(maps[brain], 0.04, rtol=1e-3)
    assert float(maps[~brain].abs().max()) == 0
    torch.testing.assert_close(recon[brain], (batch.image - 0.2).clamp(min=0)[brain], atol=1e-4, rtol=0)
    nothing = off_by(0.0, batch, method(mean=mean, target=target)).score(batch)
    assert float(nothing.max()) < 1.01e-8  # the floor of the logarithm, or rounding


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_steps_are_aggregated_as_in_numpy(mean: str) -> None:
    andi, batch = method(mean=mean), slices()
    difference = {t: 0.1 * (k + 1) * batch.image.numpy() for k, t in enumerate(andi.params.times)}
    andi._network = lambda x, t: 2 * (batch.image - torch.from_numpy(difference[int(t[0])])) - 1  # type: ignore[assignment]
    squares = np.stack([d**2 for d in difference.values()])
    weights = [andi.noise_schedule.clean_share(t) ** 2 for t in difference]
    expected = (
        np.exp(np.log(np.maximum(squares, 1e-8)).mean(0))
        if mean == "geometric"
        else np.average(squares, axis=0, weights=weights)
    )
    np.testing.assert_allclose(andi.score(batch), expected * batch.brain.numpy(), rtol=1e-3, atol=1e-8)


def test_one_step_is_the_squared_residual_of_ddpm() -> None:
    """With the same noise, which both draw from the generator of the slice."""
    same = {**SMALL, "noise": "gaussian", "start": 20, "sigma": 0.0}
    andi = method(noise="gaussian", start=20, stop=21, passes=1)
    del same["passes"]
    ddpm = DDPM(DDPM.resolve("tiny", same), Context(seed=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ddpm._network = andi._network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Tanh())
    network = ddpm._network
    ddpm._network = andi._network = lambda x, t: network(x)  # type: ignore[assignment]
    batch = slices()
    expected = ddpm.score(batch).square().clamp(min=1e-8) * batch.brain
    torch.testing.assert_close(andi.score(batch), expected, atol=1e-7, rtol=1e-4)


def test_signs_part_the_mismatch() -> None:
    batch = slices()
    bright = off_by(0.1, batch, method(sign="positive")).score(batch)
    dark = off_by(0.1, batch, method(sign="negative")).score(batch)
    np.testing.assert_allclose(bright[batch.brain], 0.01, rtol=1e-3)
    assert float(dark.max()) < 1.01e-8


@pytest.mark.parametrize("noise", ["gaussian", "simplex", "pyramid"])
def test_a_slice_has_its_map_in_any_batch(noise: str) -> None:
    andi, batch = method(test_noise=noise), slices()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        andi._network = andi.build().eval()
    alone = SliceBatch(batch.image[1:], batch.brain[1:], ("b",), (4,), "FLAIR")
    torch.testing.assert_close(andi.score(alone), andi.score(batch)[1:], atol=1e-5, rtol=1e-3)


def test_steps_are_spread_from_start_to_stop() -> None:
    assert method(start=10, stop=20, passes=5).params.times == [10, 12, 14, 16, 18]
    assert ANDi.resolve("paper", {}).times == list(range(75, 200))


def test_trains_the_network_of_ddpm_to_the_bit(train: SliceSet, val: SliceSet) -> None:
    andi = method()
    params = DDPM.resolve("tiny", ANDi.trained_with("tiny", andi.params))
    ddpm = DDPM(params, Context(seed=1))
    reports = [one.fit(train, val) for one in (andi, ddpm)]
    assert reports[0].curves == reports[1].curves
    for name, weights in ddpm.state().items():
        assert torch.equal(weights, andi.state()[name]), name


def test_presets_train_as_those_of_ddpm() -> None:
    for preset in ("tiny", "base"):
        assert DDPM.resolve(preset, ANDi.trained_with(preset, ANDi.resolve(preset, {}))) == DDPM.resolve(preset, {})


def test_one_fit_serves_both_rows(slices: Path, tmp_path: Path) -> None:
    config = run_config.RunConfig(
        method=("andi", "ddpm"),
        dataset=("folder",),
        data_root=str(slices),
        preset="tiny",
        device="cpu",
        out=str(tmp_path / "out"),
        cache=str(tmp_path / "cache"),
        set={
            "method": {**SMOKE, "steps": 2, "t_max": 100},
            "andi": {"passes": 3, "stop": 100},
            "ddpm": {"start": 99},
        },
    )
    andi, ddpm = planning.plan(run_config.cells(config), config.out_folder, config.cache_folder)
    first = run_cell(andi)
    weights = ddpm.fit_folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    second = run_cell(ddpm)
    assert weights.stat().st_mtime_ns == made
    assert weights.read_bytes() == (andi.fit_folder / "model.safetensors").read_bytes()
    assert first.fit == second.fit
    assert first.method.name == "andi"
    assert first.fit_key != second.fit_key


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"start": 50, "stop": 50, "passes": 1}, r"start \(50\) must be below stop \(50\)"),
        ({"stop": 400}, r"stop \(400\) may not exceed the 300 steps"),
        ({"start": 10, "stop": 20, "passes": 11}, "may not exceed the 10 steps"),
        ({"noise": "brown"}, "noise"),
        ({"test_noise": "brown"}, "test_noise"),
        ({"floor": 0}, "floor"),
        ({"sampler": "ddim"}, "sampler"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)
