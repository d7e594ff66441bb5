"""DDPM: schedules, samplers with an oracle network, losses, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from adbench.config import registry
from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.common import schedulers
from adbench.methods.ddpm import DDPM
from adbench.testing import check_method

SMALL: dict[str, Any] = {
    **DDPM.smoke,
    "steps": 2,
    "sigma": 0.0,
    "standardise": False,
    "noise": "gaussian",
    "t_max": None,
    "start": None,
}


def method(**overrides: Any) -> DDPM:
    return DDPM(DDPM.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def slices(count: int = 2, size: int = 32) -> SliceBatch:
    image = torch.rand((count, 1, size, size), generator=torch.Generator().manual_seed(0))
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, tuple(f"s{k}" for k in range(count)), (3,) * count, "FLAIR")


def test_linear_schedule_is_a_product_of_its_betas() -> None:
    bar = 1.0
    expected = []
    for k in range(1000):
        bar *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        expected.append(bar)
    np.testing.assert_allclose(schedulers.Schedule("linear", 1000).bar.numpy(), expected, rtol=1e-9)


def test_cosine_schedule_is_its_closed_form_and_that_of_madad() -> None:
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    bar = schedulers.Schedule("cosine", 1000).bar.numpy()
    np.testing.assert_allclose(bar[:990], [f((t + 1) / 1000) / f(0) for t in range(990)], rtol=1e-9)
    published = [0.972, 0.899, 0.787, 0.647, 0.494, 0.341, 0.203, 0.094, 0.024, 2e-5]  # of T = 10
    np.testing.assert_allclose(schedulers.Schedule("cosine", 10).bar.numpy(), published, atol=6e-4)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_equal_those_of_diffusers(kind: str) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000, beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[kind])
    np.testing.assert_allclose(
        schedulers.Schedule(kind, 1000).bar.numpy(), theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9
    )


def test_ancestral_step_equals_the_posterior_of_ho_2020() -> None:
    rng = np.random.default_rng(0)
    x, clean, fresh = rng.normal(size=(3, 2, 1, 4, 4))
    schedule = schedulers.Schedule("linear", 1000)
    t = 420
    beta, bar, before = (float(schedule.betas[t]), float(schedule.bar[t]), float(schedule.bar[t - 1]))
    mean = math.sqrt(before) * beta / (1 - bar) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
    expected = mean + math.sqrt(beta * (1 - before) / (1 - bar)) * fresh
    got = schedule.ancestral(torch.tensor(x), torch.tensor(clean), t, t - 1, lambda: torch.tensor(fresh))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


def test_a_long_ancestral_step_has_the_marginals_of_the_forward_process() -> None:
    schedule = schedulers.Schedule("linear", 1000)
    draws = torch.Generator().manual_seed(0)
    clean = torch.full((1, 1, 200, 200), 0.7, dtype=torch.float64)

    def noise() -> torch.Tensor:
        return torch.randn(clean.shape, generator=draws, dtype=torch.float64)

    x = schedule.ancestral(schedule.noised(clean, noise(), 400), clean, 400, 150, noise)
    assert float(x.mean()) == pytest.approx(math.sqrt(schedule.at(150)) * 0.7, abs=0.02)
    assert float(x.std()) == pytest.approx(math.sqrt(1 - schedule.at(150)), rel=0.02)


def test_forward_process_with_a_step_a_slice_and_back() -> None:
    schedule = schedulers.Schedule("cosine", 50)
    draws = torch.Generator().manual_seed(0)
    clean, noise = torch.rand((3, 1, 5, 5), generator=draws), torch.randn((3, 1, 5, 5), generator=draws)
    x = schedule.noised(clean, noise, torch.tensor([0, 20, 40]))
    for k, t in enumerate((0, 20, 40)):
        bar = schedule.bar[t].item()
        np.testing.assert_allclose(x[k], math.sqrt(bar) * clean[k] + math.sqrt(1 - bar) * noise[k], atol=1e-6)
        np.testing.assert_allclose(schedule.clean(x[k], noise[k], t), clean[k], atol=1e-4)
        np.testing.assert_allclose(schedule.noise_in(x[k], clean[k], t), noise[k], atol=1e-4)


def test_respaced_keeps_start_marks_and_end() -> None:
    assert schedulers.respaced(10, 4, (7, 10, 12)) == [10, 7, 6, 2, 0]
    assert schedulers.respaced(3, 1) == [3, 2, 1, 0]


@pytest.mark.parametrize("sampler", ["one_shot", "ancestral", "ddim"])
@pytest.mark.parametrize("target", ["x0", "epsilon"])
def test_an_oracle_network_gives_the_slice_back(sampler: str, target: str) -> None:
    ddpm = method(sampler=sampler, target=target, timesteps=40, start=20)
    batch = slices()
    wanted = 2 * batch.image - 1
    schedule = schedulers.Schedule(ddpm.params.schedule, 40)

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return wanted if target == "x0" else schedule.noise_in(x, wanted, int(t[0]))

    ddpm._network = oracle  # type: ignore[assignment]
    maps, recon = ddpm.score_and_reconstruct(batch)
    assert float(maps.abs().max()) < 1e-4
    torch.testing.assert_close(recon, batch.image, atol=1e-4, rtol=0)


def test_map_is_the_absolute_residual_inside_the_brain() -> None:
    ddpm, batch = method(), slices()
    ddpm._network = lambda x, t: torch.full_like(x, -0.5)  # type: ignore[assignment]  # 0.25 in [0, 1]
    expected = np.abs(batch.image.numpy() - 0.25) * batch.brain.numpy()
    np.testing.assert_allclose(ddpm.score(batch).numpy(), expected, atol=1e-6)
    bright = method(sign="positive")
    bright._network = ddpm._network
    expected = np.clip(batch.image.numpy() - 0.25, 0, None) * batch.brain.numpy()
    np.testing.assert_allclose(bright.score(batch).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("target", ["x0", "epsilon"])
def test_loss_is_the_published_one(target: str, train: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.methods import training

    seen: list[training.Stage] = []

    def catch(stage: training.Stage, ctx: Context) -> training.StageResult:
        seen.append(stage)
        return training.StageResult(0, [], 0, None, 0.0)

    monkeypatch.setattr(training, "train_stage", catch)
    method(target=target).fit(train, None)
    stage = seen[0]
    batch = stage.draw(torch.arange(3), torch.Generator().manual_seed(0))
    out = np.full(batch["x"].shape, 0.3)
    error = out - batch["wanted"].numpy()
    expected = np.mean(error**2) if target == "epsilon" else np.mean(np.abs(error))
    value = stage.loss(lambda x, t: torch.full_like(x, 0.3), batch, 0)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    # x_t holds the wanted quantity: solve the forward process for the other one and compare what can be known.
    bar = schedulers.Schedule("cosine", 1000).bar[batch["t"]].numpy()[:, None, None, None]
    x, wanted = batch["x"].numpy(), batch["wanted"].numpy()
    if target == "x0":
        assert wanted.min() == -1  # background
        assert wanted.max() <= 1
    else:
        clean = (x - np.sqrt(1 - bar) * wanted) / np.sqrt(bar)
        keep = bar[:, 0, 0, 0] > 0.01
        assert np.abs(clean[keep][..., 0, 0] + 1).max() < 1e-3  # the corner is background


def test_contract_with_other_parameters() -> None:
    """The defaults are checked with every built-in method in tests/testing."""
    overrides = {"noise": "simplex", "sampler": "ddim", "sampler_steps": 3, "target": "epsilon"}
    assert not [finding for finding in check_method(DDPM, overrides=overrides) if finding.problem]


def test_small_batches_give_equal_maps_with_every_noise(train: SliceSet) -> None:
    for kind in ("gaussian", "simplex"):
        ddpm = method(noise=kind, sampler="ancestral", timesteps=12)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ddpm._network = ddpm.build().eval()
        whole = ddpm.score(slices(3))
        for k in range(3):
            batch = slices(3)
            part = SliceBatch(
                batch.image[k : k + 1], batch.brain[k : k + 1], batch.subjects[k : k + 1], (3,), batch.modality
            )
            torch.testing.assert_close(ddpm.score(part), whole[k : k + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"start": 1000}, "below timesteps"),
        ({"start": 400, "t_max": 300}, "below t_max"),
        ({"t_max": 2000}, "may not exceed timesteps"),
        ({"sampler": "ddim", "start": 5, "sampler_steps": 9}, "sampler_steps"),
        ({"image_size": 33}, "multiple of 4"),
        ({"channels": (20, 32)}, "multiples of 32"),
        ({"attention": (True,)}, "one entry per level"),
        ({"head_channels": 24}, "head_channels must divide"),
        ({"persistence": 1.5}, "persistence"),
        ({"timesteps": 0}, "timesteps"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)


def test_resolved_presets_say_where_they_start() -> None:
    assert DDPM.resolve("paper", {}).first == 500
    assert DDPM.resolve("paper", {"sampler": "ancestral"}).first == 250


@pytest.mark.parametrize("method", ["thor", "ddpm", "pddpm", "andi"])
def test_attention_of_a_gpu_is_that_of_a_cpu(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU attention goes through torch's own function; the CPU's bits and the names of the weights stay."""
    cls = registry.load("methods", method)
    channels = {"channels": (32, 64), "attention": (False, True), "head_channels": 32}
    network = cls(cls.resolve("tiny", {**cls.smoke, **channels, "stem": 1}), Context()).build()
    draws = torch.Generator().manual_seed(0)
    for weight in network.parameters():  # MONAI starts its last layers at 0
        weight.data = torch.randn(weight.shape, generator=draws) * 0.1
    size = cls.smoke["image_size"]
    x = torch.randn((2, 1, size, size), generator=draws)
    inputs = [x, torch.tensor([3, 70])]
    calls: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda **given: calls.append(1) or real(**given)
    )
    names = list(network.state_dict())
    with torch.no_grad():
        plain = network.to("cpu")(*inputs)
        assert not calls
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
            network.to("cpu")
        fused = network(*inputs)
        assert len(calls) >= 2
        assert (plain - fused).abs().max() < 1e-5 * plain.std()
        assert list(network.state_dict()) == names
        torch.testing.assert_close(network.to("cpu")(*inputs), plain, rtol=0, atol=0)
