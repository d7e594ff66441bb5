"""Files changed at random, and what every reader of strangers' files must do with them: a result, or one sentence.

The same changes each time; with ``-m nightly`` twenty times as many.
"""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adbench.errors import UserError

SECONDS, MEGABYTES = 5, 500
often = pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.nightly)])

# Numbers as formats state sizes, places and counts: the largest, negative, infinite, not a number.
_NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x7f\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\0\1", b"77777777777"]  # fmt: skip
_EDITS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 400), st.integers(0, 1 << 20)), st.sampled_from(_NUMBERS) | st.binary(max_size=6)
    ),
    max_size=5,
)


# Values as no program of ours writes them in this place.
_ODD: list[Any] = [None, True, -1, 0, 10**18, 0.5, -1e308, "", "x" * 5000, "a\x1b[31m", "../secret", "/dev/zero", [], {}, [[]], {"": {}}, [0] * 300]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, *honest: bytes) -> bytes:
    """One of some honest contents, overwritten here and there, with something put in, cut short or said twice."""
    content = bytearray(draw(st.sampled_from(honest)))
    for place, new in draw(_EDITS):
        place %= len(content) + 1
        content[place : place + len(new)] = new
    if draw(st.booleans()):
        start, stop = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        how = draw(st.sampled_from(["cut", "leave out", "repeat", "append"]))
        part = content[start:stop]
        content = {"cut": content[:stop], "leave out": content[:start] + content[stop:], "repeat": content[:stop] + part * 3, "append": content + part}[how]  # fmt: skip
    return bytes(content)


@st.composite
def changed_json(draw: st.DrawFn, honest: Any, signed: Callable[[Any], Any] = lambda content: content) -> bytes:
    """A JSON value in which parts are missing, or are odd ones, or those of another place.

    Args:
        draw: of hypothesis.
        honest: the value.
        signed: puts the digest of the changed value into it, so that it gets past that check.
    """
    content = copy.deepcopy(honest)
    for _ in range(draw(st.integers(1, 3))):
        parent, part = None, content
        while isinstance(part, dict | list) and part and (parent is None or draw(st.integers(0, 4))):
            place = draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
            parent, part = part, part[place]
        if parent is not None and draw(st.booleans()):
            del parent[place]
        elif parent is not None:
            parent[place] = copy.deepcopy(draw(st.sampled_from([*_ODD, content.get("digest", 1)])))
    return json.dumps(signed(content)).encode()


def held(
    tmp_path: Path, examples: int, files: st.SearchStrategy[bytes], name: str, *reads: Callable[[Path], object]
) -> None:
    """Write each file and read it; readers may write below ``tmp_path / "out"`` only."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=files)
    def one(content: bytes) -> None:
        path.write_bytes(content)
        for read in reads:
            began = time.process_time()
            sentence = ""
            try:
                read(path)
            except UserError as error:
                sentence = str(error)
            assert "\n" not in sentence
            assert len(sentence) < 1000
            assert time.process_time() - began < SECONDS
        assert path.read_bytes() == content

    one()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["in"], ["in", "out"])
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert not list(tmp_path.rglob("*.tmp"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000 < MEGABYTES
