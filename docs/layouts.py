"""Try every layout of docs/datasets.md through the command line, and write the table of what came of it there.

    python docs/layouts.py            # or --check: is the table what the commands give?

The trees are the small ones of `adbench data synth`. Of each, ``data info``, ``data check --deep``, ``data prepare`` and
``run --method histeq`` are run with the options of its row; a refusal is quoted, its folder as ROOT. All rows
take some minutes of one core.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch  # noqa: F401 - once, not in every command

from adbench import cli
from adbench.datasets.phantom.layout_table import LAYOUTS
from adbench.datasets.phantom.small_layouts import write_small

HERE = Path(__file__).parent
PAGE, BEGIN, END = HERE / "datasets.md", "<!-- made by python docs/layouts.py -->\n", "<!-- end -->\n"
OTHERS = {"brats23": "folder", "msd_brain": "nnunet folder", "mslub": "folder", "wmh": "folder", "bids": "bids", "bmad": "folder", "msseg": "folder", "hcp": "folder"}  # fmt: skip
# Layout -> datasets that are tried without options too.
ROWS: list[tuple[str, str, str, str]] = []  # title, layout, dataset, options
for name, known in LAYOUTS.items():
    ROWS.append((known.title, name, known.dataset, known.options))
    ROWS += [("", name, dataset, "") for dataset in OTHERS.get(name, "").split()]
FEW = {name: 3 for name, known in LAYOUTS.items() if known.dataset == "atlas"}  # whose grid is the true one


def tried(layout: str, name: str, options: str, place: Path) -> list[str]:
    """What ``info``, ``check``, ``prepare`` and ``run`` say: "yes", "warns", or the sentence of the refusal."""
    root = place / "ROOT"
    write_small(layout, root, FEW.get(layout))
    common, training = ["--dataset", name, "--data-root", str(root)], []
    small = [] if name in ("ixi", "atlas") or layout in ("bmad", "slices") else ["min_brain=0.01"]
    for option in [*options.split(), *small, "size=64"]:
        common += ["--set", f"dataset.{option}"]
    if name == "atlas":  # has no healthy subject: IXI trains
        write_small("ixi", place / "IXI", first=100)
        training = ["--train-root", str(place / "IXI")]
        for option in [*LAYOUTS["ixi"].options.split(), "size=64"]:
            training += ["--set", f"train.{option}"]
    cache = ["--cache", str(place / "cache"), "--quiet"]
    verbs = {
        "info": ["data", "info", *common],
        "check": ["data", "check", *common, "--deep"],
        "prepare": ["data", "prepare", *common, *cache, "--workers", "1"],
        "run": [
            "run",
            "--method",
            "histeq",
            "--device",
            "cpu",
            *common,
            *training,
            *cache,
            "--out",
            str(place / "runs"),
        ],
    }
    said = []
    for verb, command in verbs.items():
        process = get_context("fork").Process(target=adbench, args=(command, place / "said"))
        process.start()
        process.join()
        text = " ".join((place / "said").read_text().replace(f"{place}/", "").split()).removeprefix("adbench: ")
        fine = process.exitcode == 0
        said.append("yes" if fine else "warns" if verb == "check" and process.exitcode == 1 else text or "errors")
    return said


def adbench(command: list[str], errors: Path) -> None:
    """The command line in this process, its standard error to a file: a fork of one that has imported PyTorch starts at once."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["adbench", *command]
    cli.main()


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| layout | `--dataset` | `--set dataset.…` | info | check | prepare | run, or why not |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, layout, name, options in ROWS:
        with tempfile.TemporaryDirectory() as place:
            *cells, last = tried(layout, name, options, Path(place))
        marks = [cell if cell in ("yes", "warns", "errors") else "no" for cell in cells]
        sentence = last.replace("|", "\\|").replace("<", "&lt;")
        given = " ".join(f"`{option}`" for option in options.split())
        lines.append(f"| {title} | `{name}` | {given} | {' | '.join(marks)} | {sentence} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; name the rows that are not what the commands give"
    )
    checked = parser.parse_args().check
    new = table()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    old, after = rest.split(END)
    if not checked:
        PAGE.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    elif new != old:
        print(*difflib.unified_diff(old.splitlines(), new.splitlines(), "docs", "commands", n=0, lineterm=""), sep="\n")
        raise SystemExit(f"The table in {PAGE} is not what the commands give: run python {sys.argv[0]}.")
