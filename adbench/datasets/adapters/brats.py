"""BraTS'21: four sequences of glioma patients, skull-stripped, with masks (Baid et al. 2021, arXiv:2107.02314)."""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree

from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.adapters.volume_reader import VolumeParams
from adbench.datasets.adapters.volumes import CHOOSING, IndexedVolumes
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.filename_patterns import Named
from adbench.datasets.io.patient_names import second_scan
from adbench.errors import UserError
from adbench.params import ParamSet, param
from adbench.utils import limits
from adbench.utils.plain_files import read_plain

_OLD = re.compile(r"BraTS2021_(\d{5})(?!\d)", re.IGNORECASE)
_NEW = re.compile(r"BraTS-GLI-(\d{5})-(\d{3})(?!\d)", re.IGNORECASE)
_XML = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


class BraTSParams(VolumeParams):
    """The recipe, how subjects are divided, and what becomes of second scans."""

    second_scans: Literal["leave-out", "use"] = param(
        "leave-out",
        "the numbers 01538 to 01656, probably second scans of other patients, where no mapping file says whose",
        source="adbench",
    )


class BraTS21(IndexedVolumes):
    """Glioma, T1, contrast-enhanced T1, T2 and FLAIR on one grid without skull; the lesion is the whole tumour, mask > 0.

    Training takes the tumour-free slices of the training subjects: not healthy anatomy, since a tumour displaces tissue
    far away from it. An uncompressed tar of the whole dataset is read in place.

    119 numbers are very probably second scans of patients who have another number too (see :func:`second_scan`). The table
    ``BraTS2023_2017_GLI_Mapping.xlsx`` of BraTS 2023 settles whose: with it below the root (or as CSV, or beside a tar) they
    are further scans of their patient. Without it they take no role unless ``second_scans`` is "use".
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="brats21",
        version="1",
        modalities=("FLAIR", "T1", "T1CE", "T2"),
        licence="registration required, no redistribution",
        obtain="https://www.synapse.org/brats2021 (task 1): register, then download the training data",
        layout=(
            "BraTS2021_{nnnnn}_{t1|t1ce|t2|flair|seg}.nii.gz in folders of any name and depth, or in one uncompressed tar"
        ),
        protocol="brats21",
        citation="Baid et al. 2021, arXiv:2107.02314",
    )
    Params: ClassVar[type[ParamSet]] = BraTSParams
    params: BraTSParams
    choosing: ClassVar[tuple[str, ...]] = (*CHOOSING, "second_scans")
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=("T1", "T1CE", "T2", "FLAIR"),
        lesion=True,
        labels={0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
        shape=(240, 240, 155),
        zooms=(1.0, 1.0, 1.0),
        orientation="LPS",
        integers=True,
        zero_background=True,
        skull=False,
    )

    @cached_property
    def patients(self) -> dict[str, tuple[str, str]]:
        """BraTS'21 number -> number and visit in BraTS 2023, by the mapping tables that are there.

        Raises:
            UserError: a mapping table that cannot be read.
        """
        root = self._root()
        folder = root.parent.iterdir() if root.is_file() else root.rglob("*")
        return {
            old: new
            for path in sorted(folder)
            if "mapping" in path.name.lower()
            and path.suffix.lower() in (".xlsx", ".csv", ".tsv")
            and path.name[0] != "."
            for old, new in read_mapping(path).items()
        }

    def named(self, path: str) -> Named | None:
        """By the name; a second scan that the mapping knows is a session of its patient."""
        found = super().named(path)
        if found is None:
            return None
        number = found.subject[-5:]
        patient, _ = self.patients.get(number, (number, ""))
        return found if patient == number else replace(found, subject=f"BraTS2021_{patient}", session=number)

    def left_out(self, scan: Scan) -> str:
        """Cases without mask, and second scans of unknown patients."""
        if why := super().left_out(scan):
            return why
        if second_scan(scan.subject) and scan.subject[-5:] not in self.patients and self.params.second_scans != "use":
            return (
                "it is probably a second scan of another patient (numbers 01538 to 01656): put "
                "BraTS2023_2017_GLI_Mapping.xlsx below the data root, or say --set dataset.second_scans=use"
            )
        return ""


def read_mapping(path: Path) -> dict[str, tuple[str, str]]:
    """BraTS'21 number -> number and visit in BraTS 2023, from each row of a table that names both.

    Args:
        path: an .xlsx as distributed, or text with one row a line.

    Raises:
        UserError: it cannot be read, or no row names both.
    """
    found = {}
    try:
        rows = (
            _rows(path)
            if path.suffix.lower() == ".xlsx"
            else read_plain(path.resolve(), limits.TABLE_BYTES).decode().splitlines()
        )
        for row in rows:
            old, new = _OLD.search(row), _NEW.search(row)
            if old and new:
                found[old[1]] = (new[1], new[2])
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        ElementTree.ParseError,
    ) as error:
        raise UserError(f"The mapping table {path} cannot be read ({error}): copy it again, or move it away.") from None
    if not found:
        raise UserError(
            f"No row of {path} names a case of BraTS'21 (BraTS2021_00000) and of BraTS 2023 (BraTS-GLI-00000-000): copy the "
            "mapping table again, or move it away."
        )
    return found


def _rows(path: Path) -> list[str]:
    """The text of every row of every sheet of an .xlsx."""
    with zipfile.ZipFile(path) as file:
        limits.check(path, "unpacks to", sum(info.file_size for info in file.infolist()), limits.TABLE_BYTES)
        names = file.namelist()
        shared = []
        if "xl/sharedStrings.xml" in names:
            strings = ElementTree.fromstring(file.read("xl/sharedStrings.xml"))
            shared = ["".join(text.itertext()) for text in strings.iter(f"{_XML}si")]
        sheets = [ElementTree.fromstring(file.read(name)) for name in names if name.startswith("xl/worksheets/sheet")]
    rows = []
    for row in (row for sheet in sheets for row in sheet.iter(f"{_XML}row")):
        cells = [(cell.get("t"), "".join(cell.itertext())) for cell in row.iter(f"{_XML}c")]
        rows.append(" ".join(shared[int(text)] if kind == "s" and text else text for kind, text in cells))
    return rows
