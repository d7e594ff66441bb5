"""Read untrusted plain files and JSON: within limits, never through a link, never built before they are counted.

The rule for links: in a folder that adbench writes and people pass on (runs, fits, submissions, boards, what unpacks from an
archive) there are none, and one that is there is refused. In a folder of data that the user names (``--data-root``,
``--images``, ``--maps``, ``--masks``) they are common and followed; what they lead to must be a plain file, and is read as
an untrusted one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from adbench.errors import UserError
from adbench.utils import limits
from adbench.utils.limits import JSON_DEPTH, JSON_KEYS, RECORD_VALUES

_STRING = re.compile(rb'"[^"\\]*+(?:\\.?+[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_OTHER = bytes(set(range(256)) - set(b",[]{}"))


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading; what lies in an untrusted folder must be a file, not a link out of it, a pipe or a device.

    Raises:
        FileNotFoundError: there is nothing.
        UserError: it is no plain file, or cannot be read.
    """
    if Path(path).is_symlink():
        raise UserError(f"{path} is a link, not a file: links are not followed. Put the file itself there.")
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"There is no file {path}: it is a folder, a pipe or a device.")
    return open(number, "rb")


def check_plain_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than plain files and folders, or JSON larger than a record.

    Raises:
        UserError: names the file.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            try:
                with open_plain(path) as file:
                    size = os.fstat(file.fileno()).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
            if path.suffix == ".json":
                limits.check(path, "has", size, limits.RECORD_BYTES)


def check_no_link(path: Path, root: Path) -> None:
    """Refuse a path that leaves ``root`` through a link: of its folders below ``root`` none is one.

    Raises:
        UserError: names the link.
    """
    for folder in path.relative_to(root).parents[:-1]:
        if (root / folder).is_symlink():
            raise UserError(
                f"{root / folder} is a link, not a folder: links are not followed. Put the folder itself there."
            )


def read_plain(path: Path, most: int) -> bytes:
    """The bytes of a plain file; at most ``most`` of them are read.

    Raises:
        FileNotFoundError: there is nothing.
        UserError: it is no plain file (:func:`open_plain`), or larger.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
        if len(data) > most:
            size = os.fstat(file.fileno()).st_size
            raise UserError(f"{path} has {size} bytes; such a file has at most {most}. It is not what its name says.")
    return data


def read_table(path: Path, separators: str, *, strict: bool = False) -> tuple[list[list[str]], str]:
    """The cells of each row of a text table (CSV, TSV), and the one of ``separators`` between them: what the first line has most of.

    Args:
        path: of the file.
        separators: one sign each.
        strict: refuse quotes that do not end, or end within a cell.

    Raises:
        FileNotFoundError: there is nothing.
        UserError: it is no plain file, too large, no text, or no table.
    """
    data = read_plain(path, limits.TABLE_BYTES)
    cells = sum(data.count(sign.encode()) for sign in {"\n", "\r", *separators})
    limits.check(path, "has", cells, limits.TABLE_VALUES)
    try:
        text = data.decode("utf-8-sig")
        separator = max(separators, key=text.partition("\n")[0].count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)), separator
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The table {path} cannot be read ({error}): copy it again, or move it away.") from None


def parse_json(data: bytes, most: int) -> Any:
    """A JSON value of at most ``most`` values, nested no deeper than ``JSON_DEPTH``; both are seen before it is built.

    What Python accepts beyond the standard is refused too: a key twice, NaN, numbers without bound.

    Raises:
        ValueError: says what is wrong.
    """
    check_json(data, most)
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_distinct,
        parse_constant=_refuse,
        parse_float=_finite,
        parse_int=_small,
    )


def read_json(path: Path, most_bytes: int, most: int = RECORD_VALUES) -> Any:
    """The JSON value in a plain file; see :func:`read_plain` and :func:`parse_json`.

    Raises:
        FileNotFoundError: there is nothing.
        UserError: anything else that is wrong.
    """
    data = read_plain(path, most_bytes)
    try:
        return parse_json(data, most)
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from None


def check_json(data: bytes, most: int) -> None:
    """Refuse JSON text of more than ``most`` values, or nested deeper than ``JSON_DEPTH``, without parsing it.

    Raises:
        ValueError: it is such a text.
    """
    quotes = data.count(b'"') - data.count(b'\\"')
    structure = b""
    if quotes <= 4 * most:  # five times as fast where no text has an escape, as in results
        outside = _STRING.sub(b"", data) if b"\\" in data else b"".join(data.split(b'"')[::2])
        structure = outside.translate(None, _OTHER)
    opened = structure.count(b"[") + structure.count(b"{")
    if quotes > 4 * most or structure.count(b",") + opened > most:
        raise ValueError(f"it has more than {most} values, the limit")
    brackets = structure.translate(None, b",")
    if max(accumulate(1 if sign in b"[{" else -1 for sign in brackets), default=0) > JSON_DEPTH:
        raise ValueError(f"it is nested more than {JSON_DEPTH} deep, the limit")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > JSON_KEYS:
        raise ValueError(f"an object in it has {len(pairs)} keys, and {JSON_KEYS} are the limit")
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _small(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"the number {text[:40]} is too large")
    return int(text)
