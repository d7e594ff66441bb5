"""Training and scoring speed, share of the device's peak, and peak memory of every built-in method, by preset.

    python benchmarks/methods.py --device cpu
    python benchmarks/methods.py --device cuda --vary --json speed.json --profile profiles
    python benchmarks/methods.py --device cuda --method madad --preset paper --minutes 3

Rows come as they are measured. Slices are generated waves on the grid the preset works on, so nothing is downloaded; speed
does not depend on what they show. Operations are counted by ``torch.utils.flop_counter`` (matrix products, convolutions,
attention; a multiplication and an addition are two) and compared with the fastest product of two large matrices, measured
first. Each method and preset has a process of its own; ``--minutes`` are shared by all, and what they do not suffice for is
named at the end.

*Naive* is what one writes at first, measured on the same card in the same run: batches drawn in the step, float32 as torch
is set, weights updated and averaged one by one, every loss read; slices scored one by one. ``--vary`` measures what each
means is worth by itself. *Agreement* compares the maps with those of float32, same weights (after the timed steps).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from adbench.config import registry, run_config
from adbench.context import Context
from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.store.prepare import prepare
from adbench.params import ParamSet, param
from adbench.results import provenance
from adbench.utils import compute

SLICES = 128
BATCH = {"cpu": 32, "cuda": 128}  # slices that are scored at a time, as a run does
LEARN = ("madad", "reflect", "ae", "vae", "dae", "restore", "ddpm", "pddpm", "andi", "thor", "itermask", "features")
# What takes the place of weights that are not installed with adbench: as fast, and a term that is left out.
NOT_INSTALLED = {
    "features": {"weights": "random"},
    "madad": {"ae_perceptual_weight": 0},
    "reflect": {"ae_perceptual_weight": 0},
}
UNCOMPILED = {compute.COMPILE: "off"}
VARIANTS: dict[str, dict[str, str]] = {  # and what is set in the environment
    "not compiled": UNCOMPILED,
    "not compiled, launched one by one": UNCOMPILED,
    "not compiled, deterministic": UNCOMPILED,
    "not compiled, float32": UNCOMPILED | {compute.PRECISION: "float32"},
    "not compiled, TF32": UNCOMPILED | {compute.PRECISION: "tf32"},
    "launched one by one": {},
    "cuDNN's choice by trial": {},
    "deterministic": {},
    "batch drawn in the step": {},
    "not compiled, channels first": UNCOMPILED,
}
SHOWN = ("method", "preset", "what", "slices/s", "steps/s", "TFLOP/s", "% of peak", "peak GiB")


class WaveParams(ParamSet):
    side: int = param(128, "side of the square slices", unit="px")


class Waves(Dataset):
    """Generated slices for training."""

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


class Clock:
    """Calls a second, memory and operations on one device."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds, self.cuda = device, seconds, device.startswith("cuda")

    def now(self) -> float:
        import torch

        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_gib(self) -> float:
        """Peak memory: of the GPU since the last figure, else of the process so far."""
        import torch

        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def rate(self, call: Callable[[], object], warm: int = 3) -> float:
        """Calls a second, after some that do not count."""
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(warm):
            call()
        start, calls = self.now(), 0
        while calls == 0 or self.now() - start < self.seconds:
            for _ in range(1 if calls < 8 else 8):  # looking at the clock waits for the GPU
                call()
                calls += 1
        return calls / (self.now() - start)

    def matrix_peak(self) -> float:
        """TFLOP/s of the product of two square matrices in the format of the networks, the best of several."""
        import torch

        side = 8192 if self.cuda else 1024
        kind = torch.bfloat16 if compute.precision(self.device) == "bf16" else torch.float32
        a, b = (torch.randn((side, side), device=self.device, dtype=kind) for _ in range(2))
        times = []
        with compute.applied(self.device):
            for _ in range(20):
                start = self.now()
                a @ b
                times.append(self.now() - start)
        return 2 * side**3 / min(times) / 1e12


def operations(call: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Within the block one means is switched on or off."""
    import torch

    from adbench.methods.training import run, step

    with ExitStack() as stack:

        def put(owner: Any, attribute: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, attribute, value))

        stack.enter_context(mock.patch.dict(os.environ, VARIANTS.get(name, {})))
        if name.endswith("launched one by one"):
            put(run, "LAUNCHED", 10**9)
        if name == "batch drawn in the step":
            put(run, "Batches", lambda stage, seed, device: step.Batches(stage, seed, device, ahead=False))
        if name.endswith("channels first"):
            put(run, "memory_layout", lambda device: torch.contiguous_format)
        if name.endswith("by trial"):
            stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = True
        if name.endswith("deterministic"):
            torch.use_deterministic_algorithms(True, warn_only=True)
            stack.callback(torch.use_deterministic_algorithms, False)
        yield


class Bench:
    """One method with one preset on one device, with slices of its size; rows go to ``tell``."""

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        preset: str,
        seconds: float,
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.args, self.ctx, self.tell = args, Context(device=args.device), tell
        self.clock = Clock(args.device, seconds)
        self.cls = registry.load("methods", name)
        sets = {key: value for _, key, value in (run_config.parse_assignment(f"it.{text}") for text in args.set)}
        for key, value in NOT_INSTALLED.get(name, {}).items():
            sets.setdefault(key, value)
        self.params = self.cls.resolve(preset, sets)
        side = getattr(self.params, "image_size", 128)
        self.data = prepare(Waves(WaveParams(side=side), None), "FLAIR", folder).healthy("train")
        self.label = f"{name}-{preset}"

    def profile(self, what: str, call: Callable[[], object]) -> None:
        """The ten largest kernels of some calls, into a file of the folder of ``--profile``."""
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.clock.cuda else [])]
        with profile(activities=kinds) as found:
            for _ in range(3):
                call()
            self.clock.now()
        order = "self_cuda_time_total" if self.clock.cuda else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=80)
        self.args.profile.mkdir(parents=True, exist_ok=True)
        (self.args.profile / f"{self.label}-{what}.txt".replace(" ", "-")).write_text(table + "\n")

    def figures(self, call: Callable[[], object], slices: int, flop: int, *, warm: int = 3) -> dict[str, Any]:
        import torch

        try:
            calls = self.clock.rate(call, warm)
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        return {"slices/s": calls * slices, "TFLOP/s": calls * flop / 1e12, "peak GiB": self.clock.peak_gib()}

    def train(self, stage: Any) -> None:
        """Steps of one stage as the training loop takes them, then otherwise; its module is trained by all but the naive."""
        import torch

        from adbench.methods import training

        def run_of() -> tuple[Any, Callable[[], None]]:
            run, taken = training.Run(stage, self.ctx), 0
            stage.module.train()

            def step() -> None:
                nonlocal taken
                run.take_step()
                taken += 1
                if taken % 32 == 0:  # losses are read now and then
                    run.check()

            return run, step

        batch = stage.plan.batch
        parameters = sum(p.numel() for p in stage.module.parameters())
        others = [name for name in VARIANTS if self.clock.cuda and name in self.args.vary]
        naive, naive_step = copy.deepcopy(stage.module), 0
        indices = training.batch_indices(0, stage.name, 0, batch, stage.samples)
        drawn = stage.draw(indices, training.generator(0))

        def plainly() -> None:  # operations are counted where nothing is compiled or recorded
            moved = {key: value.to(self.ctx.device) for key, value in drawn.items()}
            stage.loss(stage.module.to(self.ctx.device), moved, 0).backward()

        flop = operations(plainly)
        stage.module.zero_grad(set_to_none=True)
        for name in ("", *others):
            with variant(name), training.forked(), compute.applied(self.ctx.device):
                start = self.clock.now()
                run, step = run_of()
                step()
                first = self.clock.now() - start
                row = self.figures(step, batch, flop)
                if not name and self.args.profile:
                    self.profile(f"train {stage.name}", step)
                run.batches.close()
            what = f"train {stage.name}{name and ', ' + name}"
            self.tell({"what": what, **self.steps(row, batch), "first step, s": first, "parameters": parameters})
        if self.args.fast:
            return
        module = naive.to(self.ctx.device).train()
        kind = torch.optim.Adam if stage.plan.optimizer == "adam" else torch.optim.AdamW
        weights = list(module.parameters())
        optimizer = kind(weights, lr=stage.plan.lr, weight_decay=stage.plan.weight_decay, foreach=False)
        averages = [p.detach().clone() for p in weights] if stage.plan.ema else []

        def plain() -> None:
            nonlocal naive_step
            indices = training.batch_indices(0, stage.name, naive_step, batch, stage.samples)
            drawn = stage.draw(indices, training.generator(0, naive_step))
            optimizer.zero_grad()
            loss = stage.loss(module, {key: value.to(self.ctx.device) for key, value in drawn.items()}, naive_step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, stage.plan.clip or 1e9, foreach=False)
            optimizer.step()
            with torch.no_grad():
                for average, weight in zip(averages, weights, strict=False):
                    average.mul_(stage.plan.ema).add_(weight, alpha=1 - stage.plan.ema)
            loss.item()
            naive_step += 1

        row = self.figures(plain, batch, flop)
        self.tell({"what": f"train {stage.name}, naive", **self.steps(row, batch)})

    @staticmethod
    def steps(row: dict[str, Any], batch: int) -> dict[str, Any]:
        return row if "error" in row else {"steps/s": row["slices/s"] / batch, **row}

    def score(self, trained: Any) -> None:
        """The method saved and loaded as a run does; then slice by slice in float32, and how far its maps are from these."""
        import torch

        with tempfile.TemporaryDirectory() as folder:
            trained.save(Path(folder))
            method = self.cls.load(Path(folder), self.ctx)
        size = BATCH["cuda" if self.clock.cuda else "cpu"]
        batch = self.data.batch(slice(0, size)).to(self.ctx.device)

        def whole() -> Any:
            return method.score_and_reconstruct(batch)

        with torch.inference_mode(), compute.applied(self.ctx.device):
            flop = operations(whole)
            self.tell({"what": "score", **self.figures(whole, size, flop, warm=1)})
            if self.args.profile:
                self.profile("score", whole)
            fast = whole()[0].double().flatten()
            if getattr(method.params, "score", "") == "repair":  # madad: one pass of the mask head instead of ten steps
                repair = method.params
                method.params = repair.model_copy(update={"score": "probability"})
                self.tell({"what": "score = probability", **self.figures(whole, size, operations(whole), warm=1)})
                method.params = repair
        if self.args.fast:
            return
        done = 0
        singles = [batch.only(np.array([n])) for n in range(16)]

        def one() -> None:
            nonlocal done
            method.score_and_reconstruct(singles[done % len(singles)])
            done += 1

        with torch.inference_mode(), variant("float32"), compute.applied(self.ctx.device):
            if self.clock.cuda:
                exact = whole()[0].double().flatten()
                apart = float((fast - exact).std() / exact.std().clamp(min=1e-12))
                same = float(torch.corrcoef(torch.stack([fast, exact]))[0, 1])
                self.tell({"what": "agreement with float32", "correlation": same, "difference / spread": apart})
            self.tell({"what": "score, naive", **self.figures(one, 1, flop // size, warm=1)})

    def run(self) -> None:
        from adbench.methods import training

        stages = 0

        def instead(stage: Any, ctx: Any) -> Any:
            nonlocal stages
            stages += 1
            self.train(stage)
            return training.StageResult(0, [], 0, None, 0.0)

        start = self.clock.now()
        with mock.patch.object(training, "train_stage", instead):
            method = self.cls(self.params, self.ctx)
            method.fit(self.data, None)
        if not stages and method.state():  # learned without a training loop
            self.tell({"what": "fit", "slices/s": len(self.data) / (self.clock.now() - start)})
        self.score(method)


def measure(args: argparse.Namespace, name: str, preset: str, seconds: float, to: Connection) -> None:
    """In a process of its own: every row of a method and a preset into ``to``; no method: the peak."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if not name:
        peak = Clock(args.device, seconds).matrix_peak()
        to.send({"matrix peak, TFLOP/s": peak, "torch": version("torch"), **provenance.machine(args.device)})
        return
    with tempfile.TemporaryDirectory(prefix="adbench-benchmark-") as folder:
        Bench(args, name, preset, seconds, Path(folder), to.send).run()


def rows_of(args: argparse.Namespace, name: str, preset: str, seconds: float, until: float) -> Iterator[dict[str, Any]]:
    """The rows as they come from the process that measures them, which is ended at the time ``until``."""
    # A fork has the libraries already; CUDA does not survive one.
    context: Any = multiprocessing.get_context("spawn" if args.device.startswith("cuda") else "fork")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=measure, args=(args, name, preset, seconds, there))
    worker.start()
    there.close()
    try:
        while here.poll(max(0.0, until - time.monotonic())):
            yield here.recv()
        yield {"what": "the rest", "error": "no time left"}
    except EOFError:
        worker.join()
        if worker.exitcode:
            yield {"what": "the rest", "error": f"failed with exit code {worker.exitcode}"}
    finally:
        worker.kill()
        worker.join()


def line(row: dict[str, Any]) -> str:
    def cell(key: str) -> str:
        value = row.get(key, "")
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    more = [
        f"{key} {cell(key)}" for key in ("first step, s", "correlation", "difference / spread", "error") if key in row
    ]
    return "| " + " | ".join([cell(key) for key in SHOWN[:-1]] + [cell(SHOWN[-1]) + "; ".join(more)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--method", default="", help="comma-separated; default: all, on a GPU those with networks")
    parser.add_argument("--preset", default="", help="comma-separated; default: tiny, on a GPU base and paper")
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything")
    parser.add_argument("--seconds", type=float, default=4.0, help="spent on each figure at most")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; default: torch's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the methods")
    parser.add_argument("--fast", action="store_true", help="without the naive path")
    parser.add_argument(
        "--vary",
        nargs="?",
        const=";".join(VARIANTS),
        default="",
        help="on a GPU: also each means by itself, or those named, with ; between",
    )
    parser.add_argument("--json", type=Path, help="rows so far, written after each")
    parser.add_argument("--profile", type=Path, help="folder for tables of the ten largest kernels")
    args = parser.parse_args()
    args.vary = [name for name in args.vary.split(";") if name]
    cuda = args.device.startswith("cuda")
    names = [n for n in (args.method or ",".join(LEARN if cuda else registry.BUILTIN["methods"])).split(",") if n]
    presets = (args.preset or ("base,paper" if cuda else "tiny")).split(",")
    for module in () if cuda else ("diffusers", "monai.networks.nets.diffusion_model_unet", "torch.utils.flop_counter"):
        importlib.import_module(module)  # once, before the processes fork
    end = time.monotonic() + 60 * args.minutes
    (first,) = rows_of(args, "", "", args.seconds, end)
    peak = first.get("matrix peak, TFLOP/s", float("nan"))
    rows: list[dict[str, Any]] = [first]
    print(f"{first.get('device_name')}, torch {first.get('torch')}: {peak:.3g} TFLOP/s in {first.get('precision')}\n")
    print("| " + " | ".join(SHOWN) + " |\n|---|---|---|" + "--:|" * (len(SHOWN) - 3))
    work = [(name, preset) for preset in presets for name in names]
    figures = 5 + (len(args.vary) if cuda else 0)  # of a method and preset, about
    for number, (name, preset) in enumerate(work):
        left = end - time.monotonic()
        share = left / (len(work) - number)
        seconds = min(args.seconds, 0.5 * share / figures)
        until = time.monotonic() + (left if number == len(work) - 1 else min(left, 3 * share))
        for row in rows_of(args, name, preset, seconds, until) if left > 0 else [{"what": "", "error": "no time left"}]:
            if "TFLOP/s" in row:
                row["% of peak"] = 100 * row["TFLOP/s"] / peak
            rows.append({"method": name, "preset": preset, **row})
            print(line(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
