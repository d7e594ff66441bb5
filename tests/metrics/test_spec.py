"""The table of metric facts: complete, consistent with the numbers, the only place with headings and directions."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adbench
from adbench.config import registry
from adbench.metrics import evaluate
from adbench.metrics.base import Metric, spec_of
from adbench.metrics.compare import MethodSamples, compare
from adbench.metrics.spec import SPECS, MetricSpec
from adbench.results.record import MetricPart, Record, asked, facts

PACKAGE = Path(adbench.__file__).parent


def test_every_name_is_there_once():
    headline = [name for name, one in SPECS.items() if one.group == "headline"]
    assert headline == list(SPECS)[: len(headline)]
    assert [name for name, one in SPECS.items() if one.group == "optional"] == list(registry.BUILTIN["metrics"])
    assert all(name == one.name for name, one in SPECS.items())
    assert len({one.heading for one in SPECS.values()}) == len(SPECS)


def test_built_in_classes_are_called_what_the_table_calls_them():
    for name in registry.BUILTIN["metrics"]:
        assert registry.load("metrics", name).name == name
        assert registry.load("metrics", name).oracle == SPECS[name].oracle


def test_direction_of_errors_and_alarms():
    less = {name for name, one in SPECS.items() if one.less_is_better}
    assert {"fa_slice", "recon_l1", "alarms@fpr1", "alarms@fpr5"} <= less
    assert not less & {"auprc", "auroc", "dice@val", "lesion_f1@val", "froc", "image_auroc", "recon_ssim"}


def random_split(seed, count=12):
    from adbench.metrics.histogram import SubjectHistograms

    rng = np.random.default_rng(seed)
    found = SubjectHistograms()
    for number in range(count):
        lesion = rng.random(300) < (0.1 if number % 3 else 0)
        found.update(f"{seed}-{number}", (rng.normal(size=300) + lesion).astype(np.float32), lesion)
    return found


def test_values_lie_in_the_stated_range_and_at_the_stated_chance():
    result = evaluate.evaluate(random_split(0), random_split(1, 60))  # 20 healthy: every rule has a threshold
    for name, number in result.metrics.items():
        assert SPECS[name].low <= number.value <= SPECS[name].high, name
        assert number.oracle == SPECS[name].oracle
    from adbench.metrics.histogram import SubjectHistograms

    flat = SubjectHistograms()
    for subject, histogram in random_split(0).items():
        lesion = np.repeat([True, False], [histogram.n_positive, histogram.n_negative])
        flat.update(subject, np.ones(len(lesion), np.float32), lesion)
    constant = evaluate.evaluate(flat, intervals=False)
    assert SPECS["auprc"].chance == "prevalence"
    assert constant.metrics["auprc"].value == pytest.approx(constant.prevalence)
    assert constant.metrics["auroc"].value == SPECS["auroc"].chance


class Shrunk(Metric):
    """How much is missing."""

    name = "shrunk"
    heading = "Shrinkage"
    less_is_better = True
    unit = "ml"

    def measure(self, subject):
        return None


def test_a_class_states_its_own_facts():
    found = spec_of(Shrunk)
    assert (found.name, found.heading, found.definition) == ("shrunk", "Shrinkage", "How much is missing.")
    assert (found.less_is_better, found.direction, found.column) == (True, "less is better", "Shrinkage (ml) ↓")
    assert (found.group, found.high) == ("optional", None)
    plain = type("Plain", (Shrunk,), {"heading": "", "less_is_better": False, "unit": "", "oracle": True})
    assert spec_of(plain, "by_this_name").column == "by_this_name (oracle)"


def test_an_unknown_name_stands_for_itself():
    found = registry.metric_spec("of_another_machine")
    assert (found.heading, found.less_is_better, found.group) == ("of_another_machine", False, "optional")


def test_a_record_says_what_is_not_installed_but_never_changes_a_built_in_metric():
    part = MetricPart(source="0", heading="Theirs", definition="one", less_is_better=True, oracle=False, unit="mm")
    record = Record.model_construct(optional={"of_another_machine": part, "auprc": part})
    assert facts("of_another_machine", record).column == "Theirs (mm) ↓"
    assert facts("auprc", record) is SPECS["auprc"]
    assert asked(Record.model_construct(optional={}), record, record) == ("of_another_machine", "auprc")


def test_less_of_what_is_better_with_less_ranks_first():
    rng = np.random.default_rng(0)
    cohort = tuple((f"s{i}", 10, 90) for i in range(20))
    for metric in ("alarms@fpr1", "fa_slice", "auprc"):
        made = {
            name: MethodSamples(
                cohort, {metric: np.array([mean])}, {metric: rng.normal(mean, 0.01, (1, 20))}, {metric: 20}
            )
            for name, mean in (("low", 0.3), ("high", 0.6))
        }
        ranks = compare(made, metric).ranks
        assert min(ranks, key=ranks.get) == ("high" if metric == "auprc" else "low")


def test_nothing_heavy_is_imported_to_list_metrics():
    code = (
        "import sys; from adbench.cli.describe import listing; rows = listing('metrics')\n"
        "print(len(rows), *[name for name in ('torch', 'numpy', 'scipy', 'monai', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == []
    assert int(done.stdout.split()[0]) >= len(SPECS)


def test_headings_stand_in_one_place():
    """No other module of the package holds a heading of a metric as a text of its own."""
    headings = {one.heading for one in SPECS.values() if " " in one.heading or one.heading.startswith("Dice")}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "spec.py" and path.parent.name == "metrics":
            continue
        texts = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
        assert not headings & texts, path


def test_a_spec_cannot_be_changed():
    with pytest.raises(AttributeError):
        SPECS["auprc"].less_is_better = True
    assert MetricSpec("x", "X", "", "pooled").direction == "more is better"
