"""Plots are written, say what they show, and refuse what cannot be drawn."""

import numpy as np
import pytest

from adbench.errors import UserError
from adbench.metrics import plots
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import SubjectHistograms


def histograms(prefix, lesion=0.1, subjects=4):
    rng = np.random.default_rng(len(prefix))
    result = SubjectHistograms()
    for i in range(subjects):
        labels = rng.random(400) < lesion
        result.update(f"{prefix}{i}", (rng.standard_normal(400) + labels).astype(np.float16), labels)
    return result


def test_pr_plot_is_written_and_repeats(tmp_path):
    test = histograms("t")
    result = evaluate(test, histograms("va"), replicates=20)
    plots.pr_plot(test, result, tmp_path / "deep" / "pr.png")
    first = (tmp_path / "deep" / "pr.png").read_bytes()
    assert first[:4] == b"\x89PNG"
    plots.pr_plot(test, result, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == first


def test_a_curve_needs_a_lesion_and_a_known_ending(tmp_path):
    test = histograms("t")
    result = evaluate(test, replicates=20)
    with pytest.raises(UserError, match=r"end its name in \.png, \.svg or \.pdf"):
        plots.pr_plot(test, result, tmp_path / "pr.jpeg")
    with pytest.raises(UserError, match="no lesion voxel in the whole test split"):
        plots.pr_plot(histograms("h", lesion=0), result, tmp_path / "pr.png")
    assert not list(tmp_path.iterdir())
