"""The Python API: runs, their files, their maps, comparisons; its page, run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adbench
from adbench import api
from adbench.errors import UserError
from adbench.evaluation.run import Part
from adbench.metrics.histogram import ScoreHistogram

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def runs(make_slices: Any, tmp_path_factory: pytest.TempPathFactory) -> list[api.Run]:
    """histeq with maps and constant without, two seeds each, on eight test subjects."""
    root = tmp_path_factory.mktemp("api")
    slices = str(make_slices(root / "slices", test=8))
    common: dict[str, Any] = {"data_root": slices, "device": "cpu", "out": root / "runs", "seed": (0, 1)}
    return api.run("histeq", "folder", save_maps=True, **common) + api.run("constant", "folder", **common)


def test_run_answers_from_records(runs: list[api.Run]) -> None:
    config = runs[0].cell
    again = api.run(
        "histeq", "folder", data_root=config.test.root, device="cpu", out=runs[0].folder.parents[2], seed=(0, 1)
    )
    assert [run.record for run in again] == [run.record for run in runs[:2]]


def test_the_package_has_every_name_of_its_api() -> None:
    assert {getattr(adbench, name) for name in adbench.__all__} == {getattr(api, name) for name in api.__all__}


def test_true_is_no_seed() -> None:
    for seed in (True, [0, False]):
        with pytest.raises(UserError, match="true or false"):
            api.run("histeq", "phantom", seed=seed)


def test_load_finds_every_run_once(runs: list[api.Run]) -> None:
    out = runs[0].folder.parents[2]
    found = api.load(out, runs[0].folder, runs[0].folder / "record.json")
    assert sorted(run.record.run_key for run in found) == sorted(run.record.run_key for run in runs)
    with pytest.raises(UserError, match="There is no run in"):
        api.load(out / "fits")


def test_histograms_are_those_of_the_maps(runs: list[api.Run]) -> None:
    run = runs[0]
    for subject in run.each():
        expected = ScoreHistogram(run.histograms.partition)
        expected.update(subject.maps[subject.brain], subject.lesion[subject.brain])
        assert run.histograms[subject.subject] == expected
        assert subject.drift == 0
        assert subject.reconstruction is None


def test_maps_made_again_are_those_that_were_saved(runs: list[api.Run]) -> None:
    saved = {s.subject: s.maps.copy() for s in runs[0].each()}
    run = api.Run(runs[0].folder)
    run.__dict__["maps"] = None  # as if they had not been saved
    chosen = run.subjects[5:2:-1]
    made = list(run.each(chosen))
    assert [s.subject for s in made] == sorted(chosen)  # in the order of the test set
    for subject in made:
        assert np.array_equal(subject.maps, saved[subject.subject])


def test_evaluation_repeats_the_record(runs: list[api.Run]) -> None:
    again = runs[0].evaluation()
    for name, number in runs[0].record.metrics.items():
        assert (again.metrics[name].value, again.metrics[name].low) == (number.value, number.low)


def test_the_package_offers_the_api_on_first_use() -> None:
    import subprocess
    import sys

    script = (
        "import sys, adbench\n"
        "assert not [name for name in sys.modules if name.startswith('adbench.')]\n"
        "from adbench import api\n"
        "assert (adbench.run, adbench.load, adbench.compare) == (api.run, api.load, api.compare)\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'sklearn', 'nibabel', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="'adbench' has no attribute 'rum'"):
        getattr(adbench, "rum")  # noqa: B009


def test_runs_become_a_table(runs: list[api.Run], tmp_path: Path) -> None:
    import pandas as pd

    frame = api.to_frame([*runs, runs[0]])  # one that is given twice counts once
    assert len(frame) == sum(len(run.record.metrics) for run in runs)
    row = frame.query("run_key == @key and metric == 'auprc'", local_dict={"key": runs[0].record.run_key}).iloc[0]
    stored = runs[0].record.metrics["auprc"]
    assert (row["method"], row["seed"], row["value"], row["low"]) == ("histeq", 0, stored.value, stored.low)
    assert runs[0].to_frame()["metric"].tolist() == list(runs[0].record.metrics)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert pd.read_csv(tmp_path / "runs.csv")["value"].tolist()[0] == pytest.approx(frame["value"][0])


def test_a_result_says_which_metrics_it_lacks(runs: list[api.Run]) -> None:
    assert runs[0].missing(["hd95"]) == ["hd95"]
    assert runs[0].missing([]) == []


def test_compare_pools_seeds_and_ranks(runs: list[api.Run]) -> None:
    table = api.compare(runs)
    assert list(table.ranks) == ["histeq [tiny]", "constant [tiny]"]
    assert table.ranks["constant [tiny]"] is None
    assert table.reasons["constant [tiny]"] == "not above chance"
    with pytest.raises(UserError, match="two methods"):
        api.compare(runs[:2])
    with pytest.raises(UserError, match="Unknown metric"):
        api.compare(runs, "auprk")


def test_method_groups_name_what_differs(runs: list[api.Run]) -> None:
    assert {name: len(members) for name, members in api.method_groups(runs).items()} == {
        "histeq [tiny]": 2,
        "constant [tiny]": 2,
    }


def test_a_part_shows_what_the_whole_set_shows(runs: list[api.Run]) -> None:
    from adbench.datasets.selection import InsertedSet

    data = runs[0].data
    whole = InsertedSet(data.test_store, data.test.rows)  # lesions that depend on the set they are put into
    part = Part(data.test_store, whole, np.array([1, 4, 6]))
    assert part.subjects == [whole.subjects[i] for i in (1, 4, 6)]
    assert np.array_equal(part.batch(slice(None)).image, whole.batch(np.array([1, 4, 6])).image)
    assert np.array_equal(part.batch(np.array([2])).image, whole.batch(np.array([6])).image)


@pytest.mark.parametrize(
    ("subject", "message"), [("nobody", "no test subject 'nobody'"), ("train00", "no test subject 'train00'")]
)
def test_unknown_subjects_are_named(runs: list[api.Run], subject: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(runs[0].each([subject]))


def test_changed_data_are_noticed(runs: list[api.Run], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "protocol" / "data" / "run"
    shutil.copytree(runs[0].folder, folder)
    record = json.loads((folder / "record.json").read_text())
    record["test"]["digest"] = "f" * 64
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not those of the run any more"):
        next(api.Run(folder).each())


def test_every_block_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["anomaly_map"].shape == names["image"].shape
