"""``adbench data check``: compare a dataset on disk with what its adapter expects, and list what does not fit.

Headers by default (half a millisecond a file); with ``deep`` every voxel. The gzip trailer holds the length and CRC-32 of
the uncompressed bytes, so truncated files and equal volumes under two names are found without decoding anything.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adbench.context import Progress
from adbench.datasets import issues
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.folder_volumes import FolderVolumes
from adbench.datasets.adapters.lesion_masks import not_there
from adbench.datasets.adapters.scans import Scan
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import Case, Dataset, Split
from adbench.datasets.io import nifti_header
from adbench.datasets.io.archive import File
from adbench.datasets.io.mask_names import LESION
from adbench.datasets.io.patient_names import person
from adbench.datasets.issues import SEVERITIES, Issue, Severity
from adbench.datasets.splits import nothing_to_test, nothing_to_train
from adbench.datasets.store import similarity
from adbench.datasets.store.case_file import described
from adbench.datasets.store.prepare import store_folder
from adbench.datasets.store.slice_store import IncompleteStore, SliceStore
from adbench.datasets.validation.case_checks import CheckedCase, Use, check_case
from adbench.errors import UserError

REPORT_VERSION = 1


@dataclass
class CheckReport:
    """The report of ``adbench data check``.

    Attributes:
        cases: subjects and sessions that are not excluded.
        excluded: those that are.
        files: that were opened.
        issues: errors first, then by case.
    """

    dataset: str
    root: str
    deep: bool
    cases: int = 0
    files: int = 0
    excluded: int = 0
    issues: list[Issue] = field(default_factory=list)

    @property
    def counts(self) -> dict[Severity, int]:
        """Issues of each severity."""
        found = Counter(issue.severity for issue in self.issues)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def exit_code(self) -> Literal[0, 1, 2]:
        """2 with errors, 1 with warnings, else 0."""
        counts = self.counts
        return 2 if counts["error"] else 1 if counts["warning"] else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; the key of the issues is ``findings``."""
        named = asdict(self)
        return {"report_version": REPORT_VERSION, "counts": self.counts, "findings": named.pop("issues"), **named}


def check(dataset: Dataset, *, deep: bool = False, workers: int = 1, progress: Progress | None = None) -> CheckReport:
    """Check ``dataset``.

    Args:
        dataset: with its root and parameters.
        deep: read every voxel, not headers alone.
        workers: cases at a time (threads: reading and inflating release the interpreter).
        progress: receives the number of cases done.

    Raises:
        UserError: the root as a whole is not usable: missing, another dataset, two datasets, a broken archive.
    """
    report = CheckReport(dataset.info.name, str(dataset.root or ""), deep)
    progress = progress or Progress()
    if isinstance(dataset, IndexedVolumes):
        _check_volumes(dataset, report, workers, progress)
    else:
        _check_stacks(dataset, report, progress)
    copies = {issue.file for issue in report.issues if issue.code.startswith("duplicate-")}
    report.issues = [f for f in report.issues if f.code != "look-alike" or f.file not in copies]
    report.issues.sort(key=lambda f: (SEVERITIES.index(f.severity), f.case, f.file, f.code, f.message))
    return report


def _check_volumes(dataset: IndexedVolumes, report: CheckReport, workers: int, progress: Progress) -> None:
    scans = dataset.kept
    report.cases, report.excluded = len(scans), len(dataset.index.scans) - len(scans)
    left_out = [scan for scan in dataset.index.scans if dataset.excluded(scan)]
    what = "is left out: it is in dataset.exclude"
    report.issues += [issues.info("left-out", scan.first, f"{scan.id} {what}", scan.id) for scan in left_out]
    report.issues += _unused_files(dataset, {file for scan in left_out for file in scan.files.values()})
    faults = list(dataset.faults())
    report.issues += faults
    if isinstance(dataset, FolderVolumes) and not any(fault.severity == "error" for fault in faults):
        for modality in dataset.available():
            usable = dataset.usable(modality)[0]
            report.issues += _empty_roles(dataset, modality, {dataset.roles[scan.subject] for scan in usable})
    available, expected = dataset.available(), dataset.expected
    wrong = {fault.case for fault in faults if fault.severity == "error"}
    report.issues += itertools.chain.from_iterable(_completeness(dataset, scan, available, wrong) for scan in scans)
    report.issues += _repeated_subjects(scans)
    companions: dict[str, str] = {}
    if report.deep:
        by_tool = dataset.params.brain not in ("auto", "background")
        with suppress(UserError):  # no image can be read: said of each
            companions = {modality: dataset.companion_of(modality) for modality in available}
            if expected.skull is not None:
                expected = replace(expected, skull=by_tool or dataset.skull)
    use = Use(dataset.votes, dataset.params.brain, companions)
    phase = f"check {'voxels' if report.deep else 'headers'} of {dataset.info.name}"
    cases: list[CheckedCase] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for case in pool.map(lambda scan: check_case(dataset.as_used(scan), expected, report.deep, use), scans):
            cases.append(case)
            progress.update(phase, len(cases), len(scans))
    report.files = sum(len(case.scan.files) for case in cases)
    report.issues += itertools.chain.from_iterable(case.issues for case in cases)
    asked = getattr(dataset.params, "lesion_labels", ())
    if any(fault.code == "known-layout" and fault.severity == "warning" for fault in faults) and report.deep:
        held = ", ".join(map(str, sorted({label for case in cases for labels in case.labels for label in labels})))
        what = f"The lesion masks in {dataset.root} hold the labels {held or '(none)'}"
        report.issues.append(issues.info("label", dataset.root, what))
    if what := not_there(asked, itertools.chain.from_iterable(case.labels for case in cases), dataset.root):
        report.issues.append(issues.error("label", dataset.root, what))
    report.issues += _equal_volumes(cases)
    images = [
        _Image(c.scan.subject, str(c.scan.files[name]), name, *found) for c in cases for name, found in c.prints.items()
    ]
    copies = {issue.file for issue in report.issues if issue.code == "duplicate-subject"}
    report.issues += _look_alikes(sorted(images, key=lambda image: image.file), copies)


def _check_stacks(dataset: Dataset, report: CheckReport, progress: Progress) -> None:
    """Any other dataset: its own complaints, and with ``deep`` (or where that is quick) those of reading every case."""
    faults = list(dataset.faults())
    report.issues += faults
    loads: list[tuple[Case, str]] = []
    for modality in _there(dataset, faults):
        cases = dataset.found(modality)
        report.issues += dataset.scales(modality)
        report.cases = max(report.cases, len(cases))
        report.files += sum(len(case.files) for case in cases)
        report.issues += [issues.info("left-out", "", f"{modality}: {why}") for why in dataset.exclusions(modality)]
        if isinstance(dataset, Folder):
            report.excluded = len(dataset.excluded_cases)
            report.issues += dataset.sizes(modality)
            report.issues += _empty_roles(dataset, modality, {case.split for case in cases})
        if report.deep or dataset.quick:
            loads += [(case, modality) for case in cases]
    images: list[_Image] = []
    for done, (case, modality) in enumerate(loads, 1):
        stack, found = dataset.examine(case, modality)
        for issue in found:
            where = "" if issue.severity == "error" else f"{issue.file or f'{case.id} {modality}'}: "
            report.issues.append(replace(issue, message=f"{where}{issue.message}"))
        if stack is not None and len(stack.slices):
            coarse = similarity.fingerprint(stack.image, stack.brain, stack.slices)
            hashes = similarity.slice_hashes(stack.image.astype(np.float16))  # as a store keeps them
            images.append(_Image(case.subject, str(case.files[0] if case.files else case.id), modality, coarse, hashes))
        progress.update(f"check slices of {dataset.info.name}", done, len(loads))
    report.issues += _look_alikes(images)


def _there(dataset: Dataset, faults: Sequence[Issue]) -> tuple[str, ...]:
    """The modalities; none where ``faults`` say why there is none."""
    try:
        return dataset.available()
    except UserError:
        if not any(fault.severity == "error" for fault in faults):
            raise
        return ()


def _unused_files(dataset: IndexedVolumes, excluded: Container[File]) -> Iterator[Issue]:
    """What lies there and is not used, but for copies of files of ``excluded`` cases."""
    index = dataset.index
    for used, other in index.duplicates:
        if used in excluded:
            continue
        yield issues.warning("duplicate-file", other, f"{other} repeats {used}, which is used")
    for path in index.unused:
        yield issues.info("unused-file", path, f"{path} is not used: its name is none of {dataset.info.name}'s")
    for header in index.files.pairs:
        what = f"{header} is the header of a pair of files: {nifti_header.pair_way_out(header.name)}"
        yield issues.warning("unused-file", header, what)
    for link in index.files.broken:
        yield issues.warning("broken-link", link, f"{link} is a link that leads nowhere")
    for partial in index.files.partial:
        yield issues.warning("unfinished-download", partial, f"{partial} is an unfinished download")
    for archive in index.files.archives:
        what = f"{archive} was not opened: unpack it with `adbench data unpack`"
        yield issues.info("unopened-archive", archive, what)


def _completeness(
    dataset: IndexedVolumes, scan: Scan, available: Container[str], wrong: Container[str]
) -> Iterator[Issue]:
    """Sequences and masks that are missing, and flags; of the cases ``wrong`` an error says why they are not used."""
    expected, first, case = dataset.expected, scan.first, scan.id
    for name in expected.sequences:
        if name in scan.files or name not in available:  # a sequence that no case has was not downloaded
            continue
        if (scan.subject.upper(), name) in expected.known_missing:
            yield issues.info("known-missing", first, f"{case} has no {name}, as in the distribution", case)
        else:
            what = f"{case} has no {name} beside {', '.join(scan.files)}"
            yield issues.warning("missing-sequence", first, what, case)
    if expected.lesion and LESION not in scan.files:
        severity = issues.info if dataset.unmasked_by_design(scan) else issues.warning
        yield severity("missing-mask", first, f"{case} has no lesion mask and is left out", case)
    elif case not in wrong and (why := dataset.left_out(scan)):
        yield issues.info("left-out", first, f"{case} is left out: {why}", case)
    if not scan.sequences:
        yield issues.error("missing-image", first, f"{case} has a mask and no image: {first}", case)
    for flag in scan.flags:
        yield issues.info("flagged", first, f"{case} is flagged: {flag}", case)


def _repeated_subjects(scans: Sequence[Scan]) -> Iterator[Issue]:
    """Patients who were scanned more than once, or have several names: kept together in every split."""
    people: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        people[person(scan.subject)].append(scan)
    for several in people.values():
        subject, names = several[0].subject, [scan.session for scan in several]
        if others := sorted({scan.subject for scan in several} - {subject}):
            what = f"{subject} and {' and '.join(others)} are one patient under several names, kept in one split"
            yield issues.warning("several-scans", several[0].first, what, subject)
        elif len(several) > 1:
            what = f"{subject} has {len(several)} scans ({', '.join(names)}), kept in one split"
            yield issues.info("several-scans", several[0].first, what, subject)


def _equal_volumes(cases: Iterable[CheckedCase]) -> Iterator[Issue]:
    """Images with equal content under different names: one person as two subjects, or one sequence as two."""
    owners: dict[tuple[int, int], list[tuple[str, str, Scan]]] = defaultdict(list)
    for case in cases:
        for kind in case.scan.sequences:
            if kind in case.checksums:
                owners[case.checksums[kind]].append((str(case.scan.files[kind]), kind, case.scan))
    for same in owners.values():
        (file, kind, scan), *others = sorted(same, key=lambda one: one[0])
        for other_file, other_kind, other in others:
            code: issues.Code = "duplicate-volume"
            if other.subject != scan.subject:
                code, what = "duplicate-subject", f"the subjects {scan.subject} and {other.subject} are one"
            elif other_kind != kind:
                what = f"{kind} and {other_kind} of {scan.id} are one"
            else:
                what = f"a scan of {scan.subject} is there twice"
            yield issues.error(code, other_file, f"{other_file} holds the same volume as {file}: {what}", other.id)


@dataclass(frozen=True)
class _Image:
    """An image that was read: whose it is, its fingerprint and the hashes of its slices."""

    subject: str
    file: str
    modality: str
    coarse: np.ndarray
    hashes: np.ndarray


def _look_alikes(images: Sequence[_Image], known: Container[str] = ()) -> Iterator[Issue]:
    """Images of different subjects that share slices, and images of one modality that look like one person.

    Args:
        images: of all modalities; of two that are one the later is named first.
        known: files that are known to be copies already.
    """
    for (first, second), count in similarity.shared_slices([(image.subject, image.hashes) for image in images]).items():
        one, other = images[first], images[second]
        if other.file not in known:
            what = (
                f"{other.file} shares {count} of {len(other.hashes)} slices with {one.file}, pixel by pixel: the subjects "
                f"{one.subject} and {other.subject} are one"
            )
            yield issues.error("duplicate-subject", other.file, what, other.subject)
    for modality in sorted({image.modality for image in images}):
        group = [image for image in images if image.modality == modality]
        prints = similarity.Print(
            [image.subject for image in group],
            np.stack([image.coarse for image in group]),
            [image.hashes for image in group],
        )
        for pair in similarity.alike(prints, prints):
            if pair.one < pair.other:
                one, other = group[pair.one], group[pair.other]
                severity = issues.error if pair.certain else issues.warning
                what = (
                    f"{other.file} looks like {one.file} (correlation {pair.correlation:.4f}): the subjects {one.subject} "
                    f"and {other.subject} {'are one scan, hardly changed' if pair.certain else 'may be one person'}"
                )
                yield severity("look-alike", other.file, what, other.subject)


def _empty_roles(dataset: Dataset, modality: str, filled: set[Split]) -> Iterator[Issue]:
    """Roles without a case. Other data may train or be tested, so this may be as it should."""
    where = str(dataset.root)
    if "train" not in filled:
        yield issues.warning("no-train", where, nothing_to_train(modality, where))
    if "test" not in filled:
        yield issues.warning("no-test", where, nothing_to_test(modality, where, " with a lesion mask"))


def check_stores(dataset: Dataset, cache: Path, report: CheckReport, progress: Progress | None = None) -> None:
    """Compare every case of the stores that a run on ``dataset`` would open with its SHA-256 (``data check --store``).

    Args:
        dataset: with its root and parameters.
        cache: folder of all stores.
        report: receives an error a damaged case, and information on modalities that were not prepared yet.
        progress: receives the number of stacks read.
    """
    progress = progress or Progress()
    for modality in dataset.available():
        try:
            _, folder = store_folder(dataset, modality, cache)
        except IncompleteStore as error:
            report.issues.append(issues.info("no-store", cache, f"{modality}: {error}"))
            continue
        if not folder.exists():
            what = f"{modality} is not prepared with these parameters: there is no {folder}"
            report.issues.append(issues.info("no-store", folder, what))
            continue
        try:
            store = SliceStore.open(folder)
            for index, case in enumerate(store.cases):
                try:
                    described(store, index)
                except UserError as error:
                    report.issues.append(issues.error("damaged-store", folder, str(error), case.id))
            stacks = 3 * len(store.cases)
            for done, (case_id, fault) in enumerate(store.faults(), 1):
                if fault:
                    report.issues.append(issues.error("damaged-store", folder, fault, case_id))
                progress.update(f"check the store of {modality}", done, stacks)
        except UserError as error:
            report.issues.append(issues.error("damaged-store", folder, str(error)))
    report.issues.sort(key=lambda issue: SEVERITIES.index(issue.severity))
