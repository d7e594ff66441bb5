"""CPU, GPU and memory of each run, and the check that the nodes have them."""

from __future__ import annotations

import math
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from adbench.errors import UserError
from adbench.methods.base import Resources
from adbench.utils.cluster import Cluster
from adbench.utils.files import write_text

CONTEXT_GB = 0.6  # of GPU memory that a process holds before its first tensor: driver, kernels, libraries
MAX_RUNS = 8  # on one GPU; more of them only wait for each other
MARK = ".adbench"  # a file that tells one output folder from another
_GPU_MEMORY: dict[str, float] = {}  # GiB by node: the answer takes a process that imports torch


@dataclass(frozen=True)
class ResourceRequest:
    """Resources reserved for one run.

    Attributes:
        cpus: cores; how many threads the run computes with is another matter (:mod:`adbench.utils.threads`).
        gpus: GPUs, or the fraction of one.
    """

    cpus: float
    gpus: float

    def memory_fraction(self, total_gb: float) -> float | None:
        """The part of a GPU's memory (``total_gb`` GiB; 0: not known) that tensors of this run may fill; None: all of it."""
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
    """Resources to request for a run.

    Where the user says nothing, a run on a GPU gets the smallest share 1/n whose memory holds what its method asks for and
    a CUDA context, n at most :data:`MAX_RUNS`.

    Args:
        asked: by its method.
        device: "cpu" or a CUDA device.
        gpu_memory_gb: memory of the smallest GPU, in GiB; 0 when there is none or it is not known.
        most_cpus: cores of the largest node; a method that asks for more gets as many, a user who asks for more does not.
        cpus: that the user asks for; None: decide.
        gpus: that the user asks for; None: decide.
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


def mark(out: Path) -> str:
    """The content of the mark of ``out``, a file that is created if need be."""
    path = Path(out) / MARK
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text()


def check_mark(out: str, expected: str) -> None:
    """Check that the folder ``out`` which this process sees is the one with the mark ``expected``, and can be written.

    Raises:
        UserError: another one, none, or one that this process may not write to.
    """
    host = socket.gethostname()
    try:
        found = (Path(out) / MARK).read_text()
    except OSError:
        found = None
    if found != expected:
        raise UserError(
            f"The node {host} does not see the folder {out} of the machine that started the grid: put --out (and --cache) on "
            "storage that every node mounts at the same path."
        )
    try:
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"The node {host} may not write to {out} ({error.strerror}): change its permissions.") from None


def gpu_memory_gb() -> float:
    """Memory of the smallest GPU that this process sees, in GiB; 0 when it sees none."""
    import torch

    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    return min(sizes, default=0) / 2**30


def check_nodes(cluster: Cluster, out: Path) -> tuple[str, float]:
    """Check that every node of ``cluster`` can work on the output folder.

    Returns:
        The mark of the folder, and the memory of the smallest GPU of the cluster in GiB (0 without one).

    Raises:
        UserError: a node that does not see ``out`` or may not write there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: str, question: Callable[..., Any], *arguments: Any, gpus: float = 0.0) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        remote: Any = ray.remote(question)
        return remote.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=there).remote(*arguments)

    found = mark(out)
    try:
        ray.get([ask(node.id, check_mark, str(out), found) for node in cluster.nodes])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    with_gpu = [node.id for node in cluster.nodes if node.gpus]
    if unknown := [node for node in with_gpu if node not in _GPU_MEMORY]:
        _GPU_MEMORY.update(
            zip(unknown, ray.get([ask(node, gpu_memory_gb, gpus=0.001) for node in unknown]), strict=True)
        )
    return found, min((_GPU_MEMORY[node] for node in with_gpu), default=0.0)
