"""A published result compared with what this release knows: the source of its methods, the data that ships, published lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adbench import __version__
from adbench.config import registry
from adbench.errors import UserError
from adbench.leaderboard.consistency import steps
from adbench.leaderboard.issues import Issue, differences
from adbench.leaderboard.submission import Submission
from adbench.methods.base import Method
from adbench.results.known import BUILT_IN, known, sources, weights_key
from adbench.results.record import CONFORMANCE, Record
from adbench.utils.hashing import canonical_json

ROLES = ("train", "val", "threshold", "test")


def check_method(submission: Submission) -> Iterator[Issue]:
    """A method that is called built-in is one, with the source and parameters that a release of adbench has."""
    record = submission.record
    method, version = record.method, record.provenance.get("adbench")
    if method.conformance not in CONFORMANCE:
        yield Issue("method.conformance", method.conformance, why=f"one of {', '.join(map(repr, CONFORMANCE))}")
    builtin = method.name in registry.BUILTIN["methods"]
    if method.origin != BUILT_IN:
        if builtin:
            why = f"{method.name} is the name of a method of adbench"
            yield Issue("method.origin", method.origin, BUILT_IN, why)
        return
    if not builtin:
        yield Issue(
            "method.origin", BUILT_IN, why=f"adbench has no method {method.name!r}; a plug-in names its package"
        )
        return
    valid = sources(method.name, str(version))
    if valid is None:
        yield Issue("provenance.adbench", version, why="this release knows no such version; a newer adbench may")
    elif method.source not in valid:
        why = f"source of {method.name} in adbench {version}; a changed one is a plug-in with a name of its own"
        yield Issue("method.source", method.source, valid[-1], why)
    elif method.conformance == "failed":
        yield Issue("method.conformance", "failed", "passed", "the methods of adbench are tested with it")
    weights = known()["weights"].get(weights_key(method, record.test.grid))
    if weights is not None:
        why = f"weights of {method.name} with these parameters"
        yield from differences("method.parameters", method.parameters, weights, why)
    if version == __version__:  # presets and parameters of another release may have been others
        yield from _parameters(record, registry.load("methods", method.name))


def _parameters(record: Record, cls: type[Method]) -> Iterator[Issue]:
    method = record.method
    try:
        resolved = cls.resolve(method.preset, method.params)
    except UserError as error:
        yield Issue("method.params", why=str(error))
        return
    full = resolved.model_dump(mode="json")
    if canonical_json(full) != canonical_json(method.params):
        yield Issue("method.params", why=f"they are not as {method.name} states them, every one and of its own type")
    presets = {name: cls.resolve(name, {}).model_dump(mode="json") for name in cls.presets}
    for name, params in presets.items():
        if name != method.preset and full == params != presets[method.preset]:
            yield Issue("method.preset", method.preset, name, "the parameters are all those of that preset")
    yield from differences("method.version", method.version, cls.version, f"of {method.name} in adbench {__version__}")
    files, named = record.identity.get("files"), len(cls.files(resolved))
    if isinstance(files, list) and len(files) != named:
        yield Issue("identity.files", len(files), named, "files that these parameters name")
    budget, taken = cls.budget(resolved), steps(record)
    if budget is not None and taken != budget:
        yield Issue("fit.steps", taken, budget, f"steps that {method.name} takes with these parameters")


def check_data(submission: Submission) -> Iterator[Issue]:
    """Slices that ship with adbench have their name, and slices with such a name are those; published lists are kept."""
    record, splits = submission.record, submission.content.splits
    by_digest = {
        (_kind(role), roles[role]["digest"]): (dataset, modality, roles[role])
        for dataset, modalities in known()["data"].items()
        for modality, roles in modalities.items()
        for role in ROLES
    }
    for role in ROLES:
        part = getattr(record, role)
        if part is None:
            continue
        shipped = known()["data"].get(part.name, {}).get(part.modality)
        found = by_digest.get((_kind(role), part.digest))
        if found is not None:
            yield from _known_slices(submission, role, *found)
        elif shipped and part.params.keys() != shipped["params"].keys():
            odd = ", ".join(sorted(part.params.keys() ^ shipped["params"].keys()))
            yield Issue(f"{role}.params", why=f"{part.name} has not these parameters: {odd} missing or unknown")
        elif shipped and part.params == shipped["params"] and _chosen_alike(record, role, shipped["protocol"]):
            why = f"{role} slices of {part.name} {part.modality} as adbench makes them"
            yield Issue(f"{role}.digest", part.digest, shipped[role]["digest"], why)
    for role, subjects in known()["lists"].get(str(record.protocol.get("name")), {}).items():
        yield from _same_list(f"splits.{role}", getattr(splits, role), subjects, "the list that was published")


def _kind(role: str) -> str:
    """Slices of the same pixels have one digest in training and validation, and another where masks are looked at."""
    return "train" if role == "val" else role


def _chosen_alike(record: Record, role: str, protocol: str) -> bool:
    """Whether the slices of a role are those of ``protocol``: it chooses those of threshold and test."""
    return _kind(role) == "train" or record.protocol.get("name") == protocol


def _known_slices(
    submission: Submission, role: str, dataset: str, modality: str, facts: dict[str, Any]
) -> Iterator[Issue]:
    """What the record says about slices that ship with adbench, against what they are."""
    part, why = getattr(submission.record, role), f"of the slices with this digest, {dataset} {modality}"
    yield from differences(f"{role}.name", part.name, dataset, why)
    yield from differences(f"{role}.modality", part.modality, modality, why)
    yield from differences(f"{role}.slices", part.slices, facts["slices"], why)
    yield from differences(f"{role}.grid", list(part.grid), facts["grid"], why)
    if "lesion_subjects" in facts:
        yield from differences(f"{role}.lesion_subjects", part.lesion_subjects, facts["lesion_subjects"], why)
    subjects = getattr(submission.content.splits, role)
    yield from _same_list(f"splits.{role}", subjects, facts["subjects"], f"{dataset} {modality}")
    if "voxels" in facts:
        yield from _same_voxels(submission, role, facts["voxels"])


def _same_list(field: str, stored: list[str], expected: list[str], whose: str) -> Iterator[Issue]:
    if stored == expected:
        return
    missing, odd = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    what = [
        f"{len(names)} {kind}, e.g. {names[0]}" for kind, names in (("missing", missing), ("not in it", odd)) if names
    ]
    yield Issue(field, why=f"it is not {whose}: {'; '.join(what) or 'another order'}")


def _same_voxels(submission: Submission, role: str, voxels: dict[str, list[int]]) -> Iterator[Issue]:
    try:
        counts = submission.test if role == "test" else submission.validation
    except ValueError:
        return  # check_numbers says so
    if counts is None:
        yield Issue("validation", why=f"there is none, and these slices have {len(voxels)} subjects")
        return
    field, parts = "histograms", {name: (one.n_positive, one.n_negative) for name, one in counts.items()}
    expected = {name: (lesion, other) for name, (lesion, other) in voxels.items()}
    if role == "threshold":  # of which the file keeps sums only
        pool, field = counts.pooled(), "validation"
        parts = {"these slices": (pool.n_positive, pool.n_negative)}
        expected = {"these slices": (sum(v[0] for v in voxels.values()), sum(v[1] for v in voxels.values()))}
    for name, true in expected.items():
        stored = parts.get(name, (0, 0))
        if stored != true:
            why = f"its {stored[0]} lesion and {stored[1]} other voxels are not the {true[0]} and {true[1]} of {name}"
            yield Issue(field, why=why)
