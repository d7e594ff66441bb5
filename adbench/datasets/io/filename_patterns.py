"""Parse file names: dataset, subject, visit, site and sequence.

Patterns describe the end of a path, so a layout may lie at any depth.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from adbench.datasets.io.mask_names import (
    ANY_MASK,
    BRAIN,
    LESION,
    LESION_WORDS,
    WEAK,
    image_part,
    mask_of,
    without_piece,
    words_end,
)
from adbench.datasets.io.patient_names import split_visit

CHANNELS = "channels"  # one 4-D file that holds several sequences
UNCLEAR = "mask"  # a mask whose name does not say of what
MODALITIES = ("FLAIR", "T1", "T2", "T1CE", "PD", "DWI", "ADC")
_MODALITIES = {name.lower(): name for name in MODALITIES} | {
    "t1w": "T1", "t1n": "T1", "t1c": "T1CE", "t1gd": "T1CE", "t1wks": "T1CE", "ce-t1w": "T1CE", "gado": "T1CE",
    "t2w": "T2", "t2f": "FLAIR", "pdw": "PD", "trace": "DWI",
}  # fmt: skip
_KINDS = _MODALITIES | dict.fromkeys(LESION_WORDS, LESION) | {"brainmask": BRAIN}
_SAYS_FILLED = re.compile(
    r"(?:filled|inpainted|inpainting|pseudo-?healthy)(?=[-_]|$)"
)  # an image without the lesion that was there
_SAYS_OF_WHAT = re.compile(
    rf"(?:[-_](?:brain|lesion|tumou?r|wmh?|{'|'.join(_MODALITIES)}))+$", re.IGNORECASE
)  # no patient's
_WORD = re.compile(r"^(?P<rest>.+)[-_](?P<word>[A-Za-z0-9]+)$")
_BIDS = re.compile(
    r"^(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?(?P<entities>(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*)$",
    re.IGNORECASE,
)
_EXPORTED = re.compile(rf"^(?P<case>.+)_(?P<what>brain|lesion|{'|'.join(MODALITIES)})_space-(?:prepared|original)$")


@dataclass(frozen=True)
class Named:
    """A parsed file name.

    Attributes:
        family: key of :data:`SETS`.
        subject: identity that splits keep together.
        session: of the subject; "" when the dataset knows none.
        site: scanner or centre, "" when the name does not say.
        kind: modality, :data:`LESION`, :data:`BRAIN`, :data:`CHANNELS`, :data:`UNCLEAR`, or "" for a sequence that is not
            used.
        rank: of several files that mean one thing, the one with the lowest rank is used; equal ranks are a conflict.
    """

    family: str
    subject: str
    session: str
    site: str
    kind: str
    rank: tuple[int, ...] = ()


@dataclass(frozen=True)
class KnownSet:
    """The file names of one published dataset.

    Attributes:
        title: for messages.
        names: patterns of a path's end with the groups subject, session, site and kind -> what such a file is; None: its
            group ``kind`` says it. The first that fits decides, and gives the file its rank where ``ranked``.
        dataset: that reads it, "" for none.
        instead: how it is read where none does, for messages.
        subject: made of the groups.
        ranked: whether an earlier pattern wins over a later one.
        distinct: whether the names are found in no other release.
        not_counted: labels of its lesion masks that are neither lesion nor healthy -> what they mark.
        case: pattern of the name of a case, for files that were renamed.
    """

    title: str
    names: Mapping[re.Pattern[str], str | None]
    dataset: str = ""
    instead: str = ""
    subject: str = "{subject}"
    ranked: bool = False
    distinct: bool = True
    not_counted: Mapping[int, str] = field(default_factory=dict)
    case: re.Pattern[str] | None = None

    def named(self, family: str, path: str) -> Named | None:
        """Parse ``path``; None when it is none of this set's names."""
        for number, (pattern, kind) in enumerate(self.names.items()):
            if match := pattern.search(path):
                found = {"subject": "", **match.groupdict("")}
                if kind is None:
                    kind = _KINDS.get(found["kind"].lower(), "")
                site = found.get("site", "").replace("/", " ")
                subject = self.subject.format(**{**found, "site": re.sub(r"\W+", "-", site).strip("-")})
                rank = (number,) if self.ranked else ()
                return Named(family, subject, found.get("session", ""), _IXI_SITES.get(site.lower(), site), kind, rank)
        return None


def _names(names: dict[str, str | None]) -> dict[re.Pattern[str], str | None]:
    """Patterns of the ends of paths, in upper or lower case: copies of a release are often renamed to one of them."""
    return {re.compile(rf"(?:^|/){name}\.nii(?:\.gz)?$", re.IGNORECASE): kind for name, kind in names.items()}


_IXI_SITES = {"guys": "Guy's", "hh": "HH", "iop": "IOP"}
_IXI = r"(?P<subject>IXI\d{3})-(?P<session>(?P<site>Guys|HH|IOP)-\d{4})"
_ATLAS = r"(?P<subject>sub-(?P<site>r\d{3})s\d{3})(?:_(?P<session>ses-[A-Za-z0-9]+))?"
_ENTITIES = r"(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*"
_BRATS = r"_(?P<kind>t1|t1ce|t2|flair|seg)"
_BRATS23 = r"\d{5})-(?P<session>\d{3})-(?P<kind>t1n|t1c|t2w|t2f|seg)"


def _case(group: str) -> re.Pattern[str]:
    """A case of a BraTS group wherever its name stands in a path: as nnU-Net and other users of the release spell it."""
    return re.compile(rf"(?<![A-Za-z0-9])BraTS[-_]?{group}[-_]?[0-9]{{5}}(?:[0-9]{{3}})?(?![0-9])", re.IGNORECASE)


_CAVITY = {4: "resection cavity"}  # of treated patients, from 2024
_WMH = r"(?P<site>Utrecht|Singapore|Amsterdam(?:/[^/]+)?)/(?P<subject>\d+)/"
_SOOP = r"(?P<subject>sub-\d+)(?:_(?P<session>ses-[A-Za-z0-9]+))?" + _ENTITIES
# A mask whose name says that it marks something else, beside the masks of lesions.
_OF_ANOTHER = r".*_(?:desc|label)-(?!l_|(?!non)[a-z0-9]*(?:lesion|stroke|infarct|acute|chronic))"
SETS = {
    "ixi": KnownSet(
        "IXI",
        _names(
            {
                rf"{_IXI}[-_]T1[-_](?:bet_|brain_?)?(?:mask)": BRAIN,  # it serves the other sequences too
                rf"{_IXI}[-_](?:[A-Za-z0-9]+[-_])?(?:bet_|brain_?)?(?:mask)": BRAIN,
                rf"(?:masks?)/{_IXI}[^/]*": BRAIN,
                rf"{_IXI}[-_](?P<kind>[A-Za-z0-9]+)(?:-\d+)?": None,
                rf"{_IXI}[-_](?P<kind>[A-Za-z0-9]+)[-_](?:bet|brain|stripped)": None,
            }
        ),
        "ixi",
        ranked=True,
    ),
    "atlas": KnownSet(
        "ATLAS v2.0",
        _names(
            {
                rf"{_ATLAS}(?=[^/]*(?:lesion)){_ENTITIES}_mask": LESION,
                rf"{_ATLAS}{_ENTITIES}_mask": "",
                rf"{_ATLAS}{_ENTITIES}_T1w": "T1",
                rf"(?:masks)/{_ATLAS}{_ENTITIES}": LESION,
                rf"(?:images)/{_ATLAS}{_ENTITIES}": "T1",
            }
        ),
        "atlas",
    ),
    "brats21": KnownSet(
        "BraTS'21",
        _names({r"(?P<subject>BraTS2021_\d{5})" + _BRATS + end: None for end in ("", r"\.nii/[^/]+")}),  # a folder named .nii
        "brats21",
    ),
    "brats20": KnownSet("BraTS'20", _names({r"(?P<subject>BraTS20_(?:Training|Validation)_\d{3})" + _BRATS: None})),
    "brats19": KnownSet(
        "BraTS'17-'19", _names({r"(?P<subject>Brats1[789]_\w+?)" + _BRATS: None})
    ),
    "brats23": KnownSet(
        "BraTS2023-GLI", _names({r"(?P<subject>BraTS-GLI-" + _BRATS23: None}), "brats23", not_counted=_CAVITY, case=_case("GLI")
    ),
    "brats23-met": KnownSet(
        "BraTS2023-MET", _names({r"(?P<subject>BraTS-MET-" + _BRATS23: None}), "brats23", not_counted=_CAVITY, case=_case("MET")
    ),
    "brats23-other": KnownSet(
        "BraTS2023 (PED, MEN, SSA)", _names({r"(?P<subject>BraTS-(?:PEDs?|MEN|SSA)-" + _BRATS23: None}), "brats23"
    ),
    "brats24-men-rt": KnownSet(
        "BraTS2024-MEN-RT",
        _names({r"(?P<subject>BraTS-MEN-RT-\d{4})-(?P<session>\d{1,3})_(?P<kind>t1c|gtv)": None}),
        instead="meningiomas before radiotherapy, a contrast-enhanced T1 with skull and the gross tumour volume as mask: "
        "--dataset folder reads them as they are",
    ),
    "brats24-goat": KnownSet(
        "BraTS2024-GoAT",
        _names({r"(?P<subject>BraTS-GoAT-\d{5})-(?P<kind>t1n|t1c|t2w|t2f|seg)": None}),
        instead="cases of several BraTS groups under numbers of their own: --dataset folder reads them as they are; never train "
        "on them and test on another BraTS set",
    ),
    "msd": KnownSet(
        "MSD Task01 (brain tumours)",
        _names(
            {
                r"imagesT[rs]/(?P<subject>BRATS_\d+)": CHANNELS,
                r"labelsTr/(?P<subject>BRATS_\d+)": LESION,
            }
        ),
        "msd_brain",
    ),
    "isles22": KnownSet(
        "ISLES'22",
        _names(
            {rf"(?P<subject>sub-strokecase\d+)_(?P<session>ses-\d+){_ENTITIES}_(?P<kind>flair|dwi|adc|msk)": None},
        ),
        "isles22",
    ),
    "mslub": KnownSet(
        "MSLUB",
        _names(
            {
                r"raw/patient\d+[_/]\w+": "",
                r"coregistered/(?P<subject>patient\d+)/(?:patient\d+_)?(?P<kind>FLAIR|T1W|T2W|T1WKS|consensus_gt|brainmask)": None,
                r"(?P<subject>patient\d+)_(?P<kind>FLAIR|T1W|T2W|T1WKS|consensus_gt|brainmask)": None,
            }
        ),
        "mslub",
    ),
    "wmh": KnownSet(
        "the WMH challenge",
        _names({rf"{_WMH}pre/(?P<kind>FLAIR|T1)": None, rf"{_WMH}orig/(?P<kind>FLAIR|T1)": None, rf"{_WMH}wmh": LESION}),
        "wmh",
        subject="{site}-{subject}",
        ranked=True,
        not_counted={2: "other disease"},
    ),
    "soop": KnownSet(
        "SOOP",
        _names(
            {
                rf"derivatives/[^/]*lesion[^/]*/.*{_SOOP}_desc-lesion_(?:mask|dseg)": LESION,  # acute and chronic in one
                rf"derivatives/[^/]*lesion[^/]*/(?!{_OF_ANOTHER}).*{_SOOP}_(?:mask|dseg)": LESION,
                rf"(?=[^/]*[-_]adc[-_]){_SOOP}_(?:dwi|trace)": "ADC",
                rf"{_SOOP}_(?P<kind>T1w|FLAIR|trace|adc|dwi)": None,
            }
        ),
        "soop",
        ranked=True,
        distinct=False,
    ),
}  # fmt: skip


def recognise(path: str) -> Named | None:
    """Parse a file name by the known releases; None when it follows none of them.

    Args:
        path: of the file, with ``/``.
    """
    for family, known in SETS.items():
        if known.distinct and (found := known.named(family, path)):
            return found
    return None


def release_of(path: str) -> str:
    """The key in :data:`SETS` of the release whose name a file bears, or whose case it is of; "" for none."""
    if known := recognise(path):
        return known.family
    return next((family for family, known in SETS.items() if known.case and known.case.search(path)), "")


def release_among(paths: Collection[str]) -> str:
    """The key in :data:`SETS` of the release that files below a root look like, "" for none."""
    if known := next((found for path in paths if (found := recognise(path)) and SETS[found.family].dataset), None):
        return known.family
    soop = SETS["soop"]  # its names are those of BIDS; no other set has a trace image and a folder of lesion masks
    masks = any((found := soop.named("soop", path)) and found.kind == LESION for path in paths)
    traces = any(re.search(r"_trace\.nii(?:\.gz)?$", path, re.IGNORECASE) for path in paths)
    return "soop" if masks and traces else ""


def stem_of(path: str) -> str:
    """The name of a volume without its ending; of what ``data export`` wrote, as other folders name it: ``p07_brainmask``."""
    stem = re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(path).name, flags=re.IGNORECASE)
    if match := _EXPORTED.match(stem):
        return f"{match['case']}_{'brainmask' if match['what'] == 'brain' else match['what']}"
    return stem


def modality_of(word: str) -> str:
    """The modality that ``word`` means in any of its spellings ("t1gd", "T2W"), "" for none."""
    return _MODALITIES.get(word.lower(), "")


def image_names(stems: Iterable[str]) -> frozenset[str]:
    """Of the names that end with a modality, what stands before it, in lower case: ``patient07`` of ``patient07_FLAIR``."""
    found = (_WORD.match(stem) for stem in stems)
    return frozenset(match["rest"].lower() for match in found if match and modality_of(match["word"]))


def common_name(stem: str, images: Container[str] = ()) -> Named | None:
    """Parse a file name without its ending as BIDS, or by its last word; None where neither fits.

    ``sub-01_ses-1_ce-gadolinium_T1w``, ``patient07_flair``, ``patient07_lesion_mask``.

    Args:
        stem: the name.
        images: :func:`image_names` of the files that it may lie beside. What a mask shares with its image is no word for what
            it marks: ``wm_atlas_03_seg`` beside ``wm_atlas_03_flair`` is of a lesion, ``p3_wm_seg`` beside ``p3_flair`` is not.
    """
    stem = without_piece(stem, images)
    match = _WORD.match(stem)
    if match is None:
        return None
    rest, word = match["rest"], match["word"].lower()
    bids = _BIDS.match(rest)
    entities = bids["entities"].lower() if bids else rest.lower()
    kind = _KINDS.get(word, "")
    if kind == "DWI" and re.search(r"[-_]adc(?:[-_]|$)", entities):  # rec-ADC_dwi
        kind = "ADC"
    if bids and kind == "T1" and "_ce-" in entities:  # with a contrast agent
        kind = "T1CE"
    if word in ANY_MASK or word in WEAK:
        shared = None if bids else image_part(rest, images)
        own = shared if shared is not None else words_end(rest)[-1]  # else the first word is the patient's
        said = mask_of(entities if bids else entities[own:])
        if (
            said is None and shared is None and not (bids or word in WEAK)
        ):  # by its first word, where that is not a patient's name
            said = mask_of(re.sub(r"^brain.*\d.*$", "", entities))
        kind = said if said is not None else LESION if word in WEAK else UNCLEAR
        if kind == BRAIN and word in WEAK:  # of the brain, or of a lesion in a brain that was cut out
            kind = UNCLEAR
        rest = rest if bids else rest[: shared or 0] + re.sub(_SAYS_OF_WHAT, "", rest[shared or 0 :])
    elif not kind:
        return None
    elif kind in MODALITIES and _SAYS_FILLED.search(entities):
        kind = ""
    elif kind == LESION and not bids:
        shared = image_part(rest, images)
        rest = rest[: shared or 0] + re.sub(_SAYS_OF_WHAT, "", rest[shared or 0 :])
    if kind == LESION:
        rest = re.sub(r"[-_]consensus$", "", rest, flags=re.IGNORECASE)
    if bids:
        return Named("", bids["subject"], bids["session"] or "", "", kind)
    return Named("", *split_visit(rest), "", kind)
