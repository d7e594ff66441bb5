"""Cells on every core and GPU that Ray has: this machine, or a cluster.

Each cell is one Ray task that gets its specification and gives back a few words; data and records go through the file
system. A task whose worker or node dies is started again by Ray, and one whose process dies by the driver, since Ray would
print a traceback of each death; it goes on from the last checkpoint. An error of the method comes back as a result and is
not repeated. Cells that share a fit run one after the other until it is there.

A task hands its cell to a process of its own (:mod:`adbench.executors.worker`), as ``max_calls=1`` would, but without
starting Python, Ray and torch for every cell.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from adbench.errors import CellFailed
from adbench.executors.resources import ResourceRequest, check_nodes
from adbench.executors.serial import Options, Outcome
from adbench.executors.worker import Job, outcome_of, run_in_process
from adbench.results import status
from adbench.runner.fit import FIT
from adbench.runner.plan import Plan
from adbench.utils import threads
from adbench.utils.cluster import Cluster
from adbench.utils.locks import is_locked
from adbench.utils.processes import GRACE

ATTEMPTS = 3  # for a cell whose process, worker or node dies
_AHEAD = 4  # cells handed to Ray beyond those that have room, so that none waits for this process
_TICK = 1.0  # seconds between two looks at what runs


class RayExecutor:
    """Runs cells on one cluster.

    Every node sees the folder of runs and fits, ``out``, and that of slice stores, ``cache``.

    Raises:
        UserError: a node that does not see ``out`` or may not write there.
    """

    def __init__(self, cluster: Cluster, out: Path, cache: Path, options: Options | None = None) -> None:
        import ray

        self.cluster, self.options = cluster, options or Options("ray")
        self.out, self.cache = Path(out).resolve(), Path(cache).resolve()
        self._mark, self._gpu_memory = check_nodes(cluster, self.out)
        self._most_cpus = max(node.cpus for node in cluster.nodes)
        remote: Any = ray.remote
        self._task = remote(max_retries=ATTEMPTS - 1)(run_in_process)
        # Deaths of processes of a cell, by run key; Ray counts those of workers and nodes.
        self._deaths: Counter[str] = Counter()
        self._running: dict[Any, tuple[Plan, ResourceRequest]] = {}

    @property
    def running(self) -> list[Plan]:
        """The cells that Ray has, in the order in which it got them."""
        return [plan for plan, _ in self._running.values()]

    def request(self, plan: Plan) -> ResourceRequest:
        """What the cell gets."""
        return self.options.request(plan, gpu_memory_gb=self._gpu_memory, most_cpus=self._most_cpus)

    def run(self, plans: Iterable[Plan], tick: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
        """Run the cells; a failing one does not stop the others. ``tick`` is called about once a second.

        Raises:
            UserError: a cell asks for more than any node has.
        """
        waiting = list(plans)
        try:
            while True:
                yield from self._fill(waiting)
                if not self._running:
                    return
                tick()
                yield from self._drain()
        finally:
            self._cancel()

    def _fill(self, waiting: list[Plan]) -> Iterator[Outcome]:
        """Hand cells to Ray while there is room; those with a record are done at once."""
        capacity = self.options.max_concurrent or int(self.cluster.cpus / min(1.0, self.options.cpus or 1.0)) + _AHEAD
        fitting = {plan.fit_key for plan in self.running if not (plan.fit_folder / FIT).exists()}
        held: list[Plan] = []  # cells whose fit another one is making
        while waiting and len(self._running) < capacity and len(held) < 10 * capacity:
            plan = waiting.pop(0)
            if plan.fit_key in fitting:
                held.append(plan)
            elif (found := self.options.reused(plan)) is not None:
                yield found
            else:
                self._submit(plan, self.request(plan))
                if not (plan.fit_folder / FIT).exists():
                    fitting.add(plan.fit_key)
        waiting[:0] = held

    def _submit(self, plan: Plan, wanted: ResourceRequest) -> None:
        self.cluster.require(wanted.cpus, wanted.gpus)
        spec = plan.cell.to_json()
        if wanted.gpus and plan.cell.device != "cpu":
            spec["device"] = "cuda"  # Ray says which
        job = Job(
            spec,
            plan.run_key,
            str(self.out),
            str(self.cache),
            self._mark,
            self.options,
            threads.count(plan.resources.cpus),
            wanted.gpus,
            wanted.memory_fraction(self._gpu_memory),
        )
        task = self._task.options(num_cpus=wanted.cpus, num_gpus=wanted.gpus, name=plan.cell.label)
        self._running[task.remote(job)] = plan, wanted

    def _drain(self) -> Iterator[Outcome]:
        """Wait a moment for cells to end."""
        import ray

        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not ended:
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_TICK)
        for ref in ended:
            plan, granted = self._running.pop(ref)
            try:
                result = ray.get(ref)
            except ray.exceptions.RayError as error:
                failed = CellFailed(_words(error))  # its process, worker or node died each time that it was started
                status.write_death(plan.run_folder, failed)
                yield Outcome(plan, failed)
                continue
            self._deaths[plan.run_key] += result.again
            if result.memory and 0 < granted.gpus < 1:
                self._submit(plan, ResourceRequest(granted.cpus, 1.0))
            elif result.again and self._deaths[plan.run_key] < ATTEMPTS:
                self._submit(plan, granted)
            elif result.again:
                often = replace(result, message=f"{result.message}, {ATTEMPTS} times")
                yield outcome_of(plan, often, self.options)
            else:
                yield outcome_of(plan, result, self.options)

    def _cancel(self) -> None:
        """Leave nothing running behind."""
        import ray

        for ref in self._running:
            with suppress(Exception):  # the connection may be what broke
                ray.cancel(ref, force=True)
        late = time.monotonic() + GRACE
        for plan in self.running:
            while is_locked(plan.run_folder) and time.monotonic() < late:  # it saves what it was doing
                time.sleep(_TICK / 10)
            status.interrupt(plan.run_folder)
        self._running.clear()


def _words(error: Exception) -> str:
    """The message of a Ray error, without its tracebacks."""
    import ray

    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its worker process died {ATTEMPTS} times (killed, or out of memory)"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return f"its node died {ATTEMPTS} times"
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
