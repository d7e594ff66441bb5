"""A finished run on disk: its record, and the stored counts that every number can be computed from again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.config import registry
from adbench.config.shared_fit import is_shared
from adbench.config.source import source_digest
from adbench.errors import UserError
from adbench.metrics.base import Metric
from adbench.metrics.evaluate import Estimate, Evaluation, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results import record as records
from adbench.results import rundir
from adbench.results.names import row_names
from adbench.results.record import Record
from adbench.utils.hashing import digest_file
from adbench.utils.limits import SPATIAL_BYTES, SPATIAL_VALUES
from adbench.utils.plain_files import open_plain, read_json

if TYPE_CHECKING:
    import pandas as pd


class Result:
    """A finished run: its record and, read when they are asked for, the counts beside it.

    Args:
        folder: the run's folder, or its ``record.json``.

    Raises:
        UserError: there is no record, or it is not a valid one.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        self.record: Record = records.read_record(Path(folder))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} on {self.record.test.name} {self.record.test.modality}>"

    @property
    def label(self) -> str:
        """Name of its row in a table of its own, and the seed."""
        return f"{row_names([self.record])[0].label} seed {self.record.seed}"

    @cached_property
    def histograms(self) -> SubjectHistograms:
        """Scores of the brain voxels of every test volume, lesion and background apart."""
        return SubjectHistograms.from_npz(self.file(rundir.HISTOGRAMS))

    @cached_property
    def val_histograms(self) -> SubjectHistograms | None:
        """The same for the validation subjects, which chose the threshold; None when there are none."""
        if rundir.VAL_HISTOGRAMS not in self.record.files:
            return None
        return SubjectHistograms.from_npz(self.file(rundir.VAL_HISTOGRAMS))

    @cached_property
    def spatial(self) -> SpatialAccumulator:
        """Counts of lesions, false components and slices of every test volume, and whose volume each is."""
        path = self.file(rundir.SPATIAL)
        found = SpatialAccumulator.from_values(read_json(path, SPATIAL_BYTES, SPATIAL_VALUES), str(path))
        found.metrics = tuple(metric for metric in self.metrics if metric.needs_maps)
        return found

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The additional metrics that the run was asked for, where they are installed here with the same source."""
        return tuple(
            registry.load("metrics", name)()
            for name, part in self.record.optional.items()
            if (entry := registry.entries("metrics").get(name)) is not None
            and not registry.status(entry)
            and source_digest("metrics", name) == part.source
        )

    @property
    def subjects(self) -> list[str]:
        """The test subjects, sorted."""
        return sorted(set(self.spatial.subject_of.values()))

    @property
    def fit_folder(self) -> Path:
        """Folder of the fit of this run if it was kept: ``OUT/fits/<method>-<key>``, or beside the record in a shared fit."""
        if is_shared(self.folder):
            return self.folder
        out = self.folder.resolve().parents[2] if len(self.folder.resolve().parents) > 2 else self.folder
        return rundir.fit_folder(out, self.record.method.name, self.record.fit_key)

    @property
    def stored_evaluation(self) -> Evaluation:
        """The numbers as the record has them."""
        return Evaluation(
            {name: Estimate(**number.model_dump()) for name, number in self.record.metrics.items()},
            self.record.thresholds,
            self.record.subjects,
            self.record.prevalence,
            self.record.notes,
            self.record.brackets,
        )

    def evaluation(
        self,
        *,
        intervals: bool = True,
        metrics: Sequence[Metric] = (),
        spatial: SpatialAccumulator | None = None,
    ) -> Evaluation:
        """Every metric, computed again from the histograms.

        Args:
            intervals: False gives values alone, which is faster.
            metrics: measured beside the run's own.
            spatial: counts to use instead of :attr:`spatial`.

        Raises:
            UserError: a file is missing, or is not the one that the record describes.
        """
        return evaluate(
            self.histograms,
            self.val_histograms,
            intervals=intervals,
            level=float(self.record.protocol["level"]),
            spatial=spatial or self.spatial,
            metrics=[*{metric.name: metric for metric in (*metrics, *self.metrics)}.values()],
            strata=True,
        )

    def missing(self, metrics: Iterable[str]) -> list[str]:
        """Those of ``metrics``, additional metrics by name, that the record lacks or has from another source."""
        return records.missing_metrics(self.record, metrics)

    def file(self, name: str) -> Path:
        """The path of ``name`` beside the record, checked against its hash there.

        Raises:
            UserError: the record does not list it, it is missing, or not the file that the record describes.
        """
        if name not in self.record.files:
            raise UserError(f"The record in {self.folder} lists no {name}: the run is incomplete.")
        path = self._plain(name)
        if not path.exists():
            raise UserError(f"{path} is missing, but the record lists it: the run folder is incomplete.")
        if (found := digest_file(path)) != self.record.files[name]:
            raise UserError(
                f"{path} is not the file that the record describes: it has the SHA-256 {found[:16]}, the record says "
                f"{self.record.files[name][:16]}. Make the run again with --force."
            )
        return path

    def _plain(self, name: str) -> Path:
        if name != rundir.safe(name) or name.startswith("."):
            raise UserError(
                f"The record in {self.folder} lists {name!r}, which is not the plain name of a file beside it."
            )
        with suppress(FileNotFoundError):
            open_plain(self.folder / name).close()
        return self.folder / name

    def check_plain(self) -> None:
        """Check that all files which the record lists lie beside it, where they are there, without reading them.

        Raises:
            UserError: one is a link, a pipe or a device, or its name leads elsewhere.
        """
        for name in self.record.files:
            self._plain(name)

    def check_files(self) -> None:
        """Check every file that the record lists, except pictures.

        Raises:
            UserError: one is missing, or not the file that the record describes.
        """
        for name in self.record.files:
            if name not in rundir.DRAWN:  # records once listed them
                self.file(name)

    def to_frame(self) -> pd.DataFrame:
        """One row a metric, see :func:`to_frame`."""
        return to_frame([self])


def to_frame(results: Iterable[Result]) -> pd.DataFrame:
    """The numbers of finished runs as a table with one row per run and metric; ``.to_csv(path)`` writes it.

    Args:
        results: finished runs; several of one run key count once, so folders can be merged.

    Returns:
        Columns ``method``, ``preset``, ``seed``, ``protocol``, ``dataset``, ``modality``, ``run_key``, ``metric``,
        ``value``, ``low``, ``high`` (ends of the interval over subjects), ``n``, ``oracle``, ``reason`` (why a value is
        missing).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for result in {one.record.run_key: one for one in results}.values():
        record = result.record
        run = {
            "method": record.method.name,
            "preset": record.method.preset,
            "seed": record.seed,
            "protocol": record.protocol["name"],
            "dataset": record.test.name,
            "modality": record.test.modality,
            "run_key": record.run_key,
        }
        for name, number in record.metrics.items():
            rows.append(
                {**run, "metric": name, **number.model_dump(include={"value", "low", "high", "n", "oracle", "reason"})}
            )
    return pd.DataFrame(rows)
