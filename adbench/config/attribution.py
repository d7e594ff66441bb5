"""Author, licence and link of a shared fit or a published result, with their validation."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")  # an SPDX identifier, or what the Hugging Face Hub calls one
_LINK = re.compile(r"https://[!-~]+")
# What Unicode says may be left out of sight (Default_Ignorable_Code_Point), and str.isprintable() lets pass.
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_EMPTY = "\u2800"  # a braille cell without dots


def is_licence(text: str) -> bool:
    """Whether ``text`` reads as the identifier of a licence, such as CC-BY-4.0: a single word."""
    return bool(_LICENCE.fullmatch(text))


def is_seen(text: str) -> bool:
    """Whether ``text`` is one line without space around it, in which every character is seen and one is no mark upon others."""
    ink = any(unicodedata.category(letter)[0] in "LNPS" and letter != _EMPTY for letter in text)
    return ink and text.isprintable() and text == text.strip() and not _IGNORABLE.search(text)


def _licence(text: str) -> str:
    if not is_licence(text):
        raise ValueError("it must be an identifier of one word, such as CC-BY-4.0, CC0-1.0 or MIT")
    return text


def _link(text: str) -> str:
    if text and not _LINK.fullmatch(text):
        raise ValueError("it must be an https address")
    return text


Licence = Annotated[str, Field(max_length=100), AfterValidator(_licence)]
Link = Annotated[str, Field(max_length=300), AfterValidator(_link)]
"""An https address, or "" for none."""


def first_error(error: ValidationError, most: int = 1000) -> str:
    """The first thing that is wrong with the values of a file, as "field: why".

    More than ``most`` errors are counted only: a list of them takes a thousand bytes each.
    """
    if error.error_count() > most:
        return f"{error.error_count()} values are missing, unknown or of a wrong type"
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg'].removeprefix('Value error, ')}"
