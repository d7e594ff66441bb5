"""Paired comparisons, Holm, ranks, nested seeds, and whether a 95 % interval covers 95 %."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.special import stdtr

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.compare import Samples, Trained, compare, holm, sample_method, two_sided
from adbench.metrics.evaluate import evaluate, sample
from adbench.metrics.histogram import SubjectHistograms


def cohort(quality, noise_seed, subjects=24, prefix="t", size=300):
    """Histograms of a method whose scores separate lesions by ``quality``; labels do not depend on the method."""
    result = SubjectHistograms()
    labels_rng, rng = np.random.default_rng(len(prefix)), np.random.default_rng(noise_seed)
    for i in range(subjects):
        labels = labels_rng.random(size) < 0.1
        labels[0] = True
        ease = labels_rng.normal(0, 0.3)  # shared by methods: what makes pairing worthwhile
        result.update(
            f"{prefix}{i:02d}", (rng.standard_normal(size) + (quality + ease) * labels).astype(np.float16), labels
        )
    return result


def method(quality, noise_seed, seeds=1, seed=0):
    return sample_method(
        [Trained(cohort(quality, noise_seed + 100 * k)) for k in range(seeds)], replicates=300, seed=seed
    )


@pytest.fixture(scope="module")
def methods():
    return {"bad": method(0.3, 1), "good": method(2.0, 2), "twin": method(2.0, 3), "fair": method(1.0, 4)}


def test_ranks_share_ties_and_count_methods_above(methods):
    table = compare(methods, "auroc")
    assert {name: table.ranks[name] for name in ("good", "twin", "fair", "bad")} == {
        "good": 1,
        "twin": 1,
        "fair": 3,
        "bad": 4,
    }
    assert len(table.differences) == 6
    for d in table.differences:
        assert d.value >= 0
        assert d.low <= d.value <= d.high
        assert d.p <= d.p_holm <= 1
    twins = next(d for d in table.differences if {d.a, d.b} == {"good", "twin"})
    assert twins.p_holm > 0.05
    assert twins.low < 0 < twins.high


def test_less_is_better_turns_the_table(methods):
    assert compare(methods, "auroc", less_is_better=True).ranks["bad"] == 1


def test_pairing_is_sharper_than_two_separate_intervals(methods):
    good, fair = methods["good"], methods["fair"]
    paired = next(d for d in compare(methods, "auprc").differences if {d.a, d.b} == {"good", "fair"})
    apart = good.draws["auprc"] - np.random.default_rng(0).permutation(fair.draws["auprc"])
    low, high = bootstrap.interval(apart)
    assert paired.high - paired.low < high - low


def test_a_method_equals_itself_and_differences_are_exact():
    one = method(1.0, 4)
    table = compare({"x": one, "y": one}, "auprc")
    assert table.ranks == {"x": 1, "y": 1}
    assert (table.differences[0].value, table.differences[0].low, table.differences[0].p) == (0, 0, 1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_samples_agree_with_evaluate():
    test, val = cohort(1.0, 5), cohort(1.0, 6, prefix="va")
    samples = sample_method([Trained(test, val)], replicates=200, seed=7)
    result = evaluate(test, val, replicates=200, seed=7)
    for name, metric in samples.estimates().items():
        assert metric == result.metrics[name], name


def test_seeds_are_a_second_level():
    runs = [Trained(cohort(quality, 10 + i)) for i, quality in enumerate((0.5, 1.5, 2.5))]
    nested = sample_method(runs, replicates=500)
    alone = [sample_method([run], replicates=500) for run in runs]
    assert nested.seeds == 3
    assert nested.values["auroc"] == pytest.approx(np.mean([one.values["auroc"] for one in alone]))
    widths = [np.subtract(*bootstrap.interval(one.draws["auroc"])[::-1]) for one in alone]
    low, high = bootstrap.interval(nested.draws["auroc"])
    assert high - low > 2 * max(widths), "seeds that differ widen the interval"
    twice = sample_method([runs[0], runs[0]], replicates=500)
    np.testing.assert_allclose(twice.draws["auroc"], alone[0].draws["auroc"], atol=1e-12)


def test_what_cannot_be_compared_is_refused(methods):
    with pytest.raises(UserError, match="needs two methods, not 1"):
        compare({"good": methods["good"]}, "auroc")
    with pytest.raises(UserError, match=r"Unknown metric of bad 'aurok'\. Did you mean 'auroc'"):
        compare(methods, "aurok")
    with pytest.raises(UserError, match="resampled differently \\(seed 0 and 1, 300 and 300 replicates\\)"):
        compare({"a": methods["good"], "b": method(1.0, 1, seed=1)}, "auroc")
    other = sample_method([Trained(cohort(1.0, 1, subjects=23))], replicates=300)
    with pytest.raises(UserError, match=r"a and b were not scored on the same voxels: subject 't23' with \d+ lesion"):
        compare({"a": methods["good"], "b": other}, "auroc")
    with pytest.raises(UserError, match="no run to resample"):
        sample_method([])
    empty = Samples((("t", 1, 1),), 0, 1, {"auprc": 0.5}, {"auprc": np.full(10, np.nan)}, {"auprc": 1})
    with pytest.raises(UserError, match="More than half of the replicates leave a difference undefined"):
        compare({"a": empty, "b": empty}, "auprc")


# ------------------------------------------------------------------------------------------------------------- coverage


def population(rng, subjects):
    """Subjects of 40 lesion and 160 background voxels, scores in ten levels; difficulty differs between subjects."""
    shift = rng.normal(1.0, 0.5, subjects)[:, None]
    lesion = np.clip(np.round(2 * (rng.standard_normal((subjects, 40)) + shift)), -6, 6).astype(np.float16)
    background = np.clip(np.round(2 * rng.standard_normal((subjects, 160))), -6, 6).astype(np.float16)
    return np.concatenate([lesion, background], axis=1)


LABELS = np.arange(200) < 40


def test_intervals_cover_between_92_and_98_percent():
    """A known model: the truth is the value in a population of 20,000 subjects; 400 studies of 60 subjects each."""
    rng = np.random.default_rng(2026)
    names = ("auprc", "auroc", "auprc_subject", "dice@val")
    val = SubjectHistograms()
    for i, scores in enumerate(population(rng, 50)):
        val.update(f"v{i}", scores, LABELS)
    everyone = SubjectHistograms()
    many = population(rng, 20_000)
    for i, scores in enumerate(many.reshape(100, 200, 200)):  # 100 pools of 200 subjects: pooled truth
        everyone.update(f"p{i}", scores, np.tile(LABELS, (200, 1)))
    truth = {name: evaluate(everyone, val, intervals=False).metrics[name].value for name in ("auprc", "auroc")}
    singles = [evaluate_mean(many[start : start + 2000], val) for start in range(0, 20_000, 2000)]
    truth |= {name: float(np.mean([one[name] for one in singles])) for name in ("auprc_subject", "dice@val")}
    covered = dict.fromkeys(names, 0)
    studies = 400
    for study in range(studies):
        test = SubjectHistograms()
        for i, scores in enumerate(population(rng, 60)):
            test.update(f"t{i}", scores, LABELS)
        result = evaluate(test, val, replicates=200, seed=study)
        for name in names:
            metric = result.metrics[name]
            covered[name] += metric.low <= truth[name] <= metric.high
    shares = {name: count / studies for name, count in covered.items()}
    assert all(0.92 <= share <= 0.98 for share in shares.values()), shares


def evaluate_mean(many, val):
    test = SubjectHistograms()
    for i, scores in enumerate(many):
        test.update(f"t{i}", scores, LABELS)
    metrics = evaluate(test, val, intervals=False).metrics
    return {name: metrics[name].value for name in ("auprc_subject", "dice@val")}


def test_interval_ends_are_percentiles_and_undefined_replicates_are_dropped():
    values = np.r_[np.arange(1, 101, dtype=float), np.full(50, np.nan)]
    assert bootstrap.interval(values, 0.9) == pytest.approx((5.95, 95.05))
    assert bootstrap.interval(np.r_[1.0, np.nan, np.nan]) is None
    with pytest.raises(UserError, match="level = 95 is not valid"):
        bootstrap.interval(values, 95)
    with pytest.raises(UserError, match="0 replicates over 3 subjects is not possible"):
        bootstrap.weights(3, 0, 0)


def test_weights_are_resamples_of_all_subjects():
    draws = bootstrap.weights(7, 4000, 0)
    assert (draws.sum(axis=1) == 7).all()
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(draws.var(axis=0), 6 / 7, atol=0.1)
    np.testing.assert_array_equal(draws, bootstrap.weights(7, 4000, 0))


def test_sample_is_deterministic():
    test = cohort(1.0, 1, subjects=5)
    rows = evaluate(test, intervals=False).subjects
    draws = bootstrap.weights(5, 50, 3)
    first, second = sample(test, rows, draws), sample(test, rows, draws)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def mean_samples(**subjects):
    """Methods whose metric is the mean of one value a subject, on 1000 shared resamples."""
    n = len(next(iter(subjects.values())))
    draws = bootstrap.weights(n, 1000, 0) / n
    cohort = tuple((f"s{i:03d}", 1, 1) for i in range(n))
    return {
        name: Samples(cohort, 0, 1, {"m": float(np.mean(values))}, {"m": draws @ values}, {"m": n})
        for name, values in subjects.items()
    }


def test_many_methods_that_differ_are_told_apart():
    """With 28 pairs 2 / (R + 1) alone, corrected, is 0.056: everything would be tied."""
    rng = np.random.default_rng(0)
    ladder = mean_samples(**{f"m{k}": k + rng.normal(0, 1.0, 60) for k in range(8)})
    assert compare(ladder, "m").ranks == {f"m{k}": 8 - k for k in range(8)}


def test_replicates_decide_where_they_can():
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 40)
    (near,) = compare(mean_samples(a=base + rng.normal(0.2, 1.0, 40), b=base), "m").differences
    assert 2 / 1001 < near.p < 1
    assert near.p * 1001 / 2 == pytest.approx(round(near.p * 1001 / 2))


def test_tail_is_that_of_a_paired_t_test():
    """For a mean over subjects the spread of the replicates is the standard error, so the tail is the t-test's."""
    from scipy.stats import ttest_1samp

    gaps = np.random.default_rng(0).normal(1.0, 0.8, 30)
    (difference,) = compare(mean_samples(a=gaps, b=np.zeros(30)), "m").differences
    assert np.log(difference.p) == pytest.approx(np.log(ttest_1samp(gaps, 0).pvalue), rel=0.08)


def test_one_subject_proves_nothing():
    (difference,) = compare(mean_samples(a=np.ones(1), b=np.zeros(1)), "m").differences
    assert difference.p == 1  # every resample is that subject again


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 19, 20, 167, 1000, 5001])
def test_students_t_is_that_of_scipy(freedom: int) -> None:
    """Down to tails that 1 minus a probability cannot say."""
    for t in (0.0, 0.1, 1.0, 2.5, 2.6, 3.5, 5.0, 10.0, 40.0, 1e3):
        assert two_sided(t, freedom) == pytest.approx(2 * stdtr(freedom, -t), rel=1e-10, abs=1e-290)
    assert two_sided(1e200, 1) == pytest.approx(2 / np.pi / 1e200)  # the tail of Cauchy's distribution


def test_a_comparison_does_not_load_scipy() -> None:
    """It would be a sixth of the time of ``adbench leaderboard show``."""
    code = (
        "import sys, numpy as np\n"
        "from adbench.metrics.compare import Samples, compare\n"
        "who = tuple((str(i), 1, 1) for i in range(9))\n"
        "one = lambda mean: Samples(who, 0, 1, {'auprc': mean}, {'auprc': mean + np.arange(99) / 1e4 * mean}, {'auprc': 9})\n"
        "table = compare({'a': one(0.5), 'b': one(0.2)}, 'auprc')\n"
        "assert table.differences[0].p < 2 / 100, table.differences\n"
        "print([name for name in sys.modules if name.startswith('scipy')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
