"""Paired comparisons: sign flips by enumeration, ranks that are monotone and hold their level, training seeds."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_rel
from simulation import studies

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.compare import NOT_ABOVE_CHANCE, MethodSamples, Trained, compare, contributions, sample_method
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spec import MetricSpec


def cohort(quality: float, noise_seed: int, subjects: int = 24, free: int = 4, size: int = 300) -> SubjectHistograms:
    """Histograms of a method whose scores separate lesions by ``quality``; labels do not depend on the method."""
    result = SubjectHistograms()
    labels_rng, rng = np.random.default_rng(1), np.random.default_rng(noise_seed)
    for i in range(subjects):
        labels = (labels_rng.random(size) < 0.1) & (i >= free)
        labels[0] = i >= free
        ease = labels_rng.normal(0, 0.3)  # shared by methods: what makes pairing worthwhile
        scores = rng.standard_normal(size) + (quality + ease) * labels
        result.update(f"t{i:02d}", scores.astype(np.float16), labels)
    return result


def method(quality: float, noise_seed: int) -> MethodSamples:
    return sample_method([Trained(cohort(quality, noise_seed))])


@pytest.fixture(scope="module")
def methods() -> dict[str, MethodSamples]:
    return {"bad": method(0.7, 1), "good": method(2.2, 2), "twin": method(2.2, 3), "fair": method(1.4, 4)}


PLAIN = {"m": MetricSpec("m", "M", "", "subject mean", high=None)}
LESS = {"m": dataclasses.replace(PLAIN["m"], less_is_better=True)}


def means(*, specs: dict[str, MetricSpec] = PLAIN, **subjects: object) -> dict[str, MethodSamples]:
    """Methods whose metric is the mean of one value a subject; a list of lists has one row a training seed."""
    made = {}
    for name, values in subjects.items():
        rows = np.atleast_2d(np.asarray(values, float))
        n = rows.shape[1]
        without = np.stack([[np.mean(np.delete(row, i)) for i in range(n)] for row in rows])
        who = tuple((f"s{i:03d}", 1, 1) for i in range(n))
        made[name] = MethodSamples(who, {"m": rows.mean(axis=1)}, {"m": without}, {"m": n}, specs=specs)
    return made


def test_ranks_share_ties_and_count_methods_above(methods: dict[str, MethodSamples]) -> None:
    table = compare(methods, "auroc")
    assert table.ranks == {"good": 1, "twin": 1, "fair": 3, "bad": 4}
    assert table.reasons == {}
    leaders = {"good", "twin", "fair", "bad"} & {d.a for d in table.differences}
    assert len(leaders) == 2, "the leader of each rank that has rows below"
    for d in table.differences:
        assert d.value >= 0
        assert d.low <= d.value <= d.high
        assert d.p <= d.p_rank <= 1


def test_less_is_better_turns_the_table(methods: dict[str, MethodSamples]) -> None:
    rng = np.random.default_rng(0)
    errors = means(a=rng.normal(1, 0.1, 30), b=rng.normal(2, 0.1, 30), specs=LESS)
    assert compare(errors, "m").ranks == {"a": 1, "b": 2}
    (difference,) = compare(errors, "m").differences
    assert (difference.a, difference.b) == ("a", "b")
    assert difference.low < difference.value < difference.high < 0


@pytest.mark.parametrize("n", [6, 9, 12])
def test_up_to_twelve_subjects_every_pattern_of_signs_counts(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    gaps = a - b
    patterns = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=n)]
    expected = np.mean([value >= abs(gaps.sum()) * (1 - 1e-9) for value in patterns])
    (difference,) = compare(means(a=a, b=b), "m").differences
    assert difference.p == pytest.approx(expected, abs=1e-12)
    exact = permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert difference.p == pytest.approx(exact.pvalue, abs=1e-12)


def test_beyond_that_it_is_near_the_t_test() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(0.3, 1, 60)
    (difference,) = compare(means(a=a, b=rng.normal(0, 0.5, 60)), "m").differences
    b = np.random.default_rng(5)
    b.normal(0.3, 1, 60)
    assert difference.p == pytest.approx(ttest_rel(a, b.normal(0, 0.5, 60)).pvalue, abs=0.02)


def test_three_methods_by_brute_force() -> None:
    """Every pattern of signs, the best chosen anew in each, the clearest row dropped for the next."""
    rng = np.random.default_rng(3)
    n = 8
    values = {"a": rng.normal(1.0, 0.6, n), "b": rng.normal(0.4, 0.6, n), "c": rng.normal(0.0, 0.6, n)}
    table = compare(means(**values), "m")
    shares = {name: own / n for name, own in values.items()}

    def statistic(lead: str, other: str, signs: np.ndarray) -> float:
        gaps = shares[lead] - shares[other]
        return float(signs @ gaps / np.sqrt((gaps**2).sum()))

    def largest(names: list[str], signs: np.ndarray) -> float:
        lead = max(names, key=lambda name: signs @ shares[name])
        return max(statistic(lead, name, signs) for name in names if name != lead)

    lead = max(values, key=lambda name: values[name].mean())
    others = sorted((k for k in values if k != lead), key=lambda k: -statistic(lead, k, np.ones(n)))
    worst = 0.0
    for step, name in enumerate(others):
        kept = [lead, *others[step:]]
        observed = statistic(lead, name, np.ones(n))
        patterns = [np.array(signs) for signs in itertools.product((-1, 1), repeat=n)]
        worst = max(worst, np.mean([largest(kept, signs) >= observed * (1 - 1e-9) for signs in patterns]))
        (found,) = [d for d in table.differences if (d.a, d.b) == (lead, name)]
        assert found.p_rank == pytest.approx(worst, abs=1e-12)


def test_p_is_never_below_what_the_subjects_can_resolve() -> None:
    for n in (6, 8):
        (clear,) = compare(means(a=np.arange(n) + 10.0, b=np.arange(n) / 7), "m").differences
        assert clear.p == clear.p_rank == 2 / 2**n
    n, free = 6, 40  # lesion-free subjects add patterns but no evidence
    who = tuple((f"s{i}", int(i < n), 1) for i in range(n + free))
    rng = np.random.default_rng(0)
    made = {
        name: MethodSamples(
            who, {"m": np.array([v])}, {"m": v - rng.normal(0, 1e-6, (1, n + free))}, {"m": n}, specs=PLAIN
        )
        for name, v in (("a", 1.0), ("b", 0.0))
    }
    (difference,) = compare(made, "m").differences
    assert difference.p >= 2 / 2**n


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(6, 15))
def test_a_higher_value_never_has_a_lower_rank(seed: int, count: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, n)
    own = means(**{f"m{k}": base + rng.normal(rng.normal(0, 0.7), rng.uniform(0.01, 2), n) for k in range(count)})
    table = compare(own, "m")
    order = sorted(own, key=lambda name: -own[name].value("m"))
    ranks = [table.ranks[name] or 0 for name in order]
    assert ranks == sorted(ranks)
    assert ranks[0] == 1
    for rank in set(ranks):
        assert rank == 1 + sum(other < rank for other in ranks)


def test_a_noisy_row_below_keeps_the_rows_above_together() -> None:
    """The conservative way: a row is told apart only when all below it are."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 20)
    own = means(best=base + 1, middle=base + rng.normal(0, 0.1, 20), noisy=base + rng.normal(-1, 15, 20))
    assert own["middle"].value("m") > own["noisy"].value("m")
    assert compare(own, "m").ranks == {"best": 1, "middle": 1, "noisy": 1}
    del own["noisy"]
    assert compare(own, "m").ranks == {"best": 1, "middle": 2}


def test_many_methods_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    ladder = means(**{f"m{k}": k + rng.normal(0, 1.0, 60) for k in range(8)})
    assert compare(ladder, "m").ranks == {f"m{k}": 8 - k for k in range(8)}


def test_a_method_equals_itself() -> None:
    one = method(1.4, 4)
    table = compare({"x": one, "y": one}, "auprc")
    assert table.ranks == {"x": 1, "y": 1}
    (d,) = table.differences
    assert (d.value, d.low, d.high, d.p, d.p_rank) == (0, 0, 0, 1, 1)


def test_a_row_that_reaches_chance_has_no_rank() -> None:
    flat = SubjectHistograms()
    for subject, histogram in cohort(1.0, 1).items():
        labels = np.arange(histogram.n_positive + histogram.n_negative) < histogram.n_positive
        flat.update(subject, np.zeros(len(labels), np.float16), labels)
    own = {"constant": sample_method([Trained(flat)]), "good": method(2.2, 2), "fair": method(1.4, 4)}
    for metric in ("auprc", "auroc"):
        table = compare(own, metric)
        assert table.ranks == {"good": 1, "fair": 2, "constant": None}
        assert table.reasons == {"constant": NOT_ABOVE_CHANCE}
        assert all("constant" not in (d.a, d.b) for d in table.differences)
    without_chance = compare(own, "dice@best")  # where the map that says nothing would have a rank
    assert without_chance.ranks == {"good": 1, "fair": 2, "constant": None}
    assert without_chance.reasons == {"constant": f"{NOT_ABOVE_CHANCE} by auprc"}
    alone = compare({"x": own["constant"], "y": own["constant"]}, "auprc")
    assert alone.ranks == {"x": None, "y": None}
    assert alone.differences == []


def test_pairing_is_sharper_than_two_separate_intervals(methods: dict[str, MethodSamples]) -> None:
    good, fair = (methods[name].estimates()["auprc_subject"] for name in ("good", "fair"))
    for one in (good, fair):
        assert one.low is not None
        assert one.high is not None
    table = compare({name: methods[name] for name in ("good", "fair")}, "auprc_subject")
    apart = np.hypot(*(np.subtract(one.high, one.low) for one in (good, fair)))
    assert table.differences[0].high - table.differences[0].low < apart


def test_of_a_mean_contributions_are_its_terms(methods: dict[str, MethodSamples]) -> None:
    """So that exchanging two methods on a subject changes exactly that subject's sign."""
    values = np.random.default_rng(0).normal(0, 1, 9)
    leverage, influence = contributions([means(a=values)["a"]], "m")
    np.testing.assert_allclose(leverage * values.mean() + influence[:, 0], values / 9, atol=1e-14)
    for metric in ("auprc", "auroc", "dice@best", "auprc_subject"):
        leverage, influence = contributions(list(methods.values()), metric)
        assert leverage.sum() == pytest.approx(1)
        np.testing.assert_allclose(influence.sum(axis=0), 0, atol=1e-12)
    subjects = cohort(2.2, 2)
    rows = [row["auprc"] or 0.0 for row in evaluate(subjects, intervals=False).subjects]
    leverage, influence = contributions([methods["good"]], "auprc_subject")
    np.testing.assert_allclose(leverage * np.mean(rows[4:]) + influence[:, 0], np.array(rows) / 20, atol=1e-12)


def test_the_interval_of_a_difference_is_students(methods: dict[str, MethodSamples]) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 1, 15), rng.normal(0, 1, 15)
    (difference,) = compare(means(a=a, b=b), "m").differences
    exact = ttest_rel(a, b).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((exact.low, exact.high))


def test_samples_agree_with_evaluate() -> None:
    test, val = cohort(1.0, 5), SubjectHistograms()
    for subject, histogram in cohort(1.0, 6).items():
        labels = np.arange(histogram.n_positive + histogram.n_negative) < histogram.n_positive
        val.update(f"v{subject}", np.random.default_rng(1).normal(labels).astype(np.float16), labels)
    result = evaluate(test, val)
    for name, metric in sample_method([Trained(test, val)]).estimates().items():
        assert metric == result.metrics[name], name


def test_seeds_are_a_second_level() -> None:
    runs = [Trained(cohort(quality, 10 + i)) for i, quality in enumerate((0.5, 1.5, 2.5))]
    nested = sample_method(runs).estimates()["auroc"]
    alone = [sample_method([run]).estimates()["auroc"] for run in runs]
    assert nested.value == pytest.approx(np.mean([one.value for one in alone]))
    assert nested.low is not None
    assert nested.high is not None
    assert nested.high - nested.low > 2 * max((one.high or 0) - (one.low or 0) for one in alone)
    twice, once = sample_method([runs[0], runs[0]]).estimates()["auroc"], alone[0]
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_seeds_that_differ_do_not_prove_a_method() -> None:
    """The subjects agree on every seed; what is left is a t-test of three seeds against three."""
    base = np.linspace(0, 1, 20)
    a, b = ([base + shift for shift in shifts] for shifts in ((0.0, 1.0, 2.0), (1.0, 2.5, 3.0)))
    table = compare(means(a=a, b=b), "m")
    assert set(table.ranks.values()) == {1}
    steady = compare(means(a=[base + s for s in (0.0, 0.01, 0.02)], b=[base + s for s in (1.0, 1.01, 1.02)]), "m")
    assert steady.ranks == {"b": 1, "a": 2}


def test_what_cannot_be_compared_is_refused(methods: dict[str, MethodSamples]) -> None:
    with pytest.raises(UserError, match="needs two methods, not 1"):
        compare({"good": methods["good"]}, "auroc")
    with pytest.raises(UserError, match=r"Unknown metric of bad 'aurok'\. Did you mean 'auroc'"):
        compare(methods, "aurok")
    other = sample_method([Trained(cohort(1.0, 1, subjects=23))])
    with pytest.raises(UserError, match=r"a and b were not scored on the same voxels: subject 't23' with \d+ lesion"):
        compare({"a": methods["good"], "b": other}, "auroc")
    with pytest.raises(UserError, match="no run to compare"):
        sample_method([])
    few = sample_method([Trained(cohort(1.0, 1, subjects=24, free=19))])
    with pytest.raises(UserError, match="5 subjects with lesions: a rank needs 6"):
        compare({"a": few, "b": few}, "auprc")
    with pytest.raises(UserError, match="0 replicates over 3 subjects is not possible"):
        bootstrap.weights(3, 0, 0)


def test_fifty_methods_and_four_hundred_subjects_take_seconds() -> None:
    rng = np.random.default_rng(0)
    who = tuple((f"s{i}", int(rng.lognormal(3, 1)) + 1 if i < 300 else 0, 500) for i in range(400))
    own = {
        f"m{k}": MethodSamples(
            who,
            {"auprc": np.array([0.3 + 0.01 * k])},
            {"auprc": 0.3 + 0.01 * k - rng.normal(0, 1e-3, (1, 400))},
            {"auprc": 300},
        )
        for k in range(50)
    }
    start = time.process_time()
    table = compare(own, "auprc")
    assert time.process_time() - start < 5
    assert table.ranks["m49"] == 1
    assert compare(own, "auprc") == table


# ---------------------------------------------------------------------------------------------------------- null studies


@pytest.mark.parametrize(
    "study",
    [
        pytest.param({"bearing": 10, "methods": 2}, id="two methods"),
        pytest.param({"bearing": 10, "methods": 10}, id="ten methods"),
        pytest.param({"bearing": 6, "methods": 2, "free": 40}, id="few among many without lesions"),
        pytest.param({"bearing": 10, "methods": 2, "seeds": 3}, id="three training seeds"),
        pytest.param({"bearing": 20, "methods": 2, "metric": "dice@val"}, id="Dice, which has no chance level"),
    ],
)
def test_equally_good_methods_share_a_rank(study: dict[str, int]) -> None:
    """200 studies: two standard errors of a share of .06 are .034. The full table is that of benchmarks/statistics.py."""
    assert studies.split(studies=200, **study) <= 0.06 + 0.034


def test_methods_that_differ_do_not() -> None:
    assert studies.split(20, 100, gap=1.0) > 0.8


def test_a_row_below_one_that_is_not_above_chance_has_no_rank() -> None:
    cohort = tuple((f"s{i}", 10, 90) for i in range(8))
    spread = {
        "unsure": np.linspace(-0.4, 0.19, 8),
        "sure": np.linspace(-0.01, 0.01, 8),
        "lower": np.linspace(-0.01, 0.01, 8),
    }
    means = {"unsure": 0.7, "sure": 0.8, "lower": 0.4}
    made = {
        name: MethodSamples(cohort, {"auprc": np.array([mean])}, {"auprc": mean + spread[name][None]}, {"auprc": 8})
        for name, mean in means.items()
    }
    assert made["unsure"].estimate("auprc").low < 0.1 < made["lower"].estimate("auprc").low
    table = compare(made, "auprc")
    assert table.ranks == {"sure": 1, "unsure": None, "lower": None}
    assert set(table.reasons) == {"unsure", "lower"}
    assert compare(made, "auprc", above_chance=False).ranks == {"sure": 1, "unsure": 1, "lower": 3}


def test_what_bins_leave_open_is_no_difference() -> None:
    """Two methods a hair apart: told apart where the values are exact, not where their brackets overlap."""
    rng = np.random.default_rng(3)
    who = tuple((f"t{i:02d}", 30, 300) for i in range(16))
    better = 1e-4 + rng.normal(0, 1e-6, (1, 16))
    plain = {name: MethodSamples(who, {"auprc": np.array([value])}, {"auprc": left}, {"auprc": 16})
             for name, value, left in (("a", 0.6001, 0.6001 + (better - better.mean()) / 15), ("b", 0.6, np.full((1, 16), 0.6)))}  # fmt: skip
    exact = compare(plain, "auprc")
    blurred = compare({name: dataclasses.replace(own, brackets={"auprc": (own.value("auprc") - 2e-4, own.value("auprc") + 2e-4)})
                       for name, own in plain.items()}, "auprc")  # fmt: skip
    assert (exact.ranks, blurred.ranks) == ({"a": 1, "b": 2}, {"a": 1, "b": 1})
    assert blurred.differences[0].p_rank == 1


def test_a_p_that_accounts_for_the_choice_is_never_below_that_of_the_pair() -> None:
    rng = np.random.default_rng(5)
    who = tuple((f"t{i:02d}", 30, 300) for i in range(13))
    for _ in range(8):
        rows = {f"m{k}": 0.4 + 0.05 * k + rng.normal(0, 0.08, 13) for k in range(3)}
        made = {
            name: MethodSamples(
                who, {"auprc": np.array([v.mean()])}, {"auprc": ((v.sum() - v) / 12)[None]}, {"auprc": 13}
            )
            for name, v in rows.items()
        }
        assert all(one.p_rank >= one.p for one in compare(made, "auprc", above_chance=False).differences)
