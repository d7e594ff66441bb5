"""The trials of a search: one JSON table, written anew after every event. It is the whole state of the search.

What Optuna proposes next and which trials successive halving stops are functions of this table, the seed and the number
of the trial. A search that was killed and resumed therefore goes on as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from adbench.errors import UserError
from adbench.tune.space import Space, distributions, proposal, values
from adbench.utils.files import write_json
from adbench.utils.seeds import derive

TRIALS = "trials.json"
FULL = 100.0  # share of the training budget, in percent
State = Literal["waiting", "running", "complete", "stopped", "failed"]
Mode = Literal["max", "min"]
STARTUP = 10  # proposals drawn at random before the estimator takes over: Optuna's own default


@dataclass
class Trial:
    """One point of the space.

    Attributes:
        number: 0 is the method as it comes.
        params: the searched parameters.
        state: "waiting" (interrupted, to be gone on with), "running", "complete", "stopped" (by halving) or "failed".
        reports: share of the training budget (percent) -> objective, in order; the last of a complete trial is at 100.
        seconds: wall-clock time over all attempts, as far as reported.
        cpus: cores it held.
        gpus: GPUs it held.
        error: why it failed.
    """

    number: int
    params: dict[str, Any]
    state: State = "running"
    reports: dict[float, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpus: float = 1.0
    gpus: float = 0.0
    error: str = ""
    earlier: float = 0.0  # seconds of attempts before this one

    @property
    def value(self) -> float | None:
        """The last objective reported; None before the first."""
        return list(self.reports.values())[-1] if self.reports else None


class Table:
    """The trials, in order of their numbers.

    Args:
        folder: of the search.
        mode: whether a good objective is large or small.
    """

    def __init__(self, folder: Path, mode: Mode) -> None:
        self.folder, self.mode = Path(folder), mode
        self.trials: list[Trial] = []

    @classmethod
    def read(cls, folder: Path, mode: Mode) -> Table:
        """The stored table, empty when there is none; trials that were running are waiting.

        Raises:
            UserError: the file is damaged.
        """
        table = cls(folder, mode)
        path = table.folder / TRIALS
        if not path.exists():
            return table
        try:
            for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
                row["reports"] = {float(share): float(value) for share, value in row["reports"].items()}
                trial = Trial(**row)
                if trial.number != number or trial.state not in ("waiting", "running", "complete", "stopped", "failed"):
                    raise ValueError(f"row {number}")
                if trial.state == "running":
                    trial.state, trial.earlier = "waiting", trial.seconds
                table.trials.append(trial)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete its folder and search again.") from None
        return table

    def save(self) -> None:
        """Write the table."""
        write_json(self.folder / TRIALS, [asdict(trial) for trial in self.trials])

    def in_state(self, *states: State) -> list[Trial]:
        """Trials in one of ``states``."""
        return [trial for trial in self.trials if trial.state in states]

    def better(self, first: float, second: float) -> bool:
        """Whether ``first`` is the better objective."""
        return first > second if self.mode == "max" else first < second

    @property
    def best(self) -> Trial | None:
        """The best complete trial, the earliest among equals; None when none is complete."""
        best = None
        for trial in self.in_state("complete"):
            if best is None or self.better(trial.value, best.value):  # type: ignore[arg-type]
                best = trial
        return best

    @property
    def cpu_hours(self) -> float:
        """Hours of CPU cores held by all trials."""
        return sum(trial.seconds * trial.cpus for trial in self.trials) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours of GPUs held by all trials."""
        return sum(trial.seconds * trial.gpus for trial in self.trials) / 3600


def propose(space: Space, mode: Mode, seed: int, number: int, trials: list[Trial]) -> dict[str, Any]:
    """Parameters of trial ``number``: tree-structured Parzen estimator (Bergstra et al. 2011) over what is known so far.

    A stopped trial counts with its last objective, a running one as taken, so that parallel workers spread out.

    Args:
        space: what is searched.
        mode: of the objective.
        seed: of the search.
        number: of the trial.
        trials: the others.
    """
    import optuna
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = TPESampler(
        seed=derive(seed, "propose", number) % 2**32, n_startup_trials=STARTUP, multivariate=True, constant_liar=True
    )
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
    axes = distributions(space)
    for trial in trials:
        known = proposal(space, trial.params)
        if known is None or trial.state == "failed":  # the defaults may lie outside the space
            continue
        ended = trial.state in ("complete", "stopped")
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if ended else TrialState.RUNNING,
                value=trial.value if ended else None,
                params=known,
                distributions=axes,
            )
        )
    return values(space, study.ask(axes).params)


def defaults(space: Space, base: Mapping[str, Any]) -> dict[str, Any]:
    """The searched parameters as the method comes."""
    return {name: base[name] for name in space}
