"""The file of one result: what is packed comes back, and a malformed file is refused before it costs anything."""

from __future__ import annotations

import base64
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_files import altered

from adbench import api
from adbench.errors import UserError
from adbench.leaderboard import encoding
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks import consistency
from adbench.leaderboard.encoding import EncodedHistograms
from adbench.leaderboard.submission import Submission, pack
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import froc_thresholds
from adbench.metrics.thresholds import ThresholdCounts, choose_thresholds, healthy_scores


def histograms(seed: int, subjects: int = 5, voxels: int = 500, dtype: str = "float32") -> SubjectHistograms:
    """Random scores of both signs; every other subject bears a lesion, one has a single voxel."""
    rng = np.random.default_rng(seed)
    made = SubjectHistograms()
    for number in range(subjects):
        scores = rng.normal(0, 10.0 ** rng.integers(-3, 3), voxels if number else 1).astype(dtype)
        made.update(f"s{number} é", scores, rng.random(scores.size) < 0.2 * (number % 2))
    return made


def test_the_score_of_a_healthy_subject_lies_in_the_pool_or_just_above_its_map() -> None:
    """Of a map that is empty, or saturated in more than a hundredth of it, no score is reached by few enough voxels."""
    rng, val = np.random.default_rng(0), SubjectHistograms()
    for name, scores in {"plain": rng.random(900), "empty": np.zeros(900), "full": np.full(900, 0.5)}.items():
        val.update(name, scores.astype(np.float32), np.zeros(900, bool))
    pool, scores = val.pooled(), healthy_scores(val)
    assert scores[0] == np.nextafter(0, 1)
    assert 0.5 < scores[1] < 0.5 + 1e-6
    assert scores[2] > 0.9
    assert list(consistency._healthy_scores(scores, pool)) == []
    invented = [scores[0], scores[1] * 0.9731, scores[2]]
    assert [issue.field for issue in consistency._healthy_scores(invented, pool)] == ["healthy_scores"]


def test_histograms_of_single_scores_come_back() -> None:
    for dtype in ("float16", "float32", "float64"):
        own = histograms(1, dtype=dtype)
        again = encoding.decode_histograms(EncodedHistograms(**encoding.encode_histograms(own)))
        assert again == own
        assert all(one.exact for _, one in again.items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_joined_histograms_come_back(dtype: str) -> None:
    own = histograms(4, voxels=60_000, dtype=dtype)
    own.compact([0.25])
    assert len(own.partition.cells)
    assert len(own.partition.inner_edges)
    again = encoding.decode_histograms(EncodedHistograms(**encoding.encode_histograms(own)))
    assert again == own
    assert np.array_equal(again.partition.cells, own.partition.cells)
    assert np.array_equal(again.partition.edges, own.partition.edges)
    for subject, one in own.items():
        assert again[subject].positives_at(0.25) == one.positives_at(0.25)
        assert again[subject].positives_at(0.251) == one.positives_at(0.251)


def test_no_subjects_and_empty_subjects_come_back() -> None:
    own = SubjectHistograms()
    assert encoding.decode_histograms(EncodedHistograms(**encoding.encode_histograms(own))) == own
    for name in ("a", "c"):
        own.update(name, np.zeros(0, np.float32), np.zeros(0, bool))
    own.update("b", np.float32([-2, 3]), np.array([True, False]))
    assert encoding.decode_histograms(EncodedHistograms(**encoding.encode_histograms(own))) == own


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_of_validation_gives_the_thresholds_of_all_subjects(seed: int) -> None:
    own = histograms(seed, subjects=24)
    ill = [subject for subject, histogram in own.items() if histogram.n_positive]
    kept = ThresholdCounts.of(own)
    assert 9 <= len(own) - len(ill) < len(own) - 1, "some thresholds are conformal, and some subjects are summed"
    assert (set(kept), len(kept.healthy_scores)) == ({"ill", "healthy"}, len(own) - len(ill))
    assert choose_thresholds(kept) == choose_thresholds(own)
    assert "conformal10" in choose_thresholds(kept)[0]
    assert froc_thresholds(kept) == froc_thresholds(own)


def test_a_run_comes_back_as_it_was(runs: list[api.Run], submission: Submission) -> None:
    run = runs[0]
    assert submission.record == run.record
    assert run.record.method.conformance == "passed"
    assert submission.test == run.histograms
    assert submission.spatial_bytes == (run.folder / "spatial.json").read_bytes()
    assert submission.content.splits.test == run.subjects
    again = files.parse(submission.text.encode(), Path("again"))
    assert again.raw == submission.raw
    assert again.text == submission.text
    assert pack(run.folder).text == submission.text


def test_a_file_names_a_plain_file(submission: Submission) -> None:
    assert files.file_name(submission.record).startswith("folder-flair-histeq-tiny-seed0-")
    method = submission.record.method.model_copy(update={"name": "../../../etc/<b>" + "x" * 300})
    test = submission.record.test.model_copy(update={"name": "../up"})
    name = files.file_name(submission.record.model_copy(update={"method": method, "test": test}))
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name) < 200


def test_a_text_is_one_line_a_field(submission: Submission) -> None:
    lines = submission.text.splitlines()
    assert sum(line.startswith('  "run_key"') for line in lines) == 1
    assert len(lines) == len(submission.raw) + len(submission.raw["record"]) + 3


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(files.RECORD_BYTES + 1)
    monkeypatch.setattr(json, "loads", lambda *a, **k: pytest.fail("it was parsed"))
    with pytest.raises(UserError, match="bytes"):
        files.read_submission(path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="There is no file"):
        files.read_submission(tmp_path / "pipe.json")


def bomb(size: int) -> str:
    return base64.b64encode(lzma.compress(bytes(size), lzma.FORMAT_XZ, preset=1)).decode()


def test_a_bomb_is_not_unpacked(submission: Submission) -> None:
    text = bomb(files.SPATIAL_BYTES + 1)
    assert len(text) < 100_000
    for change in (
        lambda raw: raw["histograms"].update(data=text),
        lambda raw: raw.update(spatial=text),
    ):
        found = files.parse(altered(submission, change).encode(), Path("bomb"))
        with pytest.raises(ValueError, match="unpacks to more than"):
            _ = (found.test, found.spatial)


def test_more_bins_than_a_histogram_has(submission: Submission) -> None:
    raw = altered(
        submission, lambda raw: raw["histograms"].update(bins=[encoding.BINS] * len(raw["histograms"]["bins"]))
    )
    with pytest.raises(ValueError, match="bins; a submission has at most"):
        _ = files.parse(raw.encode(), Path("bins")).test


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[: len(t) // 2], "not a readable submission"),
        (lambda t: "", "not a readable submission"),
        (lambda t: "[" * 100_000, "not a readable submission: it is nested more than 50 deep"),
        (lambda t: "[]", "layout 'list'"),
        (lambda t: t.replace('"submission": 3', '"submission": 7'), "submission: layout 7"),
        (
            lambda t: t.replace('"submission": 3', '"submission": 2'),
            "layout 2; .* layout 3: make it again from its run",
        ),
        (lambda t: t.replace('"schema_version": 1', '"schema_version": 99'), "record.schema_version: 99"),
        (lambda t: t.replace('"seed": 0', '"seed": 0, "seed": 1', 1), "occurs twice"),
        (lambda t: t.replace('"seed": 0', '"seed": NaN', 1), "NaN is not JSON"),
        (lambda t: t.replace('"seed": 0', '"seed": 1e999', 1), "not finite"),
        (lambda t: t.replace('"seed": 0', '"seed": 1' + "0" * 30, 1), "too large"),
    ],
)
def test_what_is_no_submission(submission: Submission, change: Callable[[str], str], says: str) -> None:
    text = json.dumps(submission.raw)
    with pytest.raises(UserError, match=says):
        files.parse(change(text).encode(), Path("x.json"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw["record"].update(extra=1), "record.extra"),
        (lambda raw: raw["record"].update(seed="0"), "record.seed"),
        (lambda raw: raw["record"].pop("test"), "record.test"),
        (lambda raw: raw["record"]["metrics"]["auprc"].update(value="0.9"), "record.metrics.auprc.value"),
        (lambda raw: raw["splits"].update(test="s1"), "splits.test"),
        (lambda raw: raw["histograms"].update(subjects=["x"] * (encoding.SUBJECTS + 1)), "histograms.subjects"),
        (lambda raw: raw.update(note="<script>"), "note"),
    ],
)
def test_a_wrong_type_is_named(submission: Submission, change: Callable[[dict[str, Any]], object], field: str) -> None:
    with pytest.raises(UserError, match=f"x.json: {field}: "):
        files.parse(altered(submission, change).encode(), Path("x.json"))


@pytest.mark.parametrize("data", ["", "!", "§", bomb(10)[:-8], bomb(10) + bomb(10)])
def test_packed_data_that_is_damaged(submission: Submission, data: str) -> None:
    found = files.parse(altered(submission, lambda raw: raw.update(spatial=data)).encode(), Path("x"))
    with pytest.raises(ValueError, match=r".+"):
        _ = found.spatial


def test_keys_that_no_score_has(submission: Submission) -> None:
    counts = dict(submission.raw["histograms"])
    planes = np.zeros((3, 4, sum(counts["bins"])), np.uint8)
    planes[0] = 0xFF  # steps of -2^31 at each bin
    planes[2, 0] = 1
    counts["data"] = base64.b64encode(lzma.compress(planes.tobytes(), lzma.FORMAT_XZ)).decode()
    with pytest.raises(ValueError, match=r"key|order"):
        encoding.decode_histograms(EncodedHistograms(**counts))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(step="1"),
        lambda s: s["rows"][0].update(lesion_sizes=["3"]),
        lambda s: s["rows"][0].update(lesion_sizes=[-3]),
        lambda s: s["rows"][0]["slice_max"].append(0.5),
        lambda s: s["rows"][0]["false_components"].append(0),
        lambda s: s["rows"][0].update(alarms=None),
        lambda s: s["rows"][0].pop("recon_l1"),
        lambda s: s.update(extra=0),
    ],
)
def test_spatial_counts_of_wrong_shape(submission: Submission, change: Callable[[dict[str, Any]], object]) -> None:
    spatial = json.loads(submission.spatial_bytes)
    change(spatial)
    with pytest.raises(ValueError, match=r".+"):
        files._spatial(json.dumps(spatial).encode())
