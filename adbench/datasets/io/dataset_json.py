"""``dataset.json`` of nnU-Net and of the Medical Segmentation Decathlon: what the channels and the labels are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adbench.datasets.io.archive import File, read_bytes
from adbench.datasets.io.filename_patterns import MODALITIES, modality_of
from adbench.datasets.io.mask_names import says_no_lesion
from adbench.errors import UserError
from adbench.utils import limits
from adbench.utils.plain_files import parse_json, read_json

IGNORE = "ignore"  # the label of nnU-Net for what was not annotated
_BACKGROUND = "background"


def read_described(file: File) -> dict[str, Any]:
    """The content of ``file``, which may lie in a tar or behind a link.

    Raises:
        UserError: it is no such file.
    """
    try:
        if isinstance(file, Path):
            content = read_json(file.resolve(), limits.RECORD_BYTES)
        else:
            limits.check(file, "has", file.size, limits.RECORD_BYTES)
            content = parse_json(read_bytes(file), limits.RECORD_VALUES)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again.") from None
    return content


def channels_of(file: File, content: dict[str, Any]) -> tuple[str, ...]:
    """The modality of each channel, by its number; "" for one that is none. Empty where ``content`` names no channels.

    Raises:
        UserError: a channel without a number, a modality twice, or no channel is a known modality.
    """
    said = content.get("channel_names") or content.get("modality")
    if not isinstance(said, dict):
        return ()
    names: dict[int, str] = {}
    for key, name in said.items():
        if not re.fullmatch("[0-9]{1,4}", key):
            raise UserError(
                f"{file} gives a channel the number {key[:40]!r}: write 0 for the first one, whose files end in _0000."
            )
        names[int(key)] = str(name)[:40]
    found = tuple(_modality(names.get(number, "")) for number in range(max(names) + 1))
    if not any(found):
        raise UserError(
            f"{file} names the channels {', '.join(names.values())}, none of which is a known modality: say them with "
            f"--set dataset.channels=[FLAIR] (known: {', '.join(MODALITIES)})."
        )
    check_distinct(found, str(file))
    return found


def check_distinct(channels: tuple[str, ...], where: str) -> None:
    """Refuse a modality that is given to two channels.

    Raises:
        UserError: names it.
    """
    if twice := [name for name, times in Counter(channels).items() if name and times > 1]:
        raise UserError(
            f"{where} gives {twice[0]} to {channels.count(twice[0])} channels: name the one that is to be used, and call the "
            "others by another name."
        )


def _modality(name: str) -> str:
    return modality_of(re.sub(r"[-_ ]?(weighted|w|mri)$", "", name.lower())) or modality_of(name)


def labels_of(file: File, content: dict[str, Any]) -> dict[int, str]:
    """Label -> what it marks. nnU-Net 2 gives a name the label, or a region several, of which the smallest counts; others give
    a label the name.

    Raises:
        UserError: what stands there is neither, or the background is not 0.
    """
    said = content.get("labels") or {}
    if not isinstance(said, dict):
        raise UserError(
            f'{file} gives as labels {str(said)[:40]!r}: write names with their labels, such as {{"lesion": 1}}.'
        )
    regions: list[tuple[list[int], str]] = []
    for key, value in said.items():
        if _whole(key) is not None and isinstance(value, str):
            labels, name = [_whole(key)], value
        else:
            labels, name = [_whole(label) for label in (value if isinstance(value, list) else [value])], key
        if None in labels:
            raise UserError(
                f"{file} gives {str(key)[:40]!r} the label {str(value)[:40]!r}: write a whole number from 0, or a list of them."
            )
        if name.strip().casefold() == _BACKGROUND and labels != [0]:
            raise UserError(f"{file} gives the background the label {str(value)[:40]!r}: 0 is the background.")
        regions.append(([label for label in labels if label is not None], name))
    regions.sort(key=lambda region: (region[1].strip().casefold() == IGNORE, -len(region[0])))
    return {label: name for labels, name in regions for label in labels}


def tissues_among(file: File, labels: Mapping[int, str], instead: str) -> str:
    """What to say where ``labels`` count as lesion and some of them bear the names of tissues; "" where none does.

    Args:
        file: that gives the names.
        labels: label -> its name.
        instead: what names the labels that are lesion, with ``{lesions}`` for the others.
    """
    counted = {label: name for label, name in labels.items() if label and name.strip().casefold() != IGNORE}
    tissues = {label: name for label, name in counted.items() if says_no_lesion(name)}
    if not tissues:
        return ""
    others = ",".join(str(label) for label in sorted(counted.keys() - tissues)) or "..."
    listed = " and ".join(f"{label} {name.strip()[:40]!r}" for label, name in sorted(tissues.items()))
    what = "which sounds like a tissue" if len(tissues) == 1 else "which sound like tissues"
    return f"{file} calls label {listed}, {what}: {instead.format(lesions=others)}."


def _whole(value: object) -> int | None:
    """``value`` as a label, None where it is none: a number, or one written as text."""
    if isinstance(value, str):
        return int(value) if re.fullmatch("[0-9]{1,9}", value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value < 2**31:
        return None
    return int(value)
