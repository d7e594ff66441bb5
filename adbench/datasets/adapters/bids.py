"""Any BIDS dataset: cohorts that are healthy by their participants.tsv, masks in derivatives (bids.neuroimaging.io)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar

from adbench.datasets import issues
from adbench.datasets.adapters.own_volumes import REPEATS, OwnParams, OwnVolumes
from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.filename_patterns import LESION, MODALITIES, Named, common_name, person
from adbench.datasets.io.participants import PARTICIPANTS
from adbench.datasets.issues import Issue
from adbench.errors import UserError, unknown
from adbench.params import ParamSet, param


class BidsParams(OwnParams):
    """The recipe, how subjects are divided, and who is healthy."""

    healthy: str = param(
        "",
        "column=value[,value] of participants.tsv: subjects with such a row are healthy, e.g. group=control; empty: nobody "
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


class Bids(OwnVolumes):
    """T1w, T2w, FLAIR, PDw, dwi, trace and adc of a BIDS dataset at any depth, with lesion and brain masks of derivatives.

    Of several runs or acquisitions of one session the one with a lesion mask is used, else the plain one, else the lowest run,
    and the others are listed. A mask of one run is never that of another.
    ``derivatives`` give masks; their images are used where the raw ones are not there. Sites, age and sex are read from
    participants.tsv.
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
            found, site=self.row(found.subject).get("site", ""), rank=(derived, "acq" in marks or "rec" in marks, *runs)
        )

    def healthy(self, scan: Scan) -> str:
        """By participants.tsv, by its folder, or by ``unmasked``."""
        column, _, values = self.params.healthy.partition("=")
        if person(scan.subject) in self._patients:
            return ""
        wanted = {value.strip().casefold() for value in values.split(",") if value.strip()}
        if wanted and self.row(scan.subject).get(column.strip(), "").casefold() in wanted:
            return f"{PARTICIPANTS} says {self.params.healthy}"
        return super().healthy(scan)

    def faults(self) -> Iterator[Issue]:
        """Also a wrong column, and subjects that participants.tsv does not have."""
        column = self.params.healthy.partition("=")[0].strip()
        columns = list(next(iter(self.participants.values()), {}))
        if column and column not in columns:
            if not columns:
                raise UserError(
                    f"dataset.healthy={self.params.healthy} needs {self._root() / PARTICIPANTS}, which is missing or empty."
                )
            raise unknown(f"column of {self._root() / PARTICIPANTS} in dataset.healthy", column, columns)
        for scan in self.index.scans:
            if self.participants and not self.row(scan.subject) and not self.excluded(scan):
                message = f"{scan.subject} is not in {self._root() / PARTICIPANTS}: it has no age, sex or group"
                severity = issues.error if column and LESION not in scan.files else issues.warning
                if severity is issues.error and super().healthy(scan):
                    severity = issues.warning
                yield severity("participants", scan.first, f"{message}; add a row, or use dataset.exclude.", scan.id)
        yield from super().faults()

    @property
    def expected(self) -> Expected:
        """Every sequence that is there, each on a grid of its own."""
        return replace(super().expected, one_grid=False, drawn_on=self.params.drawn_on.upper())
