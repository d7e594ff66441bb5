"""Which format networks compute in while they are trained and while they score, and that nothing else does; no step waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_sets import make_set
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adbench.config import registry
from adbench.context import Context
from adbench.methods import training
from adbench.methods.base import Method
from adbench.methods.common import preprocess
from adbench.methods.common.forward import WAITS
from adbench.methods.training.step import Average

PRODUCTS = ("conv", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "scaled_dot_product")  # as one or in parts
# Every learned method, and the choices that compute otherwise.
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in ("ae", "vae", "dae", "ddpm", "pddpm", "thor", "andi", "itermask", "restore", "latent")
    },
    "features": ("features", {"weights": "random", "backbone": "resnet18"}),
    "madad": ("madad", {"ae_perceptual_weight": 0, "gan_weight": 0.1, "gan_start": 1}),
    "reflect": ("reflect", {"ae_perceptual_weight": 0}),
    "vae restoration": ("vae", {"scoring": "restoration", "restoration_steps": 2}),
}


class Formats(TorchDispatchMode):
    """Formats in which convolutions and products of matrices with weights are computed, and what looks at a number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(call).removeprefix("aten.").partition(".")[0].strip("_")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name.startswith(PRODUCTS):
            self.found.add(tensors[0].dtype)
        if any(word in str(call) for word in WAITS):
            self.waits.add(name)
        if name == "index" and any(leaf.dtype == torch.bool for leaf in tensors[1:]):
            self.waits.add("index by a mask")
        return call(*args, **(kwargs or {}))


def made(what: str) -> Method:
    name, values = LEARNED[what]
    cls: Any = registry.load("methods", name)
    return cls(cls.resolve("tiny", {**cls.smoke, **values}), Context())  # type: ignore[no-any-return]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Formats]:
    """What the losses of each stage computed in, by stage; losses, weights and averages are float32."""
    seen: dict[str, Formats] = {}
    gradients = training.Run._gradients

    def spied(run: training.Run, batch: Any, loss: Any, optimizer: Any, parameters: Any, dropout: str) -> torch.Tensor:
        name = run.stage.name if dropout == "dropout" else f"{run.stage.name} {dropout}"

        def watched(piece: Any) -> torch.Tensor:
            with seen.setdefault(name, Formats()):
                value: torch.Tensor = loss(piece)
            assert value.dtype == torch.float32
            return value

        total = gradients(run, batch, watched, optimizer, parameters, dropout)
        averages = [] if run.ema is None else run.ema.weights
        assert {value.dtype for value in (*run.parameters, *averages, total)} == {torch.float32}
        return total

    monkeypatch.setattr(training.Run, "_gradients", spied)
    return seen


@pytest.mark.parametrize("what", LEARNED)
@pytest.mark.parametrize("format", ["bf16", "float32"])
def test_networks_alone_compute_in_the_precision_of_the_run(
    what: str, format: str, steps: dict[str, Formats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "precision", lambda device: format)
    expected = {torch.bfloat16 if format == "bf16" else torch.float32}
    method = made(what)
    method.fit(make_set(12), None)
    assert {stage: formats.found for stage, formats in steps.items()} == dict.fromkeys(steps, expected)
    batch = make_set(3, seed=2, name="t").batch(slice(0, 3))
    with torch.inference_mode(), Formats() as scored:
        maps, images = method.score_and_reconstruct(batch)
    assert expected <= scored.found
    if format == "float32":
        assert scored.found == expected
    assert maps.dtype == torch.float32
    assert images is None or images.dtype == torch.float32


def on_meta(modules: list[nn.Module]) -> None:
    for module in (part for each in modules for part in each.modules()):
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is not None:
                    there = value.detach().to("meta")
                    store[key] = nn.Parameter(there, value.requires_grad) if store is module._parameters else there


@pytest.mark.parametrize("what", [what for what in LEARNED if what not in ("features", "vae restoration")])
def test_no_step_of_a_steady_stage_looks_at_a_number(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no numbers, whatever would wait for one raises."""
    looked: list[str] = []

    class Enough(Exception):
        pass

    train = training.train_stage

    def instead(stage: training.Stage, ctx: Context) -> training.StageResult:
        result = train(stage, ctx)  # what later stages start from
        batch = {key: value.to("meta") for key, value in stage.draw(torch.arange(3), training.generator(0)).items()}
        opponent = stage.opponent
        rivals = [] if opponent is None else [opponent.module]
        kept = [
            (part, dict(part._parameters), dict(part._buffers))
            for each in (stage.module, *rivals)
            for part in each.modules()
        ]
        on_meta([stage.module, *rivals])
        stage.module.train()
        weights = [weight.requires_grad_() for weight in stage.module.parameters()]
        optimizer, average = torch.optim.Adam(weights), Average(weights, 0.9)
        with Formats() as seen:
            stage.loss(stage.module, batch, 10).backward()
            if opponent is not None:
                opponent.loss(stage.module, opponent.module, batch).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
        assert seen.waits == set()
        optimizer.step()
        average.update()
        for part, parameters, buffers in kept:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
        stage.module.eval()
        looked.append(stage.name)
        return result

    for place in ("adbench.methods.training", "adbench.methods.madad.autoencoder.training"):
        monkeypatch.setattr(f"{place}.train_stage", instead)
    method = made(what)
    method.fit(make_set(12), None)
    assert looked
