"""The layouts that people have: read as they lie there, with the options of docs/datasets.md, or refused in one sentence."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adbench.config import registry, run_config
from adbench.datasets import download
from adbench.datasets.adapters.brats23 import BraTS23
from adbench.datasets.base import Case
from adbench.datasets.io import nifti
from adbench.datasets.io.filename_patterns import recognise
from adbench.datasets.io.patient_names import person
from adbench.datasets.phantom import small_layouts as layouts
from adbench.datasets.store.prepare import store_folder
from adbench.datasets.validation.check import CheckReport, check
from adbench.errors import UserError

Cli = Callable[..., tuple[int, str, str]]
OWN = ("bids", "folder", "phantom")  # nobody else's work
TINY: dict[str, Any] = {"size": 32, "min_brain": 0.01}

PATTERNS: dict[str, dict[str, Any]] = {  # what docs/datasets.md says to set
    "msseg": {
        "image_pattern": "{subject}/Preprocessed_Data/{modality}_preprocessed.nii.gz",
        "lesion_pattern": "{subject}/Masks/Consensus.nii.gz",
        "brain_pattern": "{subject}/Masks/Brain_Mask.nii.gz",
    },
    "ucsf_pdgm": {
        "image_pattern": "{subject}_{modality}_bias.nii.gz",
        "lesion_pattern": "{subject}_tumor_segmentation.nii.gz",
    },
    "torchio": {
        "image_pattern": "image/{subject}_image.nii.gz",
        "brain_pattern": "label/{subject}_label.nii.gz",
        "modality": "T1",
        "unmasked": "healthy",
    },
    "hcp": {
        "image_pattern": "{subject}/T1w/{modality}_acpc_dc_restore_brain.nii.gz",
        "brain_pattern": "{subject}/T1w/brainmask_fs.nii.gz",
        "unmasked": "healthy",
    },
}


def dataset(name: str, root: Path, **params: Any) -> Any:
    return run_config.locate(name, str(root), {**TINY, **params}, "--data-root").open()


def written(root: Path, layout: str, n: int = 2, **more: Any) -> Path:
    layouts.write_small(layout, root, n, **more)
    return root


def cases_of(name: str, root: Path, **params: Any) -> list[Case]:
    found = dataset(name, root, **params)
    cases: list[Case] = found.discover(found.available()[0])
    return cases


def refused(name: str, root: Path, **params: Any) -> str:
    with pytest.raises(UserError) as caught:
        cases_of(name, root, **params)
    return str(caught.value)


def errors(report: CheckReport) -> list[tuple[str, str]]:
    return [(issue.case, issue.message) for issue in report.issues if issue.severity == "error"]


@pytest.mark.parametrize("name", sorted(registry.BUILTIN["datasets"]))
def test_every_dataset_says_whose_it_is_and_has_a_layout_that_is_tried(name: str) -> None:
    info = registry.load("datasets", name).info
    assert info.name == name
    assert info.licence
    assert "http" in info.obtain or not info.citation or name == "nnunet"
    assert ("doi:" in info.citation or "arXiv:" in info.citation or name == "ixi") == (name not in OWN), info.citation
    docs = Path(__file__).parents[2] / "docs"
    assert f"\n| `{name}` | " in (docs / "datasets.md").read_text(), "the first table"
    assert f" | `{name}` | " in (docs / "datasets.md").read_text() or name == "phantom", "the table of layouts"
    assert name in {known.dataset for known in layouts.LAYOUTS.values()} or name == "phantom"
    if name in download.SOURCES:
        assert f"adbench data get {name}" in info.obtain


@pytest.mark.parametrize(
    ("layout", "name", "options", "modalities", "test_subjects"),
    [
        ("brats23", "brats23", [], ["FLAIR", "T1", "T1CE", "T2"], 1),
        ("msd_brain", "msd_brain", [], ["FLAIR", "T1", "T1CE", "T2"], 1),
        ("isles22", "isles22", [], ["FLAIR", "DWI", "ADC"], 1),
        ("mslub", "mslub", [], ["FLAIR", "T1", "T1CE", "T2"], 1),
        ("wmh", "wmh", ["brain=background"], ["FLAIR", "T1"], 1),
        ("soop", "soop", [], ["FLAIR", "T1", "DWI", "ADC"], 1),
        ("bids", "bids", ["healthy=group=control", "name=cohort_a"], ["T1"], 3),
        ("nnunet", "nnunet", [], ["FLAIR", "T1"], 1),
        ("msd_brain", "nnunet", [], ["FLAIR", "T1", "T2", "T1CE"], 1),
    ],
)
def test_info_check_prepare_and_run(
    cli: Cli,
    tmp_path: Path,
    layout: str,
    name: str,
    options: list[str],
    modalities: list[str],
    test_subjects: int,
) -> None:
    root = written(tmp_path / "data", layout, 8 if layout == "bids" else 6)
    common = ["--dataset", name, "--data-root", root]
    for option in [*options, "size=32", "min_brain=0.01"]:
        common += ["--set", f"dataset.{option}"]
    described = json.loads(cli("data", "info", *common, "--json")[1])
    assert list(described["modalities"]) == modalities
    params = dict(option.split("=", 1) for option in options)
    source = run_config.locate(name, str(root), {**TINY, **params}, "--data-root")
    found = check(source.open(), deep=True)
    assert {f.code for f in found.issues if f.severity != "info"} <= {"shape", "voxel-size"}  # heads of 8 mm
    cache = ["--cache", tmp_path / "cache"]
    code, _, err = cli("data", "prepare", *common, *cache, "--workers", 1, "--modality", modalities[0])
    assert code == 0, err
    code, _, err = cli("data", "show", *common, *cache, "--count", 1, "--slices", 4, "--out", tmp_path / "sheet.png")
    assert (code, (tmp_path / "sheet.png").is_file()) == (0, True), err
    code, _, err = cli("run", "--method", "histeq", *common, *cache, "--out", tmp_path / "runs", "--device", "cpu")
    assert code == 0, err
    (record,) = (tmp_path / "runs").rglob("record.json")
    part = json.loads(record.read_text())["test"]
    assert part["subjects"] == test_subjects
    assert part["name"] == ("cohort_a" if name == "bids" else name)


@pytest.mark.parametrize("layout", sorted(PATTERNS))
def test_patterns_of_the_documentation(tmp_path: Path, layout: str) -> None:
    root = written(tmp_path, layout, 4)
    found = dataset("folder", root, **PATTERNS[layout])
    for modality in found.available():
        cases: list[Case] = found.discover(modality)
        assert len({case.subject for case in cases}) == 4
        stack = found.load(cases[0], modality)
        assert stack.brain.any()
        assert (stack.lesion is None) == (layout in ("torchio", "hcp"))
        if stack.lesion is not None:
            assert stack.lesion.any()


# -- refused, in a sentence that leads on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("msd_brain", "No file in {root} has a name of your own: this looks like MSD Task01 (brain tumours) (Task01_BrainTumour/imagesTr/BRATS_001.nii.gz); use --dataset msd_brain."),
        ("wmh", "No file in {root} has a name of your own: this looks like the WMH challenge (Singapore/1/orig/FLAIR.nii.gz); use --dataset wmh."),
        ("mslub", "{root}/patient01/patient01_FLAIR.nii.gz and {root}/patient01/raw/patient01_FLAIR.nii.gz have the same name and different content: this looks like MSLUB, whose names --dataset mslub knows; otherwise remove one, or say where the names lie if they are of two patients (dataset.image_pattern={{subject}}/...), or leave patient01 out with dataset.exclude=[patient01]."),
        ("msseg", "There are masks ({root}/Center_01_Patient_02/Masks/Brain_Mask.nii.gz) and no image in {root}; Center_01_Patient_02/Masks/Consensus.nii.gz has no name of folder's."),
        ("ucsf_pdgm", "There are masks ({root}/UCSF-PDGM-0000_nifti/UCSF-PDGM-0000_tumor_segmentation.nii.gz) and no image in {root}; UCSF-PDGM-0000_nifti/UCSF-PDGM-0000_FLAIR_bias.nii.gz has no name of folder's."),
        ("torchio", "There are masks ({root}/label/IXI000-Guys-0000_label.nii.gz) and no image in {root}; image/IXI000-Guys-0000_image.nii.gz has no name of folder's."),
        ("hcp", "None of the 6 NIfTI files in {root} says by its name what it is, e.g. 100206/T1w/T1w_acpc_dc_restore_brain.nii.gz. Say it with --set dataset.image_pattern=..., such as {{subject}}/{{subject}}_{{modality}}.nii.gz."),
    ],
)  # fmt: skip
def test_what_folder_says_without_options(cli: Cli, tmp_path: Path, layout: str, says: str) -> None:
    message = refused("folder", written(tmp_path, layout))
    assert message.startswith(says.format(root=tmp_path))
    code, out, err = cli("data", "info", "--dataset", "folder", "--data-root", tmp_path)
    assert (code, out, " ".join(err.split())) == (2, "", f"adbench: {message}")


def test_masks_without_images_are_refused_by_the_adapter_of_a_release_too(tmp_path: Path) -> None:
    message = refused("ixi", written(tmp_path, "torchio"))
    assert message.startswith(
        f"There are masks ({tmp_path}/label/IXI000-Guys-0000_label.nii.gz) and no image in {tmp_path}; "
    )
    assert message.endswith("IXI-T1.tar (4.5 GB), IXI-T2.tar and IXI-PD.tar (3.6 GB each).")


def test_patients_of_a_known_release_are_not_declared_healthy_by_advice(tmp_path: Path) -> None:
    root = written(tmp_path, "isles22")
    for mask in root.rglob("*_msk.nii.gz"):
        mask.unlink()
    message = refused("folder", root)
    assert message == (
        f"No case in {root} has a lesion mask: this looks like ISLES'22, whose names --dataset isles22 knows."
    )
    with pytest.raises(UserError, match="it has no lesion mask, so it can neither be trained on nor be scored"):
        dataset("isles22", root).discover("FLAIR")


# -- BraTS 2023 and 2024 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "labels", "counted"), [("GLI", (2, 4), (2,)), ("PEDs", (2, 4), (2, 4)), ("MEN", (1, 3), (1, 3))]
)
def test_the_whole_tumour_of_each_group(
    tmp_path: Path, group: str, labels: tuple[int, int], counted: tuple[int, ...]
) -> None:
    layouts.write_small("brats23", tmp_path, 1, group=group)
    (path,) = tmp_path.rglob("*-seg.nii.gz")
    mask = layouts.halves(0, *labels)
    nifti.write(path, mask, layouts.GRID)
    found = dataset("brats23", tmp_path, field_of_view=256)
    assert not [f for f in check(found, deep=True).issues if f.severity == "error"]
    (case,) = found.discover("FLAIR")
    stack = found.load(case, "FLAIR")
    assert stack.quality["lesion_ml_source"] == pytest.approx(np.isin(mask, counted).sum() * layouts.VOXEL**3 / 1000)
    (cavity,) = [r for r in stack.remarks if "neither lesion nor healthy" in r] if group == "GLI" else [""]
    if cavity:  # in the upper half, where no other label is
        assert stack.slices[-1] > 12
        assert not {10, 11} & set(stack.slices)
        assert any(remark.startswith("slices 10-1") for remark in stack.remarks)


@pytest.mark.parametrize(("group", "counts"), [("GLI", False), ("MET", False), ("PEDs", True)])
def test_own_data_in_the_names_of_brats_2023_have_its_labels(tmp_path: Path, group: str, counts: bool) -> None:
    """As ``brats23`` reads them: the cavity is neither lesion nor healthy, said in ``check``, ``run`` and the manifest."""
    layouts.write_small("brats23", tmp_path, 1, group=group)
    (path,) = tmp_path.rglob("*-seg.nii.gz")
    mask = layouts.halves(0, 2, 4)
    nifti.write(path, mask, layouts.GRID)
    found, known = (dataset(name, tmp_path, field_of_view=256) for name in ("folder", "brats23"))
    (case,), (same,) = found.discover("FLAIR"), known.discover("FLAIR")
    own, theirs = found.load(case, "FLAIR"), known.load(same, "FLAIR")
    assert own.slices == theirs.slices
    np.testing.assert_array_equal(own.lesion, theirs.lesion)
    np.testing.assert_array_equal(own.brain, theirs.brain)
    assert own.quality["lesion_ml_source"] == pytest.approx(
        np.isin(mask, (2, 4) if counts else (2,)).sum() * layouts.VOXEL**3 / 1000
    )
    (said,) = [f for f in check(found).issues if f.code == "known-layout"]
    if counts:
        assert (said.severity, said.message.endswith(", which --dataset brats23 knows by its names")) == ("info", True)
        return
    assert said.severity == "warning"  # `run` repeats the warnings of `faults`
    assert said.message == (
        f"{tmp_path} holds BraTS2023-{group} ({path}): label 4 (resection cavity) of its masks is taken for neither lesion nor "
        "healthy, as --dataset brats23 does. Use that, or say which labels are lesion with --set dataset.lesion_labels=[...], of "
        "those that the masks hold (data check --deep lists them)."
    )
    held = [i for i in check(found, deep=True).issues if i.code == "label"]
    assert [(i.severity, i.message) for i in held] == [
        ("info", f"The lesion masks in {tmp_path} hold the labels {', '.join(map(str, np.unique(mask)[1:]))}")
    ]
    every = dataset("folder", tmp_path, field_of_view=256, lesion_labels=[1, 2, 3, 4])
    (case,) = every.discover("FLAIR")
    assert every.load(case, "FLAIR").quality["lesion_ml_source"] > own.quality["lesion_ml_source"]
    assert every.recipe() != found.recipe()
    assert "known-layout" not in {f.code for f in check(every).issues if f.severity == "warning"}


@pytest.mark.parametrize("written_as", [str.lower, str.upper])
@pytest.mark.parametrize(
    ("layout", "name"), [(n, n) for n in ("brats23", "msd_brain", "isles22", "mslub", "wmh", "soop", "bids", "nnunet")] + [("ixi-pddpm", "ixi")]
)  # fmt: skip
def test_names_mean_the_same_in_lower_and_in_upper_case(
    tmp_path: Path, layout: str, name: str, written_as: Callable[[str], str]
) -> None:
    as_distributed, renamed = written(tmp_path / "as", layout, 1), written(tmp_path / "renamed", layout, 1)
    for path in sorted(renamed.rglob("*.nii.gz")):
        target = renamed / written_as(str(path.relative_to(renamed)))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    def scans(root: Path) -> list[Any]:
        found = dataset(name, root)
        return [
            (s.id.lower(), s.site.lower(), s.flags, {k: found.not_counted(f) for k, f in s.files.items()})
            for s in found.index.scans
            if s.sequences
        ]

    def releases(root: Path) -> list[Any]:
        found = (recognise(str(path.relative_to(root))) for path in root.rglob("*.[nN]*"))
        return sorted((n.family, n.kind, person(n.subject)) for n in found if n)

    assert scans(renamed) == scans(as_distributed)
    assert releases(renamed) == releases(as_distributed)


def test_one_scan_in_two_spellings(tmp_path: Path) -> None:
    for name, modality in (
        ("IXI002-Guys-0828-T1", "T1"),
        ("t2/ixi002-guys-0828_t2", "T2"),
        ("IXI116-HH-0001-T1", "T1"),
    ):
        nifti.write(tmp_path / f"{name}.nii.gz", layouts.head(0, modality), layouts.GRID)
    (tmp_path / "ixi.csv").write_text("IXI_ID,SEX_ID,AGE\n2,1,35\n116,2,44\n", encoding="utf-8")
    found = dataset("ixi", tmp_path)
    assert next((s.id, s.site, sorted(s.files)) for s in found.index.scans) == (
        "IXI002_Guys-0828",
        "Guy's",
        ["T1", "T2"],
    )
    assert [case.groups for case in found.discover("T1")] == [
        {"sex": "male", "age": "20-39"},
        {"sex": "female", "age": "40-59"},
    ]
    lower = tmp_path / "lower"
    nifti.write(lower / "ixi116-hh-0001-t1.nii.gz", layouts.head(0, "T1"), layouts.GRID)
    nifti.write(lower / "ixi117-hh-0002-t1.nii.gz", layouts.head(1, "T1"), layouts.GRID)
    nifti.write(lower / "ixi117-hh-0002-t2.nii.gz", layouts.head(1, "T2"), layouts.GRID)
    assert [f.case for f in check(dataset("ixi", lower)).issues if f.code == "known-missing"] == ["ixi116_hh-0001"]


def test_another_disease_of_wmh_does_not_count_by_patterns_either(tmp_path: Path) -> None:
    patterns = {
        "image_pattern": "{site}/{subject}/pre/{modality}.nii.gz",
        "lesion_pattern": "{site}/{subject}/wmh.nii.gz",
        "brain": "background",
    }
    root = written(tmp_path, "wmh", 2)
    own, known = dataset("folder", root, **patterns), dataset("wmh", root, brain="background")
    for one, other in zip(
        own.discover("FLAIR"), sorted(known.discover("FLAIR"), key=lambda c: c.subject[-1]), strict=True
    ):
        mine, theirs = own.load(one, "FLAIR"), known.load(other, "FLAIR")
        np.testing.assert_array_equal(mine.lesion, theirs.lesion)
        np.testing.assert_array_equal(mine.brain, theirs.brain)


def test_folder_names_the_adapter_of_bids(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 4)
    for path in root.rglob("*run-02*"):
        path.unlink()
    message = refused("folder", root)
    assert message.endswith(
        "or put healthy subjects into a folder train/, or use --dataset bids, which reads participants.tsv."
    )
    found = check(dataset("folder", root, unmasked="healthy")).issues
    assert [f.message for f in found if f.code == "known-layout"] == [
        f"{root} is a BIDS dataset: --dataset bids reads who is healthy from its participants.tsv"
    ]


def test_labels_that_count_as_healthy_are_said(tmp_path: Path) -> None:
    layouts.write_small("brats23", tmp_path, 1, group="SSA")  # labels 2 and 3
    found = dataset("folder", tmp_path, field_of_view=256, lesion_labels=[3])
    (case,) = found.discover("FLAIR")
    said = "lesion: label 2 counts as healthy, dataset.lesion_labels does not have it"
    assert said in found.load(case, "FLAIR").remarks
    every = dataset("folder", tmp_path, field_of_view=256)
    assert not [remark for remark in every.load(case, "FLAIR").remarks if "counts as healthy" in remark]


def test_a_label_of_another_group(tmp_path: Path) -> None:
    layouts.write_small("brats23", tmp_path, 1, group="SSA")
    (path,) = tmp_path.rglob("*-seg.nii.gz")
    nifti.write(path, layouts.halves(0, 2, 4), layouts.GRID)
    (finding,) = [f for f in check(dataset("brats23", tmp_path), deep=True).issues if f.code == "label"]
    assert finding.message.startswith(f"{path} holds the label 4 in ")
    assert finding.message.endswith("allowed are 0, 1, 2, 3")


def test_two_groups_are_not_mixed(tmp_path: Path) -> None:
    layouts.write_small("brats23", tmp_path, 2)
    layouts.write_small("brats23", tmp_path, 1, group="MET")
    assert refused("brats23", tmp_path) == (
        f"{tmp_path} mixes BraTS-GLI (2 cases) and BraTS-MET (1 cases), whose labels differ: choose one with --set "
        "dataset.group=GLI."
    )
    chosen: BraTS23 = dataset("brats23", tmp_path, group="MET")
    assert [case.subject for case in chosen.discover("T1")] == ["BraTS-MET-00000"]


def test_visits_of_a_patient_share_a_role(tmp_path: Path) -> None:
    for visit in "01":
        layouts.write_small("brats23", tmp_path, 3, visit=visit)
    cases = dataset("brats23", tmp_path).discover("FLAIR")
    assert [case.id for case in cases][:2] == ["BraTS-GLI-00000_000", "BraTS-GLI-00000_001"]
    for name in ("brats23", "folder"):
        cases = dataset(name, tmp_path).discover("FLAIR")
        assert all(one.split == other.split for one, other in zip(cases[::2], cases[1::2], strict=True))


@pytest.mark.parametrize("group", ["GLI", "MET", "PED", "MEN", "SSA"])
def test_brats21_names_the_adapter_of_every_later_group(tmp_path: Path, group: str) -> None:
    layouts.write_small("brats23", tmp_path, 1, group=group)
    release = f"BraTS2023-{group}" if group in ("GLI", "MET") else "BraTS2023 (PED, MEN, SSA)"
    one = (
        " the two hold the same patients with other labels (3 or 4 is the enhancing tumour), and only one may be used."
    )
    assert refused("brats21", tmp_path).startswith(
        f"No BraTS'21 file in {tmp_path}: this looks like {release} (BraTS-{group}-00000-000/BraTS-{group}-00000-000-seg.nii.gz); "
        f"use --dataset brats23{';' + one if group == 'GLI' else '.'} Expected there: BraTS2021_"
    )


def test_a_patient_of_2021_and_of_2023(tmp_path: Path) -> None:
    layouts.write_small("brats23", tmp_path, 1)
    nifti.write(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz", layouts.head(0, "T1"), layouts.GRID)
    assert refused("brats23", tmp_path) == (
        f"{tmp_path} mixes BraTS'21 (1 files, e.g. BraTS2021_00000/BraTS2021_00000_t1.nii.gz) and BraTS2023-GLI (5 files, e.g. "
        "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz), which hold the same patients: give each dataset a folder of its "
        "own and name the one of brats23 with --data-root."
    )


# -- channels, grids, labels that do not count -----------------------------------------------------------------------------


def test_the_channels_of_a_4d_file(tmp_path: Path) -> None:
    found = dataset("msd_brain", written(tmp_path, "msd_brain"))
    cases = found.discover("T2")
    assert [case.id for case in cases] == ["BRATS_001", "BRATS_002"]
    assert found.exclusions("T2")[0].startswith("BRATS_600: left out, it has no lesion mask")
    for modality in ("FLAIR", "T1", "T1CE", "T2"):
        np.testing.assert_array_equal(found.read(cases[0], modality).image, layouts.head(0, modality))


def test_a_channel_that_is_missing(tmp_path: Path) -> None:
    root = written(tmp_path, "msd_brain")
    path = root / "Task01_BrainTumour" / "imagesTr" / "BRATS_002.nii.gz"
    nifti.write(path, np.stack([layouts.head(1, m) for m in ("FLAIR", "T1", "T1CE")], axis=-1), layouts.GRID)
    assert errors(check(dataset("msd_brain", root))) == [
        (
            "BRATS_002",
            f"{path} has 3 channels (30x30x20x3 voxels), and channel 4 is wanted: the file should hold FLAIR, T1, T1CE, T2, in "
            "this order.",
        )
    ]
    found = dataset("msd_brain", root)
    for modality in found.available():  # which one it is that lacks is not known
        with pytest.raises(UserError, match=r"BRATS_002.nii.gz has 3 channels .* and channel 4 is wanted"):
            found.load(found.discover(modality)[1], modality)


def test_one_patient_twice_is_found_in_4d_files(tmp_path: Path) -> None:
    root = written(tmp_path, "msd_brain") / "Task01_BrainTumour"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "BRATS_003.nii.gz").write_bytes((root / folder / "BRATS_001.nii.gz").read_bytes())
    one, other = root / "imagesTr" / "BRATS_001.nii.gz", root / "imagesTr" / "BRATS_003.nii.gz"
    says = f"{other} holds the same volume as {one}: the subjects BRATS_001 and BRATS_003 are one"
    assert errors(check(dataset("msd_brain", tmp_path))) == [("BRATS_003", says)]


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_json_of_the_msd_says_the_order_of_the_channels(tmp_path: Path, packed: bool) -> None:
    root = written(tmp_path / "data", "msd_brain")
    names = {"0": "T2w", "1": "T1w", "2": "t1gd", "3": "FLAIR"}
    path = described(root, modality=names)
    where: Path | str = path
    if packed:
        where = f"{tmp_path}/tars/a.tar:Task01_BrainTumour/dataset.json"
        (tmp_path / "tars").mkdir()
        with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
            tar.add(root / "Task01_BrainTumour", "Task01_BrainTumour")
        root = tmp_path / "tars"
    found = dataset("msd_brain", root)
    (case, *_) = found.discover("T2")
    np.testing.assert_array_equal(found.read(case, "T2").image, layouts.head(0, "FLAIR"))  # the first one
    (said,) = [f for f in check(found).issues if f.code == "known-layout"]
    assert said.message == (
        f"{where} gives the channels T2, T1, T1CE, FLAIR, published as FLAIR, T1, T1CE, T2: they are read as it says"
    )
    if not packed:
        _, before = store_folder(found, "T2", tmp_path)
        described(root, modality=names | {"0": "FLAIR", "3": "T2w"})
        again = dataset("msd_brain", root)
        assert store_folder(again, "T2", tmp_path)[1] != before
        assert not [f for f in check(again).issues if f.code == "known-layout"]
        path.unlink()
        assert store_folder(dataset("msd_brain", root), "T2", tmp_path) == store_folder(again, "T2", tmp_path)


def test_a_channel_that_is_there_twice(tmp_path: Path) -> None:
    root = written(tmp_path, "msd_brain")
    path = root / "Task01_BrainTumour" / "imagesTr" / "BRATS_002.nii.gz"
    nifti.write(path, np.stack([layouts.head(1, m) for m in ("FLAIR", "T1", "FLAIR", "T2")], axis=-1), layouts.GRID)
    found = check(dataset("msd_brain", root), deep=True)
    assert [(f.code, f.message) for f in found.issues if f.severity == "error"] == [
        ("duplicate-volume", f"{path} holds one volume as FLAIR and as T1CE: FLAIR and T1CE of BRATS_002 are one")
    ]


def test_a_mask_is_carried_to_a_sequence_on_another_grid(tmp_path: Path) -> None:
    found = dataset("isles22", written(tmp_path, "isles22", 1))
    (case,) = found.discover("FLAIR")
    raw = found.read(case, "FLAIR")
    assert raw.image.shape == layouts.COARSE_SHAPE
    np.testing.assert_array_equal(found.read(case, "DWI").lesion, layouts.lesion(1))
    ideal = layouts.lesion(1, layouts.COARSE, layouts.COARSE_SHAPE)
    overlap = 2 * (ideal & raw.lesion).sum() / (ideal.sum() + raw.lesion.sum())
    assert overlap > 0.8  # nearest voxels of 8 mm on a grid of 10 mm
    assert raw.remarks == ("lesion: mask brought from the grid of DWI by the nearest voxel",)


def test_dwi_and_flair_swapped(tmp_path: Path) -> None:
    root = written(tmp_path, "isles22", 1)
    (flair,), (dwi,), (mask,) = (list(root.rglob(f"*_{kind}.nii.gz")) for kind in ("FLAIR", "dwi", "msk"))
    content = flair.read_bytes()
    flair.write_bytes(dwi.read_bytes())
    dwi.write_bytes(content)
    ((case, message),) = errors(check(dataset("isles22", root)))
    assert case == "sub-strokecase0001_ses-0001"
    assert message == (
        f"{mask} does not lie on the grid of {dwi.name}: 30x30x20 voxels against 24x24x16, on which it is drawn: is DWI another "
        "sequence's file?"
    )


def test_another_disease_is_neither_lesion_nor_healthy(tmp_path: Path) -> None:
    found = dataset("wmh", written(tmp_path, "wmh", 1), brain="background")
    (case,) = found.discover("FLAIR")
    assert (case.subject, case.site) == ("Utrecht-0", "Utrecht")
    assert "/pre/" in str(case.files[0])
    assert any("/orig/" in line and "not used" in line for line in found.exclusions("FLAIR"))
    stack = found.load(case, "FLAIR")
    assert 16 not in stack.slices  # it shows the other disease alone
    plain = dataset("wmh", tmp_path, brain="background")
    mask = layouts.lesion(0)
    (path,) = tmp_path.rglob("wmh.nii.gz")
    nifti.write(path, mask, layouts.GRID)
    whole = plain.load(plain.discover("FLAIR")[0], "FLAIR")
    at, there = list(stack.slices).index(9), list(whole.slices).index(9)
    assert whole.brain[there].sum() - stack.brain[at].sum() == 2
    assert not stack.image[at][whole.brain[there] & ~stack.brain[at]].any()
    np.testing.assert_array_equal(stack.lesion[at], whole.lesion[there])


def test_ixi_as_pddpm_lays_it_out(tmp_path: Path) -> None:
    found = dataset("ixi", written(tmp_path, "ixi-pddpm", 3), registration="none", n4=False)
    cases = found.discover("T2")
    assert [case.subject for case in cases] == ["IXI000", "IXI001", "IXI002"]
    raw = found.read(cases[0], "T2")
    np.testing.assert_array_equal(raw.brain, layouts.head(0, "T2") > 0)


# -- BIDS --------------------------------------------------------------------------------------------------------------------


def test_a_cohort_is_healthy_by_its_table(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 4)
    message = refused("bids", root)
    assert message.startswith(
        f"sub-000_ses-d0129 in {root} has no lesion mask, as 2 of 4 cases have: say --set dataset."
    )
    found = dataset("bids", root, healthy="group=Control")
    cases = found.discover("T1")
    assert {c.subject: c.healthy for c in cases if c.healthy} == {
        "sub-000": "participants.tsv says group=Control",
        "sub-002": "participants.tsv says group=Control",
    }
    assert all("run-01" in str(case.files[0]) for case in cases)
    said = [line for line in found.exclusions("T1") if "run-02" in line]
    assert len(said) == 4
    assert said[0].endswith("sub-000_ses-d0129_run-01_T1w.nii.gz is")


def test_a_subject_that_is_not_in_the_table(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 4)
    table = root / "participants.tsv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("sub-002")))
    (first, *_) = errors(check(dataset("bids", root, healthy="group=control")))
    assert first[0] == "sub-002_ses-d0129"
    assert refused("bids", root, healthy="group=control") == (
        f"sub-002 is not in {table}: it has no age, sex or group; add a row, or use dataset.exclude."
    )
    kept = dataset("bids", root, healthy="group=control", exclude=["sub-002"]).discover("T1")
    assert [case.subject for case in kept] == ["sub-000", "sub-001", "sub-003"]


@pytest.mark.parametrize(
    ("content", "healthy", "says"),
    [
        (None, "grup=control", "Unknown column of {table} in dataset.healthy 'grup'. Did you mean 'group'?"),
        ("", "group=control", "dataset.healthy=group=control needs {table}, which is missing or empty."),
        (
            "subject,age\n1,2\n",
            "age=2",
            "The table {table} has no column participant_id; it has subject,age: is it separated",
        ),
    ],
)
def test_tables_that_do_not_help(tmp_path: Path, content: str | None, healthy: str, says: str) -> None:
    table = written(tmp_path, "bids") / "participants.tsv"
    if content is not None:
        table.write_text(content)
    assert refused("bids", tmp_path, healthy=healthy).startswith(says.format(table=table))


def test_who_is_a_patient_by_the_table_is_not_healthy(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 4)
    table = root / "participants.tsv"
    for mask in root.rglob("sub-003*mask.nii.gz"):
        mask.unlink()
    for path in [*root.rglob("*run-02*")]:
        path.unlink()
    for name in ("bids", "folder"):
        assert refused(name, root, unmasked="healthy").startswith(
            f"{table} says group=patient of sub-003, which would count as healthy because dataset.unmasked says so: say who is"
        )
    assert refused("bids", root, unmasked="healthy", healthy="group=control").startswith(
        "dataset.healthy=group=control says who is healthy, and dataset.unmasked=healthy that everyone"
    )
    with pytest.raises(UserError, match="which would count as healthy"):
        dataset("bids", root, unmasked="healthy", exclude=["sub-001"]).discover("T1")
    for kept in (
        {"unmasked": "healthy", "exclude": ["sub-003"]},
        {"unmasked": "leave-out", "healthy": "group=control"},
    ):
        assert {c.subject for c in dataset("bids", root, **kept).discover("T1")} == {"sub-000", "sub-001", "sub-002"}
    table.write_text(table.read_text().replace("patient", "no stroke"))
    assert len(dataset("bids", root, unmasked="healthy").discover("T1")) == 4
    assert refused("bids", root, healthy="group=contrl") == (
        f"Unknown value of group in {table} in dataset.healthy 'contrl'. Did you mean 'control'? Known: control, no stroke."
    )


def test_an_image_whose_lesion_was_filled_is_none(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 2)
    derived = root / "derivatives" / "fill" / "sub-001" / "ses-d0129" / "anat"
    derived.mkdir(parents=True)
    for path in list((root / "sub-001").rglob("*run-01_T1w.nii.gz")):
        for word in ("lesionfilled", "inpainted"):
            target = derived / path.name.replace("_run-01_T1w", f"_desc-{word}_T1w")
            target.write_bytes(path.read_bytes())
    for path in list((root / "sub-001").rglob("*_T1w.nii.gz")):
        path.unlink()
    for name in ("bids", "folder"):
        assert [scan.sequences for scan in dataset(name, root).index.scans if scan.subject == "sub-001"] == [()]


def test_one_of_several_acquisitions(tmp_path: Path) -> None:
    root = written(tmp_path, "bids", 2)
    coarse = layouts.GRID @ np.diag([2.0, 2, 2, 1])
    for path in list(root.rglob("*_T1w.nii.gz")):
        target = path.with_name(path.name.replace("run-01", "acq-highres").replace("run-02", "acq-1lowres"))
        path.rename(target)
        if "lowres" in target.name:
            nifti.write(target, layouts.head(1, "T1")[::2, ::2, ::2], coarse)

    def used(**more: Any) -> list[str]:
        found = dataset("bids", root, healthy="group=control", **more)
        return [case.files[0].name.split("_")[2] for case in found.discover("T1")]

    assert used() == ["acq-highres", "acq-highres"]
    assert used(acq="1LOWRES", exclude=["sub-001"]) == ["acq-1lowres"]
    assert refused("bids", root, healthy="group=control", acq="lowres").startswith(
        f"Unknown acquisition in dataset.acq of {root} 'lowres'. Did you mean '1lowres'? Known: "
    )
    said = dataset("bids", root, healthy="group=control").exclusions("T1")
    assert len([line for line in said if "acq-1lowres_T1w.nii.gz: not used, " in line]) == 2
    for path in list(root.rglob("*acq-highres_T1w.nii.gz")):  # equal voxels: the name
        nifti.write(path.with_name(path.name.replace("highres", "0")), layouts.head(3, "T1"), layouts.GRID)
    assert used(exclude=["sub-001"]) == ["acq-0"]


def test_a_misnamed_mask_is_named_where_no_case_is_left_and_its_release_is_not_advised(tmp_path: Path) -> None:
    """As copies of MSLUB whose masks are called patient07_seg."""
    root = written(tmp_path, "mslub", 2)
    for path in list(root.rglob("*_consensus_gt.nii.gz")):
        path.rename(path.with_name(path.name.replace("consensus_gt", "seg")))
    for path in list(root.rglob("raw/*")):
        path.unlink()
    assert refused("mslub", root).endswith(
        "patient01/patient01_seg.nii.gz has no name of mslub's; --dataset folder reads more names."
    )
    found = dataset("folder", root)
    assert [case.subject for case in found.discover("FLAIR")] == ["patient01", "patient02"]
    assert "known-layout" not in {finding.code for finding in check(found).issues}


def test_dwi_and_flair_that_were_swapped_are_refused_in_either_sequence(tmp_path: Path) -> None:
    root = written(tmp_path, "isles22", 3)
    (flair,) = root.rglob("sub-strokecase0002*_FLAIR.nii.gz")
    (dwi,) = root.rglob("sub-strokecase0002*_dwi.nii.gz")
    aside = flair.rename(tmp_path / "aside")
    dwi.rename(flair)
    aside.rename(dwi)
    (mask,) = root.rglob("sub-strokecase0002*_msk.nii.gz")
    says = (
        f"{mask} does not lie on the grid of {dwi.name}: 30x30x20 voxels against 24x24x16, on which it is drawn: is DWI another "
        "sequence's file?"
    )
    found = dataset("isles22", root)
    assert errors(check(found)) == [("sub-strokecase0002_ses-0001", says)]
    assert check(found).exit_code == 2
    for modality in ("FLAIR", "ADC"):
        with pytest.raises(UserError) as caught:
            found.load(found.discover(modality)[1], modality)
        assert str(caught.value) == says


# -- SOOP --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["desc-brain", "label-GM", "desc-nonlesion"])
def test_what_lies_beside_the_lesion_masks_of_soop_is_none(tmp_path: Path, word: str) -> None:
    root = written(tmp_path, "soop", 3)
    for path in list((root / "derivatives").rglob("sub-2*_mask.nii.gz")):
        path.rename(path.with_name(path.name.replace("desc-lesion", word)))
    for path in list((root / "derivatives").rglob("sub-3*_mask.nii.gz")):
        path.rename(path.with_name(path.name.replace("_desc-lesion", "")))
    found = dataset("soop", root)
    assert [case.subject for case in found.discover("DWI")] == ["sub-1", "sub-3"]
    for path in list((root / "derivatives").rglob("sub-[23]*_mask.nii.gz")):
        path.unlink()
    for other in ("bids", "folder"):
        assert "this looks like SOOP, whose names --dataset soop knows" in refused(other, root)


# -- nnU-Net -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("described", "says"),
    [
        (None, "{root} needs one dataset.json, and there is none: give the folder that holds imagesTr and dataset.json."),
        ("[]", "{root}/dataset.json cannot be read (no object): copy it again."),
        ('{"labels": {}}', "{root}/dataset.json names no channels (channel_names or modality): say them with --set dataset.channels=[FLAIR]."),
        ('{"channel_names": {"0": "CT"}}', "{root}/dataset.json names the channels CT, none of which is a known modality: say them"),
    ],
)  # fmt: skip
def test_a_dataset_json_that_says_nothing(tmp_path: Path, described: str | None, says: str) -> None:
    root = written(tmp_path, "nnunet")
    (root / "dataset.json").unlink()
    if described is not None:
        (root / "dataset.json").write_text(described)
    assert refused("nnunet", root).startswith(says.format(root=root))


def test_regions_of_several_labels(tmp_path: Path) -> None:
    root = written(tmp_path, "nnunet")
    described = json.loads((root / "dataset.json").read_text()) | {
        "labels": {"background": 0, "whole": [1, 2], "core": 2}
    }
    (root / "dataset.json").write_text(json.dumps(described))
    assert dataset("nnunet", root).expected.labels == {0: "background", 1: "whole", 2: "core"}


def test_stated_channels(tmp_path: Path) -> None:
    root = written(tmp_path, "nnunet")
    (root / "dataset.json").unlink()
    found = dataset("nnunet", root, channels=["T2", "PD"])
    assert found.available() == ("T2", "PD")


def described(root: Path, **more: Any) -> Path:
    """The folder of a task of the MSD or of nnU-Net whose dataset.json says ``more``."""
    path = next(root.rglob("dataset.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return path


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["lesion"], """gives as labels "['lesion']": write names"""),
        (3, "gives as labels '3': write names with their labels"),
        ({"a": ["x"]}, """gives 'a' the label "['x']": write a whole number from 0, or a list of them."""),
        ({"\u00b2": "x"}, "gives '\u00b2' the label 'x'"),
        ({"a": [1, 2, "x"]}, """gives 'a' the label "[1, 2, 'x']\""""),
        ({"a": -1}, "gives 'a' the label '-1'"),
        ({"a": 1.5}, "gives 'a' the label '1.5'"),
        ({"a": None}, "gives 'a' the label 'None'"),
        ({"a": True}, "gives 'a' the label 'True'"),
        ({"lesion": 0, "background": 1}, "gives the background the label '1': 0 is the background."),
    ],
)
def test_labels_of_another_type(tmp_path: Path, labels: Any, says: str) -> None:
    path = described(written(tmp_path, "nnunet"), labels=labels)
    with pytest.raises(UserError) as caught:
        dataset("nnunet", tmp_path).recipe()
    assert str(caught.value).startswith(f"{path} {says}")


@pytest.mark.parametrize("content", ["link", "pipe", "deep"])
def test_a_dataset_json_of_a_stranger(tmp_path: Path, content: str) -> None:
    root = written(tmp_path, "nnunet", 1)
    path = root / "dataset.json"
    honest = path.rename(tmp_path.with_name(f"{tmp_path.name}-kept.json"))
    if content == "link":
        path.symlink_to("/dev/zero")
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000)
    assert (
        "dataset.json is not readable JSON" in (said := refused("nnunet", root))
        or "it is a folder, a pipe or a device" in said
    )
    path.unlink()
    path.symlink_to(honest)  # as git-annex keeps it
    assert dataset("nnunet", root).available() == ("FLAIR", "T1")


def test_a_channel_is_the_number_in_its_name(tmp_path: Path) -> None:
    root = written(tmp_path, "nnunet", 2)
    for path in sorted((root / "imagesTr").glob("*_000[01].nii.gz"), reverse=True):
        path.rename(path.with_name(path.name.replace("_0001.", "_0002.").replace("_0000.", "_0001.")))
    path = described(root, channel_names={"1": "FLAIR", "2": "T1w"})
    found = dataset("nnunet", root)
    for modality in ("FLAIR", "T1"):
        case = found.discover(modality)[1]
        np.testing.assert_array_equal(found.read(case, modality).image, layouts.head(1, modality))
    described(root, channel_names={"first": "FLAIR"})
    assert refused("nnunet", root).startswith(f"{path} gives a channel the number 'first'")
    described(root, channel_names={"1": "FLAIR", "2": "flair"})
    assert refused("nnunet", root).startswith(f"{path} gives FLAIR to 2 channels")
    assert refused("nnunet", root, channels=["T1", "FLAIR", "FLAIR"]).startswith(
        "dataset.channels=[T1,FLAIR,FLAIR] gives FLAIR to 2 channels"
    )


def test_labels_written_as_text(tmp_path: Path) -> None:
    described(
        written(tmp_path, "nnunet"), labels={"background": "0", "lesion": "1", "ignore": "2", "region": ["1", 3.0]}
    )
    expected = dataset("nnunet", tmp_path).expected
    assert (set(expected.labels), expected.not_counted) == ({0, 1, 2, 3}, (2,))
    assert dataset("nnunet", tmp_path, lesion_labels=[1, 2]).expected.not_counted == ()


def test_the_cavity_of_brats_under_the_names_of_nnunet(tmp_path: Path) -> None:
    written(tmp_path, "nnunet", 1)
    for path in list(tmp_path.rglob("case_000*")):
        path.rename(path.with_name(path.name.replace("case_000", "BraTS-GLI-00042-100")))
    described(tmp_path, labels={"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4})
    (path,) = tmp_path.rglob("labelsTr/*.nii.gz")
    mask = layouts.halves(0, 2, 4)
    nifti.write(path, mask, layouts.GRID)
    found = dataset("nnunet", tmp_path, field_of_view=256)
    (case,) = found.discover("FLAIR")
    stack = found.load(case, "FLAIR")
    assert stack.quality["lesion_ml_source"] == pytest.approx((mask == 2).sum() * layouts.VOXEL**3 / 1000)
    (said,) = [f for f in check(found).issues if f.code == "known-layout"]
    assert "label 4 (resection cavity) of its masks is taken for neither lesion nor healthy" in said.message
    every = dataset("nnunet", tmp_path, lesion_labels=[1, 2, 3, 4])
    assert every.expected.not_counted == ()


# -- BMAD --------------------------------------------------------------------------------------------------------------------


def test_slices_of_bmad(cli: Cli, tmp_path: Path) -> None:
    root = written(tmp_path / "data", "bmad", 3)
    found = run_config.locate("folder", str(root), {"modality": "FLAIR", "size": 32}, "--data-root").open()
    cases = found.discover("FLAIR")
    assert [(c.split, c.subject) for c in cases[:4]] == [
        ("train", "00000"), ("train", "00001"), ("train", "00002"), ("val", "00100")
    ]  # fmt: skip
    stack = found.load(cases[-1], "FLAIR")
    assert list(stack.slices) == [10, 17]
    assert stack.lesion[0].any()
    assert not stack.lesion[1].any()
    message = refused("folder", root, size=None, min_brain=0.02)
    assert message == (
        f"The name of {root}/Brain/train/good/00000_17.png does not end with a modality (FLAIR, T1, T2, T1CE, PD, DWI, ADC), "
        "brainmask or segmentation: rename it as in sub-01-slice_68-FLAIR.png, or give their modality with --set "
        "dataset.modality=FLAIR."
    )


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            {"background": 0, "gm": 1, "wm": 2, "lesion": 3},
            "label 1 'gm' and 2 'wm', which sound like tissues: say which labels are lesion with --set dataset.lesion_labels=[3].",
        ),
        (
            {"background": 0, "Healthy brain": 1, "white matter hyperintensities": 4, "ignore": 5},
            "label 1 'Healthy brain', which sounds like a tissue: say which labels are lesion with --set dataset.lesion_labels=[4].",
        ),
        (
            {"background": 0, "Grey Matter": [1, 2], "Left-Thalamus": 3},
            "label 1 'Grey Matter' and 2 'Grey Matter' and 3 'Left-Thalamus', which sound like tissues: say which labels are lesion "
            "with --set dataset.lesion_labels=[...].",
        ),
        *(
            (
                labels,
                "label 1 'brain' and 2 'brain', which sound like tissues: say which labels are lesion with --set dataset.lesion_labels=[3].",
            )
            for labels in ({"tumor": [3], "brain": [1, 2, 3]}, {"brain": [1, 2, 3], "tumor": 3})
        ),
    ],
)
def test_labels_that_dataset_json_calls_tissue_are_no_lesion(tmp_path: Path, labels: Any, says: str) -> None:
    root = written(tmp_path, "nnunet")
    path = described(root, labels=labels)
    assert refused("nnunet", root) == f"{path} calls {says}"
    assert len(cases_of("nnunet", root, lesion_labels=[1])) == 2  # as the user says


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "brain metastasis": 1, "cortical infarct": 2},
        {"background": 0, "wmh": 1, "tissue with oedema": 2, "GM tumour": 3, "gadolinium": 4},
        {
            name: number
            for number, name in enumerate(
                (
                    "background",
                    "skull base meningioma",
                    "cortical tuber",
                    "brainstem cavernoma",
                    "cerebellar bleeding",
                    "thalamus bleed",
                    "Cerebellar AVM",
                    "cerebellar contusion",
                    "white matter changes",
                    "demyelinated white matter",
                    "damaged tissue",
                    "scar tissue",
                    "penumbra tissue",
                    "heterotopic gray matter",
                    "resection cavity with air",
                )
            )
        },
    ],
)
def test_labels_of_lesions_in_a_tissue_are_lesion(tmp_path: Path, labels: Any) -> None:
    root = written(tmp_path, "nnunet")
    described(root, labels=labels)
    assert len(cases_of("nnunet", root)) == 2


def test_msd_whose_labels_are_tissues(tmp_path: Path) -> None:
    root = written(tmp_path, "msd_brain")
    path = described(root, labels={"0": "background", "1": "csf", "2": "tumour"})
    said = "give these data as --dataset nnunet --set dataset.lesion_labels=[2]."
    assert refused("msd_brain", root) == f"{path} calls label 1 'csf', which sounds like a tissue: {said}"


def test_as_many_channels_as_are_named(tmp_path: Path) -> None:
    root = written(tmp_path, "msd_brain", 2)
    path = described(root, modality={"0": "FLAIR", "1": "T1w"})
    image = next(path.parent.glob("imagesTr/BRATS_*1.nii.gz"))
    few = f"{image} has 4 channels (30x30x20x4 voxels), and 2 are named (FLAIR, T1): which ones they are is not known. Name every"
    found = check(dataset("msd_brain", root)).issues
    assert [(i.severity, i.code) for i in found if i.message.startswith(few)] == [("error", "axes")]
    names = ["FLAIR", "T1w", "t1gd", "T2w", "CBV"]
    described(root, modality={str(number): name for number, name in enumerate(names)})
    more = "has 4 channels (30x30x20x4 voxels), and channel 5 is wanted: the file should hold FLAIR, T1, T1CE, T2, (unknown)"
    assert any(more in i.message for i in check(dataset("msd_brain", root)).issues)
    five = nifti.read_header(image)
    data = np.stack([nifti.read(image, channel=number).data for number in (0, 1, 2, 3, 0)], -1)
    for file in sorted(path.parent.glob("imagesT?/BRATS_*.nii.gz")):
        nifti.write(file, data.astype(np.int16), five.affine)
    assert not [i for i in check(dataset("msd_brain", root)).issues if i.severity == "error" and i.code == "axes"]
    path.unlink()
    with pytest.raises(
        UserError, match=r"has 5 channels .* and 4 are named \(FLAIR, T1, T1CE, T2\): which ones they are"
    ):
        (found := dataset("msd_brain", root)).read(found.discover("T1")[0], "T1")
