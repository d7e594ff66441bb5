"""Stable digests of values and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path, chunk: int = 1 << 22) -> str:
    """SHA-256 (hex) of the bytes of ``path``, read in pieces of ``chunk`` bytes."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(chunk):
            state.update(block)
    return state.hexdigest()
