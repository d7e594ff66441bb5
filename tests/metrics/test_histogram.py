"""Keys in the order of scores, exact counts, merges that do not depend on order, files that are not trusted."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adbench.errors import UserError
from adbench.metrics import keys
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms

EXTREMES = np.array(
    [-3.4028235e38, -65504, -1, -1e-30, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 1e-30, 0.5, 1, 65504, 3.4028235e38], np.float32
)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite16 = st.floats(width=16, allow_nan=False, allow_infinity=False)


def of(scores, labels, bits=10):
    histogram = ScoreHistogram(bits)
    histogram.update(scores, labels)
    return histogram


def test_keys_are_in_the_order_of_scores_and_zeros_are_one():
    order = keys.ordered(EXTREMES)
    assert order[5] == order[6] == 0
    assert (np.diff(order) >= 0).all()
    assert len(set(order.tolist())) == len(EXTREMES) - 1


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite32), st.integers(0, 23))
def test_a_bin_holds_its_scores(scores, bits):
    own = keys.ordered(scores) >> (23 - bits)
    assert (keys.edges(own, bits) <= scores).all()
    above = keys.edges(own + 1, bits)
    assert ((scores < above) | (above == np.finfo(np.float32).max)).all()


@given(hnp.arrays(np.float16, st.integers(1, 40), elements=finite16))
def test_every_float16_score_is_its_own_edge(scores):
    own = keys.ordered(scores.astype(np.float32)) >> 13
    np.testing.assert_array_equal(keys.edges(own, 10), scores.astype(np.float32))
    assert of(scores, np.zeros(len(scores), bool)).exact


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=finite32), st.integers(0, 23), st.integers(0, 2**32 - 1))
@example(np.float32([-1.701412e38]), 0, 0)
@example(np.float32([-3.4028235e38, 3.4028235e38]), 10, 0)
def test_histogram_thresholds_reproduce_on_raw_scores(scores, bits, seed):
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    histogram = of(scores, labels, bits)
    for threshold in keys.edges(histogram.counts()[0], bits).tolist():
        predicted = keys.predict(scores, threshold)
        counted = histogram.positives_at(threshold)
        assert counted == (int(predicted[labels].sum()), int(predicted[~labels].sum()))
    assert histogram.positives_at(-3.4028235e38) == (int(labels.sum()), int((~labels).sum()))


def test_a_threshold_between_edges_counts_whole_bins_above_it():
    histogram = of(np.float32([1.0, 2.0, -1.0]), [1, 0, 0])
    assert histogram.positives_at(1.00001) == (0, 1)
    assert histogram.positives_at(-1.00001) == (1, 2)
    with pytest.raises(UserError, match="NaN"):
        histogram.positives_at(float("nan"))


def test_exactness_is_noticed():
    assert not of(np.float32([0.1, 0.5]), [0, 1]).exact
    assert of(np.float32([0.1, 0.5]), [0, 1], bits=23).exact
    mixed = of(np.float32([0.5]), [1])
    mixed.merge(of(np.float32([0.1]), [0]))
    assert not mixed.exact


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([0, 5, 10, 16, 23]))
@settings(max_examples=40)
def test_sharding_and_merge_order_change_nothing(seed, shards, bits):
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal(200) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    labels, owner = rng.random(200) < 0.3, rng.integers(0, 4, 200)
    whole, merged = SubjectHistograms(bits), SubjectHistograms(bits)
    for subject in range(4):
        whole.update(f"s{subject}", scores[owner == subject], labels[owner == subject])
    parts = []
    for part in np.array_split(rng.permutation(200), shards):
        shard = SubjectHistograms(bits)
        for subject in rng.permutation(4):
            own = part[owner[part] == subject]
            shard.update(f"s{subject}", scores[own], labels[own])
        parts.append(shard)
    for index in rng.permutation(shards):
        merged.merge(parts[index])
    assert merged == whole
    assert merged.pooled() == whole.pooled() == of(scores, labels, bits)


def test_many_updates_fold_to_the_same_counts(monkeypatch):
    monkeypatch.setattr("adbench.metrics.histogram._PENDING_BINS", 50)
    rng = np.random.default_rng(0)
    scores, labels = rng.random((30, 40)).astype(np.float32), rng.random((30, 40)) < 0.2
    sliced = ScoreHistogram()
    for score, label in zip(scores, labels, strict=True):
        sliced.update(score, label)
    found, counts = np.unique(keys.ordered(scores.ravel()) >> 13, return_counts=True)
    own, positive, negative = sliced.counts()
    np.testing.assert_array_equal(own, found)
    np.testing.assert_array_equal(positive + negative, counts)
    assert (sliced.n_positive, sliced.n_negative) == (labels.sum(), (~labels).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_count_as_arrays_do(dtype):
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(500) % 7 == 0
    assert of(scores, labels) == of(scores.float().numpy(), labels.numpy())
    assert of(scores, labels.to(torch.uint8)) == of(scores, labels)


@pytest.mark.parametrize("bits", [10, 23])
def test_the_device_path_counts_as_the_host_path(bits):
    scores = torch.cat([torch.from_numpy(EXTREMES), torch.linspace(-2, 3, 900)])
    labels = torch.arange(len(scores)) % 5 == 0
    on_device = ScoreHistogram(bits)
    on_device._update_on_device(scores, labels, "a case")  # runs on any device, the CPU included
    assert on_device == of(scores.numpy(), labels.numpy(), bits)
    if torch.cuda.is_available():
        assert of(scores.cuda(), labels.cuda(), bits) == on_device
    with pytest.raises(UserError, match="1 NaN or infinite value of 2"):
        on_device._update_on_device(torch.tensor([0.0, torch.inf]), torch.zeros(2), "a case")
    with pytest.raises(UserError, match="hold the value 3"):
        on_device._update_on_device(torch.zeros(2), torch.tensor([0, 3]), "a case")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_non_finite_scores_name_the_case(bad):
    with pytest.raises(UserError, match=r"Scores of case 'p07' hold 1 NaN or infinite value of 3"):
        SubjectHistograms().update("p07", np.array([0.0, bad, 1.0]), np.array([0, 1, 0]))


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


def test_unequal_bits_do_not_merge():
    with pytest.raises(UserError, match="10 and 12 mantissa bits cannot be merged"):
        ScoreHistogram(10).merge(ScoreHistogram(12))
    with pytest.raises(UserError, match="mantissa_bits = 24 is not valid"):
        ScoreHistogram(24)


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


def example(bits=10):
    rng = np.random.default_rng(1)
    histograms = SubjectHistograms(bits)
    for subject in ("zoé", "a", "m"):
        histograms.update(subject, rng.standard_normal(300).astype(np.float32), rng.random(300) < 0.1)
    return histograms


@pytest.mark.parametrize("bits", [4, 10, 23])
def test_files_round_trip_to_the_byte(tmp_path, bits):
    histograms = example(bits)
    histograms.update("empty", [], [])
    histograms.to_npz(tmp_path / "a.npz")
    read = SubjectHistograms.from_npz(tmp_path / "a.npz")
    assert read == histograms
    read.to_npz(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        assert plain["header"].tolist() == [1, bits]
    SubjectHistograms().to_npz(tmp_path / "none.npz")
    assert len(SubjectHistograms.from_npz(tmp_path / "none.npz")) == 0


def rewrite(path, **changes):
    with np.load(path) as old:
        arrays = {name: old[name] for name in old.files}
    np.savez(path, **(arrays | changes))


def damages():
    with_object = np.array([None, 1], dtype=object)
    return {
        "header": [np.array([9, 10]), np.array([1, 99]), np.array([1]), np.zeros((1, 2), int), with_object],
        "subjects": [
            np.frombuffer(b"b\0a\0c", np.uint8),
            np.frombuffer(b"a\0\xff\xff\0c", np.uint8),
            np.zeros(2, np.uint8),
        ],
        "ends": [np.array([5, 3, 9]), np.array([1, 2, 3]), np.array([1])],
        "keys": [np.zeros(1, np.int32), np.full(99, 1 << 30, np.int32), np.zeros(3)],
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
        ("keys", lambda keys: keys + np.int32(1 << 18), "not that of a finite score"),
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
