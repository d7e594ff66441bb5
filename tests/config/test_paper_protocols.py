"""Protocols of papers and across sets: run end to end, and their numbers against literal loops over the saved maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adbench.config.protocols import PROTOCOLS, get
from adbench.datasets.io import nifti
from adbench.datasets.phantom import small_layouts as layouts
from adbench.evaluation.run import Run
from adbench.leaderboard import submission
from adbench.leaderboard.checks.all import check
from adbench.metrics.thresholds import slice_thresholds
from adbench.results.record import Record, read_record

Cli = Callable[..., tuple[int, str, str]]
COUNTED = ("metrics", "spatial", "strata", "thresholds", "optional", "protocol", "threshold", "notes", "file")
TINY = ("size=32", "min_brain=0.01")
HEALTHY = ("registration=none", "n4=false")


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Callable[..., tuple[Path, Record, str]]:
    """``run(protocol, dataset, *options)`` with histeq: folder, record, what was printed."""

    def call(protocol: str, dataset: str, *options: object) -> tuple[Path, Record, str]:
        code, out, err = cli(
            "run", "--quiet", "--method", "histeq", "--device", "cpu", "--dataset", dataset, "--protocol", protocol, "--out",
            tmp_path / "runs", "--cache", tmp_path / "cache", *options,
        )  # fmt: skip
        assert code == 0, err
        (path,) = (tmp_path / "runs").rglob("record.json")
        return path.parent, read_record(path), " ".join((out + err).split())

    return call


# -- the numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 9, 10, 19, 40, 57])
@pytest.mark.parametrize("levels", [5, 1000])
def test_the_lowest_threshold_with_few_enough_slices(count: int, levels: int) -> None:
    highest = (np.random.default_rng(count).integers(0, levels, count) / 7).astype(np.float32)
    for rule, share in (("slice05", 0.05), ("slice10", 0.10)):
        candidates = sorted({*highest.tolist(), *np.nextafter(highest.astype(float), np.inf).tolist()})
        expected = next(t for t in candidates if (highest.astype(float) >= t).mean() <= share + 1e-9)
        found = slice_thresholds(highest.tolist())[rule]
        assert (highest.astype(float) >= found).mean() <= share + 1e-9
        assert found == expected
    assert slice_thresholds([]) == {}


def test_reflect_strict_equals_literal_loops(run: Callable[..., Any], tmp_path: Path) -> None:
    thin = np.diag([-8.0, -8.0, 5.0, 1.0])
    thin[:3, 3] = (116, 116, -73)
    for number in range(5):
        for kind, make in (("flair", partial(layouts.head, number, "FLAIR")), ("seg", partial(layouts.lesion, number))):
            nifti.write(tmp_path / "data" / f"p{number}_{kind}.nii.gz", make(thin, (30, 30, 30)), thin)
    options = (*TINY, "val_share=0.4", "test_share=0.4")
    folder, record, shown = run(
        "reflect-strict", "folder", "--data-root", tmp_path / "data", "--save-maps", *(f"--set=dataset.{one}" for one in options)
    )  # fmt: skip
    data = Run(folder, cache=tmp_path / "cache", device="cpu").data
    assert data.train.slice_numbers.tolist() != data.train_store.healthy("train").slice_numbers.tolist()
    for part, store in ((data.test, data.test_store), (data.threshold, data.test_store)):
        for index, case in enumerate(part.cases):
            every = store.case(case).slices
            assert part.slice_numbers[part.case_index == index].tolist() == list(every[(len(every) - 20) // 2 :][:20])
    maps, val = (np.load(folder / name).astype(float) for name in ("maps.npy", "val_maps.npy"))

    highest = []
    for scores, lesion, brain in zip(val, data.threshold.lesions(), data.threshold.brains(), strict=True):
        if not (lesion & brain).any():
            highest.append(scores[brain].max())
    thresholds = {"val": record.thresholds["val"], **slice_thresholds(highest)}
    assert {rule: record.thresholds[rule] for rule in thresholds} == thresholds

    for rule, threshold in thresholds.items():
        tp = fp = fn = 0
        dice: list[float] = []
        alarms: list[bool] = []
        for scores, lesion, brain in zip(maps, data.test.lesions(), data.test.brains(), strict=True):
            positive, truth = (scores >= threshold) & brain, lesion & brain
            tp, fp, fn = tp + (positive & truth).sum(), fp + (positive & ~truth).sum(), fn + (truth & ~positive).sum()
            if truth.any():
                dice.append(2 * (positive & truth).sum() / (positive.sum() + truth.sum()))
            else:
                alarms.append(bool(positive.any()))
        numbers = {name: number.value for name, number in record.metrics.items()}
        assert numbers[f"dice_pooled@{rule}"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-9)
        assert numbers[f"dice_slice@{rule}"] == pytest.approx(np.mean(dice), rel=1e-9)
        assert numbers["fa_slice" if rule == "val" else f"fa_slice@{rule}"] == pytest.approx(np.mean(alarms))
        assert 0 < len(alarms) < len(maps)
    assert "Pooled Dice @5 % of slices" in shown
    wrong = [issue for issue in check(submission.pack(folder)) if issue.field.partition(".")[0] in COUNTED]
    assert wrong == []


# -- end to end ------------------------------------------------------------------------------------------------------------


def test_thresholds_of_healthy_subjects_need_no_lesion(run: Callable[..., Any], slices: Path, cli: Cli) -> None:
    folder, record, shown = run("uad-imag", "folder", "--data-root", slices)
    lists = json.loads((folder / "splits.json").read_text())
    assert lists["threshold"] == ["val00", "val02"]  # without lesion; the others of val have one
    assert set(record.thresholds) == {"fpr1", "fpr5", "best", "pooled_best"}
    assert "Dice@fpr1" in shown
    assert record.metrics["dice@fpr5"].value is not None
    assert record.metrics["dice@val"].value is None
    assert record.threshold.lesion_subjects == 0
    for mask in (slices / "val").glob("*-segmentation.png"):
        mask.write_bytes((slices / "val" / "val01-slice_10-segmentation.png").read_bytes())
    code, _, err = cli(
        "run", "--quiet", "--method", "histeq", "--device", "cpu", "--dataset", "folder", "--data-root", slices,
        "--protocol", "uad-imag", "--out", slices.parent / "again",
    )  # fmt: skip
    assert code == 2
    assert "healthy validation subjects of the training source, and none of folder FLAIR is without lesion" in err


@pytest.mark.parametrize(
    ("protocol", "preset", "numbers"),
    [("reflect-one-slice", "reflect", {"dice", "f1max", "auroc", "ap"}), ("upd", "upd", {"ap", "dice"})],
)
def test_a_rule_of_a_paper_is_applied_beside(
    run: Callable[..., Any], cli: Cli, slices: Path, protocol: str, preset: str, numbers: set[str]
) -> None:
    folder, record, shown = run(protocol, "folder", "--data-root", slices)
    assert f"As published ({preset}): adbench eval" in shown
    assert {"maps.npy", "val_maps.npy"} <= record.files.keys()
    code, out, err = cli("eval", folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["evaluation"]["metrics"]["auprc"]["value"] == record.metrics["auprc"].value
    (published,) = found["presets"]
    assert (published["name"], published["values"].keys()) == (preset, numbers)
    if preset == "reflect":  # one slice a subject, all with a lesion: the mean Dice of the best of 101 thresholds
        maps, truth = np.load(folder / "maps.npy"), Run(folder, device="cpu").data.test.lesions()
        means = [
            np.mean([2 * (m & t).sum() / (m.sum() + t.sum() + 1e-6) for m, t in zip((maps > c) | (maps >= 1), truth, strict=True)])
            for c in np.linspace(0, 1, 101)
        ]  # fmt: skip
        assert published["values"]["dice"] == pytest.approx(max(means))


@pytest.mark.parametrize(
    ("protocol", "train", "test", "options"),
    [
        ("pddpm", "ixi-pddpm", "mslub", ("T2", *HEALTHY)),
        ("bids->wmh", "bids", "wmh", ("T1", "healthy=group=control", "name=cohort_a")),
    ],
)
def test_across_sets(
    run: Callable[..., Any], tmp_path: Path, protocol: str, train: str, test: str, options: tuple[str, ...]
) -> None:
    layouts.write_small(train, tmp_path / "train", 6, **({"first": 20} if train == "ixi-pddpm" else {}))
    layouts.write_small(test, tmp_path / "test", 5)
    modality, *own = options
    more = ("brain=background",) if test == "wmh" else ()
    _, record, _ = run(
        protocol, test, "--data-root", tmp_path / "test", "--train-root", tmp_path / "train", "--modality", modality,
        *(f"--set=dataset.{one}" for one in (*TINY, *more)), *(f"--set=train.{one}" for one in (*TINY, *own)),
    )  # fmt: skip
    assert (record.protocol["name"], record.test.name) == (protocol, test)
    assert record.train.name == ("cohort_a" if train == "bids" else "ixi")
    assert record.train.mm == record.test.mm == (8, 8)
    assert record.protocol.get("preset", "") == ("cddpm" if protocol == "pddpm" else "")


def test_every_protocol_of_a_paper_names_what_exists() -> None:
    from adbench.config import registry
    from adbench.metrics.presets import PRESETS
    from adbench.metrics.spec import SPECS

    for protocol in PROTOCOLS.values():
        assert protocol.preset in ("", *PRESETS)
        assert set(protocol.columns) <= {name for name, one in SPECS.items() if one.group == "headline"}
        assert set(protocol.metrics) <= set(registry.entries("metrics"))
        assert {*protocol.datasets, protocol.train_on} - {""} <= set(registry.entries("datasets"))
        for dataset in (*protocol.datasets, *([protocol.train_on] if protocol.train_on else [])):
            assert set(protocol.modalities) <= set(registry.load("datasets", dataset).info.modalities)
    assert get("ixi->msd").datasets == ("msd_brain",)
