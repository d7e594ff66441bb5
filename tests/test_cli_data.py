"""``adbench data`` as a user meets it: info, check, synth, unpack."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
import real_layouts as layouts

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "brats21"
    for number in range(5):
        layouts.brats(root, f"{number:05d}", layouts.SMALL)
    layouts.brats(root, "00009", layouts.SMALL, seg=None)
    return root


def test_info(cli: Cli, brats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADBENCH_DATA", str(brats.parent))
    lists = tmp_path / "lists" / "splits.json"
    code, out, _ = cli("data", "info", "--dataset", "brats21", "--splits", lists)
    assert code == 0
    for text in ("FLAIR", "T1CE", "left out", "registration required", "2 (oedema), 4 (enhancing tumour)"):
        assert text in out
    told = json.loads(cli("data", "info", "-d", "brats21", "--json")[1])
    assert told["modalities"]["T1"]["cases"] == 5
    assert told["modalities"]["T1"]["left_out"] == [
        "BraTS2021_00009: left out, it has no lesion mask, so it can neither be trained on nor be scored"
    ]
    written = json.loads(lists.read_text())
    assert written["T1"] == told["modalities"]["T1"]["subjects"]
    assert sum(len(ids) for ids in written["T1"].values()) == 5
    other = json.loads(
        cli("data", "info", "-d", "brats21", "--set", "split_seed=3", "--set", "dataset.test_share=0.6", "--json")[1]
    )
    assert len(other["modalities"]["T1"]["subjects"]["test"]) == 3


def test_info_of_sites_and_flags(cli: Cli, tmp_path: Path) -> None:
    for subject in ("r009s001", "r009s002", "r010s001"):
        layouts.atlas(tmp_path / "atlas", subject)
    code, out, _ = cli("data", "info", "-d", "atlas", "--data-root", tmp_path / "atlas")
    assert code == 0
    assert "r010" in out
    assert "several sessions" not in out
    assert "artefact: sub-r009s001" in out


def test_info_of_sessions(cli: Cli, tmp_path: Path) -> None:
    for scan in ("0828", "0829"):
        layouts.ixi(tmp_path / "ixi", "002", "Guys", scan, "T1")
    layouts.ixi(tmp_path / "ixi", "012", "HH", "1211", "T1")
    code, out, _ = cli("data", "info", "-d", "ixi", "--data-root", tmp_path / "ixi")
    assert code == 0
    assert "T1, subjects with several sessions: IXI002\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "-d", "brats1"), "Did you mean 'brats21'?"),
        (("info", "-d", "brats21"), "The dataset brats21 needs its folder: give --data-root DIR or set ADBENCH_DATA"),
        (("check", "-d", "ixi", "--data-root", "BRATS"), "this looks like BraTS'21"),
        (("check", "-d", "brats21", "--data-root", "BRATS", "--set", "siz=3"), "Did you mean 'size'"),
        (("synth", "--layout", "ixii", "--out", "x"), "Did you mean 'ixi'"),
        (("unpack", "nowhere.tar", "--out", "x"), "There is no archive nowhere.tar"),
    ],
)
def test_mistakes_are_one_sentence(cli: Cli, brats: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cli("data", *(str(brats) if word == "BRATS" else word for word in arguments))
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_check_exits_by_severity(cli: Cli, brats: Path) -> None:
    code, out, _ = cli("data", "check", "-d", "brats21", "--data-root", brats, "-q")
    assert code == 1
    assert "warning missing-mask (1)" in out
    assert "warning shape (29)" in out
    assert "... and 24 more" in out
    assert "... and" not in cli("data", "check", "-d", "brats21", "--data-root", brats, "-q", "--all")[1]
    (brats / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz").write_bytes(b"")
    code, out, _ = cli("data", "check", "-d", "brats21", "--data-root", brats, "-q")
    assert code == 2
    assert out.startswith("error unreadable (1)")


def test_check_reads_prepared_stores(cli: Cli, slices: Path, tmp_path: Path) -> None:
    of = ("--dataset", "folder", "--data-root", slices, "--cache", tmp_path / "cache")
    code, out, _ = cli("data", "check", *of, "--store", "--json")
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["no-store"]
    clean, _, _ = cli("data", "prepare", *of, "--quiet")
    assert clean == code == 0
    assert cli("data", "check", *of, "--store")[0] == 0
    path = next((tmp_path / "cache").glob("cases/*/*.case"))
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cli("data", "check", *of)[0] == 0
    code, out, _ = cli("data", "check", *of, "--store", "--json")
    assert code == 2
    (finding,) = json.loads(out)["findings"]
    assert (finding["severity"], finding["code"]) == ("error", "damaged-store")
    assert f"{path}: the images of case {finding['case']} have the SHA-256 " in finding["message"]
    path.write_bytes(content[:-1])
    assert "bytes where" in json.loads(cli("data", "check", *of, "--store", "--json")[1])["findings"][0]["message"]


def test_unpack(cli: Cli, brats: Path, tmp_path: Path) -> None:
    packed = tmp_path / "x.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(brats, "BraTS")
        link = tarfile.TarInfo("BraTS/latest")
        link.type, link.linkname = tarfile.SYMTYPE, "BraTS2021_00000"
        tar.addfile(link)
    code, _, err = cli("data", "unpack", packed, "--out", tmp_path / "out")
    assert code == 0
    assert "1 link or device left out: BraTS/latest." in err
    assert "29 files in" in err
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 29
