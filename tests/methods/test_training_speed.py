"""``benchmarks/methods.py``: what it compares with what, what it counts, and how it shares its time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.common import forward, preprocess
from adbench.utils import compute


def _script(name: str) -> Any:
    spec = util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


variants = _script("variants")
speed = _script("speed")
methods = _script("methods")


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 on the CPU, unless the environment asks for float32."""

    def precision(device: str) -> str:
        return os.environ.get(compute.PRECISION) or "bf16"

    monkeypatch.delenv(compute.PRECISION, raising=False)
    monkeypatch.setattr(compute, "precision", precision)
    for module in (preprocess, forward):
        monkeypatch.setattr(module, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16, precision("cpu") == "bf16"))  # fmt: skip


def rows_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *words: str, **sets: Any
) -> list[dict[str, Any]]:
    """All rows of a miniature of a method."""
    monkeypatch.setattr(speed, "SLICES", 8)
    _, args = methods.parsed(["--seconds", "0.01", *words])
    args.vary = [name for name in args.vary.split(";") if name]
    told: list[dict[str, Any]] = []
    cls = methods.registry.load("methods", name)
    sets = {**cls.smoke, **methods.NOT_INSTALLED.get(name, {}), **sets}
    speed.Bench(args, name, "tiny", sets, 0.01, tmp_path, told.append).run()
    json.dumps(told, allow_nan=False)
    return [row for row in told if "clock" not in row]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="Unknown variant 'float32'"), speed.variant("float32"):
        pass
    with speed.variant(speed.EXACT):
        assert os.environ[compute.PRECISION] == "float32"


def test_maps_in_bf16_are_compared_with_those_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved: None
) -> None:
    rows = {row["what"]: row for row in rows_of(tmp_path, monkeypatch, "dae")}
    found = rows["score, bf16 against float32"]
    assert 0 < found["difference / spread"] < 0.1
    assert 0.99 < found["correlation"] < 1 - 1e-9
    assert 0 < found["AUPRC"] < 1
    assert 0 < abs(found["AUPRC difference"]) < 0.05
    assert rows["score, naive"]["slices/s"] > 0
    assert rows["train denoiser, naive"]["steps/s"] > 0


def test_float32_is_not_compared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row["what"] for row in rows_of(tmp_path, monkeypatch, "dae", "--fast")]
    assert rows == ["train denoiser", "whole training, at these rates", "score"]


def test_means_of_a_cpu_are_compared_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in variants.CPU_VARIANTS if name != "compiled"]  # it takes a minute
    rows = {row["what"]: row for row in rows_of(tmp_path, monkeypatch, "dae", "--fast", "--vary", ";".join(names))}
    trained = [f"train denoiser, {name}" for name in names]
    scored = [f"score, {name}" for name in names if "optimiser" not in name]
    whole = "whole training, at these rates"
    assert list(rows) == ["train denoiser", *trained, whole, "score", *scored]
    for name in (*trained, *scored):
        assert rows[name]["CPU ms a slice"] > 0
        assert 0.01 < rows[name]["times the usual"] < 100
    # Nothing stays on.
    assert preprocess.memory_layout(torch.device("cpu")) is torch.contiguous_format
    assert compute.precision("cpu") == "float32"
    assert torch.optim.Adam.__module__.startswith("torch.optim")


@pytest.mark.parametrize("name", ["fused optimiser", "foreach optimiser", "channels last", "bf16", "compiled"])
def test_a_means_of_a_cpu_reaches_the_training(name: str) -> None:
    plan = training.Plan(9, 2, 1e-3, optimizer="adam")
    stage = training.Stage("toy", nn.Conv2d(4, 4, 3), 8, lambda i, g: {}, lambda m, b, s: m(b["x"]).mean(), plan)
    with speed.variant(name):
        run = training.Run(stage, Context())
        layout = stage.module.weight.is_contiguous(memory_format=torch.channels_last)
        found = {
            "fused optimiser": run.optimizer.defaults["fused"] is True,
            "foreach optimiser": run.optimizer.defaults["foreach"] is True,
            "channels last": layout,
            "bf16": compute.precision("cpu") == "bf16",
            "compiled": run.compile == "default",
        }
    assert [means for means, on in found.items() if on] == [name]


def test_naive_scoring_is_float32_as_torch_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved: None
) -> None:
    applied: list[bool] = [False]
    inside: list[tuple[int, str, bool]] = []

    @contextmanager
    def watched(device: str) -> Iterator[None]:
        applied.append(True)
        yield
        applied.pop()

    dae = methods.registry.load("methods", "dae")
    real = dae.score_and_reconstruct

    def score(self: Any, batch: Any) -> Any:
        inside.append((len(batch), compute.precision("cpu"), applied[-1]))
        return real(self, batch)

    monkeypatch.setattr(compute, "applied", watched)
    monkeypatch.setattr(dae, "score_and_reconstruct", score)
    rows_of(tmp_path, monkeypatch, "dae")
    assert {(kind, on) for size, kind, on in inside if size == 1} == {("float32", False)}
    assert {(kind, on) for size, kind, on in inside if size > 1} == {("bf16", True), ("float32", True)}


def test_agreement_by_hand() -> None:
    exact = torch.tensor([[0.1, 0.9, 0.4, 0.2]]).reshape(1, 1, 2, 2)
    fast = torch.tensor([[0.1, 0.3, 0.4, 7.0]]).reshape(1, 1, 2, 2)
    brain = torch.tensor([[True, True, True, False]]).reshape(1, 1, 2, 2)
    lesions = np.array([[False, True, False, True]]).reshape(1, 1, 2, 2)
    found = speed.agreement(fast, exact, brain, lesions)
    assert found["AUPRC"] == 1
    assert found["AUPRC difference"] == pytest.approx(-0.5)  # the lesion's voxel is the second of three
    assert found["correlation"] == pytest.approx(np.corrcoef([0.1, 0.3, 0.4], [0.1, 0.9, 0.4])[0, 1])
    empty = speed.agreement(torch.zeros_like(exact), torch.zeros_like(exact), brain, lesions)
    assert empty["note"] == "the same value everywhere"
    assert "correlation" not in empty
    assert "error" in speed.agreement(fast * float("nan"), exact, brain, lesions)


def test_operations_of_the_discriminator_are_counted() -> None:
    judge = nn.Linear(4, 1)

    def loss(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        out = module(batch["x"])
        return (out.square().mean() - judge(out).mean()) if step >= opponent.start else out.square().mean()

    opponent = training.Opponent(judge, lambda a, b, batch: b(a(batch["x"]).detach()).mean(), start=0, lr=1e-3)
    stage = training.Stage(
        "toy", nn.Linear(4, 4), 8, lambda i, g: {"x": torch.ones(len(i), 4)}, loss, training.Plan(9, 2, 1e-3), opponent=opponent
    )  # fmt: skip
    own = 2 * 2 * 4 * 4  # a multiplication and an addition for each weight and sample
    other = 2 * 2 * 4 * 1
    # Forwards, then gradients of weights, and of inputs where a layer before needs them.
    assert speed.counted(stage, Context()) == (2 * own + 3 * other) + (own + 2 * other)
    opponent.start = speed.NEVER
    assert speed.counted(stage, Context()) == 2 * own


def test_a_discriminator_has_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"gan_weight": 0.5, "gan_start": 1, "ae_batch": 2}
    rows = {row["what"]: row for row in rows_of(tmp_path, monkeypatch, "madad", **sets)}
    before, after = rows["train autoencoder"], rows["train autoencoder, with discriminator"]
    assert (before["of steps"], after["of steps"]) == (1, 3)
    flop = [row["TFLOP/s"] / row["steps/s"] for row in (before, after)]
    assert flop[1] > 1.05 * flop[0]
    assert "train autoencoder, with discriminator, naive" in rows
    parts = [before, after, rows["train unet"]]
    seconds = sum(row["of steps"] / row["steps/s"] + row["first step, s"] for row in parts)
    assert rows["whole training, at these rates"]["minutes"] == pytest.approx(seconds / 60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "dea"], "Did you mean 'dae'"),
        (["--method", "dae,vae", "--preset", "huge"], "Unknown preset of dae, vae 'huge'"),
        (["--method", "dae", "--set", "stepz=3"], "Unknown parameter of method dae 'stepz'"),
        (["--method", "dae", "--set", "vae.steps=3"], "Unknown method of --set 'vae'"),
        (["--device", "cpu", "--vary", "tf23"], "Unknown variant 'tf23'"),
        (["--vary", "channel last"], "Did you mean 'channels last'"),
        (["--vary", "launched one by one"], "is no means of cpu"),
        (["--device", "gpu"], "not one of auto, cpu, cuda"),
        (["--minutes", "0"], "above 0"),
        (["--json", "nowhere/rows.json"], "no folder nowhere"),
    ],
)
def test_what_is_misspelt_is_told_first(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["methods.py", *words])
    monkeypatch.setattr(methods, "BEGIN", time.monotonic())  # not when the tests began
    with pytest.raises(SystemExit) as left:
        methods.main()
    shown = capsys.readouterr()
    assert left.value.code == 2
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


def test_the_minutes_include_the_imports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["methods.py", "--minutes", "1"])
    monkeypatch.setattr(methods, "BEGIN", time.monotonic() - 59.8)
    monkeypatch.setattr(methods, "planned", lambda args: time.sleep(30))
    begin = time.monotonic()
    with pytest.raises(SystemExit) as left:
        methods.main()
    assert left.value.code == 1
    assert time.monotonic() - begin < 15
    assert "1 minutes were over before the imports" in capsys.readouterr().err


def test_values_for_one_method_or_all() -> None:
    found = methods.assigned(["steps=3", "vae.batch=2", "method.lr=0.1"], ["dae", "vae"])
    assert found == {"dae": {"steps": 3, "lr": 0.1}, "vae": {"steps": 3, "lr": 0.1, "batch": 2}}


def test_the_large_networks_come_first() -> None:
    _, args = methods.parsed(["--preset", "paper,base", "--method", "vae,dae,madad"])
    order = [(work.name, work.preset) for work in methods.planned(args)]
    assert order[:2] == [("madad", "paper"), ("madad", "base")]
    assert ("dae", "base") in order


def _slow(args: Any, work: Any, pipe: Any) -> None:
    """A first step of half a second that its share does not cover, a row; some never end."""
    pipe.recv()
    pipe.send({"clock": True})
    pipe.send({"clock": False})
    time.sleep(0.5)
    pipe.send({"clock": True})
    if work.preset == "fails":
        os._exit(3)
    pipe.send({"what": "done"})
    if work.preset == "hangs":
        time.sleep(60)


def test_how_the_time_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "PAUSE", 0.2)
    args = SimpleNamespace(device="cpu", vary=[], seconds=1.0)
    presets = ["quick", "fails", "hangs", "quick", "hangs", "late"]
    begin = time.monotonic()
    work = [methods.Work("toy", preset) for preset in presets]
    monkeypatch.setattr(methods, "WEIGHT", {"toy": 1.0})
    rows = list(methods.all_rows(args, work[:4], begin + 8.0, _slow))
    said = [(row["preset"], row.get("error", row["what"])) for row in rows]
    late = "took more than its share of the time"
    assert said == [("quick", "done"), ("fails", "failed with exit code 3"), ("hangs", "done"), ("hangs", late), ("quick", "done")]  # fmt: skip
    monkeypatch.setattr(methods, "PAUSE", 9.0)
    begin = time.monotonic()
    rows = list(methods.all_rows(args, work[4:], begin + 1.5, _slow))
    assert time.monotonic() - begin < 5
    assert [row["error"] for row in rows if "error" in row] == ["no time left", "no time left"]


def test_the_last_figures_of_a_row_stand_apart() -> None:
    text = methods.line({"method": "dae", "what": "train", "peak GiB": 0.63, "first step, s": 5.2, "error": "late"})
    assert "train; first step, s 5.2; error late |" in text
    assert "| 0.63 |" in text
    assert text.count("|") == len(methods.SHOWN) + 1


def test_attention_is_counted_on_a_cpu() -> None:
    """Two products of 16 x 16 cells with 8 channels and 2 heads forward, and five of them backward."""
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    product = 2 * 2 * 16 * 16 * 8
    assert speed.operations(call) == (2 + 5) * product
