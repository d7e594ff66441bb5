"""Cells on every core and GPU that Ray has: this machine, or a cluster.

Each cell is one Ray task that gets its specification and gives back a few words; data and records go through the file
system. A task whose process, worker or node dies is started again by Ray, and goes on from the last checkpoint. An error of
the method comes back as a result and is not repeated. Cells that share a fit run one after the other until it is there.

A task hands its cell to a process of its own (:mod:`adbench.executors.worker`), as ``max_calls=1`` would, but without
starting Python, Ray and torch for every cell.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.executors.base import Failed, Options, Outcome
from adbench.executors.gpu_sharing import Share, share
from adbench.executors.job import Job, Result, mark
from adbench.executors.node import Crashed, gpu_memory_gb, look, work
from adbench.results import rundir, status
from adbench.runner.fit import FIT
from adbench.runner.plan import Plan
from adbench.utils import threads
from adbench.utils.cluster import Cluster

ATTEMPTS = 3  # for a cell whose process, worker or node dies
_AHEAD = 4  # cells handed to Ray beyond those that have room, so that none waits for this process
_DEATH = 0.3  # seconds that a cell takes to die
_TICK = 1.0  # seconds between two looks at what runs


@dataclass
class Running:
    """A cell that was handed to Ray.

    Attributes:
        whole: it has a whole GPU after running out of memory on a share.
    """

    plan: Plan
    share: Share
    begun: float
    whole: bool = False


@dataclass
class Packed:
    """An executor for one cluster.

    Args:
        cluster: from :func:`adbench.utils.cluster.connect`, still open.
        out: folder of runs and fits, seen by every node.
        cache: folder of slice stores, seen by every node.
        options: how cells are run.
        cpus: cores a run; None: what the method asks for.
        gpus: GPUs, or the fraction of one, a run; None: by the memory that the method asks for.
        most: runs at a time; None: as many as there is room for.

    Raises:
        UserError: a node that does not see ``out`` or may not write there.
    """

    cluster: Cluster
    out: Path
    cache: Path
    options: Options = field(default_factory=Options)
    cpus: float | None = None
    gpus: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        import ray

        self.out, self.cache = Path(self.out).resolve(), Path(self.cache).resolve()
        self._mark = mark(self.out)
        nodes = self.cluster.nodes
        self._most_cpus = max(node.cpus for node in nodes)
        self._task: Any = ray.remote(max_retries=ATTEMPTS - 1, retry_exceptions=[Crashed])(work)  # type: ignore[call-overload]
        self._running: dict[Any, Running] = {}
        seen = [(node, self._on(node.id, look, str(self.out), self._mark)) for node in nodes]
        for _, problem in seen:
            if words := ray.get(problem):
                raise UserError(words)
        with_gpu = [self._on(node.id, gpu_memory_gb, num_gpus=0.001) for node in nodes if node.gpus]
        self._gpu_memory = min(ray.get(with_gpu), default=0.0)

    def _on(self, node: str, function: Callable[..., Any], *arguments: Any, **resources: float) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, **resources, "scheduling_strategy": there}
        return ray.remote(function).options(**options).remote(*arguments)

    @property
    def running(self) -> list[Running]:
        """The cells that Ray has, in the order in which it got them."""
        return list(self._running.values())

    def share(self, plan: Plan) -> Share:
        """What the cell gets."""
        return share(
            plan.resources,
            plan.cell.device,
            gpu_memory_gb=self._gpu_memory,
            most_cpus=self._most_cpus,
            cpus=self.cpus,
            gpus=self.gpus,
        )

    def run(self, plans: Iterable[Plan], tick: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
        """Carry out the cells; a failing one does not stop the others.

        Args:
            plans: from :func:`adbench.runner.plan.plans`; taken as there is room for them.
            tick: called about once a second.

        Raises:
            UserError: a cell asks for more than any node has.
        """
        waiting = iter(plans)
        held: deque[Plan] = deque()  # cells whose fit another one is making
        try:
            while True:
                yield from self._fill(waiting, held)
                if not self._running:
                    return
                tick()
                yield from self._drain()
        finally:
            self._cancel()

    def _room(self) -> int:
        if self.most is not None:
            return self.most
        return int(self.cluster.cpus / min(1.0, self.cpus or 1.0)) + _AHEAD

    def _fill(self, waiting: Iterator[Plan], held: deque[Plan]) -> Iterator[Outcome]:
        """Hand cells to Ray while there is room; those with a record are done at once."""
        room = self._room()
        for _ in range(len(held)):
            plan = held.popleft()
            if len(self._running) < room and not self._fit_in_the_making(plan):
                self._submit(plan)
            else:
                held.append(plan)
        while len(self._running) < room and len(held) < 10 * room:
            following = next(waiting, None)
            if following is None:
                return
            plan = following
            if not self.options.force and plan.done(save_maps=self.options.save_maps):
                plan.trace()
                yield Outcome(plan, reused=True)
            elif self._fit_in_the_making(plan):
                held.append(plan)
            else:
                self._submit(plan)

    def _fit_in_the_making(self, plan: Plan) -> bool:
        makers = any(other.plan.fit_key == plan.fit_key for other in self._running.values())
        return makers and not (plan.fit_folder / FIT).exists()

    def _submit(self, plan: Plan, whole: bool = False) -> None:
        portion = self.share(plan)
        if whole:
            portion = Share(portion.cpus, 1.0)
        self.cluster.require(portion.cpus, portion.gpus)
        spec = plan.cell.to_json()
        if portion.gpus and plan.cell.device != "cpu":
            spec["device"] = "cuda"  # Ray says which
        job = Job(
            spec,
            plan.run_key,
            str(self.out),
            str(self.cache),
            self._mark,
            self.options,
            threads.count(plan.resources.cpus),
            portion.gpus,
            portion.memory_fraction(self._gpu_memory),
        )
        task = self._task.options(num_cpus=portion.cpus, num_gpus=portion.gpus, name=plan.cell.label)
        self._running[task.remote(job.to_json())] = Running(plan, portion, time.perf_counter(), whole)

    def _drain(self) -> Iterator[Outcome]:
        """Wait a moment for cells to end."""
        import ray

        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not ended:
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_TICK)
        for ref in ended:
            cell = self._running.pop(ref)
            outcome = self._outcome(ref, cell)
            if outcome is not None:
                yield outcome

    def _outcome(self, ref: Any, cell: Running) -> Outcome | None:
        """What became of a cell; None when it was handed to Ray again."""
        import ray

        try:
            result = Result.from_json(ray.get(ref))
        except ray.exceptions.RayError as error:
            failed = Failed(f"{_words(error)}, {ATTEMPTS} times" if _crashed(error) else _words(error))
            doing = status.read(cell.plan.run_folder) or {}
            (cell.plan.run_folder / status.STATUS).unlink(missing_ok=True)
            rundir.write_failure(cell.plan.run_folder, failed, doing.get("phase", "start"))
            return Outcome(cell.plan, failed, seconds=time.perf_counter() - cell.begun)
        if result.memory and 0 < cell.share.gpus < 1 and not cell.whole:
            self._submit(cell.plan, whole=True)
            return None
        if result.error:
            text = result.message if result.expected else f"{result.error}: {result.message}"
            raised: Exception = UserError(text) if result.expected else Failed(text)
            if result.phase:
                rundir.write_failure(cell.plan.run_folder, raised, result.phase, result.trace)
            return Outcome(cell.plan, raised, seconds=result.seconds)
        if not cell.plan.done(save_maps=self.options.save_maps):
            missing = Failed(
                f"the node {result.node} says that it is done, but there is no record in {cell.plan.run_folder}: does every node "
                "see the same --out?"
            )
            return Outcome(cell.plan, missing, seconds=result.seconds)
        return Outcome(cell.plan, seconds=result.seconds)

    def _cancel(self) -> None:
        """Leave nothing running behind."""
        import ray

        for ref in self._running:
            with suppress(Exception):  # the connection may be what broke
                ray.cancel(ref, force=True)
        time.sleep(_DEATH if self._running else 0)
        for cell in self._running.values():
            status.interrupt(cell.plan.run_folder)
        self._running.clear()


def _crashed(error: BaseException) -> bool:
    return isinstance(getattr(error, "cause", None), Crashed)


def _words(error: BaseException) -> str:
    """What Ray says, without its tracebacks."""
    import ray

    cause = getattr(error, "cause", None)
    if isinstance(cause, Crashed):
        return str(cause)
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its worker process died {ATTEMPTS} times (killed, or out of memory)"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return f"its node died {ATTEMPTS} times"
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
