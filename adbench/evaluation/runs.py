"""``adbench eval``: numbers without running a model, from an old run or from anyone's maps.

A run is evaluated from its histograms, or from its maps where a metric or a paper's own rule needs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from adbench.config import protocols, registry, run_config
from adbench.context import Progress
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.prepare import store_folder
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.metrics.base import Metric
from adbench.metrics.evaluate import Evaluation, choose_thresholds, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.presets import PRESETS, Case, PresetResult, evaluate_preset
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.spec import WIDE
from adbench.results import record as records
from adbench.results.record import Record
from adbench.results.rundir import MAPS, VAL_MAPS
from adbench.runner.keys import CellSpec, source_digest
from adbench.runner.plan import Data, gather, labelled, located
from adbench.utils.hashing import digest_file


@dataclass(frozen=True)
class _Stored:
    """Cases of a run whose maps were saved: iterates anew each time, one volume in memory."""

    maps: np.ndarray
    data: LabelledSet

    def __iter__(self) -> Iterator[Case]:
        for index, case in enumerate(self.data.cases):
            where = np.flatnonzero(self.data.case_index == index)
            yield Case(case, np.asarray(self.maps[where]), self.data.lesions(where), self.data.brains(where))


def evaluate_run(
    run: Path,
    *,
    metrics: Sequence[str] = (),
    preset: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation | PresetResult:
    """Evaluate a finished run again.

    Args:
        run: its folder, or its ``record.json``.
        metrics: optional and plug-in metrics to add to those that the run was asked for, by name.
        preset: a paper's own rule instead of the headline metrics; needs maps.
        cache: folder of slice stores, for the masks that maps are held against.
        progress: receives the progress of preparing the store, if that is needed.

    Raises:
        UserError: no such run; files that differ from their hashes in the record, masks too where the data are prepared
            here; maps are needed and were not saved.
    """
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    record = records.read(run)
    stored = measured(record)
    chosen: list[Metric] = [registry.load("metrics", name)() for name in dict.fromkeys((*metrics, *stored))]
    if preset is not None:
        if preset not in PRESETS:
            evaluate_preset(preset, [])  # raises the error that lists them
        test, val = _stored(folder, record, cache or run_config.default_cache(), progress or Progress())
        return evaluate_preset(preset, test, val)
    _check_files(folder, record)
    histograms = SubjectHistograms.from_npz(folder / "histograms.npz")
    val_path = folder / "val_histograms.npz"
    val_histograms = SubjectHistograms.from_npz(val_path) if val_path.name in record.files else None
    counted = SpatialAccumulator.from_json(folder / "spatial.json")
    needing = [metric for metric in chosen if metric.needs_maps]
    counted.metrics = tuple(needing)
    if any(metric.name not in stored for metric in needing):
        test, _ = _stored(folder, record, cache or run_config.default_cache(), progress or Progress())
        thresholds = choose_thresholds(val_histograms)[0]
        counted = SpatialAccumulator(thresholds, counted.froc, metrics=needing)
        for index, case in enumerate(test):
            where = np.flatnonzero(test.data.case_index == index)
            inside = test.data.counted(where)
            counted.add_volume(
                case.subject,
                case.maps,
                case.lesion & inside,
                inside,
                test.data.slice_numbers[where],
                subject=test.data.subject_of[case.subject],
                spacing=test.data.spacing_at(int(where[0])),
                site=test.data.site_at(int(where[0])),
            )
    elsewhere = check_masks(folder, record, cache or run_config.default_cache())
    found = evaluate(
        histograms,
        val_histograms,
        level=float(record.protocol["level"]),
        spatial=counted,
        metrics=chosen,
        strata=True,
    )
    found.notes += [elsewhere] if elsewhere else []
    return found


def measured(record: Record) -> list[str]:
    """The metrics that ``record`` was asked for, where they are installed here and are what they were."""
    return [
        name
        for name, part in record.optional.items()
        if (entry := registry.entries("metrics").get(name)) is not None
        and not registry.status(entry)
        and source_digest("metrics", name) == part.source
    ]


def _check_files(folder: Path, record: Record) -> None:
    for name in record.files:
        checked_file(folder, record, name)


def checked_file(folder: Path, record: Record, name: str) -> Path:
    """The path of ``name`` beside the record, which lists it.

    Raises:
        UserError: it is missing, or not the file that the record describes.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing, but the record lists it: the run folder is incomplete.")
    if (found := digest_file(path)) != record.files[name]:
        raise UserError(
            f"{path} is not the file that the record describes: it has the SHA-256 {found[:16]}, the record says "
            f"{record.files[name][:16]}. Make the run again with --force."
        )
    return path


def stored_cell(folder: Path) -> CellSpec:
    """The cell that made the run in ``folder``, on whatever device is there now.

    Raises:
        UserError: its ``config.yaml`` is missing, or names what is not there any more.
    """
    (cell,) = run_config.cells(run_config.load(folder / "config.yaml", {"device": "auto"}, []))
    return cell


def stored_data(cell: CellSpec, record: Record, cache: Path, progress: Progress) -> Data:
    """The data of a finished run, prepared again if need be.

    Raises:
        UserError: the data are gone, or are not those of the run any more.
    """
    data = gather(cell.test, cell.train, cell.modality, protocols.get(cell.protocol), cache, progress)
    _same_slices(data.threshold, data.test, record)
    return data


def _same_slices(threshold: LabelledSet, test: LabelledSet, record: Record) -> None:
    for role, data, part in (("validation", threshold, record.threshold), ("test", test, record.test)):
        if data.digest != part.digest:
            raise UserError(
                f"The {role} slices or masks of {part.name} are not those of the run any more: they have the digest "
                f"{data.digest[:16]}, its record says {part.digest[:16]}. Bring the old files back, or run it again."
            )


def check_masks(folder: Path, record: Record, cache: Path) -> str:
    """Hold the lesion masks of a run against its record, where its data are prepared on this machine.

    Returns:
        Why they were not looked at; "" when they were.

    Raises:
        UserError: they are not those that the run was measured with.
    """
    try:
        cell = stored_cell(folder)
        dataset = located(cell.test)
        _, place = store_folder(dataset, cell.modality, cache)
    except (UserError, OSError) as error:
        return f"The masks were not looked at, only what was counted with them: {error}"
    if not place.exists():
        return (
            f"The masks were not looked at, only what was counted with them: {cell.test.dataset} as it is now is not "
            f"prepared in {cache}. If its files did not change, `adbench data prepare` makes that good."
        )
    store = SliceStore.open(place)
    threshold, test = labelled(store, protocols.get(cell.protocol))
    _same_slices(threshold, test, record)
    for data in (threshold, test):
        firsts = data.rows[np.unique(data.case_index, return_index=True)[1]]
        store.lesions[firsts]  # the first row of a case has all of it checked
    return ""


def _stored(folder: Path, record: Record, cache: Path, progress: Progress) -> tuple[_Stored, _Stored | None]:
    """The saved maps of the run with the masks of its dataset, test and validation."""
    if MAPS not in record.files:
        raise UserError(f"{folder} has no maps, only histograms: run it again with --save-maps --force.")
    _check_files(folder, record)
    data = stored_data(stored_cell(folder), record, cache, progress)
    test = _Stored(np.load(folder / MAPS, mmap_mode="r"), data.test)
    if VAL_MAPS not in record.files:
        return test, None
    return test, _Stored(np.load(folder / VAL_MAPS, mmap_mode="r"), data.threshold)


@dataclass(frozen=True)
class Results:
    """What ``adbench eval`` found: an evaluation, results of presets, and the folder of what was written, if any."""

    evaluation: Evaluation | None
    presets: list[PresetResult]
    folder: Path | None = None


def reevaluate(run: Path, metrics: Sequence[str], rules: Sequence[str]) -> Results:
    """The headline metrics of ``run``, or the ``rules`` of papers where some are named."""
    if not rules:
        result = evaluate_run(run, metrics=metrics)
        assert isinstance(result, Evaluation)
        return Results(result, [])
    found = [evaluate_run(run, preset=rule) for rule in rules]
    return Results(None, [result for result in found if isinstance(result, PresetResult)])


def score_folders(
    maps: Path,
    masks: Path,
    others: Mapping[str, Path | None],
    labels: str | None,
    metrics: Sequence[str],
    rules: Sequence[str],
    out: Path,
) -> Results:
    """Anyone's maps against their masks; writes JSON, histograms and plots into ``out``.

    Args:
        maps: folder of anomaly maps.
        masks: folder of lesion masks.
        others: brain, val_maps, val_masks, val_brain: folders or None.
        labels: mask values that are lesion, separated by commas; None for 1.
        metrics: plug-in metrics, by name.
        rules: presets of papers to add.
        out: folder.

    Raises:
        UserError: see :func:`adbench.evaluation.maps.evaluate_folders`.
    """
    from adbench.evaluation.maps import evaluate_folders

    try:
        values = None if labels is None else [int(value) for value in labels.split(",")]
    except ValueError:
        raise UserError(f"--labels {labels!r} must be whole numbers separated by commas, e.g. 1,2,4.") from None
    result = evaluate_folders(
        maps,
        masks,
        others["brain"],
        out=out,
        labels=values,
        val_maps=others["val_maps"],
        val_masks=others["val_masks"],
        val_brain=others["val_brain"],
        metrics=[registry.load("metrics", name)() for name in metrics],
        presets=rules,
    )
    stored = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["presets"]
    return Results(result, [PresetResult(**preset) for preset in stored], out)


def print_evaluation(results: Results, as_json: bool) -> None:
    """Print ``results`` as tables, or as one JSON document."""
    from adbench.utils.console import print_json, say, table

    if as_json:
        evaluation = results.evaluation.as_dict() if results.evaluation else None
        print_json({"evaluation": evaluation, "presets": [asdict(preset) for preset in results.presets]})
        return
    if results.evaluation is not None:
        rows = []
        for name, metric in results.evaluation.metrics.items():
            ends = "" if metric.low is None or metric.high is None else f"[{metric.low:.4f}, {metric.high:.4f}]"
            about = "≈" if metric.spread > WIDE else ""
            value = "—" if metric.value is None else f"{about}{metric.value:.4f}"
            rows.append([name, value, ends, str(metric.n), "oracle" if metric.oracle else "", metric.reason])
        columns = [("metric", "left"), ("value", "right"), ("95 % interval", "left"), ("subjects", "right")]
        prevalence = f"lesion prevalence {results.evaluation.prevalence:.6f}: the chance level of auprc"
        table("evaluation", [*columns, ("", "left"), ("remark", "left")], rows, caption=prevalence)
        for note in results.evaluation.notes:
            say(note)
    for preset in results.presets:
        rows = [[name, "—" if value is None else f"{value:.4f}"] for name, value in preset.values.items()]
        table(f"as published: {preset.name}", [("number", "left"), ("value", "right")], rows)
        for note in preset.notes:
            say(note)
    if results.folder is not None:
        say(f"JSON, histograms and plots: {results.folder}")
