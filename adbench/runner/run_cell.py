"""One cell of the grid: prepare, fit, score, evaluate, record. ``run_cell(spec) -> Record``, and nothing else knows how."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np

from adbench.config import registry, run_config
from adbench.context import Context, Progress
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.methods.base import Method
from adbench.metrics.evaluate import Estimate, Evaluation
from adbench.metrics.plots import all_plots
from adbench.results import conformance, provenance, rundir, status
from adbench.results.record import DataPart, MethodPart, Number, Record
from adbench.runner import pictures
from adbench.runner.fit import fit_method, fitted, peak_memory
from adbench.runner.inference import ScoredVolume
from adbench.runner.keys import Source, metric_part, source_files
from adbench.runner.measure import Counts, measure, numbers
from adbench.runner.plan import Plan
from adbench.utils import distributed, threads
from adbench.utils.files import write_json, write_text
from adbench.utils.hashing import digest_file
from adbench.utils.locks import acquire
from adbench.utils.timing import Clock

P = ParamSpec("P")
log = logging.getLogger("adbench")


def run_cell(
    cell: Plan,
    progress: Progress | None = None,
    *,
    force: bool = False,
    checkpoint_seconds: float = 60.0,
    save_maps: bool = False,
    tensorboard: bool = False,
    facts: dict[str, Any] | None = None,
) -> Record:
    """The record of ``cell``: the stored one when it is complete, else made now.

    Interrupted anywhere and called again, it goes on where it stopped and ends with the same numbers. Called by several
    processes at once, one makes the record and the others wait for it; of runs with one fit, one trains.

    Args:
        cell: from :func:`adbench.runner.plan.plan`.
        progress: receives progress.
        force: score again although a record is there (the fit is kept).
        checkpoint_seconds: a training in progress is saved at least this often.
        save_maps: keep every anomaly map beside the record (N x H x W), for metrics that are invented later.
        tensorboard: write loss curves for TensorBoard into the folder of the fit.
        facts: shown beside the progress by ``adbench status``: the share of a GPU, ...

    Raises:
        Exception: whatever the method raises; it is written to ``failure.json`` first, and never counts as done.
    """
    done = None if force else cell.record()
    if done is not None:
        return done
    ctx = Context(
        device=cell.spec.device,
        seed=cell.spec.seed,
        workdir=cell.fit_folder,
        checkpoint_seconds=checkpoint_seconds,
        tensorboard=tensorboard,
        progress=progress or Progress(),
        logger=log,
    )
    if distributed.rank() > 0:
        return _assist(cell, ctx)
    with acquire(cell.run_folder, _waits(ctx.progress)) as waited:
        made = rundir.promote(cell.run_folder) and not force  # by a process that was killed at the very end
        there = (waited or made) and distributed.world() == 1 and cell.done(save_maps=save_maps)
        if there and (done := cell.record()) is not None:
            return done  # the process that had the folder has made it
        with status.reported(cell.run_folder, ctx.progress, label=cell.spec.label, **(facts or {})) as ctx.progress:
            record = _make(cell, ctx, save_maps)
    distributed.wait()
    return record


def _waits(progress: Progress) -> Callable[[str], None]:
    return lambda owner: progress.update(f"wait for {owner}", 0, 0)


def _on_its_threads(work: Callable[Concatenate[Plan, P], Record]) -> Callable[Concatenate[Plan, P], Record]:
    """``work`` with as many CPU threads as the run is to compute with."""

    @wraps(work)
    def limited(cell: Plan, *args: P.args, **kwargs: P.kwargs) -> Record:
        with threads.limited(threads.count(cell.resources.cpus)):
            return work(cell, *args, **kwargs)

    return limited


@_on_its_threads
def _make(cell: Plan, ctx: Context, save_maps: bool) -> Record:
    """Fit, score, evaluate, record; an error is written down and goes on. An earlier record stays until the new one is whole."""
    earlier = cell.stored()
    cell = cell.with_metrics_of(earlier)
    save_maps = save_maps or (earlier is not None and rundir.MAPS in earlier.files)
    if earlier is None:
        rundir.write_identity(cell.run_folder, cell.fit_key, cell.run_key, cell.identity)
    new = rundir.begin(cell.run_folder)
    write_text(new / "config.yaml", run_config.from_spec(cell.spec).to_yaml())
    write_json(new / rundir.SPLITS, cell.data.id_lists())
    phase = "fit"
    clock = Clock()
    try:
        method, fit = _fit(cell, ctx)
        phase = "score"
        metrics = [registry.load("metrics", name)() for name in cell.spec.metrics]
        data, samples = cell.data, _Samples(cell.data.test)
        keep_in = (new / rundir.MAPS, new / rundir.VAL_MAPS) if save_maps else None
        counts = measure(method, data.threshold, data.test, ctx, clock, metrics, keep_in, samples)
        phase = "evaluate"
        ctx.progress.update(phase, 0, 0)
        with clock.phase("evaluate"):
            evaluation = numbers(counts, cell.protocol.level, metrics)
        phase = "record"
        ctx.progress.update("pictures and record", 0, 0)
        record = _record(cell, fit, counts, evaluation, samples.found, clock, new)
        rundir.commit(record, cell.run_folder)
    except BaseException as error:
        rundir.abandon(cell.run_folder)
        with suppress(OSError):  # on a full disk the error itself still reaches the user
            if not isinstance(error, (KeyboardInterrupt, SystemExit)):
                rundir.write_failure(cell.run_folder, error, phase)
        raise
    return record


@_on_its_threads
def _assist(cell: Plan, ctx: Context) -> Record:
    """What the other processes of a launch do: train together with the first one, then wait for the record it writes."""
    _fit(cell, ctx)
    distributed.wait()
    record = cell.record()
    if record is None:
        raise UserError(
            f"{cell.spec.label}: the first process of the launch wrote no record; its own message says why."
        )
    return record


def _fit(cell: Plan, ctx: Context) -> tuple[Method, dict[str, Any]]:
    alone = distributed.rank() > 0 or fitted(cell.fit_folder, cell.fit_key) is not None
    with nullcontext() if alone else acquire(cell.fit_folder, _waits(ctx.progress)):
        cls, data = registry.load("methods", cell.spec.method), cell.data
        if not alone:
            provenance.sign(cell.fit_folder, ctx.device, source_files("methods", cell.spec.method))
        return fit_method(cls, cell.spec.params, data.train, data.val, cell.fit_folder, cell.fit_key, ctx)


class _Samples:
    """The slices of a few test volumes that the picture of a run shows."""

    def __init__(self, data: LabelledSet) -> None:
        self._data, self._shown = data, pictures.choose_positions(data)
        self._found: dict[int, pictures.Sample] = {}

    def __call__(self, scored: ScoredVolume) -> None:
        for index, position in enumerate(scored.positions.tolist()):
            if position in self._shown:
                at = np.array([position])
                recon = None if scored.reconstructions is None else scored.reconstructions[index]
                self._found[position] = pictures.Sample(
                    scored.volume,
                    self._data.images(at)[0].astype(np.float32),
                    self._data.counted(at)[0],
                    self._data.lesions(at)[0],
                    scored.maps[index],
                    recon,
                )

    @property
    def found(self) -> list[pictures.Sample]:
        """In the order in which they were chosen."""
        return [self._found[position] for position in self._shown]


def _record(
    cell: Plan,
    fit: dict[str, Any],
    counts: Counts,
    evaluation: Evaluation,
    samples: list[pictures.Sample],
    clock: Clock,
    folder: Path,
) -> Record:
    title = f"{cell.spec.label} · {cell.protocol.name}"
    with clock.phase("pictures"):
        threshold = evaluation.thresholds.get("val")
        pictures.sample_sheet(samples, folder / "samples.png", title, threshold)
        not_drawn = all_plots(counts.test, evaluation, folder, spatial=counts.spatial)
    counts.test.to_npz(folder / "histograms.npz")
    counts.spatial.to_json(folder / "spatial.json")
    if counts.threshold is not None:
        counts.threshold.to_npz(folder / "val_histograms.npz")
    files = sorted(path for path in folder.iterdir() if path.name in rundir.OUTPUTS)
    cls, origin = registry.load("methods", cell.spec.method), registry.entries("methods")[cell.spec.method].origin
    return Record(
        run_key=cell.run_key,
        fit_key=cell.fit_key,
        identity=cell.identity,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=MethodPart(
            name=cell.spec.method,
            version=cls.version,
            origin=origin,
            source=cell.identity["method_source"],
            preset=cell.spec.preset,
            params=cell.spec.params,
            parameters=fit["parameters"],
            conformance=conformance.outcome(cell.spec.method, origin, cell.identity["method_source"]),
        ),
        train=_data_part(cell.data.train, cell.data.train_store, cell.spec.train or cell.spec.test),
        val=_data_part(cell.data.val, cell.data.train_store, cell.spec.train or cell.spec.test)
        if cell.data.val
        else None,
        threshold=_data_part(cell.data.threshold, cell.data.test_store, cell.spec.test),
        test=_data_part(cell.data.test, cell.data.test_store, cell.spec.test),
        protocol=cell.protocol.as_dict(),
        seed=cell.spec.seed,
        metrics=_numbers(evaluation.metrics),
        optional={name: metric_part(name) for name in cell.spec.metrics},
        strata={
            grouping: {group: _numbers(metrics) for group, metrics in groups.items()}
            for grouping, groups in evaluation.strata.items()
        },
        prevalence=evaluation.prevalence,
        thresholds=evaluation.thresholds,
        subjects=evaluation.subjects,
        brackets=evaluation.brackets,
        notes=fit.get("notes", []) + _other_threads(cell) + _left_out(cell) + evaluation.notes + not_drawn,
        fit={name: fit[name] for name in ("steps", "best", "curves")},
        timing={
            "fit": fit["seconds"],
            "score_per_slice": clock.seconds["score"] / len(cell.data.test),
            **clock.seconds,
        },
        memory={"score_host": peak_memory("cpu")["host"], **{f"fit_{k}": v for k, v in fit["memory"].items()}},
        provenance=provenance.collect(cell.spec.device, cell.fit_folder),
        files={path.name: digest_file(path) for path in files},
        tuned_from=cell.spec.tuned_from,
    )


def _other_threads(cell: Plan) -> list[str]:
    """A note on a number of threads that the user chose: on a CPU it moves the last digits."""
    asked, used = threads.default(cell.resources.cpus), threads.count(cell.resources.cpus)
    if cell.spec.device != "cpu" or used == asked:
        return []
    return [
        f"Computed with {used} CPU thread{'s' * (used > 1)} ({threads.VARIABLE}) where {cell.spec.method} asks for {asked}: "
        "a training on a CPU ends elsewhere in its last digits."
    ]


def _left_out(cell: Plan) -> list[str]:
    """A note on cases without a usable slice: they were given, and nobody scored them."""
    stores = {"training": cell.data.train_store, "test": cell.data.test_store}
    if cell.data.train_store.folder == cell.data.test_store.folder:
        stores = {"": cell.data.test_store}
    return [
        f"{len(empty)} case{'s' if len(empty) > 1 else ''} of the {f'{role} ' if role else ''}dataset "
        f"{'have' if len(empty) > 1 else 'has'} no slice with brain and {'are' if len(empty) > 1 else 'is'} in no split: "
        f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}."
        for role, store in stores.items()
        if (empty := store.empty_cases)
    ]


def _numbers(metrics: dict[str, Estimate]) -> dict[str, Number]:
    return {name: Number(**asdict(estimate)) for name, estimate in metrics.items()}


def _data_part(data: SliceSet, store: SliceStore, source: Source) -> DataPart:
    with_lesion = None
    if isinstance(data, LabelledSet):
        with_lesion = len(set(data.subject_index[data.lesion_voxels > 0].tolist()))
    return DataPart(
        name=source.dataset,
        modality=data.modality,
        digest=data.digest,
        subjects=len(data.subjects),
        slices=len(data),
        lesion_subjects=with_lesion,
        params=source.params,
        grid=data.shape,
        store_remarks=len(store.manifest["remarks"]),
    )
