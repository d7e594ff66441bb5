"""Submissions of results that ``adbench eval --maps`` scored from anomaly maps, without running a method.

Their numbers follow from stored counts like any others, and they rank by them. What made the maps is not known here, only
said: such a row has the preset ``maps``, no parameters and no costs, and names its submitter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adbench.config import registry
from adbench.config.attribution import is_seen
from adbench.config.protocols import MAPS
from adbench.errors import UserError
from adbench.leaderboard.submission import (
    FROM_MAPS,
    SPATIAL,
    WITH,
    WITHOUT,
    Submission,
    Submitted,
    ranking_left_out,
    read_or_pack,
    sealed,
    sha256,
)
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.metrics.thresholds import ThresholdCounts
from adbench.results.names import BRACKETS, skeleton
from adbench.results.record import DataPart, MethodPart, Record, metric_part
from adbench.results.rundir import HISTOGRAMS, SPLITS, VAL_HISTOGRAMS
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.hashing import digest
from adbench.utils.limits import RECORD_BYTES, SPATIAL_BYTES
from adbench.utils.plain_files import read_json, read_plain

SCORED = "metrics.json"  # what adbench.evaluation.maps leaves beside the counts
NOT_SAID = "not said"
PRESET = "maps"
_VOXELS = ("subject", "volume", "brain_voxels", "lesion_voxels")
_LEVEL = 0.95


def is_scored(folder: Path) -> bool:
    """Whether ``folder`` is what ``adbench eval --maps --out`` left."""
    return (folder / SCORED).is_file()


def pack_maps(
    folder: Path,
    submitted: Submitted,
    *,
    method: str,
    dataset: str = "",
    modality: str = "",
    like: Path | None = None,
    trained_on: str = "",
    seed: int = 0,
) -> Submission:
    """The scores in a folder as a submission.

    Args:
        folder: that ``adbench eval --maps ... --out`` wrote.
        submitted: who submits it; its code or paper must be named.
        method: name of the row.
        dataset: that the cases are of; with ``like`` that of the run.
        modality: their sequence, likewise: masks do not show it.
        like: a run or submission on the very cases, whose table the row joins; None: a table of its own.
        trained_on: what the method learned from, as they say.
        seed: of the training behind the maps, so that rows of several seeds are taken together.

    Raises:
        UserError: the folder is none, no brain masks were given, something is not named, or ``like`` has other cases.
    """
    if not (submitted.code or submitted.paper):
        raise UserError("A row that was scored from maps says where its method is: give --code or --paper.")
    if BRACKETS & set(method):
        raise UserError(f"--method {method!r}: leave the brackets away, the row adds [maps] itself.")
    if not is_seen(method.strip()):
        raise UserError(f"--method {method.strip()!a}: write it in one line of printable characters.")
    alike = _known("methods", method)
    if alike != method.strip() or alike in registry.BUILTIN["methods"]:
        raise UserError(
            f"{method!r} reads like {alike}, which adbench runs itself: call the row otherwise, e.g. '{method} of the authors'."
        )
    about = read_json(folder / SCORED, RECORD_BYTES)
    if not isinstance(about, dict) or not isinstance(about.get("cases"), dict):
        raise UserError(f"{folder / SCORED} was made before rows could be scored from maps: run adbench eval again.")
    if not about["inputs"]["brain"]:
        raise UserError("Rows count brain voxels alone: run adbench eval again with --brain DIR (and --val-brain DIR).")
    if about["settings"]["level"] != _LEVEL:
        raise UserError(f"The intervals of a row are of level {_LEVEL}: run adbench eval again without another one.")
    test = SubjectHistograms.from_npz(folder / HISTOGRAMS)
    val = SubjectHistograms.from_npz(folder / VAL_HISTOGRAMS) if "val" in about["cases"] else None
    kept = None if val is None else ThresholdCounts.of(val, names=(WITH, WITHOUT))
    spatial = read_plain(folder / SPATIAL, SPATIAL_BYTES)
    if like is None:
        if not (dataset.strip() and modality.strip()):
            raise UserError(
                "Name what the cases are with --dataset and --modality, or the run on the same ones with --like."
            )
        name = f"{_known('datasets', dataset)} boxes" if about["inputs"]["boxes"] else _known("datasets", dataset)
        tested, threshold = _parts(about, val, name, modality.strip().upper())
        protocol = MAPS.as_dict()
    else:
        other = read_or_pack(like)
        for name, asked, its in (
            ("dataset", _known("datasets", dataset), other.record.test.name),
            ("modality", modality.strip().upper(), other.record.test.modality),
        ):
            if asked not in ("", its):
                raise UserError(f"--{name} is {asked}, and {like} was scored on {its}: leave one of them away.")
        tested, threshold = _joined(about, val, kept, other, like)
        protocol = other.record.protocol
    owners = SpatialAccumulator.from_json(folder / SPATIAL).subject_of
    splits = {"train": [], "val": [], "threshold": [] if val is None else val.subjects}
    splits["test"] = sorted(set(owners.values()))
    train = unseen(tested, _known("datasets", trained_on) or NOT_SAID)
    optional = [name for name in about["metrics"] if name not in SPECS or SPECS[name].group == "optional"]
    numbers = {
        name: about[name] for name in ("metrics", "strata", "prevalence", "brackets", "thresholds", "subjects", "notes")
    }
    record = Record(
        run_key="",
        fit_key="",
        identity={},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=MethodPart(
            name=method.strip(),
            version=NOT_SAID,
            origin=FROM_MAPS,
            source="",
            preset=PRESET,
            params={},
            parameters=0,
        ),
        train=train,
        val=None,
        threshold=threshold,
        test=tested,
        protocol=protocol,
        seed=seed,
        optional={name: metric_part(name) for name in optional},
        **numbers,
        fit={},
        timing={"fit": 0.0, "score_per_slice": 0.0},
        memory={},
        provenance={"adbench": about["adbench"]},
        files={
            SPLITS: sha256((json.dumps(splits, indent=1) + "\n").encode()),
            SPATIAL: sha256(spatial),
        },
    )
    own = identity(record, submitted)
    keys = {"identity": own, "run_key": digest(own), "fit_key": digest(own)}
    content = record.model_copy(update=keys).model_dump(mode="json")
    left_out = None if record.metrics[RANKED_BY].value is None else ranking_left_out(test, owners)
    return sealed(folder, content, splits, (test, kept), spatial, left_out, submitted)


def unseen(tested: DataPart, name: str) -> DataPart:
    """The training data ``name``, of which nothing is known here."""
    return DataPart(name=name, modality=tested.modality, digest="", subjects=0, slices=0, grid=tested.grid)


def _known(kind: str, name: str) -> str:
    """``name`` as adbench writes it, where it reads like one of its own: "IXI" is ixi."""
    return next((known for known in registry.BUILTIN[kind] if skeleton(known) == skeleton(name.strip())), name.strip())


def identity(record: Record, submitted: Submitted) -> dict[str, Any]:
    """What two results that were scored from maps must share to be one row, and their seed."""
    return {
        "scored_from": "maps",
        "method": record.method.name,
        "trained_on": record.train.name,
        "submitter": submitted.submitter,
        "seed": record.seed,
        "modality": record.test.modality,
        "protocol": record.protocol,
        "metrics_version": METRICS_VERSION,
        "threshold_slices": record.threshold.digest,
        "test_slices": record.test.digest,
    }


def _parts(
    about: Mapping[str, Any], val: SubjectHistograms | None, dataset: str, modality: str
) -> tuple[DataPart, DataPart]:
    """The test and validation cases, known by their masks alone."""
    cases, rows = about["cases"], about["subjects"]
    test = DataPart(
        name=dataset,
        modality=modality,
        digest=cases["test"]["digest"],
        subjects=len({row["subject"] for row in rows}),
        slices=cases["test"]["slices"],
        lesion_subjects=sum(row["lesion_voxels"] > 0 for row in rows),
        grid=tuple(cases["test"]["grid"]),
    )
    none = {"digest": "", "subjects": 0, "slices": 0, "lesion_subjects": 0}
    if val is not None:
        ill = sum(histogram.n_positive > 0 for histogram in val.values())
        none = {"digest": cases["val"]["digest"], "subjects": len(val), "slices": cases["val"]["slices"]}
        none |= {"lesion_subjects": ill}
    return test, test.model_copy(update=none)


def _joined(
    about: Mapping[str, Any],
    val: SubjectHistograms | None,
    kept: ThresholdCounts | None,
    other: Submission,
    like: Path,
) -> tuple[DataPart, DataPart]:
    """The test and validation cases of ``other``, if these are the same: subject by subject with as many lesion and brain voxels.

    Raises:
        UserError: they are not; names the first difference.
    """
    record = other.record
    mine, its = (
        {row.get("volume", row["subject"]): tuple(row.get(name) for name in _VOXELS) for row in rows}
        for rows in (about["subjects"], record.subjects)
    )
    if mine != its:
        alone = sorted(mine.keys() ^ its.keys())
        if alone:
            where = "not among the maps" if alone[0] in its else f"not in {like}"
            why = f"{len(alone)} cases are on one side alone, the first, {alone[0]!r}, is {where}"
            if close := [name for name in alone[1:] if name.casefold() == alone[0].casefold()]:
                why += f" ({close[0]!r} reads alike: spell ids as there)"
        else:
            name = next(name for name in mine if mine[name] != its[name])
            (*_, brain, lesion), (*_, own_brain, own_lesion) = its[name], mine[name]
            why = f"{name!r} has {own_lesion} lesion voxels of {own_brain} here, and {lesion} of {brain} there"
        raise UserError(
            f"These are not the test cases of {like}: {why}. Score your maps on the masks of `adbench data export`, or leave "
            "--like away for a table of its own."
        )
    if val is None:
        return record.test, _parts(about, val, record.test.name, record.test.modality)[1]
    same = other.content.splits.threshold == val.subjects and other.validation is not None and kept is not None
    if not same or _voxels(kept) != _voxels(other.validation):
        raise UserError(
            f"The validation cases are not those of {like}: other subjects, lesion voxels or brain voxels. Give the maps of "
            "its validation subjects, or none."
        )
    return record.test, record.threshold


def _voxels(counts: ThresholdCounts | None) -> dict[str, tuple[int, int]]:
    return {} if counts is None else {name: (one.n_positive, one.n_negative) for name, one in counts.items()}
