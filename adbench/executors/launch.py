"""From a configuration to outcomes: which cells there are, which are done, and an executor for the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adbench.config import grid, run_config
from adbench.config.cell import Cell
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.errors import UserError, unknown
from adbench.executors import Options, Outcome, serial
from adbench.executors.gpu_sharing import Share, share
from adbench.executors.monitor import GridView
from adbench.executors.node import gpu_memory_gb
from adbench.results import progress as survey
from adbench.runner.plan import Plan, plan

if TYPE_CHECKING:
    from adbench.executors.ray import Packed
    from adbench.utils.cluster import Cluster

EXECUTORS = ("serial", "ray")


@dataclass(frozen=True)
class Placement:
    """Where cells run and what each gets.

    Attributes:
        executor: one of :data:`EXECUTORS`.
        address: of a Ray cluster; None: ``RAY_ADDRESS``, else this machine.
        cpus: cores a run; None: what its method asks for.
        gpus: GPUs, or the fraction of one, a run; None: by the memory its method asks for.
        most: runs at a time; None: as many as there is room for.
    """

    executor: str = "serial"
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown("executor", self.executor, EXECUTORS)
        given = {
            "--address": self.address,
            "--cpus-per-run": self.cpus,
            "--gpus-per-run": self.gpus,
            "--max-concurrent": self.most,
        }
        for flag, value in given.items():
            if value is not None and self.executor != "ray":
                raise UserError(
                    f"{flag} is for --executor ray; the serial executor runs one cell at a time in this process."
                )

    @property
    def elsewhere(self) -> bool:
        """Whether cells may run on other machines."""
        from adbench.utils.cluster import ADDRESS_VARIABLE

        address = self.address or os.environ.get(ADDRESS_VARIABLE)
        return self.executor == "ray" and address not in (None, "", "local")


@dataclass
class Tally:
    """Cells by what is there of them before anything runs."""

    total: int = 0
    done: int = 0
    failed: int = 0

    @property
    def missing(self) -> int:
        return self.total - self.done


@dataclass
class Launch:
    """A grid and where it runs. Cells are planned as they are looked at, each time anew; none is kept.

    Args:
        settings: what is wanted.
        placement: where.
        options: how.
        retry_failed: leave out cells that have not failed yet.
    """

    settings: RunConfig
    placement: Placement = field(default_factory=Placement)
    options: Options = field(default_factory=Options)
    retry_failed: bool = False

    def __post_init__(self) -> None:
        self._executor: Packed | None = None
        self.out = Path(self.settings.out)
        self.cache = Path(self.settings.cache) if self.settings.cache else run_config.default_cache()
        for flag, path in (("--out", self.settings.out), ("--cache", self.settings.cache or "")):
            if re.match(r"[a-z][a-z0-9+]+:/", path):  # a Path has lost one of the slashes of a URL
                raise UserError(f"{flag} {path} must be a folder: mount that storage at the same path on every node.")

    @contextmanager
    def connected(self) -> Iterator[Cluster | None]:
        """A connection to the cluster, where there is one; Ray on this machine starts when there is something to run."""
        if not self.placement.elsewhere:
            yield None
            return
        from adbench.utils.cluster import connect

        with connect(self.placement.address) as cluster:
            yield cluster

    def cells(self, cluster: Cluster | None = None) -> list[Cell]:
        """Every cell of the grid.

        Raises:
            UserError: anything unknown, missing or out of range.
        """
        resolve = run_config.resolve_device if cluster is None else _on(cluster)
        if isinstance(self.settings, grid.GridConfig):
            return grid.cells(self.settings, resolve)
        return run_config.cells(self.settings, resolve)

    def plans(self, cluster: Cluster | None = None, progress: Progress | None = None) -> Iterator[Plan]:
        """Every cell that is wanted, planned."""
        for one in plan(self.cells(cluster), self.out, self.cache, progress):
            if not self.retry_failed or self.done(one) or survey.state(one.run_folder)[0] in ("failed", "lost"):
                yield one

    def done(self, plan: Plan) -> bool:
        """Whether nothing is to be done for the cell."""
        return not self.options.force and plan.done(save_maps=self.options.save_maps)

    def tally(self, cluster: Cluster | None = None, progress: Progress | None = None) -> Tally:
        """Look at every cell; prepares data that are not prepared yet.

        Raises:
            UserError: as :meth:`cells`, or from the data; nothing to run at all.
        """
        tally = Tally()
        for one in self.plans(cluster, progress):
            tally.total += 1
            if self.done(one):
                tally.done += 1
            elif survey.state(one.run_folder)[0] == "failed":
                tally.failed += 1
        if not tally.total:
            raise UserError(
                "No cell has failed: run without --retry-failed." if self.retry_failed else "The grid has no cell."
            )
        return tally

    def share(self, plan: Plan, cluster: Cluster | None = None) -> Share:
        """What a cell gets; without a cluster, what it would get on this machine."""
        place = self.placement
        if cluster is not None:
            return self._packed(cluster).share(plan)
        memory = gpu_memory_gb() if plan.cell.device != "cpu" else 0.0
        cores = len(os.sched_getaffinity(0))
        return share(
            plan.resources, plan.cell.device, gpu_memory_gb=memory, most_cpus=cores, cpus=place.cpus, gpus=place.gpus
        )

    def _packed(self, cluster: Cluster) -> Packed:
        """The executor of the cluster, made once: it looks at every node."""
        if self._executor is None:
            from adbench.executors.ray import Packed

            place = self.placement
            self._executor = Packed(cluster, self.out, self.cache, self.options, place.cpus, place.gpus, place.most)
        return self._executor

    def outcomes(
        self,
        tally: Tally,
        cluster: Cluster | None = None,
        progress: Progress | None = None,
        *,
        before: Callable[[Plan], None] = lambda plan: None,
        quiet: bool = True,
    ) -> Iterator[Outcome]:
        """Carry out what is not done; the outcome of every cell.

        Args:
            tally: from :meth:`tally`.
            cluster: from :meth:`connected`.
            progress: receives the progress of the serial executor.
            before: called by the serial executor with each plan that really runs.
            quiet: no live view of the cells that Ray runs.
        """
        with ExitStack() as stack:
            if tally.missing:
                stack.enter_context(survey.announced(self.out, self.plans(cluster), force=self.options.force))
            if self.placement.executor == "serial" or not tally.missing:
                yield from serial(self.plans(cluster), progress, self.options, before=before)
                return
            if cluster is None:
                from adbench.utils.cluster import connect

                cluster = stack.enter_context(connect("local"))
            yield from self._on_ray(cluster, stack.enter_context(GridView(tally.total, quiet)))

    def _on_ray(self, cluster: Cluster, view: GridView) -> Iterator[Outcome]:
        packed = self._packed(cluster)

        def tick() -> None:
            view.tick((cell.plan.cell.label, cell.plan.run_folder) for cell in packed.running)

        for outcome in packed.run(self.plans(cluster), tick):
            view.ended(outcome.plan.cell.label, outcome.reason, outcome.seconds, outcome.reused)
            yield outcome


def _on(cluster: Cluster) -> Callable[[str], str]:
    """Device names where the GPUs are the cluster's."""

    def resolve(device: str) -> str:
        if device == "auto":
            return "cuda" if cluster.gpus else "cpu"
        if device != "cpu" and not device.startswith("cuda"):
            raise UserError(f"Device {device!r} is not one of auto, cpu, cuda.")
        if device != "cpu" and not cluster.gpus:
            raise UserError(f"Device {device!r} is not there: the cluster at {cluster.address} has no GPU.")
        return device.partition(":")[0]

    return resolve
