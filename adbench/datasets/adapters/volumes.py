"""Datasets of NIfTI volumes: find the files at any depth, group them by subject, give roles, read one case.

An adapter says what its file names mean and what its volumes are like (:class:`Expected`); everything else is here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

from adbench.datasets import issues, splits
from adbench.datasets.adapters.exclusion import excluded
from adbench.datasets.adapters.lesion_masks import named_by, no_majority, not_one, words_for
from adbench.datasets.adapters.scans import Index, Scan, none_usable, nothing_found, several_sets
from adbench.datasets.adapters.volume_reader import ReadVolumes
from adbench.datasets.base import Case, Split
from adbench.datasets.io.archive import File, refuse_unreadable
from adbench.datasets.io.file_index import FoundFiles, find_files, plain, same_content
from adbench.datasets.io.filename_patterns import CHANNELS, SETS, UNCLEAR, Named, recognise, release_among
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.io.participants import Rows, groups_of, read_participants
from adbench.datasets.io.patient_names import folded, person
from adbench.datasets.issues import Issue
from adbench.errors import UserError, unknown

CHOOSING = ("exclude", "exclude_flagged", "val_share", "test_share", "split_seed", "folds", "fold")


class IndexedVolumes(ReadVolumes):
    """A dataset of volumes that are recognised by their names."""

    tars: ClassVar[bool] = False
    choosing: ClassVar[tuple[str, ...]] = CHOOSING

    @cached_property
    def families(self) -> frozenset[str]:
        """Keys of :data:`SETS` that this dataset reads; none for data of your own."""
        return frozenset(family for family, known in SETS.items() if known.dataset == self.info.name)

    def named(self, path: str) -> Named | None:
        """Parse a path below the root; None when the file is not of this dataset."""
        names = (SETS[family].named(family, path) for family in self.families)
        return next((found for found in names if found), None)

    def flags_of(self, subject: str) -> tuple[str, ...]:
        """Known remarks on ``subject``."""
        return ()

    def left_out(self, scan: Scan) -> str:
        """Why ``scan`` is not used, or "" when it is."""
        if self.expected.lesion and LESION not in scan.files:
            return "it has no lesion mask, so it can neither be trained on nor be scored"
        return ""

    def healthy(self, scan: Scan) -> str:
        """Why ``scan`` counts as healthy without a lesion mask; "" where nothing says so."""
        return self.expected.healthy

    @cached_property
    def participants(self) -> Rows:
        """What ``participants.tsv`` in the root says of everyone; empty without it.

        Raises:
            UserError: from :func:`adbench.datasets.io.participants.read_participants`.
        """
        return read_participants(self._root())

    def row(self, subject: str) -> dict[str, str]:
        """Row of ``subject`` in the table of participants; empty where there is none."""
        return self.participants.get(folded(subject), {})

    def unmasked_by_design(self, scan: Scan) -> bool:
        """Whether the distribution gives no mask for ``scan``."""
        folder = self.distributed.unlabelled
        return bool(folder) and PurePosixPath(str(scan.first)).parent.name.lower() == folder.lower()

    # -- what is there -----------------------------------------------------------------------------------------------

    def available(self) -> tuple[str, ...]:
        """The modalities found, in the order of ``info.modalities``.

        Raises:
            UserError: from :attr:`index`, or there are masks and no image.
        """
        there = {kind for scan in self.kept or self.index.scans for kind in scan.sequences}
        if not there:
            raise UserError(self._only_masks())
        return tuple(name for name in self.info.modalities if name in there)

    def _only_masks(self) -> str:
        index = self.index
        first = next((file for scan in index.scans for file in scan.files.values()), None) or index.unclear[0][1]
        other = f"; {index.unused[0]} has no name of {self.info.name}'s" if index.unused else ""
        return f"There are masks ({first}) and no image in {self.root}{other}. {self._expected_there}"

    @cached_property
    def files(self) -> FoundFiles:
        """Everything below the root.

        Raises:
            UserError: the root is missing or no folder, or an archive is half downloaded or encrypted.
        """
        return find_files(self._root(), tars=self.tars)

    @cached_property
    def index(self) -> Index:
        """Everything below the root, by name alone; nothing is opened but tar archives, and files of one name to compare them.

        Raises:
            UserError: nothing of this dataset is there (says what is), two datasets are mixed, an archive is half
                downloaded or encrypted.
        """
        root, found = self._root(), self.files
        families: dict[str, list[str]] = defaultdict(list)
        groups: dict[tuple[str, str], list[tuple[Named, File]]] = defaultdict(list)
        spelled: dict[tuple[str, str], tuple[str, str]] = {}  # the first spelling of a scan that is written in several
        unused = []
        for path, file in found.volumes.items():
            name = self.named(path)
            if name is not None and name.kind:
                scan = name.subject, name.session
                groups[spelled.setdefault((scan[0].casefold(), scan[1].casefold()), scan)].append((name, file))
            else:
                unused.append(path)
            if known := recognise(path):
                families[known.family].append(path)
        others = {family: paths for family, paths in families.items() if family not in self.families}
        if not groups:
            others = {} if getattr(self.params, "image_pattern", "") else others  # the names were described, wrongly
            raise nothing_found(
                self.info.name, self.families, root, found, others, self._expected_there, self._patterned
            )
        if others and self.families:
            raise several_sets(self.info.name, root, families)
        index = Index([], [], [], [], [], [], unused, found)
        for (subject, session), members in sorted(groups.items()):
            self._add(index, subject, session, sorted(members, key=lambda m: (m[0].rank, m[1].name, str(m[1]))))
        return index

    @cached_property
    def _release(self) -> str:
        """What to do where the files are those of a known release; "" where they are not."""
        known = SETS.get(release_among(self.index.files.volumes))
        return f"this looks like {known.title}, whose names --dataset {known.dataset} knows" if known else ""

    def _add(self, index: Index, subject: str, session: str, members: list[tuple[Named, File]]) -> None:
        """Enter the scan that ``members`` make, the file to be used before others of its kind."""
        site = next((name.site for name, _ in members if name.site), "")
        files: dict[str, File] = {}
        channels: dict[str, int] = {}
        masks: list[File] = []  # every lesion mask, each rater's vote
        copies: list[tuple[File, File]] = []
        scan = Scan(subject, session, site, files, self.flags_of(subject), channels)
        ranks: dict[str, tuple[int, ...]] = {}
        differ = False
        for name, file in members:
            if name.kind == UNCLEAR:
                index.unclear.append((scan, file))
                continue
            first, rank = files.setdefault(name.kind, file), ranks.setdefault(name.kind, name.rank)
            if first is not file and name.rank > rank:
                same = same_content(first, file)
                (index.duplicates if same else index.passed_over).append((first, file))
                continue
            if name.kind == LESION:
                masks.append(file)
            if first is file:
                continue
            if not same_content(first, file):
                index.conflicts.append((scan, first, file, name.kind))
                differ = differ or name.kind == LESION
            elif name.kind == LESION:
                copies.append((first, file))
            else:
                index.duplicates.append((first, file))
        if not differ:
            index.duplicates += copies
        channels.update(self._unfold(files))
        if files:
            index.scans.append(replace(scan, pieces=tuple(masks) if differ else ()))

    def _unfold(self, files: dict[str, File]) -> dict[str, int]:
        """Enter a file of several sequences as each that no file of its own is of; sequence -> its place in the file."""
        if CHANNELS not in files:
            return {}
        whole, places = files.pop(CHANNELS), {}
        for place, modality in enumerate(self.channels):
            if modality and files.setdefault(modality, whole) is whole:
                places[modality] = place
        return places

    @property
    def _patterned(self) -> str:
        """What stands before advice to give a pattern: nothing where this dataset takes patterns."""
        return "" if "image_pattern" in type(self.params).model_fields else "with --dataset folder, "

    @property
    def _expected_there(self) -> str:
        return f"Expected there: {self.info.layout}. To get it: {self.info.obtain}."

    def _root(self) -> Path:
        expected = self._expected_there
        if self.root is None:
            raise UserError(f"The dataset {self.info.name} needs a data root. {expected}")
        if not self.root.exists():
            raise UserError(f"The data root {self.root} is missing. {expected}")
        if self.root.is_file() and not (self.tars and self.root.name.lower().endswith(".tar")):
            refuse_unreadable(self.root)
            raise UserError(f"The data root {self.root} is a file, expected a folder. {expected}")
        return self.root

    # -- what keeps it from being used -------------------------------------------------------------------------------

    def faults(self) -> Iterator[Issue]:
        """Issues of the files as a whole: ``data check`` lists all, :meth:`discover` refuses the first error."""
        for scan, file in self.index.unclear:
            if not self.excluded(scan):
                message = (
                    f"{file}: is this a brain mask or a lesion mask? Rename it, or {self._patterned}say it with --set "
                    "dataset.lesion_pattern=... or dataset.brain_pattern=... beside dataset.image_pattern=..., or leave "
                    f"{scan.id} out with dataset.exclude=[{scan.id}]."
                )
                yield issues.error("unnamed-mask", file, message, scan.id)
        pieces = {scan.id: scan.pieces for scan in self.index.scans}
        for scan, first, second, kind in self.index.conflicts:
            if self.excluded(scan) or (kind == LESION and self.params.lesion_masks != "refuse"):
                continue
            remedy = "remove one"
            masks = pieces.get(scan.id) or (first, second)
            majority = "" if no_majority(masks) else " or majority"
            one = words_for(masks) if kind == LESION else ""
            if plain(first) == plain(second):
                what = "have the same name and different content"
                if not self.families:
                    remedy += (
                        f", or {self._patterned}say where the names lie if they are of two patients "
                        "(dataset.image_pattern={subject}/...)"
                    )
                    if kind == LESION:
                        remedy += f", or merge them with --set dataset.lesion_masks=union{majority} if they are of one"
                        remedy += one and f", or take one with dataset.lesion_masks={one}"
                    remedy = f"{self._release}; otherwise {remedy}" if self._release else remedy
            elif kind == LESION:
                what = "are both lesion masks"
                remedy = (
                    "merge them into one (lesion where either says so) with --set dataset.lesion_masks=union, "
                    f"{majority and 'or say majority, '}or {f'take one with {one}' if one else 'a word in the name of the one to take'}"
                )
            else:
                what = "mean the same scan and sequence"
            message = f"{first} and {second} {what}: {remedy}, or leave {scan.id} out with dataset.exclude=[{scan.id}]."
            yield issues.error("conflict", second, message, scan.id)
        for scan in self.index.scans:
            if not scan.pieces or self.excluded(scan):
                continue
            wanted = self.params.lesion_masks
            if (self.votes and no_majority(scan.pieces)) or not self.chosen_masks(scan):
                yield issues.error("conflict", scan.pieces[0], not_one(scan.pieces, wanted, scan.id), scan.id)

    def chosen_masks(self, scan: Scan) -> tuple[File, ...]:
        """The lesion masks of ``scan`` that count; none where ``lesion_masks`` names none, or several."""
        wanted = self.params.lesion_masks
        if not scan.pieces:
            return tuple(scan.files[kind] for kind in (LESION,) if kind in scan.files)
        if wanted in ("refuse", "union", "majority"):
            return scan.pieces
        named = named_by(scan.pieces, wanted)
        return named[:1] if all(same_content(named[0], other) for other in named[1:]) else ()

    def as_used(self, scan: Scan) -> Scan:
        """``scan`` with the lesion masks that count, for the checks of its files."""
        masks = self.chosen_masks(scan)
        files = {**scan.files, LESION: masks[0]} if masks else scan.files
        return replace(scan, files=files, pieces=masks if len(masks) > 1 else ())

    def excluded(self, scan: Scan) -> bool:
        """Whether the user left ``scan`` out."""
        return scan.id in self._excluded

    @property
    def kept(self) -> list[Scan]:
        """The scans that the user did not leave out."""
        return [scan for scan in self.index.scans if not self.excluded(scan)]

    @cached_property
    def _excluded(self) -> set[str]:
        """Ids of the scans that ``exclude`` names."""
        scans = [*self.index.scans, *(scan for scan, _ in self.index.unclear)]
        return excluded(self.params.exclude, ((scan.subject, scan.id) for scan in scans), self.info.name)

    # -- who does what -----------------------------------------------------------------------------------------------

    @cached_property
    def roles(self) -> dict[str, Split]:
        """The role of every usable subject; the same for every modality, whatever is excluded."""
        usable = [scan for scan in self.index.scans if not self.left_out(scan)]
        p = self.params
        if p.val_share + p.test_share > 1:
            raise UserError(
                f"val_share {p.val_share:g} and test_share {p.test_share:g} of {self.info.name} add up to more than 1."
            )
        return self._roles(usable)

    def _roles(self, usable: list[Scan]) -> dict[str, Split]:
        return self._drawn(usable, self.params.val_share, self.params.test_share)

    def _drawn(self, scans: list[Scan], val: float, test: float) -> dict[str, Split]:
        """A role for every patient, drawn under the first of the names that the patient has here; in folds if any is tested."""
        names: dict[str, str] = {}
        sites = {names.setdefault(person(scan.subject), scan.subject): scan.site for scan in scans}
        p = self.params
        roles = splits.assign(sites, val, test, p.split_seed, self.info.name, p.folds if test else 0, p.fold)
        return {scan.subject: roles[names[person(scan.subject)]] for scan in scans}

    def discover(self, modality: str) -> list[Case]:
        """The usable cases that have ``modality``, sorted by subject and session."""
        scans = self.usable(modality)[0]
        companion = self.companion_of(modality)
        sessions = Counter(scan.subject for scan in self.index.scans)
        cases = []
        for scan in scans:
            masks, row = self.chosen_masks(scan), self.row(scan.subject)
            own, others = (
                [scan.files[k] for k in kinds if k in scan.files] for kinds in ((modality, BRAIN), (companion,))
            )
            more = {"channels": dict(scan.channels)} if scan.channels else {}
            cases.append(
                Case(
                    subject=scan.subject,
                    split=self.roles[scan.subject],
                    files=tuple(dict.fromkeys([*own, *masks, *others])),
                    session=scan.session if sessions[scan.subject] > 1 else "",
                    site=scan.site or row.get("site", ""),
                    groups=groups_of(row),
                    flags=scan.flags,
                    healthy="" if LESION in scan.files else self.healthy(scan),
                    extra={"files": dict(scan.files), **more, **({"masks": masks} if scan.pieces else {})},
                )
            )
        return cases

    def exclusions(self, modality: str) -> list[str]:
        """Files below the root that are not used, each with the reason."""
        return self.usable(modality)[1]

    def usable(self, modality: str) -> tuple[list[Scan], list[str]]:
        """The scans that :meth:`discover` makes cases of, and what :meth:`exclusions` says; no image is opened."""
        if modality not in self.available():
            raise unknown(f"modality of {self.info.name} in {self.root}", modality, self.available())
        issues.refuse(self.faults())
        sessions = Counter(scan.subject for scan in self.index.scans)
        used, remarks = [], []
        for scan in self.index.scans:
            if why := self._why_not(scan, modality):
                remarks.append(f"{scan.id if sessions[scan.subject] > 1 else scan.subject}: left out, {why}")
            else:
                used.append(scan)
        remarks += [f"{second}: not used, {first} is the same file" for first, second in self.index.duplicates]
        remarks += [f"{second}: not used, {first} is" for first, second in self.index.passed_over]
        if not used:
            raise none_usable(self.info.name, self._root(), remarks, self.index.unused)
        return used, remarks

    def _why_not(self, scan: Scan, modality: str) -> str:
        if self.excluded(scan):
            return "it is in dataset.exclude"
        if modality not in scan.files:
            return f"it has no {modality}"
        return self.left_out(scan)
