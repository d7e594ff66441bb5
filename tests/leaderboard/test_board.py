"""Boards: means over seeds, intervals, ranks, and every file that is made of them."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_files import altered, place, rekey
from forger import Forged

from adbench import api
from adbench.errors import UserError
from adbench.leaderboard import export
from adbench.leaderboard import submission as files
from adbench.leaderboard.board import Board, run_boards
from adbench.leaderboard.build import Reported, build, make, page, read_reported, reproduced, stale
from adbench.leaderboard.ranking import Published, boards, linear, published, read_all
from adbench.leaderboard.submission import Submission
from adbench.metrics import bootstrap
from adbench.metrics.compare import Trained, compare, sample_method
from adbench.metrics.spatial import sample_spatial

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def found(built: Path) -> list[Board]:
    return boards(read_all(built))


def trained(run: api.Run) -> Trained:
    return Trained(run.histograms, run.val_histograms, run.spatial)


def test_numbers_are_those_of_the_runs(found: list[Board], runs: list[api.Run]) -> None:
    """The boards come from stored values; here the same from the runs, by the metrics package alone."""
    flair = next(board for board in found if board.test_set.modality == "FLAIR")
    samples = {}
    for entry in flair.entries:
        own = [
            r for r in runs if r.record.test.modality == "FLAIR" and r.record.method.name == entry.record.method.name
        ]
        assert [record.run_key for record in entry.records] == [r.record.run_key for r in own]
        samples[entry.key] = sample_method([trained(run) for run in own])
        expected = samples[entry.key].estimates()
        for metric in ("auprc", "dice@val", "lesion_recall@val", "fa_slice"):
            if metric not in expected:
                assert entry.estimates[metric].value is None
                continue
            mine = entry.estimates[metric]
            assert mine.value == pytest.approx(expected[metric].value, rel=1e-12)
            assert (mine.n, mine.n_all, mine.reason) == (expected[metric].n, 9, expected[metric].reason)
            if expected[metric].low is None:
                assert (mine.low, mine.high) == (None, None)
            else:
                assert (mine.low, mine.high) == pytest.approx((expected[metric].low, expected[metric].high), rel=1e-6)
    table = compare(samples, "auprc")
    assert {entry.key: entry.rank for entry in flair.entries} == table.ranks
    assert {entry.key: entry.reason for entry in flair.entries if entry.rank is None} == table.reasons
    assert [(d.a, d.b) for d in flair.differences] == [(d.a, d.b) for d in table.differences]
    assert [d.p_rank for d in flair.differences] == pytest.approx([d.p_rank for d in table.differences])


def test_one_seed_has_the_interval_of_its_record(found: list[Board]) -> None:
    t1 = next(board for board in found if board.test_set.modality == "T1")
    for entry in t1.entries:
        for metric, estimate in entry.estimates.items():
            number = entry.record.metrics[metric]
            assert (estimate.value, estimate.low, estimate.high) == (number.value, number.low, number.high)


def test_ratios_are_the_metrics_of_that_name(submission: Submission) -> None:
    weights = bootstrap.weights(submission.record.test.subjects, 50, 3)
    expected = sample_spatial(submission.spatial, weights)
    mine = linear(submission)
    for metric in ("lesion_recall@val", "fa_slice"):
        if expected[metric].samples is not None:
            np.testing.assert_allclose(bootstrap.ratio(*mine[metric], weights), expected[metric].samples)
    assert bootstrap.ratio(*mine["dice@val"], np.ones((1, len(weights[0]))))[0] == pytest.approx(
        submission.record.metrics["dice@val"].value
    )


def test_best_comes_first(found: list[Board]) -> None:
    for board in found:
        values = [entry.estimates["auprc"].value or 0 for entry in board.entries]
        assert board.entries[0].rank == 1
        assert values[0] == max(values)
        assert board.entries[0].to_best is None


def test_runs_and_published_results_stand_in_one_order(found: list[Board], runs: list[api.Run]) -> None:
    """One seed each on T1: the same rows, whether they come from runs or from submissions."""
    published = next(board for board in found if board.test_set.modality == "T1")
    (own,) = [board for board in run_boards(run.record for run in runs) if board.test_set.modality == "T1"]
    assert [entry.label for entry in own.entries] == [entry.label for entry in published.entries]
    for metric in ("auprc", "fa_slice"):
        for board in (own, published):
            board.sort(metric)
        assert [entry.label for entry in own.entries] == [entry.label for entry in published.entries]
        values = [entry.value(metric) for entry in own.entries]
        assert values == sorted(values, reverse=metric == "auprc")  # type: ignore[type-var]
    for board in (own, published):
        board.sort()


def test_seeds_of_runs_are_rows_of_their_own(runs: list[api.Run]) -> None:
    flair = next(board for board in run_boards(run.record for run in runs) if board.test_set.modality == "FLAIR")
    assert sorted(flair.seeds(entry) for entry in flair.entries) == ["0", "0", "0", "1", "1", "1"]
    assert {entry.label for entry in flair.entries} == {"histeq [tiny]", "zscore [tiny]", "constant [tiny]"}
    assert {entry.rank for entry in flair.entries} == {None}


def test_to_frame_has_the_columns_of_the_csv(found: list[Board], built: Path) -> None:
    header = (built / "folder" / "table.csv").read_text().splitlines()[0].split(",")
    for board in found:
        frame = board.to_frame()
        assert set(frame.columns) <= set(header)
        assert [column for column in header if column in frame.columns] == list(frame.columns)
        assert frame["auprc"].tolist() == [entry.value("auprc") for entry in board.entries]
        assert frame["rank"].isna().tolist() == [entry.rank is None for entry in board.entries]


def _unranked(raw: dict[str, Any]) -> None:
    number = raw["record"]["metrics"]["auprc"]
    number.update(value=None, low=None, high=None, reason="no lesion voxel in the whole test split")
    raw["ranking"] = None


def test_without_the_ranking_metric_there_are_no_ranks(submission: Submission, tmp_path: Path) -> None:
    place(tmp_path, altered(submission, _unranked))
    (board,) = boards(read_all(tmp_path))
    assert board.entries[0].rank is None
    assert board.unranked == "no lesion voxel in the whole test split"
    made = make(tmp_path)
    assert "Not ranked: no lesion voxel in the whole test split." in made["folder/index.md"]
    assert "Not ranked: no lesion voxel in the whole test split." in made["index.html"]


def test_parameters_make_rows_of_their_own(submission: Submission, tmp_path: Path) -> None:
    def other(raw: dict[str, Any]) -> None:
        raw["record"]["method"]["params"]["polarity"] = raw["record"]["identity"]["params"]["polarity"] = "dark"
        rekey(raw)

    place(tmp_path, submission.text)
    place(tmp_path, altered(submission, other))
    (board,) = boards(read_all(tmp_path))
    labels = [entry.label for entry in board.entries]
    assert len(set(labels)) == 2
    assert all(label.startswith("histeq [tiny] ") for label in labels)
    assert [entry.rank for entry in board.entries] == [None, None]  # the same scores
    assert [entry.reason for entry in board.entries] == ["not above chance"] * 2


def test_a_constant_map_has_no_rank_and_stands_below_all_that_have_one(found: list[Board], built: Path) -> None:
    """Its AUPRC is the prevalence."""
    for board in found:
        (constant,) = [entry for entry in board.entries if entry.record.method.name == "constant"]
        assert constant.rank is None
        assert constant.reason == "not above chance"
        assert all(entry.rank is None for entry in board.entries[board.entries.index(constant) :])
        ranked = [entry.estimates["auprc"] for entry in board.entries if entry.rank is not None]
        assert all(estimate.low is not None and estimate.low > board.record.prevalence for estimate in ranked)
    assert "— not above chance" in (built / "folder" / "index.md").read_text()


def test_few_subjects_have_no_rank_and_say_why(submission: Submission, tmp_path: Path) -> None:
    def few(raw: dict[str, Any]) -> None:
        number = raw["record"]["metrics"]["auprc"]
        number.update(low=None, high=None, n=5, reason="5 subjects with lesions: an interval needs 6")

    def other(raw: dict[str, Any]) -> None:
        few(raw)
        raw["record"]["method"]["params"]["polarity"] = raw["record"]["identity"]["params"]["polarity"] = "dark"
        rekey(raw)

    place(tmp_path, altered(submission, few))
    (alone,) = boards(read_all(tmp_path))
    assert alone.entries[0].rank is None
    assert alone.unranked == "5 subjects with lesions: an interval needs 6"
    place(tmp_path, altered(submission, other))
    (board,) = boards(read_all(tmp_path))
    assert [entry.rank for entry in board.entries] == [None, None]
    assert board.unranked == "5 subjects with lesions: a rank needs 6"
    page = make(tmp_path)["folder/index.md"]
    assert "(5 subjects with lesions: an interval needs 6)" in page
    assert "Not ranked: 5 subjects with lesions: a rank needs 6." in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw["record"]["subjects"].__setitem__(0, {}), "contradicts itself"),
        (lambda raw: raw["ranking"].update(left_out="!!"), "contradicts itself"),
        (lambda raw: raw.update(digest="0"), "digest"),
    ],
)
def test_what_does_not_verify_is_no_traceback(
    submission: Submission, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    text = altered(submission, change, sign=says != "digest")
    place(tmp_path, text)
    with pytest.raises(UserError, match=says):
        make(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timing.fit", 1e308),
        ("timing", {}),
        ("test.subjects", 0),
        ("protocol.level", "high"),
        ("protocol.version", None),
    ],
)
def test_what_a_table_relies_on(
    submission: Submission, tmp_path: Path, field: str, value: object, cli: Cli, runs: list[api.Run]
) -> None:
    """Named by build, by show and by verify, in the leaderboards and in a folder of runs."""

    def change(raw: dict[str, Any]) -> None:
        *parents, last = field.split(".")
        part = raw["record"]
        for name in parents:
            part = part[name]
        part[last] = value

    path = place(tmp_path / "boards", altered(submission, change))
    for verb, code in (("build", 2), ("show", 2), ("verify", 1)):
        found, out, err = cli("leaderboard", verb, tmp_path / "boards")
        assert found == code
        assert field in out + err
        assert path.name in out + err
    raw = json.loads((runs[0].folder / "record.json").read_text())
    change({"record": raw})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "record.json").write_text(json.dumps(raw))
    found, _, err = cli("leaderboard", "show", "--out", tmp_path / "runs")
    assert found == 2
    assert field in err


def test_nothing_to_build(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("leaderboard", "build", tmp_path)
    assert code == 2
    assert "There is no result at" in err


def test_same_records_same_bytes(built: Path) -> None:
    assert make(built) == make(built)
    assert stale(built) == []


def test_tables_hold_the_numbers(built: Path, found: list[Board]) -> None:
    rows = list(csv.DictReader(io.StringIO((built / "folder" / "table.csv").read_text())))
    entries = [entry for board in found for entry in board.entries]
    assert [row["method"] for row in rows] == [entry.record.method.name for entry in entries]
    content = json.loads((built / "folder" / "table.json").read_text())
    listed = [entry for board in content["boards"] for entry in board["entries"]]
    markdown = (built / "folder" / "index.md").read_text()
    latex = (built / "folder" / "table.tex").read_text()
    page = (built / "index.html").read_text()
    for row, entry, one in zip(rows, entries, listed, strict=True):
        value = entry.estimates["auprc"].value
        assert value is not None
        assert float(row["auprc"]) == one["metrics"]["auprc"]["value"] == pytest.approx(value, rel=1e-5)
        assert [seed["record"] for seed in one["seeds"]] == row["records"].split() == entry.paths
        for text in (markdown, latex, page):
            assert f"{value:.3f}" in text
        for path in entry.paths:
            assert (built / path).is_file()
            assert f"({path.removeprefix('folder/')})" in markdown
            assert f'href="{path}"' in page


class _Page(HTMLParser):
    """Tags, attributes and visible words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_self_contained(built: Path) -> None:
    text = (built / "index.html").read_text()
    page = _Page(text)
    links = [value or "" for name, value in page.attributes if name in ("href", "src", "srcset", "action", "data")]
    papers = [link for link in links if link.startswith("https://arxiv.org/abs/")]  # followed, never loaded
    assert papers
    assert all(link.startswith("#") or link in papers or (built / link).is_file() for link in links)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert page.tags.count("script") == 1
    assert {"link", "iframe", "object", "base", "img"}.isdisjoint(page.tags)
    assert "url(" not in text
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"|https://arxiv.org/abs/', "", text)


def test_without_scripts_a_row_says_what_it_is_and_its_numbers(built: Path, found: list[Board]) -> None:
    text = (built / "index.html").read_text()
    assert len(text) < 200_000  # what can be made of the JSON in it is not written out
    for entry in (entry for board in found for entry in board.entries):
        (row,) = re.findall(rf'<tr class="entry" id="{entry.id}">(.*?)</tr>', text, re.DOTALL)
        words = "".join(_Page(row).words)
        assert entry.label in words
        for metric in ("auprc", "dice@val", "dice@best"):
            number = entry.estimates[metric]
            assert number.value is not None
            assert f"{number.value:.3f}" in words
        main = entry.estimates["auprc"]
        assert main.low is not None
        assert f"{main.low:.3f}–{main.high:.3f}" in words
        assert [link for name, link in _Page(row).attributes if name == "href"][-len(entry.paths) :] == entry.paths
        assert "hidden" not in row


def test_markup_in_names_is_text_everywhere(submission: Submission, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|`*_$&\"'"

    def rename(raw: dict[str, Any]) -> None:
        record = raw["record"]
        record["method"]["name"] = record["identity"]["method"] = name
        record["method"]["preset"] = record["identity"]["preset"] = "=cmd|'/c calc'!A1"
        record["train"]["name"] = '"><img src=x onerror=alert(1)>'
        record["strata"]["<b>site</b>"] = {"<i>": record["strata"]["lesion_size"]["small"], "\\x": {}}
        record["provenance"]["device_name"] = "<script>"
        rekey(raw)

    place(tmp_path, altered(submission, rename))
    made = make(tmp_path)
    page = _Page(made["index.html"])
    assert page.tags.count("script") == 1
    assert not {"img", "b", "i"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any(name in words for words in page.words)
    assert "<" not in re.sub(r"\$[<>]\$", "", made["folder/table.tex"])
    assert "\\$\\&" in made["folder/table.tex"]
    markdown = made["folder/index.md"]
    assert "<" not in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`\\*\\_$&amp;" in markdown
    for table in re.findall(r"(?m)(?:^\|.*\n)+", markdown):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    (row,) = list(csv.DictReader(io.StringIO(made["folder/table.csv"])))
    assert row["preset"].startswith("'=")
    assert json.loads(made["folder/table.json"])["boards"][0]["entries"][0]["method"] == name


def test_published_numbers_stand_apart(built: Path) -> None:
    rows = read_reported(built / "reported.csv")
    assert len(rows) == 111
    text = (built / "index.html").read_text()
    head, section = text.split('<section class="reported"')
    assert "REFLECT" not in head
    assert "these do not compare with the tables above" in section
    assert section.count("<tr data-modality") == len(rows)
    for row in rows:
        assert row.value_percent in section


def test_published_beside_reproduced(found: list[Board]) -> None:
    (entry,) = [entry for entry in found[0].entries if entry.record.method.name == "histeq"]
    row = Reported(
        "histogram-equalised threshold", "Folder", "flair", "none", "pooled, oracle", "dice", "12.5", "s", "h"
    )
    ((same, value, gap),) = reproduced(row, found)
    assert same is entry
    assert value == pytest.approx(100 * entry.value("dice@best"))
    assert gap == pytest.approx(value - 12.5)
    assert reproduced(row._replace(protocol="per volume"), found)[0][1] == pytest.approx(100 * entry.value("dice@val"))
    for other in (
        {"dataset": "BraTS"},
        {"modality": "T2"},
        {"method": "AE"},
        {"metric": "gain"},
        {"value_percent": "4-5"},
    ):
        assert reproduced(row._replace(**other), found) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "must have the columns"),
        ("", "must have the columns"),
        (None, "row 2"),
        ("\0", "columns|readable"),
    ],
)
def test_published_numbers_that_are_no_table(tmp_path: Path, built: Path, text: str | None, says: str) -> None:
    path = tmp_path / "reported.csv"
    good = (built / "reported.csv").read_text().splitlines()
    path.write_text(f"{good[0]}\nx,,\n" if text is None else text)
    with pytest.raises(UserError, match=says):
        read_reported(path)
    assert read_reported(tmp_path / "none.csv") == []


def test_show_prints_ranks(built: Path, cli: Cli) -> None:
    code, out, _ = cli("leaderboard", "show", built)
    assert code == 0
    assert out.count("folder v1 · folder") == 2
    assert "histeq [tiny]" in out
    assert "dice@best is an oracle" not in out
    code, out, _ = cli("leaderboard", "show", built, "--json")
    assert [board["modality"] for board in json.loads(out)["boards"]] == ["FLAIR", "T1"]


def test_a_pipe_keeps_to_columns(built: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def widest() -> int:
        return max(map(len, cli("leaderboard", "show", built / "folder")[1].splitlines()))

    assert widest() > 120, "a pipe without COLUMNS gets every column"
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert widest() <= columns
    code, _, err = cli("leaderboard", "show", built / "folder")
    assert (code, "Not shown at this width: " in err) == (0, True)
    for nonsense in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", nonsense)
        assert widest() > 120


def test_one_leaderboard_is_shown_and_compared_and_only_built_with_its_siblings(built: Path, cli: Cli) -> None:
    one = next(path.parent for path in built.glob("*/records"))
    code, out, _ = cli("leaderboard", "show", one)
    assert code == 0
    assert "histeq [tiny]" in out
    code, out, _ = cli("leaderboard", "diff", one, one)
    assert code == 0
    code, _, err = cli("leaderboard", "build", one)
    assert code == 2
    assert f"is one leaderboard: name the folder that holds it, {built.resolve()}" in " ".join(err.split())
    assert sorted(path.name for path in one.iterdir() if path.is_dir()) == ["records"]


def test_two_hundred_results(many: Path, cli: Cli) -> None:
    start = time.process_time()
    files = build(many)
    assert time.process_time() - start < 10
    assert {path.name for path in files} == {"index.html", "index.md", "table.csv", "table.json", "table.tex"}
    assert (many / "index.html").stat().st_size < 5e6
    start = time.process_time()
    code, out, _ = cli("leaderboard", "show", many, "--json")
    assert code == 0
    assert sum(len(board["entries"]) for board in json.loads(out)["boards"]) == 200
    assert time.process_time() - start < 3  # a second on an idle machine; benchmarks/leaderboard.py measures it


def test_a_trained_method_with_fewer_seeds_than_others_says_so(submission: Submission) -> None:
    def seed(name: str, number: int) -> Published:
        forged = Forged(submission)
        forged.plugin(name)
        forged.record["seed"] = number
        made = files.parse(forged.seal(numbers=False).encode(), Path(name))
        return published(f"folder/records/{name}{number}.json", made)

    untrained = published("folder/records/histeq.json", submission)
    (board,) = boards([*(seed("many", number) for number in range(3)), seed("one", 0), untrained])
    said = {entry.record.method.name: (board.seeds(entry), entry.conformance) for entry in board.entries}
    assert said == {"many": ("3", "not run"), "one": ("1 of 3", "not run"), "histeq": ("1", "passed")}
    text = export.markdown("folder", [board])
    assert "| 1 of 3 |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("Not known to pass the conformance checks: ")]
    assert {part.strip(" .") for part in line.partition(": ")[2].split(",")} == {
        "many \\[tiny\\] (not run)",
        "one \\[tiny\\] (not run)",
    }


def test_two_folders_never_share_a_title(runs: list[api.Run], built: Path) -> None:
    """Neither in tables of runs nor on a board; what stands alone has its plain name."""
    record = runs[0].record
    digest = "f" * 64
    other = record.model_copy(update={"run_key": "1" * 64, "test": record.test.model_copy(update={"digest": digest})})
    assert [board.name for board in run_boards([record])] == ["folder FLAIR"]
    names = [board.name for board in run_boards([record, other])]
    size = f"{record.test.slices} slices of {record.test.subjects} subjects"
    assert names == sorted(f"folder FLAIR ({size}, {one.test.digest[:6]})" for one in (record, other))
    swept = other.model_copy(
        update={"test": other.test.model_copy(update={"params": {**other.test.params, "size": 48}})}
    )
    told = {board.name for board in run_boards([record, swept])}
    assert "folder FLAIR (size=48)" in told
    assert not any(one.test.digest[:6] in name for one in (record, swept) for name in told)
    (first, *_) = (one for one in read_all(built) if one.record.test.modality == "FLAIR")
    second = replace(first, record=first.record.model_copy(update={"test": other.test}))
    titles = [board.title.partition(":")[0] for board in boards([first, second])]
    assert sorted(titles) == names
    text = page(boards([first, second]), [])
    assert all(f"FLAIR ({board.mark})" in text for board in boards([first, second]))
