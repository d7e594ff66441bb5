"""Files of unknown origin are refused by their size, number of values, depth or kind before they cost anything."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adbench.errors import UserError
from adbench.utils.limits import JSON_DEPTH, JSON_KEYS
from adbench.utils.plain_files import parse_json, read_json, read_plain, read_table

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=50)
@given(VALUES)
def test_json_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), 1000) == json.loads(json.dumps(value))
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), 1000) == value


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('[]{}",:\\01ae-. ', max_size=200).map(str.encode))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    strict, usual = _parsed(lambda: parse_json(data, 1000)), _parsed(lambda: json.loads(data.decode("utf-8")))
    refused = ("ValueError", "JSONDecodeError", "UnicodeDecodeError")
    assert strict == usual or strict.startswith(refused)
    assert not usual.startswith(refused) or strict.startswith(refused)


def _parsed(read: Callable[[], Any]) -> str:
    try:
        return json.dumps(read())
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 10_000_000, "more than 1000 values"),
        (b"[" * (JSON_DEPTH + 1), "nested more than"),
        (b'{"":0,' * 1000, "more than 1000 values"),
        (b'{"a":' * (JSON_DEPTH + 1), "nested more than"),
        (b'["",' * 2_000_000, "more than 1000 values"),
        (b'"\\' + b'"\\' * 2_000_000, "Unterminated|Expecting|Invalid"),
        (b"[1," * 3 + b"1" * 5_000_000 + b"]", "too large"),
    ],
)
def test_bombs_cost_no_more_than_themselves(data: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=says):
            parse_json(data, 1000)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_brackets_and_commas_within_texts_do_not_count() -> None:
    text = json.dumps(["[,{" * 1000 + '\\"' * 10, {"]": "}"}])
    assert parse_json(text.encode(), 10) == json.loads(text)


def test_ten_thousand_equal_keys(tmp_path: Path) -> None:
    """Finding the key that occurs twice takes no time: it once took the square of their number, in memory too."""
    path = tmp_path / "keys.json"
    path.write_bytes(b"{" + b",".join([b'"":0'] * JSON_KEYS) + b"}")
    with pytest.raises(UserError, match=r"keys.json is not readable JSON: the key '' occurs twice"):
        read_json(path, 1 << 20)
    path.write_text(json.dumps({str(number): 0 for number in range(JSON_KEYS + 1)}))
    with pytest.raises(UserError, match=f"an object in it has {JSON_KEYS + 1} keys, and {JSON_KEYS} are the limit"):
        read_json(path, 1 << 20)


def test_tables_are_read_by_the_separator_of_their_first_line_and_counted_before(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text('a;b;"c"\n1,5;"x\ny";\n')
    assert read_table(path, ",;\t") == ([["a", "b", "c"], ["1,5", "x\ny", ""]], ";")
    for data, says in (
        (b"\n" * 600_000, "table.tsv has 600000 values, where at most 500000 are read.*ADBENCH_MAX_TABLE_VALUES"),
        (b"a\tb\n" + b"\t" * 600_000, "table.tsv has 600002 values"),
        (b"\xff\xfe", "cannot be read"),
        (b"x" * 200_000, "cannot be read"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=says):
            read_table(path, "\t")
    path.write_text('a,b\n"1"2,3\n')
    with pytest.raises(UserError, match="cannot be read"):
        read_table(path, ",", strict=True)


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UserError, match="file has 5 bytes; such a file has at most 4"):
        read_plain(tmp_path / "file", 4)
    for name, says in (("link", "is a link"), ("nowhere", "is a link"), ("pipe", "no file"), (".", "no file")):
        with pytest.raises(UserError, match=says):
            read_plain(tmp_path / name, 100)
    with pytest.raises(UserError, match="no file"):
        read_plain(Path("/dev/zero"), 100)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "nothing", 100)
