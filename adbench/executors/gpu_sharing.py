"""How many runs share a GPU, and how many cores each gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adbench.errors import UserError
from adbench.methods.base import Resources

CONTEXT_GB = 0.6  # of GPU memory that a process holds before its first tensor: driver, kernels, libraries
MAX_RUNS = 8  # on one GPU; more of them only wait for each other


@dataclass(frozen=True)
class ResourceRequest:
    """What is kept for one run while it runs.

    Attributes:
        cpus: cores; how many threads the run computes with is another matter (:mod:`adbench.utils.threads`).
        gpus: GPUs, or the fraction of one.
    """

    cpus: float
    gpus: float

    def memory_fraction(self, total_gb: float) -> float | None:
        """The part of a GPU's memory that tensors of this run may fill; None: all of it.

        Args:
            total_gb: memory of the GPU in GiB; 0 when it is not known.
        """
        if self.gpus >= 1 or self.gpus == 0:
            return None
        context = CONTEXT_GB / total_gb if total_gb else 0.0
        return max(self.gpus / 2, self.gpus - context)

    def __str__(self) -> str:
        gpu = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{gpu}"


def parse(text: str | None, flag: str) -> float | None:
    """The number after ``flag``; None for "auto".

    Raises:
        UserError: neither a number above 0 nor "auto"; more than one GPU, but not a whole number of them.
    """
    if text is None or text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0 or (value == 0 and flag == "--gpus-per-run"))):
        raise UserError(f"{flag} {text} is neither `auto` nor a number such as 1 or 0.25.")
    if flag == "--gpus-per-run" and value > 1 and value != int(value):
        raise UserError(f"{flag} {text}: a run takes a fraction of one GPU or whole ones.")
    return value


def request(
    asked: Resources,
    device: str,
    *,
    gpu_memory_gb: float,
    most_cpus: float,
    cpus: float | None = None,
    gpus: float | None = None,
) -> ResourceRequest:
    """What is requested for a run.

    Where the user says nothing, a run on a GPU gets the smallest share 1/n whose memory holds what its method asks for and
    a CUDA context, n at most :data:`MAX_RUNS`.

    Args:
        asked: what its method asks for.
        device: "cpu" or a CUDA device.
        gpu_memory_gb: memory of the smallest GPU, in GiB; 0 when there is none or it is not known.
        most_cpus: cores of the largest node; a method that asks for more gets as many, a user who asks for more does not.
        cpus: cores that the user asks for; None: decide.
        gpus: GPUs that the user asks for; None: decide.
    """
    cores = min(asked.cpus, most_cpus) if cpus is None else cpus
    if gpus is not None:
        return ResourceRequest(cores, gpus)
    if device == "cpu":
        return ResourceRequest(cores, 0.0)
    if not gpu_memory_gb:
        return ResourceRequest(cores, 1.0)
    runs = min(MAX_RUNS, math.floor(gpu_memory_gb / (asked.gpu_memory_gb + CONTEXT_GB)))
    share = 1.0 if runs <= 1 else math.floor(10_000 / runs) / 10_000  # Ray counts in ten-thousandths
    return ResourceRequest(cores, share)
