"""Training and scoring speed and peak memory by method, preset and device.

    python benchmarks/methods.py --preset tiny
    python benchmarks/methods.py --preset paper --method madad --device cuda --naive

Slices are random smooth discs on the grid the preset works on, so nothing needs to be downloaded; speed does not depend on what
they show. Each row runs in a process of its own, so that its peak memory is its own. ``--naive`` adds, for madad, the path that
encodes every batch anew instead of caching the latents (float32, batch 16 on a GPU as in the public code).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.store import prepare
from adbench.params import ParamSet, param

METHODS = ("madad", "ae", "histeq", "zscore", "constant")


class DiscParams(ParamSet):
    side: int = param(128, "side of the square slices", unit="px")


class Discs(Dataset):
    """64 generated slices."""

    info = DatasetInfo("discs", "1", ("FLAIR",), "CC0", "generated", "nothing on disk", "phantom", needs_root=False)
    params: DiscParams

    def discover(self, modality: str) -> list[Case]:
        return [Case("discs", "train")]

    def load(self, case: Case, modality: str) -> Stack:
        side, rng = self.params.side, np.random.default_rng(0)
        rows, columns = np.mgrid[:side, :side]
        brain = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (0.42 * side) ** 2
        phases = rng.uniform(0, 6, (64, 2, 1, 1))
        waves = 0.5 + 0.3 * np.sin(rows / 9 + phases[:, 0]) * np.cos(columns / 7 + phases[:, 1])
        return Stack((waves * brain).astype(np.float32), np.repeat(brain[None], 64, 0), None, range(64))


def _peak_gb(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _clock(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _speed(stage: Any, ctx: Any, device: str, seconds: float) -> float:
    """Optimiser steps a second of ``stage`` after warm-up."""
    from adbench.methods import training

    run = training.Run(stage, ctx)
    stage.module.train()
    for _ in range(3):
        run.take_step()
    run.check()
    start, steps = _clock(device), 0
    while _clock(device) - start < seconds:
        run.take_step()
        run.check()
        steps += 1
    return steps / (_clock(device) - start)


def measure(name: str, preset: str, device: str, seconds: float, naive: bool) -> list[dict[str, Any]]:
    """Rows of the table for one method."""
    import torch

    from adbench import registry
    from adbench.context import Context
    from adbench.methods import training

    cls = registry.load("methods", name)
    params = cls.resolve(preset, {})
    side = getattr(params, "image_size", 128)
    cache = tempfile.TemporaryDirectory(prefix="adbench-benchmark-")
    data = prepare(Discs(DiscParams(side=side), None), "FLAIR", Path(cache.name)).healthy("train")
    ctx = Context(device=device)
    rows: list[dict[str, Any]] = []
    inner = training.train_stage

    def timed(stage: Any, context: Any) -> Any:
        rate = _speed(stage, context, device, seconds)
        what = f"train {stage.name}"
        rows.append({"what": what, "steps/s": rate, "slices/s": rate * stage.plan.batch, "peak GB": _peak_gb(device)})
        return training.StageResult(0, [], 0, None, 0.0)

    training.train_stage = timed
    try:
        method = cls(params, ctx)
        start = _clock(device)
        method.fit(data, None)
        if not rows:
            rows.append({"what": "fit", "slices/s": len(data) / (_clock(device) - start), "peak GB": _peak_gb(device)})
    finally:
        training.train_stage = inner
    for part in ("_network", "_codec", "_unet"):
        if hasattr(method, part):
            getattr(method, part).eval().to(device)
    batch = data.batch(slice(0, 32)).to(device)
    with torch.inference_mode():
        method.score_and_reconstruct(batch)
        start, rounds = _clock(device), 0
        while rounds == 0 or _clock(device) - start < seconds:
            method.score_and_reconstruct(batch)
            rounds += 1
    rows.append({"what": "score", "slices/s": 32 * rounds / (_clock(device) - start), "peak GB": _peak_gb(device)})
    if naive and name == "madad":
        rows.append(_naive(method, data, ctx, seconds))
    return rows


def _naive(method: Any, data: Any, ctx: Any, seconds: float) -> dict[str, Any]:
    """Training of the UNet with the frozen encoder run at every step, float32."""
    import torch

    from adbench.methods import training
    from adbench.methods.madad import diffusion, masking
    from adbench.methods.madad.network import diffusion_loss
    from adbench.methods.resident import Pictures

    p, codec, unet = method.params, method._codec, method._unet.train().requires_grad_(True)
    pictures = Pictures(data, (p.image_size, p.image_size), ctx.device)
    alphas, size = diffusion.alphas_cumprod(), min(16, p.batch)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=p.lr)

    def step(number: int) -> None:
        generator = training.generator(0, number)
        image, brain = pictures.get(torch.randint(0, len(data), (size,), generator=generator))
        with torch.no_grad():
            mean, std = codec.encode(image * 2 - 1)
        z0 = (mean + std * torch.randn(mean.shape, generator=generator).to(mean)) * method._scale
        mask = masking.random_masks(masking.allowed_cells(brain, tuple(mean.shape[-2:])), generator)
        t = torch.randint(1, len(alphas), (size,), generator=generator).to(mean.device)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        clean, logit = unet(diffusion.q_sample(z0, mask, noise, t, alphas), t)
        optimizer.zero_grad()
        diffusion_loss(clean, logit, z0, mask, p.mask_loss, p.mask_weight).backward()
        optimizer.step()

    for number in range(3):
        step(number)
    start, steps = _clock(ctx.device), 0
    while _clock(ctx.device) - start < seconds:
        step(steps)
        steps += 1
    rate = steps / (_clock(ctx.device) - start)
    return {
        "what": f"train unet, naive, batch {size}",
        "steps/s": rate,
        "slices/s": rate * size,
        "peak GB": _peak_gb(ctx.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="time spent on each figure")
    parser.add_argument("--naive", action="store_true", help="also the path that encodes every step (madad)")
    parser.add_argument("--json", action="store_true", help="print the rows of one method as JSON and nothing else")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.method, args.preset, args.device, args.seconds, args.naive)))
        return
    print(f"{'method':10} {'preset':7} {'device':7} {'what':30} {'steps/s':>9} {'slices/s':>10} {'peak GB':>8}")
    for name in args.method.split(","):
        options = ["--preset", args.preset, "--device", args.device, "--seconds", str(args.seconds), "--json"]
        command = [sys.executable, __file__, "--method", name, *options, *(["--naive"] if args.naive else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:10} {args.preset:7} {args.device:7} failed: {done.stderr.strip().splitlines()[-1:]}")
            continue
        for row in json.loads(done.stdout.splitlines()[-1]):
            steps = f"{row['steps/s']:9.2f}" if "steps/s" in row else " " * 9
            print(
                f"{name:10} {args.preset:7} {args.device:7} {row['what']:30} {steps} {row['slices/s']:10.1f} {row['peak GB']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
