"""``adbench data check``: hold a dataset on disk against what its adapter expects, and list what does not fit.

Headers by default (half a millisecond a file); with ``deep`` every voxel. The gzip trailer holds the length and CRC-32 of
the uncompressed bytes, so truncated files and equal volumes under two names are found without decoding anything.

An *error* makes numbers wrong or a case unusable, a *warning* is something to look at, *info* is known and harmless.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from adbench.context import Progress
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.folder_volumes import FolderVolumes
from adbench.datasets.adapters.volumes import IndexedVolumes, Scan
from adbench.datasets.base import Case, Dataset, Split
from adbench.datasets.io.filename_patterns import LESION
from adbench.datasets.splits import nothing_to_test, nothing_to_train
from adbench.datasets.store.pixels import ARRAYS
from adbench.datasets.validation import similarity
from adbench.datasets.validation.case_checks import Examined, examine
from adbench.datasets.validation.issues import SEVERITIES, Finding, Severity

REPORT_VERSION = 1


@dataclass
class Report:
    """What a check found.

    Attributes:
        dataset, root: what was checked.
        deep: whether voxels were read.
        cases: subjects and sessions.
        files: that were opened.
        findings: errors first, then by case.
    """

    dataset: str
    root: str
    deep: bool
    cases: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def counts(self) -> dict[Severity, int]:
        """Findings of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def exit_code(self) -> Literal[0, 1, 2]:
        """2 with errors, 1 with warnings, else 0."""
        counts = self.counts
        return 2 if counts["error"] else 1 if counts["warning"] else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"report_version": REPORT_VERSION, "counts": self.counts, **asdict(self)}


def check(dataset: Dataset, *, deep: bool = False, workers: int = 1, progress: Progress | None = None) -> Report:
    """Check ``dataset``.

    Args:
        dataset: with its root and parameters.
        deep: read every voxel, not headers alone.
        workers: cases at a time (threads: reading and inflating release the interpreter).
        progress: receives the number of cases done.

    Raises:
        UserError: the root as a whole is not usable: missing, another dataset, two datasets, a broken archive.
    """
    report = Report(dataset.info.name, str(dataset.root or ""), deep)
    progress = progress or Progress()
    if isinstance(dataset, IndexedVolumes):
        _volumes(dataset, report, workers, progress)
    else:
        _any(dataset, report, progress)
    copies = {finding.file for finding in report.findings if finding.code.startswith("duplicate-")}
    report.findings = [f for f in report.findings if f.code != "look-alike" or f.file not in copies]
    report.findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.case, f.file, f.code, f.message))
    return report


def _volumes(dataset: IndexedVolumes, report: Report, workers: int, progress: Progress) -> None:
    index = dataset.index
    report.cases = len(index.scans)
    report.findings += _on_disk(dataset)
    faults = list(dataset.faults())
    report.findings += faults
    if isinstance(dataset, FolderVolumes) and not any(fault.severity == "error" for fault in faults):
        for modality in dataset.available():
            report.findings += _roles(dataset, modality, {case.split for case in dataset.discover(modality)})
    report.findings += itertools.chain.from_iterable(_completeness(dataset, scan) for scan in index.scans)
    report.findings += _repeated_subjects(index.scans)
    phase = f"check {'voxels' if report.deep else 'headers'} of {dataset.info.name}"
    results: list[Examined] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(examine, scan, dataset.expected, report.deep) for scan in index.scans]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                results.append(future.result())
                progress.update(phase, done, len(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for result in results:
        report.files += result.files
        report.findings += result.findings
    report.findings += _equal_volumes(results)
    seen = [
        _Seen(r.scan.subject, str(r.scan.files[name]), name, *said) for r in results for name, said in r.prints.items()
    ]
    copies = {finding.file for finding in report.findings if finding.code == "duplicate-subject"}
    report.findings += _alike(sorted(seen, key=lambda image: image.file), copies)


def _on_disk(dataset: IndexedVolumes) -> Iterator[Finding]:
    """What lies there and is not used."""
    index = dataset.index
    for used, other in index.duplicates:
        yield Finding("warning", "duplicate-file", "", str(other), f"{other} repeats {used}, which is used")
    for path in index.unused:
        yield Finding("info", "unused-file", "", path, f"{path} is not used: its name is none of {dataset.info.name}'s")
    for link in index.walk.broken:
        yield Finding("warning", "broken-link", "", str(link), f"{link} is a link that leads nowhere")
    for partial in index.walk.partial:
        yield Finding("warning", "unfinished-download", "", str(partial), f"{partial} is an unfinished download")
    for archive in index.walk.archives:
        yield Finding(
            "info",
            "unopened-archive",
            "",
            str(archive),
            f"{archive} was not opened: unpack it with `adbench data unpack`",
        )


def _completeness(dataset: IndexedVolumes, scan: Scan) -> Iterator[Finding]:
    """Sequences and masks that are missing, and flags."""
    expected = dataset.expected
    anywhere = set(dataset.available())
    first = str(next(iter(scan.files.values())))
    for name in expected.sequences:
        if name in scan.files or name not in anywhere:  # whoever fetched T1 alone wants T1 alone
            continue
        if (scan.subject, name) in expected.known_missing:
            yield Finding("info", "known-missing", scan.id, first, f"{scan.id} has no {name}, as in the distribution")
        else:
            yield Finding(
                "warning", "missing-sequence", scan.id, first, f"{scan.id} has no {name} beside {', '.join(scan.files)}"
            )
    if expected.lesion and LESION not in scan.files:
        severity: Severity = "info" if dataset.unmasked_by_design(scan) else "warning"
        yield Finding(severity, "missing-mask", scan.id, first, f"{scan.id} has no lesion mask and is left out")
    elif why := dataset.left_out(scan):
        yield Finding("info", "left-out", scan.id, first, f"{scan.id} is left out: {why}")
    if not scan.sequences:
        yield Finding("error", "missing-image", scan.id, first, f"{scan.id} has a mask and no image: {first}")
    for flag in scan.flags:
        yield Finding("info", "flagged", scan.id, first, f"{scan.id} is flagged: {flag}")


def _repeated_subjects(scans: Sequence[Scan]) -> Iterator[Finding]:
    """Subjects that were scanned more than once: kept together in every split."""
    sessions: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        sessions[scan.subject].append(scan)
    for subject, several in sessions.items():
        if len(several) > 1:
            names = ", ".join(scan.session for scan in several)
            first = str(next(iter(several[0].files.values())))
            yield Finding(
                "info",
                "several-scans",
                subject,
                first,
                f"{subject} has {len(several)} scans ({names}), kept in one split",
            )


def _equal_volumes(results: Iterable[Examined]) -> Iterator[Finding]:
    """Images with equal content under different names: one person as two subjects, or one sequence as two."""
    owners: dict[tuple[int, int], list[tuple[Scan, str, str]]] = defaultdict(list)
    for result in results:
        for kind, checksum in result.checksums.items():
            if kind in result.scan.sequences:
                owners[checksum].append((result.scan, kind, str(result.scan.files[kind])))
    for same in owners.values():
        (scan, kind, file), *others = sorted(same, key=lambda one: one[2])
        for other, other_kind, other_file in others:
            if other.subject != scan.subject:
                what = f"the subjects {scan.subject} and {other.subject} are one"
                code = "duplicate-subject"
            else:
                what = (
                    f"{kind} and {other_kind} of {scan.id} are one"
                    if other_kind != kind
                    else f"a scan of {scan.subject} is there twice"
                )
                code = "duplicate-volume"
            yield Finding("error", code, other.id, other_file, f"{other_file} holds the same volume as {file}: {what}")


@dataclass(frozen=True)
class _Seen:
    """An image that was read: whose it is, its fingerprint and the hashes of its slices."""

    subject: str
    file: str
    modality: str
    coarse: np.ndarray
    hashes: np.ndarray


def _alike(images: Sequence[_Seen], known: Container[str] = ()) -> Iterator[Finding]:
    """Images of different subjects that share slices, and images of one modality that look like one person.

    Args:
        images: of all modalities; of two that are one the later is named first.
        known: files that are told to be copies already.
    """
    for (first, second), count in similarity.shared_slices([(seen.subject, seen.hashes) for seen in images]).items():
        one, other = images[first], images[second]
        if other.file not in known:
            message = (
                f"{other.file} shares {count} of {len(other.hashes)} slices with {one.file}, pixel by pixel: the subjects "
                f"{one.subject} and {other.subject} are one"
            )
            yield Finding("error", "duplicate-subject", other.subject, other.file, message)
    for modality in sorted({seen.modality for seen in images}):
        group = [seen for seen in images if seen.modality == modality]
        prints = similarity.Print(
            [seen.subject for seen in group], np.stack([seen.coarse for seen in group]), [seen.hashes for seen in group]
        )
        for pair in similarity.alike(prints, prints):
            if pair.one < pair.other:
                one, other = group[pair.one], group[pair.other]
                what = "are one scan, hardly changed" if pair.certain else "may be one person"
                message = (
                    f"{other.file} looks like {one.file} (correlation {pair.correlation:.4f}): the subjects {one.subject} "
                    f"and {other.subject} {what}"
                )
                severity: Severity = "error" if pair.certain else "warning"
                yield Finding(severity, "look-alike", other.subject, other.file, message)


def _any(dataset: Dataset, report: Report, progress: Progress) -> None:
    """Any other dataset: its own complaints, and with ``deep`` (or where that is quick) those of reading every case."""
    report.findings += dataset.faults()
    loads: list[tuple[Case, str]] = []
    for modality in dataset.available():
        cases = dataset.found(modality)
        report.cases = max(report.cases, len(cases))
        report.files += sum(len(case.files) for case in cases)
        for line in dataset.exclusions(modality):
            report.findings.append(Finding("info", "left-out", "", "", f"{modality}: {line}"))
        if isinstance(dataset, Folder):
            report.findings += dataset.sizes(modality)
            report.findings += _roles(dataset, modality, {case.split for case in cases})
        if report.deep or dataset.quick:
            loads += [(case, modality) for case in cases]
    seen: list[_Seen] = []
    for done, (case, modality) in enumerate(loads, 1):
        stack, findings = dataset.examine(case, modality)
        for finding in findings:
            where = "" if finding.severity == "error" else f"{finding.file or f'{case.id} {modality}'}: "
            report.findings.append(replace(finding, message=f"{where}{finding.message}"))
        if stack is not None and len(stack.slices):
            name = str(case.files[0]) if case.files else case.id
            coarse = similarity.fingerprint(stack.image, stack.brain, stack.slices)
            hashes = similarity.slice_hashes(stack.image.astype(ARRAYS["images"]))
            seen.append(_Seen(case.subject, name, modality, coarse, hashes))
        progress.update(f"check slices of {dataset.info.name}", done, len(loads))
    report.findings += _alike(seen)


def _roles(dataset: Dataset, modality: str, filled: set[Split]) -> Iterator[Finding]:
    """Roles that nobody has. Other data may train or be tested, so this may be as it should."""
    where = str(dataset.root)
    if "train" not in filled:
        yield Finding("warning", "no-train", "", where, nothing_to_train(modality, where))
    if "test" not in filled:
        yield Finding("warning", "no-test", "", where, nothing_to_test(modality, where, " with a lesion mask"))
