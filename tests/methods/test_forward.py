"""Networks as scoring calls them: portions, what they cost, compiled and recorded calls; on the CPU, where a graph is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from memory_sets import make_set
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from adbench.config import registry
from adbench.context import Context
from adbench.errors import UserError
from adbench.methods import base
from adbench.methods.common import forward, preprocess
from adbench.methods.common.forward import PORTION, Forward
from adbench.utils import compute

LOG = logging.getLogger("test")


class Network(nn.Module):
    """Two convolutions and a shift by ``t``; each call notes how many samples it had."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.called: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.called.append(len(x))
        out = self.second(F.silu(self.first(x))) + t.view(-1, 1, 1, 1)
        return out, out.amax(dim=(1, 2, 3))

    def listed(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.first(x)]

    def named(self, x: torch.Tensor) -> BaseOutput:
        return BaseOutput(sample=self.first(x))


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Network().eval().requires_grad_(False)


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn((count, 1, 12, 10), generator=torch.Generator().manual_seed(count))
    return x, torch.arange(count).float()


@pytest.mark.parametrize("count", [1, 5, PORTION - 1, PORTION, PORTION + 1, 2 * PORTION, 2 * PORTION + 7])
def test_portions_give_what_one_call_gives(network: Network, count: int, caplog: pytest.LogCaptureFixture) -> None:
    x, t = inputs(count)
    with torch.inference_mode():
        plain = Forward("cpu", LOG, portions=False)
        expected, calls = plain(network, x, t), {"listed": plain(network, x, call="listed")}
        calls["named"] = plain(network, x, call="named")
        network.called.clear()
        portions = Forward("cpu", LOG, portions=True)
        found = portions(network, x, t)
        assert [part.shape for part in found] == [part.shape for part in expected]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        for call, theirs in calls.items():
            torch.testing.assert_close(portions(network, x, call=call), theirs)
    whole = -(-count // PORTION) * [PORTION] if count >= PORTION else [count]
    # One sample is counted first, and two portions are computed before a recording is tried, which computes one on a CPU.
    assert [n for n in network.called if n > 1] == [n for n in whole if n > 1]


def test_every_sample_of_a_call_goes_through_the_same_kernels(network: Network) -> None:
    """To the bit, whatever is beside it and however many there are, as long as there is one portion."""
    x, t = inputs(3 * PORTION)
    portions = Forward("cpu", LOG, portions=True)
    whole = portions(network, x, t)[0]
    for count in (PORTION, PORTION + 1, 2 * PORTION + 5):
        assert torch.equal(portions(network, x[:count], t[:count])[0], whole[:count])


def test_outputs_are_float32_and_networks_bf16_where_the_run_is(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "precision", lambda device: "bf16")
    x, _ = inputs(PORTION + 2)
    for portions in (False, True):
        (found,) = Forward("cpu", LOG, portions=portions)(network, x, call="listed")
        assert found.dtype == torch.float32
        assert torch.equal(found, found.bfloat16().float())  # it was computed in bf16
        assert not torch.equal(found, network.first(x))


def test_operations_are_those_that_torch_counts(network: Network) -> None:
    x, t = inputs(PORTION + 3)
    portions = Forward("cpu", LOG, portions=True)
    portions(network, x, t)
    with FlopCounterMode(display=False) as counter:
        network(x[:1], t[:1])
    (call,) = portions._calls.values()
    assert call.operations == counter.get_total_flops() == 2 * 9 * (4 + 4) * 12 * 10
    assert call.samples == PORTION + 3


def compiling(monkeypatch: pytest.MonkeyPatch, backend: Any = "eager") -> list[dict[str, Any]]:
    """Have the device compile; what ``torch.compile`` is asked for, done by a ``backend`` that takes no time."""
    asked: list[dict[str, Any]] = []
    compile_ = torch.compile

    def instead(function: Any, **options: Any) -> Any:
        asked.append(options)
        return compile_(function, backend=backend, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", instead)
    monkeypatch.setattr(compute, "compile_mode", lambda device: "default")
    return asked


@pytest.mark.parametrize("pays", [True, False])
def test_a_long_scoring_is_compiled_by_its_plan(
    network: Network, pays: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = compiling(monkeypatch)
    x, t = inputs(PORTION)
    portions = Forward("cpu", LOG, portions=True)
    before = portions(network, x, t)[0]
    portions(network, x, t)  # a method may call a network several times for a slice
    of_a_slice = 2 * 2 * 9 * 8 * 120
    left = -(-forward.COMPILES_FROM // of_a_slice)  # slices that pay
    portions.expect(PORTION, PORTION + int(left) - (0 if pays else 1))
    after = portions(network, x, t)[0]
    assert asked == ([{"mode": "default", "dynamic": False}] if pays else [])
    assert portions.computed()["compile"] == ("default" if pays else "off")
    torch.testing.assert_close(after, before)
    portions.expect(1, 10**15)  # it is decided once
    assert len(asked) == int(pays)


def test_what_cannot_be_compiled_or_recorded_is_launched_with_a_warning(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(module: Any, example: Any) -> Any:
        raise RuntimeError("no compiler\nand more of it")

    compiling(monkeypatch, broken)
    x, t = inputs(5 * PORTION)
    portions = Forward("cpu", LOG, portions=True)
    before = portions(network, x, t)[0]
    assert "Network.forward is launched kernel by kernel, which is slower" in caplog.text  # a CPU records nothing
    caplog.clear()
    portions.expect(1, 10**15)
    assert torch.equal(portions(network, x, t)[0], before)
    assert "Scoring: Network.forward is not compiled, which is slower" in caplog.text
    assert portions.computed() == {"device": "cpu", "precision": "float32", "compile": "off", "networks": "launched"}


class Replayed:
    """In place of a CUDA graph: the call itself, on the inputs that it was recorded with."""

    made: list[dict[str, tuple[int, ...]]]

    def __init__(self, call: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.made.append({name: tuple(value.shape) for name, value in inputs.items()})
        self._call = call

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self._call(inputs)


def test_a_portion_is_recorded_after_some_and_again_after_its_memory_was_given_back(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    Replayed.made = []
    monkeypatch.setattr(forward, "Recording", Replayed)
    portions = Forward("cpu", LOG, portions=True)
    x, t = inputs(PORTION)
    shapes = {"0": (PORTION, 1, 12, 10), "1": (PORTION,)}
    for number in range(4):
        portions(network, x, t)
        assert Replayed.made == [shapes] * (number >= forward.LAUNCHED)
    assert portions.computed()["networks"] == "recorded"
    portions.forget()
    assert portions.computed()["networks"] == "launched"
    for _ in range(forward.LAUNCHED + 1):
        portions(network, x, t)
    assert Replayed.made == [shapes] * 2
    portions(network, x[:, :, :8], t)  # another shape has a recording of its own
    assert len(portions._calls) == 2


def test_nothing_is_compiled_while_a_portion_is_recorded(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given slices in inference mode, as a run does: a recording's own inputs are of another kind, for which a compiler guards."""
    frames: list[int] = []

    def backend(module: Any, example: Any) -> Any:
        frames.append(len(example))
        return module.forward

    class Recorded:
        def __init__(self, call: Any, inputs: dict[str, torch.Tensor]) -> None:
            before = len(frames)
            self._call = call
            self({name: value.clone() for name, value in inputs.items()})
            assert len(frames) == before

        def __call__(self, inputs: dict[str, torch.Tensor]) -> Any:
            return self._call(inputs)

    compiling(monkeypatch, backend)
    monkeypatch.setattr(forward, "Recording", Recorded)
    portions = Forward("cpu", LOG, portions=True)
    with torch.inference_mode():
        x = inputs(PORTION + 2)[0].clone()
        assert x.is_inference()
        expected = portions(network, x, call="listed")[0]
        portions.expect(1, 10**15)
        for _ in range(3):
            torch.testing.assert_close(portions(network, x, call="listed")[0], expected)
    assert portions.computed()["networks"] == "recorded"
    assert len(frames) == 1


def test_a_network_that_waits_for_the_device_is_not_recorded(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A recording that breaks costs a process memory, so none is begun."""

    def looks(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x

    monkeypatch.setattr(network, "listed", looks)
    monkeypatch.setattr(forward, "Recording", Replayed)
    Replayed.made = []
    portions = Forward("cpu", LOG, portions=True)
    x, t = inputs(PORTION)
    for _ in range(4):
        portions(network, x, call="listed")
    assert Replayed.made == []
    assert (
        "Network.listed is launched kernel by kernel, which is slower (it waits in aten._local_scalar_dense"
        in caplog.text
    )
    for _ in range(4):
        portions(network, x, t)  # another call of it may be
    assert len(Replayed.made) == 1


# Choices of built-in methods that call networks otherwise.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("ae", "vae", "dae", "ddpm", "pddpm", "thor", "andi", "itermask", "restore")},
    "madad": ("madad", {"ae_perceptual_weight": 0, "score": "both"}),
    "reflect": ("reflect", {"ae_perceptual_weight": 0}),
    "latent": ("latent", {}),
    "features": ("features", {"weights": "random", "backbone": "resnet18"}),
}


@pytest.mark.parametrize("what", sorted(METHODS.keys() - {"ddpm", "andi", "pddpm"}))  # as thor calls its network
def test_maps_of_portions_are_those_of_plain_calls(what: str, tmp_path: Path) -> None:
    """Every method's networks, with more slices than a portion holds, from a loaded fit."""
    name, values = METHODS[what]
    cls: Any = registry.load("methods", name)
    method = cls(cls.resolve("tiny", {**cls.smoke, **values}), Context())
    method.fit(make_set(12), None)
    method.save(tmp_path)
    method = cls.load(tmp_path, Context())
    batch = make_set(PORTION + 3, seed=2, name="t").batch(slice(0, PORTION + 3))
    found = []
    for portions in (False, True):
        vars(method)[base.OWN] = Forward("cpu", LOG, portions=portions)
        with torch.inference_mode():
            found.append(method.score_and_reconstruct(batch)[0])
    assert base.forward_of(method)._calls
    spread = float(found[0].std())
    torch.testing.assert_close(found[1], found[0], atol=1e-3 * spread, rtol=0)
    assert base.ways(method) == [{"device": "cpu", "precision": "float32", "compile": "off", "networks": "launched"}]


def test_only_a_loaded_fit_is_called_in_portions(tmp_path: Path) -> None:
    cls: Any = registry.load("methods", "ae")
    method = cls(cls.resolve("tiny", cls.smoke), Context())
    method.fit(make_set(12), None)
    method.save(tmp_path)
    loaded = cls.load(tmp_path, Context())
    for one in (method, loaded):
        one.ctx.device = "cuda"
    assert not base.forward_of(method)._portions  # its weights may learn on
    assert base.forward_of(loaded)._portions


def test_hooks_of_a_network_are_called(network: Network) -> None:
    network.register_forward_hook(lambda module, given, out: tuple(part * 0 for part in out))
    for portions in (False, True):
        assert not Forward("cpu", LOG, portions=portions)(network, *inputs(PORTION + 1))[0].any()


def test_a_method_may_have_names_of_its_own() -> None:
    """Of a plug-in none is taken that it would have chosen before there was anything of this."""
    cls: Any = registry.load("methods", "ae")

    class Own(cls):  # type: ignore[misc]
        def _forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.apply(x)  # type: ignore[no-any-return]

        scored = _loaded = forwards = infer = None

    method = Own(cls.resolve("tiny", cls.smoke), Context())
    method._network = method.build().eval()
    with torch.inference_mode():
        assert method._forward(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 64, 64)
    assert base.ways(method) == [{"device": "cpu", "precision": "float32", "compile": "off", "networks": "launched"}]


def test_what_has_no_entry_a_sample_is_called_as_it_is(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that belong to all samples together, and inputs that are one for all: the same as from a plain call."""
    monkeypatch.setattr(forward, "Recording", Replayed)
    Replayed.made = []
    x = inputs(2 * PORTION + 3)[0]
    odd: dict[str, Any] = {
        "codebook": lambda x: (x, torch.arange(4.0)[:, None]),
        "start": lambda x: x[:1] * 2,
        "mean": lambda x: (x, x.mean()),
    }
    plain, portions = Forward("cpu", LOG, portions=False), Forward("cpu", LOG, portions=True)
    for name, function in odd.items():
        setattr(network, name, function)
        for _ in range(4):
            torch.testing.assert_close(portions(network, x, call=name), plain(network, x, call=name))
    one = torch.tensor([3.0])
    torch.testing.assert_close(portions(network, x, one), plain(network, x, one))
    torch.testing.assert_close(portions(network, x, one[0]), plain(network, x, one[0]))


def test_inputs_of_another_type_are_not_rounded(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "Recording", Typed)
    x, t = inputs(PORTION)
    portions = Forward("cpu", LOG, portions=True)
    for _ in range(4):
        portions(network, x, t.long())
    torch.testing.assert_close(portions(network, x, t + 0.5), Forward("cpu", LOG, portions=False)(network, x, t + 0.5))


class Typed:
    """A recording's inputs keep the types they were recorded with."""

    def __init__(self, call: Any, inputs: dict[str, torch.Tensor]) -> None:
        self._call, self._inputs = call, {name: value.clone() for name, value in inputs.items()}

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Any:
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        return self._call(self._inputs)


@pytest.mark.parametrize("portions", [False, True])
@pytest.mark.parametrize("given", [None, {"sample": torch.ones(1), "loss": None}, [(torch.ones(1),)]])
def test_a_network_that_gives_no_tensors_is_told_so(network: Network, portions: bool, given: Any) -> None:
    network.odd = lambda x: given  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"gives (NoneType|tuple) where a network that a method scores with gives tensors"
    ):
        Forward("cpu", LOG, portions=portions)(network, inputs(3)[0], call="odd")
