"""The arithmetic of sharing GPUs and cores."""

from __future__ import annotations

import pytest

from adbench.errors import UserError
from adbench.executors.resources import CONTEXT_GB, MAX_RUNS, ResourceRequest, parse, request
from adbench.methods.base import Resources


@pytest.mark.parametrize(
    ("wants", "memory", "runs"),
    [
        (20.0, 80.0, 3),  # three times 20.6 GiB fit into 80, four do not
        (19.4, 80.0, 4),  # exactly a quarter, with the context that every process holds
        (4.0, 139.0, MAX_RUNS),  # more would fit
        (30.0, 24.0, 1),  # it may not fit at all: alone, it has the best chance
        (0.0, 24.0, MAX_RUNS),
    ],
)
def test_as_many_runs_as_have_the_memory(wants: float, memory: float, runs: int) -> None:
    got = request(Resources(2, wants), "cuda", gpu_memory_gb=memory, most_cpus=16)
    assert int(1 / got.gpus) == runs
    assert got.gpus * runs <= 1
    if runs > 1:
        assert got.gpus * memory >= wants + CONTEXT_GB - 0.01
        fraction = got.memory_fraction(memory)
        assert fraction is not None
        # What tensors may fill and what the contexts hold is less than the whole.
        assert runs * (fraction * memory + CONTEXT_GB) <= memory + 1e-6
        assert fraction * memory >= wants - 0.02
    else:
        assert got.memory_fraction(memory) is None


def test_cores() -> None:
    wants = Resources(4, 8)
    assert request(wants, "cpu", gpu_memory_gb=80, most_cpus=16) == ResourceRequest(4, 0)
    assert request(wants, "cpu", gpu_memory_gb=0, most_cpus=2) == ResourceRequest(2, 0)
    assert request(wants, "cpu", gpu_memory_gb=0, most_cpus=2, cpus=8) == ResourceRequest(
        8, 0
    )  # asked for: to be refused, not cut


def test_the_user_decides() -> None:
    got = request(Resources(1, 8), "cuda", gpu_memory_gb=80, most_cpus=16, cpus=3, gpus=0.25)
    assert got == ResourceRequest(3, 0.25)
    assert str(got) == "3 CPU, 0.25 GPU"
    assert request(Resources(1, 8), "cuda", gpu_memory_gb=0, most_cpus=16).gpus == 1  # unknown memory: a whole one


def test_numbers_on_the_command_line() -> None:
    assert parse("auto", "--gpus-per-run") is None
    assert parse(None, "--cpus-per-run") is None
    assert parse("0.25", "--gpus-per-run") == 0.25
    assert parse("2", "--gpus-per-run") == 2
    for text, flag in (
        ("much", "--gpus-per-run"),
        ("-1", "--gpus-per-run"),
        ("nan", "--cpus-per-run"),
        ("0", "--cpus-per-run"),
    ):
        with pytest.raises(UserError, match="neither `auto` nor a number"):
            parse(text, flag)
    with pytest.raises(UserError, match="whole ones"):
        parse("1.5", "--gpus-per-run")
