"""Stable digests of values and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adbench.errors import UserError

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_parts(parts: Mapping[str, str]) -> str:
    """:func:`digest` of the object whose values have the canonical JSON texts ``parts``, by key.

    Neighbouring cells share most of these texts, and need not have them made again.
    """
    text = ",".join(f"{canonical_json(name)}:{parts[name]}" for name in sorted(parts))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def digest_file(path: Path, chunk: int = 1 << 22) -> str:
    """SHA-256 (hex) of the bytes of ``path``, read in pieces of ``chunk`` bytes."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(chunk):
            state.update(block)
    return state.hexdigest()


def check_file(path: Path, written: str, way_out: str) -> None:
    """Hold ``path`` against the SHA-256 that it was written with.

    Args:
        path: the file.
        written: hex.
        way_out: a sentence that ends the message.

    Raises:
        UserError: it is missing or differs.
    """
    try:
        found = digest_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {way_out}") from None
    if found != written:
        raise UserError(
            f"{path} was changed: it has the SHA-256 {found[:16]} and was written with {written[:16]}. {way_out}"
        )


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` (JSON values) with its own digest, for a file that :func:`read_sealed` reads."""
    return {**content, "digest": digest(content)}


def read_sealed(path: Path, way_out: str) -> dict[str, Any]:
    """The content of a file that holds :func:`sealed` JSON.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). {way_out}") from None
    if (found := digest(content)) != written:
        raise UserError(
            f"{path} was changed: its content has the digest {found[:16]} and was written with {str(written)[:16]!r}. {way_out}"
        )
    return dict(content)
