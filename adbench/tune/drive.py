"""Ray Tune runs the trials; what to try next and what to stop is decided by the table.

Ray's own record of the experiment is written to a folder that is new for every session and removed after it: a name used
twice would overwrite the state of the first search, and reading that state back would mean to unpickle it.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from adbench import registry
from adbench.cluster import Cluster, connect
from adbench.context import Progress
from adbench.errors import UserError
from adbench.methods.base import Resources
from adbench.params import build
from adbench.tune.course import Course
from adbench.tune.table import Table
from adbench.tune.task import Options, Task


def _environment() -> None:
    """What Ray Tune reads when it is imported or started; a value the user has set stays."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the table is ours; Ray's get_dataframe() would be empty and is not used
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths among the parameters mean what they meant
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once; the table is always up to date
        "RAY_AIR_NEW_OUTPUT": "0",  # with it verbose=0 still prints a table
    }.items():
        os.environ.setdefault(name, value)


def _held(wants: Resources, device: str, options: Options, cluster: Cluster) -> tuple[float, float]:
    """CPU cores and share of a GPU that one trial holds.

    Raises:
        UserError: no node has that much, or the share is no number.
    """
    cpus = options.cpus or min(wants.cpus, max(node.cpus for node in cluster.nodes))
    gpus = 0.0 if device == "cpu" else _gpu_share(options.gpus, wants.gpu_memory_gb)
    cluster.require(cpus, gpus)
    return cpus, gpus


def _gpu_share(text: str, memory_gb: float) -> float:
    """The share that ``text`` asks for; "auto": what ``memory_gb`` is of the memory of this machine's GPU, in twentieths."""
    if text != "auto":
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not (0 < share <= 1 or (share > 1 and share == int(share))):
            raise UserError(f"--gpus-per-run {text!r} is neither auto, a share such as 0.25, nor a whole number.")
        return share
    import torch

    if not torch.cuda.is_available():
        return 1.0  # the GPUs are elsewhere: whole ones are safe
    whole = torch.cuda.get_device_properties(0).total_memory / 2**30
    return min(1.0, math.ceil(20 * max(memory_gb, 0.5) / whole) / 20)


def _slots(held: tuple[float, float], cluster: Cluster) -> int:
    """How many trials fit at a time."""
    fit = 0
    for node in cluster.nodes:
        fit += int(min(have / share for have, share in zip((node.cpus, node.gpus), held, strict=True) if share))
    return max(1, fit)


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
        UserError: no Ray, an address that does not answer, more than a node has, nothing but failures.
    """
    _environment()
    cls = registry.load("methods", task.cell.method)
    wants = cls.resources(build(cls.Params, f"method {task.cell.method}", task.cell.params))
    with connect(options.address) as cluster:
        from ray import tune
        from ray.tune import TuneConfig, Tuner

        from adbench.tune.steering import Proposals, Stops
        from adbench.tune.worker import trial as work

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would complain that its own loggers are off
        held = _held(wants, task.cell.device, options, cluster)
        course = Course(folder, task, table, options.trials, held, progress, say)
        slots = _slots(held, cluster)
        session = f"session-{uuid4().hex[:8]}"
        tuner = Tuner(
            tune.with_resources(work, {"cpu": held[0], "gpu": held[1]}),
            tune_config=TuneConfig(
                metric="value",
                mode=task.mode,
                search_alg=Proposals(course),
                scheduler=Stops(course),
                num_samples=course.left,
                max_concurrent_trials=min(options.max_concurrent or slots, slots),
                time_budget_s=options.budget,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(name=session, storage_path=str(folder / "ray"), verbose=0),
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
