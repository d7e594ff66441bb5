"""Ray Tune runs the trials; what to try next and what to stop is decided by the table.

Ray's own record of the experiment is written to a folder that is new for every session and removed after it: a name used
twice would overwrite the state of the first search, and reading that state back would mean to unpickle it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from adbench.config import registry
from adbench.context import Progress
from adbench.errors import UserError
from adbench.executors.gpu_sharing import ResourceRequest, request
from adbench.executors.nodes import check_nodes
from adbench.params import build
from adbench.tune.course import Course
from adbench.tune.table import Table
from adbench.tune.task import Options, Task
from adbench.utils import threads
from adbench.utils.cluster import Cluster, connect


def _environment() -> None:
    """What Ray Tune reads when it is imported or started; a value the user has set stays."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the table is ours; Ray's get_dataframe() would be empty and is not used
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths among the parameters mean what they meant
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once; the table is always up to date
        "RAY_AIR_NEW_OUTPUT": "0",  # with it verbose=0 still prints a table
    }.items():
        os.environ.setdefault(name, value)


def _slots(portion: ResourceRequest, cluster: Cluster) -> int:
    """How many trials fit at a time."""
    pairs = [((node.cpus, portion.cpus), (node.gpus, portion.gpus)) for node in cluster.nodes]
    return max(1, sum(int(min(have / share for have, share in pair if share)) for pair in pairs))


def drive(
    folder: Path,
    task: Task,
    table: Table,
    options: Options,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Run what is left of the search.

    Raises:
        UserError: no Ray, an address that does not answer, more than a node has, a folder
            that a node cannot write to, nothing but failures.
    """
    _environment()
    cls = registry.load("methods", task.cell.method)
    wants = cls.resources(task.cell.params)
    with connect(options.address) as cluster:
        from ray import tune
        from ray.tune import TuneConfig, Tuner

        from adbench.tune.steering import Proposals, Stops
        from adbench.tune.worker import trial as work

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would complain that its own loggers are off
        _, memory = check_nodes(cluster, folder)
        portion = request(
            wants,
            task.cell.device,
            gpu_memory_gb=memory,
            most_cpus=max(node.cpus for node in cluster.nodes),
            cpus=options.cpus,
            gpus=options.gpus,
        )
        cluster.require(portion.cpus, portion.gpus)
        course = Course(folder, task, table, options.trials, portion, progress, say)
        slots = _slots(portion, cluster)
        session = f"session-{uuid4().hex[:8]}"
        tuner = Tuner(
            tune.with_resources(work, {"cpu": portion.cpus, "gpu": portion.gpus}),
            tune_config=TuneConfig(
                metric="value",
                mode=task.mode,
                search_alg=Proposals(course, threads.count(wants.cpus), portion.memory_fraction(memory)),
                scheduler=Stops(course),
                num_samples=course.left,
                max_concurrent_trials=min(options.max_concurrent or slots, slots),
                time_budget_s=options.budget,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=session,
                storage_path=str(folder / "ray"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),  # a worker that dies gets a second one, and goes on
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(folder / "ray", ignore_errors=True)
    if course.hopeless:
        failed = table.in_state("failed")
        raise UserError(
            f"The first {len(failed)} trials all failed, so the search was given up. The last one: {failed[-1].error} "
            f"(tracebacks below {folder / 'trials'})."
        )
