"""The page of definitions names every metric, and its plug-in example works as an installed entry point."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from adbench.config import registry
from adbench.errors import UserError
from adbench.metrics import evaluate as evaluation
from adbench.metrics.base import spec_of
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.presets import PRESETS
from adbench.metrics.spec import SPECS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_and_preset_is_defined_on_the_page():
    page = PAGE.replace("`froc@1`, `@2`, `@4`, `@8`", "`froc@1`, `froc@2`, `froc@4`, `froc@8`")
    for name in (*SPECS, *PRESETS):
        assert re.search(rf"^\| .*`{re.escape(name)}`", page, re.MULTILINE), name


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The page's class as a module on the path and an entry point of the group ``adbench.metrics``."""
    (block,) = re.findall(r"```python\n(import math\n\nfrom adbench\.metrics\.base.*?)```", PAGE, re.DOTALL)
    (tmp_path / "their_metric.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    points = {
        "lesion_load_error": EntryPoint("lesion_load_error", "their_metric:LesionLoadError", "adbench.metrics"),
        "not_a_metric": EntryPoint("not_a_metric", "pathlib:Path", "adbench.metrics"),
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: points.values() if group == "adbench.metrics" else [])
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def test_a_metric_from_an_entry_point_appears_among_the_numbers(plugin):
    metric = registry.load("metrics", "lesion_load_error")()
    assert spec_of(metric).column == "Load error ↓"
    test, val = SubjectHistograms(), SubjectHistograms()
    scores = np.float16([3, 2, 2, 1, 0])
    val.update("v", scores, [1, 1, 0, 0, 0])
    test.update("a", scores, [1, 0, 0, 0, 0])
    test.update("b", scores, [1, 1, 1, 0, 0])
    test.update("c", scores, [0, 0, 0, 0, 0])
    result = evaluation.evaluate(test, val, metrics=[metric])
    assert result.thresholds["val"] == 2
    number = result.metrics["lesion_load_error"]
    assert number.value == pytest.approx((2 + 0) / 2)
    assert (number.n, number.oracle) == (2, False)
    assert (number.low, number.reason) == (None, "2 subjects with lesions: an interval needs 6")


def test_a_class_that_is_no_metric_is_refused(plugin):
    with pytest.raises(UserError, match=r"not a subclass of adbench\.metrics\.base\.Metric"):
        registry.load("metrics", "not_a_metric")
