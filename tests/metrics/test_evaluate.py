"""Every histogram metric against its definition computed from raw voxels, and what is said when one is undefined."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.evaluate import choose_thresholds, evaluate, healthy_failures, sample
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spec import HISTOGRAM_METRICS


def split(seed, subjects, healthy=0, shift=1.5, prefix="t"):
    """{subject: (float16 scores, labels)} with ties."""
    rng = np.random.default_rng(seed)
    data = {}
    for i in range(subjects):
        size = int(rng.integers(200, 400))
        labels = (rng.random(size) < rng.uniform(0.02, 0.2)) & (i >= healthy)
        labels[0] = i >= healthy
        data[f"{prefix}{i}"] = (np.round(rng.standard_normal(size) + shift * labels, 1).astype(np.float16), labels)
    return data


def histograms(data):
    result = SubjectHistograms()
    for subject, (scores, labels) in data.items():
        result.update(subject, scores, labels)
    return result


def dice(predicted, labels):
    return 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())


def definitions(test, val):
    """The table of the documentation, literally, from raw voxels."""
    pooled = [np.concatenate(part) for part in zip(*test.values(), strict=True)]
    bearing = {s: v for s, v in test.items() if v[1].any()}
    every = sorted({float(x) for scores, _ in test.values() for x in scores}, reverse=True)
    of_val = [np.concatenate(part) for part in zip(*val.values(), strict=True)]
    val_thresholds = sorted({float(x) for x in of_val[0]}, reverse=True)
    healthy = np.concatenate([scores for scores, labels in val.values() if not labels.any()])
    thresholds = {
        "val": max(val_thresholds, key=lambda t: dice(of_val[0] >= t, of_val[1])),
        "fpr1": min(t for t in val_thresholds if t in healthy and (healthy >= t).mean() <= 0.01),
        "fpr5": min(t for t in val_thresholds if t in healthy and (healthy >= t).mean() <= 0.05),
    }

    scores = [min(t for t in s if (s >= t).mean() <= 0.01) for s, labels in val.values() if not labels.any()]
    thresholds["conformal10"] = float(sorted(scores)[math.ceil((len(scores) + 1) * 0.9) - 1])

    def mean_at(t):
        return np.mean([dice(s >= t, y) for s, y in bearing.values()])

    return thresholds, {
        "auprc": sk.average_precision_score(pooled[1], pooled[0]),
        "auroc": sk.roc_auc_score(pooled[1], pooled[0]),
        "auprc_subject": np.mean([sk.average_precision_score(y, s) for s, y in bearing.values()]),
        "dice@val": mean_at(thresholds["val"]),
        "dice@fpr1": mean_at(thresholds["fpr1"]),
        "dice@fpr5": mean_at(thresholds["fpr5"]),
        "dice@conformal10": mean_at(thresholds["conformal10"]),
        "fpr_healthy@conformal10": np.mean(
            [(s >= thresholds["conformal10"]).mean() > 0.01 for s, y in test.values() if not y.any()]
        ),
        "dice@best": max(mean_at(t) for t in every),
        "dice_pooled@best": max(dice(pooled[0] >= t, pooled[1]) for t in every),
        "dice@subject_best": np.mean([max(dice(s >= t, y) for t in every) for s, y in bearing.values()]),
    }


@pytest.mark.parametrize("seed", range(4))
def test_values_equal_their_definitions(seed):
    test, val = split(seed, 10, healthy=3), split(seed + 50, 14, healthy=10, prefix="v")
    result = evaluate(histograms(test), histograms(val))
    thresholds, expected = definitions(test, val)
    assert {rule: result.thresholds[rule] for rule in thresholds} == thresholds
    assert tuple(result.metrics) == HISTOGRAM_METRICS
    for name, value in expected.items():
        assert result.metrics[name].value == pytest.approx(value, abs=1e-9), name
        assert (result.metrics[name].n, result.metrics[name].n_all) == (3 if name.startswith("fpr_healthy") else 7, 10)
        assert result.metrics[name].oracle == ("best" in name)
        if name.startswith("fpr_healthy"):
            assert result.metrics[name].reason == "3 subjects: an interval needs 6"
        else:
            assert result.metrics[name].low <= value + 1e-9
            assert value - 1e-9 <= result.metrics[name].high
    assert result.brackets == {}
    assert result.notes == [
        "3 of 10 test subjects bear no lesion and are not in the per-volume means.",
        "No conformal05 threshold: alpha = 0.05 needs 19 lesion-free validation subjects, and there are 10.",
    ]
    json.dumps(result.as_dict(), allow_nan=False)


def test_rows_hold_each_subject():
    test, val = split(3, 4, healthy=1), split(53, 6, healthy=2, prefix="v")
    result = evaluate(histograms(test), histograms(val), intervals=False)
    free, row = result.subjects[0], result.subjects[1]
    scores, labels = test["t1"]
    assert (row["subject"], row["brain_voxels"], row["lesion_voxels"]) == ("t1", len(scores), labels.sum())
    assert row["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert row["dice@best"] == pytest.approx(dice(scores >= result.thresholds["best"], labels), abs=1e-12)
    assert (free["lesion_voxels"], free["auprc"], free["dice@val"]) == (0, None, None)
    assert result.prevalence == pytest.approx(
        sum(y.sum() for _, y in test.values()) / sum(len(y) for _, y in test.values())
    )
    assert result.metrics["auprc"].reason == "no interval was asked for"


def test_dice_equals_monai():
    from monai.metrics import DiceMetric

    test, val = split(7, 4), split(8, 3, healthy=1, prefix="v")
    result = evaluate(histograms(test), histograms(val), intervals=False)
    metric = DiceMetric(include_background=True, reduction="mean")
    for scores, labels in test.values():
        predicted = scores >= result.thresholds["val"]
        metric(
            torch.from_numpy(predicted).reshape(1, 1, 1, -1).float(),
            torch.from_numpy(labels).reshape(1, 1, 1, -1).float(),
        )
    assert result.metrics["dice@val"].value == pytest.approx(float(metric.aggregate()), abs=1e-6)


def test_replicates_equal_evaluating_the_drawn_subjects():
    data = split(5, 5, healthy=1)
    test, val = histograms(data), histograms(split(55, 6, healthy=2, prefix="v"))
    result = evaluate(test, val, intervals=False)
    draws = np.array([[1, 1, 1, 1, 1], [0, 3, 1, 1, 0], [4, 1, 0, 0, 0], [5, 0, 0, 0, 0]], float)
    values = sample(test, result.subjects, draws)
    for row, draw in enumerate(draws):
        drawn = {f"{s}#{k}": v for (s, v), times in zip(data.items(), draw, strict=True) for k in range(int(times))}
        expected = evaluate(histograms(drawn), val, intervals=False)
        for name in HISTOGRAM_METRICS:
            if expected.metrics[name].value is None:
                assert np.isnan(values[name][row]), name
            else:
                assert values[name][row] == pytest.approx(expected.metrics[name].value, abs=1e-9), name
    assert np.isnan(values["auprc"][3])


def test_blocks_of_bins_do_not_change_replicates(monkeypatch):
    test = histograms(split(5, 5, healthy=1))
    draws = bootstrap.weights(5, 20, 0)
    whole = bootstrap.pooled(test, draws)
    original, sizes = bootstrap.blocks, []

    def small(h):
        for block in original(h, 3):
            sizes.append(len(block[2]))
            yield block

    monkeypatch.setattr(bootstrap, "blocks", small)
    for name, values in bootstrap.pooled(test, draws).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12)
    assert len(sizes) > 10
    assert max(sizes) == 3


def test_bins_without_lesions_taken_together_do_not_change_replicates():
    """Rare lesions, as in a brain: most bins hold background only, and runs of them are taken as one."""
    rng = np.random.default_rng(4)
    labels = rng.random((6, 4000)) < 0.002
    data = {f"t{i}": (rng.normal(0.5 * one, 1).astype(np.float16), one) for i, one in enumerate(labels)}
    test = histograms(data)
    draws = bootstrap.weights(6, 50, 0)
    together = bootstrap.pooled(test, draws)
    bins = sum(len(joined) for _, _, joined in bootstrap.blocks(test))
    assert bins <= 2 * labels.sum() + 1 < len(test.pooled().counts()[0]) / 4
    for row, draw in enumerate(draws[:10].astype(int)):
        drawn = {f"{name}-{k}": data[name] for name, times in zip(data, draw, strict=True) for k in range(times)}
        expected = evaluate(histograms(drawn), intervals=False)
        for name in ("auprc", "auroc", "dice_pooled@best", "dice@best"):
            assert together[name][row] == pytest.approx(expected.metrics[name].value, rel=1e-12), name


def test_the_same_and_in_other_order_the_same_bits():
    data, val = split(1, 7), histograms(split(2, 4, healthy=1, prefix="v"))
    forward = evaluate(histograms(data), val)
    backward = evaluate(histograms(dict(reversed(data.items()))), val)
    assert forward == backward
    assert forward.metrics["auprc"].low is not None


def test_float32_scores_are_counted_one_by_one_and_a_chosen_threshold_reproduces_on_them():
    rng = np.random.default_rng(0)
    raw = {f"t{i}": (rng.standard_normal(500).astype(np.float32), rng.random(500) < 0.1) for i in range(3)}
    val = {f"v{i}": (rng.standard_normal(500).astype(np.float32), rng.random(500) < 0.1) for i in range(3)}
    result = evaluate(histograms(raw), histograms(val), intervals=False)
    expected = np.mean([dice(s >= np.float32(result.thresholds["val"]), y) for s, y in raw.values()])
    assert result.metrics["dice@val"].value == pytest.approx(expected, abs=1e-12)
    pooled = [np.concatenate(part) for part in zip(*raw.values(), strict=True)]
    truth = sk.average_precision_score(pooled[1], pooled[0])
    assert result.metrics["auprc"].value == pytest.approx(truth, abs=1e-12)
    assert result.brackets == {}
    assert not any("counted together" in note for note in result.notes)


def test_no_lesion_anywhere_says_what_is_undefined():
    result = evaluate(histograms(split(0, 3, healthy=3)), histograms(split(1, 3, healthy=1, prefix="v")))
    names = [name for name in HISTOGRAM_METRICS if not name.startswith("fpr_healthy")]
    for name in names:
        assert result.metrics[name].value is None
        assert result.metrics[name].reason == "no lesion voxel in the whole test split"
    assert result.notes[0] == (
        f"Undefined, because there is no lesion voxel in the whole test split: {', '.join(names)}."
    )
    assert result.prevalence == 0


def test_missing_rules_say_why():
    test = histograms(split(0, 3))
    alone = evaluate(test, None)
    assert alone.metrics["dice@val"].reason == "no validation split was given"
    assert alone.metrics["dice@val"].value is None
    assert alone.metrics["dice@best"].value is not None
    assert alone.notes == [
        "No val or fpr1 or fpr5 or conformal05 or conformal10 threshold: no validation split was given."
    ]
    healthy = evaluate(test, histograms(split(1, 2, healthy=2, prefix="v")))
    assert "validation split has no lesion, so no threshold maximises its Dice" in healthy.metrics["dice@val"].reason
    assert healthy.metrics["dice@fpr1"].value is not None
    sick = evaluate(test, histograms(split(1, 2, prefix="v")))
    assert "no lesion-free subject to set a false-positive rate on" in sick.metrics["dice@fpr5"].reason
    assert choose_thresholds(None)[0] == {}


def test_one_subject_has_no_interval():
    only = evaluate(histograms(split(0, 1))).metrics["auprc"]
    assert only.value is not None
    assert (only.low, only.high, only.reason) == (None, None, "1 subject with lesions: an interval needs 6")


def test_all_lesion_has_no_roc():
    test = histograms({"a": (np.float16([1, 2]), np.array([1, 1])), "b": (np.float16([1, 3]), np.array([1, 1]))})
    result = evaluate(test)
    assert result.metrics["auroc"].reason == "no background voxel in the whole test split"
    assert result.metrics["auprc"].value == 1


def test_bad_splits_are_refused():
    test = histograms(split(0, 3))
    with pytest.raises(UserError, match=r"1 subject\(s\) are in the validation and in the test split: t0"):
        evaluate(test, histograms(split(1, 1)))
    with pytest.raises(UserError, match="The test split has no subject"):
        evaluate(SubjectHistograms())
    test.update("hollow", [], [])
    with pytest.raises(
        UserError, match=r"Subject 'hollow' of the test split has no brain voxel: its brain mask is empty"
    ):
        evaluate(test)


def test_conformal_thresholds_fail_on_no_more_healthy_subjects_than_they_say():
    """Exchangeable subjects of very different noise: the share with more than 1 % false positives is at most alpha."""
    rng = np.random.default_rng(0)
    failed = {"conformal05": 0, "conformal10": 0}
    studies, fresh = 60, 20
    for _ in range(studies):
        subjects = [rng.lognormal(0, 0.7) * rng.standard_normal(400) + rng.normal(0, 0.5) for _ in range(24 + fresh)]
        val = SubjectHistograms()
        for i, scores in enumerate(subjects[:24]):
            val.update(f"v{i}", scores.astype(np.float16), np.zeros(400, bool))
        thresholds = choose_thresholds(val)[0]
        for rule in failed:
            rates = [(s.astype(np.float16) >= np.float16(thresholds[rule])).mean() for s in subjects[24:]]
            failed[rule] += sum(rate > 0.01 for rate in rates)
    for rule, alpha in (("conformal05", 0.05), ("conformal10", 0.10)):
        share = failed[rule] / (studies * fresh)
        exact = 1 - math.ceil(25 * (1 - alpha)) / 25  # without ties: one minus the rank of the threshold
        spread = math.sqrt(exact * (1 - exact) / studies)  # subjects of one study share its threshold
        assert share <= alpha + 2 * spread, rule
        assert share >= exact - 3 * spread, "and it is not silent"


def test_a_healthy_subject_is_judged_once_however_many_volumes_it_has():
    rng = np.random.default_rng(1)
    val, test = SubjectHistograms(), SubjectHistograms()
    for i in range(19):
        val.update(f"v{i}", rng.random(400).astype(np.float16), np.zeros(400, bool))
    for name, top in {"a_1": 30, "a_2": 0, "b": 0, "c": 8, "d": 0}.items():
        scores = np.r_[np.full(top, 9), np.zeros(400 - top)].astype(np.float16)
        test.update(name, scores, np.arange(400) < 5 * (name == "d"))
    subject_of = {"a_1": "a", "a_2": "a", "b": "b", "c": "c", "d": "d"}
    result = evaluate(test, val, subject_of=subject_of)
    rates = {row.get("volume", row["subject"]): row["fpr@conformal05"] for row in result.subjects}
    assert rates == {"a_1": 30 / 800, "a_2": 30 / 800, "b": 0, "c": 8 / 400, "d": None}
    one = result.metrics["fpr_healthy@conformal05"]
    assert (one.value, one.n) == (pytest.approx(2 / 3), 3)
    above, below = healthy_failures(result.subjects, "conformal05")
    assert above.tolist() == [0.5, 0.5, 0, 1, 0]
    assert below.tolist() == [0.5, 0.5, 1, 1, 0]
    assert (one.low, one.high, one.reason) == (None, None, "3 subjects: an interval needs 6")
