"""Parse the file names of masks: the structure, and the part where a scan has several masks."""

from __future__ import annotations

import re
from collections.abc import Container

LESION, BRAIN = "lesion", "brain"
LESION_WORDS = [
    "seg",
    "segmentation",
    "lesion",
    "lesions",
    "lesionmask",
    "label",
    "labels",
    "gt",
    "consensus_gt",
    "msk",
    "tumor",
    "gtv",
    "wmh",
]
ANY_MASK = ("mask", "dseg")  # a dseg of BIDS is most often one of tissues: the rest of the name must say what it is
_SAYS_LESION = re.compile(r"(?<!non)(?<!non[-_])(?:lesion|tumo)|[-_]label-l(?:_|$)|(?:^|[-_])wmh(?:[-_]|$)")
_SAYS_TISSUE = re.compile(
    r"(?:^|[-_])(?:gm|wm|csf|gmwm|gr[ae]ymatter|whitematter|tissues?|aseg|aparc|parc|parcellation|ventricles?|atlas|hippocampus)(?:[-_]|$)"
)
# Names of labels, which are written more freely than names of files.
_NO_LESION = re.compile(
    r"(?:^|[-_])(?:[gw]m|csf|(?:gr[ae]y|white)_?matter|tissues?|cortex|cortical|cerebell(?:um|ar)|cerebrum|ventricles?|brain_?stem|"
    r"thalamus|hippocampus|putamen|caudate|pallidum|amygdala|skull|scalp|bone|air)(?:[-_]|$)"
    r"|^(?:(?:whole|healthy|normal)_?)?(?:brain|head)(?:_?mask)?$|^(?:healthy|normal)$"
)
_ILL = re.compile(
    r"lesion|tumo|hyperintens|infarct|stroke|ischa?em|ha?emorrh|ha?ematoma|o?edema|metast|gli[ao]|blastoma|necro|enhanc|cyst|plaque|"
    r"abscess|malform|bleed|dysplas|cancer|patholog|disease|abnormal|anomal|wmh|oma(?:_|s|$)|tuber|contus|avm|demyelin|damag|scar|"
    r"penumbra|heterotop|cavit|changes|leukoaraio|malacia"
)
WEAK = (
    "seg",
    "segmentation",
    "label",
    "labels",
    "gt",
)  # of a lesion unless the name says that it is of something else
# Pieces of a scan's masks: sides and raters anywhere behind the name of the image, letters and numbers only at the end,
# where they are no patient's.
_SIDE = r"(?:left|right|lh|rh|l|r|hemi[-_]?[lr])"
_RATER = (
    r"(?:(?:rater|reader|observer|obs|expert|annotator|grader|reviewer|radiologist)[-_]?(?:\d{1,2}|[a-z]{1,2})"
    r"|manual[-_]?\d{0,2}|r[-_]?\d{1,2})"
)
_MASKS = "|".join(sorted({*LESION_WORDS, *ANY_MASK, "brainmask"}, key=len, reverse=True))
_LAST_PIECE = re.compile(
    rf"(?P<mask>[-_](?:{_MASKS}))(?:[-_]?\d{{1,2}}|[-_](?:{_SIDE}|{_RATER}|[a-h]))$", re.IGNORECASE
)
_PIECE = re.compile(rf"(?<!label)[-_](?:{_SIDE}|{_RATER})(?=[-_](?:.*[-_])?(?:{_MASKS})$)", re.IGNORECASE)
_FIRST_PIECE = re.compile(r"^(?:left|right|lh|rh)[-_.]", re.IGNORECASE)
_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+_", re.IGNORECASE)


def words_end(name: str) -> list[int]:
    """Where words of ``name`` end, the last first."""
    return [len(name), *(mark.start() for mark in reversed(list(re.finditer(r"[-_]", name))))]


def image_part(name: str, images: Container[str]) -> int | None:
    """The length of the longest start of ``name`` that is in ``images``; None where there is none."""
    return next((end for end in words_end(name) if name[:end].lower() in images), None)


def without_piece(stem: str, images: Container[str]) -> str:
    """``stem`` without the side or the rater where it names a piece of a mask: ``p1_seg`` of ``p1_L_seg`` and of ``p1_seg_r2``.

    Behind the name of an image alone, as the same words may be a patient's.
    """
    for name in dict.fromkeys((stem, _FIRST_PIECE.sub("", stem))):
        own = 0 if _SUBJECT.match(name) else image_part(name, images)
        if own is not None:
            behind = _LAST_PIECE.sub(r"\g<mask>", name[own:])
            return name[:own] + (behind if own == 0 else _PIECE.sub("", behind, count=1))
    return stem


def mask_of(words: str) -> str | None:
    """Of what a mask is whose name holds ``words``: a lesion before all else; "" of tissues, None where nothing is said."""
    if _SAYS_LESION.search(words):
        return LESION
    return BRAIN if "brain" in words else "" if _SAYS_TISSUE.search(words) else None


def says_no_lesion(label: str) -> bool:
    """Whether the name of a label is that of a tissue or an organ: "white matter", not "white matter hyperintensity"."""
    words = re.sub(r"[\W_]+", "_", label.casefold())
    return bool(_NO_LESION.search(words)) and not _ILL.search(words)
