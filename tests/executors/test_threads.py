"""A run has one number of CPU threads, whoever carries it out: a training ends in the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adbench.errors import UserError
from adbench.executors import serial
from adbench.executors.launch import Launch
from adbench.executors.ray import Packed
from adbench.methods.base import WEIGHTS
from adbench.results.record import Record
from adbench.runner.plan import Plan
from adbench.utils import threads

pytestmark = pytest.mark.timeout(600)
FEW = ("ae.steps=6", "ae.batch=4", "ae.image_size=64")


def _left(plan: Plan) -> tuple[bytes, dict[str, str], Record]:
    """The weights, the digests of counts, and the record."""
    record = plan.record()
    assert record is not None
    counts = {name: value for name, value in record.files.items() if name.endswith(".npz")}
    return (plan.fit_folder / WEIGHTS).read_bytes(), counts, record


def _serial(launch: Launch) -> tuple[bytes, dict[str, str], Record]:
    (outcome,) = serial(launch.plans())
    assert outcome.reason == ""
    return _left(outcome.plan)


def test_serial_worker_and_ray_end_in_the_same_bits(
    cluster: Any, grid: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.VARIABLE)
    before = torch.get_num_threads()
    weights, counts, record = _serial(grid("ae", *FEW, out="serial"))
    assert torch.get_num_threads() == before
    assert record.provenance["threads"] == 2, "what ae asks for, however many cores there are"
    assert not any("CPU thread" in note for note in record.notes)

    launch = grid(
        "ae", *FEW, out="ray"
    )  # Ray hands the run to a worker, and keeps fewer cores for it than it has threads
    (outcome,) = Packed(cluster, launch.out, launch.cache, launch.options, cpus=1).run(launch.plans())
    assert outcome.reason == ""
    *same, elsewhere = _left(outcome.plan)
    assert same == [weights, counts]
    assert elsewhere.run_key == record.run_key
    for part in ("threads", "cpu", "gpu", "precision", "fit"):
        assert elsewhere.provenance[part] == record.provenance[part]

    monkeypatch.setenv(threads.VARIABLE, "1")
    alone, _, told = _serial(grid("ae", *FEW, out="one"))
    assert alone != weights, "or this test would see nothing"
    assert told.run_key == record.run_key
    assert (told.provenance["threads"], told.provenance["precision"]) == (1, "float32")
    assert told.provenance["fit"][0]["threads"] == 1
    (note,) = [note for note in told.notes if "CPU thread" in note]
    assert note.startswith("Computed with 1 CPU thread (OMP_NUM_THREADS) where ae asks for 2")


def test_the_user_decides_else_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE)
    assert [threads.count(cpus) for cpus in (0.5, 1, 2, 2.5)] == [1, 1, 2, 2]
    monkeypatch.setenv(threads.VARIABLE, "3,1")
    assert threads.count(2) == 3
    for nonsense in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv(threads.VARIABLE, nonsense)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS={nonsense} is no number of threads"):
            threads.count(2)


def test_limits_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE)
    before = torch.get_num_threads()
    with threads.limited(before + 2):
        assert torch.get_num_threads() == before + 2
        assert threads.count(1) == before + 2, "processes that are started here follow"
    assert torch.get_num_threads() == before
    assert threads.count(1) == 1
