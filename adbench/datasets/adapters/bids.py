"""Any BIDS dataset: cohorts that are healthy by their participants.tsv, masks in derivatives (bids.neuroimaging.io)."""

from __future__ import annotations

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar

from adbench.datasets import issues
from adbench.datasets.adapters.own_volumes import REPEATS, OwnParams, OwnVolumes
from adbench.datasets.adapters.scans import Expected, Index, Scan
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io import nifti
from adbench.datasets.io.archive import File
from adbench.datasets.io.filename_patterns import MODALITIES, Named, common_name
from adbench.datasets.io.mask_names import LESION
from adbench.datasets.io.participants import PARTICIPANTS
from adbench.datasets.io.patient_names import person
from adbench.datasets.issues import Issue
from adbench.errors import UserError, unknown
from adbench.params import ParamSet, param


class BidsParams(OwnParams):
    """Parameters of preprocessing and splits, and which participants are healthy."""

    healthy: str = param(
        "",
        "column=value[,value] of participants.tsv: subjects with such a row are healthy, e.g. group=control; empty: none "
        "by the table",
        source="adbench",
        pattern=r"^([^=]+=.+)?$",
    )
    drawn_on: str = param(
        "",
        "the sequence on whose grid lesion masks lie, where not all of them do (FLAIR, DWI, ...); empty: masks lie on the "
        "grid of every sequence that is used",
        source="adbench",
    )
    acq: str = param(
        "",
        "the acquisition (acq-...) to use where a session has several and no lesion mask says which; empty: one without acq-, "
        "else that of the finest voxels",
        source="adbench",
        pattern=r"^[A-Za-z0-9]*$",
    )


class Bids(OwnVolumes):
    """T1w, T2w, FLAIR, PDw, dwi, trace and adc of a BIDS dataset at any depth, with lesion and brain masks of derivatives.

    Of several runs or acquisitions of one session the one with a lesion mask is used, else that of ``acq``, else the plain
    one, else the lowest run, else the one with the finest voxels, else the first by name, and the others are listed. A mask of
    one run is never that of another.
    ``derivatives`` give masks; their images are used where the raw ones are not there, but none whose lesions were filled.
    Sites, age and sex are read from participants.tsv.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="bids",
        version="1",
        modalities=MODALITIES,
        licence="that of the data",
        obtain=(
            "https://openneuro.org, https://sites.wustl.edu/oasisbrains (OASIS-3) or https://camcan-archive.mrc-cbu.cam.ac.uk"
        ),
        layout=(
            "sub-{id}[/ses-{id}]/anat/sub-{id}[_ses-{id}]_{T1w|T2w|FLAIR}.nii.gz, participants.tsv, and masks such as "
            "derivatives/.../sub-{id}_label-lesion_mask.nii.gz"
        ),
        protocol="folder",
    )
    Params: ClassVar[type[ParamSet]] = BidsParams
    params: BidsParams
    choosing: ClassVar[tuple[str, ...]] = (*OwnVolumes.choosing, "acq")

    def named(self, path: str) -> Named | None:
        """As BIDS, ranked by derivative, acquisition and run."""
        stem = PurePosixPath(path).name.partition(".")[0]
        found = common_name(stem, self.image_names) if stem[:4].lower() == "sub-" else None
        if found is None:
            return None
        marks = dict(REPEATS.findall(stem.lower()))
        derived = "derivatives" in PurePosixPath(path.lower()).parts and found.kind in MODALITIES
        runs = [int(digits) for key in ("run", "echo") for digits in (re.sub(r"\D", "", marks.get(key, "")) or "0",)]
        return replace(
            found,
            site=self.row(found.subject).get("site", ""),
            rank=(
                self.params.acq.lower() not in ("", marks.get("acq")),
                derived,
                "acq" in marks or "rec" in marks,
                *runs,
            ),
        )

    def _add(self, index: Index, subject: str, session: str, members: list[tuple[Named, File]]) -> None:
        """Also rank acquisitions that differ in nothing but their label: the finest voxels, then the name."""
        alike: dict[tuple[str, tuple[int, ...]], list[File]] = defaultdict(list)
        for name, file in members:
            if name.kind in MODALITIES:
                alike[name.kind, name.rank].append(file)
        places: dict[File, int] = {}
        for files in alike.values():
            if len({tuple(REPEATS.findall(file.name.lower())) for file in files}) == len(files) > 1:
                finest = sorted(files, key=lambda file: (_voxel(file), file.name, str(file)))
                places |= {file: place for place, file in enumerate(finest)}
        super()._add(
            index,
            subject,
            session,
            [(replace(name, rank=(*name.rank, places.get(file, 0))), file) for name, file in members],
        )

    def healthy(self, scan: Scan) -> str:
        """By participants.tsv, by its folder, or by ``unmasked``."""
        if person(scan.subject) in self._patients:
            return ""
        if self._by_table(scan):
            return f"{PARTICIPANTS} says {self.params.healthy}"
        return super().healthy(scan)

    @property
    def _wanted(self) -> set[str]:
        """The values of ``params.healthy`` in lower case."""
        values = self.params.healthy.partition("=")[2]
        return {value.strip().casefold() for value in values.split(",") if value.strip()}

    def _by_table(self, scan: Scan) -> bool:
        column = self.params.healthy.partition("=")[0].strip()
        return self.row(scan.subject).get(column, "").casefold() in self._wanted

    def _contradiction(self, scan: Scan) -> str:
        return "" if self._by_table(scan) else super()._contradiction(scan)

    def _unlisted(self, scan: Scan) -> bool:
        """Whether ``healthy`` is to say it of ``scan``, and participants.tsv does not have its subject."""
        return (
            bool(self.params.healthy and self.participants) and LESION not in scan.files and not self.row(scan.subject)
        )

    def _accounted(self, scan: Scan) -> bool:
        return self._unlisted(scan) or super()._accounted(scan)

    def faults(self) -> Iterator[Issue]:
        """Also a wrong column, and subjects that participants.tsv does not have."""
        column = self.params.healthy.partition("=")[0].strip()
        columns = list(next(iter(self.participants.values()), {}))
        if column and self.params.unmasked == "healthy":
            raise UserError(
                f"dataset.healthy={self.params.healthy} says who is healthy, and dataset.unmasked=healthy that everyone without a "
                "lesion mask is: leave one of them out."
            )
        if column and column not in columns:
            if not columns:
                raise UserError(
                    f"dataset.healthy={self.params.healthy} needs {self._root() / PARTICIPANTS}, which is missing or empty."
                )
            raise unknown(f"column of {self._root() / PARTICIPANTS} in dataset.healthy", column, columns)
        if column:
            there = {row.get(column, ""): row.get(column, "").casefold() for row in self.participants.values()}
            for value in self._wanted - set(there.values()):
                shown = sorted(there, key=lambda one: (difflib.SequenceMatcher(None, one, value).ratio() < 0.5, one))[
                    :20
                ]
                raise unknown(f"value of {column} in {self._root() / PARTICIPANTS} in dataset.healthy", value, shown)
        marks = [dict(REPEATS.findall(PurePosixPath(path).name.lower())) for path in self.index.files.volumes]
        labels = {found["acq"] for found in marks if "acq" in found}
        if self.params.acq and self.params.acq.lower() not in labels:
            raise unknown(f"acquisition in dataset.acq of {self._root()}", self.params.acq, labels)
        for scan in self.index.scans:
            if self.participants and not self.row(scan.subject) and not self.excluded(scan):
                message = f"{scan.subject} is not in {self._root() / PARTICIPANTS}: it has no age, sex or group"
                severity = issues.error if self._unlisted(scan) and not super().healthy(scan) else issues.warning
                yield severity("participants", scan.first, f"{message}; add a row, or use dataset.exclude.", scan.id)
        yield from super().faults()

    @property
    def expected(self) -> Expected:
        """Every sequence that is there, each on a grid of its own."""
        return replace(super().expected, one_grid=False, drawn_on=self.params.drawn_on.upper())


def _voxel(file: File) -> float:
    """The volume of a voxel, mm^3; that of a file that cannot be read is infinite, and its turn comes."""
    with suppress(UserError):
        return round(math.prod(nifti.read_header(file).zooms[:3]), 6)
    return math.inf
