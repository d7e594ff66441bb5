"""Training and scoring speed and peak memory of every built-in method, by preset and device.

    python benchmarks/methods.py --preset tiny
    python benchmarks/methods.py --preset paper --method madad --device cuda --naive
    python benchmarks/methods.py --preset tiny --markdown speed.md

Slices are generated waves on the grid the preset works on, so nothing is downloaded; speed does not depend on what they show.
Each row runs in a process of its own, so that its peak memory is its own. Without ``--device`` there is a row for the CPU
and, where there is a GPU, one for it.

``--naive`` adds madad as one writes it at first: the encoder runs in every training step, on freshly augmented slices, in float32
and batches of 16 as in the public code; a slice is scored alone, with one decoding for the repaired and one for the plain latent.
The ratio to the rows above it is what caching and batching bring.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.store.prepare import prepare
from adbench.params import ParamSet, param

SLICES = 64
BATCH = {"cpu": 32, "cuda": 128}  # slices that are scored at a time, as a run does


class WaveParams(ParamSet):
    side: int = param(128, "side of the square slices", unit="px")


class Waves(Dataset):
    """Generated slices, half of them for training."""

    info = DatasetInfo("waves", "1", ("FLAIR",), "CC0", "generated", "nothing on disk", "phantom", needs_root=False)
    params: WaveParams

    def discover(self, modality: str) -> list[Case]:
        return [Case("waves", "train")]

    def load(self, case: Case, modality: str) -> Stack:
        side, rng = self.params.side, np.random.default_rng(0)
        rows, columns = np.mgrid[:side, :side]
        brain = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (0.42 * side) ** 2
        phases = rng.uniform(0, 6, (SLICES, 2, 1, 1))
        waves = 0.5 + 0.3 * np.sin(rows / 9 + phases[:, 0]) * np.cos(columns / 7 + phases[:, 1])
        return Stack((waves * brain).astype(np.float32), np.repeat(brain[None], SLICES, 0), None, range(SLICES))


class Bench:
    """One method with one preset on one device, with slices of its size."""

    def __init__(self, name: str, preset: str, device: str, seconds: float, sets: dict[str, Any], folder: Path) -> None:
        from adbench.config import registry
        from adbench.context import Context

        self.device, self.seconds, self.ctx = device, seconds, Context(device=device)
        self.cls = registry.load("methods", name)
        self.params = self.cls.resolve(preset, sets)
        side = getattr(self.params, "image_size", 128)
        self.data = prepare(Waves(WaveParams(side=side), None), "FLAIR", folder).healthy("train")

    def now(self) -> float:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak(self) -> float:
        """Peak memory in GiB: of the GPU, else of the process."""
        import torch

        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def rate(self, step: Callable[[], object], warm: int = 3) -> float:
        """Calls of ``step`` a second, after some that do not count."""
        for _ in range(warm):
            step()
        start, calls = self.now(), 0
        while calls == 0 or self.now() - start < self.seconds:
            step()
            calls += 1
        return calls / (self.now() - start)

    def fitted(self, on_stage: Callable[[Any], None]) -> Any:
        """The method after a fit whose training loop does nothing but call ``on_stage``."""
        from adbench.methods import training

        inner = training.train_stage

        def instead(stage: Any, ctx: Any) -> Any:
            on_stage(stage)
            return training.StageResult(0, [], 0, None, 0.0)

        training.train_stage = instead
        try:
            method = self.cls(self.params, self.ctx)
            method.fit(self.data, None)
        finally:
            training.train_stage = inner
        return method

    def loaded(self) -> Any:
        """The method with untrained weights, saved and loaded as a run does before it scores."""
        with tempfile.TemporaryDirectory() as folder:
            self.fitted(lambda stage: None).save(Path(folder))
            return self.cls.load(Path(folder), self.ctx)

    def row(self, what: str, calls: float, slices: int, parameters: int | None = None) -> dict[str, Any]:
        found = {"what": what, "slices/s": calls * slices, "peak_gib": self.peak()}
        return found if parameters is None else {**found, "steps/s": calls, "parameters": parameters}

    def train(self) -> list[dict[str, Any]]:
        from adbench.methods import training

        rows: list[dict[str, Any]] = []

        def timed(stage: Any) -> None:
            run = training.Run(stage, self.ctx)
            stage.module.train()

            def step() -> None:
                run.take_step()
                run.check()

            count = sum(p.numel() for p in stage.module.parameters())
            rows.append(self.row(f"train {stage.name}", self.rate(step), stage.plan.batch, count))

        start = self.now()
        method = self.fitted(timed)
        if not rows and method.state():  # learned without a training loop
            rows.append(self.row("fit", 1 / (self.now() - start), len(self.data)))
        return rows

    def score(self) -> list[dict[str, Any]]:
        import torch

        method = self.loaded()
        size = min(BATCH["cuda" if self.device.startswith("cuda") else "cpu"], len(self.data))
        batch = self.data.batch(slice(0, size)).to(self.device)
        with torch.inference_mode():
            rows = [self.row("score", self.rate(lambda: method.score_and_reconstruct(batch), warm=1), size)]
            if getattr(method.params, "score", "") == "repair":  # madad: one pass of the mask head instead
                method.params = method.params.model_copy(update={"score": "probability"})
                rate = self.rate(lambda: method.score_and_reconstruct(batch), warm=1)
                rows.append(self.row("score = probability", rate, size))
        return rows

    def naive_train(self) -> list[dict[str, Any]]:
        """The UNet of madad with the frozen encoder run at every step, float32."""
        import torch

        from adbench.methods import training
        from adbench.methods.common import image_ops
        from adbench.methods.madad import diffusion

        method = self.loaded()
        p, codec, unet = method.params, method._codec, method._unet.train().requires_grad_(True)
        alphas, size = diffusion.alphas_cumprod(), min(16, p.batch)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=p.lr)
        done = 0

        def step() -> None:
            nonlocal done
            generator = training.generator(0, done)
            batch = self.data.batch(torch.randint(0, len(self.data), (size,), generator=generator).numpy())
            image, brain = batch.image.to(self.device), batch.brain.to(self.device)
            if p.standardise:
                image = image_ops.standardise(image, brain)[0]
            image, brain = image_ops.augment(image, brain, generator)
            with torch.no_grad():
                mean, std = codec.encode(image * 2 - 1)
            z0 = (mean + std * torch.randn(mean.shape, generator=generator).to(mean)) * method._scale
            mask, _ = diffusion.random_masks(diffusion.allowed_cells(brain, tuple(mean.shape[-2:])), generator)
            t = torch.randint(1, len(alphas), (size,), generator=generator).to(mean.device)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            clean, logit = unet(diffusion.q_sample(z0, mask, noise, t, alphas), t)
            optimizer.zero_grad()
            diffusion.diffusion_loss(clean, logit, z0, mask, p.mask_loss, p.mask_weight).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            done += 1

        count = sum(q.numel() for q in unet.parameters())
        return [self.row(f"train unet, naive, batch {size}", self.rate(step), size, count)]

    def naive_score(self) -> list[dict[str, Any]]:
        """Slice by slice, float32, the repaired and the plain latent decoded one after the other."""
        import torch

        from adbench.methods.common import preprocess

        method = self.loaded()
        codec, decode = method._codec, method._codec.decode
        codec.decode = lambda latent: torch.cat([decode(each) for each in latent.split(1)])
        preprocess.autocast = lambda device: torch.autocast(device.type, enabled=False)
        batches = [self.data.batch(slice(n, n + 1)).to(self.device) for n in range(len(self.data))]
        done = 0

        def one() -> None:
            nonlocal done
            method.score_and_reconstruct(batches[done % len(batches)])
            done += 1

        with torch.inference_mode():
            return [self.row("score, naive, slice by slice", self.rate(one), 1)]


def measured(options: list[str]) -> list[dict[str, Any]]:
    """The rows of one part, measured in a process of its own; the error as a row when there was one."""
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [{"what": options[options.index("--part") + 1], "error": last}]
    return json.loads(done.stdout.splitlines()[-1])


def as_markdown(rows: list[dict[str, Any]]) -> str:
    heads = ["method", "preset", "device", "what", "slices/s", "steps/s", "peak GiB", "M parameters"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|--:|--:|--:|--:|"]
    for row in rows:
        if "error" in row:
            cells = [row["error"].replace("|", "/"), "", "", ""]
        else:
            steps = f"{row['steps/s']:.3g}" if "steps/s" in row else ""
            size = f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else ""
            cells = [f"{row['slices/s']:.3g}", steps, f"{row['peak_gib']:.2f}", size]
        lines.append("| " + " | ".join([row["method"], row["preset"], row["device"], row["what"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from adbench.config import registry, run_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default=",".join(registry.BUILTIN["methods"]), help="comma-separated")
    parser.add_argument("--preset", default="tiny", help="comma-separated")
    parser.add_argument("--device", default="", help="comma-separated; default: cpu, and cuda where there is one")
    parser.add_argument("--seconds", type=float, default=5.0, help="time spent on each figure")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the methods")
    parser.add_argument("--naive", action="store_true", help="also madad as one writes it at first")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--part", choices=["train", "score", "naive_train", "naive_score"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        sets = {key: value for _, key, value in (run_config.parse_assignment(f"it.{text}") for text in args.set)}
        with tempfile.TemporaryDirectory(prefix="adbench-benchmark-") as folder:
            bench = Bench(args.method, args.preset, args.device, args.seconds, sets, Path(folder))
            print(json.dumps(getattr(bench, args.part)()))
        return
    devices = [device for device in args.device.split(",") if device]
    if not devices:
        import torch

        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows: list[dict[str, Any]] = []
    print(as_markdown([]), end="")
    for device in devices:
        for preset in args.preset.split(","):
            for name in args.method.split(","):
                parts = ["train", "score", *(["naive_train", "naive_score"] if args.naive and name == "madad" else [])]
                for part in parts:
                    options = ["--part", part, "--method", name, "--preset", preset, "--device", device]
                    options += ["--seconds", str(args.seconds), *(f"--set={text}" for text in args.set)]
                    for row in measured(options):
                        rows.append({"method": name, "preset": preset, "device": device, **row})
                        print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(as_markdown(rows))


if __name__ == "__main__":
    main()
