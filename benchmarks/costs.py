"""What a training asks of a GPU, counted on the meta device: no GPU takes part, and nothing is computed but draws and latents.

    python benchmarks/costs.py --method madad --preset paper
    python benchmarks/costs.py --method dae,thor,ddpm --preset base,paper --gib 8,24

Operations are those of a step's forward and backward pass (a multiplication and an addition are two), of a sample and of all
steps, which of a stage with a discriminator has fewer before it joins; a GPU does 20 to 45 % of its matrix peak. Memory, what is fixed: weights, gradients, the two moments of Adam and averaged weights in float32, and weights in bf16. What grows with
the samples that are computed at once: the tensors that a forward pass keeps for the backward pass, in bf16 or float32 as autocast
has it. Both together are what a step launched kernel by kernel holds; compiled it keeps less. The allocator, algorithms of cuDNN
and slices on the GPU take one or two GiB more. A step that does not fit a card is split by itself into 2, 4, 8, ... micro-batches; the
last columns say how many a card of so many GiB needs. The perceptual term of an autoencoder is left out, as its weights are not
installed with adbench; of `reflect` the stage after its teacher, which takes as much as the one before. Attention is counted as a
CPU computes it, with matrices that a kernel of a GPU does not keep.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from speed import WaveParams, Waves, operations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from adbench.config import registry
from adbench.context import Context
from adbench.datasets.store.prepare import prepare
from adbench.errors import UserError, unknown
from adbench.methods import training

LEARN = ("madad", "reflect", "ae", "vae", "dae", "restore", "ddpm", "pddpm", "andi", "thor", "itermask")
AUTOENCODER = {"ae_perceptual_weight": 0, "augment": False}  # no step asks for more with augmented copies
QUICK: dict[str, dict[str, Any]] = {"madad": AUTOENCODER, "reflect": {**AUTOENCODER, "reflow_steps": 0}}
SLICES = 2  # that are drawn from
HALF = (F.conv2d, F.conv_transpose2d, F.linear, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm)
HALF += (F.scaled_dot_product_attention, torch.Tensor.matmul, torch.einsum)
FULL = (F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax)
FULL += (F.mse_loss, F.l1_loss, torch.exp)
GIB = 2**30
RESERVE = 1.5  # GiB for what is not counted


class Autocast(TorchFunctionMode):
    """The formats in which autocast on a GPU computes, for tensors of the meta device, which it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self._cast: dict[int, torch.Tensor] = {}  # of weights, once

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = torch.bfloat16 if call in HALF else torch.float32 if call in FULL else None

        def cast(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == kind:
                return value
            if isinstance(value, torch.nn.Parameter):
                return self._cast.setdefault(id(value), value.to(kind))
            return value.to(kind)

        return (
            call(*args, **(kwargs or {}))
            if kind is None
            else call(*tree_map(cast, args), **tree_map(cast, kwargs or {}))
        )


def kept(call: Callable[[], object], modules: list[torch.nn.Module]) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights of ``modules``."""
    storages: dict[int, torch.UntypedStorage] = {}
    weights = {weight.untyped_storage()._cdata for module in modules for weight in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Autocast():
        result = call()
    del result
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def step(stage: training.Stage) -> dict[str, float]:
    """Operations a sample, GiB that are fixed and GiB a sample of a step of ``stage``, with its discriminator if it has one."""
    indices = training.batch_indices(0, stage.name, 0, 2, stage.samples)
    drawn = {key: value.to("meta") for key, value in stage.draw(indices, training.generator(0)).items()}
    module, rival = copy.deepcopy(stage.module).to("meta").train().requires_grad_(), stage.opponent
    modules, at, numbers = [module], 0, sum(weight.numel() for weight in module.parameters())
    fixed = numbers * 4 * (4 + bool(stage.plan.ema))
    if rival is not None:
        modules.append(rival.module.to("meta").train().requires_grad_())
        fixed += sum(weight.numel() for weight in rival.module.parameters()) * 4 * 4
        at = rival.start

    def bytes_of(samples: int) -> int:
        batch = {key: value[:samples] for key, value in drawn.items()}
        found = kept(lambda: stage.loss(module, batch, at), modules)
        return found if rival is None else max(found, kept(lambda: rival.loss(module, rival.module, batch), modules))

    one, two = bytes_of(1), bytes_of(2)

    def operations_at(number: int) -> float:
        def both() -> None:
            stage.loss(module, drawn, number).backward()
            if rival is not None and number >= at:
                rival.loss(module, rival.module, drawn).backward()

        return operations(both) / 2

    alone, together = operations_at(0), operations_at(at)
    if rival is not None:
        rival.module.to_empty(device="cpu")
    joins = min(at, stage.plan.steps)
    return {
        "operations": together,
        "in all": stage.plan.batch * (alone * joins + together * (stage.plan.steps - joins)),
        "numbers": numbers,
        "fixed": (fixed + 2 * one - two) / GIB,
        "sample": (two - one) / GIB,
    }


def micro_batches(found: dict[str, float], batch: int, card: float) -> str:
    """How many micro-batches a step of ``batch`` samples needs on a card of ``card`` GiB."""
    parts = 1
    while found["fixed"] + found["sample"] * -(-batch // parts) + RESERVE > card:
        if parts >= batch:
            return "too large"
        parts *= 2
    return str(parts)


def rows(name: str, preset: str, cards: list[float]) -> list[str]:
    """A line of the table for each stage of a method with a preset."""
    cls = registry.load("methods", name)
    params = cls.resolve(preset, QUICK.get(name, {}))
    lines: list[str] = []

    def instead(stage: Any, ctx: Context) -> Any:
        found, batch = step(stage), stage.plan.batch
        every = f"{found['in all'] / 1e15:.3g}" if stage.plan.seconds is None else "by the clock"
        cells = [name, preset, stage.name, f"{found['numbers'] / 1e6:.1f}", f"{stage.plan.steps} x {batch}"]
        cells += [f"{found['operations'] / 1e9:.3g}", every, f"{found['fixed']:.2f}"]
        cells += [f"{1024 * found['sample']:.1f}", f"{found['fixed'] + found['sample'] * batch:.2f}"]
        lines.append("| " + " | ".join([*cells, *(micro_batches(found, batch, card) for card in cards)]) + " |")
        print(lines[-1], flush=True)
        return training.StageResult(0, [], 0, None, 0.0)

    with tempfile.TemporaryDirectory(prefix="adbench-benchmark-") as folder:
        data = Waves(WaveParams(side=getattr(params, "image_size", 128)), None)
        slices = prepare(data, "FLAIR", Path(folder)).healthy("train").limited(SLICES)
        with mock.patch.object(training, "train_stage", instead):
            cls(params, Context()).fit(slices, None)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="madad", help=f"comma-separated, of {', '.join(LEARN)}")
    parser.add_argument("--preset", default="base,paper", help="comma-separated")
    parser.add_argument("--gib", default="24,80", help="GiB of cards, comma-separated")
    args = parser.parse_args()
    try:
        names, presets = args.method.split(","), args.preset.split(",")
        cards = [float(part) for part in args.gib.split(",") if part]
        if not cards or not all(0 < card < math.inf for card in cards):
            raise UserError(f"--gib {args.gib}: give the GiB of cards, each above 0, e.g. 8,24.")
        for name in names:
            if name not in LEARN:
                raise unknown("method with a network", name, LEARN)
            for preset in presets:
                registry.load("methods", name).resolve(preset, {})
    except (UserError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    heads = ["method", "preset", "stage", "M weights", "steps", "GFLOP a sample", "PFLOP in all"]
    heads += ["fixed, GiB", "MiB a sample", "step, GiB"]
    heads += [f"micro-batches, {card:g} GiB" for card in cards]
    print("| " + " | ".join(heads) + " |\n|---|---|---|" + "--:|" * (len(heads) - 3))
    for name in names:
        for preset in presets:
            rows(name, preset, cards)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
