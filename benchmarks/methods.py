"""Training and scoring speed, share of the device's peak, and peak memory of every built-in method, by preset.

    python benchmarks/methods.py --device cpu
    python benchmarks/methods.py --device cuda --method madad --vary --json speed.json --profile profiles
    python benchmarks/methods.py --device cuda --method dae,vae,ae --preset base --minutes 3

Rows come as they are measured. Slices are generated waves on the grid the preset works on, so nothing is downloaded; speed
does not depend on what they show. Operations are counted by ``torch.utils.flop_counter`` (matrix products, convolutions,
attention; a multiplication and an addition are two) and compared with the fastest product of two large matrices, measured
first. A stage with a discriminator has a row before it joins and one with it. What says most (MAD-AD) comes first. Each method
and preset has a process of its own and a share of ``--minutes``, which include imports and start; the time until a first
step is done, which may compile, counts in the minutes but not in the share. What the minutes do not suffice for is named at
the end.

*Naive* is what one writes at first, measured on the same card in the same run: batches drawn in the step, float32 as torch
is set, weights updated and averaged one by one, every loss read; slices scored one by one. ``--vary`` measures what each
means is worth by itself. Where networks do not compute in float32, maps are compared with those that do, same weights
(after the timed steps), on slices with synthetic lesions: correlation, and the difference of the AUPRC.
"""

# ruff: noqa: E402

from __future__ import annotations

import time

BEGIN = time.monotonic()  # before the imports, which take most of a short budget

import argparse
import importlib
import json
import math
import multiprocessing
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speed import Bench, Clock, Row
from variants import CPU_VARIANTS, VARIANTS

from adbench.config import registry, run_config
from adbench.errors import UserError, unknown
from adbench.results import provenance
from adbench.utils import compute

LEARN = ("madad", "reflect", "ae", "vae", "dae", "restore", "ddpm", "pddpm", "andi", "thor", "itermask", "features")
# What takes the place of weights that are not installed with adbench: as fast, and a term that is left out.
NOT_INSTALLED: dict[str, dict[str, Any]] = {
    "features": {"weights": "random"},
    "madad": {"ae_perceptual_weight": 0},
    "reflect": {"ae_perceptual_weight": 0},
}
WEIGHT = {"madad": 4.0}  # of a method's share of the time; 1 for the others
ALL = "all"  # variants of the device
PAUSE = 3.0  # shares after which a method gives way
LIBRARIES = ("diffusers", "monai.networks.nets.diffusion_model_unet", "torch.utils.flop_counter")
SHOWN = ("method", "preset", "what", "slices/s", "steps/s", "TFLOP/s", "% of peak", "peak GiB", "correlation", "AUPRC difference")  # fmt: skip
BESIDE = (
    "CPU ms a slice",
    "times the usual",
    "minutes",
    "first step, s",
    "difference / spread",
    "AUPRC",
    "note",
    "error",
)


@dataclass(frozen=True)
class Work:
    """A method with a preset and the parameters that differ from it; no method: the peak of the device."""

    name: str = ""
    preset: str = ""
    sets: dict[str, Any] | None = None


def assigned(texts: list[str], names: list[str]) -> dict[str, dict[str, Any]]:
    """By method, what ``--set`` says: KEY=VALUE and method.KEY=VALUE of all, NAME.KEY=VALUE of one."""
    sets: dict[str, dict[str, Any]] = {name: dict(NOT_INSTALLED.get(name, {})) for name in names}
    for text in texts:
        scope, key, value = run_config.parse_assignment(text if "." in text.partition("=")[0] else f"method.{text}")
        if scope not in ("method", *names):
            raise unknown("method of --set", scope, ["method", *names])
        for name in names if scope == "method" else [scope]:
            sets[name][key] = value
    return sets


def planned(args: argparse.Namespace) -> list[Work]:
    """What is measured, in order; whatever is misspelt is told before.

    Raises:
        UserError: an option has no such value, or the device is not there.
    """
    args.device = run_config.resolve_device(args.device)
    cuda = args.device.startswith("cuda")
    compute.precision(args.device), compute.compile_mode(args.device)
    there, elsewhere = (tuple(VARIANTS), CPU_VARIANTS) if cuda else (CPU_VARIANTS, tuple(VARIANTS))
    args.vary = list(there) if args.vary == ALL else [name for name in args.vary.split(";") if name]
    for name in args.vary:
        if name in elsewhere:
            raise UserError(
                f"--vary {name!r} is no means of {args.device}: leave it out, or take some of {'; '.join(there)}."
            )
        if name not in there:
            raise unknown("variant", name, there)
    if not (0 < args.minutes < math.inf and 0 < args.seconds < math.inf) or args.threads < 0:
        raise UserError("--minutes and --seconds must be above 0, and --threads not below it.")
    if args.json and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder: name a file in it.")
    if args.profile:
        try:
            args.profile.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--profile {args.profile}: {error.strerror}. Choose a folder that can be written to."
            ) from None
    if args.json and not args.json.absolute().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}; create it first.")
    names = [n for n in (args.method or ",".join(LEARN if cuda else registry.BUILTIN["methods"])).split(",") if n]
    classes = {name: registry.load("methods", name) for name in names}
    presets = [p for p in (args.preset or ("paper,base" if cuda else "tiny")).split(",") if p]
    for preset in presets:
        if not any(preset in cls.presets for cls in classes.values()):
            raise unknown("preset of " + ", ".join(names), preset, {p for cls in classes.values() for p in cls.presets})
    sets = assigned(args.set, names)
    work = [Work(n, p, sets[n]) for p in presets for n in names if p in classes[n].presets]
    for one in work:
        classes[one.name].resolve(one.preset, sets[one.name])
    return sorted(work, key=lambda one: -WEIGHT.get(one.name, 1.0))


def measure(args: argparse.Namespace, work: Work, pipe: Any) -> None:
    """In a process of its own: every row of ``work`` into ``pipe``, which first says how long a figure may take."""
    import torch

    for module in LIBRARIES:
        importlib.import_module(module)
    seconds = pipe.recv()
    pipe.send({"clock": True})
    if args.threads:
        torch.set_num_threads(args.threads)
    if not work.name:
        peak = Clock(args.device, seconds).matrix_peak()
        pipe.send({"matrix peak, TFLOP/s": peak, "torch": version("torch"), **provenance.machine(args.device)})
        return
    with tempfile.TemporaryDirectory(prefix="adbench-benchmark-") as folder:
        Bench(args, work.name, work.preset, work.sets or {}, seconds, Path(folder), pipe.send).run()


class Worker:
    """A process that imports what ``work`` takes and waits until its rows are asked for."""

    def __init__(self, args: argparse.Namespace, work: Work, target: Any = measure) -> None:
        # A fork has the libraries already; CUDA does not survive one.
        context: Any = multiprocessing.get_context("spawn" if args.device.startswith("cuda") else "fork")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=target, args=(args, work, there), daemon=True)
        self.process.start()
        there.close()

    def rows(self, seconds: float, allowed: float, end: float) -> Iterator[Row]:
        """The rows as they come.

        Args:
            seconds: spent on a figure, about.
            allowed: seconds for everything while the clock of the process runs.
            end: the time when it is ended at the latest.
        """
        running, since, late = False, time.monotonic(), ""
        try:
            self.pipe.send(seconds)
            while not late:
                until = min(end, since + allowed) if running else end
                if not self.pipe.poll(max(0.0, until - time.monotonic())):
                    late = "no time left" if until == end else "took more than its share of the time"
                elif "clock" in (row := self.pipe.recv()):
                    now = time.monotonic()
                    allowed -= (now - since) if running else 0.0
                    running, since = row["clock"], now
                else:
                    yield row
            yield {"what": "the rest", "error": late}
        except (EOFError, OSError):  # it has ended
            self.process.join()
            if self.process.exitcode:
                yield {"what": "the rest", "error": f"failed with exit code {self.process.exitcode}"}
        finally:
            self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def all_rows(args: argparse.Namespace, work: list[Work], end: float, target: Any = measure) -> Iterator[Row]:
    """Every row of ``work``; on a GPU the next process starts while one measures."""
    figures = 7 + len(args.vary)  # of a method and preset, about
    weights = [WEIGHT.get(one.name, 1.0) for one in work]
    ahead: Worker | None = None
    for number, one in enumerate(work):
        which = {"method": one.name, "preset": one.preset}
        left = end - time.monotonic()
        if left <= 0:
            yield {**which, "what": "not measured", "error": "no time left"}
            continue
        worker, ahead = ahead or Worker(args, one, target), None
        if args.device.startswith("cuda") and number + 1 < len(work):
            ahead = Worker(args, work[number + 1], target)
        share = left * weights[number] / sum(weights[number:])
        for row in worker.rows(min(args.seconds, 0.5 * share / figures), PAUSE * share, end):
            yield {**which, **row}
    if ahead is not None:
        ahead.close()


def line(row: Row) -> str:
    """A row of the table; figures that have no column stand beside what they are of."""

    def cell(key: str) -> str:
        value = row.get(key, "")
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    what = "; ".join([cell("what"), *(f"{key} {cell(key)}" for key in BESIDE if key in row)])
    return "| " + " | ".join(what if key == "what" else cell(key) for key in SHOWN) + " |"


def parsed(words: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--method", default="", help="comma-separated; default: all, on a GPU those with networks")
    parser.add_argument("--preset", default="", help="comma-separated; default: tiny, on a GPU paper and base")
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything, imports included")
    parser.add_argument("--seconds", type=float, default=4.0, help="spent on each figure at most")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; default: torch's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of all methods, NAME.KEY of one"
    )
    parser.add_argument("--fast", action="store_true", help="without the naive path and float32")
    parser.add_argument(
        "--vary",
        nargs="?",
        const=ALL,
        default="",
        help="also each means by itself that the device may have, or those named, with ; between",
    )
    parser.add_argument("--json", type=Path, help="rows so far, written after each")
    parser.add_argument("--profile", type=Path, help="folder for tables of the ten largest kernels")
    return parser, parser.parse_args(words)


def main() -> int:
    parser, args = parsed()
    end = BEGIN + 60 * args.minutes

    def late(*_: object) -> None:
        parser.exit(1, f"The {args.minutes:g} minutes were over before the imports were: give it more --minutes.\n")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, end - time.monotonic()) if args.minutes > 0 else 0)
    try:
        work = planned(args)
        if args.device == "cpu":  # once, before the processes fork
            for module in LIBRARIES:
                importlib.import_module(module)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    (first,) = Worker(args, Work()).rows(args.seconds, 60 * args.minutes, end)
    if "error" in first:
        parser.exit(1, f"The peak of {args.device} was not measured: {first['error']}.\n")
    peak, rows, failed = first["matrix peak, TFLOP/s"], [first], False
    print(f"{first['device_name']}, torch {first['torch']}: {peak:.3g} TFLOP/s in {first['precision']}\n")
    print("| " + " | ".join(SHOWN) + " |\n|---|---|---|" + "--:|" * (len(SHOWN) - 3))
    for row in all_rows(args, work, end):
        if "TFLOP/s" in row:
            row["% of peak"] = 100 * row["TFLOP/s"] / peak
        failed |= "failed" in row.get("error", "")
        rows.append(row)
        print(line(row), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
