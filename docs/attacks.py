"""The numbers of tests in ``docs/reliability.md``: of each ``pytest`` command there, how many tests CI runs by it.

``python docs/attacks.py`` writes them, ``--check`` says whether they are right.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent / "reliability.md"
COMMAND = re.compile(r"(?m)^(    pytest (tests/\S+(?: tests/\S+)*) +# )\d[\d,]* tests.*$")


def counted(page: str, items: Iterable[pytest.Item]) -> str:
    """``page`` with the numbers of the collected ``items``, and with those of the readers that get files changed at random."""
    parameters: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        file = item.nodeid.partition("::")[0]
        parameters.setdefault(file, []).append(item.callspec.params if hasattr(item, "callspec") else {})

    def line(match: re.Match[str]) -> str:
        places = tuple(match[2].split())
        found = [one for file, tests in parameters.items() if file.startswith(places) for one in tests]
        fuzzed = [one["examples"] for one in found if "examples" in one]
        files = f", {len(fuzzed)} of them on {sum(fuzzed):,} files changed at random" if fuzzed else ""
        return f"{match[1]}{len(found)} tests{files}"

    return COMMAND.sub(line, page)


def places(page: str) -> list[str]:
    """The files and folders of the commands."""
    return [place for match in COMMAND.finditer(page) for place in match[2].split()]


class _Collected:
    items: list[pytest.Item]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def main() -> int:
    page, collected = PAGE.read_text(encoding="utf-8"), _Collected()
    code = pytest.main(["--collect-only", "-qq", "--no-summary", *places(page)], plugins=[collected])
    if code:
        return int(code)
    new = counted(page, collected.items)
    if "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        print("docs/reliability.md names other numbers of tests than there are: run `python docs/attacks.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
