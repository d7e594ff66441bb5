"""Explain why two runs have different keys: the fields in which their identities differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.results import provenance, rundir, status

CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines
MEANING = {
    "method_version": "the method's author raised its version",
    "method_source": "the method, a module that it, fitting or scoring imports, or a plug-in's data file was changed",
    "files": "a file that the parameters name has another content",
    "train_slices": "other training slices: another dataset, recipe, split, or other pixels",
    "val_slices": "other slices that choose the checkpoint",
    "threshold_slices": "other slices, or lesion masks, that choose the threshold",
    "test_slices": "other test slices or lesion masks",
    "metrics_version": "adbench computes a number differently now",
    "scoring": "a parameter that only scores; the fit stays",
    "measure_source": "what scores, counts and computes the metrics was changed; the fit stays",
}


class _Absent:
    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "ABSENT"  # one object in every process


ABSENT = _Absent()


@dataclass(frozen=True)
class Difference:
    """One field in which two identities differ.

    Attributes:
        field: its name; parts of nested ones are joined by dots.
        meaning: what that means, for fields that are hashes.
    """

    field: str
    this: Any
    other: Any
    meaning: str


@dataclass(frozen=True)
class Answer:
    """The nearest other run.

    Attributes:
        other: the run whose identity differs least from it; None when there is no other.
        same_fit: both use one fit.
        differences: empty when both have one key.
    """

    run: Path
    other: Path | None
    same_fit: bool
    differences: tuple[Difference, ...]


def differences(this: dict[str, Any], other: dict[str, Any]) -> tuple[Difference, ...]:
    """Every field in which two identities differ."""
    return tuple(
        Difference(name, mine, its, MEANING.get(name.partition(".")[0], ""))
        for name, mine, its in differing_fields(this, other, absent="(not there)")
    )


def differing_fields(
    a: Any, b: Any, name: str = "", *, close: bool = False, absent: Any = ABSENT
) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two JSON values differ, inside dictionaries and lists too.

    Args:
        a: one value.
        b: the other.
        name: of both, the prefix of every name.
        close: numbers may differ by rounding (:data:`CLOSE`), and 1 is 1.0.
        absent: stands for a part that one of them has not.

    Yields:
        (name with dots, in ``a``, in ``b``).
    """
    prefix = f"{name}." if name else ""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*b, *a]):
            yield from differing_fields(
                a.get(key, absent), b.get(key, absent), f"{prefix}{key}", close=close, absent=absent
            )
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differing_fields(one, other, f"{prefix}{index}", close=close, absent=absent)
    elif not _equal(a, b, close):
        yield name, a, b


def _equal(a: Any, b: Any, close: bool) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    if close and numbers and not isinstance(a, bool) and not isinstance(b, bool):
        return a == b or (isinstance(a, float) and math.isclose(a, b, **CLOSE))
    return bool(type(a) is type(b) and a == b)


def find(run: str, out: Path) -> Path:
    """The folder of the run that ``run`` names: its path, its folder's name, or the beginning of its key.

    Raises:
        UserError: none, or several.
    """
    if (Path(run) / rundir.CONFIG).exists() or rundir.read_identity(Path(run)) is not None:
        return Path(run)
    name = Path(run).name
    folders = [seen.folder for seen in status.runs(out)]
    found = [folder for folder in folders if folder.name == name]
    if not found and len(name) >= 4:
        found = [folder for folder in folders if folder.name.rpartition("-")[2].startswith(name[:10])]
    if len(found) != 1:
        raise UserError(
            f"{run!r} names {len(found) or 'no'} run{'s' if found else ''} below {out}: give its folder, as `adbench status` "
            "shows it, and --out if it lies elsewhere."
        )
    return found[0]


def why(run: Path, out: Path) -> Answer:
    """Which other run below ``out`` is nearest to ``run``, and what makes it another one.

    Raises:
        UserError: the folder holds no identity.
    """
    mine = status.identity(run, out)
    if mine is None:
        raise UserError(f"The identity of {run} is unknown: it holds neither a record nor {rundir.IDENTITY}.")
    best: tuple[int, Path, tuple[Difference, ...], bool] | None = None
    for seen in status.runs(out):
        if seen.folder.resolve() == run.resolve() or (other := status.identity(seen.folder, out)) is None:
            continue
        found = differences(mine["identity"], other["identity"])
        if best is None or len(found) < best[0]:
            nearest, best = other, (len(found), seen.folder, found, mine["fit_key"] == other["fit_key"])
    if best is None:
        return Answer(run, None, False, ())
    files = _changed_files(_sources(mine, out), _sources(nearest, out))
    named = tuple(replace(d, meaning=files) if d.field == "method_source" and files else d for d in best[2])
    return Answer(run, best[1], best[3], named)


def _sources(found: dict[str, Any], out: Path) -> dict[str, str]:
    """Hashes of the source files of a run by module or path, as the folder of its fit has them; empty where there is none."""
    folder = rundir.fit_folder(out, str(found["identity"].get("method")), str(found["fit_key"]))
    return dict(provenance.origin(folder).get("sources", {}))


def _changed_files(mine: dict[str, str], its: dict[str, str]) -> str:
    """The files in which two fits differ, in words; "" where that is not known."""
    changed = sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
    return f"other source: {', '.join(changed)}" if mine and its else ""
