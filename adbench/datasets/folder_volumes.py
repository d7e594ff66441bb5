"""NIfTI volumes of your own: any naming by patterns, BIDS derivatives and other common names without."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from adbench.datasets import nifti
from adbench.datasets.archive import File
from adbench.datasets.base import DatasetInfo, Split
from adbench.datasets.names import BRAIN, LESION, Named
from adbench.datasets.volumes import Expected, IndexedVolumes, Scan, VolumeParams
from adbench.datasets.walk import walk
from adbench.errors import UserError
from adbench.params import ParamSet, param

MODALITIES = ("FLAIR", "T1", "T2", "T1CE", "PD")
SPELLINGS = {
    **{name: name for name in MODALITIES},
    **{
        "T1W": "T1",
        "T1N": "T1",
        "T2W": "T2",
        "T1C": "T1CE",
        "T1GD": "T1CE",
        "CE-T1W": "T1CE",
        "PDW": "PD",
        "T2F": "FLAIR",
    },
}
LESION_WORDS = (
    "seg",
    "segmentation",
    "lesion",
    "lesions",
    "lesionmask",
    "label",
    "labels",
    "gt",
    "tumor",
    "wmh",
)
BRAIN_WORDS = ("brainmask",)
ANY_MASK = ("mask", "dseg")  # a dseg of BIDS is most often one of tissues: the rest of the name must say what it is
_LESION = re.compile(r"lesion|tumo|[-_]label-l(?:_|$)")
FOLDERS: dict[str, Split] = {
    **{"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
}
FIELDS = ("subject", "session", "site", "modality")
STRIPPED = 0.3  # share of voxels at exactly 0 that says an image is skull-stripped
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
        "volumes: what subjects without lesion mask are where others have one; those in a folder train/ are healthy",
        source="adbench",
    )
    skull: Literal["auto", "yes", "no"] = param(
        "auto",
        "volumes: whether the images show the skull; auto: the first one that can be read decides, by its share of zeros",
        source="adbench",
    )


SLICE_FIELDS = ("size", "val_share", "split_seed", "modality")  # what PNG slices heed


class FolderVolumes(IndexedVolumes):
    """Your own NIfTI volumes.

    Without patterns, BIDS names (``sub-01_ses-1_space-MNI_T1w.nii.gz`` with ``..._label-lesion_mask.nii.gz`` and
    ``..._desc-brain_mask.nii.gz``) and names that end with a sequence or a mask word are understood
    (``patient07_flair.nii.gz``, ``patient07_seg.nii.gz``, ``patient07_brainmask.nii.gz``). Folders called train, val and
    test give the roles; otherwise subjects are drawn: with masks everywhere into train, val and test, without any into
    train and val.
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
            found = {name: match.groupdict().get(name) or "" for name in FIELDS}
            if not kind:
                kind = SPELLINGS.get(found["modality"].upper(), "") if found["modality"] else self._stated(path)
                if not kind:
                    continue
            return Named("", found["subject"], found["session"], found["site"], kind)
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
        if not kind and word.lower() in LESION_WORDS:
            kind = LESION
        elif not kind and word.lower() in BRAIN_WORDS:
            kind = BRAIN
        elif not kind and word.lower() in ANY_MASK:
            kind = BRAIN if "brain" in entities else LESION if _LESION.search(entities) else ""
            if not kind:
                raise UserError(
                    f"{path}: is this a brain mask or a lesion mask? Say it with --set dataset.lesion_pattern=... or "
                    "dataset.brain_pattern=... beside dataset.image_pattern=..."
                )
            rest = re.sub(r"[-_](brain|lesion|tumou?r)$", "", rest, flags=re.IGNORECASE) if not bids else rest
        if bids:
            return Named("", bids["subject"], bids["session"] or "", "", kind) if kind else None
        if kind:
            return Named("", rest, "", "", kind)
        return Named("", stem, "", "", self._stated(path)) if self.params.modality else None

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
    def _masks_anywhere(self) -> bool:
        return any(LESION in scan.files for scan in self.index.scans)

    @cached_property
    def _folders(self) -> dict[str, Split]:
        """Subject -> role that a folder's name gives; a subject in two is an error."""
        homes: dict[str, dict[Split, File]] = defaultdict(dict)
        below = {file: path for path, file in self.index.walk.volumes.items()}
        for scan in self.index.scans:
            for file in scan.files.values():
                for part in PurePosixPath(below[file]).parts[:-1]:
                    if part.lower() in FOLDERS:
                        homes[scan.subject].setdefault(FOLDERS[part.lower()], file)
                        break
        for subject, roles in homes.items():
            if len(roles) > 1:
                places = " and ".join(f"{role} ({file})" for role, file in sorted(roles.items()))
                raise UserError(f"The subject {subject} is in two splits, {places}: keep each subject in one.")
        if homes and len(homes) < len({scan.subject for scan in self.index.scans}):
            stray = next(scan for scan in self.index.scans if scan.subject not in homes)
            raise UserError(
                f"{next(iter(stray.files.values()))} lies in no train, val or test folder while others do: move it into one."
            )
        return {subject: next(iter(roles)) for subject, roles in homes.items()}

    def left_out(self, scan: Scan) -> str:
        """Subjects without mask, where others have one and ``unmasked`` says so."""
        if LESION in scan.files or not self._masks_anywhere or self._folders.get(scan.subject) == "train":
            return ""
        if self.params.unmasked == "refuse":
            masked = sum(LESION in other.files for other in self.index.scans)
            raise UserError(
                f"{scan.id} in {self.root} has no lesion mask, as {masked} of {len(self.index.scans)} cases have: say "
                "--set dataset.unmasked=healthy or leave-out, or put healthy subjects into a folder train/."
            )
        return "" if self.params.unmasked == "healthy" else "it has no lesion mask and dataset.unmasked is leave-out"

    def _roles(self, usable: list[Scan]) -> dict[str, Split]:
        if self._folders:
            return {scan.subject: self._folders[scan.subject] for scan in usable}
        p = self.params
        patients = {scan.subject for scan in usable if LESION in scan.files}
        healthy = [scan for scan in usable if scan.subject not in patients]
        ill = [scan for scan in usable if scan.subject in patients]
        roles = self._drawn(healthy, p.val_share, 0.0)
        # Where healthy subjects teach, patients need not.
        val = p.val_share / max(p.val_share + p.test_share, 1e-9)
        return roles | (self._drawn(ill, val, 1 - val) if healthy else self._drawn(ill, p.val_share, p.test_share))

    # -- what the volumes are like -----------------------------------------------------------------------------------

    @cached_property
    def _images(self) -> list[File]:
        images = [scan.files[kind] for scan in self.index.scans for kind in scan.sequences]
        if not images:
            raise UserError(f"There are masks and no images in {self.root}. Expected there: {self.info.layout}.")
        return images

    @cached_property
    def _skull(self) -> bool:
        if self.params.skull != "auto":
            return self.params.skull == "yes"
        problem: UserError | None = None
        for image in self._images:
            try:
                return float((nifti.read(image).data == 0).mean()) < STRIPPED
            except UserError as error:  # that case is reported when its turn comes; the others are prepared
                problem = problem or error
        assert problem is not None
        raise problem

    @property
    def skull(self) -> bool:
        return self._skull

    @cached_property
    def _template_grid(self) -> bool:
        from adbench.datasets.recipe.template import same_grid

        fits = []
        for image in self._images:
            with suppress(UserError):  # as above
                header = nifti.read_header(image)
                fits.append(same_grid(header.shape, header.affine))
        return bool(fits) and all(fits)

    @property
    def on_template(self) -> bool:
        return self._template_grid

    @property
    def lesion_labels(self) -> tuple[int, ...] | None:
        return self.params.lesion_labels or None

    def companion_of(self, modality: str) -> str:
        """T1 where there is a skull: tools that find the brain want a T1."""
        return "T1" if self.skull else modality

    @property
    def expected(self) -> Expected:
        """Every sequence that is there, on one grid, masks where others have them."""
        return Expected(
            sequences=self.available(),
            lesion=self._masks_anywhere and self.params.unmasked == "refuse" and not self._folders,
        )


def compile_pattern(text: str) -> re.Pattern[str]:
    """A path pattern as a regular expression that matches the end of a path.

    ``{subject}``, ``{session}``, ``{site}`` and ``{modality}`` are parts of one name (a second mention must be equal),
    ``*`` is anything within a name, ``**`` any folders.

    Raises:
        UserError: an unknown field, or no ``{subject}``.
    """
    seen: set[str] = set()

    def field(name: str) -> str:
        if name not in FIELDS:
            raise UserError(f"Unknown field {{{name}}} in the pattern {text!r}: there are {', '.join(FIELDS)}.")
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


def holds_volumes(root: Path) -> bool:
    """Whether a NIfTI file lies anywhere below the folder ``root``."""
    return bool(walk(root).volumes)
