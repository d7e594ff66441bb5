"""Checks of a cluster node before it gets work: whether it sees the output folder, and its GPU memory."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from adbench.errors import UserError
from adbench.utils.cluster import Cluster
from adbench.utils.files import write_text

MARK = ".adbench"  # a file that tells one output folder from another
_GPU_MEMORY: dict[str, float] = {}  # GiB by node: the answer takes a process that imports torch


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
    probe = Path(out) / f"{MARK}.{uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
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
    problems = ray.get([ask(node.id, _problem, str(out), found) for node in cluster.nodes])
    if any(problems):
        raise UserError(next(filter(None, problems)))
    with_gpu = [node.id for node in cluster.nodes if node.gpus]
    if unknown := [node for node in with_gpu if node not in _GPU_MEMORY]:
        _GPU_MEMORY.update(
            zip(unknown, ray.get([ask(node, gpu_memory_gb, gpus=0.001) for node in unknown]), strict=True)
        )
    return found, min((_GPU_MEMORY[node] for node in with_gpu), default=0.0)


def _problem(out: str, expected: str) -> str:
    """Why this node cannot work on the output folder; "" when it can."""
    try:
        check_mark(out, expected)
    except UserError as error:
        return str(error)
    return ""
