"""GPU memory that a training step asks for, counted on the meta device: no GPU takes part, and nothing is computed but draws.

    python benchmarks/memory.py --method madad --preset paper
    python benchmarks/memory.py --method dae,thor,ddpm --preset base,paper --gib 8,24

What is fixed: weights, gradients, the two moments of Adam and averaged weights, in float32. What grows with the samples that are
computed at once: the tensors that a forward pass in bf16 keeps for the backward pass. Both together are what a step launched
kernel by kernel holds; compiled it keeps less. The allocator, algorithms of cuDNN and slices on the GPU take one or two GiB
more. A step that does not fit a card is split by itself into 2, 4, 8, ... micro-batches; the last columns say how many a card of
so many GiB needs. The perceptual term of an autoencoder is left out, as its weights are not installed with adbench.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from speed import WaveParams, Waves

from adbench.config import registry
from adbench.context import Context
from adbench.datasets.store.prepare import prepare
from adbench.errors import UserError, unknown

LEARN = ("madad", "reflect", "ae", "vae", "dae", "restore", "ddpm", "pddpm", "andi", "thor", "itermask")
QUICK = {"ae_perceptual_weight": 0, "augment": False}  # no step asks for more with augmented copies
SLICES = 2  # that are drawn from
SAMPLES = 2  # that are counted
GIB = 2**30
RESERVE = 1.5  # GiB for what is not counted


def kept(call: Callable[[], Any], weights: set[int]) -> int:
    """Bytes that the forward pass of ``call`` keeps for the backward pass, without those of the storages ``weights``."""
    import torch

    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    del result
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def step(stage: Any) -> dict[str, float]:
    """GiB that are fixed and GiB a sample of a step of ``stage``, with its discriminator if it has one."""
    import torch

    from adbench.methods import training

    indices = training.batch_indices(0, stage.name, 0, SAMPLES, stage.samples)
    drawn = stage.draw(indices, training.generator(0))
    batch = {
        key: value.to("meta", torch.bfloat16 if value.is_floating_point() else None) for key, value in drawn.items()
    }
    module = copy.deepcopy(stage.module).to("meta", torch.bfloat16).train().requires_grad_()
    numbers = sum(weight.numel() for weight in module.parameters())
    fixed = numbers * 4 * (4 + bool(stage.plan.ema))
    at = 0
    rival = stage.opponent
    if rival is not None:
        rival.module.to("meta", torch.bfloat16).train().requires_grad_()
        fixed += sum(weight.numel() for weight in rival.module.parameters()) * 4 * 4
        at = rival.start
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    grows = kept(lambda: stage.loss(module, batch, at), weights)
    if rival is not None:
        grows = max(grows, kept(lambda: rival.loss(module, rival.module, batch), weights))
        rival.module.to_empty(device="cpu").float()
    return {"numbers": numbers, "fixed": fixed / GIB, "sample": grows / SAMPLES / GIB}


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
    from adbench.methods import training

    cls = registry.load("methods", name)
    params = cls.resolve(preset, QUICK if name in ("madad", "reflect") else {})
    lines: list[str] = []

    def instead(stage: Any, ctx: Context) -> Any:
        found, batch = step(stage), stage.plan.batch
        cells = [name, preset, stage.name, f"{found['numbers'] / 1e6:.1f}", f"{batch}", f"{found['fixed']:.2f}"]
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
        cards = [float(part) for part in args.gib.split(",")]
        for name in names:
            if name not in LEARN:
                raise unknown("method with a network", name, LEARN)
            for preset in presets:
                registry.load("methods", name).resolve(preset, {})
    except (UserError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    heads = ["method", "preset", "stage", "M weights", "batch", "fixed, GiB", "MiB a sample", "step, GiB"]
    heads += [f"micro-batches, {card:g} GiB" for card in cards]
    print("| " + " | ".join(heads) + " |\n|---|---|---|" + "--:|" * (len(heads) - 3))
    for name in names:
        for preset in presets:
            rows(name, preset, cards)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
