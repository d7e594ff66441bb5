"""What can be checked of the method that a published result names: its source, and what its class says of the parameters.

What decides is the source, not the number of a version: a source that is listed in ``known.json`` under any release, or that
is the one here. The parameters are held against the class of this checkout, but where it says of their preset something else
than with that source (:func:`adbench.results.known.presets_changed`): then :func:`not_checked` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adbench import __version__
from adbench.config import registry
from adbench.config.cell import given_params
from adbench.errors import UserError
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.submission import Submission
from adbench.methods.base import Method
from adbench.params import ParamSet
from adbench.results.known import (
    BUILT_IN,
    has_source,
    is_release,
    is_released,
    parameters,
    presets_changed,
    presets_of,
    releases,
    sources,
    weights,
)
from adbench.results.record import CONFORMANCE, Record, named_contents, optimiser_steps
from adbench.utils.hashing import canonical_json, digest
from adbench.utils.named_files import names_files

_AGAIN = (
    "make the run again with this adbench, or verify it with the one that made it; a method that you changed becomes a "
    "plug-in with a name of its own"
)


def check_method(submission: Submission) -> Iterator[RecordIssue]:
    """A method that is called built-in is one, with the source and parameters that a release of adbench has."""
    record = submission.record
    method = record.method
    if method.conformance not in CONFORMANCE:
        yield RecordIssue("method.conformance", method.conformance, why=f"one of {', '.join(map(repr, CONFORMANCE))}")
    builtin = method.name in registry.BUILTIN["methods"]
    if method.origin != BUILT_IN:
        if builtin:
            why = f"{method.name} is the name of a method of adbench"
            yield RecordIssue("method.origin", method.origin, BUILT_IN, why)
        return
    if not builtin:
        yield RecordIssue(
            "method.origin", BUILT_IN, why=f"adbench has no method {method.name!r}; a plug-in names its package"
        )
        return
    yield from _sources(record)
    if (expected := weights(method, record.test.grid)) is not None:
        why = f"weights of {method.name} with these parameters"
        yield from differences("method.parameters", method.parameters, expected, why)
    if not is_released(method.name, BUILT_IN, method.source) and not releases(method.name, method.source):
        return  # which is said
    presets = presets_of(method.name, method.source)
    if presets and method.preset not in presets:
        why = f"this source of {method.name} has no such preset, but {', '.join(presets)}"
        yield RecordIssue("method.preset", method.preset, why=why)
        return
    changed = presets_changed(method.name, method.source)
    if method.preset not in changed:
        yield from _parameters(record, changed)
    elif sorted(method.params) != (names := parameters(method.name, method.source)):
        yield RecordIssue(
            "method.params", why=f"this source of {method.name} has the parameters {', '.join(names or ())}"
        )


def not_checked(record: Record) -> str:
    """What of a result of a built-in method this checkout cannot compute again, to follow "Not checked: 3"; "" for nothing."""
    method = record.method
    if method.origin != BUILT_IN or method.name not in registry.BUILTIN["methods"]:
        return ""
    if method.preset not in presets_changed(method.name, method.source):
        return ""
    return (
        f"by {method.name} of adbench {', '.join(releases(method.name, method.source))}: its preset {method.preset} is another "
        f"one in adbench {__version__}, so that steps, files and members were not computed from the parameters"
    )


def _sources(record: Record) -> Iterator[RecordIssue]:
    """The method and its members have sources of the release that made the result; a shared fit has those of any release."""
    method, version, other = record.method, str(record.provenance.get("adbench")), record.identity.get("scored_with")
    if not is_release(version):
        why = (
            f"made by adbench in development, whose sources this installation does not know: {_AGAIN}"
            if ".dev" in version
            else "this release knows no such version; a newer adbench may"
        )
        yield RecordIssue("provenance.adbench", record.provenance.get("adbench"), why=why)
        return
    members = [
        (part["method"], part["method_source"])
        for part in record.identity.get("members", ())
        if part["method"] in registry.BUILTIN["methods"]
    ]
    if other is not None:
        if record.weights is None:
            yield RecordIssue(
                "identity.scored_with", other, why="only a shared fit is scored by other code than it was made by"
            )
        elif (expected := _other_code(record, members, version)) and other not in expected:
            why = f"source of {method.name} and its members in adbench {version}"
            yield RecordIssue("identity.scored_with", other, expected[-1], why)

    def valid(name: str, source: str) -> bool:
        return has_source(name, source, version) or (other is not None and bool(releases(name, source)))

    if not valid(method.name, method.source):
        yield RecordIssue("method.source", method.source, why=_foreign(method.name, method.source, version))
    elif odd := [member for member in members if not valid(*member)]:
        yield RecordIssue("identity.members", why=_foreign(*odd[0], version))
    elif method.conformance == "failed":
        yield RecordIssue("method.conformance", "failed", "passed", "the methods of adbench are tested with it")


def _foreign(name: str, source: str, version: str) -> str:
    """Why a built-in method of this source is not the one of ``version``, and what to do."""
    if known := releases(name, source):
        return f"made by the source of {name} of adbench {', '.join(known)}, and not of {version} as it says: {_AGAIN}"
    return f"made by a source of {name} in adbench {version} that this installation does not know: {_AGAIN}"


def _other_code(record: Record, members: Sequence[tuple[str, str]], version: str) -> list[str]:
    """What ``scored_with`` may be where a release scores a fit of other code, as :func:`adbench.runner.keys.run_identity` has it."""
    method = record.method
    own = sources(method.name, version)
    found = [source for source in own if source != method.source]
    if members and method.source in own:
        if len(members) < len(record.identity["members"]):
            return []  # the source that a plug-in had there is not known
        others = {name: _last(name, version) for name, source in members if source not in sources(name, version)}
        found += [digest(others)] if others else []
    return found or [""]


def _last(method: str, version: str) -> str | None:
    return next(reversed(sources(method, version)), None)


def _parameters(record: Record, changed: set[str]) -> Iterator[RecordIssue]:
    """The parameters are as the class states them, and members, preset, version, files and steps follow from them.

    Args:
        record: of a source that has these parameters.
        changed: presets of which the class here says something else than that of the source.
    """
    method, cls = record.method, registry.load("methods", record.method.name)
    fields = cls.Params.model_fields
    names = parameters(method.name, method.source)  # of the source that the result names
    names = sorted(fields) if names is None else names
    shared = {name: value for name, value in method.params.items() if name in fields or name not in names}
    try:
        resolved = cls.resolve(method.preset, shared)
    except UserError as error:
        yield RecordIssue("method.params", why=str(error))
        return
    members = [part["method"] for part in record.identity.get("members", ())]
    expected = [one.method for one in cls.made_of(resolved, record.seed)]
    yield from differences("identity.members", members, expected, "its parameters say so")
    full = given_params(resolved)
    stated = {name: full[name] for name in shared}
    if sorted(method.params) != names or canonical_json(stated) != canonical_json(shared):
        yield RecordIssue(
            "method.params", why=f"they are not as {method.name} states them, every one and of its own type"
        )
    presets = {name: cls.resolve(name, {}).model_dump(mode="json") for name in cls.presets if name not in changed}
    for name, params in presets.items():
        if name != method.preset and full == params != presets[method.preset]:
            yield RecordIssue("method.preset", method.preset, name, "the parameters are all those of that preset")
    yield from differences("method.version", method.version, cls.version, f"of {method.name} in adbench {__version__}")
    yield from _files(record, cls, resolved)
    budget, taken = cls.budget(resolved), optimiser_steps(record)
    if budget is not None and taken != budget:
        yield RecordIssue("fit.steps", taken, budget, f"steps that {method.name} takes with these parameters")


def _files(record: Record, cls: type[Method], params: ParamSet) -> Iterator[RecordIssue]:
    """The identity has a hash of each file that the parameters name; how many a user's own folder holds is not known here."""
    files = record.identity.get("files")
    if not isinstance(files, list):
        return
    if names_files(cls.Params, given_params(params)):
        if not any(named_contents(record)):
            yield RecordIssue("identity.files", why="its parameters name a file, and the hash of none is there")
        return
    try:
        named = len(cls.files(params))
    except UserError:  # weights that are not installed on this machine
        named = max(1, len(files))
    if len(files) != named:
        yield RecordIssue("identity.files", len(files), named, "files that these parameters name")
