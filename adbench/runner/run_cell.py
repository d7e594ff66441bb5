"""One cell of the grid: fit, score, measure, record. Pictures are drawn afterwards (:mod:`adbench.evaluation.pictures`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry, run_config
from adbench.config.cell import Cell, Source
from adbench.context import Context, Progress
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError, text_of
from adbench.methods.base import Method, ways
from adbench.metrics.evaluate import Estimate, Evaluation
from adbench.results import known, provenance, rundir, status
from adbench.results.format import several
from adbench.results.record import DataPart, MethodPart, Number, Record, metric_part
from adbench.runner.fit import peak_memory
from adbench.runner.fits import make_fit, waits
from adbench.runner.inference import Clock
from adbench.runner.measure import measure, numbers
from adbench.runner.plan import Data, Plan
from adbench.runner.samples import Samples
from adbench.runner.shared_fits import data_parts
from adbench.utils import compute, distributed, threads
from adbench.utils.files import sweep, write_json, write_text
from adbench.utils.hashing import digest_file
from adbench.utils.locks import acquire
from adbench.utils.signals import insisting

log = logging.getLogger("adbench")


def run_cell(
    plan: Plan,
    progress: Progress | None = None,
    *,
    force: bool = False,
    checkpoint_seconds: float = Context.checkpoint_seconds,
    save_maps: bool = False,
    track: str = "",
    facts: dict[str, Any] | None = None,
    watch: Callable[[Method, float], None] | None = None,
) -> Record:
    """The record of ``plan``: the stored one when it is complete, else made now.

    Interrupted anywhere and called again, it resumes where it stopped and ends with the same numbers. Called by several
    processes at once, one makes the record and the others wait for it; of runs with one fit, one trains.

    Args:
        plan: of the cell.
        progress: receives progress.
        force: score again although a record is there (the fit is kept).
        checkpoint_seconds: a training in progress is saved at least this often.
        save_maps: keep every anomaly map beside the record (N x H x W), for metrics that are invented later.
        track: write loss curves to these trackers too, of :data:`adbench.utils.tracking.TRACKERS`, with commas between; "": none.
        facts: shown beside the progress by ``adbench status``: the share of a GPU, ...
        watch: looks at the method while it is trained, see :func:`adbench.runner.fit.fit_method`.

    Raises:
        Exception: whatever the method raises; it is written to ``failure.json`` first, and never counts as done.
    """
    before = _making(plan)
    done = None if force else plan.record()
    if done is not None:
        return done
    ctx = Context(
        device=plan.cell.device,
        seed=plan.cell.seed,
        workdir=plan.fit_folder,
        checkpoint_seconds=checkpoint_seconds,
        track=track,
        **plan.cell.post.json_values,
        progress=progress or Progress(),
        logger=log,
    )
    with threads.limited(threads.count(plan.resources.cpus)), compute.applied(plan.cell.device):
        if distributed.rank() > 0:
            return _assist(plan, ctx)
        with acquire(plan.run_folder, waits(ctx.progress)):
            sweep(plan.run_folder)
            made = _making(plan) != before  # by the process that had the folder
            # A process that was killed at the very end has made it.
            promoted = rundir.promote(plan.run_folder) and not force
            there = (made or promoted) and distributed.world() == 1 and plan.done(save_maps=save_maps)
            if there and (done := plan.record()) is not None:
                return done
            with status.reported(plan.run_folder, ctx.progress, label=plan.cell.label, **(facts or {})) as ctx.progress:
                record = _make(plan, ctx, save_maps, watch)
        distributed.wait()
    return record


def _making(plan: Plan) -> tuple[str, dict[str, float]] | None:
    """What tells the record of ``plan`` from one that is made later, though not from itself after a search signed it."""
    record = plan.stored()
    return None if record is None else (record.created, record.timing)


def _make(plan: Plan, ctx: Context, save_maps: bool, watch: Callable[[Method, float], None] | None = None) -> Record:
    """Fit, score, evaluate, record; an error is written down and raised. An earlier record stays until the new one is whole."""
    earlier = plan.stored()
    plan = plan.with_metrics_of(earlier)
    save_maps = save_maps or bool(plan.cell.protocol.preset) or (earlier is not None and rundir.MAPS in earlier.files)
    if earlier is None:
        rundir.write_identity(plan.run_folder, plan.fit_key, plan.run_key, plan.identity)
    new = rundir.begin(plan.run_folder)
    write_text(new / rundir.CONFIG, run_config.from_cell(plan.cell).to_yaml())
    write_json(new / rundir.SPLITS, plan.data.id_lists())
    phase = "fit"
    clock = Clock()
    try:
        with insisting():
            method, fit = make_fit(plan.fit_plan, ctx, watch)
            phase = "score"
            metrics = [registry.load("metrics", name)() for name in plan.cell.metrics]
            samples = Samples(plan.data.test)
            keep_in = (new / rundir.MAPS, new / rundir.VAL_MAPS) if save_maps else None
            try:
                counts = measure(method, plan.data.threshold, plan.data.test, ctx, clock, metrics, keep_in, samples)
            except UserError as error:  # it names the case; whose maps these are is known here
                raise UserError(f"{plan.cell.method}: {text_of(error)}") from error
            phase = "evaluate"
            ctx.progress.update(phase, 0, 0)
            with clock.phase("evaluate"):
                evaluation = numbers(counts, plan.cell.protocol.level, metrics)
            phase = "record"
            ctx.progress.update(phase, 0, 0)
            samples.save(new / rundir.SAMPLES)
            rundir.write_counts(new, counts.test, counts.threshold, counts.spatial)
            record = _record(plan, fit, ways(method), evaluation, clock, new)
        rundir.commit(record, plan.run_folder)
    except BaseException as error:
        rundir.abandon(plan.run_folder)
        with suppress(OSError):  # on a full disk the error itself still reaches the user
            if not isinstance(error, KeyboardInterrupt):
                rundir.write_failure(plan.run_folder, error, phase)
        raise
    return record


def _assist(plan: Plan, ctx: Context) -> Record:
    """Work of the other processes of a launch: train together with the first one, then wait for the record it writes."""
    make_fit(plan.fit_plan, ctx)
    distributed.wait()
    record = plan.record()
    if record is None:
        raise UserError(
            f"{plan.cell.label}: the first process of the launch wrote no record; its own message says why."
        )
    return record


def _record(
    plan: Plan, fit: dict[str, Any], scored: list[dict[str, Any]], evaluation: Evaluation, clock: Clock, folder: Path
) -> Record:
    """The record of what was measured; the files that belong to it lie in ``folder``."""
    cell, data = plan.cell, plan.data
    origin, source = registry.entries("methods")[cell.method].origin, plan.identity["method_source"]
    train, val = data_parts(cell.fit) if cell.fit else (None, None)
    learned, measured = (data.train_store, cell.train_source), (data.test_store, cell.test)
    if train is None:
        train, val = _data_part(data.train, *learned), _data_part(data.val, *learned) if data.val else None
    return Record(
        run_key=plan.run_key,
        fit_key=plan.fit_key,
        identity=plan.identity,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=MethodPart(
            name=cell.method,
            version=cell.method_class.version,
            origin=origin,
            source=source,
            preset=cell.preset,
            params=cell.params.json_values,
            parameters=fit["parameters"],
            conformance=known.conformance(cell.method, origin, source),
        ),
        train=train,
        val=val,
        threshold=_data_part(data.threshold, *(measured if cell.protocol.threshold_on == "test" else learned)),
        test=_data_part(data.test, *measured),
        protocol=cell.protocol.as_dict(),
        post=cell.post.done,
        seed=cell.seed,
        metrics=_numbers(evaluation.metrics),
        optional={name: metric_part(name) for name in cell.metrics},
        strata={
            grouping: {group: _numbers(metrics) for group, metrics in groups.items()}
            for grouping, groups in evaluation.strata.items()
        },
        prevalence=evaluation.prevalence,
        thresholds=evaluation.thresholds,
        subjects=evaluation.subjects,
        brackets=evaluation.brackets,
        notes=fit.get("notes", [])
        + _shared(plan)
        + _other_threads(plan)
        + _left_out(data)
        + _unknown_scale(data, cell)
        + evaluation.notes,
        fit={name: fit[name] for name in ("steps", "best", "curves", "computed") if name in fit},
        timing={
            "fit": fit["seconds"],
            "score_per_slice": clock.seconds["score"] / len(data.test),
            **clock.seconds,
        },
        memory={"score_host": peak_memory("cpu")["host"], **{f"fit_{k}": v for k, v in fit["memory"].items()}},
        provenance={**provenance.collect(cell.device, plan.fit_folder), "scored": scored},
        files={path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.name in rundir.RECORDED},
        tuned_from=cell.origin,
        weights=cell.fit.weights if cell.fit else None,
    )


def _shared(plan: Plan) -> list[str]:
    """Notes on weights that were fitted elsewhere."""
    fit = plan.cell.fit
    if fit is None:
        return []
    said = f"Weights of {fit.weights.author} ({fit.weights.licence}): their training scans were compared with these by name alone."
    other = plan.identity.get("scored_with")
    return [said] + ([f"Fitted by other code of {fit.method} than it is scored with."] if other else [])


def _other_threads(plan: Plan) -> list[str]:
    """A note on a number of threads that the user chose: on a CPU it moves the last digits."""
    asked, used = threads.default(plan.resources.cpus), threads.count(plan.resources.cpus)
    if plan.cell.device != "cpu" or used == asked:
        return []
    return [
        f"Computed with {several(used, 'CPU thread')} ({threads.VARIABLE}) where {plan.cell.method} asks for {asked}: "
        "a training on a CPU ends elsewhere in its last digits."
    ]


def _left_out(data: Data) -> list[str]:
    """A note on cases without a usable slice, which were given and are not scored."""
    stores = {"training dataset": data.train_store, "test dataset": data.test_store}
    if data.train_store.folder == data.test_store.folder:
        stores = {"dataset": data.test_store}
    notes = []
    for what, store in stores.items():
        if empty := store.empty_cases:
            has, is_ = ("has", "is") if len(empty) == 1 else ("have", "are")
            named = f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}"
            notes.append(
                f"{several(len(empty), 'case')} of the {what} {has} no slice with brain and {is_} in no split: {named}."
            )
    return notes


def _numbers(metrics: dict[str, Estimate]) -> dict[str, Number]:
    return {name: Number(**asdict(estimate)) for name, estimate in metrics.items()}


def _mm(data: SliceSet, store: SliceStore) -> tuple[float, float] | None:
    known = [mm for mm in store.pixel_sizes(data.rows).values() if mm is not None]
    if not known:
        return None
    rows, columns = np.median(known, axis=0).round(6).tolist()
    return rows, columns


def _unknown_scale(data: Data, cell: Cell) -> list[str]:
    """A note where training and test data are two sets, and one does not say how large its pixels are."""
    if cell.train is None:
        return []
    sides = ((cell.train, data.train_store, data.train), (cell.test, data.test_store, data.test))
    unknown = [source.title for source, store, part in sides if None in store.pixel_sizes(part.rows).values()]
    if not unknown:
        return []
    return [
        f"Slices of {' and of '.join(unknown)} do not say how many mm a pixel is: that training and test slices have one "
        "scale was not checked."
    ]


def _data_part(data: SliceSet, store: SliceStore, source: Source) -> DataPart:
    with_lesion = None
    if isinstance(data, LabelledSet):
        with_lesion = len(set(data.subject_index[data.lesion_voxels > 0].tolist()))
    return DataPart(
        name=source.title,
        modality=data.modality,
        digest=data.digest,
        subjects=len(data.subjects),
        slices=len(data),
        lesion_subjects=with_lesion,
        params=source.params.json_values,
        grid=data.shape,
        mm=_mm(data, store),
        store_remarks=len(store.manifest["remarks"]),
    )
