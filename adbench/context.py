"""What a method is told about the run it takes part in, and how it reports back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Progress:
    """Receives progress; this base ignores it, the command line draws bars.

    A phase is named by its first report and ends when ``done == total``.
    """

    def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
        """``done`` of ``total`` units of ``phase`` are finished; ``figures`` (loss=0.12) are shown beside the bar.

        A ``total`` of 0 says no more than that the phase has begun.
        """


@dataclass
class Context:
    """The surroundings of one fit or one scoring pass.

    Attributes:
        device: a torch device string, resolved by the caller ("cpu", "cuda", "cuda:1"). Methods use this and nothing else.
        seed: every random draw derives from it (see :func:`adbench.utils.seeds.derive`).
        workdir: a folder of this fit alone, kept between interruptions: checkpoints go here. None: keep nothing on disk.
        checkpoint_seconds: a training in progress is saved at least this often.
        track: write loss curves to these trackers too, of :data:`adbench.utils.tracking.TRACKERS`, with commas between; "" for none.
        watch: a training loop calls it after a validation with the share (0 to 1) of the training that is done, while the
            method can already score; None when nothing is called.
        sigma: Gaussian smoothing in px that maps go through after scoring (:func:`adbench.runner.inference.score_volumes`); 0: none.
        median: side of the 3-D median that the maps of a volume go through after that; 0: none. No method does either, or needs
            to know.
        progress: receives progress.
        logger: for messages a user may want to read later.
    """

    device: str = "cpu"
    seed: int = 0
    workdir: Path | None = None
    checkpoint_seconds: float = 60.0
    track: str = ""
    watch: Callable[[float], None] | None = None
    sigma: float = 0.0
    median: int = 0
    progress: Progress = field(default_factory=Progress)
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("adbench"))
