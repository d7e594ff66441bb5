"""Write the tables of ``docs/results.md`` and ``README.md`` that committed leaderboards give; ``--check``: fail where they differ.

    python docs/results.py

A table stands below the line ``<!-- made by python docs/results.py: BOARD MODALITY -->`` and ends with an empty line.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ROOT / "leaderboards"
PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")
MARK = re.compile(r"(<!-- made by python docs/results\.py: (\S+) (\S+) -->\n\n)(?:\|.*\n)*")
HEAD = "| rank | method | AUPRC, seeds | mean over seeds [95 %] | Dice at the validation threshold |\n|---|---|---|---|--:|\n"


def short(number: str | float) -> str:
    """``.123``."""
    return f"{float(number):.3f}".removeprefix("0")


def rows(board: str, modality: str) -> Iterator[str]:
    """A line of the table for each row of the board."""
    with open(BOARDS / board / "table.csv", encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["modality"] == modality]
    for row in found:
        records = [json.loads((BOARDS / path).read_text(encoding="utf-8"))["record"] for path in row["records"].split()]
        records.sort(key=lambda record: record["seed"])
        seeds = " ".join(short(record["metrics"]["auprc"]["value"]) for record in records)
        rank = f"{'=' if row['tied'] == '1' else ''}{row['rank']}" if row["rank"] else "—"
        interval = f"{short(row['auprc'])} [{short(row['auprc_low'])}, {short(row['auprc_high'])}]"
        name = row["label"].replace(f" [{row['preset']}]", "", 1)
        yield f"| {rank} | `{name}` | {seeds} | {interval} | {short(row['dice@val'])} |\n"


def main() -> int:
    """Write the tables; with ``--check``, 1 where a page has others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is another")
    check = parser.parse_args().check
    code = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = MARK.sub(lambda found: found[1] + HEAD + "".join(rows(found[2], found[3])), text)
        if made != text and check:
            print(
                f"{page.relative_to(ROOT)} differs from the leaderboards: run python docs/results.py", file=sys.stderr
            )
            code = 1
        elif made != text:
            page.write_text(made, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
