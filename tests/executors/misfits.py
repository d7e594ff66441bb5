"""Methods that go wrong in every way, and one that works slowly: a plug-in for the tests of executors.

They behave once the file that ``MISFITS_REPAIRED`` names exists, and keep a log of their steps beside their fit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from adbench.datasets.slices import SliceBatch
from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet, param


def repaired() -> bool:
    return Path(os.environ["MISFITS_REPAIRED"]).exists()


class Raising(Method):
    """Raises while it fits."""

    name = "raising"

    def fit(self, train, val):
        if not repaired():
            raise ValueError("no such luck")
        return FitReport()

    def score(self, batch):
        return batch.image


class Killed(Raising):
    """Is ended by SIGKILL, as by a kernel that is out of memory."""

    name = "killed"

    def fit(self, train, val):
        if not repaired():
            os.kill(os.getpid(), signal.SIGKILL)
        return FitReport()


class Swallowing(Raising):
    """Is interrupted while it fits, and returns as if it were done."""

    name = "swallowing"

    def fit(self, train, val):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return FitReport()


class Patching(Raising):
    """Spoils what every method is given; meant for processes of the command line."""

    name = "patching"

    def fit(self, train, val):
        SliceBatch.to = None
        return FitReport()


class Undefined(Raising):
    """Scores NaN."""

    name = "undefined"

    def fit(self, train, val):
        return FitReport()

    def score(self, batch):
        return batch.image if repaired() else batch.image * float("nan")


class Hungry(Raising):
    """Runs out of GPU memory the first time."""

    name = "hungry"

    def fit(self, train, val):
        import torch

        before = self.ctx.workdir / "before"
        if not before.exists():
            before.touch()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FitReport()


class Exits(Raising):
    """Ends the program while it fits, after it has said a lot."""

    name = "exits"

    def fit(self, train, val):
        print("Thank you for using exits!")
        os.write(1, b"from a C library")
        sys.exit("enough")


class Unspeakable(ValueError):
    """An error that cannot even be printed."""

    def __str__(self):
        raise RuntimeError("no words")


class Endless(Raising):
    """Raises an error with a text of 20 MB, because of one without a text."""

    name = "endless"

    def fit(self, train, val):
        raise ValueError("again and " * 2_000_000) from Unspeakable()


class Interrupting(Raising):
    """Tells all processes of its group to end."""

    name = "interrupting"

    def fit(self, train, val):
        os.killpg(0, signal.SIGTERM)
        time.sleep(60)


class Closing(Raising):
    """Closes what it has not opened."""

    name = "closing"

    def fit(self, train, val):
        os.closerange(3, 4096)
        return FitReport()


class Detached(Raising):
    """Starts a process in a session of its own, and dies."""

    name = "detached"

    def fit(self, train, val):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (self.ctx.workdir.parents[1] / "detached").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGSEGV)


class SlowParams(ParamSet):
    steps: int = param(20, "Steps.", unit="steps", ge=1)
    pause: float = param(0.1, "Time a step sleeps.", unit="s", ge=0)
    spin: float = param(0.0, "CPU time a step burns.", unit="s", ge=0)


class Slow(Method):
    """Counts, one line a step in its log; interrupted, it goes on with the next step."""

    name = "slow"
    Params = SlowParams

    def fit(self, train, val):
        log = self.ctx.workdir / "log"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        for step in range(done + 1, self.params.steps + 1):
            time.sleep(self.params.pause)
            end = time.process_time() + self.params.spin
            while time.process_time() < end:
                sum(number * number for number in range(1000))
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {step}\n")
            self.ctx.progress.update("count", step, self.params.steps, loss=1 / step)
        return FitReport(steps=self.params.steps)

    def score(self, batch):
        import torch

        generator = torch.Generator().manual_seed(self.ctx.seed)
        return batch.image * torch.rand(batch.image.shape[-2:], generator=generator)


def install(folder: Path) -> None:
    """Put this file into ``folder`` as an installed distribution with entry points."""
    info = folder / "misfits-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "misfits.py").write_text(Path(__file__).read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misfits\nVersion: 1.0\n")
    classes = (Raising, Killed, Swallowing, Patching, Undefined, Hungry, Exits, Detached, Slow)
    classes += (Endless, Interrupting, Closing)
    lines = "".join(f"{cls.name} = misfits:{cls.__name__}\n" for cls in classes)
    (info / "entry_points.txt").write_text(f"[adbench.methods]\n{lines}")
