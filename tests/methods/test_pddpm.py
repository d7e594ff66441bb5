"""pDDPM: boxes, frequency patches, the condition, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.common.preprocess import SliceLoader
from adbench.methods.ddpm import DDPM
from adbench.methods.diffusion import SMOKE
from adbench.methods.pddpm import PDDPM, frequency_patches, grid_boxes

SMALL: dict[str, Any] = {**SMOKE, "steps": 2, "sigma": 0.0, "standardise": False, "noise": "gaussian"}


def method(**overrides: Any) -> PDDPM:
    return PDDPM(PDDPM.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(count: int = 2, size: int = 32) -> SliceBatch:
    image = torch.rand((count, 1, size, size), generator=generator())
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, tuple(f"s{k}" for k in range(count)), (3,) * count, "FLAIR")


def drawn(pddpm: PDDPM, train: SliceSet) -> dict[str, torch.Tensor]:
    loader = SliceLoader(train, 32, "cpu")
    return pddpm.make_batch(loader, torch.arange(8), generator(4), training=True)


@pytest.mark.parametrize(("side", "count"), [(32, 1), (32, 2), (96, 3)])
def test_boxes_tile_the_grid_once(side: int, count: int) -> None:
    boxes = grid_boxes(side, count)
    assert boxes.shape == (count**2, 1, side, side)
    assert torch.equal(boxes.sum(dim=0), torch.ones(1, side, side))
    assert {int(box.sum()) for box in boxes} == {(side // count) ** 2}


def test_only_the_box_is_noised_and_learnt_from(train: SliceSet) -> None:
    batch = drawn(method(), train)
    outside = batch["box"] == 0
    assert torch.equal(batch["x"][outside], batch["wanted"][outside])
    assert float((batch["x"] - batch["wanted"])[~outside].abs().mean()) > 0.01
    out = torch.zeros_like(batch["x"], requires_grad=True)
    loss = method().loss(lambda x, t: out, batch)  # type: ignore[arg-type]
    loss.backward()
    assert out.grad is not None
    assert float(out.grad[outside].abs().max()) == 0
    expected = np.mean(np.abs(batch["wanted"].numpy()) * batch["box"].numpy())
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_one_box_is_ddpm(train: SliceSet) -> None:
    pddpm = method(boxes=1)
    ddpm = DDPM(DDPM.resolve("tiny", SMALL), Context(seed=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = pddpm.build().eval()
    pddpm._network = ddpm._network = network
    loader = SliceLoader(train, 32, "cpu")
    mine, its = (one.make_batch(loader, torch.arange(8), generator(4), training=True) for one in (pddpm, ddpm))
    assert torch.equal(mine["x"], its["x"])
    assert pddpm.loss(network, mine).item() == pytest.approx(ddpm.loss(network, its).item(), rel=1e-6)
    torch.testing.assert_close(pddpm.score(slices()), ddpm.score(slices()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", [(150,), (50, 100, 250)])
def test_a_network_that_knows_the_slice_leaves_an_empty_map(start: tuple[int, ...]) -> None:
    batch, pddpm = slices(), method(start=start, boxes=4)
    pddpm._network = lambda x, t: 2 * batch.image - 1  # type: ignore[assignment]
    maps, recon = pddpm.score_and_reconstruct(batch)
    assert float(maps.max()) < 1e-6
    torch.testing.assert_close(recon, batch.image, atol=1e-6, rtol=0)


def test_at_test_one_box_at_a_time_is_noised_with_one_field() -> None:
    batch, pddpm = slices(), method()
    seen: list[torch.Tensor] = []
    pddpm._network = lambda x, t: seen.append(x) or x  # type: ignore[assignment, func-returns-value]
    pddpm.score(batch)
    clean = 2 * batch.image - 1
    field = pddpm.noise_schedule.noised(clean, pddpm.draw_noise(2, pddpm.generators(batch)), 150)
    for x, box in zip(seen, grid_boxes(32, 2), strict=True):
        torch.testing.assert_close(x, torch.where(box > 0, field, clean))


@pytest.mark.parametrize("overrides", [{}, {"condition": (8, 8)}])
def test_a_slice_has_its_map_in_any_batch(overrides: dict[str, Any]) -> None:
    pddpm, batch = method(**overrides), slices()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pddpm._network = pddpm.build().eval()
    alone = SliceBatch(batch.image[1:], batch.brain[1:], batch.subjects[1:], (3,), "FLAIR")
    torch.testing.assert_close(pddpm.score(alone), pddpm.score(batch)[1:], atol=1e-4, rtol=0)


def test_frequency_patches_equal_numpy() -> None:
    """A wave of 5 cycles is in patches either whole or gone, and a patch is as large as the paper says."""
    rows = torch.arange(64).float()
    image = (0.5 + 0.4 * torch.sin(2 * torch.pi * 5 * rows / 64))[None, None, :, None].expand(200, 1, 64, 64).clone()
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 10:50, 20:60] = True
    out = frequency_patches(image, brain, generator(3), 1)
    changed = (out - image).abs() > 1e-4
    sizes = changed.sum(dim=(1, 2, 3)).tolist()
    # Half the slices have a patch; it keeps the wave in 5 of 18: the lowest 6 to 10 frequencies, alone.
    assert sum(size > 0 for size in sizes) / 200 == pytest.approx(0.5 * 13 / 18, abs=0.1)
    assert not changed[~brain].any()
    assert max(sizes) <= (0.18 * 40 + 1) ** 2
    gone = (image - 0.4 * torch.sin(2 * torch.pi * 5 * rows / 64)[:, None]).clamp(
        0, 1
    )  # low frequencies alone: the mean
    high = (image - 0.5).clamp(0, 1)  # without the lowest, the mean among them: the wave about 0
    nothing = torch.zeros_like(image)  # without the lowest 5 and more
    apart = torch.stack([(out - version).abs() for version in (image, gone, high, nothing)]).amin(dim=0)
    assert float(apart.max()) < 1e-4
    assert torch.equal(frequency_patches(image, brain, generator(3), 0), image)


def test_frequency_patches_are_seen_and_not_wanted(train: SliceSet) -> None:
    plain, spoilt = drawn(method(), train), drawn(method(frequency_patches=20), train)
    assert torch.equal(plain["wanted"], spoilt["wanted"])
    assert not torch.equal(plain["x"], spoilt["x"])


def test_the_condition_reaches_the_network(train: SliceSet) -> None:
    pddpm = method(condition=(8, 16), boxes=1)
    network = pddpm.build()
    batch = drawn(pddpm, train)
    assert torch.equal(batch["seen"], batch["wanted"])
    pddpm.loss(network, batch).backward()
    grown = [p.grad for name, p in network.named_parameters() if "class_embedding" in name]
    assert len(grown) == 10
    assert all(grad is not None for grad in grown)
    assert sum(p.numel() for p in network.parameters()) > sum(p.numel() for p in method().build().parameters())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"boxes": 3}, r"^method pddpm: image_size must be a multiple of boxes \(3\)\.$"),
        ({"start": (100, 300)}, "below t_max"),
        ({"start": (-1, 20)}, "no negative step"),
        ({"start": ()}, "start"),
        ({"condition": (8, 12)}, "multiples of 8"),
        ({"condition": (8,) * 6}, "multiple of 64"),
        ({"target": "epsilon"}, "target"),
        ({"frequency_patches": -1}, "frequency_patches"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)
