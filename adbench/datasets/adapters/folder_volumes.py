"""Your own NIfTI volumes, recognised by patterns, as BIDS derivatives or by other common names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

from adbench.datasets import issues
from adbench.datasets.adapters.own_volumes import OwnParams, OwnVolumes
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.filename_patterns import (
    CHANNELS,
    MODALITIES,
    SETS,
    Named,
    common_name,
    modality_of,
    recognise,
    stem_of,
)
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.io.patient_names import split_visit
from adbench.datasets.issues import Issue
from adbench.errors import UserError
from adbench.params import ParamSet, param

_CASE_FOLDER = re.compile(
    r"(?:sub-)?(?:BraTS(?:2021|[-_][a-z]+)[-_]\d{5}(?:[-_]\d{1,3})?|BraTS[-_]MEN[-_]RT[-_]\d{4}[-_]\d{1,3})(?!\d)",
    re.IGNORECASE,
)  # its files may have other names; four digits alone are a year
_FIELDS = ("subject", "session", "site", "modality")


class FolderParams(OwnParams):
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


SLICE_PIXELS = ("size", "modality")  # what shapes PNG slices
SLICE_FIELDS = (
    *SLICE_PIXELS,
    "val_share",
    "split_seed",
    "folds",
    "fold",
    "unmasked",
    "second_scans",
    "exclude",
    "name",
)  # what applies to PNG slices


class FolderVolumes(OwnVolumes):
    """Your own NIfTI volumes.

    Without patterns, BIDS names (``sub-01_ses-1_space-MNI_T1w.nii.gz`` with ``..._label-lesion_mask.nii.gz`` and
    ``..._desc-brain_mask.nii.gz``) and names that end with a sequence or a mask word are understood
    (``patient07_flair.nii.gz``, ``patient07_seg.nii.gz``, ``patient07_brainmask.nii.gz``).
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

    def faults(self) -> Iterator[Issue]:
        """Also files that an adapter of their own knows more of."""
        yield from super().faults()
        masked = any(LESION in scan.files for scan in self.index.scans)
        for family, file in self._releases.items():
            known, said = SETS[family], recognise(str(file))
            if known.dataset and said and not self._beside(family) and (not masked or said.kind in (LESION, CHANNELS)):
                message = (
                    f"{self.root} holds {known.title} ({file}), which --dataset {known.dataset} knows by its names"
                )
                yield issues.info("known-layout", file, message)
        if self._elsewhere:
            message = f"{self.root} is a BIDS dataset: --dataset bids reads who is healthy from its participants.tsv"
            yield issues.info("known-layout", self._root(), message)

    @property
    def _elsewhere(self) -> str:
        marks = ("dataset_description.json", "participants.tsv")
        bids = not self._patterns and any((self._root() / name).is_file() for name in marks)
        return ", or use --dataset bids, which reads participants.tsv" if bids else ""

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
        """By the patterns, else as BIDS, else by the last word of the name; the patient also by a folder of BraTS."""
        if not self._patterns:
            stem = stem_of(path)
            known = common_name(stem, self.image_names)
            if known is None and self.params.modality and not re.match(r"sub-[^_]+_", stem, re.IGNORECASE):
                known = Named("", *split_visit(stem), "", self._stated(path))
            return known and _of_its_folder(known, path)
        for kind, pattern in self._patterns:
            match = pattern.search(path)
            if match is None:
                continue
            parts = {name: match.groupdict().get(name) or "" for name in _FIELDS}
            if not kind:
                kind = modality_of(parts["modality"]) if parts["modality"] else self._stated(path)
                if not kind:
                    continue
            subject, visit = split_visit(parts["subject"])
            session = "_".join(part for part in (visit, parts["session"]) if part)
            return Named("", subject, session, parts["site"], kind)
        return None

    @cached_property
    def image_names(self) -> frozenset[str]:
        """Also the names that say nothing, where the modality was stated."""
        stems = [stem_of(path) for path in self.files.volumes if self.params.modality]
        return super().image_names | {stem.lower() for stem in stems if common_name(stem) is None}

    def _stated(self, path: str) -> str:
        """The modality that the user stated for names that do not say it."""
        stated = modality_of(self.params.modality)
        if not stated:
            raise UserError(
                f"The name of {path} does not say its modality: state it with --set dataset.modality=FLAIR (one of "
                f"{', '.join(MODALITIES)}), or with {{modality}} in dataset.image_pattern."
            )
        return stated


def _of_its_folder(name: Named, path: str) -> Named:
    """``name``, of the patient of BraTS in whose folder ``path`` lies, where the file's own name says none.

    ``BraTS2021_00000/BraTS2021_00000_flair.nii/00000_brain_flair.nii`` is of ``BraTS2021_00000``.
    """
    if not re.match(r"(?:sub-)?brats", name.subject, re.IGNORECASE):
        for part in reversed(PurePosixPath(path).parts[:-1]):
            if match := _CASE_FOLDER.match(part):
                subject, session = split_visit(match[0])
                return replace(name, subject=subject, session=session)
    return name


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
