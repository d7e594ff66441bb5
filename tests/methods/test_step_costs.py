"""``benchmarks/costs.py``: what a step computes and keeps, against counts by hand."""

from __future__ import annotations

import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adbench.methods import training

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def costs() -> Any:
    sys.path.insert(0, str(FOLDER))  # it shares generated slices with another benchmark
    try:
        spec = util.spec_from_file_location("costs", FOLDER / "costs.py")
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_what_a_step_keeps_is_what_its_backward_pass_reads(costs: Any) -> None:
    """Input and activation of two layers in bf16, what is clipped and the error in the formats they have, and weights in bf16."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.relu(self.first(x)))

    def loss(module: nn.Module, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        return (module(batch["x"]) - batch["y"]).square().mean()

    stage = training.Stage(
        name="two",
        module=Two(),
        samples=9,
        draw=lambda indices, generator: {"x": torch.zeros(len(indices), 12), "y": torch.zeros(len(indices), 6)},
        loss=loss,
        plan=training.Plan(steps=1, batch=4, lr=1e-3, ema=0.9),
    )
    found = costs.step(stage)
    numbers = 12 * 20 + 20 + 20 * 6 + 6
    assert found["numbers"] == numbers
    forward = 2 * (12 * 20 + 20 * 6)
    assert (
        found["operations"] == 2 * forward + 2 * 20 * 6 + 0 * forward
    )  # of weights both times, of inputs in the second layer
    assert found["fixed"] * 2**30 == numbers * 4 * 5 + 2 * 20 * 6  # the second layer's weights lead to the first
    assert (
        found["sample"] * 2**30 == 2 * (12 + 20) + 4 * 6
    )  # x and what relu gives, and in float32 the error that is squared
    assert all(weight.device.type == "cpu" for weight in stage.module.parameters())


@pytest.mark.parametrize(
    ("batch", "card", "parts"),
    [(96, 40.0, "1"), (96, 24.0, "2"), (96, 12.0, "8"), (96, 6.0, "too large"), (1, 8.0, "1")],
)
def test_micro_batches_that_a_card_needs(costs: Any, batch: int, card: float, parts: str) -> None:
    """4.8 GiB and .26 GiB a sample: 31.3, 18.8, 12.5 and 9.4 GiB for 96 and its half, quarter and eighth, with what is not counted."""
    assert costs.micro_batches({"fixed": 4.8, "sample": 0.26}, batch, card) == parts


def test_the_table_has_a_row_for_a_stage() -> None:
    command = [sys.executable, str(FOLDER / "costs.py"), "--method", "vae", "--preset", "tiny", "--gib", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["| vae", "tiny", "vae"]]
    assert all(float(row[9]) >= float(row[7]) and float(row[8]) > 0 and float(row[5]) > 0 for row in rows)
    wrong = subprocess.run([*command[:3], "vea"], capture_output=True, text=True, timeout=200)
    assert wrong.returncode == 2
    assert "vae" in wrong.stderr
