"""Intervals by leaving out subjects: closed forms, what has none, odd inputs, and whether 95 % cover 95 %."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulation import studies

from adbench.errors import UserError
from adbench.metrics import jackknife
from adbench.metrics.evaluate import estimate, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spec import HISTOGRAM_METRICS

EVERYTHING = (-np.inf, np.inf)


def means_without(values: np.ndarray) -> np.ndarray:
    """(1, n) the mean without one value each, the slow way."""
    return np.array([[np.mean(np.delete(values, i)) for i in range(len(values))]])


@pytest.mark.parametrize("freedom", [0.6, 1, 2, 2.7, 5, 9.5, 39, 167, 5001])
def test_students_t_is_that_of_scipy(freedom: float) -> None:
    for p in (0.6, 0.9, 0.975, 0.995, 0.9999):
        assert jackknife.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)


def test_of_a_mean_it_is_students_interval() -> None:
    """Where kurtosis does not cut the degrees of freedom; the variance is n / (n - 1) times the usual one."""
    values = np.array([0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.2, 0.8, 0.5])
    n = len(values)
    low, high = jackknife.interval(np.array([values.mean()]), means_without(values), n, bounds=EVERYTHING)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n - 1)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-12)


def test_on_the_log_odds_scale_and_with_few_that_matter() -> None:
    values = np.array([0.1, 0.12, 0.11, 0.13, 0.1, 0.09, 0.12, 0.7])  # one subject carries the spread
    value, without, n = values.mean(), means_without(values), len(values)
    logit = np.log(value / (1 - value))
    u = logit - np.log(without[0] / (1 - without[0]))
    u -= u.mean()
    kurtosis = n * (u**4).sum() / (u**2).sum() ** 2
    freedom = 2 * n / (kurtosis - 1)
    assert freedom < 3.2 < n - 1
    half = stats.t.ppf(0.95, freedom) * np.sqrt((u**2).sum())
    expected = 1 / (1 + np.exp(-np.array([logit - half, logit + half])))
    assert jackknife.interval(np.array([value]), without, n, 0.9) == pytest.approx(tuple(expected), rel=1e-9)


def test_training_seeds_add_the_variance_of_their_mean() -> None:
    seeds = np.array([1.0, 2.0, 4.0])
    same = np.tile(seeds[:, None], 8)  # leaving out a subject changes nothing: only seeds differ
    low, high = jackknife.interval(seeds, same, 8, bounds=EVERYTHING)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, seeds.mean(), seeds.std(ddof=1) / np.sqrt(3)))


def test_what_seeds_do_to_single_subjects_is_counted_once() -> None:
    """A mean over subjects, scores of three seeds: subjects and seeds as in an analysis of variance of two ways."""
    rng = np.random.default_rng(4)
    scores = 0.3 * rng.standard_normal((1, 12)) + 0.2 * rng.standard_normal((3, 1)) + 0.1 * rng.standard_normal((3, 12))
    s, n = scores.shape
    without = np.stack([means_without(row)[0] for row in scores])
    seeds = scores.mean(axis=1)
    interaction = scores - seeds[:, None] - scores.mean(axis=0) + scores.mean()
    mean_square = (interaction**2).sum() / ((s - 1) * (n - 1))
    between = max(0.0, seeds.var(ddof=1) / s - mean_square / (s * (n - 1)))
    subjects = scores.mean(axis=0)
    assert between > 0
    u = (subjects - subjects.mean()) / (n - 1)
    freedom = min(n - 1, 2 * n / (n * (u**4).sum() / (u**2).sum() ** 2 - 1))
    half = np.sqrt(stats.t.ppf(0.975, freedom) ** 2 * (u**2).sum() + stats.t.ppf(0.975, s - 1) ** 2 * between)
    found = jackknife.interval(seeds, without, n, bounds=EVERYTHING)
    assert found == pytest.approx((scores.mean() - half, scores.mean() + half), rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_sum_of_two_parts_is_covered(share: float) -> None:
    """A part with two degrees of freedom beside one with thirty, whatever their shares (Howe 1974)."""
    rng = np.random.default_rng(8)
    held, times = 0, 4000
    for few, many, error in zip(
        rng.chisquare(2, times), rng.chisquare(30, times), rng.standard_normal(times), strict=True
    ):
        held += abs(error) <= jackknife.half_width([(share * few / 2, 2), ((1 - share) * many / 30, 30)], 0.95)
    assert 0.94 <= held / times <= 0.985


def test_at_an_end_of_the_range_it_is_that_of_clopper_and_pearson() -> None:
    for n in (6, 20):
        exact = stats.binomtest(n, n).proportion_ci(0.95, "exact")
        assert jackknife.interval(np.ones(1), np.ones((1, n)), n) == pytest.approx((exact.low, 1))
        assert jackknife.interval(np.zeros(1), np.zeros((1, n)), n) == pytest.approx((0, 1 - exact.low))
    assert jackknife.interval(np.zeros(1), np.zeros((1, 9)), 9, bounds=(0, np.inf)) == (0, 0)


def test_where_nobody_differs_the_ends_meet() -> None:
    assert jackknife.interval(np.array([0.5]), np.full((1, 9), 0.5), 9) == (0.5, 0.5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=6, max_size=20),
    st.sampled_from([(0.0, 1.0), (0.0, np.inf), (-1.0, 1.0), (-np.inf, 1.0), EVERYTHING]),
    st.floats(0.5, 0.99),
)
def test_it_holds_the_value_and_stays_in_the_range(
    values: list[float], bounds: tuple[float, float], level: float
) -> None:
    own = np.array(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = jackknife.interval(np.array([own.mean()]), means_without(own), len(own), level, bounds)
    assert bounds[0] <= low <= own.mean() <= high <= bounds[1]
    if level < 0.9:
        wider = jackknife.interval(np.array([own.mean()]), means_without(own), len(own), 0.99, bounds)
        assert wider[0] <= low + 1e-12
        assert high - 1e-12 <= wider[1]


def test_a_bracket_widens_the_interval_and_stays_in_the_range() -> None:
    values = np.array([0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.2])
    plain = estimate(values.mean(), means_without(values)[0], 8, 0.95)
    assert plain.low is not None
    assert plain.high is not None
    wide = estimate(
        values.mean(), means_without(values)[0], 8, 0.95, bracket=(values.mean() - 0.01, values.mean() + 0.02)
    )
    assert (wide.low, wide.high) == pytest.approx((plain.low - 0.01, plain.high + 0.02))
    narrow = (values.mean() - 4e-4, values.mean() + 5e-4)  # no more than the last digit of a table
    unmarked = estimate(values.mean(), means_without(values)[0], 8, 0.95, bracket=narrow)
    assert (unmarked.low, unmarked.high) == (plain.low, plain.high)
    whole = estimate(values.mean(), means_without(values)[0], 8, 0.95, bracket=(0.0, 1.0))
    assert (whole.low, whole.high) == (0, 1)


def test_level_must_be_a_probability() -> None:
    with pytest.raises(UserError, match="level = 95 is not valid"):
        jackknife.interval(np.array([0.5]), np.full((1, 9), 0.5), 9, 95)


# --------------------------------------------------------------------------------------------------------- few subjects


def cohort(bearing: int, free: int = 0, *, noise: float = 1.0, size: int = 120) -> SubjectHistograms:
    rng = np.random.default_rng(bearing)
    found = SubjectHistograms()
    for i in range(bearing + free):
        labels = (np.arange(size) < 12) & (i < bearing)
        found.update(f"t{i:02d}", (noise * rng.standard_normal(size) + labels).astype(np.float16), labels)
    return found


@pytest.mark.parametrize(("bearing", "free"), [(1, 0), (1, 19), (3, 0), (5, 2), (5, 40)])
def test_below_six_subjects_with_lesions_there_is_none(bearing: int, free: int) -> None:
    result = evaluate(cohort(bearing, free))
    for name in ("auprc", "auroc", "auprc_subject", "dice@best", "dice_pooled@best"):
        one = result.metrics[name]
        assert one.value is not None
        plural = "" if bearing == 1 else "s"
        assert (one.low, one.high) == (None, None)
        assert one.reason == f"{bearing} subject{plural} with lesions: an interval needs 6"
        assert (one.n, one.n_all) == (bearing, bearing + free)


def test_six_have_one() -> None:
    for one in (evaluate(cohort(6, 3)).metrics[name] for name in ("auprc", "auroc", "auprc_subject", "dice@best")):
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert (one.n, one.n_all, one.reason) == (6, 9, "")


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(cohort(8, noise=0.0), id="perfect"),
        pytest.param(cohort(1), id="one subject"),
        pytest.param(cohort(0, 9), id="no lesion"),
        pytest.param(cohort(8, 8), id="usual"),
    ],
)
def test_odd_inputs_give_no_warning(test: SubjectHistograms) -> None:
    constant, only = SubjectHistograms(), SubjectHistograms()
    for i in range(8):
        constant.update(f"t{i}", np.zeros(50, np.float16), np.arange(50) < 3 + i)
        only.update(f"t{i}", np.arange(5).astype(np.float16), np.ones(5, bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in (test, constant, only):
            metrics = evaluate(one, strata=True).metrics
            for name in HISTOGRAM_METRICS:
                assert metrics[name].value is not None or metrics[name].reason
                assert metrics[name].low is not None or metrics[name].reason
    perfect = evaluate(cohort(8, noise=0.0)).metrics["auprc"]
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.025 ** (1 / 8))
    assert evaluate(constant).metrics["auroc"].low == evaluate(constant).metrics["auroc"].high == 0.5


# ------------------------------------------------------------------------------------------------------------- coverage


def test_the_studies_use_the_numbers_of_evaluate() -> None:
    assert studies.fast_path_error(2) < 1e-9


@pytest.mark.parametrize("bearing", [10, 40])
def test_intervals_cover_what_they_say(bearing: int) -> None:
    """400 studies: two standard errors of a share of .95 are .022. The full table is that of benchmarks/statistics.py."""
    covered = studies.coverage(studies.COHORTS[0], bearing, 400)
    assert all(0.92 - 0.022 <= share <= 0.98 + 0.02 for share in covered.values()), covered
