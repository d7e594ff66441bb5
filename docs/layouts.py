"""Try every layout of docs/datasets.md through the command line, and write the table of what came of it there.

    python docs/layouts.py            # or --check: is the table what the commands give?

The trees are those of examples/synthetic_layouts.py. Of each, ``data info``, ``data check --deep``, ``data prepare`` and
``run --method histeq`` are run with the options of its row; a refusal is quoted, its folder as ROOT. All rows
take some minutes of one core.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
import synthetic_layouts as layouts  # noqa: E402
import torch  # noqa: E402, F401 - once, not in every command

from adbench import cli  # noqa: E402

PAGE, BEGIN, END = HERE / "datasets.md", "<!-- made by python docs/layouts.py -->\n", "<!-- end -->\n"
PREPARED = "registration=none n4=false brain=background"


def in_a_tar(write: Callable[[Path], None], root: Path) -> None:
    """The tree of ``write`` as one tar below ``root``."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        root.mkdir()
        shutil.make_archive(str(root / "data"), "tar", place)


ROWS: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("IXI", layouts.ixi, "ixi", PREPARED),
    ("IXI, `…_bet` with `…_bet_mask`", layouts.ixi_bet, "ixi", "registration=none n4=false"),
    ("IXI of pDDPM (`t2/`, `mask/`)", layouts.pddpm_ixi, "ixi", "registration=none n4=false"),
    ("ATLAS `Training/`", partial(layouts.atlas, n=3), "atlas", "brain=background"),
    ("ATLAS `derivatives/ATLAS/`", partial(layouts.atlas, n=3, below="derivatives/ATLAS"), "atlas", "brain=background"),
    ("BraTS'21", layouts.brats21, "brats21", ""),
    ("BraTS'21, one tar", partial(in_a_tar, layouts.brats21), "brats21", ""),
    ("BraTS'21, folders named `.nii`", partial(layouts.brats21, folders=True), "brats21", ""),
    ("BraTS 2023/24", layouts.brats23, "brats23", ""),
    ("BraTS 2023/24, PED", partial(layouts.brats23, group="PED"), "brats23", ""),
    ("", layouts.brats23, "folder", ""),
    ("MSD Task01", layouts.msd_brain, "msd_brain", ""),
    ("MSD Task01, the tar", partial(in_a_tar, layouts.msd_brain), "msd_brain", ""),
    ("", layouts.msd_brain, "nnunet", ""),
    ("", layouts.msd_brain, "folder", ""),
    ("ISLES'22", layouts.isles22, "isles22", ""),
    ("SOOP", layouts.soop, "soop", ""),
    ("MSLUB", layouts.mslub, "mslub", ""),
    ("", layouts.mslub, "folder", ""),
    ("WMH challenge", layouts.wmh, "wmh", "brain=background"),
    ("", layouts.wmh, "folder", ""),
    ("OASIS-3, CamCAN, any BIDS", layouts.bids, "bids", "healthy=group=control"),
    ("", layouts.bids, "bids", ""),
    ("nnU-Net raw", layouts.nnunet, "nnunet", ""),
    ("slice folder of MAD-AD", layouts.slice_folder, "folder", ""),
    ("BMAD", layouts.bmad, "folder", "modality=FLAIR"),
    ("", layouts.bmad, "folder", ""),
    (
        "MSSEG-2016",
        layouts.msseg,
        "folder",
        "image_pattern={subject}/Preprocessed_Data/{modality}_preprocessed.nii.gz "
        "lesion_pattern={subject}/Masks/Consensus.nii.gz brain_pattern={subject}/Masks/Brain_Mask.nii.gz",
    ),
    ("", layouts.msseg, "folder", ""),
    (
        "UCSF-PDGM",
        layouts.ucsf_pdgm,
        "folder",
        "image_pattern={subject}_{modality}_bias.nii.gz lesion_pattern={subject}_tumor_segmentation.nii.gz",
    ),
    (
        "TorchIO's IXITiny",
        layouts.torchio,
        "folder",
        "image_pattern=image/{subject}_image.nii.gz brain_pattern=label/{subject}_label.nii.gz modality=T1 unmasked=healthy",
    ),
    (
        "HCP",
        layouts.hcp,
        "folder",
        "image_pattern={subject}/T1w/{modality}_acpc_dc_restore_brain.nii.gz "
        "brain_pattern={subject}/T1w/brainmask_fs.nii.gz unmasked=healthy",
    ),
    ("", layouts.hcp, "folder", ""),
]


def tried(write: Callable[[Path], None], name: str, options: str, place: Path) -> list[str]:
    """What ``info``, ``check``, ``prepare`` and ``run`` say: "yes", "warns", or the sentence of the refusal."""
    root = place / "ROOT"
    write(root)
    common, training = ["--dataset", name, "--data-root", str(root)], []
    small = [] if name in ("ixi", "atlas") or write in (layouts.bmad, layouts.slice_folder) else ["min_brain=0.01"]
    for option in [*options.split(), *small, "size=64"]:
        common += ["--set", f"dataset.{option}"]
    if name == "atlas":  # has no healthy subject: IXI trains
        layouts.ixi(place / "IXI", first=100)
        training = ["--train-root", str(place / "IXI")]
        for option in [*PREPARED.split(), "size=64"]:
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
    for title, write, name, options in ROWS:
        with tempfile.TemporaryDirectory() as place:
            *cells, last = tried(write, name, options, Path(place))
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
