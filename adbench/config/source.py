"""The source code behind a registered class, as files and as one hash that enters keys."""

from __future__ import annotations

from functools import cache

from adbench.config import registry
from adbench.errors import UserError
from adbench.utils.hashing import digest
from adbench.utils.import_closure import Closure, of_plugin

# What turns a fitted method into counts and numbers: this and what it imports counts into the key of every run.
MEASURE = ("adbench.runner.measure",)
# Where a method is called, where it is handed its pixels, and what sets the threads it computes with: this and what it
# imports counts into the key of every fit.
FIT_AND_SCORE = (
    "adbench.runner.fit",
    "adbench.runner.inference",
    "adbench.datasets.pixels",
    "adbench.utils.threads",
)


def source_files(kind: registry.Kind, name: str) -> dict[str, str]:
    """SHA-256 of every file that decides what the class called ``name`` does, by module or path.

    These are the files it imports, directly or not (:mod:`adbench.utils.import_closure`); for a method also those of
    fitting and scoring; for a plug-in every file of its package and distribution.

    Raises:
        UserError: the class does not exist, or its source cannot be read.
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
    """Hash of :func:`source_files`, computed once per process."""
    return digest(source_files(kind, name))


@cache
def measure_digest() -> str:
    """Hash of the source that turns a fitted method into numbers, the metrics included."""
    return digest(Closure(MEASURE).digests())
