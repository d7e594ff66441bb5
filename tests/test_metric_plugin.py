"""Metrics of a stranger's package: listed with their direction, measured when asked for, in the row of the run."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adbench import api
from adbench.config import registry, source
from adbench.leaderboard.build import make
from adbench.leaderboard.ranking import boards, read_all
from adbench.metrics.columns import REPORT_METRICS
from adbench.report.render import _columns as report_columns
from adbench.results import record as records
from adbench.results.rundir import records as every

Cli = Callable[..., tuple[int, str, str]]
MODULE = '''
import numpy as np

from adbench.metrics.base import Metric


class Missed(Metric):
    """Share of lesion voxels below the val threshold."""

    name = "missed"
    heading = "Missed lesion"
    less_is_better = True

    def measure(self, subject):
        if "val" not in subject.thresholds or not subject.histogram.n_positive:
            return None
        found, _ = subject.histogram.positives_at(subject.thresholds["val"])
        return subject.histogram.n_positive - found, subject.histogram.n_positive


class Spread(Metric):
    """Mean of a map inside the brain."""

    name = "spread"
    unit = "a.u."
    needs_maps = True

    def measure(self, subject):
        return float(subject.volume.maps[subject.volume.brain].mean()), 1.0
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two metrics in a distribution of their own on the path; gives its module."""
    site = tmp_path / "site"
    (site / "their_metrics-0.3.dist-info").mkdir(parents=True)
    (site / "their_metrics-0.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: their-metrics\nVersion: 0.3\n"
    )
    (site / "their_metrics-0.3.dist-info" / "entry_points.txt").write_text(
        "[adbench.metrics]\nmissed = their_metrics:Missed\nspread = their_metrics:Spread\n"
    )
    (site / "their_metrics.py").write_text(MODULE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "their_metrics", raising=False)
    for cached in (registry.entries, source.source_digest):
        cached.cache_clear()
    yield site / "their_metrics.py"
    for cached in (registry.entries, source.source_digest):
        cached.cache_clear()


@pytest.fixture
def run(cli: Cli, slices: Path, tmp_path: Path) -> Callable[..., list[dict]]:
    """``run("--metrics", "missed")``: the rows of the only table, as JSON."""

    def call(*arguments: object, out: str = "runs") -> list[dict]:
        code, text, err = cli(
            "run", "--method", "histeq,constant", "--dataset", "folder", "--data-root", slices, "--device", "cpu",
            "--out", tmp_path / out, "--json", *arguments,
        )  # fmt: skip
        assert code == 0, err
        (board,) = json.loads(text)["boards"]
        return board["rows"]

    return call


def test_listed_and_described_with_direction_and_origin(plugin: Path, cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "metrics", "--json")[1])}
    row = rows["missed"]
    assert (row["origin"], row["heading"], row["problem"]) == ("their-metrics 0.3", "Missed lesion", "")
    assert (row["less_is_better"], row["oracle"], row["group"]) == (True, False, "optional")
    assert row["summary"] == "Share of lesion voxels below the val threshold."
    assert (rows["spread"]["less_is_better"], rows["spread"]["unit"]) == (False, "a.u.")
    assert rows["auprc"]["origin"] == "built-in"
    shown = cli("list", "metrics")[1]
    assert "Missed lesion" in shown
    assert "their-metrics 0.3" in shown
    assert "direction: less is better" in cli("describe", "missed")[1]


def test_asking_for_a_metric_makes_no_other_row(plugin: Path, run: Callable[..., list[dict]], tmp_path: Path) -> None:
    first = run()
    with_both = run("--metrics", "missed,spread")
    assert len(first) == len(with_both) == 2
    assert [row["run_key"] for row in first] == [row["run_key"] for row in with_both]
    for before, row in zip(first, with_both, strict=True):
        assert {name: row["metrics"][name] for name in before["metrics"]} == before["metrics"]
        assert row["metrics"]["missed"]["value"] is not None
        assert row["metrics"]["spread"]["n"] == 6
    assert run() == with_both, "what was measured once stays in the row"
    forced = run("--force", "--save-maps")
    assert [row["metrics"] for row in forced] == [row["metrics"] for row in with_both]
    for path in (tmp_path / "runs").rglob("record.json"):
        assert set(records.read_record(path).optional) == {"missed", "spread"}


def test_a_metric_keeps_those_asked_for_earlier_and_follows_its_source(
    plugin: Path, run: Callable[..., list[dict]], tmp_path: Path
) -> None:
    run("--metrics", "missed")
    row = run("--metrics", "spread")[0]
    assert row["metrics"]["missed"]["value"] is not None
    assert row["metrics"]["spread"]["value"] is not None
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    run("--metrics", "spread")
    assert {path: path.stat().st_mtime_ns for path in stored} == stored, "all is there: nothing runs"
    plugin.write_text(MODULE + "# another version\n")
    source.source_digest.cache_clear()
    run()
    assert {path: path.stat().st_mtime_ns for path in stored} == stored, "it was not asked for"
    run("--metrics", "missed")
    assert all(path.stat().st_mtime_ns > time for path, time in stored.items())


def test_a_metric_that_fails_takes_nothing_away(
    plugin: Path, run: Callable[..., list[dict]], cli: Cli, slices: Path, tmp_path: Path
) -> None:
    before = run("--metrics", "spread")
    plugin.write_text(MODULE.replace("return subject.histogram.n_positive - found", "return 1 / 0"))
    sys.modules.pop("their_metrics")
    for cached in (registry.entries, source.source_digest):
        cached.cache_clear()
    with pytest.raises(ZeroDivisionError):
        cli(
            "run", "--method", "histeq", "--dataset", "folder", "--data-root", slices, "--device", "cpu",
            "--out", tmp_path / "runs", "--metrics", "missed", "--quiet",
        )  # fmt: skip
    plugin.write_text(MODULE)
    sys.modules.pop("their_metrics")
    for cached in (registry.entries, source.source_digest):
        cached.cache_clear()
    assert run() == before


def test_the_run_table_shows_it_with_its_direction(
    plugin: Path, run: Callable[..., list[dict]], cli: Cli, tmp_path: Path
) -> None:
    rows = run("--metrics", "missed,spread")
    code, shown, _ = cli("leaderboard", "show", "--out", tmp_path / "runs")
    assert code == 0
    assert {"Missed", "lesion", "↓", "spread", "(a.u.)"} <= set(shown.split())  # headings may be wrapped
    assert "↓: less is better" in shown
    assert f"{rows[0]['metrics']['missed']['value']:.3f}" in shown
    for metric, sign in (("missed", 1), ("spread", -1), ("auprc", -1)):
        (board,) = json.loads(cli("leaderboard", "show", tmp_path / "runs", "--sort", metric, "--json")[1])["boards"]
        values = [sign * row["metrics"][metric]["value"] for row in board["rows"]]
        assert values == sorted(values)
        assert len(set(values)) == 2
    assert "Did you mean 'missed'" in cli("leaderboard", "show", tmp_path / "runs", "--sort", "mised")[2]
    assert {c["name"]: c["less_is_better"] for c in board["columns"]}["missed"] is True


def test_rows_of_one_run_in_two_folders_are_one(
    plugin: Path, run: Callable[..., list[dict]], cli: Cli, tmp_path: Path
) -> None:
    run("--metrics", "missed", out="all/a")
    run("--metrics", "spread", out="all/b")
    (board,) = json.loads(cli("leaderboard", "show", tmp_path / "all", "--json")[1])["boards"]
    assert [len(board["rows"]), len({row["run_key"] for row in board["rows"]})] == [2, 2]
    for row in board["rows"]:
        assert row["metrics"]["missed"]["value"] is not None
        assert row["metrics"]["spread"]["value"] is not None


def test_the_board_shows_it_where_the_package_is_not_installed(
    plugin: Path, run: Callable[..., list[dict]], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "leaderboards"
    run(out="plain")
    run("--metrics", "missed,spread")
    for folder in ("plain", "runs"):  # the second knows more about the same runs
        code, _, err = cli("leaderboard", "merge", tmp_path / folder, "--into", root)
        assert code == 0, err
    assert len(list(root.rglob("*.json"))) - len(list(root.rglob("table.json"))) == 2
    code, _, err = cli("leaderboard", "merge", tmp_path / "plain", "--into", root)
    assert code == 0, err

    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    registry.entries.cache_clear()
    (board,) = boards(read_all(root))
    assert board.metrics[-2:] == ["missed", "spread"]
    facts = board.facts("missed")
    assert (facts.heading, facts.less_is_better, facts.definition) == (
        "Missed lesion", True, "Share of lesion voxels below the val threshold.",
    )  # fmt: skip
    values = {entry.record.method.name: entry.estimates["missed"].value for entry in board.entries}
    stored = {r.method.name: r.metrics["missed"].value for _, r in every(tmp_path / "runs")}
    assert values == stored
    for metric in ("missed", "spread"):
        shown = json.loads(cli("leaderboard", "show", root, "--sort", metric, "--json")[1])["boards"][0]["entries"]
        own = [entry["metrics"][metric]["value"] for entry in shown]
        assert own == sorted(own, reverse=metric == "spread")
    made = make(root)
    assert "Missed lesion ↓" in made["folder/index.md"]
    assert "Missed lesion $\\downarrow$" in made["folder/table.tex"]
    assert "Share of lesion voxels below the val threshold.; less is better" in made["index.html"]
    rows = list(csv.DictReader(io.StringIO(made["folder/table.csv"])))
    assert {row["method"]: float(row["missed"]) for row in rows} == pytest.approx(values, rel=1e-5)
    columns = json.loads(made["folder/table.json"])["boards"][0]["columns"]
    assert [c["less_is_better"] for c in columns if c["name"] in ("missed", "spread")] == [True, False]


def test_seeds_of_which_one_has_it(plugin: Path, run: Callable[..., list[dict]], cli: Cli, tmp_path: Path) -> None:
    run("--seed", "0,1")
    run("--metrics", "spread", "--seed", "0", out="seed0")
    shutil.copytree(tmp_path / "seed0", tmp_path / "both/a")
    root = tmp_path / "leaderboards"
    for folder in ("runs", "seed0"):
        assert cli("leaderboard", "merge", tmp_path / folder, "--into", root)[0] == 0
    (board,) = boards(read_all(root))
    assert {entry.estimates["spread"].reason for entry in board.entries} == {"measured for 1 of 2 seeds"}
    run("--metrics", "spread", "--seed", "1", out="seed1")
    assert cli("leaderboard", "merge", tmp_path / "seed1", "--into", root)[0] == 0
    (board,) = boards(read_all(root))
    for entry in board.entries:
        own = [record.metrics["spread"].value for record in entry.records]
        number = entry.estimates["spread"]
        assert number.value == pytest.approx(np.mean(own))
        assert number.low <= number.value <= number.high


def test_eval_and_the_api_give_what_the_run_was_asked_for(
    plugin: Path, run: Callable[..., list[dict]], cli: Cli, tmp_path: Path
) -> None:
    row = run("--metrics", "missed,spread")[0]
    folder = next(p.parent for p, r in every(tmp_path / "runs") if r.method.name == row["method"])
    code, out, err = cli("eval", folder, "--metrics", "spread", "--json")
    assert code == 0, err  # its sums are stored: no maps are needed
    again = json.loads(out)["evaluation"]["metrics"]
    assert again == row["metrics"]
    evaluation = api.Run(folder).evaluation()
    assert {name: number.value for name, number in evaluation.metrics.items()} == {
        name: number["value"] for name, number in row["metrics"].items()
    }
    plugin.write_text(MODULE + "# another version\n")
    source.source_digest.cache_clear()
    assert "spread" not in json.loads(cli("eval", folder, "--json")[1])["evaluation"]["metrics"]
    assert "--save-maps" in cli("eval", folder, "--metrics", "spread")[2]


def test_the_report_has_a_column_for_it(plugin: Path, run: Callable[..., list[dict]], tmp_path: Path) -> None:
    run("--metrics", "missed")
    parts = [SimpleNamespace(run=SimpleNamespace(record=stored)) for _, stored in every(tmp_path / "runs")]
    columns = report_columns(SimpleNamespace(parts=parts))
    assert [facts.name for facts in columns] == [*REPORT_METRICS, "missed"]
    assert columns[-1].column == "Missed lesion ↓"
