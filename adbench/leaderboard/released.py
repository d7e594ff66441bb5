"""A result against what this release knows before: the source of its own methods, the data that ships, published lists."""

from __future__ import annotations

from typing import Any

from adbench import __version__
from adbench.config import registry
from adbench.errors import UserError
from adbench.leaderboard.consistency import steps
from adbench.leaderboard.issues import Findings
from adbench.leaderboard.submission import Submission
from adbench.methods.base import Method
from adbench.metrics.histogram import ScoreHistogram
from adbench.results.known import BUILT_IN, known, sources, weights_key
from adbench.results.record import CONFORMANCE, Record
from adbench.utils.hashing import canonical_json


def check_method(record: Record, found: Findings) -> None:
    """A method that is called built-in is one, with the source that a release of adbench has."""
    method, version = record.method, record.provenance.get("adbench")
    if method.conformance not in CONFORMANCE:
        found.add("method.conformance", method.conformance, why=f"one of {', '.join(map(repr, CONFORMANCE))}")
    if method.origin != BUILT_IN:
        if method.name in registry.BUILTIN["methods"]:
            found.add("method.origin", method.origin, BUILT_IN, f"{method.name} is the name of a method of adbench")
        return
    if method.name not in registry.BUILTIN["methods"]:
        found.add("method.origin", BUILT_IN, why=f"adbench has no method {method.name!r}; a plug-in names its package")
        return
    valid = sources(method.name, str(version))
    if valid is None:
        found.add("provenance.adbench", version, why="this release knows no such version; a newer adbench may")
    elif method.source not in valid:
        why = f"source of {method.name} in adbench {version}; a changed one is a plug-in with a name of its own"
        found.add("method.source", method.source, valid[-1], why)
    elif method.conformance == "failed":
        found.add("method.conformance", "failed", "passed", "the methods of adbench are tested with it")
    weights = known()["weights"].get(weights_key(method, record.test.grid))
    if weights is not None:
        found.same("method.parameters", method.parameters, weights, f"weights of {method.name} with these parameters")
    if version != __version__:
        return  # its presets and parameters may have been others
    cls = registry.load("methods", method.name)
    try:
        resolved = cls.resolve(method.preset, method.params)
    except UserError as error:
        found.add("method.params", why=str(error))
        return
    full = resolved.model_dump(mode="json")
    if canonical_json(full) != canonical_json(method.params):
        found.add("method.params", why=f"they are not as {method.name} states them, every one and of its own type")
    for preset in cls.presets:
        if preset != method.preset and full == _of(cls, preset) != _of(cls, method.preset):
            found.add("method.preset", method.preset, preset, "the parameters are all those of that preset")
    found.same("method.version", method.version, cls.version, f"of {method.name} in adbench {version}")
    files = record.identity.get("files")
    if isinstance(files, list) and len(files) != len(cls.files(resolved)):
        found.add("identity.files", len(files), len(cls.files(resolved)), "files that these parameters name")
    budget, taken = cls.budget(resolved), steps(record)
    if budget is not None and taken != budget:
        found.add("fit.steps", taken, budget, f"steps that {method.name} takes with these parameters")


def _of(cls: type[Method], preset: str) -> dict[str, Any]:
    return cls.resolve(preset, {}).model_dump(mode="json")


def check_data(submission: Submission, found: Findings) -> None:
    """Slices that ship with adbench are called what they are, and slices that are called so are those."""
    record, splits = submission.record, submission.content.splits
    every = {
        (role if role in ("threshold", "test") else "train", part["digest"]): (dataset, modality, role, part)
        for dataset, modalities in known()["data"].items()
        for modality, roles in modalities.items()
        for role in ("train", "val", "threshold", "test")
        for part in [roles[role]]
    }
    for role in ("train", "val", "threshold", "test"):
        part = getattr(record, role)
        if part is None:
            continue
        shipped = known()["data"].get(part.name, {}).get(part.modality)
        entry = every.get((role if role in ("threshold", "test") else "train", part.digest))
        if entry is not None:
            dataset, modality, _, facts = entry
            why = f"of the slices with this digest, {dataset} {modality}"
            found.same(f"{role}.name", part.name, dataset, why)
            found.same(f"{role}.modality", part.modality, modality, why)
            found.same(f"{role}.slices", part.slices, facts["slices"], why)
            found.same(f"{role}.grid", list(part.grid), facts["grid"], why)
            _same_list(f"splits.{role}", getattr(splits, role), facts["subjects"], f"{dataset} {modality}", found)
            if role in ("threshold", "test"):
                found.same(f"{role}.lesion_subjects", part.lesion_subjects, facts["lesion_subjects"], why)
                _same_voxels(submission, role, facts, found)
        elif shipped and part.params.keys() != shipped["params"].keys():
            odd = sorted(part.params.keys() ^ shipped["params"].keys())
            found.add(
                f"{role}.params", why=f"{part.name} has not these parameters: {', '.join(odd)} missing or unknown"
            )
        elif shipped and part.params == shipped["params"] and _alike(record, role, shipped):
            why = f"{role} slices of {part.name} {part.modality} as adbench makes them"
            found.add(f"{role}.digest", part.digest, shipped[role]["digest"], why)
    for role, subjects in known()["lists"].get(str(record.protocol.get("name")), {}).items():
        _same_list(f"splits.{role}", getattr(splits, role), subjects, "the list that was published", found)


def _alike(record: Record, role: str, shipped: dict[str, Any]) -> bool:
    """Whether the protocol chooses the slices of this role as that of the shipped data does."""
    return role in ("train", "val") or record.protocol.get("name") == shipped["protocol"]


def _same_list(field: str, stored: list[str], expected: list[str], whose: str, found: Findings) -> None:
    if stored == expected:
        return
    missing, odd = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    said = [
        f"{len(names)} {what}, e.g. {names[0]}" for what, names in (("missing", missing), ("not in it", odd)) if names
    ]
    found.add(field, why=f"it is not {whose}: {'; '.join(said) or 'another order'}")


def _same_voxels(submission: Submission, role: str, facts: dict[str, Any], found: Findings) -> None:
    try:
        counts = submission.test if role == "test" else submission.validation
    except ValueError:
        return  # said where the counts are checked
    if counts is None:
        found.add("validation", why=f"there is none, and these slices have {len(facts['voxels'])} subjects")
        return
    true = {subject: (lesion, other) for subject, (lesion, other) in facts["voxels"].items()}
    parts: dict[str, ScoreHistogram] = dict(counts.items())
    if role == "threshold":  # no more than sums is kept of it
        true, parts = (
            {"all": (sum(v[0] for v in true.values()), sum(v[1] for v in true.values()))},
            {"all": counts.pooled()},
        )
    for name, expected in true.items():
        stored = (parts[name].n_positive, parts[name].n_negative) if name in parts else (0, 0)
        if stored != expected:
            whose = "of these slices" if role == "threshold" else f"of {name}"
            why = f"its {stored[0]} lesion and {stored[1]} other voxels are not the {expected[0]} and {expected[1]} {whose}"
            found.add("validation" if role == "threshold" else "histograms", why=why)
