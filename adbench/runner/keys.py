"""One cell of the grid, and the keys that say whether a fit or a result can be used again.

A key is the hash of an *identity*: a plain dictionary of everything that may change the numbers, and of nothing else
(no device, path, worker or executor). The identity is stored in the record, so two keys can be compared field by field.
"""

from __future__ import annotations

from functools import cache, lru_cache
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from adbench.config import registry
from adbench.config.protocols import Protocol
from adbench.datasets.io.archive import state_of
from adbench.errors import UserError
from adbench.methods.base import Method
from adbench.results.record import MetricPart, TunedFrom
from adbench.utils.hashing import digest, digest_file
from adbench.utils.import_closure import Closure, of_plugin

if TYPE_CHECKING:
    from adbench.datasets.slices import LabelledSet, SliceSet

METRICS_VERSION = "2"  # raised when the definition or computation of any stored number changes
MEASURE = ("adbench.runner.measure",)  # what turns a fitted method into counts and numbers
# Where a method is called, where it is handed its pixels, and what sets the threads of what it computes: this and what it
# imports counts into a method's key.
FIT_AND_SCORE = (
    "adbench.runner.fit",
    "adbench.runner.inference",
    "adbench.datasets.store.pixels",
    "adbench.utils.threads",
)


class Source(BaseModel):
    """A dataset, where it lies, and its parameters (resolved: every field present)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str
    root: str | None
    params: dict[str, Any]


class CellSpec(BaseModel):
    """Everything that one run needs to know; plain data, so it travels to a worker as it is.

    Attributes:
        params: the method's parameters, resolved: every field present.
        test: the dataset that is scored and that gives the validation split for the threshold.
        train: the training source when it is another one, else None.
        device: a torch device string; part of no key.
        metrics: optional and plug-in metrics that are measured beside the others; part of no key.
        tuned_from: the search that chose ``params``; part of no key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    preset: str
    params: dict[str, Any]
    test: Source
    train: Source | None
    modality: str
    protocol: str
    seed: int
    device: str
    metrics: tuple[str, ...] = ()
    tuned_from: TunedFrom | None = None

    @property
    def label(self) -> str:
        """A short name for progress bars and messages."""
        return f"{self.method} [{self.preset}] {self.test.dataset} {self.modality} seed {self.seed}"


def source_files(kind: registry.Kind, name: str) -> dict[str, str]:
    """SHA-256 of every file that decides what the class called ``name`` does, by module or path.

    They are its import closure (:mod:`adbench.utils.import_closure`); of a method, that of fitting and scoring too; of a plug-in, also
    the data files of its package and distribution.
    """
    cls, entry = registry.load(kind, name), registry.entries(kind)[name]
    modules = [entry.target.partition(":")[0], cls.__module__, *(FIT_AND_SCORE if kind == "methods" else ())]
    if entry.origin == "built-in":
        closure = Closure(modules)
    else:
        shipped = (target for table in registry.BUILTIN.values() for target, _ in table.values())
        by_name = [target.partition(":")[0] for target in shipped]
        closure = of_plugin(modules, registry.distribution(kind, name), by_name)
    if cls.__module__ not in closure.files:
        raise UserError(
            f"The source of the {kind[:-1]} {name!r} ({cls.__module__}) lies in no file that can be read, so no key can be "
            "made of it: install its distribution unpacked."
        )
    return closure.digests()


@cache
def source_digest(kind: registry.Kind, name: str) -> str:
    """Hash of :func:`source_files`."""
    return digest(source_files(kind, name))


@cache
def measure_digest() -> str:
    """Hash of the source of what turns a fitted method into numbers, the metrics included."""
    return digest(Closure(MEASURE).digests())


def metric_part(name: str) -> MetricPart:
    """What a record keeps about the metric ``name`` that was asked for."""
    facts = registry.metric_spec(name)
    return MetricPart(
        source=source_digest("metrics", name),
        heading=facts.heading,
        definition=facts.definition,
        less_is_better=facts.less_is_better,
        oracle=facts.oracle,
        unit=facts.unit,
    )


def _content(path: Path) -> str:
    """SHA-256 of a file, read once for all cells."""
    return _read(path, tuple(state_of(path).values()))


@lru_cache(maxsize=256)
def _read(path: Path, state: tuple[int, ...]) -> str:
    return digest_file(path)


def fit_identity(spec: CellSpec, train: SliceSet, val: SliceSet | None) -> dict[str, Any]:
    """What decides the outcome of fitting ``spec.method``."""
    cls = registry.load("methods", spec.method)
    return {
        "method": spec.method,
        "method_version": cls.version,
        "method_source": source_digest("methods", spec.method),
        "preset": spec.preset,
        "params": spec.params,
        "files": [_content(path) for path in _named_files(cls, spec)],
        "seed": spec.seed,
        "modality": spec.modality,
        "train_slices": train.digest,
        "val_slices": val.digest if val is not None else None,
    }


def _named_files(cls: type[Method], spec: CellSpec) -> list[Path]:
    if getattr_static(cls, "files") is getattr_static(
        Method, "files"
    ):  # it names none, and need not be asked ten thousand times
        return []
    return cls.files(cls.resolve(spec.preset, spec.params))


def run_identity(
    fit: dict[str, Any], spec: CellSpec, protocol: Protocol, threshold: LabelledSet, test: LabelledSet
) -> dict[str, Any]:
    """What decides the numbers: the fit, the protocol, and the slices that choose the threshold and that are scored.

    Metrics that are asked for beside the others change no number of theirs, so they make no other run of it.
    """
    return {
        **fit,
        "protocol": protocol.as_dict(),
        "metrics_version": METRICS_VERSION,
        "measure_source": measure_digest(),
        "threshold_slices": threshold.digest,
        "test_slices": test.digest,
    }
