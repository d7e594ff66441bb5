"""Protocols: which source trains, which rows are scored, and that no person is on both sides under any name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from adbench.config import run_config
from adbench.config.protocols import PROTOCOLS, Rule, choose, get
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.datasets.adapters.atlas import Atlas
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.io import nifti
from adbench.datasets.selection import InsertedSet, scored
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.runner import overlap, plan
from adbench.testing import check_dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
import real_layouts as layouts
import small_brats

EASY = {
    "brain": "background",
    "registration": "none",
    "n4": False,
    "size": 64,
    "min_brain": 0.0,
    "field_of_view": 128.0,
}
FLAGS = [f"--set=dataset.{name}={value}" for name, value in EASY.items()]
TRAIN_FLAGS = [f"--set=train.{name}={value}" for name, value in EASY.items()]

FEW = ["--set=dataset.slice_step=20"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all data lie, to be read only."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def ixi(data: Path) -> Path:
    root = data / "ixi"
    for number in range(2, 26):
        layouts.ixi(root, f"{number:03d}", ("Guys", "HH", "IOP")[number % 3], f"{number:04d}", "T1 T2")
    return root


@pytest.fixture(scope="module")
def atlas(data: Path) -> Path:
    root = data / "atlas"
    for number in range(1, 5):
        layouts.atlas(root, f"r001s{number:03d}", layouts.MNI_SHAPE)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    folder = tmp_path_factory.mktemp("brats")
    return prepare(small_brats.dataset(small_brats.write(folder / "data", 8)), "FLAIR", folder / "cache", workers=1)


# -- choosing a protocol -------------------------------------------------------------------------------------------------


def test_every_protocol_of_the_table_is_whole() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.summary
        assert protocol.slices in get_args(Rule)
    variants = {name for name in PROTOCOLS if name.endswith(("-central-slice", "-largest-lesion"))}
    assert variants == {
        f"{base}-{kind}"
        for base in ("ixi->atlas", "brats21", "ixi->brats21")
        for kind in ("central-slice", "largest-lesion")
    }


def test_keys_outlive_new_optional_fields() -> None:
    assert set(get("phantom").as_dict()) == {
        "name", "version", "summary", "train", "test", "threshold", "domain", "level"
    }  # fmt: skip
    assert get("ixi->atlas").as_dict()["train_on"] == "ixi"
    assert json.loads(json.dumps(get("ixi").as_dict())) == get("ixi").as_dict()


@pytest.mark.parametrize(
    ("name", "dataset", "train_on", "expected"),
    [
        (None, "atlas", None, "ixi->atlas"),
        (None, "brats21", None, "brats21"),
        (None, "brats21", "ixi", "ixi->brats21"),
        (None, "ixi", None, "ixi"),
        ("folder", "atlas", "folder", "folder"),
        ("ixi->brats21-central-slice", "brats21", None, "ixi->brats21-central-slice"),
    ],
)
def test_the_protocol_of_a_run(name: str | None, dataset: str, train_on: str | None, expected: str) -> None:
    own = {"atlas": "ixi->atlas", "brats21": "brats21", "ixi": "ixi"}[dataset]
    assert choose(name, dataset, own, train_on).name == expected


@pytest.mark.parametrize(
    ("name", "dataset", "train_on", "message"),
    [
        ("ixi->atlas", "brats21", None, "tests on atlas, not on brats21"),
        (None, "atlas", "folder", "learns from ixi, not from folder"),
        (None, "brats21", "folder", "learns from brats21, not from folder"),
        ("ixi->atlsa", "atlas", None, "Did you mean 'ixi->atlas'"),
    ],
)
def test_protocols_that_do_not_fit(name: str | None, dataset: str, train_on: str | None, message: str) -> None:
    own = {"atlas": "ixi->atlas", "brats21": "brats21"}[dataset]
    with pytest.raises(UserError, match=message):
        choose(name, dataset, own, train_on)


def cell(**values: Any) -> Any:
    return run_config.cells(RunConfig(method=("histeq",), device="cpu", **values))[0]


def test_the_training_source_is_found_where_all_data_lie(
    ixi: Path, atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"The protocol ixi->atlas learns from ixi. .* give --train-root DIR"):
        cell(dataset=("atlas",), data_root=str(atlas))
    found = cell(dataset=("atlas",), data_root=str(atlas), train_root=str(ixi))
    assert found.train.root == str(ixi)
    monkeypatch.setenv("ADBENCH_DATA", str(ixi.parent))
    found = cell(dataset=("atlas",), set={"train": {"size": 64}, "dataset": {"size": 64}})
    assert (found.train.root, found.test.root) == (str(ixi), str(atlas))
    assert (found.protocol.name, found.modality, found.train.params.size) == ("ixi->atlas", "T1", 64)
    assert run_config.from_cell(found).train_on == "ixi"
    (again,) = run_config.cells(run_config.from_cell(found))
    assert again == found


def test_modalities_of_a_protocol(tmp_path: Path, ixi: Path) -> None:
    brats = tmp_path / "brats"
    layouts.brats(brats, "00001", layouts.SMALL)
    common = {"dataset": ("brats21",), "data_root": str(brats), "train_on": "ixi", "train_root": str(ixi)}
    assert cell(**common).modality == "T2"
    with pytest.raises(UserError, match=r"The protocol ixi->brats21 is for T2 and T1, not for FLAIR"):
        cell(**common, modality=("FLAIR",))


# -- rows ----------------------------------------------------------------------------------------------------------------


def test_all_slices_are_those_of_subjects_with_a_mask(store: SliceStore) -> None:
    assert scored(store, "test", "all").digest == store.labelled("test").digest


def test_the_central_slice(store: SliceStore) -> None:
    chosen, whole = scored(store, "test", "central"), store.labelled("test")
    assert len(chosen) == len(chosen.subjects) == len(whole.subjects) > 1
    for position, subject in enumerate(chosen.subjects):
        numbers = whole.slice_numbers[whole.subject_index == whole.subjects.index(subject)]
        assert chosen.slice_numbers[position] == numbers[len(numbers) // 2]


def test_the_slice_with_the_largest_lesion(store: SliceStore) -> None:
    chosen, whole = scored(store, "test", "largest-lesion"), store.labelled("test")
    best = [whole.lesion_voxels[whole.subject_index == n].max() for n in range(len(whole.subjects))]
    assert chosen.lesion_voxels.tolist() == best
    assert min(best) > 0


def test_spread_slices(store: SliceStore) -> None:
    chosen = scored(store, "test", "spread")
    assert len(chosen) == len(set(chosen.rows.tolist()))
    assert max(np.bincount(chosen.subject_index)) <= 16


def test_a_healthy_protocol_refuses_a_lesion(store: SliceStore) -> None:
    with pytest.raises(UserError, match=r"takes the test subjects as healthy, but BraTS2021_\d+ has a lesion"):
        scored(store, "test", "all", healthy=True)


def test_inserted_lesions_are_the_same_every_time_and_part_of_the_digest(store: SliceStore) -> None:
    rows = store.rows("train", healthy_only=True)[:24]
    one, other = InsertedSet(store, rows), InsertedSet(store, rows)
    assert one.digest == other.digest != LabelledSet(store, rows).digest
    np.testing.assert_array_equal(one.images(), other.images())
    np.testing.assert_array_equal(one.lesion_voxels, one.lesions().sum(axis=(1, 2)))
    assert 0 < (one.lesion_voxels > 0).mean() < 1
    plain = LabelledSet(store, rows)
    untouched = ~one.lesions()
    np.testing.assert_array_equal(one.images()[untouched], plain.images()[untouched])
    positions = np.array([3, 5])
    batch = one.batch(positions)
    np.testing.assert_array_equal(batch.image[:, 0].numpy(), one.images(positions).astype(np.float32))
    assert batch.slices == plain.batch(positions).slices


# -- persons -------------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, train: dict[str, int], test: dict[str, int], name: str = "") -> str:
    """What planning says to two folders of volumes with these subjects (name: seed), the first one called ``name``."""
    with pytest.raises(UserError) as caught:
        gathered(tmp_path, train, test, name)
    return str(caught.value)


def gathered(tmp_path: Path, train: dict[str, int], test: dict[str, int], called: str) -> plan.Data:
    for side, names in (("train", train), ("test", test)):
        for name, seed in names.items():
            folder = tmp_path / side / ("train" if side == "train" else "test")
            nifti.write(folder / f"{name}_t1.nii.gz", layouts.image(layouts.SMALL, seed), np.eye(4))
            if side == "test":
                nifti.write(folder / f"{name}_seg.nii.gz", layouts.lesion(layouts.SMALL), np.eye(4))
    spec = cell(
        dataset=("folder",),
        data_root=str(tmp_path / "test"),
        train_on="folder",
        train_root=str(tmp_path / "train"),
        set={"dataset": EASY, "train": {**EASY, "name": called}},
    )
    return plan.gather(spec.test, spec.train, spec.modality, get("folder"), tmp_path / "cache", Progress())


@dataclass
class Role:
    """As much of a set of slices as the check looks at."""

    subjects: list[str]


def check_roles(
    train: list[str], test: list[str], val: list[str] | None = None, threshold: list[str] | None = None
) -> None:
    overlap.check_names(*(Role(names) for names in (train, val or [], threshold or [], test)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("BraTS2021_00012", "BraTS2021_00012"),
        ("BraTS2021_00012", "BraTS-GLI-00012-000"),
        ("IXI012", "IXI012-HH-1211"),
        ("sub-r001s002", "r001s002"),
    ],
)
def test_one_person_under_two_names_has_one_role(one: str, other: str) -> None:
    says = f"1 subjects have two roles among training, validation and test, e.g. .*{one}"
    for roles in (
        {"train": [one, "a"], "test": [other, "b"]},
        {"train": ["a"], "val": [one], "test": [other]},
        {"train": [one], "threshold": [other], "test": ["b"]},
        {"train": ["a"], "threshold": [one], "test": [other]},
    ):
        with pytest.raises(UserError, match=says) as caught:
            check_roles(**roles)
        assert repr(other) in str(caught.value)
    check_roles(train=["a"], val=[one], threshold=[other], test=["b"])  # healthy slices and the threshold may share


def test_releases_that_share_patients_are_refused() -> None:
    with pytest.raises(UserError, match="Training has subjects of BraTS'20 and the test dataset of BraTS'21"):
        check_roles(train=["BraTS20_Training_001"], test=["BraTS2021_00300"])
    check_roles(train=["BraTS2021_00001"], test=["BraTS2021_00300"])


def test_planning_refuses_a_person_on_both_sides(tmp_path: Path) -> None:
    message = refused(tmp_path, {"IXI012-Guys-0700": 1, "other": 2}, {"IXI012-HH-1211": 3, "another": 4})
    assert "e.g. 'IXI012'" in message


def test_one_name_in_two_data_sets_is_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another name and other files are another person, unless the images say otherwise or the name is that of a release."""
    train, test = {"patient04": 11, "other": 12}, {"patient4": 13, "another": 14}
    assert "have two roles" in refused(tmp_path / "same", train, test)
    data = gathered(tmp_path / "two", train, test, "clinic")
    assert (data.train.subjects, data.test.subjects) == (["other", "patient04"], ["another", "patient4"])
    (said,) = [record.message for record in caplog.records if "have one name" in record.message]
    assert said.startswith(
        "1 subjects of two data sets have one name, e.g. 'patient04 (of clinic)' and 'patient4 (of folder)'"
    )
    copied = refused(tmp_path / "copied", train, test | {"patient4": 11}, "clinic")  # the same bytes
    assert "e.g. 'patient04' and 'patient4'" in copied
    assert "have two roles" in refused(tmp_path / "ixi", {"IXI012-HH-1": 21}, {"IXI012-Guys-2": 22}, "clinic")


# -- the contract --------------------------------------------------------------------------------------------------------


def test_the_adapters_keep_the_contract_of_datasets(tmp_path: Path, ixi: Path, atlas: Path) -> None:
    brats = small_brats.write(tmp_path / "data" / "brats21", 4)
    broken = [
        (dataset.info.name, finding.rule, finding.problem)
        for dataset in (
            layouts.dataset(IXI, ixi, **EASY),
            layouts.dataset(Atlas, atlas, **EASY, slice_step=20),
            small_brats.dataset(brats),
        )
        for finding in check_dataset(dataset)
        if finding.problem
    ]
    assert broken == []


# -- whole runs ----------------------------------------------------------------------------------------------------------


def run(cli: Callable[..., Any], tmp_path: Path, *arguments: object) -> tuple[int, str, str, Path]:
    code, out, err = cli("run", "--quiet", "--device", "cpu", "--out", tmp_path / "runs", *arguments)
    return code, out, err, next((p.parent for p in (tmp_path / "runs").rglob("record.json")), Path())


def test_false_alarms_on_healthy_subjects(cli: Callable[..., Any], tmp_path: Path, ixi: Path) -> None:
    code, out, err, folder = run(cli, tmp_path, "--method", "histeq", "--dataset", "ixi", "--data-root", ixi, *FLAGS)
    assert code == 0, err
    record = json.loads((folder / "record.json").read_text())
    assert record["metrics"]["auprc"]["value"] is None
    assert record["metrics"]["auprc"]["reason"] == "no lesion voxel in the whole test split"
    assert "no lesion voxel in the whole test split" in out + err
    for rate, heading in (("alarms@fpr1", "@1 %"), ("alarms@fpr5", "@5 %")):
        assert heading in out
        assert 0 <= record["metrics"][rate]["value"] <= 1
        assert record["metrics"][rate]["n"] == record["test"]["subjects"]
    lists = json.loads((folder / "splits.json").read_text())
    assert lists["val"] == lists["threshold"]
    roles = [set(lists[role]) for role in ("train", "val", "test")]
    assert sum(map(len, roles)) == len(set.union(*roles)) == 24
    assert record["files"]["splits.json"]


@pytest.mark.parametrize("protocol", ["ixi-inserted", "mood"])
def test_inserted_lesions(cli: Callable[..., Any], tmp_path: Path, ixi: Path, protocol: str) -> None:
    code, out, err, folder = run(
        cli,
        tmp_path,
        "--method",
        "histeq",
        "--dataset",
        "ixi",
        "--protocol",
        protocol,
        "--data-root",
        ixi,
        *FLAGS,
        "--set=dataset.field_of_view=32",
    )
    assert code == 0, err
    record = json.loads((folder / "record.json").read_text())
    assert record["protocol"]["inserted"] is True
    assert 0 < record["metrics"]["auprc"]["value"] <= 1
    assert record["thresholds"]["val"] is not None
    assert ("FROC" in out) == (protocol == "mood")


def test_ixi_teaches_and_atlas_tests(cli: Callable[..., Any], tmp_path: Path, ixi: Path, atlas: Path) -> None:
    code, _, err, folder = run(
        cli, tmp_path, "--method", "zscore", "--dataset", "atlas", "--data-root", atlas, "--train-root", ixi,
        *FLAGS, *TRAIN_FLAGS, *FEW,
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((folder / "record.json").read_text())
    assert (record["train"]["name"], record["test"]["name"], record["protocol"]["name"]) == (
        "ixi",
        "atlas",
        "ixi->atlas",
    )
    lists = json.loads((folder / "splits.json").read_text())
    assert all(name.startswith("IXI") for name in lists["train"] + lists["val"])
    assert all(name.startswith("sub-r") for name in lists["threshold"] + lists["test"])
    # One fit serves every test set.
    before = list((tmp_path / "runs" / "fits").iterdir())
    code, _, err, _ = run(
        cli, tmp_path, "--method", "zscore", "--dataset", "atlas", "--data-root", atlas, "--train-root", ixi,
        "--protocol", "ixi->atlas-central-slice", *FLAGS, *TRAIN_FLAGS, *FEW,
    )  # fmt: skip
    assert code == 0, err
    assert list((tmp_path / "runs" / "fits").iterdir()) == before
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 2


def test_why_there_is_no_ixi_for_isles() -> None:
    with pytest.raises(
        UserError, match=r"ISLES'22 has FLAIR, DWI and ADC, and IXI none of them\. .* there is bids->isles"
    ):
        get("ixi->isles")
