"""Which number format and which compilation a run has, and that TF32 is on only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from adbench.context import Context
from adbench.datasets.slices import SliceBatch
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.simple import HistEq
from adbench.results import provenance
from adbench.utils import compute


def tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with bf16, as far as torch says; no GPU is at hand."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only emulates bf16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Turing")


@pytest.mark.parametrize("said", ["", *compute.FORMATS])
def test_a_cpu_computes_in_float32(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compute.PRECISION, said)
    assert compute.precision("cpu") == "float32"
    assert provenance.machine("cpu")["precision"] == "float32"


@pytest.mark.usefixtures("ampere")
def test_a_gpu_computes_in_bf16_or_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compute.PRECISION, raising=False)
    assert compute.precision("cuda") == "bf16"
    for said in compute.FORMATS:
        monkeypatch.setenv(compute.PRECISION, said)
        assert compute.precision("cuda:1") == said


@pytest.mark.usefixtures("turing")
def test_bf16_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compute.PRECISION, raising=False)
    assert compute.precision("cuda") == "float32"
    monkeypatch.setenv(compute.PRECISION, "bf16")
    with pytest.raises(UserError, match="Turing has no bf16: unset ADBENCH_PRECISION, or set it to float32"):
        compute.precision("cuda")


def test_each_gpu_has_a_format_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compute.PRECISION, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device == "cuda:1" else (7, 5))
    assert [compute.precision(device) for device in ("cuda:0", "cuda:1")] == ["float32", "bf16"]


@pytest.mark.parametrize(
    ("variable", "ask"), [(compute.PRECISION, compute.precision), (compute.COMPILE, compute.compile_mode)]
)
def test_a_misspelt_setting_is_one_sentence(variable: str, ask: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "fp16")
    with pytest.raises(UserError, match=rf"{variable}=fp16 is not one of .*: unset it, or set it to one of them"):
        ask("cpu")  # type: ignore[operator]


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("said", ["", *compute.FORMATS])
def test_tf32_is_on_where_it_is_asked_for_and_put_back(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compute.PRECISION, said)
    before = tf32()
    assert before[0]  # torch's default: convolutions of "float32" are not
    with suppress(KeyError), compute.applied("cuda"):
        assert tf32() == (said == "tf32", said == "tf32")
        raise KeyError
    assert tf32() == before


def test_training_computes_as_set() -> None:
    seen = []

    def loss(module: torch.nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        seen.append(tf32())
        return module(batch["x"]).square().mean()

    stage = training.Stage(
        "toy", torch.nn.Linear(1, 1), 4, lambda indices, draws: {"x": indices[:, None].float()}, loss,
        training.Plan(steps=2, batch=2, lr=0.1),
    )  # fmt: skip
    training.train_stage(stage, Context())
    assert seen == [(False, False)] * 2
    assert tf32()[0]


@pytest.mark.usefixtures("ampere")
def test_compiling_is_for_long_trainings_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compute.COMPILE, raising=False)
    for there in (True, False):
        monkeypatch.setattr(compute, "find_spec", lambda name, there=there: there)
        assert compute.compile_mode("cuda") == ("default" if there else "off")
    monkeypatch.setenv(compute.COMPILE, "off")
    assert compute.compile_mode("cuda") == "off"
    tuned = "max-autotune-no-cudagraphs"
    monkeypatch.setenv(compute.COMPILE, tuned)
    assert (compute.compile_mode("cuda"), compute.compile_mode("cpu")) == (tuned, "off")
    monkeypatch.setenv(compute.COMPILE, "reduce-overhead")  # it records graphs itself
    with pytest.raises(UserError, match="not one of off, default, max-autotune-no-cudagraphs"):
        compute.compile_mode("cuda")
    steps = [training.Plan(steps=n, batch=1, lr=1).pays_to_compile for n in (400, 9_999, 10_000)]
    assert steps == [False, False, True]
    minutes = [training.Plan(steps=99_999, batch=1, lr=1, seconds=60.0 * n).pays_to_compile for n in (4, 5)]
    assert minutes == [False, True]


def test_a_run_scores_as_set(
    cli: Callable[..., tuple[int, str, str]], slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, score = [], HistEq.score

    def spied(self: HistEq, batch: SliceBatch) -> torch.Tensor:
        seen.append(tf32())
        return score(self, batch)

    monkeypatch.setattr(HistEq, "score", spied)
    run = ("run", "--method", "histeq", "--dataset", "folder", "--data-root", slices, "--device", "cpu", "--quiet")
    code, _, err = cli(*run, "--out", tmp_path / "runs")
    assert code == 0, err
    assert set(seen) == {(False, False)}
    monkeypatch.setenv(compute.PRECISION, "half")
    code, _, err = cli(*run, "--out", tmp_path / "others")
    assert code == 2
    assert "ADBENCH_PRECISION=half is not one of bf16, tf32, float32" in " ".join(err.split())
