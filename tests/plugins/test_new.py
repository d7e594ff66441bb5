"""``adbench new``: what it writes installs, holds its contract, runs and is ranked; bad names are refused."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from adbench.cli.new import TAKEN, Kind, check_name, files, new_package
from adbench.errors import UserError
from adbench.testing import check_metric

Cli = Callable[..., tuple[int, str, str]]


def shell(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_new_method_installs_passes_its_tests_runs_and_is_ranked(
    environment: dict[str, str], slices: Path, tmp_path: Path
) -> None:
    shell("adbench new method my_method && pip install -q -e ./adbench-my-method", tmp_path, environment)
    (row,) = [
        r for r in json.loads(shell("adbench list methods --json", tmp_path, environment)) if r["name"] == "my_method"
    ]
    assert (row["origin"], row["problem"]) == ("adbench-my-method 0.1.0", "")
    card = tmp_path / "adbench-my-method" / "src" / "adbench_my_method" / "my_method.md"
    card.write_text("## Cite\n\nAuthor 2026\n\n## Variants\n\n* `components`: few or many\n", encoding="utf-8")
    described = json.loads(shell("adbench describe my_method --json", tmp_path, environment))["card"]
    assert (described["paper"], described["variants"]) == ("Author 2026", {"components": "few or many"})
    findings = json.loads(shell("adbench test my_method --json", tmp_path, environment))
    assert len(findings) > 10
    assert not [finding for finding in findings if finding["problem"]]
    assert "14 passed" in shell("pytest -q adbench-my-method", tmp_path, environment)
    shell(f"adbench run -q -m my_method,constant -d folder --data-root '{slices}' --device cpu", tmp_path, environment)
    board = json.loads(shell("adbench leaderboard show --json", tmp_path, environment))["boards"][0]
    assert [row["method"] for row in board["rows"]] == ["my_method", "constant"]


def test_new_dataset_installs_passes_its_tests_and_runs(environment: dict[str, str], tmp_path: Path) -> None:
    shell("adbench new dataset my_clinic && pip install -q -e ./adbench-my-clinic", tmp_path, environment)
    assert "2 passed" in shell("pytest -q adbench-my-clinic", tmp_path, environment)
    made = (
        "import importlib.util as u; s = u.spec_from_file_location('t', 'adbench-my-clinic/tests/test_my_clinic.py');"
        "m = u.module_from_spec(s); s.loader.exec_module(m); from pathlib import Path; m.write_volumes(Path('data'))"
    )
    shell(f'python -c "{made}"', tmp_path, environment)
    assert "broken" not in shell("adbench test my_clinic --data-root data", tmp_path, environment)
    shell("adbench run -q -m histeq -d my_clinic --data-root data --device cpu --out runs", tmp_path, environment)
    shell("adbench report runs -q --out page --count 1 --nifti original", tmp_path, environment)
    assert len(list((tmp_path / "page" / "nifti").rglob("*_space-orig_desc-histeq_anomaly.nii.gz"))) == 3


def test_new_metric_holds_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_package("metric", "missed_part", tmp_path)
    assert 'missed_part = "adbench_missed_part.metric:MissedPart"' in (folder / "pyproject.toml").read_text()
    monkeypatch.syspath_prepend(folder / "src")
    metric = importlib.import_module("adbench_missed_part.metric").MissedPart
    assert not [finding for finding in check_metric(metric) if finding.problem]
    own = runpy.run_path(str(folder / "tests" / "test_missed_part.py"))
    own["test_one_of_four_lesion_voxels_is_missed"]()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Method", "Try 'my_method'"),
        ("2nd", "Try 'nd'"),
        ("../evil", "Try 'evil'"),
        ("a__b", "Try 'a_b'"),
        ("", "cannot name a method"),
        ("x" * 41, "at most 40"),
        ("näme", "lower-case letters"),
        ("a b; import os", "Try 'a_b_import_os'"),
        ("madad", r"already \(built-in\)"),
        ("phantom", r"a dataset called 'phantom' already"),
    ],
)
def test_bad_names_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        new_package("method", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_and_module_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_package("dataset", "mine", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        new_package("dataset", "mine", tmp_path)
    (tmp_path / "adbench_other.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="module adbench_other is installed"):
        check_name("method", "other")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        new_package("method", "mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_class_names_hide_nothing() -> None:
    for name in ("method", "param_set", "fit_report"):
        source = files("method", name)[f"src/adbench_{name}/method.py"]
        compile(source, "method.py", "exec")
        assert "".join(part.capitalize() for part in name.split("_")) in TAKEN
        assert f"class {''.join(part.capitalize() for part in name.split('_'))}Method(Method):" in source


@pytest.mark.parametrize("name", ["none", "true", "value_error"])
@pytest.mark.parametrize("kind", ["method", "dataset", "metric"])
def test_class_names_are_not_those_of_python(kind: Kind, name: str) -> None:
    source = files(kind, name)[f"src/adbench_{name}/{kind}.py"]
    compile(source, f"{kind}.py", "exec")
    assert f"class {''.join(part.capitalize() for part in name.split('_'))}{kind.capitalize()}(" in source


def test_command_line_says_what_next(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("new", "method", "mine", "--out", tmp_path)
    assert (code, out) == (0, "")
    assert "method.py" in err
    assert "adbench test mine" in err
    assert cli("new", "method", "mine", "--out", tmp_path)[0] == 2
    assert cli("new", "network", "mine")[0] == 2
