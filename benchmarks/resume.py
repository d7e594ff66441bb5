"""Whether a training that is killed and resumed ends like one that was left alone.

    python benchmarks/resume.py --method dae --set dae.steps=40
    python benchmarks/resume.py --device cuda --preset base --method dae,vae --set method.steps=400
    python benchmarks/resume.py --device cuda --preset base --method madad --set madad.ae_steps=300 --set madad.steps=600

Runs each method on a small phantom in a temporary folder, undisturbed; then again in another folder, where its process is
ended by SIGKILL in the middle of each stage of the training, as soon as a checkpoint of its second half is there, and the
same command is given again. Prints how far the fitted weights and the numbers of the two records are apart, what the record
says of how it resumes, and times.

On a CPU everything must be equal to the bit. On a GPU kernels may add in another order from run to run, and a training makes
the last digit that differs grow: two runs that nobody disturbed differ, too. How much is measured by a third run, undisturbed,
and a resumed training may differ three times as much, or by --tolerance, whichever is more. A lost moment, a
repeated batch or a wrong learning rate moves weights further than that.

Exits with 1 where a difference is larger than that, with 2 where a run fails or was over before it could be killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHANTOM = ("dataset.n_train=8", "dataset.n_val=4", "dataset.n_test=4", "dataset.slices=4", "dataset.resolution=3.4")
TIMES = 3.0  # as far apart as two undisturbed runs
SHOWN = (
    "auprc",
    "auroc",
    "dice@val",
    "auprc_subject",
)  # of a record, where it has them; the largest difference is of all


class Failed(Exception):
    """What stopped the comparison, as a sentence."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its record, the tensors of its fits by file and name, and seconds it took in all attempts."""

    record: dict[str, Any]
    weights: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Apart:
    """How far two runs are apart.

    Attributes:
        weights: largest difference of a weight, in standard deviations of the tensor it belongs to.
        where: that tensor.
        metrics: largest difference of a number of the record.
        which: that number.
        equal: all weights and numbers are equal to the bit.
    """

    weights: float
    where: str
    metrics: float
    which: str
    equal: bool


def say(text: str) -> None:
    print(text, flush=True)


def begin(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out)


def end(process: subprocess.Popen[bytes], out: Path) -> None:
    """SIGKILL for the process that trains, which writes its id into the run's folder, and for the command."""
    for path in out.rglob("status.json"):
        with suppress(ProcessLookupError):
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
    process.kill()
    process.wait()


def middle(out: Path, before: set[Path]) -> tuple[Path, int, int] | None:
    """The folder of a stage that has a checkpoint of its second half and is not among ``before``, with its step and its steps."""
    for path in out.rglob("checkpoint.json"):
        try:
            checkpoint = json.loads(path.read_text())
        except FileNotFoundError:  # it has just been replaced
            continue
        figures, steps = checkpoint["figures"], checkpoint["identity"]["plan"]["steps"]
        if path.parent not in before and not figures["finished"] and figures["step"] >= steps / 2:
            return path.parent, figures["step"], steps
    return None


def finished(process: subprocess.Popen[bytes], log: Path, command: list[str]) -> None:
    if process.wait():
        said = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise Failed("This command failed: " + " ".join(command) + "\n" + "\n".join(said))


def run(name: str, out: Path, args: argparse.Namespace, *, kill: bool = False) -> Outcome:
    """``adbench run`` of one method into ``out``; with ``kill`` it is killed in each stage and given again.

    Raises:
        Failed: the command fails, or a training was over before a checkpoint of its second half was there.
    """
    others = {other for other in args.method.split(",") if other != name}
    sets = [text for text in (*PHANTOM, *args.set) if text.partition(".")[0] not in others]
    command = [
        sys.executable, "-m", "adbench.cli", "run", "--method", name, "--dataset", "phantom", "--seed", str(args.seed),
        "--device", args.device, "--preset", args.preset, "--checkpoint-seconds", str(args.checkpoint_seconds),
        "--out", str(out), "--cache", str(out.parent / "cache"), *(word for text in sets for word in ("--set", text)),
    ]  # fmt: skip
    log, start, killed = out.parent / f"{out.name}.log", time.monotonic(), set[Path]()
    process = begin(command, log)
    try:
        while kill and process.poll() is None:
            if found := middle(out, killed):
                end(process, out)
                stage, step, steps = found
                say(
                    f"{name}: killed in {stage.name}, with a checkpoint of step {step} of {steps}; the same command again"
                )
                killed.add(stage)
                process = begin(command, log)
            time.sleep(0.005)
        finished(process, log, command)
    finally:
        if process.poll() is None:
            end(process, out)
    if kill and not killed:
        raise Failed(
            f"{name}: the training was over before a checkpoint of its second half was there: "
            f"give it more steps, or lower --checkpoint-seconds ({args.checkpoint_seconds:g})."
        )
    return outcome(out, time.monotonic() - start)


def outcome(out: Path, seconds: float) -> Outcome:
    from safetensors.torch import load_file

    (path,) = out.rglob("record.json")
    weights: dict[str, Any] = {}
    for file in sorted((out / "fits").glob("*/*.safetensors")):
        weights |= {f"{file.parent.name}/{key}": value for key, value in load_file(file).items()}
    return Outcome(json.loads(path.read_text()), weights, seconds)


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in record["metrics"].items() if found["value"] is not None}


def compare(one: Outcome, other: Outcome) -> Apart:
    import torch

    if one.weights.keys() != other.weights.keys() or one.record["metrics"].keys() != other.record["metrics"].keys():
        raise Failed("The two runs do not hold the same tensors and numbers: their folders are of different methods.")
    equal = one.record["metrics"] == other.record["metrics"]
    worst, where = 0.0, "none"
    for name, a in one.weights.items():
        b = other.weights[name]
        if torch.equal(a, b):
            continue
        equal = False
        a, b = a.double(), b.double()
        spread = float(a.std(correction=0)) or float(a.abs().max()) or 1.0
        if (apart := float((a - b).abs().max()) / spread) > worst:
            worst, where = apart, name.partition("/")[2]
    mine, its = numbers(one.record), numbers(other.record)
    which = max(mine, key=lambda name: abs(mine[name] - its.get(name, float("inf"))), default="")
    metrics = abs(mine[which] - its.get(which, float("inf"))) if which else 0.0
    return Apart(worst, where, metrics, which if metrics else "none", equal)


def described(what: str, apart: Apart) -> str:
    if apart.equal:
        return f"{what}: equal to the bit, weights and numbers"
    return (
        f"{what}: weights at most {apart.weights:.3g} of a tensor's spread apart ({apart.where}), "
        f"numbers at most {apart.metrics:.3g} ({apart.which})"
    )


def within(found: Apart, usual: Apart | None, tolerance: float) -> bool:
    """Whether a resumed run is near enough; ``usual``: how far two undisturbed ones are apart, None: they must be equal."""
    if usual is None:
        return found.equal
    limits = (max(tolerance, TIMES * usual.weights), max(tolerance, TIMES * usual.metrics))
    say(f"allowed: {limits[0]:.3g} of a spread, {limits[1]:.3g}")
    return found.weights <= limits[0] and found.metrics <= limits[1]


def examine(name: str, folder: Path, args: argparse.Namespace) -> bool:
    """Compare the runs of one method; whether they are near enough."""
    folder.mkdir()
    say(f"{name}: undisturbed")
    whole = run(name, folder / "whole", args)
    killed = run(name, folder / "killed", args, kill=True)
    usual = None
    if args.device != "cpu":
        say(f"{name}: undisturbed once more, for what differs anyway")
        usual = compare(whole, run(name, folder / "again", args))
    found = compare(whole, killed)
    one, other = numbers(whole.record), numbers(killed.record)
    rows = [(key, f"{one[key]:.6f}", f"{other[key]:.6f}") for key in SHOWN if key in one and key in other]
    rows.append(("seconds of the commands", f"{whole.seconds:.1f}", f"{killed.seconds:.1f}"))
    say(f"\n| {name} | undisturbed | killed and resumed |\n|---|--:|--:|")
    for row in rows:
        say("| " + " | ".join(row) + " |")
    for stage, ways in killed.record["fit"]["computed"].items():
        for way in ways:
            say(f"{stage}: " + ", ".join(f"{key} {value}" for key, value in way.items()))
    if usual is not None:
        say(described("two undisturbed runs", usual))
    say(described("undisturbed and resumed", found))
    near = within(found, usual, args.tolerance)
    say(f"{name}: {'as it should be' if near else 'RESUMED TO OTHER NUMBERS'}\n")
    return near


def main(words: list[str] | None = None) -> int:
    from adbench.config import registry, run_config
    from adbench.errors import UserError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dae", help="comma-separated (default: %(default)s)")
    parser.add_argument("--preset", default="tiny", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SCOPE.KEY=VALUE", help="as of adbench run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=0.2, help="between two (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="on a GPU: difference that is allowed in any case, of weights in spreads of their tensor and of numbers (default: %(default)s)",
    )
    args = parser.parse_args(words)
    try:
        if not args.tolerance >= 0 or not args.checkpoint_seconds >= 0:
            raise Failed("--tolerance and --checkpoint-seconds must not be below 0.")
        args.device = run_config.resolve_device(args.device)
        names = [name for name in args.method.split(",") if name]
        for name in names:
            cls = registry.load("methods", name)
            if "steps" not in cls.Params.model_fields:
                raise Failed(f"{name} learns by no training loop: there is nothing to resume.")
            mine = [run_config.parse_assignment(text) for text in args.set]
            cls.resolve(args.preset, {key: value for scope, key, value in mine if scope in (name, "method")})
        with tempfile.TemporaryDirectory(prefix="adbench-resume-") as folder:
            near = [examine(name, Path(folder) / name, args) for name in names]
    except (UserError, Failed) as error:
        parser.exit(2, f"{error}\n")
    return int(not all(near))


if __name__ == "__main__":
    sys.exit(main())
