"""kill -9 in mid-training, the same command again: the same numbers as a run that was never disturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fork

BUDGET = {
    "ae": ("ae.steps=80", "ae.batch=4", "ae.channels=[8,8,16]", "ae.image_size=32"),
    "madad": (
        "madad.image_size=64",
        "madad.ae_channels=[16,16]",
        "madad.ae_steps=40",
        "madad.steps=12",
        "madad.batch=4",
    ),
}


def options(method: str, slices: Path, out: Path) -> list[str]:
    return [
        "run", "--method", method, "--dataset", "folder", "--data-root", str(slices), "--device", "cpu", "--out", str(out),
        "--json", *(f"--set={text}" for text in BUDGET[method]),
    ]  # fmt: skip


@pytest.mark.parametrize("method", sorted(BUDGET))
def test_killed_training_goes_on_to_the_same_numbers(
    method: str, slices: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    killed, rows = tmp_path / "killed", []

    def run(out: Path, *more: str) -> None:
        code, said, err = cli(*options(method, slices, out), *more)
        assert code == 0, err
        rows.extend(json.loads(said)["boards"][0]["rows"])

    run(tmp_path / "whole")
    process = fork(lambda: run(killed, "--checkpoint-seconds", "0"))
    deadline = time.monotonic() + 120
    while not list(killed.rglob("checkpoint.json")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    checkpoint = json.loads(next(killed.rglob("checkpoint.json")).read_text())
    assert checkpoint["figures"]["step"] > 0
    assert not checkpoint["figures"]["finished"]  # it stopped in the middle
    assert list(killed.rglob("record.json")) == []

    run(killed)
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["run_key"] == rows[1]["run_key"]


@pytest.fixture
def resume() -> Any:
    """``benchmarks/resume.py``."""
    spec = util.spec_from_file_location("resume", Path(__file__).parents[2] / "benchmarks" / "resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["resume"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# 64 x 64 px, so that a step lasts longer than the look at its checkpoint; the rest is as small as it can be.
SMOKE = (
    "dae.image_size=64", "dae.channels=[8,16]", "dae.stem=1", "dae.steps=60", "dae.batch=4",
    "dataset.n_train=2", "dataset.n_val=2", "dataset.n_test=2", "dataset.slices=2",
)  # fmt: skip


def test_benchmark_kills_resumes_and_compares(resume: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [f"--set={text}" for text in SMOKE]
    assert resume.main(["--method", "dae", "--checkpoint-seconds", "0", *sets]) == 0
    said = capsys.readouterr().out
    killed = re.search(r"dae: killed in denoiser, with a checkpoint of step (\d+) of 60", said)
    assert killed is not None
    assert 30 <= int(killed[1]) < 60
    assert "undisturbed and resumed: equal to the bit, weights and numbers" in said
    assert "resumes bit-equal" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "dea"], "Did you mean 'dae'"),
        (["--device", "tpu"], "not one of auto, cpu, cuda"),
        (["--set", "dae.stepz=3"], "Unknown parameter of method dae 'stepz'"),
        (["--method", "dae,histeq"], "histeq learns by no training loop"),
        (["--tolerance", "-1"], "--tolerance"),
    ],
)
def test_benchmark_says_what_cannot_be_compared(
    resume: Any, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        resume.main(words)
    shown = capsys.readouterr()
    assert left.value.code == 2
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


def test_benchmark_tells_runs_apart(resume: Any) -> None:
    def outcome(moved: float, value: float) -> Any:
        weights = {"dae-1/a": torch.tensor([0.0, 2.0 + moved]), "dae-1/b": torch.ones(3), "dae-1/n": torch.tensor(7)}
        return resume.Outcome({"metrics": {"auprc": {"value": value}, "dice@val": {"value": None}}}, weights, 1.0)

    same = resume.compare(outcome(0, 0.5), outcome(0, 0.5))
    assert same.equal
    other = resume.compare(outcome(0, 0.5), outcome(0.02, 0.53))
    assert not other.equal
    assert (other.where, other.which) == ("a", "auprc")
    assert other.weights == pytest.approx(0.02, rel=1e-3)  # the tensor's standard deviation is 1
    assert other.metrics == pytest.approx(0.03)
    assert resume.within(same, None, 0.5)
    assert not resume.within(other, None, 0.5)  # on a CPU nothing is allowed
    assert resume.within(other, same, 0.05)
    assert not resume.within(other, same, 0.025)  # a number
    assert resume.within(
        other, resume.Apart(0.01, "a", 0.011, "auprc", False), 0.0
    )  # as far as others three times over
    assert not resume.within(other, resume.Apart(0.005, "a", 0.011, "auprc", False), 0.0)
    last = resume.compare(outcome(0, 0.5), outcome(1e-6, 0.5))
    assert not last.equal
