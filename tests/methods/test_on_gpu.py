"""What only a GPU does: recorded and compiled networks against plain calls, its maps against a CPU's, a training that goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_sets import make_set
from test_forward import METHODS

from adbench.config import registry
from adbench.context import Context, Progress
from adbench.methods.base import OWN, Method, forwards, ways
from adbench.methods.common.forward import PORTION, Forward
from adbench.utils import compute

if not torch.cuda.is_available():
    pytest.skip("it tests a GPU, and there is none", allow_module_level=True)

LOG = logging.getLogger("test")
DEVICE = "cuda"


def made(what: str, device: str, **more: Any) -> Method:
    name, values = METHODS[what]
    cls: Any = registry.load("methods", name)
    return cls(cls.resolve("tiny", {**cls.smoke, **values, **more}), Context(device=device))  # type: ignore[no-any-return]


def maps_of(method: Method, device: str) -> torch.Tensor:
    count = 2 * PORTION + 3
    batch = make_set(count, seed=2, name="t").batch(slice(0, count)).to(device)
    with torch.inference_mode(), compute.applied(device):
        return method.score_and_reconstruct(batch)[0].cpu()


@pytest.mark.parametrize("what", METHODS)
@pytest.mark.parametrize("mode", ["off", "default"])
def test_recorded_and_compiled_networks_say_what_they_say_when_they_are_called(
    what: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compute.PRECISION, "float32")
    monkeypatch.setenv(compute.COMPILE, mode)
    method = made(what, DEVICE)
    method.fit(make_set(12), None)
    method.save(tmp_path)
    plainly = type(method).load(tmp_path, Context(device=DEVICE))
    vars(plainly)[OWN] = Forward(DEVICE, LOG, portions=False)
    expected = maps_of(plainly, DEVICE)
    fast = type(method).load(tmp_path, Context(device=DEVICE))
    found = [maps_of(fast, DEVICE)]
    for forward in forwards(fast):
        forward.expect(1, 10**15)
    found += [maps_of(fast, DEVICE) for _ in range(3)]
    (way,) = ways(fast)
    assert way == {"device": "cuda", "precision": "float32", "compile": mode, "networks": "recorded"}
    for maps in found:
        torch.testing.assert_close(maps, expected, atol=2e-3 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("what", METHODS)
def test_maps_in_float32_are_those_of_a_cpu(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compute.PRECISION, "float32")
    method = made(what, "cpu")
    method.fit(make_set(12), None)
    method.save(tmp_path)
    here, there = (maps_of(type(method).load(tmp_path, Context(device=device)), device) for device in ("cpu", DEVICE))
    assert np.corrcoef(here.flatten().numpy(), there.flatten().numpy())[0, 1] > 0.999


@pytest.mark.parametrize("what", ["dae", "ddpm", "vae", "madad"])
def test_a_training_that_was_stopped_ends_near_one_that_was_not(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding: its steps are recorded before and after, and the moments of its weights are those that were saved."""
    monkeypatch.setenv(compute.PRECISION, "float32")

    class Stopped(KeyboardInterrupt):
        pass

    class Stop(Progress):
        def update(self, phase: str, done: int, total: int, **figures: object) -> None:
            if done >= 8:
                raise Stopped

    maps = []
    for folder, stops in (("whole", 0), ("stopped", 1)):
        method = made(what, DEVICE, steps=16)
        method.ctx.workdir, method.ctx.checkpoint_seconds = tmp_path / folder, 0
        for _ in range(stops):
            method.ctx.progress = Stop()
            with pytest.raises(Stopped):
                method.fit(make_set(12), None)
            method = made(what, DEVICE, steps=16)
            method.ctx.workdir = tmp_path / folder
        report = method.fit(make_set(12), None)
        assert {way["steps"] for ways in report.computed.values() for way in ways} == {"recorded"}
        method.save(tmp_path / folder / "fit")
        maps.append(maps_of(type(method).load(tmp_path / folder / "fit", Context(device=DEVICE)), DEVICE))
    # Not weight by weight: Adam makes whole steps of a gradient that is nothing but rounding.
    assert float(torch.corrcoef(torch.stack([one.flatten() for one in maps]))[0, 1]) > 0.99
