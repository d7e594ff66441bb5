"""Configuration: precedence, strictness, and one clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adbench.config import run_config
from adbench.config.cell import Source
from adbench.datasets.adapters.folder_volumes import FolderParams
from adbench.errors import UserError
from adbench.methods.simple import HistEq
from adbench.params import ParamSet, build, param


def load(
    text: str | None, tmp_path: Path, flags: dict | None = None, sets: list[str] | None = None
) -> run_config.RunConfig:
    path = None
    if text is not None:
        path = tmp_path / "run.yaml"
        path.write_text(text)
    return run_config.load(path, flags or {}, sets or [])


def one_cell(settings: run_config.RunConfig) -> run_config.CellSpec:
    (cell,) = run_config.cells(settings)
    return cell


def test_precedence_default_preset_file_set(tmp_path: Path) -> None:
    base = "method: histeq\ndataset: phantom\ndevice: cpu\n"
    default = one_cell(load(base, tmp_path)).params.sigma
    from_file = load(base + "set: {method: {sigma: 1.5}}", tmp_path)
    from_set = load(base + "set: {method: {sigma: 1.5}}", tmp_path, sets=["method.sigma=2.5"])
    assert default not in (1.5, 2.5)
    assert one_cell(from_file).params.sigma == 1.5
    assert one_cell(from_set).params.sigma == 2.5


def test_flags_win_over_the_file_and_lists_expand(tmp_path: Path) -> None:
    settings = load(
        "method: [histeq, constant]\ndataset: phantom\nseed: [0, 1]\ndevice: cpu", tmp_path, {"seed": ("3", "4", "5")}
    )
    cells = list(run_config.cells(settings))
    assert [(c.method, c.seed) for c in cells] == [(m, s) for m in ("histeq", "constant") for s in (3, 4, 5)]


def test_a_methods_own_scope_touches_only_that_method(tmp_path: Path) -> None:
    settings = load("method: [histeq, zscore]\ndataset: phantom\ndevice: cpu", tmp_path, sets=["zscore.sigma=9"])
    by_name = {cell.method: cell.params.sigma for cell in run_config.cells(settings)}
    assert by_name["zscore"] == 9
    assert by_name["histeq"] != 9


def test_resolved_config_round_trips_to_the_same_cell(tmp_path: Path) -> None:
    cell = one_cell(load("method: histeq\ndataset: phantom\ndevice: cpu\nset: {dataset: {seed: 5}}", tmp_path))
    again = one_cell(load(run_config.from_cell(cell).to_yaml(), tmp_path))
    assert again == cell


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        ("method: madda\ndataset: phantom", [], "Unknown method 'madda'. Did you mean 'madad'?"),
        ("method: madad\ndataset: phantm", [], "Unknown dataset 'phantm'. Did you mean 'phantom'?"),
        ("methud: madad", [], "Did you mean 'method'?"),
        ("method: histeq\ndataset: phantom\nmodality: FLAR", [], "Did you mean 'FLAIR'?"),
        (
            "method: histeq\ndataset: phantom\nprotocol: fantom",
            [],
            "Unknown protocol 'fantom'. Did you mean 'phantom'?",
        ),
        ("method: histeq\ndataset: phantom\npreset: tinny", [], "Did you mean 'tiny'?"),
        ("method: histeq\ndataset: phantom", ["method.sigmma=1"], "Did you mean 'sigma'?"),
        ("method: histeq\ndataset: phantom", ["method.sigma=-1"], "sigma = -1 is not valid"),
        ("method: histeq\ndataset: phantom", ["method.sigma=wide"], "sigma = 'wide' is not valid"),
        ("method: histeq\ndataset: phantom", ["histek.sigma=1"], "Did you mean 'histeq'?"),
        (
            "method: andi\ndataset: phantom",
            ["ddpm.steps=4"],
            "Unknown scope 'ddpm' in --set. andi trains as ddpm does, by parameters of its own: write andi.steps.",
        ),
        ("method: histeq\ndataset: phantom", ["sigma=1"], "not of the form scope.key=value"),
        ("method: histeq\ndataset: phantom", ["train.size=1"], "--train-on names none"),
        ("method: histeq\ndataset: phantom\ntrain_root: x", [], "name it with --train-on"),
        ("method: histeq\ndataset: phantom\nseed: one", [], "seed.0 = 'one' is not valid"),
        ("method: histeq\ndataset: phantom\nseed: [1, -1]", [], "seed.1 = -1 is not valid"),
        (f"method: histeq\ndataset: phantom\nseed: {2**63}", [], f"seed.0 = {2**63} is not valid"),
        ("method: zscore\ndataset: phantom", [f"zscore.window={10**30}"], f"window = {10**30} is not valid: whole"),
        ("method: zscore\ndataset: phantom", [f"dataset.seed=[0,{10**30}]"], f"seed = {10**30} is not valid: whole"),
        ("method: histeq\ndataset: phantom\ndata_root: /tmp", [], "is generated and takes no --data-root"),
        ("method: histeq\ndataset: phantom\ndevice: gpu", [], "not one of auto, cpu, cuda, cuda:N"),
        ("method: histeq\ndataset: folder", [], "needs its folder: give --data-root DIR or set ADBENCH_DATA"),
        ("method: histeq\ndataset: folder\ndata_root: /nowhere/at/all", [], "There is no folder /nowhere/at/all"),
        ("dataset: phantom", [], "Name a method"),
        ("method: histeq", [], "Name a dataset"),
        ("method: histeq\ndataset: phantom\nmetrics: auprc", [], "auprc is measured by every run"),
        ("method: [unclosed", [], "not valid YAML"),
        ("method: histeq\ndataset: phantom\nseed: 0\nseed: 1", [], "the key 'seed' stands there twice"),
        ("method: ae\ndataset: phantom\nset: {ae: {steps: true}}", [], "steps = 'true' is not valid"),
        ("method: ae\ndataset: phantom", ["ae.minutes=inf"], "minutes = 'inf' is not valid"),
        ("just text", [], "must hold a mapping"),
        ("method: histeq\nset: 3", [], "`set` must map scopes to parameters"),
    ],
)
def test_mistakes_are_one_clear_sentence(text: str, sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(run_config.cells(load(text, tmp_path, sets=sets)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_variable_names_the_parent_folder(tmp_path: Path, slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices.rename(tmp_path / "folder")
    monkeypatch.setenv("ADBENCH_DATA", str(tmp_path))
    cell = one_cell(load("method: histeq\ndataset: folder\ndevice: cpu", tmp_path))
    assert cell.test.root == str(tmp_path / "folder")
    assert cell.modality == "FLAIR"


@pytest.mark.parametrize("text", ["{subject}/{subject}_{modality}.nii.gz", "**/{subject}.nii.gz", "*/{subject}.nii"])
def test_path_patterns_need_no_quotes_of_their_own(text: str) -> None:
    assert run_config.parse_assignment(f"dataset.image_pattern={text}") == ("dataset", "image_pattern", text)
    with pytest.raises(UserError, match="is not a valid YAML value"):
        run_config.parse_assignment("method.sizes=[1, 2")


def test_options_of_a_file_and_of_methods_are_read_by_the_type_of_their_field(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    text = (
        "method: histeq\ndataset: folder\ndata_root: 7\ndevice: cpu\nset:\n  histeq: {polarity: DARK, sigma: 1e0}\n"
        "  dataset: {skull: no, exclude: 100206, lesion_labels: 1, name: on}\n"
    )
    config = load(text, tmp_path)
    assert config.data_root == "7"
    source = Source.resolve("folder", None, config.set["dataset"])
    found = source.params.json_values
    assert [found[name] for name in ("skull", "exclude", "lesion_labels", "name")] == ["no", ["100206"], [1], "on"]
    params = HistEq.resolve("tiny", config.set["histeq"]).json_values
    assert (params["polarity"], params["sigma"]) == ("dark", 1.0)


def test_a_name_keeps_the_digits_that_it_was_written_with(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("set:\n  dataset: {name: 1.10, exclude: [2.50, 3.5], val_share: 0.20}\n")
    values = run_config.load(tmp_path / "run.yaml", {}, []).set["dataset"]
    found = build(FolderParams, "dataset folder", values)
    assert (found.name, found.exclude, found.val_share) == ("1.10", ("2.50", "3.5"), 0.2)
    assert build(FolderParams, "", dict([run_config.parse_assignment("dataset.name=1.10")[1:]])).name == "1.10"


@pytest.mark.parametrize("value", ["no", "none", "None", "null", False, None])
def test_no_number_where_none_is_needed(value: Any) -> None:
    class Params(ParamSet):
        minutes: float | None = param(5.0, "how long", gt=0)
        size: int | None = param(3, "how large")
        steps: int = param(1, "how many")

    found = build(Params, "x", {"minutes": value, "size": value})
    assert (found.minutes, found.size) == (None, None)
    with pytest.raises(UserError, match="steps"):
        build(Params, "x", {"steps": value})
