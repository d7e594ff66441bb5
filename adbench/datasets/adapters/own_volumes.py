"""Base of the adapters for your own volumes: healthy subjects, roles, and whether there is a skull."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pydantic import field_validator

from adbench.datasets import issues
from adbench.datasets.adapters.scans import Expected, Index, Scan
from adbench.datasets.adapters.volume_reader import STRIPPED, VolumeParams
from adbench.datasets.adapters.volumes import CHOOSING, IndexedVolumes
from adbench.datasets.base import Case, Split
from adbench.datasets.io import nifti, nifti_header
from adbench.datasets.io.archive import File
from adbench.datasets.io.filename_patterns import (
    SETS,
    UNCLEAR,
    Named,
    common_name,
    image_names,
    recognise,
    release_of,
    stem_of,
)
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.io.participants import PARTICIPANTS, says_ill
from adbench.datasets.io.patient_names import folded, names_in, person, second_scan
from adbench.datasets.issues import Issue
from adbench.datasets.preprocessing import brain_extraction
from adbench.datasets.preprocessing.base import RawVolume
from adbench.errors import UserError
from adbench.params import ParamSet, param

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
FOLDERS: dict[str, Split] = {name: split for split, names in _SPLIT_FOLDERS.items() for name in names}
REPEATS = re.compile(r"_(acq|rec|run|echo)-([A-Za-z0-9]+)", re.IGNORECASE)  # of one session, in BIDS
SECOND_SCAN = (
    "it is probably a second scan of another patient of BraTS'21 (numbers 01538 to 01656): say "
    "--set dataset.second_scans=use if it is not"
)


class OwnParams(VolumeParams):
    """Parameters that describe data of an unknown provider."""

    name: str = param(
        "",
        "what tables, run folders, records and boards call the data, e.g. hospital_a; empty: the name of the dataset",
        source="adbench",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,39})?$",
    )
    lesion_labels: tuple[int, ...] = param(
        (), "volumes: values of the lesion mask that count; empty: every value but 0", source="adbench"
    )
    unmasked: Literal["refuse", "healthy", "leave-out"] = param(
        "refuse",
        "what subjects without lesion mask are; those in a folder train/ are healthy, and those in val/ where none has one",
        source="adbench",
    )
    second_scans: Literal["leave-out", "use"] = param(
        "leave-out",
        "BraTS'21 numbers 01538 to 01656, probably second scans of other patients",
        source="adbench",
    )
    skull: Literal["auto", "yes", "no"] = param(
        "auto",
        "volumes: whether the images show the skull; auto: the first one that can be read decides, by its share of background",
        source="adbench",
    )

    @field_validator("lesion_labels")
    @classmethod
    def _marks_something(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [value for value in values if value < 1]:
            raise ValueError(
                f"{wrong[0]} marks no lesion: 0 is the background of a mask, and labels are whole numbers from 1"
            )
        return values


def why_healthy(params: OwnParams, role: Split | None, masked_roles: Container[Split | None], mask: str) -> str:
    """Why a subject without ``mask`` counts as healthy; "" where nothing says so.

    Args:
        params: of the dataset.
        role: by the subject's folder; None: it lies in no split folder.
        masked_roles: those in whose folders some subject has a mask.
        mask: what the subject lacks, for the sentence.
    """
    if params.unmasked == "healthy":
        return "dataset.unmasked says so"
    if role == "train":
        return "it lies in train/, which is for healthy subjects"
    if role == "val" and "val" not in masked_roles:
        return f"it lies in val/, where no subject has a {mask}"
    return ""


class OwnVolumes(IndexedVolumes):
    """Volumes of your own; a subclass says how they are named.

    Folders called train, val and test give the roles; otherwise patients are drawn: those with masks into train, val and
    test, those that were declared healthy into train and val. With ``folds``, those with masks outside train/ are divided again.

    No subject is healthy by default: one without mask is where its folder (train/) or ``unmasked`` says so. A file that
    holds few whole numbers or probabilities and whose name says nothing is taken for a mask that should have been named.
    """

    Params: ClassVar[type[ParamSet]] = OwnParams
    params: OwnParams
    distributed: ClassVar[Expected] = Expected(sequences=(), lesion=False)
    choosing: ClassVar[tuple[str, ...]] = (*CHOOSING, "second_scans", "name")

    @classmethod
    def title(cls, params: ParamSet) -> str:
        """``params.name``."""
        return str(params.json_values["name"])

    @cached_property
    def image_names(self) -> frozenset[str]:
        """Prefix of image names before the modality."""
        return image_names(map(stem_of, self.files.volumes))

    # -- roles and health --------------------------------------------------------------------------------------------

    def _add(self, index: Index, subject: str, session: str, members: list[tuple[Named, File]]) -> None:
        """Enter a scan: of several runs or acquisitions the one that has a lesion mask, and no mask of another one."""
        images = [(name, file) for name, file in members if name.kind not in (LESION, BRAIN, UNCLEAR)]
        owners = {file: _images_of(file, images) for name, file in members if name.kind in (LESION, BRAIN)}
        lead = next((_repeats(file) for name, file in members if name.kind == LESION and owners[file]), {})

        def place(member: tuple[Named, File]) -> tuple[int, ...]:
            own = _repeats(member[1])
            shared = [own[key] == value for key, value in lead.items() if key in own]
            return (shared.count(False), -shared.count(True), *member[0].rank)

        ranked = {file: replace(name, rank=place((name, file))) for name, file in images}
        first: dict[str, File] = {}
        for file, name in sorted(ranked.items(), key=lambda item: (item[1].rank, str(item[0]))):
            first.setdefault(name.kind, file)
        kept: list[tuple[Named, File]] = []
        orphans: list[tuple[File, File]] = []
        for name, file in members:
            if file in owners and images:
                if not owners[file] and name.kind == LESION:
                    orphans.append((file, next(iter(first.values()))))
                elif not owners[file] & set(first.values()):
                    index.passed_over.append((next(iter(first.values())), file))
                else:
                    kept.append((replace(name, rank=()) if name.kind == LESION else name, file))
            else:
                kept.append((ranked.get(file, name), file))
        super()._add(index, subject, session, sorted(kept, key=lambda m: (m[0].rank, m[1].name, str(m[1]))))
        index.orphans += [(index.scans[-1], *pair) for pair in orphans]

    @cached_property
    def _folders(self) -> dict[str, Split]:
        """Person -> role that a folder's name gives, the first where there are two; of everyone, whoever is excluded."""
        everyone = self._roles_by_folder(self.index.scans) | self._homes if self._homes else {}
        return {who: next(iter(roles)) for who, roles in everyone.items()}

    @cached_property
    def _homes(self) -> dict[str, dict[Split, File]]:
        """Person -> the roles that names of folders give, each with a file; of cases that are not excluded."""
        return self._roles_by_folder(self.kept)

    def _roles_by_folder(self, scans: Iterable[Scan]) -> dict[str, dict[Split, File]]:
        homes: dict[str, dict[Split, File]] = defaultdict(dict)
        below = {file: path for path, file in self.index.files.volumes.items()}
        for scan in scans:
            for file in scan.files.values():
                names = map(str.lower, PurePosixPath(below[file]).parts[:-1])
                if role := next((FOLDERS[name] for name in names if name in FOLDERS), None):
                    homes[person(scan.subject)].setdefault(role, file)
        return dict(homes)

    @cached_property
    def _unnamed_masks(self) -> dict[str, list[tuple[File, str]]]:
        """Case id -> files that look like masks by their content, and what they hold, of cases without a named mask.

        Under "" those whose names are of no subject here and that lie on the grid of a case.
        """
        owners: dict[str, Scan] = {}
        imaged = [scan for scan in self.index.scans if scan.sequences]
        for scan in sorted(imaged, key=lambda scan: LESION in scan.files):
            for name in (person(scan.subject), folded(scan.subject)):
                owners.setdefault(name, scan)
        found: dict[str, list[tuple[File, str]]] = defaultdict(list)
        alone = {scan.files[LESION] for scan in self.index.scans if not scan.sequences and LESION in scan.files}
        loose = [path for path, file in self.index.files.volumes.items() if file in alone]
        of_tissue = [
            path
            for path in self.index.unused
            if (said := common_name(stem_of(path), self.image_names)) and not said.kind
        ]
        for path in sorted({*self.index.unused, *loose} - set(of_tissue)):
            owner = next((owners[name] for name in names_in(path) if name in owners), None)
            file = self.index.files.volumes[path]
            with suppress(UserError):  # a file that is not used need not be whole
                asked = self._on_a_grid(nifti.read_header(file)) if owner is None else LESION not in owner.files
                if asked and (what := nifti.mask_values(file)):
                    found[owner.id if owner else ""].append((file, what))
        return dict(found)

    def _on_a_grid(self, header: nifti_header.Header) -> bool:
        return any(header.shape == grid.shape and not nifti_header.off_grid(header, grid) for grid in self._grids)

    @cached_property
    def _grids(self) -> list[nifti_header.Header]:
        """Headers of the images, one of each shape and affine."""
        grids: dict[tuple[tuple[int, ...], bytes], nifti_header.Header] = {}
        for image, channel in self._images:
            with suppress(UserError):  # that case is reported when its turn comes
                header = nifti.read_header(image)
                header = header if channel is None else header.channel(channel, image)
                grids.setdefault((header.shape, header.affine.tobytes()), header)
        return list(grids.values())

    def faults(self) -> Iterator[Issue]:
        """Also patients in two split folders, cases in none, and cases without mask that are not declared healthy."""
        yield from super().faults()
        for family, file in self._releases.items():
            if labels := self._beside(family):
                known = SETS[family]
                what = " and ".join(f"{label} ({known.not_counted[label]})" for label in labels)
                message = (
                    f"{self.root} holds {known.title} ({file}): label {what} of its masks is taken for neither lesion nor healthy, "
                    f"as --dataset {known.dataset} does. {'Use that, or say' if recognise(str(file)) else 'Say'} which labels are "
                    "lesion with --set dataset.lesion_labels=[...], of those that the masks hold (data check --deep lists them)."
                )
                yield issues.warning("known-layout", file, message)
        scans = self.kept
        for who, roles in self._homes.items():
            if len(roles) > 1:
                subject = next(scan.subject for scan in self.index.scans if person(scan.subject) == who)
                places = " and ".join(f"{role} ({file})" for role, file in sorted(roles.items()))
                message = f"The subject {subject} is in two splits, {places}: keep each subject in one."
                yield issues.error("two-roles", next(iter(roles.values())), message, subject)
        for scan in scans:
            if self._homes and person(scan.subject) not in self._homes:
                message = f"{scan.first} lies in no train, val or test folder while others do: move it into one."
                yield issues.error("stray", scan.first, message, scan.id)
        for scan in scans:
            if why := self._contradiction(scan):
                yield issues.error("participants", scan.first, why, scan.id)
        for file, what in self._unnamed_masks.get("", []):
            message = (
                f"{file} holds {what}, as a mask does, lies on the grid of an image here, and its name says neither of whom it "
                "is nor of what: if it marks lesions, whose they are is not known. Name it after its subject, or take it out."
            )
            yield issues.warning("unnamed-mask", file, message)
        for scan, mask, image in self.index.orphans:
            if not self.excluded(scan):
                message = (
                    f"{mask} is of another run or acquisition than {image}, and no image of its own is there: add it, remove the "
                    f"mask, or leave {scan.id} out with dataset.exclude=[{scan.id}]."
                )
                yield issues.error("conflict", mask, message, scan.id)
        yield from self._unmasked(scans)

    def _unmasked(self, scans: list[Scan]) -> Iterator[Issue]:
        """Cases without lesion mask that nothing declares healthy; where no case has one that is said once, with its cause."""
        masked = sum(LESION in scan.files for scan in scans)
        needed = [scan for scan in scans if LESION not in scan.files and scan.sequences and not self._accounted(scan)]
        needs = (
            "" if len(needed) == len(scans) or not needed else f", and {needed[0].id} in {needed[0].first} needs one"
        )
        asked = {scan.id for scan in (needed if masked else needed[:1])}
        for scan in (scan for scan in scans if LESION not in scan.files and scan.sequences):
            if self.params.unmasked != "leave-out" or self.healthy(scan):
                yield from self._looks_ill(scan)
            if self.params.unmasked == "refuse" and scan.id in asked:
                remedy = self._release or (
                    "say --set dataset.unmasked=healthy or leave-out, or put healthy subjects into a folder "
                    f"train/{self._elsewhere}"
                )
                if masked and (other := self._patients.get(person(scan.subject))):
                    remedy = f"{other} shows that this patient has lesions, so add the mask, or say --set dataset.unmasked=leave-out"
                if masked:
                    message = f"{scan.id} in {self.root} has no lesion mask, as {masked} of {len(scans)} cases have: {remedy}."
                    yield issues.error("missing-mask", scan.first, message, scan.id)
                else:
                    by, end = "", ""
                    if first := self._likely_mask:
                        by, end = (
                            f" by the names of the files ({first} may be one: rename it if it is)",
                            ". If there is none",
                        )
                    message = f"No case in {self.root} has a lesion mask{by}{needs}{end}: {remedy}."
                    yield issues.error("missing-mask", scan.first, message)

    @property
    def _likely_mask(self) -> File | None:
        """A file that may be the lesion mask that a case lacks."""
        excluded = {scan.id for scan in self.index.scans if self.excluded(scan)}
        unclear = [file for scan, file in self.index.unclear if not self.excluded(scan)]
        unnamed = [file for case, files in self._unnamed_masks.items() if case not in excluded for file, _ in files]
        return next(iter(unclear + unnamed), None)

    def _accounted(self, scan: Scan) -> bool:
        """Whether a scan without lesion mask needs no word on whether its subject is healthy."""
        return bool(self.healthy(scan)) or self.unmasked_by_design(scan)

    @property
    def _elsewhere(self) -> str:
        """More advice on who is healthy: another dataset that reads these files."""
        return ""

    def _looks_ill(self, scan: Scan) -> Iterator[Issue]:
        severity = issues.warning if self.params.unmasked == "healthy" else issues.error
        for file, what in self._unnamed_masks.get(scan.id, []):
            message = (
                f"{file} holds {what}, as a mask does, and its name does not say of what: if it marks lesions, {scan.id} is not "
                f"healthy. Rename it, or {self._patterned}name it by --set dataset.lesion_pattern=... or brain_pattern=... beside "
                "image_pattern, or declare the case healthy with --set dataset.unmasked=healthy."
            )
            yield severity("unnamed-mask", file, message, scan.id)

    def healthy(self, scan: Scan) -> str:
        """A subject with a lesion mask is never healthy; others are by their folder, or by ``unmasked``."""
        if person(scan.subject) in self._patients:
            return ""
        return why_healthy(self.params, self._folders.get(person(scan.subject)), self._masked_roles, "lesion mask")

    def _contradiction(self, scan: Scan) -> str:
        """Why a subject that counts as healthy is a patient by the table; "" where it is not."""
        if LESION in scan.files or not (why := self.healthy(scan)):
            return ""
        for column, value in says_ill(self.row(scan.subject)):
            return (
                f"{self._root() / PARTICIPANTS} says {column}={value} of {scan.subject}, which would count as healthy because "
                f"{why}: say who is healthy with --dataset bids --set dataset.healthy={column}=VALUE and what the others are with "
                f"dataset.unmasked=leave-out, or leave it out with dataset.exclude=[{scan.id}]."
            )
        return ""

    @cached_property
    def _masked_roles(self) -> set[Split]:
        """Roles given by folders in which some subject has a lesion mask."""
        return {self._folders[who] for who in self._patients if who in self._folders}

    @cached_property
    def _patients(self) -> dict[str, File]:
        """Person -> one of the lesion masks of his scans."""
        patients: dict[str, File] = {}
        for scan in self.index.scans:
            masks = [scan.files[kind] for kind in (LESION,) if kind in scan.files]
            for mask in (*masks, *(mask for owner, mask, _ in self.index.orphans if owner.id == scan.id)):
                patients.setdefault(person(scan.subject), mask)
        return patients

    def left_out(self, scan: Scan) -> str:
        """Cases without mask where ``unmasked`` says so, and second scans of unknown patients."""
        if second_scan(scan.subject) and self.params.second_scans != "use":
            return SECOND_SCAN
        if LESION in scan.files or self.healthy(scan):
            return ""
        mask = self._patients.get(person(scan.subject))
        why = f"while {mask} shows that this patient has lesions" if mask else "and dataset.unmasked is leave-out"
        why = "as distributed" if self.unmasked_by_design(scan) else why
        return f"it has no lesion mask {why}"

    def _roles(self, usable: list[Scan]) -> dict[str, Split]:
        p = self.params
        if self._folders:
            usable = [scan for scan in usable if person(scan.subject) in self._folders]  # no strays
            roles = {scan.subject: self._folders[person(scan.subject)] for scan in usable}
            ill = [scan for scan in usable if roles[scan.subject] != "train" and person(scan.subject) in self._patients]
            return roles | (self._drawn(ill, 0.5, 0.5) if p.folds else {})
        patients = {person(scan.subject) for scan in usable if LESION in scan.files}
        healthy = [scan for scan in usable if person(scan.subject) not in patients]
        ill = [scan for scan in usable if person(scan.subject) in patients]
        roles = self._drawn(healthy, p.val_share, 0.0)
        # Where healthy subjects train, patients need not.
        val = p.val_share / max(p.val_share + p.test_share, 1e-9)
        return roles | (self._drawn(ill, val, 1 - val) if healthy else self._drawn(ill, p.val_share, p.test_share))

    # -- what the volumes are like -----------------------------------------------------------------------------------

    @cached_property
    def _images(self) -> list[tuple[File, int | None]]:
        """Every image, and its place in a 4-D file."""
        return [
            (scan.files[kind], scan.channels.get(kind))
            for scan in self.kept or self.index.scans
            for kind in scan.sequences
        ]

    def _only_masks(self) -> str:
        return (
            f"{super()._only_masks()} Other names are described by --set dataset.image_pattern=..., such as "
            "{subject}/{subject}_{modality}.nii.gz, and those of masks by lesion_pattern, of --dataset folder."
        )

    @cached_property
    def skull(self) -> bool:
        """As stated; otherwise the first image that can be read decides, by its share of background."""
        if self.params.skull != "auto":
            return self.params.skull == "yes"
        problem: UserError | None = None
        for image, channel in self._images:
            try:
                return brain_extraction.background_share(nifti.read(image, channel=channel).data) < STRIPPED
            except UserError as error:  # that case is reported when its turn comes; the others are prepared
                problem = problem or error
        assert problem is not None
        raise problem

    @cached_property
    def on_template(self) -> bool:
        """Whether every image that can be read lies on the MNI152 2009a 1 mm grid."""
        from adbench.datasets.preprocessing.template import same_grid

        return bool(self._grids) and all(same_grid(grid.shape, grid.affine) for grid in self._grids)

    def read(self, case: Case, modality: str) -> RawVolume:
        """Also says which labels of the mask count as healthy because ``lesion_labels`` does not have them."""
        raw = super().read(case, modality)
        asked = self.params.lesion_labels
        known = {*asked, *self.expected.not_counted}
        if asked and (others := [str(label) for label in raw.labels or () if label not in known]):
            said = f"lesion: label {', '.join(others)} counts as healthy, dataset.lesion_labels does not have it"
            raw.remarks += (said,)
        return raw

    @property
    def lesion_labels(self) -> tuple[int, ...] | None:
        return self.params.lesion_labels or None

    def companion_of(self, modality: str) -> str:
        """T1 where there is a skull: tools that find the brain want a T1."""
        return "T1" if self.skull else modality

    @property
    def never_counted(self) -> tuple[int, ...]:
        """Labels that the data themselves say are neither lesion nor healthy."""
        return ()

    def not_counted(self, mask: File) -> tuple[int, ...]:
        """Those of the data and of the release whose name the mask bears, but for the labels that ``lesion_labels`` has."""
        labels = {*self.never_counted, *self._beside(release_of(str(mask)))}
        return tuple(sorted(labels - set(self.params.lesion_labels)))

    def _beside(self, family: str) -> list[int]:
        """Labels of the release ``family`` that are neither lesion nor healthy, unless ``lesion_labels`` has them."""
        labels = SETS[family].not_counted if family else ()
        return [label for label in labels if label not in self.params.lesion_labels]

    @cached_property
    def _releases(self) -> dict[str, File]:
        """Keys of :data:`SETS` whose names the files bear -> one of them, a lesion mask if there is one."""
        found: dict[str, File] = {}
        for scan in self.kept:
            for _, file in sorted(scan.files.items(), key=lambda item: item[0] != LESION):
                if family := release_of(str(file)):
                    found.setdefault(family, file)
        return found

    @property
    def expected(self) -> Expected:
        """Every sequence that is there, on one grid, with the labels that do not count; :meth:`faults` knows who needs a mask."""
        labels = {*self.never_counted, *(label for family in self._releases for label in self._beside(family))}
        return replace(
            self.distributed,
            sequences=self.available(),
            channels=self.channels,
            not_counted=tuple(sorted(labels - set(self.params.lesion_labels))),
        )


def _repeats(file: File) -> dict[str, str]:
    """What the name of a file says of several acquisitions of one session: key of BIDS -> value."""
    return {key.lower(): folded(value) for key, value in REPEATS.findall(file.name)}


def _images_of(mask: File, images: Iterable[tuple[Named, File]]) -> set[File]:
    """The images that ``mask`` may be of: none of another run or acquisition, and those that share most of what it says."""
    said = _repeats(mask)
    shared: dict[File, int] = {}
    for _, image in images:
        own = _repeats(image)
        same = [own[key] == value for key, value in said.items() if key in own]
        if all(same):
            shared[image] = len(same)
    return {image for image, count in shared.items() if count == max(shared.values())}
