"""Keys in the order of scores, exact counts, merges that do not depend on order, files that are not trusted."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adbench.errors import UserError
from adbench.metrics import histogram as module
from adbench.metrics import score_bins as keys
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.partition import Partition

EXTREMES = np.array(
    [-3.4028235e38, -65504, -1, -1e-30, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 1e-30, 0.5, 1, 65504, 3.4028235e38], np.float32
)
WIDE = np.array([-1.7e308, -1e300, -1, -1e-310, -0.0, 0.0, 5e-324, 1e-310, 1e-200, 1, 1 + 2.0**-52, 1e300, 1.7e308])
finite16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite64 = st.floats(allow_nan=False, allow_infinity=False)


def of(scores, labels):
    histogram = ScoreHistogram()
    histogram.update(scores, labels)
    return histogram


def counts_of(scores, labels):
    """[(score, lesion, background)] by brute force, ascending, -0 as 0."""
    values = np.asarray(scores).astype(np.float64).ravel() + 0.0
    labels = np.asarray(labels, bool).ravel()
    return [
        (value, int(np.sum((values == value) & labels)), int(np.sum((values == value) & ~labels)))
        for value in sorted(set(values.tolist()))
    ]


def listed(histogram):
    own, positive, negative = histogram.counts()
    return list(zip(keys.edges(own).tolist(), positive.tolist(), negative.tolist(), strict=True))


@pytest.mark.parametrize("scores", [EXTREMES, WIDE])
def test_keys_are_in_the_order_of_scores_and_zeros_are_one(scores):
    found = keys.widened(keys.ordered(scores))
    assert found.dtype == np.int64
    zero = int(np.flatnonzero(scores == 0)[0])
    assert found[zero] == found[zero + 1] == 0
    assert (np.diff(np.delete(found, zero)) > 0).all()
    np.testing.assert_array_equal(keys.edges(found), scores.astype(np.float64))
    assert [keys.key_of(score) for score in scores] == found.tolist()


@given(st.lists(finite64, min_size=2, max_size=40))
def test_any_float64_has_the_order_of_its_key(values):
    scores = np.array(values)
    found = keys.ordered(scores)
    np.testing.assert_array_equal(found[:, None] < found[None], scores[:, None] < scores[None])
    np.testing.assert_array_equal(keys.edges(found), scores)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=finite32))
def test_float32_has_the_keys_of_float64(scores):
    np.testing.assert_array_equal(keys.widened(keys.ordered(scores)), keys.ordered(scores.astype(np.float64)))


CASES = [
    EXTREMES,
    WIDE,
    np.float16([1, 0.1, -6e-8, 0.1]),
    np.int64([-(2**53), 2**53, 2**53 - 1, 0, 2**53]),
    np.uint8([0, 255, 3, 3]),
    np.int16([-32768, 32767, 5]),
    np.array([True, False, True]),
    np.exp(np.linspace(-3, 3, 9) - 140),
]


@pytest.mark.parametrize("scores", CASES, ids=lambda scores: str(scores.dtype))
def test_counts_equal_brute_force(scores):
    labels = np.arange(len(scores)) % 2 == 0
    histogram = of(scores, labels)
    assert listed(histogram) == counts_of(scores, labels)
    assert histogram.exact


def test_maps_of_different_types_have_one_order():
    histogram, every, labels = ScoreHistogram(), [], []
    for scores in CASES:
        label = np.arange(len(scores)) % 3 == 0
        histogram.update(scores, label)
        every.append(scores.astype(np.float64))
        labels.append(label)
    assert listed(histogram) == counts_of(np.concatenate(every), np.concatenate(labels))


@pytest.mark.parametrize("scores", [np.int64([0, 2**53 + 1]), np.int64([-(2**53) - 1]), np.uint64([2**64 - 1])])
def test_integers_that_float64_confuses_are_refused(scores):
    with pytest.raises(UserError, match=r"case 'p07' are of type u?int64 and hold 1 values that float64 cannot tell"):
        SubjectHistograms().update("p07", scores, np.zeros(len(scores), bool))


@given(st.one_of(hnp.arrays(np.float32, st.integers(1, 40), elements=finite32),
                 hnp.arrays(np.float64, st.integers(1, 40), elements=finite64)), st.integers(0, 2**32 - 1))  # fmt: skip
@settings(max_examples=60)
def test_histogram_thresholds_reproduce_on_raw_scores(scores, seed):
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    histogram = of(scores, labels)
    for threshold in keys.edges(histogram.counts()[0]).tolist():
        predicted = keys.predict(scores, threshold)
        counted = histogram.positives_at(threshold)
        assert counted == (int(predicted[labels].sum()), int(predicted[~labels].sum()))


def test_a_threshold_between_scores():
    histogram = of(np.float32([1.0, 2.0, -1.0]), [1, 0, 0])
    assert histogram.positives_at(1.00001) == (0, 1)
    assert histogram.positives_at(-1.00001) == (1, 2)
    with pytest.raises(UserError, match="NaN"):
        histogram.positives_at(float("nan"))


# -------------------------------------------------------------------------------------------------------- joined scores


def crowd(seed, size=3000, offset=1000.0):
    """Scores that nearly all share few cells, with lesions."""
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.05
    return rng.standard_normal(size) + labels + offset, labels


def test_bins_joined_by_compact_count_their_scores_and_keep_their_pins(monkeypatch):
    monkeypatch.setattr(module, "MOST_BINS", 100)
    data = {f"s{i}": crowd(i) for i in range(4)}
    histograms = SubjectHistograms()
    for subject, (scores, labels) in data.items():
        histograms.update(subject, scores, labels)
    before = len(histograms.pooled().counts()[0])
    pins = [float(data["s0"][0][7]), float(np.sort(data["s2"][0])[-5])]
    histograms.compact(pins)
    pool = histograms.pooled()
    assert not pool.exact
    assert len(pool.counts()[0]) < 0.75 * before
    for subject, (scores, labels) in data.items():
        own = histograms[subject]
        for threshold in [*keys.edges(own.counts()[0]).tolist(), *pins]:
            predicted = keys.predict(scores, threshold)
            assert own.positives_at(threshold) == (int(predicted[labels].sum()), int(predicted[~labels].sum()))
        at = np.array([keys.key_of(threshold) for threshold in scores[:50]])
        least, most = (np.transpose(Curve(own).reaching(k)) for k in (at, own.partition.of(at)))
        for threshold, low, high in zip(scores[:50], least, most, strict=True):  # within a bin
            assert tuple(low) == own.positives_at(threshold)
            predicted = keys.predict(scores, threshold)
            assert low[0] <= predicted[labels].sum() <= high[0]
            assert low[1] <= predicted[~labels].sum() <= high[1]


def test_scores_are_joined_on_the_way_and_any_order_of_merges_is_the_same():
    data = {f"s{i}": crowd(i) for i in range(6)}
    shards = []
    for subject, (scores, labels) in data.items():
        shard = SubjectHistograms(most=500)
        for part in np.array_split(np.arange(len(scores)), 3):
            shard.update(subject, scores[part], labels[part])
        assert not shard[subject].exact
        shards.append(shard)
    merged = []
    for order in (range(6), range(5, -1, -1), (3, 0, 5, 1, 4, 2)):
        one = SubjectHistograms()
        for index in order:
            one.merge(shards[index])
        merged.append(one)
    assert merged[0] == merged[1] == merged[2]
    assert merged[0].partition == merged[1].partition == merged[2].partition
    assert merged[0].pooled().n_positive == sum(int(labels.sum()) for _, labels in data.values())


@given(hnp.arrays(np.float16, st.integers(1, 200), elements=finite16))
@settings(max_examples=40)
def test_float16_stays_exact_whatever_happens(scores):
    labels = np.arange(len(scores)) % 2 == 0
    histogram = of(scores, labels)
    histogram.compact()
    assert histogram.exact
    assert listed(histogram) == counts_of(scores, labels)


def test_partitions_meet_at_the_same_one_in_any_order():
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        cells = np.unique(rng.integers(0, 6, 4))
        inner = (rng.choice(cells, 5) << keys.CELL_SHIFT) + rng.integers(1, 4, 5)
        parts.append(Partition(cells, np.union1d(cells << keys.CELL_SHIFT, inner)))
    first, second, third = parts
    assert first.meet(second).meet(third) == third.meet(first).meet(second) == second.meet(third.meet(first))
    some = np.sort((rng.integers(0, 7, 200) << keys.CELL_SHIFT) + rng.integers(0, 5, 200))
    both = first.meet(second)
    np.testing.assert_array_equal(both.of(first.of(some)), both.of(some))
    np.testing.assert_array_equal(both.of(second.of(some)), both.of(some))
    assert (both.ends(both.of(some)) > some).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=30)
def test_sharding_and_merge_order_change_nothing(seed, shards):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(200) * 10.0 ** rng.integers(-300, 300)
    labels, owner = rng.random(200) < 0.3, rng.integers(0, 4, 200)
    whole, merged = SubjectHistograms(), SubjectHistograms()
    for subject in range(4):
        whole.update(f"s{subject}", scores[owner == subject], labels[owner == subject])
    parts = []
    for part in np.array_split(rng.permutation(200), shards):
        shard = SubjectHistograms()
        for subject in rng.permutation(4):
            own = part[owner[part] == subject]
            shard.update(f"s{subject}", scores[own], labels[own])
        parts.append(shard)
    for index in rng.permutation(shards):
        merged.merge(parts[index])
    assert merged == whole
    assert merged.pooled() == whole.pooled() == of(scores, labels)


def test_many_updates_fold_to_the_same_counts(monkeypatch):
    monkeypatch.setattr(module, "_PENDING_BINS", 50)
    rng = np.random.default_rng(0)
    scores, labels = rng.random((30, 40)).astype(np.float32), rng.random((30, 40)) < 0.2
    sliced = ScoreHistogram()
    for score, label in zip(scores, labels, strict=True):
        sliced.update(score, label)
    assert listed(sliced) == counts_of(scores, labels)
    assert (sliced.n_positive, sliced.n_negative) == (labels.sum(), (~labels).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_tensors_count_as_arrays_do(dtype):
    scores = (8 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
    labels = torch.arange(500) % 7 == 0
    assert listed(of(scores, labels)) == counts_of(scores.double().numpy(), labels.numpy())
    assert of(scores, labels.to(torch.uint8)) == of(scores, labels)
    if torch.cuda.is_available():
        assert of(scores.cuda(), labels.cuda()) == of(scores, labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_non_finite_scores_name_the_case(bad, dtype):
    with pytest.raises(UserError, match=r"Scores of case 'p07' hold 1 NaN or infinite value of 3"):
        SubjectHistograms().update("p07", np.array([0.0, bad, 1.0], dtype), np.array([0, 1, 0]))


def test_shape_mismatch_gives_both_shapes():
    with pytest.raises(UserError, match=r"'p07' have shape \(2, 3\) but its labels have shape \(3, 2\)"):
        SubjectHistograms().update("p07", np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_other_label_values_are_listed(dtype):
    with pytest.raises(UserError, match=r"Labels of case 'p07' hold the values 2, 4: give 0 and 1"):
        SubjectHistograms().update("p07", np.zeros(4), np.array([0, 1, 2, 4], dtype))


def test_text_is_no_score_and_no_label():
    with pytest.raises(UserError, match="not numbers"):
        of(np.array(["a"]), [0])
    with pytest.raises(UserError, match="give booleans"):
        of(np.zeros(1), np.array(["a"]))


def test_subjects_are_sorted_and_missing_ones_named():
    histograms = SubjectHistograms()
    histograms.update("b", [0.5], [1])
    histograms.update("a", [], [])
    assert histograms.subjects == ["a", "b"] == list(histograms)
    assert len(histograms) == 2
    assert "a" in histograms
    assert histograms["a"].n_negative == 0
    with pytest.raises(KeyError, match="no subject 'c'"):
        histograms["c"]
    with pytest.raises(UserError, match="non-empty string"):
        histograms.update("", [0.5], [1])


# ---------------------------------------------------------------------------------------------------------------- files


def example():
    histograms = SubjectHistograms(most=100)
    for seed, subject in enumerate(("zoé", "a", "m")):
        histograms.update(subject, *crowd(seed, 300))
    assert len(histograms.partition.cells)
    return histograms


def test_files_round_trip_to_the_byte(tmp_path):
    histograms = example()
    histograms.update("empty", [], [])
    histograms.to_npz(tmp_path / "a.npz")
    read = SubjectHistograms.from_npz(tmp_path / "a.npz")
    assert read == histograms
    assert read.partition == histograms.partition
    read.to_npz(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    SubjectHistograms().to_npz(tmp_path / "none.npz")
    assert len(SubjectHistograms.from_npz(tmp_path / "none.npz")) == 0


def rewrite(path, **changes):
    with np.load(path) as old:
        arrays = {name: old[name] for name in old.files}
    np.savez(path, **(arrays | changes))


def damages():
    with_object = np.array([None, 1], dtype=object)
    return {
        "header": [np.array([9]), np.array([2, 10]), np.array([1]), np.zeros((1, 2), int), with_object],
        "subjects": [
            np.frombuffer(b"b\0a\0c", np.uint8),
            np.frombuffer(b"a\0\xff\xff\0c", np.uint8),
            np.zeros(2, np.uint8),
        ],
        "ends": [np.array([5, 3, 9]), np.array([1, 2, 3]), np.array([1])],
        "keys": [np.zeros(1, np.int32), np.full(99, 1 << 30, np.int32), np.zeros(3)],
        "cells": [np.array([5, 3]), np.array([1 << 60]), np.zeros(0, np.int64)],
        "edges": [np.array([1]), np.array([1 << keys.CELL_SHIFT]), np.array([9, 3])],
        "positive": [np.zeros(1, np.uint8), np.zeros(3, np.int64)],
    }


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, bad in damages().items() for i in range(len(bad))])
def test_damaged_files_are_refused(tmp_path, name, index):
    path = tmp_path / "h.npz"
    example().to_npz(path)
    rewrite(path, **{name: damages()[name][index]})
    with pytest.raises(UserError, match=r"h\.npz is not a histogram file, or it is damaged: "):
        SubjectHistograms.from_npz(path)


@pytest.mark.parametrize(
    ("column", "change", "why"),
    [
        ("keys", lambda keys: keys[::-1], "not in order"),
        ("keys", lambda own: np.where(own == own.max(), keys.INFINITY, own), "not that of a finite score"),
        ("positive", lambda counts: counts * 0, "a bin is empty"),
        ("negative", lambda counts: counts + np.uint64(1 << 60), "larger than 2\\^53"),
    ],
)
def test_impossible_counts_are_refused(tmp_path, column, change, why):
    path = tmp_path / "h.npz"
    example().to_npz(path)
    with np.load(path) as old:
        rewrite(path, **{column: change(old[column])})
    with pytest.raises(UserError, match=why):
        SubjectHistograms.from_npz(path)


def test_truncated_missing_and_lying_files_are_refused(tmp_path):
    path = tmp_path / "h.npz"
    with pytest.raises(UserError, match=r"There is no histogram file .*h\.npz"):
        SubjectHistograms.from_npz(path)
    example().to_npz(path)
    whole = path.read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged"):
            SubjectHistograms.from_npz(path)
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    with pytest.raises(UserError, match="damaged"):
        SubjectHistograms.from_npz(path)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", buffer.getvalue())
    with pytest.raises(UserError, match="says 1000000000000000 values and holds 0 bytes"):
        SubjectHistograms.from_npz(path)


def test_parts_that_wait_are_added_by_the_bins_they_were_counted_in():
    data = [crowd(seed, size=4000) for seed in range(8)]
    waiting, joined = SubjectHistograms(), SubjectHistograms(most=1000)
    for scores, labels in data[:4]:
        waiting.update("a", scores, labels)
    for scores, labels in data[4:]:
        joined.update("a", scores, labels)
    waiting.merge(joined)
    assert len(waiting.partition.inner_edges)
    scores, labels = (np.concatenate(part) for part in zip(*data, strict=True))
    for threshold in keys.edges(waiting["a"].counts()[0]).tolist()[::20]:
        predicted = keys.predict(scores, threshold)
        counted = (int(predicted[labels].sum()), int(predicted[~labels].sum()))
        assert waiting["a"].positives_at(threshold) == counted
