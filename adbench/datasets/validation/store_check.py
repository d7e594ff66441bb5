"""``adbench data check --store``: compare every case of the prepared stores with its SHA-256."""

from __future__ import annotations

from pathlib import Path

from adbench.context import Progress
from adbench.datasets.base import Dataset
from adbench.datasets.issues import SEVERITIES, Issue
from adbench.datasets.pixels import PREPARE_AGAIN
from adbench.datasets.store import case_file
from adbench.datasets.store.prepare import store_folder
from adbench.datasets.store.slice_store import SliceStore
from adbench.datasets.validation.check import CheckReport
from adbench.errors import UserError


def check_stores(dataset: Dataset, cache: Path, report: CheckReport, progress: Progress | None = None) -> None:
    """Add to ``report`` what is wrong with the stores that a run on ``dataset`` would open.

    Args:
        dataset: with its root and parameters.
        cache: folder of all stores.
        report: receives an error a damaged case, and information on modalities that were not prepared yet.
        progress: receives the number of stacks read.
    """
    progress = progress or Progress()
    for modality in dataset.available():
        _, folder = store_folder(dataset, modality, cache)
        if not folder.exists():
            what = f"{modality} is not prepared with these parameters: there is no {folder}"
            report.findings.append(Issue("info", "no-store", "", str(folder), what))
            continue
        try:
            store = SliceStore.open(folder)
            stacks = 3 * len(store.cases)
            for case_id, file in zip((case.id for case in store.cases), store.files, strict=True):
                if case_file.read(file) is None:
                    what = f"{file}: what it says of case {case_id} was changed after preparation. Delete {file}, then "
                    what += f"{PREPARE_AGAIN} the case again."
                    report.findings.append(Issue("error", "damaged-store", case_id, str(folder), what))
            for done, (case, fault) in enumerate(store.faults(), 1):
                if fault:
                    report.findings.append(Issue("error", "damaged-store", case, str(folder), fault))
                progress.update(f"check the store of {modality}", done, stacks)
        except UserError as error:
            report.findings.append(Issue("error", "damaged-store", "", str(folder), str(error)))
    report.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
