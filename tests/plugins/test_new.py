"""``adbench new``: what it writes installs, holds its contract, runs and is ranked; bad names are refused."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import shell

from adbench.cli.new import TAKEN, Kind, Variant, check_name, files, new_package
from adbench.errors import UserError
from adbench.testing import check_metric

Cli = Callable[..., tuple[int, str, str]]


def test_new_method_installs_passes_its_tests_runs_and_is_ranked(
    environment: dict[str, str], slices: Path, tmp_path: Path
) -> None:
    # In fresh processes, once: what pip has installed is found.
    command = "adbench new method my_method && pip install -q -e ./adbench-my-method && adbench list methods --json"
    listed = subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, check=True)
    (row,) = [r for r in json.loads(listed.stdout) if r["name"] == "my_method"]
    assert (row["origin"], row["problem"]) == ("adbench-my-method 0.1.0", "")
    card = tmp_path / "adbench-my-method" / "src" / "adbench_my_method" / "my_method.md"
    card.write_text("## Cite\n\nAuthor 2026\n\n## Variants\n\n* `components`: few or many\n", encoding="utf-8")

    def said(line: str) -> str:
        return shell(line, tmp_path, environment, environment["PACKAGES"])

    described = json.loads(said("adbench describe my_method --json"))["card"]
    assert (described["paper"], described["variants"]) == ("Author 2026", {"components": "few or many"})
    findings = json.loads(said("adbench test my_method --json"))
    assert len(findings) > 10
    assert not [finding for finding in findings if finding["problem"]]
    assert "15 passed" in said("pytest -q adbench-my-method")
    said(f"adbench run -q -m my_method,constant -d folder --data-root '{slices}' --device cpu")
    board = json.loads(said("adbench leaderboard show --json"))["boards"][0]
    assert [row["method"] for row in board["rows"]] == ["my_method", "constant"]


def test_new_dataset_installs_passes_its_tests_and_runs(environment: dict[str, str], tmp_path: Path) -> None:
    new_package("dataset", "my_clinic", tmp_path)
    tests = tmp_path / "adbench-my-clinic" / "tests" / "test_my_clinic.py"
    made = f"import runpy; runpy.run_path('{tests}')['write_data'](__import__('pathlib').Path('data'))"
    script = f"""
        pip install -q -e ./adbench-my-clinic
        pytest -q adbench-my-clinic
        python -c "{made}"
        adbench test my_clinic --data-root data
        adbench run -q -m histeq -d my_clinic --data-root data --device cpu --out runs
        adbench report runs -q --out page --count 1 --nifti original
    """
    said = shell(script, tmp_path, environment, environment["PACKAGES"])
    assert "2 passed" in said
    assert "broken" not in said
    assert len(list((tmp_path / "page" / "nifti").rglob("*_space-orig_desc-histeq_anomaly.nii.gz"))) == 3


def test_new_dataset_of_slices_holds_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_package("dataset", "my_slices", tmp_path, "png")
    monkeypatch.syspath_prepend(folder / "src")
    own = runpy.run_path(str(folder / "tests" / "test_my_slices.py"))
    root = own["write_data"](tmp_path / "data")
    own["test_contract"](root)
    own["test_what_is_wrong_is_named"](root, tmp_path / "bad")
    dataset = own["MySlices"](own["MySlices"].Params(size=64), root)
    stack = dataset.load(dataset.discover("FLAIR")[-1], "FLAIR")
    assert stack.image.shape == (4, 64, 64)
    assert stack.lesion is not None
    assert stack.lesion.any(axis=(1, 2)).tolist() == [False, False, True, True]


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


@pytest.mark.parametrize(
    ("kind", "variant"), [("method", ""), ("metric", ""), ("dataset", "nifti"), ("dataset", "png")]
)
def test_every_class_that_a_template_imports_is_taken(kind: Kind, variant: Variant) -> None:
    written = files(kind, "some_name", variant)
    trees = [ast.parse(text) for place, text in written.items() if place.endswith(".py")]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names if alias.name[0].isupper()}
    own = {name for name in names if name.startswith("SomeName") or name.isupper()}
    assert names - own <= TAKEN


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
