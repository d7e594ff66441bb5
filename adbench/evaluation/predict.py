"""What a finished run says of scans that nobody has labelled: maps, pseudo-healthy images, masks and a table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry
from adbench.config.cell import Post
from adbench.config.run_config import parse_assignment
from adbench.context import Context, Progress
from adbench.datasets.adapters.unlabelled import (
    ANY_MASK,
    UnlabelledSlices,
    UnlabelledVolumes,
    are_volumes,
    image_of,
    open_scans,
)
from adbench.datasets.base import Case
from adbench.datasets.geometry import voxel_ml
from adbench.datasets.io.png import read_shape
from adbench.datasets.preprocessing.recipe import RecipeParams
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.prepare import CasesFailed, prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError, in_words, unknown
from adbench.evaluation.volume_files import VolumeFiles, label
from adbench.methods.base import Method
from adbench.metrics.lesion import breaks, components
from adbench.metrics.thresholds import AT
from adbench.params import build
from adbench.results.record import Record
from adbench.runner.fit import fitted, load_fit, seed_everything
from adbench.runner.inference import ScoredVolume, score_volumes
from adbench.runner.keys import sources_now
from adbench.utils import compute, limits, seeds, threads
from adbench.utils.console import printable
from adbench.utils.files import replacing, write_json, write_text
from adbench.utils.hashing import digest
from adbench.utils.plain_files import check_plain_folder, read_json
from adbench.utils.signals import insisting

log = logging.getLogger("adbench")
DRAWN_SIDE = 256  # px of volumes when the size is not stated
VERSION = 1  # raised when the same scan gives other files
SUMMARY = "summary.csv"
_SHAPING = (*(set(RecipeParams.model_fields) - {"exclude"}), "size")  # parameters of a dataset that shape pixels


@dataclass(frozen=True)
class Prediction:
    """What was found in one scan; a row of ``summary.csv``.

    Attributes:
        case: its id, from the name of its file.
        image: file that was looked at (of slices, the first).
        threshold: score at and above which a voxel of the brain is marked.
        voxels: marked, on the scan's own grid.
        volume_ml: of all that is marked; None for PNG slices, which do not say how large a pixel is.
        components: connected by a face, an edge or a corner.
        largest_voxels: of the largest component.
        largest_ml: of the same.
        slice: with most marked voxels: for a volume the index along its axis that runs upwards, in the file's own order;
            None where nothing is marked.
        highest_score: in the brain.
        notes: what was done to make the scan like those of the run.
    """

    case: str
    image: str
    threshold: float
    voxels: int
    volume_ml: float | None
    components: int
    largest_voxels: int
    largest_ml: float | None
    slice: int | None
    highest_score: float
    notes: str


class ScansFailed(UserError):
    """Some scans could not be read or scored; all others were answered.

    Attributes:
        found: what was found in the others.
        why: case id -> the sentence.
    """

    def __init__(self, found: list[Prediction], why: Mapping[str, str]) -> None:
        self.found, self.why = found, why
        super().__init__(f"{len(why)} of {len(why) + len(found)} scans have no answer: {' '.join(why.values())}")


def load_method(record: Record, folder: Path, device: str, progress: Progress | None = None) -> Method | None:
    """The method that ``record`` was made with, fitted; None when ``folder`` does not hold that fit.

    Args:
        record: of the run.
        folder: of the fit.
        device: a torch device string.
        progress: receives progress.

    Raises:
        UserError: the method is not installed here or of another version, or a file of the fit was changed, or is a link.
    """
    check_plain_folder(folder)
    fit = fitted(folder, record.fit_key)
    if fit is None:
        return None
    median = build(Post, f"post-processing of {record.method.name}", record.post).median
    context = Context(device, record.seed, folder, median=median, progress=progress or Progress())
    method: Method = load_fit(registry.load("methods", record.method.name), folder, fit, context)
    return method


def predict(
    record: Record,
    method: Method,
    images: Path,
    out: Path,
    *,
    threshold: str | float = "val",
    settings: Sequence[str] = (),
    cache: Path,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score every scan below ``images``; see :meth:`adbench.evaluation.run.Run.predict`.

    Args:
        record: of the run: its preparation, its thresholds.
        method: fitted, from :func:`load_method`.
        images: folder of NIfTI volumes or PNG slices.
        out: folder to write to.
        threshold: a rule of the record, or a score.
        settings: texts such as ``dataset.exclude=[p07]``, for what the scans need otherwise than the run's data.
        cache: folder of prepared slice stores.
        progress: receives progress.
    """
    progress = progress or Progress()
    rule, level = choose_threshold(record, threshold)
    dataset, said = _dataset(record, Path(images), settings)
    modality = record.test.modality
    there = dataset.available()
    if modality not in there:
        raise UserError(
            f"The names of the scans in {images} say {', '.join(there)}, and {record.method.name} was fitted to {modality}: "
            f"give {modality} scans, or name them so if they are."
        )
    others = dataset.other_sequences(modality)
    if record.method.source and (changed := sources_now(record.identity)):
        said.append(
            f"The code of {' and '.join(changed)} has changed since the run: its maps may differ from those measured."
        )
    store, failed = _prepared(dataset, modality, Path(cache), progress)
    failed |= {
        case: f"{case}: its name says {', '.join(names)}, and {record.method.name} was fitted to {modality}."
        for case, names in others.items()
    }
    failed |= {case: f"{case}: there is no slice with brain in it." for case in store.empty_cases}
    for text in said:
        log.warning(text)
    cases = {case.id: case for case in dataset.discover(modality)}
    writer = _Writer(record, store, cases, Path(images), Path(out), rule, level, _remarks(store))
    data = LabelledSet(store, np.arange(len(store)))
    data.domain = "all" if record.protocol.get("domain") == "all" else "brain"
    rows = {case: found for case in data.cases if (found := writer.finished(case)) is not None}
    left = [case for case in data.cases if case not in rows]
    cause: Exception | None = None  # what the method raised first
    log.info("%d of %d scans are answered from %s.", len(rows), len(data.cases), out)
    if left:
        params = method.params
        with threads.limited(threads.count(method.resources(params).cpus)), compute.applied(method.ctx.device):
            seed_everything(seeds.derive(record.seed, "score"))
            for case, scored in _scored(method, store, data, left):
                if isinstance(scored, Exception):
                    cause = cause or scored
                    failed[case] = f"{case}: {in_words(scored)}"
                else:
                    rows[case] = writer.write(data, scored)
                _write_summary(Path(out), [rows[case] for case in data.cases if case in rows], failed)
    every = [rows[case] for case in data.cases if case in rows]
    _write_summary(Path(out), every, failed)
    if cause is not None and not every:
        raise cause
    if failed:
        raise ScansFailed(every, failed) from cause
    return every


def _prepared(
    dataset: UnlabelledVolumes | UnlabelledSlices, modality: str, cache: Path, progress: Progress
) -> tuple[SliceStore, dict[str, str]]:
    """The scans that can be prepared, and case id -> why another cannot.

    Raises:
        CasesFailed: none can.
    """
    try:
        return prepare(dataset, modality, cache, progress), {}
    except CasesFailed as error:
        if not error.others:
            raise
        dataset.unreadable = frozenset(error.why)
        return prepare(dataset, modality, cache, progress), error.why


def _scored(
    method: Method, store: SliceStore, data: LabelledSet, cases: Sequence[str]
) -> Iterator[tuple[str, ScoredVolume | Exception]]:
    """Each of ``cases`` with its maps, or why it has none; ``data`` is all of ``store``.

    Batches cross scans, until the method fails at one of them: from then on each scan has its own. They are those of a
    prediction of all scans, whichever are asked for, since what a slice's batch holds may change its last bit.
    """
    left, alone = list(cases), False
    size = 128 if method.ctx.device.startswith("cuda") else 32
    while left:
        group = left[:1] if alone else left.copy()
        wanted = np.isin(data.case_index, [data.cases.index(case) for case in group])
        if not alone:
            batch = np.arange(len(data)) // size
            wanted = np.isin(batch, batch[wanted])
        where = np.flatnonzero(wanted)
        part = LabelledSet(store, where)
        volumes = score_volumes(method, part, method.ctx, f"predict {method.name}", size)
        try:
            while True:
                with insisting():
                    volume = next(volumes, None)
                if volume is None:
                    break
                if volume.volume not in left:  # its slices fill a batch
                    continue
                left.remove(volume.volume)
                volume = replace(volume, positions=where[volume.positions])
                finite = np.isfinite(volume.maps[data.counted(volume.positions)]).all()
                yield volume.volume, volume if finite else UserError("its scores hold NaN or infinite values.")
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
            if alone:
                yield left.pop(0), error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error.code}")
            alone = True


def choose_threshold(record: Record, wanted: str | float) -> tuple[str, float]:
    """The name of a threshold and its score.

    Args:
        record: of the run.
        wanted: one of its rules that never saw the test split ("val", "fpr5", ...), or a score.

    Raises:
        UserError: the run has no such threshold (names those it has).
    """
    with suppress(ValueError):
        score = float(wanted)
        if not np.isfinite(score):
            raise UserError(f"The threshold {wanted} is not a finite score.")
        return "given", score
    rules = {rule: record.thresholds[rule] for rule in AT.values() if rule in record.thresholds}
    if wanted in rules:
        return str(wanted), rules[str(wanted)]
    if str(wanted) not in AT.values():
        raise unknown("threshold", str(wanted), rules or AT.values())
    other = (
        f"It has {', '.join(rules)}: name one"
        if rules
        else "No threshold was chosen on validation subjects: give a score"
    )
    raise UserError(
        f"The run of {record.method.name} on {record.test.name} has no threshold {wanted!r}. {other} with --threshold."
    )


def _dataset(
    record: Record, images: Path, settings: Sequence[str]
) -> tuple[UnlabelledVolumes | UnlabelledSlices, list[str]]:
    """The scans as a dataset that is prepared as the run's test data were, and what is to be said about that."""
    side, width = record.test.grid
    if side != width:
        raise UserError(f"The run scored slices of {side} x {width} pixels: only squares can be made of other scans.")
    params, volumes = record.test.params, are_volumes(images)
    pixels_drawn = "field_of_view" not in params or (params.get("size") is None and side != DRAWN_SIDE)
    shaping = _SHAPING if volumes else (() if params.get("size") is None or not pixels_drawn else ("size",))
    own = {name: params[name] for name in shaping if name in params}
    if pixels_drawn:
        own.pop("field_of_view", None)
    given: dict[str, Any] = {}
    for text in settings:
        scope, key, value = parse_assignment(text)
        if scope != "dataset" or key in ANY_MASK:
            raise UserError(
                f"--set {text}: prediction takes parameters of the dataset folder, e.g. dataset.exclude=[p07]."
            )
        given[key] = value
    if given.get("size", side) != side:
        raise UserError(f"{record.method.name} was fitted to slices of {side} px: leave --set dataset.size away.")
    said = [
        f"Not as in the run: dataset.{name} = {given[name]}, there {value}."
        for name, value in own.items()
        if given.get(name, value) != value
    ]
    if volumes and isinstance(resolution := params.get("resolution"), int | float):  # of a phantom
        own["field_of_view"] = resolution * side
    elif volumes and pixels_drawn and "field_of_view" not in given:
        raise UserError(
            f"{record.method.name} was fitted to PNG slices, which do not say how large a pixel is, and {images} holds "
            f"volumes: say how many mm {side} pixels are with --set dataset.field_of_view=MM."
        )
    elif not volumes and not pixels_drawn and params.get("size") is not None:
        pixel = params["field_of_view"] / side
        said.append(f"PNG slices do not say how large a pixel is: they are taken for slices of {pixel:.3g} mm a pixel.")
    return open_scans(images, {"modality": record.test.modality, **own, **given}, side), said


def _remarks(store: SliceStore) -> dict[str, list[str]]:
    """Case id -> what its preparation remarked."""
    found: dict[str, list[str]] = {case.id: [] for case in store.cases}
    for line in store.manifest["remarks"]:
        case, _, remark = line.partition(": ")
        if case in found:
            found[case].append(remark)
    return found


class _Writer:
    """Writes what one scan gives, and finds what is written already."""

    def __init__(
        self,
        record: Record,
        store: SliceStore,
        cases: Mapping[str, Case],
        images: Path,
        out: Path,
        rule: str,
        level: float,
        remarks: Mapping[str, list[str]],
    ) -> None:
        self._record, self._store, self._cases = record, store, cases
        self._images, self._out, self._rule, self._level, self._remarks = images, out, rule, level, remarks
        self._name, self._volumes = label(record.method.name), VolumeFiles(out, "original")

    def _sidecar(self, case: str) -> Path:
        if self._store.case(case).geometry is not None:
            return self._volumes.path(self._store, case, f"desc-{self._name}_anomaly.json")
        return self._out / f"{case}-{self._name}.json"

    def _key(self, case: str) -> str:
        stored = self._store.case(case)
        pixels = [stored.digests["images"], stored.digests["brains"], list(stored.slices), stored.geometry]
        return digest([VERSION, self._record.run_key, self._rule, self._level, pixels, self._remarks[case]])

    def finished(self, case: str) -> Prediction | None:
        """What was found in ``case``, when all its files are there as they were written.

        Raises:
            UserError: they are of another run or another threshold, and would be overwritten.
        """
        path = self._sidecar(case)
        made = own = (self._record.run_key, self._level)
        found: Prediction | None = None
        with suppress(FileNotFoundError, UserError, KeyError, TypeError, AttributeError, OSError):
            content = read_json(path, limits.STATUS_BYTES)
            made = content["RunKey"], content["Threshold"]["Score"]
            sizes = {name: (self._out / name).stat().st_size for name in content["Files"]}
            if content["Key"] == self._key(case) and sizes == content["Files"]:
                found = Prediction(**content["Found"])
        if made != own:
            raise UserError(
                f"{path} is of the run {str(made[0])[:10]!r} at the threshold {made[1]!r}, and would be overwritten: give "
                "another --out, or move it away."
            )
        return found

    def write(self, data: LabelledSet, volume: ScoredVolume) -> Prediction:
        """Write the files of one scan, the one that says it is complete last."""
        case, maps = volume.volume, volume.maps
        brain = data.brains(volume.positions)
        counted = data.counted(volume.positions)
        mask = (maps >= self._level) & counted
        slices = data.slice_numbers[volume.positions].tolist()
        arrays = {"anomaly": maps, "recon": volume.reconstructions, "mask": mask, "brain": brain}
        images = image_of(self._cases[case], self._record.test.modality)
        extra: dict[str, Any] = {}
        files: list[Path]
        if self._store.case(case).geometry is not None:
            ends = {"anomaly": "_anomaly", "recon": f"Recon_{label(self._record.test.modality)}", "mask": "_mask"}
            tails = {what: f"desc-{self._name}{end}" for what, end in ends.items()} | {"brain": "desc-brain_mask"}
            there = {tails[what]: array for what, array in arrays.items() if array is not None}
            written = self._volumes.write(self._store, case, slices, there)
            marked = written[self._volumes.path(self._store, case, f"{tails['mask']}.nii.gz")]
            geometry = self._store.geometry(case)
            affine = np.asarray(geometry.original_affine)
            up = int(np.argmax(np.abs(affine[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0)))
            figures = _figures(np.moveaxis(marked > 0, up, 0), range(marked.shape[up]), voxel_ml(affine))
            files = list(written)
        else:
            files, marked, extra = self._write_slices(images, slices, arrays, self._cases[case].extra["side"])
            figures = _figures(marked, slices, None)
        inside = maps[counted]
        found = Prediction(
            case=case,
            image=str(next(iter(images.values()))).removeprefix(f"{self._images}/"),
            threshold=self._level,
            **figures,
            highest_score=float(inside.max()) if inside.size else 0.0,
            notes="; ".join(self._remarks[case]),
        )
        write_json(
            self._sidecar(case),
            {
                "Description": f"Anomaly map of {self._record.method.name}; higher is more anomalous",
                "RunKey": self._record.run_key,
                "Threshold": {"Rule": self._rule, "Score": self._level},
                **extra,
                "Key": self._key(case),
                "Files": {path.relative_to(self._out).as_posix(): path.stat().st_size for path in files},
                "Found": asdict(found),
            },
        )
        return found

    def _write_slices(
        self,
        images: Mapping[int | None, Any],
        slices: Sequence[int],
        arrays: Mapping[str, np.ndarray | None],
        side: int,
    ) -> tuple[list[Path], np.ndarray, dict[str, Any]]:
        """PNG files beside each other, named after the images; the masks on their grid; what the maps' grey values mean."""
        assert arrays["anomaly"] is not None
        maps = np.nan_to_num(arrays["anomaly"])
        low, high = min(0.0, float(maps.min())), max(1.0, float(maps.max()))
        files, masks = [], []
        for place, index in enumerate(slices):
            shape = read_shape(images[index])
            stem = self._out / images[index].stem
            values = {
                name: _uncut(array[place], shape, side)
                for name, array in {**arrays, "anomaly": maps}.items()
                if array is not None
            }
            grey: np.ndarray
            for name, array in values.items():
                if name == "anomaly":
                    grey = np.round((array.astype(np.float64) - low) / (high - low) * 65535).astype(np.uint16)
                elif name == "recon":
                    grey = np.round(np.clip(array, 0, 1) * 65535).astype(np.uint16)
                else:
                    grey = array.astype(np.uint8) * 255
                end = "brain" if name == "brain" else f"{self._name}-{name}"
                files.append(stem.with_name(f"{stem.name}-{end}.png"))
                _write_png(files[-1], grey)
            masks.append(values["mask"])
        square = max(max(mask.shape) for mask in masks)
        padded = [np.pad(mask, [(0, square - n) for n in mask.shape]) for mask in masks]
        scale = {"GreyValues": {"0": low, "65535": high}}
        return files, np.stack(padded), scale


def _uncut(array: np.ndarray, shape: tuple[int, int], side: int) -> np.ndarray:
    """A prepared slice on the pixels of its image, (H, W) = ``shape``: resized to the ``side`` that it was padded to, and cut."""
    from PIL import Image

    if array.shape[0] != side:
        masks = array.dtype == np.bool_
        image = Image.fromarray(array.astype(np.uint8 if masks else np.float32))
        resized = image.resize((side, side), Image.Resampling.NEAREST if masks else Image.Resampling.BILINEAR)
        array = np.asarray(resized).astype(array.dtype)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    return array[top : top + shape[0], left : left + shape[1]]


def _write_png(path: Path, grey: np.ndarray) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


def _figures(mask: np.ndarray, slices: Sequence[int], ml: float | None) -> dict[str, Any]:
    """Size and place of what is marked.

    Args:
        mask: (S, ...) bool.
        slices: S slice indices.
        ml: volume of a voxel; None: unknown.
    """
    labels, count = components(np.ascontiguousarray(mask), breaks(np.asarray(slices)))
    largest = int(np.bincount(labels.ravel())[1:].max()) if count else 0
    voxels = int(mask.sum())
    return {
        "voxels": voxels,
        "volume_ml": None if ml is None else voxels * ml,
        "components": count,
        "largest_voxels": largest,
        "largest_ml": None if ml is None else largest * ml,
        "slice": int(slices[int(mask.sum(axis=(1, 2)).argmax())]) if voxels else None,
    }


def _write_summary(out: Path, rows: Sequence[Prediction], failed: Mapping[str, str]) -> None:
    """``summary.csv``: a row a scan, those without an answer last, with the reason as their ``error``."""
    text = io.StringIO()
    table = csv.DictWriter(text, [*(field.name for field in fields(Prediction)), "error"], lineterminator="\n")
    table.writeheader()
    for cells in (*map(asdict, rows), *({"case": case, "error": why} for case, why in failed.items())):
        table.writerow({name: _cell(value) for name, value in cells.items()})
    write_text(out / SUMMARY, text.getvalue())


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula is quoted, and control characters are spelled out."""
    if isinstance(value, float):
        return f"{value:.6g}"
    value = printable(value) if isinstance(value, str) else value
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
