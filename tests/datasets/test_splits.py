"""Splits by subject, and persons that are known under several names."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.datasets.io.filename_patterns import recognise
from adbench.datasets.io.patient_names import person, second_scan, shared_patients, split_visit
from adbench.datasets.splits import assign


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("abc0123456789", min_size=1, max_size=6), st.sampled_from(["A", "B", "C", ""]), min_size=1),
    st.sampled_from([(0.1, 0.1), (0.1, 0.2), (0.2, 0.8), (0.0, 0.3), (0.3, 0.0), (0.0, 1.0)]),
    st.integers(0, 5),
)
def test_shares_hold_over_all_and_within_sites(sites: dict[str, str], shares: tuple[float, float], seed: int) -> None:
    val, test = shares
    roles = assign(sites, val, test, seed, "x")
    assert roles == assign(dict(reversed(list(sites.items()))), val, test, seed, "x")
    assert set(roles) == set(sites)
    wanted = {"train": 1 - val - test, "val": val, "test": test}
    counts = Counter(roles.values())
    for role, share in wanted.items():
        assert abs(counts[role] - share * len(sites)) <= 2
        assert share > 1e-9 or not counts[role]
        if len(sites) >= 3 and share > 1e-9:
            assert counts[role]
        for site in set(sites.values()):
            members = [subject for subject in sites if sites[subject] == site]
            assert abs(sum(roles[s] == role for s in members) - share * len(members)) <= 3


def test_a_seed_and_a_name_give_another_draw() -> None:
    sites = {f"s{n}": "" for n in range(100)}
    draws = [assign(sites, 0.2, 0.2, seed, name) for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    for one in range(3):
        for other in range(one):
            agree = sum(draws[one][s] == draws[other][s] for s in sites)
            assert 20 < agree < 70  # by chance: 0.6² + 0.2² + 0.2² = 44 %


def test_a_handful_of_cases_trains_and_tests_first() -> None:
    assert assign({"a": ""}, 0.1, 0.2, 0, "x") == {"a": "train"}
    assert sorted(assign({"a": "", "b": ""}, 0.1, 0.2, 0, "x").values()) == ["test", "train"]
    assert sorted(assign({"a": "", "b": "", "c": ""}, 0.1, 0.2, 0, "x").values()) == ["test", "train", "val"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("BraTS2021_00012", "BraTS-GLI-00012-001"),
        ("BraTS2021_00012", "sub-BraTS2021_00012"),
        ("IXI012", "IXI012-HH-1211"),
        ("IXI012", "sub-IXI012"),
        ("sub-r009s001", "R009S001"),
        ("sub-r009s001_ses-1", "sub-r009s001_ses-2_space-MNI152NLin2009aSym"),
        ("BraTS2021_00012", "brats2021_12"),
        ("BraTS-GLI-00012-000", "BraTS-GLI-00012-101"),
        ("BraTS-MET-00012-000", "BraTS-MET-00012-001"),
        ("BraTS-PED-00012-000", "BraTS-PED-00012"),
        ("BraTS-MEN-RT-0012-1", "BraTS-MEN-RT-0012-2"),
        ("BraTS-SSA-00012-000", "BraTS-SSA-12-001"),
        ("Brats17_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
        ("UCSF-PDGM-0004", "UCSF-PDGM-0004_FU003d"),
        ("sub-OAS30001_ses-d0129", "OAS30001_MR_d2430"),
        ("sub-strokecase0001", "sub-strokecase0001_ses-0001"),
        ("sub-07", "SUB-007_ses-2"),
        ("patient07_tp1", "patient7_tp2"),
        ("p07_week12", "P07-FU"),
        ("p07_T1", "p07_T2"),
        ("p07_20200131", "p07"),
        ("p07_2020-01-31", "p07_2021.12.01"),
        ("p07_follow_up_1", "P7_follow-up"),
        ("OAS1_0001_MR1", "OAS1_0001_MR2"),
        ("OAS2_0001_MR1", "OAS2_0001"),
        ("BraTS-PEDs-00012-000", "BraTS-PED-00012-001"),
        ("BraTS_GLI_00012_000", "BraTS2021_00012"),
        ("BraTS_MET_00012_000", "BraTS-MET-00012-001"),
        ("BraTS_MEN_RT_0012_1", "BraTS-MEN-RT-0012-2"),
        ("sub-01_ses-01_run-1", "sub-01_ses-02_run-2"),
        ("sub-01_acq-high_run-1", "sub-1"),
    ],
)
def test_one_person_has_one_name(one: str, other: str) -> None:
    assert person(one) == person(other)


def test_different_people_have_different_names() -> None:
    names = [
        "BraTS2021_00012",
        "BraTS2021_00013",
        "BraTS-GLI-00120-000",
        "IXI012",
        "IXI0123",
        "sub-01",
        "12",
        "r009s0011",
        "r009s110",
        "BraTS-MET-00012-000",
        "BraTS-PED-00012-000",
        "BraTS-MEN-RT-0012-1",
        "BraTS20_Training_012",
        "Brats17_CBICA_AAB_1",
        "Brats17_CBICA_AAC_1",
        "BRATS_012",
        "patient_1",
        "patient_2",
        "patient_10",
        "phantom-train-001",
        "phantom-test-001",
        "OAS1_0001_MR1",
        "OAS1_0002_MR1",
        "OAS2_0001_MR1",
        "BraTS-MEN-00012-000",
        "BraTS_MET_00013_000",
        "BraTS_SSA_00012",
        "scan01_1",  # may be two scans of one patient, or two patients
        "scan01_2",
    ]
    assert len({person(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS-MET-00012-001", ("BraTS-MET-00012", "001")),
        ("IXI012-HH-1211", ("IXI012", "HH-1211")),
        ("sub-01_ses-2", ("sub-01", "ses-2")),
        ("patient07_tp1", ("patient07", "tp1")),
        ("patient07", ("patient07", "")),
        ("week12", ("week12", "")),
        ("c03_V2", ("c03", "V2")),
        ("c03_BL", ("c03", "BL")),
        ("Case-031_week-000-2", ("Case-031", "week-000-2")),
        ("c03_FU1_2019-01-31", ("c03", "FU1_2019-01-31")),
        ("Ada_week3", ("Ada", "week3")),
        ("sub-c3_run-2", ("sub-c3", "run-2")),
        ("002_S_0295_m06", ("002_S_0295", "m06")),
        ("c03_20190131", ("c03", "20190131")),
        ("sub-c3_ses-01_run-1", ("sub-c3", "ses-01_run-1")),
        ("sub-c3_ses-01_space-MNI", ("sub-c3", "ses-01")),
        ("OAS1_0003_MR2", ("OAS1_0003", "MR2")),
        ("BraTS_GLI_00012_000", ("BraTS_GLI_00012", "000")),
        # names of patients, not of visits
        ("sub-T01", ("sub-T01", "")),
        ("sub-TP01", ("sub-TP01", "")),
        ("sub-20190101", ("sub-20190101", "")),
        ("MRN_20010101", ("MRN_20010101", "")),
        ("c03_20199931", ("c03_20199931", "")),
        ("site2_v05", ("site2_v05", "")),
        ("control_t1", ("control_t1", "")),
    ],
)
def test_a_visit_is_told_from_its_subject(name: str, expected: tuple[str, str]) -> None:
    assert split_visit(name) == expected


def test_the_numbers_of_second_scans() -> None:
    names = ("BraTS2021_01537", "BraTS2021_01538", "sub-BraTS2021_01656", "BraTS2021_01657", "BraTS-GLI-01540")
    assert [second_scan(name) for name in names] == [False, True, True, False, False]


def test_releases_that_share_patients_under_other_names() -> None:
    assert shared_patients({"BraTS20_Training_001"}, {"BraTS2021_00001"})
    assert shared_patients({"Brats18_CBICA_AAB_1", "IXI001"}, {"BraTS-GLI-00001-000"})
    assert shared_patients({"BRATS_001"}, {"sub-BraTS2021_00001"})
    assert shared_patients({"UCSF-PDGM-0004"}, {"BraTS-GLI-00001-000"})
    assert shared_patients({"BraTS20_Training_001"}, {"BraTS_GLI_00001_000"})
    assert shared_patients({"BraTS20_Training_001"}, {"BraTS19_CBICA_AAB_1"})
    assert shared_patients({"UCSF-PDGM-0004"}, {"UPENN-GBM-00001_11"}) is None
    assert shared_patients({"BraTS-MET-00001-000"}, {"BraTS-GLI-00001-000"}) is None
    assert shared_patients({"BraTS2021_00002"}, {"BraTS2021_00001", "IXI002"}) is None
    assert shared_patients({"IXI001"}, {"BraTS2021_00001"}) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/IXI002-Guys-0828-T1.nii.gz", ("ixi", "IXI002", "Guys-0828", "Guy's", "T1")),
        ("IXI116-HH-0001-PD.nii", ("ixi", "IXI116", "HH-0001", "HH", "PD")),
        ("IXI116-HH-0001-DTI-07.nii.gz", ("ixi", "IXI116", "HH-0001", "HH", "")),
        (
            "sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
            ("atlas", "sub-r001s001", "ses-1", "r001", "T1"),
        ),
        (
            "x/sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz",
            ("atlas", "sub-r001s001", "ses-1", "r001", "lesion"),
        ),
        ("Masks/sub-r009s012.nii.gz", ("atlas", "sub-r009s012", "", "r009", "lesion")),
        ("Images/sub-r009s012.nii.gz", ("atlas", "sub-r009s012", "", "r009", "T1")),
        ("BraTS2021_00000_t1ce.nii.gz", ("brats21", "BraTS2021_00000", "", "", "T1CE")),
        ("BraTS20_Training_001_seg.nii", ("brats20", "BraTS20_Training_001", "", "", "lesion")),
        ("BraTS19_CBICA_AAB_1_flair.nii.gz", ("brats19", "BraTS19_CBICA_AAB_1", "", "", "FLAIR")),
        ("BraTS-GLI-00005-100-t2f.nii.gz", ("brats23", "BraTS-GLI-00005", "100", "", "FLAIR")),
        ("BraTS-MEN-00005-000-t1c.nii.gz", ("brats23-other", "BraTS-MEN-00005", "000", "", "T1CE")),
    ],
)
def test_names_of_the_real_files(path: str, expected: tuple[str, ...]) -> None:
    found = recognise(path)
    assert found is not None
    assert (found.family, found.subject, found.session, found.site, found.kind) == expected


@pytest.mark.parametrize(
    "path",
    [
        "sub-01_T1w.nii.gz",
        "BraTS2021_00000_t1.nii.gz.part",
        "BraTS2021_0000_t1.nii.gz",
        "IXI2-Guys-0828-T1.nii.gz",
        "t1.nii",
    ],
)
def test_other_names_are_not_recognised(path: str) -> None:
    assert recognise(path) is None
