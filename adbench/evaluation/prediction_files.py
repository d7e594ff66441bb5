"""The files of a prediction: written for each scan on its own grid, and reused when they are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adbench.datasets.adapters.unlabelled import image_of
from adbench.datasets.base import Case
from adbench.datasets.geometry import voxel_ml
from adbench.datasets.io.png import read_shape
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.evaluation.volume_files import VolumeWriter, label
from adbench.metrics.lesion import breaks, components
from adbench.results.record import Record
from adbench.runner.inference import ScoredVolume
from adbench.utils import limits
from adbench.utils.files import replacing, write_json
from adbench.utils.hashing import digest
from adbench.utils.plain_files import read_json

VERSION = 2  # raised when the same scan gives other files
_NO_ANSWER = (UserError, KeyError, TypeError, AttributeError, OSError)  # what a file of another kind raises
ALL_MARKED = "all of its brain is marked: the threshold is below every score"


@dataclass(frozen=True)
class Prediction:
    """The answer for one scan; a row of ``summary.csv``.

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
        highest_score: in the brain, on the scan's own grid.
        notes: what is odd about its header, and what was done to make the scan like those of the run.
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


class PredictionWriter:
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
        self._name, self._volumes = label(record.method.name), VolumeWriter(out, "original")

    def image(self, case: str) -> str:
        """The file that is looked at, relative to the folder of scans (of slices, the first)."""
        first = next(iter(image_of(self._cases[case], self._record.test.modality).values()))
        return str(first).removeprefix(f"{self._images}/")

    def _sidecar(self, case: str) -> Path:
        if self._store.case(case).geometry is not None:
            return self._volumes.path(self._store, case, f"desc-{self._name}_anomaly.json")
        return self._out / f"{case}-{self._name}.json"

    def _key(self, case: str) -> str:
        stored = self._store.case(case)
        pixels = [stored.digests["images"], stored.digests["brains"], list(stored.slices), stored.geometry]
        return digest([VERSION, self._record.run_key, self._rule, self._level, pixels, self._remarks[case]])

    def refuse_others(self, known: Collection[str]) -> None:
        """Refuse a folder with answers that would lose their row in the table, or their files.

        Args:
            known: ids of all scans that are asked for.

        Raises:
            UserError: it holds answers of another run, or of other scans.
        """
        own = self._record.run_key
        for path in self._sidecars():
            made, case = own, ""
            with suppress(*_NO_ANSWER):
                content = read_json(path, limits.STATUS_BYTES)
                case = str(content["Found"]["case"])
                made = content["RunKey"]
            what = f"the run {str(made)[:10]!r}, not of {own[:10]!r}" if made != own else ""
            if not what and case and case not in known:
                what = f"{case!r}, which is not in {self._images}"
            if what:
                raise UserError(
                    f"{path} is of {what}; the table would lose its row: give another --out, or move it away."
                )

    def forget(self, cases: Collection[str]) -> None:
        """Remove what an earlier prediction wrote of ``cases``: of a scan without an answer now, no other must seem to be one."""
        for path in self._sidecars():
            names: list[str] = []
            with suppress(*_NO_ANSWER):
                content = read_json(path, limits.STATUS_BYTES)
                if content["Found"]["case"] in cases:
                    names = [str(path.relative_to(self._out)), *content["Files"]]
            for file in (self._out / name for name in names):
                if file.resolve().is_relative_to(self._out.resolve()):  # a strange file may name others
                    file.unlink(missing_ok=True)

    def _sidecars(self) -> list[Path]:
        """The files that say that a scan is answered, of this run or of others."""
        return sorted([*self._out.glob("sub-*/**/anat/*_anomaly.json"), *self._out.glob("*-*.json")])

    def finished(self, case: str) -> Prediction | None:
        """The stored answer for ``case``, when all its files are there as they were written."""
        with suppress(*_NO_ANSWER):
            content = read_json(self._sidecar(case), limits.STATUS_BYTES)
            sizes = {name: (self._out / name).stat().st_size for name in content["Files"]}
            if content["Key"] == self._key(case) and sizes == content["Files"]:
                return Prediction(**content["Found"])
        return None

    def write(self, data: LabelledSet, volume: ScoredVolume) -> Prediction:
        """Write the files of one scan, the one that says it is complete last, over those at another threshold."""
        case = volume.volume
        self._sidecar(case).unlink(missing_ok=True)
        brain, counted = data.brains(volume.positions), data.counted(volume.positions)
        slices = data.slice_numbers[volume.positions].tolist()
        images = image_of(self._cases[case], self._record.test.modality)
        extra: dict[str, Any] = {}
        if self._store.case(case).geometry is not None:
            files, figures, whole = self._write_volumes(volume, slices, brain, counted)
        else:
            side = self._cases[case].extra["side"]
            files, figures, whole, extra = self._write_slices(images, volume, slices, brain, counted, side)
        found = Prediction(
            case=case,
            image=self.image(case),
            threshold=self._level,
            **figures,
            notes="; ".join([*self._remarks[case], *([ALL_MARKED] if whole else [])]),
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

    def _write_volumes(
        self, volume: ScoredVolume, slices: Sequence[int], brain: np.ndarray, counted: np.ndarray
    ) -> tuple[list[Path], dict[str, Any], bool]:
        """NIfTI files on the grid of the scan, the figures of the mask, which is of the map as it is written, and whether that is all
        of the brain."""
        case, name = volume.volume, f"desc-{self._name}"
        scores, inside = self._volumes.map_placed(self._store, case, slices, volume.maps, counted)
        marked = inside & (scores.data.astype(np.float64) >= self._level)
        there = {f"{name}_anomaly": scores}
        if volume.reconstructions is not None:
            placed = self._volumes.placed(self._store, case, slices, volume.reconstructions)
            there[f"{name}Recon_{label(self._record.test.modality)}"] = placed
        there[f"{name}_mask"] = scores._replace(data=marked.astype(np.uint8))
        there["desc-brain_mask"] = self._volumes.placed(self._store, case, slices, brain)
        files = self._volumes.write(self._store, case, there)
        axes = scores.affine[:3, :3]
        up = int(np.argmax(np.abs(axes[2]) / np.linalg.norm(axes, axis=0)))
        figures = _figures(np.moveaxis(marked, up, 0), range(marked.shape[up]), voxel_ml(scores.affine))
        figures["highest_score"] = float(scores.data[inside].max(initial=-np.inf)) if inside.any() else 0.0
        return files, figures, bool(inside.any() and marked.sum() == inside.sum())

    def _write_slices(
        self,
        images: Mapping[int | None, Any],
        volume: ScoredVolume,
        slices: Sequence[int],
        brain: np.ndarray,
        counted: np.ndarray,
        side: int,
    ) -> tuple[list[Path], dict[str, Any], bool, dict[str, Any]]:
        """PNG files beside each other, named after the images; the figures of the masks; whether these are all of the brain; what
        the maps' grey values mean.

        A map has 65,536 grey values; each is on the side of the threshold that its score is on, as is the mask.
        """
        shapes = [read_shape(images[index]) for index in slices]
        inside = [_uncut(one, shape, side) for one, shape in zip(counted, shapes, strict=True)]
        uncut = [_uncut(np.nan_to_num(one), shape, side) for one, shape in zip(volume.maps, shapes, strict=True)]
        scores = [np.where(there, one, 0).astype(np.float64) for there, one in zip(inside, uncut, strict=True)]
        low, high = min(0.0, *(float(one.min()) for one in scores)), max(1.0, *(float(one.max()) for one in scores))
        least = int(np.searchsorted(low + np.arange(65536) / 65535 * (high - low), self._level))  # grey that is marked
        files, masks = [], []
        for place, index in enumerate(slices):
            mask = inside[place] & (scores[place] >= self._level)
            grey = np.round((scores[place] - low) / (high - low) * 65535)
            grey = np.where(mask, np.maximum(grey, least), np.where(inside[place], np.minimum(grey, least - 1), grey))
            values: dict[str, np.ndarray] = {f"{self._name}-anomaly": np.clip(grey, 0, 65535).astype(np.uint16)}
            if volume.reconstructions is not None:
                recon = _uncut(volume.reconstructions[place], shapes[place], side)
                values[f"{self._name}-recon"] = np.round(np.clip(recon, 0, 1) * 65535).astype(np.uint16)
            values[f"{self._name}-mask"] = mask.astype(np.uint8) * 255
            values["brain"] = _uncut(brain[place], shapes[place], side).astype(np.uint8) * 255
            stem = self._out / images[index].stem
            for end, array in values.items():
                files.append(stem.with_name(f"{stem.name}-{end}.png"))
                _write_png(files[-1], array)
            masks.append(mask)
        square = max(max(mask.shape) for mask in masks)
        padded = [np.pad(mask, [(0, square - n) for n in mask.shape]) for mask in masks]
        highest = max(
            (float(one[there].max()) for one, there in zip(scores, inside, strict=True) if there.any()), default=0.0
        )
        figures = {**_figures(np.stack(padded), slices, None), "highest_score": highest}
        whole = any(map(np.any, inside)) and all(map(np.array_equal, masks, inside))
        return files, figures, whole, {"GreyValues": {"0": low, "65535": high}}


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
