"""From a configuration to outcomes: which cells there are, which are done, and an executor for the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from adbench.config import grid, run_config
from adbench.config.cell import Cell
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.errors import UserError
from adbench.executors.monitor import GridView
from adbench.executors.resources import ResourceRequest, gpu_memory_gb, mark
from adbench.executors.serial import Options, Outcome, serial
from adbench.executors.worker import Job, outcome_of, run_in_process
from adbench.results.status import announced, state
from adbench.runner.plan import Plan, plan
from adbench.utils import distributed, threads
from adbench.utils.cluster import ADDRESS_VARIABLE, Cluster, connect
from adbench.utils.hashing import digest
from adbench.utils.supervisor import Journal

if TYPE_CHECKING:
    from adbench.executors.ray import RayExecutor


class Launch:
    """A grid and where it runs.

    Attributes:
        retry_failed: leave out cells that have neither a record nor failed.
        journal: what one command has done. Without one, as in a notebook, cells with a plug-in get processes of their own.
        plans: every wanted cell, after :meth:`plan`.
        missing: those of them that are not done, after :meth:`plan`.

    Raises:
        UserError: a URL for a folder.
    """

    def __init__(
        self,
        settings: RunConfig,
        options: Options | None = None,
        retry_failed: bool = False,
        journal: Journal | None = None,
    ) -> None:
        for flag, path in (("--out", settings.out), ("--cache", settings.cache or "")):
            if re.match(r"[a-z][a-z0-9+]+:/", path):  # a Path has lost one of the slashes of a URL
                raise UserError(f"{flag} {path} must be a folder: mount that storage at the same path on every node.")
        self.settings, self.options, self.retry_failed = settings, options or Options(), retry_failed
        # The process of a command ends after a plug-in's cell, or says that it cannot; that of a notebook stays as it is.
        self._isolates = journal is None and distributed.world() == 1
        self.journal = journal or Journal()
        self.out, self.cache = settings.out_folder, settings.cache_folder
        self.cluster: Cluster | None = None
        self.plans: list[Plan] = []
        self.missing: list[Plan] = []

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A connection to the cluster, where there is one; Ray on this machine starts when there is something to run."""
        with ExitStack() as stack:
            address = self.options.address or os.environ.get(ADDRESS_VARIABLE)
            if self.options.executor == "ray" and address not in (None, "", "local"):
                self.cluster = stack.enter_context(connect(address))
            yield
        self.cluster = None

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of the grid.

        Raises:
            UserError: anything unknown, missing or out of range; no cell at all.
        """
        resolve = run_config.resolve_device if self.cluster is None else self._resolve_device
        if isinstance(self.settings, grid.GridConfig):
            cells = grid.cells(self.settings, resolve)
        else:
            cells = run_config.cells(self.settings, resolve)
        if not cells:
            raise UserError("The grid has no cell.")
        return cells

    def _resolve_device(self, device: str) -> str:
        """The device of a cell where the GPUs are the cluster's."""
        assert self.cluster is not None
        if device == "auto":
            return "cuda" if self.cluster.gpus else "cpu"
        if device != "cpu" and not device.startswith("cuda"):
            raise UserError(f"Device {device!r} is not one of auto, cpu, cuda.")
        if device != "cpu" and not self.cluster.gpus:
            raise UserError(f"Device {device!r} is not there: the cluster at {self.cluster.address} has no GPU.")
        return device.partition(":")[0]

    def plan(self, progress: Progress | None = None) -> list[Plan]:
        """Plan every cell that is wanted; prepares data that are not prepared yet.

        Raises:
            UserError: as :attr:`cells`, or from the data; no cell has failed where only those are wanted.
        """
        planned = plan(self.cells, self.out, self.cache, progress)
        done = {one.run_key for one in planned if self.options.done(one)}
        self.plans = [
            one
            for one in planned
            if not self.retry_failed
            or one.run_key in done
            or state(one.run_folder)[0] in ("failed", "lost")
            or one.run_key in self.journal.ended
        ]
        self.missing = [one for one in self.plans if one.run_key not in done]
        if not self.plans:
            raise UserError("No cell has failed: run without --retry-failed.")
        return self.plans

    def request(self, plan: Plan) -> ResourceRequest:
        """Resources of a cell; without a cluster, those that it would get on this machine."""
        if self.cluster is not None:
            return self._on_cluster.request(plan)
        memory = gpu_memory_gb() if plan.cell.device != "cpu" else 0.0
        return self.options.request(plan, gpu_memory_gb=memory, most_cpus=len(os.sched_getaffinity(0)))

    @cached_property
    def _on_cluster(self) -> RayExecutor:
        """The executor of the cluster, made once: it looks at every node."""
        from adbench.executors.ray import RayExecutor

        assert self.cluster is not None
        return RayExecutor(self.cluster, self.out, self.cache, self.options)

    def outcomes(
        self,
        progress: Progress | None = None,
        *,
        before: Callable[[Plan], None] = lambda plan: None,
        quiet: bool = True,
    ) -> Iterator[Outcome]:
        """Run what is not done; the outcome of every cell of :attr:`plans`.

        ``progress`` and ``before`` are for the serial executor; under Ray, unless ``quiet``, there is a live view.
        """
        with ExitStack() as stack:
            name = digest([plan.run_key for plan in self.plans])[:16]
            stack.enter_context(announced(self.out, name, [self._announcement(plan) for plan in self.missing]))
            if self.options.executor == "serial" or not self.missing:
                isolated = partial(self._isolated, progress=progress) if self._isolates else None
                yield from serial(
                    self.plans, progress, self.options, before=before, journal=self.journal, isolated=isolated
                )
                return
            if self.cluster is None:
                self.cluster = stack.enter_context(connect("local"))
            executor, view = self._on_cluster, stack.enter_context(GridView(len(self.plans), quiet))
            for outcome in executor.run(self.plans, lambda: view.tick(executor.running)):
                view.ended(outcome)
                yield outcome

    def _isolated(self, plan: Plan, progress: Progress | None) -> Outcome:
        """Run a cell on this machine in a process of its own."""
        count = threads.count(plan.resources.cpus)
        where = str(self.out.resolve()), str(self.cache.resolve()), mark(self.out)
        job = Job(plan.cell.to_json(), plan.run_key, *where, self.options, count)
        return outcome_of(plan, run_in_process(job, progress), self.options)

    def _announcement(self, plan: Plan) -> dict[str, object]:
        return {
            "folder": str(plan.run_folder.relative_to(self.out)),
            "label": plan.cell.label,
            "run_key": plan.run_key,
            "fit_key": plan.fit_key,
            "identity": plan.identity,
        }
