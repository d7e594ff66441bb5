"""The command line as a user meets it: tables, JSON, second runs, and bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from adbench.config import registry
from adbench.results.rundir import DRAWN, MAPS, RECORDED, VAL_MAPS
from adbench.utils import files
from adbench.utils.locks import LOCK

Cli = Callable[..., tuple[int, str, str]]
FAST = ("--method", "histeq,constant", "--dataset", "folder", "--device", "cpu", "--quiet")


def run(cli: Cli, slices: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return cli("run", *FAST, "--data-root", slices, "--out", out, *more)


@pytest.mark.usefixtures("pictures_drawn")
def test_run_prints_a_ranked_table_and_leaves_everything(cli: Cli, slices: Path, tmp_path: Path) -> None:
    code, out, _ = run(cli, slices, tmp_path / "runs")
    assert code == 0
    assert out.index("histeq [tiny]") < out.index("constant [tiny]")
    assert {"AUPRC", "Dice@val", "Dice@best", "(oracle)", "prevalence"} <= set(out.split())
    folders = sorted(path.parent for path in (tmp_path / "runs").rglob("record.json"))
    assert len(folders) == 2
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names - {LOCK} == {"record.json", "config.yaml", *DRAWN, *(RECORDED - {MAPS, VAL_MAPS})}
        assert Image.open(folder / "samples.png").size[0] > 400


def test_json_is_all_there_is_on_standard_output(cli: Cli, slices: Path, tmp_path: Path) -> None:
    code, out, _ = run(cli, slices, tmp_path / "runs", "--json")
    answer = json.loads(out)
    assert code == 0
    (board,) = answer["boards"]
    assert (board["protocol"], board["modality"]) == ("folder", "FLAIR")
    constant = next(row for row in board["rows"] if row["method"] == "constant")
    # A constant map has one threshold: everything is found, precision is the prevalence.
    assert constant["metrics"]["auprc"]["value"] == pytest.approx(constant["prevalence"], abs=1e-12)
    assert constant["metrics"]["auroc"]["value"] == pytest.approx(0.5, abs=1e-12)
    assert constant["metrics"]["dice@best"]["oracle"] is True
    shown = json.loads(cli("leaderboard", "show", "--out", tmp_path / "runs", "--json")[1])
    assert shown["boards"] == answer["boards"]


def test_second_run_is_answered_from_records(cli: Cli, slices: Path, tmp_path: Path) -> None:
    first = run(cli, slices, tmp_path / "runs", "--json")[1]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    second = run(cli, slices, tmp_path / "runs", "--json")[1]
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()} == stamps
    assert "2 of 2 answered from records" in run(cli, slices, tmp_path / "runs")[2]


def test_saved_config_repeats_the_run(cli: Cli, slices: Path, tmp_path: Path) -> None:
    run(cli, slices, tmp_path / "runs", "--set", "histeq.sigma=2")
    saved = next(p for p in (tmp_path / "runs").rglob("config.yaml") if p.parent.name.startswith("histeq"))
    assert yaml.safe_load(saved.read_text())["set"]["method"]["sigma"] == 2
    code, _, err = cli("run", "--config", saved, "--out", tmp_path / "runs", "--quiet")
    assert code == 0
    assert "1 of 1 answered from records" in err


def test_what_differs_is_said_and_the_rest_is_in_a_file(cli: Cli, slices: Path, tmp_path: Path) -> None:
    arguments = [a for a in FAST if a != "--quiet"]
    out = ("--data-root", slices, "--out", tmp_path / "runs", "--set", "histeq.sigma=1,2.5")
    code, shown, err = cli("run", *arguments, *out)
    assert code == 0
    assert "3 cells: histeq, constant [tiny] on folder FLAIR, seed 0; protocol folder, cpu\n" in err
    assert "  histeq: sigma = 1 | 2.5 (default 3)\n" in err
    assert err.count("\n") < 20
    assert {"sigma=1", "sigma=2.5"} <= set(shown.split())
    saved = re.search(r"Every setting: (\S+)", err)[1]
    resolved = yaml.safe_load(Path(saved).read_text())
    assert resolved["set"]["histeq"] == {"sigma": [1.0, 2.5], "polarity": "auto"}
    assert set(resolved["set"]) == {"histeq", "constant", "dataset"}
    code, answer, err = cli("run", "--config", saved, "--quiet", "--json")
    assert code == 0
    rows = json.loads(answer)["boards"][0]["rows"]
    assert {(row["method"], *row["differs"].values()) for row in rows} == {
        ("histeq", 1.0),
        ("histeq", 2.5),
        ("constant",),
    }
    assert {row["label"] for row in rows} == {"histeq [tiny] sigma=1", "histeq [tiny] sigma=2.5", "constant [tiny]"}


def test_training_on_a_flat_folder_of_healthy_slices(cli: Cli, slices: Path, tmp_path: Path) -> None:
    flat = tmp_path / "healthy"
    flat.mkdir()
    for number, path in enumerate(sorted((slices / "train").glob("*-FLAIR.png"))):
        shutil.copy(path, flat / f"healthy{number:03d}-slice_9-FLAIR.png")
    code, out, _ = run(
        cli, slices, tmp_path / "runs", "--method", "zscore", "--train-on", "folder", "--train-root", flat, "--json"
    )
    assert code == 0
    zscore = next(row for row in json.loads(out)["boards"][0]["rows"] if row["method"] == "zscore")
    assert zscore["trained_on"] == "folder"
    assert 0 < zscore["train_slices"] <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "madda"), "Did you mean 'madad'?"),
        (("--modality", "FLARE"), "Did you mean 'FLAIR'?"),
        (("--set", "method.sigmaa=1"), "Unknown parameter of method histeq 'sigmaa'. Did you mean 'sigma'?"),
        (("--data-root", "/nowhere"), "There is no folder /nowhere"),
        (("--config", "/nowhere.yaml"), "cannot be read"),
    ],
)
def test_mistakes_exit_2_with_one_sentence_and_write_nothing(
    cli: Cli, slices: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    code, out, err = run(cli, slices, tmp_path / "runs", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("adbench: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_damaged_image_is_named_and_nothing_is_half_written(cli: Cli, slices: Path, tmp_path: Path) -> None:
    broken = next((slices / "test").glob("*-FLAIR.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    code, _, err = run(cli, slices, tmp_path / "runs", "--cache", tmp_path / "cache")
    assert code == 2
    assert broken.name in err
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


def test_image_and_mask_of_different_size_are_both_given(cli: Cli, slices: Path, tmp_path: Path) -> None:
    mask = next((slices / "test").glob("*-segmentation.png"))
    Image.fromarray(np.zeros((31, 32), np.uint8)).save(mask)
    code, _, err = run(cli, slices, tmp_path / "runs")
    assert code == 2
    assert mask.name in err
    assert "31" in err


def test_store_changed_after_preparation(cli: Cli, slices: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(cli, slices, tmp_path / "runs", "--cache", cache)
    for case in cache.glob("cases/*/*.case"):
        content = bytearray(case.read_bytes())
        content[7] ^= 1
        case.write_bytes(bytes(content))
    assert run(cli, slices, tmp_path / "runs", "--cache", cache)[0] == 0, "answered from records: no pixel is read"
    code, _, err = cli(
        "run", "--method", "histeq", "--dataset", "folder", "--device", "cpu", "--quiet", "--data-root", slices,
        "--out", tmp_path / "runs", "--cache", cache, "--force",
    )  # fmt: skip
    assert code == 2
    assert "changed after preparation" in err
    assert str(case.parent) in err


def test_full_disk_is_one_sentence_and_the_next_run_completes(
    cli: Cli, slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        code, _, err = run(cli, slices, tmp_path / "runs", "--cache", tmp_path / "cache")
    assert code == 2
    assert "No space left" in err
    assert "Traceback" not in err
    assert list((tmp_path / "runs").rglob("record.json")) == []
    assert list(tmp_path.rglob("*.tmp")) == []
    assert run(cli, slices, tmp_path / "runs", "--cache", tmp_path / "cache")[0] == 0


def test_subject_in_two_roles_is_refused(cli: Cli, slices: Path, tmp_path: Path) -> None:
    flat = tmp_path / "healthy"
    flat.mkdir()
    for path in (slices / "test").glob("*-FLAIR.png"):
        shutil.copy(path, flat)
    code, _, err = run(cli, slices, tmp_path / "runs", "--train-on", "folder", "--train-root", flat)
    assert code == 2
    assert "two roles" in err


def test_one_volume_under_two_names_in_two_roles_is_refused(cli: Cli, slices: Path, tmp_path: Path) -> None:
    subject = sorted((slices / "test").glob("*-FLAIR.png"))[0].name.partition("-slice")[0]
    for path in sorted((slices / "test").glob(f"{subject}-slice*")):
        if "segmentation" not in path.name:
            shutil.copy(path, slices / "train" / path.name.replace(subject, "somebody-else"))
    code, _, err = run(cli, slices, tmp_path / "runs", "--cache", tmp_path / "cache")
    assert code == 2
    assert f"'somebody-else' (training) and '{subject}' (test) share 1 slice, pixel by pixel" in " ".join(err.split())


def test_leaderboard_of_an_empty_folder(cli: Cli, tmp_path: Path) -> None:
    assert cli("leaderboard", "show", "--out", tmp_path)[0] == 2
    assert "There is no folder" in cli("leaderboard", "show", "--out", tmp_path / "none")[2]


def test_list_describe_and_doctor(cli: Cli) -> None:
    assert "histeq" in cli("list", "methods")[1]
    listed = {row["name"] for row in json.loads(cli("list", "datasets", "--json")[1])}
    assert (
        listed
        == set(registry.BUILTIN["datasets"])
        >= {"phantom", "folder", "ixi", "atlas", "brats21", "brats23", "bids"}
    )
    assert cli("list", "method")[0] == 2
    described = json.loads(cli("describe", "madad", "--json")[1])
    assert all(parameter["doc"] and parameter["source"] for parameter in described["params"])
    assert {"tiny", "base", "paper"} <= set(described["presets"])
    assert "Did you mean 'madad'?" in cli("describe", "madd")[2]
    assert "test dataset" in cli("describe", "phantom")[1] or "phantom" in cli("describe", "phantom")[1]
    report = json.loads(cli("doctor", "--json")[1])
    assert {finding["what"] for finding in report["findings"]} >= {
        "torch",
        "adbench",
        "other distribution named adbench",
    }


def test_a_terminal_that_knows_ascii_alone() -> None:
    environment = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (
        ["list", "metrics"],
        ["leaderboard", "show", str(Path(__file__).parents[1] / "leaderboards")],
        ["run", "--help"],
    ):
        command = [sys.executable, "-m", "adbench.cli", *arguments]
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert done.stdout.isascii()
        assert done.stderr.isascii()


def test_what_the_doctor_cannot_look_at_is_a_finding(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("adbench.results.provenance.version", lambda name: {}["no such field"])
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = cli("doctor", "--json")
    report = json.loads(out)
    assert (code, report["problems"]) == (1, sum(one["verdict"] != "ok" for one in report["findings"]))
    verdicts = {finding["what"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts["device"].startswith("problem: torch cannot be imported")


def test_every_verb_has_help_with_an_example(cli: Cli) -> None:
    for verb in (
        ["run"],
        ["list"],
        ["describe"],
        ["doctor"],
        ["report"],
        ["new", "method"],
        ["new", "dataset"],
        ["leaderboard", "show"],
        ["tune"],
    ):
        code, out, _ = cli(*verb, "--help")
        assert code == 0
        assert "Example" in out, verb
        assert f"adbench {' '.join(verb)}" in out, verb


def test_the_old_name_of_an_option_answers_with_the_new_one(cli: Cli) -> None:
    code, _, said = cli("run", "--method", "ae", "--dataset", "phantom", "--tensorboard", "--dry-run")
    assert (code, said.strip()) == (2, "adbench: --tensorboard is --track tensorboard now.")
