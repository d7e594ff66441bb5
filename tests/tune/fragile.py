"""A method that fails in every way, as a plug-in for the tests of searches."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet, param


class FragileParams(ParamSet):
    what: Literal["fine", "raises", "exits", "dies", "dies once", "hangs"] = param(
        "fine", "What happens while it fits."
    )


class Fragile(Method):
    """Fails as its parameter says."""

    name = "fragile"
    Params = FragileParams

    def fit(self, train, val):
        before = self.ctx.workdir / "before"
        with open(self.ctx.workdir.parents[1] / "trials" / "tried", "a") as log:
            log.write(f"{self.params.what}\n")
        if self.params.what == "raises":
            raise RuntimeError("too fragile")
        if self.params.what == "exits":
            sys.exit("enough")
        if self.params.what == "hangs":
            time.sleep(600)
        if self.params.what == "dies" or (self.params.what == "dies once" and not before.exists()):
            before.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FitReport()

    def score(self, batch):
        return batch.image

    @classmethod
    def search_space(cls):
        return {"what": {"choices": ["raises", "dies", "dies once"]}}


def install(folder: Path) -> None:
    """Put this file into ``folder`` as an installed distribution with an entry point."""
    info = folder / "fragile-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fragile.py").write_text(Path(__file__).read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adbench.methods]\nfragile = fragile:Fragile\n")
