"""The Ray Tune side of a search: Optuna's proposals, successive halving, the trials, and the state that is resumed.

Ray saves its state every second, in several files. A search must survive a kill at any moment, so after each of these
saves all of them are packed into one file, :data:`STATE`, which is replaced atomically; ``Tuner.restore`` starts from it.
Ray writes that state with pickle: resume only searches that you trust.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, SearchGenerator
from ray.tune.search.optuna import OptunaSearch

from adbench.context import Progress
from adbench.datasets.slices import SliceSet
from adbench.errors import UserError
from adbench.executors.resources import ResourceRequest, check_nodes, request
from adbench.results import rundir
from adbench.runner.plan import FitPlan
from adbench.tune.space import distributions, nearest, values
from adbench.tune.task import SearchOptions, Task
from adbench.tune.trials import FACTOR, FULL, RUNGS, STARTUP, STATE, State, Trial, ranked, write_table
from adbench.tune.worker import FITS, fit_folder, run_apart, trial_folder
from adbench.utils import seeds, threads
from adbench.utils.cluster import Cluster
from adbench.utils.files import replacing

RAY = "ray"  # Ray's own folder, while a search runs
LARGEST = 2**30  # bytes of Ray's saved state; that of a thousand trials has a few million
HOPELESS = 5  # trials that fail before the first success; more of them would fail too
ENDED = {"complete": "done", "stopped": "stopped early", "failed": "failed"}
DIED = "Ray lost the worker that it ran on, or the node"


class _Interrupted(Exception):
    """Raised inside Ray's loop: its running trials stay unfinished in the saved state, so a resumed search goes on with them."""


def _number(trial: RayTrial) -> int:
    """Ray counts its trials from 1 and puts the count first in their tags."""
    return int(trial.experiment_tag.partition("_")[0]) - 1


def _results(trial: RayTrial) -> dict[str, Any]:
    """The last report of ``trial``; empty before the first."""
    return dict(trial.last_result) if trial.has_reported_at_least_once else {}


class Generator(SearchGenerator):
    """Optuna's proposals, so many in all and at a time. A resumed search takes both numbers from its new command."""

    def __init__(self, task: Task, trials: int, at_once: int, resumed: bool = False) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=seeds.derive(task.seed, "propose") % 2**32,
            n_startup_trials=STARTUP,
            multivariate=True,
            constant_liar=True,  # parallel workers spread out
        )
        search = OptunaSearch(
            distributions(task.space),
            metric="value",
            mode=task.mode,
            sampler=sampler,
            points_to_evaluate=[nearest(task.space, task.defaults)],
        )
        super().__init__(ConcurrencyLimiter(search, at_once))
        self.trials, self.at_once, self.resumed = trials, at_once, resumed

    def add_configurations(self, experiments: Any) -> None:
        """Start a new search, which Ray also does when it cannot read the state of one that is resumed.

        Raises:
            UserError: it is such a search.
        """
        if self.resumed:
            raise UserError(
                f"Ray {ray.__version__} cannot read the state of this search, which another version of it or of Python may "
                "have written: resume it with that version, or start it again under another --name."
            )
        super().add_configurations(experiments)

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().set_state({**state, "total_samples": self.trials, "finished": False})
        self.searcher.set_max_concurrency(self.at_once)


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, MLSys, arXiv 1810.05934), which goes on after a restart.

    Ray does not save what a scheduler knows: here it is told again from what the trials have reported. The method as it
    comes is never stopped: every search ends knowing what it improved upon.
    """

    def __init__(self) -> None:
        super().__init__("share", max_t=int(FULL), grace_period=int(RUNGS[0]), reduction_factor=FACTOR)

    def on_trial_add(self, tune_controller: TuneController, trial: RayTrial) -> None:
        """Take in a new trial, or one of a resumed search."""
        super().on_trial_add(tune_controller, trial)
        for share_done, value in _results(trial).get("reports", ()):
            self.on_trial_result(tune_controller, trial, {"share": share_done, "value": value})

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        """Whether ``trial`` goes on."""
        action = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if _number(trial) == 0 and result["share"] < FULL else action


class Driver(tune.Callback):
    """Lets Ray Tune run the trials, and follows them: saves the state, says what ended, interrupts when the time is up.

    ``trials`` always holds where they stand, in order of their numbers; ``say`` is told about every one that ends.
    """

    live: ClassVar[Driver]

    def __init__(
        self,
        folder: Path,
        task: Task,
        options: SearchOptions,
        trials: list[Trial],
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.task, self.options, self.trials = folder, task, options, trials
        self.progress, self.say = progress, say
        self.deadline = math.inf if options.budget is None else time.monotonic() + options.budget
        self._announced: set[int] | None = None
        self._saved = 0.0
        self._fits: dict[int, Path] = {}
        Driver.live = self

    def run(self, cluster: Cluster) -> None:
        """Run what is left of the search on ``cluster``.

        Raises:
            UserError: more than a node has, a folder that a node cannot write to, nothing but failures.
        """
        folder, task, options = self.folder, self.task, self.options
        wants = task.cell.method_class.resources(task.cell.params)
        cores = threads.count(wants.cpus)
        _, memory = check_nodes(cluster, folder)
        most_cpus = max(node.cpus for node in cluster.nodes)
        portion = request(
            wants, task.cell.device, gpu_memory_gb=memory, most_cpus=most_cpus, cpus=options.cpus, gpus=options.gpus
        )
        cluster.require(portion.cpus, portion.gpus)
        fraction = portion.memory_fraction(memory)

        def report(result: dict[str, Any]) -> None:
            tune.report({**result, "cpus": portion.cpus, "gpus": portion.gpus})

        def trial(config: dict[str, Any]) -> None:
            number = int(tune.get_context().get_trial_name())
            held: Any = {"seconds": options.time_limit, "cores": cores, "memory": fraction, "device": task.cell.device}
            run_apart(folder, number, config, report, **held)

        at_once = _slots(portion, cluster)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would complain that its own loggers are off
        state, ray_folder = folder / STATE, folder / RAY
        shutil.rmtree(ray_folder, ignore_errors=True)
        resumed = state.exists()
        if resumed:
            _unpack(state, ray_folder)
        trainable = tune.with_resources(trial, {"cpu": portion.cpus, "gpu": portion.gpus})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's: experimental options; reports that a resumed trial makes again
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    metric="value",
                    mode=task.mode,
                    num_samples=options.trials,
                    reuse_actors=True,  # each keeps a fork server, which has imported the libraries
                    search_alg=Generator(
                        task, options.trials, min(options.max_concurrent or at_once, at_once), resumed
                    ),
                    scheduler=Halving() if task.identity["halving"] else None,
                    trial_name_creator=lambda trial: str(_number(trial)),
                    trial_dirname_creator=lambda trial: str(_number(trial)),
                ),
                run_config=tune.RunConfig(
                    name=RAY,
                    storage_path=str(folder),
                    callbacks=[self],
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=1),  # a trial whose worker dies gets a second one
                ),
            )
            if resumed:  # the Tuner above has written its settings, those of the new command, into Ray's folder
                tuner = tune.Tuner.restore(str(ray_folder), trainable)
            try:
                tuner.fit()
            except _Interrupted:
                pass
            finally:
                shutil.rmtree(ray_folder, ignore_errors=True)
        if self.hopeless:
            failures = [trial for trial in self.trials if trial.state == "failed"]  # others may run beside them
            raise UserError(
                f"The first {len(failures)} trials all failed, so the search was given up. The last one: "
                f"{failures[-1].error} (tracebacks below {folder / 'trials'})."
            )

    def __reduce__(self) -> tuple[Callable[[], Driver], tuple[()]]:
        """Ray pickles a callback and reads it back in the same process: it gets the one that is at work."""
        return _live, ()

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Interrupt the search when its time is up or nothing but failures comes."""
        self._follow(trials)
        if time.monotonic() > self.deadline or self.hopeless:
            raise _Interrupted

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: Any, **info: Any
    ) -> None:
        """Give no second worker to a trial that has said why it failed: it could only say so again."""
        if result["error"]:
            trial.max_failures = 0

    def on_experiment_end(self, trials: list[RayTrial], **info: Any) -> None:
        """Follow the trials to the end."""
        self._follow(trials)

    @cached_property
    def _learned(self) -> tuple[SliceSet, SliceSet | None]:
        return self.task.learned()

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed, and none has not, that more would fail too."""
        ended = [trial for trial in self.trials if trial.state != "waiting"]
        return len(ended) >= HOPELESS and all(trial.state == "failed" for trial in ended)

    def _follow(self, trials: list[RayTrial]) -> None:
        """Take in where Ray's trials stand, and save the state when Ray has."""
        self.trials[:] = sorted((self._row(trial) for trial in trials), key=lambda trial: trial.number)
        ended = {trial.number for trial in self.trials if trial.state != "waiting"}
        if self._announced is None:
            self._announced = ended if (self.folder / STATE).exists() else set()
        for trial in self.trials:
            if trial.number in ended - self._announced:
                self._announce(trial)
                self.progress.update("trials", len(ended), max(self.options.trials, len(self.trials)))
        self._announced |= ended
        if trials:
            self._save(Path(trials[0].local_experiment_path))

    def _row(self, trial: RayTrial) -> Trial:
        number, last = _number(trial), _results(trial)
        task, reports = self.task, dict(last.get("reports", ()))
        params = values(task.space, {name: trial.config[name] for name in task.space}) if number else task.defaults
        state: State = "stopped" if last.get("done") else "waiting"
        error = ""
        if trial.status == RayTrial.ERROR:
            state, error = "failed", last.get("error") or DIED
        elif FULL in reports:
            state = "complete"
        held = {name: last.get(name, 0.0) for name in ("seconds", "cpus", "gpus")}
        return Trial(number, params, state, reports, error=error, **held)

    def _announce(self, trial: Trial) -> None:
        best = next(iter(ranked(self.trials, self.task.mode)), None)
        what = trial.error if trial.state == "failed" else f"{self.task.objective} {trial.value:.4f}"
        at = f" at {max(trial.reports):.0f} %" if trial.state == "stopped" else ""
        leader = ""
        if best is not None:
            leader = " (best so far)" if best is trial else f"; best {best.value:.4f} (trial {best.number})"
        self.say(f"  trial {trial.number} {ENDED[trial.state]}{at}: {what}{leader}")

    def _save(self, staging: Path) -> None:
        """Pack Ray's newest saved state, then remove the fits that are not needed any more."""
        files = sorted((path for path in staging.glob("*-*") if path.is_file()), key=lambda path: path.stat().st_mtime)
        if not files or files[-1].stat().st_mtime == self._saved:
            return
        self._saved = files[-1].stat().st_mtime
        newest = {path.name.partition("-")[0]: path for path in files}  # those of earlier sessions lie there too
        with replacing(self.folder / STATE) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for path in newest.values():
                archive.write(path, path.name)
        write_table(self.folder, self.trials)
        self._keep_best()

    def _fit_of(self, trial: Trial) -> Path | None:
        """Folder of the fit of ``trial``; None where its parameters make none, for the reason that its worker reports."""
        try:
            if trial.number not in self._fits:  # files that its parameters name are read once, as its worker does
                cell = self.task.cell.with_params(trial.params)
                plan = FitPlan.of(cell, *self._learned, self.folder.parents[1])
                self._fits[trial.number] = fit_folder(self.folder, plan.key)
            return self._fits[trial.number]
        except Exception:  # a method may be anybody's, and refuse a point as it likes: the other trials go on
            return None

    def _keep_best(self) -> None:
        """Remove the fits that neither the best trial nor one that may still run uses, and what ended trials reported but the
        tracebacks."""
        best = next(iter(ranked(self.trials, self.task.mode)), None)
        needed = [trial for trial in self.trials if trial is best or trial.state == "waiting"]
        used = {self._fit_of(trial) for trial in needed}
        for made in set((self.folder / FITS).glob("*")) - used:
            shutil.rmtree(made, ignore_errors=True)
        for trial in self.trials:
            home = trial_folder(self.folder, trial.number)
            if trial in needed or not home.exists():
                continue
            for item in home.iterdir():
                if item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                elif item.name != rundir.FAILURE:
                    item.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: a traceback is kept there, or a stopped worker still writes
                home.rmdir()


def _unpack(state: Path, folder: Path) -> None:
    """Unpack what :meth:`Driver._save` has packed into ``folder``.

    Raises:
        UserError: it is damaged, or something else: folders, compressed files, more than :data:`LARGEST`.
    """
    try:
        with zipfile.ZipFile(state) as archive:
            files = archive.infolist()
            size = sum(file.file_size for file in files)
            strange = [f for f in files if Path(f.filename).name != f.filename or f.compress_type != zipfile.ZIP_STORED]
            if strange:
                raise zipfile.BadZipFile(f"it holds {strange[0].filename!r}, which no search writes")
            if size > LARGEST:
                raise zipfile.BadZipFile(f"its files have {size} bytes, more than any search writes")
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:  # the last: a password is needed
        raise UserError(f"{state} is damaged ({error}): delete {state.parent} and search again.") from None


def _live() -> Driver:
    return Driver.live


def _slots(portion: ResourceRequest, cluster: Cluster) -> int:
    """How many trials fit at a time."""
    pairs = [((node.cpus, portion.cpus), (node.gpus, portion.gpus)) for node in cluster.nodes]
    return max(1, sum(int(min(have / want for have, want in pair if want)) for pair in pairs))
