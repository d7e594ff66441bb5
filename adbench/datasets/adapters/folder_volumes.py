"""NIfTI volumes of your own: any naming by patterns, BIDS derivatives and other common names without."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from adbench.datasets import issues
from adbench.datasets.adapters.volumes import CHOOSING, STRIPPED, Expected, IndexedVolumes, Scan, VolumeParams
from adbench.datasets.base import DatasetInfo, Split
from adbench.datasets.io import nifti
from adbench.datasets.io.archive import File
from adbench.datasets.io.filename_patterns import (
    BRAIN,
    LESION,
    UNCLEAR,
    Named,
    folded,
    names_in,
    person,
    second_scan,
    split_visit,
)
from adbench.datasets.issues import Issue
from adbench.datasets.preprocessing import brain_extraction
from adbench.errors import UserError
from adbench.params import ParamSet, param

MODALITIES = ("FLAIR", "T1", "T2", "T1CE", "PD", "DWI", "ADC")
SPELLINGS = {name: name for name in MODALITIES} | {
    "T1W": "T1", "T1N": "T1", "T2W": "T2", "T1C": "T1CE", "T1GD": "T1CE", "CE-T1W": "T1CE", "GADO": "T1CE", "PDW": "PD", "T2F": "FLAIR",
    "DWI": "DWI", "TRACE": "DWI", "ADC": "ADC",
}  # fmt: skip
_LESION_WORDS = [
    "seg",
    "segmentation",
    "lesion",
    "lesions",
    "lesionmask",
    "label",
    "labels",
    "gt",
    "msk",
    "tumor",
    "wmh",
]
_BRAIN_WORDS = ("brainmask",)
_ANY_MASK = ("mask", "dseg")  # a dseg of BIDS is most often one of tissues: the rest of the name must say what it is
_SAYS_LESION = re.compile(r"lesion|tumo|[-_]label-l(?:_|$)")
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
FOLDERS: dict[str, Split] = {name: split for split, names in _SPLIT_FOLDERS.items() for name in names}
SECOND_SCAN = (
    "it is probably a second scan of another patient of BraTS'21 (numbers 01538 to 01656): say "
    "--set dataset.second_scans=use if it is not"
)
_FIELDS = ("subject", "session", "site", "modality")
_WORD = re.compile(r"^(?P<rest>.+)[-_](?P<word>[A-Za-z0-9]+)$")
_BIDS = re.compile(
    r"^(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?(?P<entities>(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*)$"
)


class FolderParams(VolumeParams):
    """How PNG slices or NIfTI volumes of your own become a store."""

    size: int | None = param(  # type: ignore[assignment]
        None,
        "side of the prepared square slices; none: volumes 256, PNG slices padded to a multiple of 32 without resampling",
        unit="px",
        source="adbench",
        ge=16,
        le=2048,
    )
    modality: str = param("", "the modality of files whose names do not say it", source="adbench")
    image_pattern: str = param(
        "",
        "volumes: where the images lie, e.g. {subject}/{subject}_{modality}.nii.gz; fields: subject, session, site, "
        "modality; * is anything within a name, ** any folders; empty: BIDS and common names",
        source="adbench",
    )
    lesion_pattern: str = param("", "volumes: where the lesion masks lie, the same way", source="adbench")
    brain_pattern: str = param("", "volumes: where the brain masks lie, the same way", source="adbench")
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


def why_healthy(params: FolderParams, role: Split | None, masked_roles: Container[Split | None], mask: str) -> str:
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


SLICE_PIXELS = ("size", "val_share", "split_seed", "modality")  # what shapes PNG slices and their roles
SLICE_FIELDS = (*SLICE_PIXELS, "unmasked", "second_scans")  # what applies to PNG slices


class FolderVolumes(IndexedVolumes):
    """Your own NIfTI volumes.

    Without patterns, BIDS names (``sub-01_ses-1_space-MNI_T1w.nii.gz`` with ``..._label-lesion_mask.nii.gz`` and
    ``..._desc-brain_mask.nii.gz``) and names that end with a sequence or a mask word are understood
    (``patient07_flair.nii.gz``, ``patient07_seg.nii.gz``, ``patient07_brainmask.nii.gz``). Folders called train, val and
    test give the roles; otherwise patients are drawn: those with masks into train, val and test, those that were declared
    healthy into train and val.

    No subject is healthy by default: one without mask is where its folder (train/) or ``unmasked`` says so. A file that
    holds few whole numbers or probabilities and whose name says nothing is taken for a mask that should have been named.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="folder",
        version="1",
        modalities=MODALITIES,
        licence="that of your data",
        obtain="give the folder of your own volumes as the data root",
        layout=(
            "NIfTI volumes named {subject}_{modality}.nii.gz with {subject}_seg.nii.gz, or as in BIDS derivatives, or by "
            "--set dataset.image_pattern=...; optionally below train/, val/ and test/"
        ),
        protocol="folder",
    )
    Params: ClassVar[type[ParamSet]] = FolderParams
    params: FolderParams
    choosing: ClassVar[tuple[str, ...]] = (*CHOOSING, "second_scans")

    def __init__(self, params: ParamSet, root: Path | None) -> None:
        super().__init__(params, root)
        if self.params.size is None:
            self.params = self.params.model_copy(update={"size": 256})

    # -- names -------------------------------------------------------------------------------------------------------

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """(kind, pattern) of the patterns that were given; masks first, since an image pattern may match them too."""
        p = self.params
        given = [(LESION, p.lesion_pattern), (BRAIN, p.brain_pattern), ("", p.image_pattern)]
        if any(text for _, text in given[:2]) and not p.image_pattern:
            raise UserError(
                "dataset.lesion_pattern and brain_pattern need dataset.image_pattern: say where the images lie."
            )
        return [(kind, compile_pattern(text)) for kind, text in given if text]

    def named(self, path: str) -> Named | None:
        """By the patterns, else as BIDS, else by the last word of the name."""
        if not self._patterns:
            return self._by_name(path)
        for kind, pattern in self._patterns:
            match = pattern.search(path)
            if match is None:
                continue
            found = {name: match.groupdict().get(name) or "" for name in _FIELDS}
            if not kind:
                kind = SPELLINGS.get(found["modality"].upper(), "") if found["modality"] else self._stated(path)
                if not kind:
                    continue
            subject, visit = split_visit(found["subject"])
            session = "_".join(part for part in (visit, found["session"]) if part)
            return Named("", subject, session, found["site"], kind)
        return None

    def _by_name(self, path: str) -> Named | None:
        name = PurePosixPath(path).name
        stem = re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)
        match = _WORD.match(stem)
        if match is None:
            return None
        rest, word = match["rest"], match["word"]
        bids = _BIDS.match(rest)
        entities = bids["entities"].lower() if bids else rest.lower()
        kind = SPELLINGS.get(word.upper(), "")
        if bids and kind == "T1" and "_ce-" in entities:  # BIDS: with a contrast agent
            kind = "T1CE"
        if not kind and word.lower() in _LESION_WORDS:
            kind = LESION
        elif not kind and word.lower() in _BRAIN_WORDS:
            kind = BRAIN
        elif not kind and word.lower() in _ANY_MASK:
            kind = BRAIN if "brain" in entities else LESION if _SAYS_LESION.search(entities) else UNCLEAR
            rest = re.sub(r"[-_](brain|lesion|tumou?r)$", "", rest, flags=re.IGNORECASE) if not bids else rest
        if bids:
            return Named("", bids["subject"], bids["session"] or "", "", kind) if kind else None
        if kind:
            return Named("", *split_visit(rest), "", kind)
        return Named("", *split_visit(stem), "", self._stated(path)) if self.params.modality else None

    def _stated(self, path: str) -> str:
        """The modality that the user stated for names that do not say it."""
        stated = SPELLINGS.get(self.params.modality.upper(), "")
        if not stated:
            raise UserError(
                f"The name of {path} does not say its modality: state it with --set dataset.modality=FLAIR (one of "
                f"{', '.join(MODALITIES)}), or with {{modality}} in dataset.image_pattern."
            )
        return stated

    # -- roles -------------------------------------------------------------------------------------------------------

    @cached_property
    def _folders(self) -> dict[str, Split]:
        """Person -> role that a folder's name gives, the first where there are two."""
        return {who: next(iter(roles)) for who, roles in self._homes.items()}

    @cached_property
    def _homes(self) -> dict[str, dict[Split, File]]:
        """Person -> the roles that names of folders give, each with a file."""
        homes: dict[str, dict[Split, File]] = defaultdict(dict)
        below = {file: path for path, file in self.index.files.volumes.items()}
        for scan in self.index.scans:
            for file in scan.files.values():
                for part in PurePosixPath(below[file]).parts[:-1]:
                    if part.lower() in FOLDERS:
                        homes[person(scan.subject)].setdefault(FOLDERS[part.lower()], file)
                        break
        return dict(homes)

    @cached_property
    def _unnamed_masks(self) -> dict[str, list[tuple[File, str]]]:
        """Case id -> files that look like masks by their content, and what they hold, of cases without a named mask.

        Under "" those whose names are of no subject here and that lie on the grid of a case.
        """
        owners: dict[str, Scan] = {}
        for scan in sorted(self.index.scans, key=lambda scan: LESION in scan.files):
            for name in (person(scan.subject), folded(scan.subject)):
                owners.setdefault(name, scan)
        found: dict[str, list[tuple[File, str]]] = defaultdict(list)
        for path in self.index.unused:
            owner = next((owners[name] for name in names_in(path) if name in owners), None)
            file = self.index.files.volumes[path]
            with suppress(UserError):  # a file that is not used need not be whole
                asked = self._on_a_grid(nifti.read_header(file)) if owner is None else LESION not in owner.files
                if asked and (what := nifti.mask_values(file)):
                    found[owner.id if owner else ""].append((file, what))
        return dict(found)

    def _on_a_grid(self, header: nifti.Header) -> bool:
        return any(header.shape == grid.shape and not nifti.off_grid(header, grid) for grid in self._grids)

    @cached_property
    def _grids(self) -> list[nifti.Header]:
        """Headers of the images, one of each shape and affine."""
        grids: dict[tuple[tuple[int, ...], bytes], nifti.Header] = {}
        for image in self._images:
            with suppress(UserError):  # that case is reported when its turn comes
                header = nifti.read_header(image)
                grids.setdefault((header.shape, header.affine.tobytes()), header)
        return list(grids.values())

    def faults(self) -> Iterator[Issue]:
        """Also patients in two split folders, cases in none, and cases without mask that are not declared healthy."""
        yield from super().faults()
        scans = [scan for scan in self.index.scans if not self.excluded(scan)]
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
        for file, what in self._unnamed_masks.get("", []):
            message = (
                f"{file} holds {what}, as a mask does, lies on the grid of an image here, and its name says neither of whom it "
                "is nor of what: if it marks lesions, whose they are is not known. Name it after its subject, or take it out."
            )
            yield issues.warning("unnamed-mask", file, message)
        masked = sum(LESION in scan.files for scan in self.index.scans)
        for scan in (scan for scan in scans if LESION not in scan.files and scan.sequences):
            if self.params.unmasked != "leave-out" or self.healthy(scan):
                yield from self._looks_ill(scan)
            if self.params.unmasked == "refuse" and not self.healthy(scan):
                message = (
                    f"{scan.id} in {self.root} has no lesion mask, as {masked} of {len(self.index.scans)} cases have: say "
                    "--set dataset.unmasked=healthy or leave-out, or put healthy subjects into a folder train/."
                )
                yield issues.error("missing-mask", scan.first, message, scan.id)

    def _looks_ill(self, scan: Scan) -> Iterator[Issue]:
        severity = issues.warning if self.params.unmasked == "healthy" else issues.error
        for file, what in self._unnamed_masks.get(scan.id, []):
            message = (
                f"{file} holds {what}, as a mask does, and its name does not say of what: if it marks lesions, {scan.id} is not "
                "healthy. Name it with --set dataset.lesion_pattern=... or brain_pattern=... beside image_pattern, or declare "
                "the case healthy with --set dataset.unmasked=healthy."
            )
            yield severity("unnamed-mask", file, message, scan.id)

    def healthy(self, scan: Scan) -> str:
        """By its folder, or by ``unmasked``."""
        return why_healthy(self.params, self._folders.get(person(scan.subject)), self._masked_roles, "lesion mask")

    @cached_property
    def _masked_roles(self) -> set[Split]:
        """Roles given by folders in which some subject has a lesion mask."""
        owners = {person(scan.subject) for scan in self.index.scans if LESION in scan.files}
        return {self._folders[who] for who in owners if who in self._folders}

    def left_out(self, scan: Scan) -> str:
        """Cases without mask where ``unmasked`` says so, and second scans of unknown patients."""
        if second_scan(scan.subject) and self.params.second_scans != "use":
            return SECOND_SCAN
        if LESION in scan.files or self.healthy(scan):
            return ""
        return "it has no lesion mask and dataset.unmasked is leave-out"

    def _roles(self, usable: list[Scan]) -> dict[str, Split]:
        if self._folders:
            return {scan.subject: self._folders[person(scan.subject)] for scan in usable}
        p = self.params
        patients = {person(scan.subject) for scan in usable if LESION in scan.files}
        healthy = [scan for scan in usable if person(scan.subject) not in patients]
        ill = [scan for scan in usable if person(scan.subject) in patients]
        roles = self._drawn(healthy, p.val_share, 0.0)
        # Where healthy subjects train, patients need not.
        val = p.val_share / max(p.val_share + p.test_share, 1e-9)
        return roles | (self._drawn(ill, val, 1 - val) if healthy else self._drawn(ill, p.val_share, p.test_share))

    # -- what the volumes are like -----------------------------------------------------------------------------------

    @cached_property
    def _images(self) -> list[File]:
        scans = [scan for scan in self.index.scans if not self.excluded(scan)] or self.index.scans
        return [scan.files[kind] for scan in scans for kind in scan.sequences]

    def available(self) -> tuple[str, ...]:
        """The modalities found.

        Raises:
            UserError: there are masks and no image.
        """
        there = super().available()
        if not there:
            masks = [file for scan in self.index.scans for file in scan.files.values()]
            first = next(iter(masks), None) or self.index.unclear[0][1]
            other = f"; {self.index.unused[0]} is of no known name" if self.index.unused else ""
            raise UserError(
                f"There are masks ({first}) and no image in {self.root}{other}. Say where the images lie with --set "
                "dataset.image_pattern=..., such as {subject}/{subject}_{modality}.nii.gz, and the masks with lesion_pattern."
            )
        return there

    @cached_property
    def skull(self) -> bool:
        """As stated; otherwise the first image that can be read decides, by its share of background."""
        if self.params.skull != "auto":
            return self.params.skull == "yes"
        problem: UserError | None = None
        for image in self._images:
            try:
                return brain_extraction.background_share(nifti.read(image).data) < STRIPPED
            except UserError as error:  # that case is reported when its turn comes; the others are prepared
                problem = problem or error
        assert problem is not None
        raise problem

    @cached_property
    def on_template(self) -> bool:
        """Whether every image that can be read lies on the MNI152 2009a 1 mm grid."""
        from adbench.datasets.preprocessing.template import same_grid

        return bool(self._grids) and all(same_grid(grid.shape, grid.affine) for grid in self._grids)

    @property
    def lesion_labels(self) -> tuple[int, ...] | None:
        return self.params.lesion_labels or None

    def companion_of(self, modality: str) -> str:
        """T1 where there is a skull: tools that find the brain want a T1."""
        return "T1" if self.skull else modality

    @property
    def expected(self) -> Expected:
        """Every sequence that is there, on one grid; :meth:`faults` knows who needs a mask."""
        return Expected(sequences=self.available(), lesion=False)


def compile_pattern(text: str) -> re.Pattern[str]:
    """A path pattern as a regular expression that matches the end of a path.

    ``{subject}``, ``{session}``, ``{site}`` and ``{modality}`` are parts of one name (a second mention must be equal),
    ``*`` is anything within a name, ``**`` any folders.

    Raises:
        UserError: an unknown field, or no ``{subject}``.
    """
    seen: set[str] = set()

    def field(name: str) -> str:
        if name not in _FIELDS:
            raise UserError(f"Unknown field {{{name}}} in the pattern {text!r}: there are {', '.join(_FIELDS)}.")
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+?)"

    parts = re.split(r"(\{[^{}]*\}|\*\*/|\*)", text)
    written = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    body = "".join(field(part[1:-1]) if part[:1] == "{" else written.get(part) or re.escape(part) for part in parts)
    if "subject" not in seen:
        raise UserError(f"The pattern {text!r} has no {{subject}}: it must say who each file belongs to.")
    return re.compile(rf"(?:^|/){body}$")
