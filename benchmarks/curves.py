"""Training time against AUPRC: each job is trained once and looked at on the way, several at a time on one device.

    python benchmarks/curves.py --dataset phantom --out curves madad:tiny:steps=100 dae:tiny:steps=40 vae:tiny
    python benchmarks/curves.py --data-root soop_flair --device cuda --jobs 5 --minutes 6.5 --out curves benchmarks/curves_gpu.txt

A job is ``[NAME = ]METHOD:PRESET[:PARAMETER=VALUE,...]``, in a file one a line, the most important first (``#`` begins a
remark); ``seed`` may stand among the parameters. ``@NAME`` as a value is the folder of the fit of another job, which is then
trained before (MAD-AD on the autoencoder of ``latent``), and ``@NAME.steps`` the optimiser steps that it took.

The curve is AUPRC on the labelled validation slices with the weights of the moment, about ten times a training; the clock of
the training stands still meanwhile. Where scoring is slow it is done less often: it takes at most half of the training's time.
Selecting is for the curve. At the end the kept weights are scored on validation and once on test, with the interval over
subjects; ``madad`` also with each of its scores, and with what its mask head flags. Jobs that share a device slow each other
down, so times compare only within one call.

`benchmarks/curves_cpu.txt`, `curves_gpu.txt`, `curves_gpu_others.txt` and `curves_gpu_long.txt` are lists, each with its command.

Points go to OUT/curves.jsonl as they come, and tables in Markdown are printed and written to OUT/curves.md, with a picture,
at the end or when ``--minutes`` are over: what is trained then is saved, and the same command goes on with it. A job that
cannot be run as it is written ends the command with its name, before anything is trained; one that fails later is a row that
says why, and the others go on. Runs are kept in OUT/runs, as of ``adbench run``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from adbench.config import run_config
from adbench.config.cell import Cell
from adbench.errors import UserError, in_words, unknown
from adbench.executors.worker import processes_for
from adbench.utils.processes import GRACE, exit_reason
from adbench.utils.signals import as_interrupts

SHARE = 0.5  # of the training's time that a curve may take
NO_TIME = "no time left; the same command goes on with it"
LIBRARIES = ["diffusers", "monai.networks.nets.diffusion_model_unet", "sklearn.metrics"]  # beside those of most cells
JOB = re.compile(r"(?:(?P<name>[\w.-]+)\s*=\s*)?(?P<method>\w+):(?P<preset>\w+)(?::(?P<values>\w+=.*))?")
HEADS = ("flagged", "auroc_t10", "recall_t10")  # figures of MAD-AD's mask head on healthy validation slices


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: of it.
        method: that is trained.
        preset: of the method.
        values: its parameters as texts, by name, ``seed`` among them.
        needs: names of the jobs that some of them refer to.
    """

    name: str
    method: str
    preset: str
    values: dict[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> set[str]:
        return {text[1:].removesuffix(".steps") for text in self.values.values() if text.startswith("@")}

    def cell(self, args: argparse.Namespace, known: dict[str, dict[str, Any]]) -> Cell:
        """The cell that is run, with what is ``known`` of finished jobs in the place of references to them."""
        values = dict(self.values)
        for key, text in values.items():
            if text.startswith("@"):
                row = known.get(text[1:].removesuffix(".steps"), {"steps": 1, "fit": "."})
                values[key] = str(row["steps" if text.endswith(".steps") else "fit"])
        flags = {
            "method": self.method, "preset": self.preset, "seed": values.pop("seed", "0"), "dataset": args.dataset,
            "modality": args.modality, "data_root": args.data_root, "device": args.device, "out": str(args.out / "runs"),
        }  # fmt: skip
        texts = [*args.set, *(f"{self.method}.{key}={value}" for key, value in values.items())]
        cells = run_config.cells(run_config.load(None, flags, texts))
        if len(cells) != 1:
            raise UserError(f"It stands for {len(cells)} runs: give each parameter one value.")
        return cells[0]


def read_jobs(texts: Sequence[str]) -> list[Job]:
    """The jobs in ``texts``, each a job or a file of them.

    Raises:
        UserError: one is not of the form of a job, has the name of another, or refers to one that does not stand before it.
    """
    lines = []
    for text in texts:
        lines += Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else [text]
    jobs: dict[str, Job] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        found = JOB.fullmatch(line)
        if found is None:
            raise UserError(
                f"{line!r} is neither a file nor a job: write METHOD:PRESET or METHOD:PRESET:PARAMETER=VALUE,..., "
                "e.g. madad:base:noise=matched,steps=6000."
            )
        parts = re.split(r",(?=\w+=)", found["values"] or "")
        values = {key: value for key, _, value in (part.partition("=") for part in parts if part)}
        job = Job(found["name"] or re.sub(r"\s", "", line), found["method"], found["preset"], values)
        if job.name in jobs:
            raise UserError(f"There are two jobs called {job.name}: begin one with another name, NAME = ....")
        for name in job.needs - jobs.keys():
            raise unknown(f"job that @{name} of {job.name} could refer to (it must stand before)", name, jobs)
        jobs[job.name] = job
    if not jobs:
        raise UserError("Name a job or a file of jobs, e.g. dae:tiny.")
    return list(jobs.values())


def check(args: argparse.Namespace, jobs: Sequence[Job]) -> dict[str, str]:
    """Prepare the data and look at every job, for what can be known before anything is trained.

    Returns:
        Digests of the slices that train and test.

    Raises:
        UserError: one cannot be run as it is written, with its name.
    """
    from adbench.runner.plan import plan

    digests: dict[str, str] = {}
    for job in jobs:
        try:
            cell = job.cell(args, {})
            if job.needs:  # their files are not there yet
                continue
            (planned,) = plan([cell], args.out / "runs", run_config.default_cache())
        except UserError as error:
            raise UserError(f"The job {job.name} cannot be run, and none was trained: {error}") from None
        digests = {"train": planned.data.train.digest, "test": planned.data.test.digest}
    return digests


def work(args: argparse.Namespace, job: Job, known: dict[str, dict[str, Any]], to: Connection) -> None:
    """In a process of its own: the rows of one job into ``to``."""
    logging.getLogger("adbench").setLevel(logging.ERROR)  # what the data look like was said once
    try:
        with as_interrupts():
            for row in rows_of(args, job, known, to):
                to.send(row)
    except KeyboardInterrupt:
        sys.exit(1)  # its time is up; the training was saved
    except BaseException as error:
        to.send({"what": "end", "error": in_words(error)})


def rows_of(
    args: argparse.Namespace, job: Job, known: dict[str, dict[str, Any]], to: Connection
) -> Iterator[dict[str, Any]]:
    from madad_noise import interval

    from adbench.context import Context
    from adbench.evaluation.run import Run
    from adbench.metrics.curves import Curve
    from adbench.runner.plan import plan
    from adbench.runner.run_cell import run_cell
    from adbench.tune.task import fewer
    from adbench.tune.worker import measure

    cell = job.cell(args, known)
    cache = run_config.default_cache()
    (planned,) = plan([cell], args.out / "runs", cache)
    saved = [json.loads(path.read_text()) for path in planned.fit_folder.glob("*/checkpoint.json")]
    earlier = sum(float(one["figures"]["seconds"]) for one in saved)
    yield {"what": "start", "earlier": earlier}
    slices = planned.data.threshold
    slices = fewer(slices, args.slices) if args.slices else slices
    begin, looked = time.monotonic(), 0.0
    budget = cell.method_class.budget(cell.params)

    def watch(method: Any, done: float) -> None:
        nonlocal looked
        start = time.monotonic()
        seconds = start - begin - looked
        if looked <= SHARE * seconds:
            value = measure("val_auprc", method, slices, Context(cell.device, cell.seed))
            steps = None if budget is None else round(done * budget)
            to.send({"what": "point", "seconds": earlier + seconds, "share": done, "steps": steps, "val": value})
        looked += time.monotonic() - start

    record = run_cell(planned, watch=watch if slices.lesion_voxels.any() else None)
    run = Run(planned.run_folder, cache=cache, device=args.device)
    curves = list(record.fit["curves"].values())
    row = {
        "what": "end",
        "seconds": record.timing["fit"],
        "steps": record.fit["steps"],
        "parameters": record.method.parameters,
        "score_per_slice": record.timing["score_per_slice"],
        "val": Curve(run.val_histograms.pooled()).average_precision() if run.val_histograms else None,
        "test": interval(record.metrics["auprc"]),
        "heads": {name: curves[-1][-1][name] for name in HEADS if curves and name in curves[-1][-1]},
        "fit": str(planned.fit_folder),
    }
    method = run.method()
    row |= spectrum(method)
    if job.method == "madad":
        from madad_noise import SCORES, cells

        each = [replace(job, values={**job.values, "score": score}).cell(args, known) for score in SCORES]
        auprc = [interval(run_cell(one).metrics["auprc"]) for one in plan(each, args.out / "runs", cache)]
        row |= {"scores": dict(zip(SCORES, auprc, strict=True)), "cells": cells(run)}
    yield row


def spectrum(method: Any) -> dict[str, Any]:
    """Eigenvalues of the healthy latents' covariance, of a method that has taken it; else nothing."""
    from adbench.methods.madad.autoencoder import Healthy

    healthy = getattr(method, "_healthy", None)
    return {"spectrum": healthy.spectrum} if isinstance(healthy, Healthy) else {}


class Log:
    """The rows of all jobs so far, in one file; ``points`` and ``ends`` by job."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.points: dict[str, list[dict[str, Any]]] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if rows and rows[0] != settings:
            raise UserError(f"{path} is of other data, settings or device: choose another --out.")
        if not rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(settings)
        for row in rows[1:]:
            self._take(row)

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _take(self, row: dict[str, Any]) -> None:
        points = self.points.setdefault(row["job"], [])
        if row["what"] == "start":
            self.ends.pop(row["job"], None)
        elif row["what"] == "point":  # what was trained after the last checkpoint is trained again
            points[:] = [one for one in points if one["share"] < row["share"]]
            points.append(row)
        else:
            self.ends[row["job"]] = row

    def add(self, job: Job, row: dict[str, Any]) -> None:
        row = {"job": job.name, **row}
        self._take(row)
        self._append(row)
        if row["what"] != "start":
            print(line(row), file=sys.stderr, flush=True)

    def done(self, job: Job) -> bool:
        return job.name in self.ends and "error" not in self.ends[job.name]


def line(row: dict[str, Any]) -> str:
    """A row on its way, in one line."""
    if "error" in row:
        return f"{row['job']}: {row['error']}"
    rest = f", test {estimate(row['test'])}" if "test" in row else ""
    return f"{row['job']}: {row['seconds']:.1f} s, {row['steps'] or '?'} steps, validation {number(row['val'])}{rest}"


def train_all(args: argparse.Namespace, jobs: list[Job], log: Log) -> None:
    """Every job that is not done, ``args.jobs`` at a time, until the time is over."""
    context = processes_for(args.device, LIBRARIES)
    end = time.monotonic() + 60 * args.minutes
    waiting = [job for job in jobs if not log.done(job)]
    running: dict[Connection, tuple[Job, Any]] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                if broken := [name for name in job.needs if "error" in log.ends.get(name, {})]:
                    waiting.remove(job)
                    log.add(job, {"what": "end", "error": f"needs {broken[0]}, which failed"})
                elif len(running) < args.jobs and all(name in log.ends for name in job.needs):
                    waiting.remove(job)
                    here, there = context.Pipe(duplex=False)
                    process = context.Process(target=work, args=(args, job, log.ends, there))
                    process.start()
                    there.close()
                    running[here] = job, process
            ready = wait(list(running), max(0.0, end - time.monotonic())) if running else []
            if not ready and (running or waiting):
                break
            for pipe in ready:
                job, process = running[pipe]  # type: ignore[index]
                try:
                    log.add(job, pipe.recv())  # type: ignore[union-attr]
                except EOFError:
                    del running[pipe]  # type: ignore[arg-type]
                    process.join()
                    if job.name not in log.ends:
                        log.add(job, {"what": "end", "error": exit_reason(process.exitcode or 0)})
    finally:
        for _, process in running.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for _, process in running.values():
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
        for job in [*(job for job, _ in running.values()), *waiting]:
            log.add(job, {"what": "end", "error": NO_TIME})


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def estimate(found: dict[str, float | None] | None) -> str:
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]" if found else ""


def table(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def report(jobs: list[Job], log: Log) -> str:
    """All tables: what each job ends with, its curve, and for MAD-AD its scores and what is known of its latents."""
    ends, curves, heads = [], [], []
    for job in jobs:
        end, points = log.ends.get(job.name, {}), log.points.get(job.name, [])
        best = max(points, key=lambda one: one["val"], default=None)
        ends.append(
            [
                f"`{job.name}`", f"{end['seconds']:.0f}" if "seconds" in end else "", str(end.get("steps", "")),
                number(end.get("val")), f"{best['val']:.3f} at {best['seconds']:.0f} s" if best else "",
                estimate(end.get("test")), end.get("error", ""),
            ]
        )  # fmt: skip
        if points:
            curves.append([f"`{job.name}`", " · ".join(f"{one['seconds']:.0f} s: {one['val']:.3f}" for one in points)])
        if "spectrum" in end:
            scores, flags = end.get("scores", {}), end.get("cells", {})
            heads.append(
                [
                    f"`{job.name}`", *(estimate(scores.get(name)) for name in ("repair", "probability")),
                    *(f"{flags[name]:.1%}" if flags else "" for name in ("lesion", "free")),
                    *(number(end["heads"].get(name)) for name in HEADS),
                    ", ".join(f"{value:.3g}" for value in end["spectrum"]),
                ]
            )  # fmt: skip
    where = "validation AUPRC at seconds of training"
    parts = [table(("job", "training, s", "steps", "validation", "best on its curve", "test", "failed"), ends)]
    parts += [table(("job", where), curves)] if curves else []
    head = ("job", "test, repair", "test, probability", "lesion cells p > .5", "other cells", *HEADS, "eigenvalues")
    parts += [table(head, heads)] if heads else []
    return "\n\n".join(parts)


def draw(jobs: list[Job], log: Log, path: Path) -> None:
    """The curves, validation AUPRC over seconds of training on a logarithmic axis."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for place, job in enumerate(job for job in jobs if log.points.get(job.name)):
        points = log.points[job.name]
        style = {"marker": "o", "markersize": 3, "linestyle": ("-", "--", ":")[place // 10 % 3]}
        axes.plot([p["seconds"] for p in points], [p["val"] for p in points], label=job.name, **style)
    axes.set(xscale="log", xlabel="training, s", ylabel="validation AUPRC")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="+", help="jobs, or files of them")
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--data-root", help="folder of the dataset")
    parser.add_argument("--modality", default="FLAIR")
    parser.add_argument("--set", action="append", default=[], metavar="dataset.KEY=VALUE", help="of the dataset")
    parser.add_argument("--out", type=Path, required=True, help="where runs and figures are kept")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument("--minutes", type=float, default=60.0, help="for everything")
    parser.add_argument("--slices", type=int, default=0, help="validation slices of a curve, evenly spread; 0: all")
    args = parser.parse_args()
    if args.jobs < 1 or args.minutes <= 0 or args.slices < 0:
        parser.error("--jobs must be at least 1, --minutes above 0 and --slices not below 0")
    try:
        args.out, args.device = args.out.absolute(), run_config.resolve_device(args.device)
        jobs = read_jobs(args.job)
        settings = {"what": "settings", "device": args.device, "slices": args.slices, **check(args, jobs)}
        log = Log(args.out / "curves.jsonl", settings)
        train_all(args, jobs, log)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    text = report(jobs, log)
    (args.out / "curves.md").write_text(text + "\n", encoding="utf-8")
    draw(jobs, log, args.out / "curves.png")
    print(text)
    if any(log.ends[job.name].get("error", NO_TIME) != NO_TIME for job in jobs):
        sys.exit(1)


if __name__ == "__main__":
    main()
