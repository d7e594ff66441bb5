"""How fast one method trains and scores on one device, and what each means is worth: what ``benchmarks/methods.py`` runs."""

from __future__ import annotations

import argparse
import copy
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from variants import CALLS, CPU_VARIANTS, EXACT, NEVER, PLAIN, TRAINED_ONLY, VARIANTS, variant

from adbench.config import registry
from adbench.context import Context
from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.slices import SliceBatch
from adbench.datasets.store.prepare import prepare
from adbench.datasets.synthetic_lesions import SyntheticLesionParams, insert
from adbench.params import ParamSet, param
from adbench.utils import compute

SLICES = 128
BATCH = {"cpu": 32, "cuda": 128}  # slices that are scored at a time, as a run does
JUDGED = 32  # slices of which an AUPRC is computed
# Quick to make; every second slice has one.
LESIONS = SyntheticLesionParams(kinds=("bright", "dark"), share=0.5)
WARM = 2  # batches in which networks are compiled and recorded
TURNS = 5  # of variants on a CPU, at least
Row = dict[str, Any]


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
        self.spent = 0.0

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
        """Calls a second, after some that do not count; :attr:`spent` is then the CPU time of one in seconds, all threads."""
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(warm):
            call()
        start, calls, before = self.now(), 0, time.process_time()
        while calls == 0 or self.now() - start < self.seconds:
            for _ in range(1 if calls < 8 else 8):  # looking at the clock waits for the GPU
                call()
                calls += 1
        self.spent = (time.process_time() - before) / calls
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
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

    aten = torch.ops.aten  # attention on a CPU, which torch does not count
    of_cpu: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: partial(sdpa_flop),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: partial(sdpa_backward_flop),
    }
    for formula in of_cpu.values():
        formula._get_raw = True  # it takes tensors
    with FlopCounterMode(display=False, custom_mapping=of_cpu) as counter:
        call()
    return counter.get_total_flops()


def with_lesions(batch: SliceBatch) -> tuple[SliceBatch, np.ndarray]:
    """``batch`` with synthetic lesions, and where they are (B, 1, H, W)."""
    import torch

    ids = list(zip(batch.subjects, batch.slices, strict=True))
    found = insert(batch.image[:, 0].numpy(), batch.brain[:, 0].numpy(), ids, LESIONS)
    return replace(batch, image=torch.from_numpy(found.images)[:, None]), found.lesions[:, None]


def agreement(fast: Any, exact: Any, brain: Any, lesions: np.ndarray) -> Row:
    """How far maps are from those in float32, inside the brain: correlation, difference, AUPRC of the first slices.

    Args:
        fast: (B, 1, H, W) maps.
        exact: the same in float32, of the same weights.
        brain: (B, 1, H, W) bool.
        lesions: (B, 1, H, W) bool.
    """
    import torch
    from sklearn.metrics import average_precision_score

    inside = brain.cpu()
    a, b = (maps.double().cpu() for maps in (fast, exact))
    if not bool(torch.isfinite(torch.stack([a[inside], b[inside]])).all()):
        return {"error": "maps that are not finite"}
    row: Row = {}
    spread = float(b[inside].std())
    if spread and float(a[inside].std()):
        row["correlation"] = float(torch.corrcoef(torch.stack([a[inside], b[inside]]))[0, 1])
        row["difference / spread"] = float((a[inside] - b[inside]).std()) / spread
    else:
        row["note"] = "the same value everywhere" if torch.equal(a, b) else "one of the maps is constant"
    where = inside[:JUDGED]
    truth = lesions[:JUDGED][where.numpy()]
    of_fast, of_exact = (float(average_precision_score(truth, maps[:JUDGED][where].numpy())) for maps in (a, b))
    return {**row, "AUPRC": of_exact, "AUPRC difference": of_fast - of_exact}


def counted(stage: Any, ctx: Context) -> int:
    """Operations of one step, those of its opponent included; counted where nothing is compiled or recorded."""
    from adbench.methods import training

    indices = training.batch_indices(0, stage.name, 0, stage.plan.batch, stage.samples)
    drawn = {key: value.to(ctx.device) for key, value in stage.draw(indices, training.generator(0)).items()}
    module, opponent = stage.module.to(ctx.device), stage.opponent

    def plainly() -> None:
        stage.loss(module, drawn, 0).backward()
        if opponent is not None and opponent.start == 0:
            opponent.loss(module, opponent.module, drawn).backward()

    if opponent is not None:
        opponent.module.to(ctx.device)
    found = operations(plainly)
    module.zero_grad(set_to_none=True)
    return found


def naive_step(stage: Any, module: Any, ctx: Context) -> Callable[[], None]:
    """A step of ``module`` as one writes it at first."""
    import torch

    from adbench.methods import training

    plan, opponent = stage.plan, stage.opponent
    module.to(ctx.device).train()
    kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.AdamW
    weights = list(module.parameters())
    optimizer = kind(weights, lr=plan.lr, weight_decay=plan.weight_decay, foreach=False)
    averages = [p.detach().clone() for p in weights] if plan.ema else []
    rival = None
    if opponent is not None and opponent.start == 0:
        rival = torch.optim.Adam(opponent.module.to(ctx.device).parameters(), lr=opponent.lr, foreach=False)
    taken = 0

    def step() -> None:
        nonlocal taken
        indices = training.batch_indices(0, stage.name, taken, plan.batch, stage.samples)
        drawn = stage.draw(indices, training.generator(0, taken))
        batch = {key: value.to(ctx.device) for key, value in drawn.items()}
        optimizer.zero_grad()
        loss = stage.loss(module, batch, taken)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, plan.clip or 1e9, foreach=False)
        optimizer.step()
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=False):
                average.mul_(plan.ema).add_(weight, alpha=1 - plan.ema)
        loss.item()
        if rival is not None:
            rival.zero_grad()
            opponent.loss(module, opponent.module, batch).backward()
            rival.step()
        taken += 1

    return step


def whole_training(rows: list[Row]) -> Row:
    """Minutes of a whole training at the rates of its rows; what is not a step (validation, encoding) is not in it."""
    parts = [row for row in rows if "of steps" in row]
    if not parts or any("error" in row for row in parts):
        return {}
    seconds = sum(row["of steps"] / row["steps/s"] + row["first step, s"] for row in parts)
    return {"what": "whole training, at these rates", "minutes": seconds / 60}


class Bench:
    """One method with one preset on one device, with slices of its size.

    Args:
        args: options of ``benchmarks/methods.py``.
        name: of the method.
        preset: of its parameters.
        sets: parameters that differ from it.
        seconds: spent on each figure, about.
        folder: for the slices.
        tell: takes each row; and ``{"clock": False}`` before what may compile, ``{"clock": True}`` after it.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        preset: str,
        sets: dict[str, Any],
        seconds: float,
        folder: Path,
        tell: Callable[[Row], None],
    ) -> None:
        self.args, self.ctx, self.tell = args, Context(device=args.device), tell
        self.clock = Clock(args.device, seconds)
        self.cls = registry.load("methods", name)
        self.params = self.cls.resolve(preset, sets)
        side = getattr(self.params, "image_size", 128)
        self.data = prepare(Waves(WaveParams(side=side), None), "FLAIR", folder).healthy("train")
        self.label = f"{name}-{preset}"
        self.trained: list[Row] = []

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

    def figures(self, call: Callable[[], object], slices: int, flop: int, *, warm: int = 3) -> Row:
        import torch

        try:
            calls = self.clock.rate(call, warm)
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        row = {"slices/s": calls * slices, "TFLOP/s": calls * flop / 1e12, "peak GiB": self.clock.peak_gib()}
        return row if self.clock.cuda else row | {"CPU ms a slice": 1000 * self.clock.spent / slices}

    def train(self, stage: Any) -> None:
        """Steps of one stage, before its discriminator joins and after; its module is trained by all but the naive path."""
        naive, steps = copy.deepcopy(stage.module), stage.plan.steps
        joins = steps if stage.opponent is None else min(steps, stage.opponent.start)
        variants = [name for name in VARIANTS if name in self.args.vary]
        for what, count, start in (("", joins, NEVER), (", with discriminator", steps - joins, 0)):
            if not count:
                continue
            if stage.opponent is not None:
                stage.opponent.start = start
            flop = counted(stage, self.ctx)
            for variant_name in ("", *variants):
                self.steps(stage, f"train {stage.name}{what}", variant_name, flop, count)
            if names := [name for name in CPU_VARIANTS if name in self.args.vary]:
                self.steps_in_turn(stage, f"train {stage.name}{what}", names)
            if not self.args.fast:
                row = self.figures(naive_step(stage, naive, self.ctx), stage.plan.batch, flop)
                self.tell({"what": f"train {stage.name}{what}, naive", **per_step(row, stage.plan.batch)})

    def steps(self, stage: Any, what: str, name: str, flop: int, count: int) -> None:
        """Steps of one stage as the training loop takes them, under a variant; ``count`` of a whole training are of this kind."""
        from adbench.methods import training

        with variant(name), training.forked(), compute.applied(self.ctx.device):
            self.tell({"clock": False})
            start = self.clock.now()
            run, taken = training.Run(stage, self.ctx), 0
            stage.module.train()

            def step() -> None:
                nonlocal taken
                run.take_step()
                taken += 1
                if taken % 32 == 0:  # losses are read now and then
                    run.check()

            step()
            first = self.clock.now() - start
            self.tell({"clock": True})
            row = per_step(self.figures(step, stage.plan.batch, flop), stage.plan.batch)
            if not name and self.args.profile:
                self.profile(what, step)
            run.batches.close()
        parameters = sum(p.numel() for p in stage.module.parameters())
        row = {"what": f"{what}{name and ', ' + name}", **row, "first step, s": first, "parameters": parameters}
        if not name and stage.plan.seconds is None:
            row["of steps"] = count
            self.trained.append(row)
        self.tell(row)

    def steps_in_turn(self, stage: Any, what: str, names: list[str]) -> None:
        """Steps of one stage under each variant of a CPU, each with a module of its own."""
        from adbench.methods import training

        calls: dict[str, tuple[Callable[[], object], float]] = {}
        runs = []
        with training.forked():
            for name in ("", *names):
                self.tell({"clock": False})
                start = time.perf_counter()
                with variant(name):
                    runs.append(
                        run := training.Run(replace(stage, module=copy.deepcopy(stage.module).train()), self.ctx)
                    )
                    run.take_step()
                self.tell({"clock": True})
                calls[name] = run.take_step, time.perf_counter() - start
            self.in_turn(what, calls, stage.plan.batch)
        for run in runs:
            run.batches.close()

    def scores_in_turn(self, methods: dict[str, Any], batch: SliceBatch) -> None:
        """Scoring of one batch by the method as it is loaded under each variant of a CPU."""
        calls: dict[str, tuple[Callable[[], object], float]] = {}
        for name, method in methods.items():
            start = time.perf_counter()
            with variant(name):
                method.score_and_reconstruct(batch)
            calls[name] = partial(method.score_and_reconstruct, batch), time.perf_counter() - start
        self.in_turn("score", calls, len(batch))

    def in_turn(self, what: str, calls: dict[str, tuple[Callable[[], object], float]], slices: int) -> None:
        """A row for each variant in ``calls``, which hold a call and the seconds of the first one.

        The variants take turns, call by call, so that whatever else the machine does reaches all alike. Rows show the median
        of the CPU time, all threads, and the median of how many times it is that of "" in the same turn.
        """
        spent: dict[str, list[float]] = {name: [] for name in calls}
        start = time.perf_counter()
        while len(spent[""]) < TURNS or time.perf_counter() - start < self.clock.seconds * len(calls):
            for name, (call, _) in calls.items():
                with variant(name):
                    before = time.process_time()
                    call()
                    spent[name].append(time.process_time() - before)
        for name, (_, first) in calls.items():
            if name:
                times = float(np.median(np.array(spent[name]) / np.array(spent[""])))
                row = {"CPU ms a slice": 1000 * float(np.median(spent[name])) / slices, "times the usual": times}
                self.tell({"what": f"{what}, {name}", **row, "first step, s": first})

    def score(self, trained: Any) -> None:
        """The method saved and loaded as a run does; how far its maps are from those in float32; then slice by slice."""
        import torch

        with tempfile.TemporaryDirectory() as folder:
            trained.save(Path(folder))
            method = self.cls.load(Path(folder), self.ctx)
            varied = {}
            for name in CPU_VARIANTS:
                if name in self.args.vary and name not in TRAINED_ONLY:
                    with variant(name):
                        varied[name] = self.cls.load(Path(folder), self.ctx)
        batch, lesions = with_lesions(self.data.batch(slice(0, BATCH["cuda" if self.clock.cuda else "cpu"])))
        batch, params = batch.to(self.ctx.device), method.params
        settings = {"score": params}
        if getattr(params, "score", "") == "repair":  # madad: one pass of the mask head instead of ten steps
            settings["score = probability"] = params.model_copy(update={"score": "probability"})
        with torch.inference_mode():
            for what, method.params in settings.items():
                self.batches(method, batch, lesions, what)
            method.params = params
            if varied:
                self.scores_in_turn({"": method, **varied}, batch)
            if not self.args.fast:
                self.one_by_one(method, batch)

    def batches(self, method: Any, batch: SliceBatch, lesions: np.ndarray, what: str) -> None:
        """Whole batches, under each variant that scoring has."""

        from adbench.methods.base import OWN, forwards
        from adbench.methods.common.forward import Forward

        def whole() -> Any:
            return method.score_and_reconstruct(batch)

        def ready() -> None:
            """As after the first batch of a scoring that is long enough to compile: nothing is recorded or compiled again."""
            vars(method).pop(OWN, None)
            self.tell({"clock": False})
            whole()
            for forward in forwards(method):
                forward.expect(1, NEVER)
            for _ in range(WARM):
                whole()
            self.tell({"clock": True})

        device, fast = self.ctx.device, None
        with variant(PLAIN), compute.applied(device):
            # Of no copies that fill a portion.
            vars(method)[OWN] = Forward(device, self.ctx.logger, portions=False)
            flop = operations(whole)
        for name in ("", *(name for name in CALLS if name in self.args.vary)):
            with variant(name), compute.applied(device):
                ready()
                row = self.figures(whole, len(batch), flop, warm=0)
                fast = whole()[0] if fast is None else fast
                if self.args.profile and f"{what}{name}" == "score":
                    self.profile(what, whole)
            self.tell({"what": f"{what}{name and ', ' + name}", **row})
        if self.args.fast or compute.precision(device) == "float32":
            return
        with variant(EXACT), compute.applied(device):
            row = agreement(fast, whole()[0], batch.brain, lesions)
        self.tell({"what": f"{what}, {compute.precision(device)} against float32", **row})

    def one_by_one(self, method: Any, batch: SliceBatch) -> None:
        """Slice by slice, the naive path."""
        done = 0
        singles = [batch.only(np.array([n])) for n in range(min(16, len(batch)))]

        def one() -> None:
            nonlocal done
            method.score_and_reconstruct(singles[done % len(singles)])
            done += 1

        with variant(EXACT):  # and TF32 as torch is set
            flop = operations(one)
            self.tell({"what": "score, naive", **self.figures(one, 1, flop, warm=1)})

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
        if row := whole_training(self.trained):
            self.tell(row)
        if not stages and method.state():  # learned without a training loop
            self.tell({"what": "fit", "slices/s": len(self.data) / (self.clock.now() - start)})
        self.score(method)


def per_step(row: Row, batch: int) -> Row:
    return row if "error" in row else {"steps/s": row["slices/s"] / batch, **row}
