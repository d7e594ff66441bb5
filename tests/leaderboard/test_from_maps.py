"""Rows that were scored from somebody's maps: on a table of their own or beside runs, marked, verified, refused."""

from __future__ import annotations

import copy
import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adbench import api
from adbench.errors import UserError
from adbench.evaluation.maps import evaluate_folders
from adbench.leaderboard import submission as files
from adbench.leaderboard.build import build
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.from_maps import pack_maps
from adbench.leaderboard.merge import merge, submit, submit_maps
from adbench.leaderboard.ranking import boards, read_all
from adbench.leaderboard.submission import Submission, Submitted, said

Cli = Callable[..., tuple[int, str, str]]
WHO = Submitted(
    submitter="A. Researcher", licence="CC-BY-4.0", code="https://example.org/ours", paper="https://example.org/p"
)


def scored(split: str, slices: Path, out: Path, noise: float) -> dict[str, Path]:
    """Maps, masks and brain masks of a split of the fixture's slices, FLAIR alone, as `adbench eval` takes them."""
    rng, found = (
        np.random.default_rng(len(split)),
        {kind: out / f"{split}-{kind}" for kind in ("maps", "masks", "brain")},
    )
    for folder in found.values():
        folder.mkdir(parents=True)
    for image in sorted((slices / split).glob("*-FLAIR.png")):
        stem = image.name.removesuffix("-FLAIR.png")
        shutil.copy(image.with_name(f"{stem}-segmentation.png"), found["masks"] / f"{stem}.png")
        shutil.copy(image.with_name(f"{stem}-brainmask.png"), found["brain"] / f"{stem}.png")
        pixels = np.asarray(Image.open(image)).astype(float) + noise * rng.normal(size=Image.open(image).size[::-1])
        Image.fromarray(np.clip(pixels + 50, 0, 255).astype(np.uint8)).save(found["maps"] / f"{stem}.png")
    return found


@pytest.fixture(scope="session")
def scores(runs: list[api.Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `adbench eval` left of maps of the very cases of ``runs``, thresholds from their validation split."""
    root = tmp_path_factory.mktemp("scores")
    slices = runs[0].folder.parents[3] / "slices"
    test, val = (scored(split, slices, root, 20) for split in ("test", "val"))
    given = {"val_maps": val["maps"], "val_masks": val["masks"], "val_brain": val["brain"]}
    evaluate_folders(test["maps"], test["masks"], test["brain"], out=root / "scores", **given)
    return root / "scores"


@pytest.fixture(scope="session")
def foreign(scores: Path, runs: list[api.Run]) -> Submission:
    return pack_maps(scores, WHO, method="Our method", like=runs[0].folder, trained_on="IXI")


def test_it_joins_the_table_of_the_same_cases_and_says_what_it_is(
    cli: Cli, foreign: Submission, boards: Path, tmp_path: Path
) -> None:
    assert check(foreign) == []
    path = submit_maps(foreign, tmp_path)
    merge([path], boards)
    build(boards)
    (board,) = json.loads((boards / "folder/table.json").read_text())["boards"]
    row = next(entry for entry in board["entries"] if entry["method"] == "Our method")
    assert len(board["entries"]) == 4
    assert row["scored_from_maps"] is True
    assert row["submitted"] == [WHO.model_dump()]
    assert (row["label"], row["trained_on"]) == ("Our method [maps]", "ixi")
    assert (row["seconds_per_volume"], row["cpu_hours"], row["parameters"]) == (None, None, None)
    assert row["rank"] is not None or row["reason"]
    assert row["metrics"]["dice@val"]["value"] > 0
    assert "Scored from maps that were sent in, no method was run: Our method \\[maps\\] (by A. Researcher)." in (
        (boards / "folder/index.md").read_text()
    )
    page = (boards / "index.html").read_text()
    assert page.count("<strong>scored from maps</strong> · by A. Researcher") == 1
    assert page.count('href="https://example.org/ours"') == 1
    csv = (boards / "folder/table.csv").read_text()
    assert "A. Researcher,CC-BY-4.0,https://example.org/ours,https://example.org/p" in csv
    shown = cli("leaderboard", "show", boards)
    assert "Our method [maps] (by A. Researcher)" in " ".join((shown[1] + shown[2]).split())
    assert cli("leaderboard", "verify", boards)[0] == 0
    assert cli("leaderboard", "build", "--check", boards)[0] == 0


def test_cases_of_its_own_have_a_table_of_their_own(scores: Path, boards: Path, tmp_path: Path) -> None:
    own = [
        pack_maps(scores, WHO, method=name, dataset="OurSet", modality="flair", seed=seed)
        for name, seed in (("Our method", 0), ("Our method", 1))
    ]
    assert [check(one) for one in own] == [[], []]
    with pytest.raises(UserError, match=r"seed: stored 1.*: the same maps stand under two seeds"):
        merge([submit_maps(one, tmp_path) for one in own], boards)
    merge([submit_maps(own[0], tmp_path)], boards)
    build(boards)
    tables = {board.test_set.protocol: board for board in _boards(boards)}
    assert tables["maps"].title.startswith("OurSet FLAIR: 9 test subjects")
    (row,) = tables["maps"].entries
    assert tables["maps"].seeds(row) == "—", "one set of maps says nothing about seeds"


def _boards(root: Path) -> list[Any]:
    return boards(read_all(root))


def test_the_page_cites_it(scores: Path, browser: Any, tmp_path: Path) -> None:
    who = WHO.model_copy(update={"code": "https://example.org/a_b?c=1&d=100%25"})
    packed = pack_maps(scores, who, method="Our_method", dataset="OurSet", modality="FLAIR")
    merge([submit_maps(packed, tmp_path)], tmp_path / "boards")
    build(tmp_path / "boards")
    browser.get((tmp_path / "boards" / "index.html").as_uri())
    text = browser.execute_script("return document.querySelector('.board').innerText")
    assert "one set of maps" in text
    assert "1 seed" not in text
    assert "by adbench eval --maps" in text  # the protocol's sentence has backticks
    saved = {}
    for kind in ("bib", "csv"):
        browser.execute_script(
            "HTMLAnchorElement.prototype.click = function () { window.saved = decodeURIComponent(this.href); };"
            "document.querySelector(`[data-take=${arguments[0]}]`).click()",
            kind,
        )
        saved[kind] = browser.execute_script("return window.saved").partition(",")[2]
    assert "title = {{Our\\_method}}" in saved["bib"]
    assert "author = {{A. Researcher}}" in saved["bib"]
    assert "howpublished = {\\url{https://example.org/p}}" in saved["bib"]
    assert "Code: \\url{https://example.org/a_b?c=1&d=100%25}" in saved["bib"]
    assert "`" not in saved["bib"]
    (row,) = csv.DictReader(io.StringIO(saved["csv"]))
    assert (row["scored from maps"], row["submitter"], row["licence"]) == ("yes", "A. Researcher", "CC-BY-4.0")
    assert (row["code"], row["paper"]) == (who.code, who.paper)
    assert row["seeds"] == row["device"] == row["compute, hours of one seed"] == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw.pop("submitted"), "submitted"),
        (lambda raw: raw["record"]["method"].update(name="Ours [maps]"), "method.name"),
        (lambda raw: raw["submitted"].update(submitter="Somebody Else"), "identity.submitter"),
        (lambda raw: raw["record"]["method"].update(preset="paper"), "method.preset"),
        (lambda raw: raw["record"]["method"].update(name="MAD-AD"), "method.name"),
        (lambda raw: raw["record"]["method"].update(origin="built-in"), "method.origin"),
        (lambda raw: raw["record"]["timing"].update(fit=1.0), "timing"),
        (lambda raw: raw["record"]["test"].update(subjects=8), "test.subjects"),
        (lambda raw: raw["record"]["train"].update(params={"skull": True}), "train"),
        (lambda raw: raw["record"]["provenance"].update(gpu="H100"), "provenance"),
        (lambda raw: raw["record"].update(seed=-5), "seed"),
        (lambda raw: raw["record"]["metrics"]["auprc"].update(value=0.99), "metrics.auprc.value"),
    ],
)
def test_what_is_changed_is_named(foreign: Submission, change: Callable[[dict[str, Any]], object], field: str) -> None:
    raw = copy.deepcopy(foreign.raw)
    change(raw)
    raw["digest"] = files.own_digest(raw)
    assert field in {issue.field for issue in check(files.parse(json.dumps(raw).encode(), Path("made")))}


def test_other_cases_do_not_join(runs: list[api.Run], tmp_path: Path) -> None:
    test = scored("test", runs[0].folder.parents[3] / "slices", tmp_path, 5)
    for folder in test.values():
        next(iter(sorted(folder.iterdir()))).unlink()
    evaluate_folders(test["maps"], test["masks"], test["brain"], out=tmp_path / "scores")
    with pytest.raises(
        UserError, match=r"These are not the test cases of .* the first, 'test00', is not among the maps"
    ):
        pack_maps(tmp_path / "scores", WHO, method="m", like=runs[0].folder)
    own = pack_maps(tmp_path / "scores", WHO, method="m", dataset="X", modality="T1")  # without validation maps
    assert check(own) == []
    assert own.record.metrics["dice@val"].reason == "no validation split was given"
    about = json.loads((tmp_path / "scores/metrics.json").read_text())
    about["inputs"]["brain"] = None
    (tmp_path / "scores/metrics.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="Rows count brain voxels alone"):
        pack_maps(tmp_path / "scores", WHO, method="m", dataset="X", modality="T1")


def test_ids_in_another_spelling_are_named(runs: list[api.Run], tmp_path: Path) -> None:
    test = scored("test", runs[0].folder.parents[3] / "slices", tmp_path, 5)
    for folder in test.values():
        (path,) = folder.glob("test01*")
        path.rename(path.with_name(path.name.replace("test", "TEST")))
    evaluate_folders(test["maps"], test["masks"], test["brain"], out=tmp_path / "scores")
    with pytest.raises(
        UserError, match=r"2 cases .* 'TEST01', is not in .* \('test01' reads alike: spell ids as there\)"
    ):
        pack_maps(tmp_path / "scores", WHO, method="m", like=runs[0].folder)


def test_one_sentence_says_what_is_missing(cli: Cli, scores: Path, runs: list[api.Run], tmp_path: Path) -> None:
    whole = ("--method", "m", "--submitter", "A", "--licence", "CC0-1.0", "--code", "https://a.org")
    named = (*whole, "--dataset", "X", "--modality", "T1")

    def without(option: str) -> tuple[str, ...]:
        at = named.index(option)
        return named[:at] + named[at + 2 :]

    for arguments, message in (
        (without("--licence"), "A submission has a licence: give --licence CC-BY-4.0 (say)."),
        ((*without("--licence"), "--licence", "do what you like"), "--licence: it must be an identifier of one word"),
        (without("--submitter"), "A submission has a submitter: give --submitter"),
        ((*named, "--method", "Ours [maps]"), "leave the brackets away, the row adds [maps] itself"),
        ((*named, "--method", "Ours \x1b[2J".replace("[", "")), "write it in one line of printable characters"),
        ((*named, "--method", "Ours\u202erev"), r"--method 'Ours\u202erev': write it in one line"),
        ((*named, "--submitter", "A\nB"), r"--submitter 'A\nB': write it in one line of printable characters"),
        (without("--method"), "Name the method whose maps they are with --method."),
        (without("--code"), "give --code or --paper"),
        (without("--modality"), "Name what the cases are with --dataset and --modality"),
        ((*without("--code"), "--code", "http://a.org"), "--code: it must be an https address"),
        ((*named, "--method", "MAD-AD"), "'MAD-AD' reads like madad, which adbench runs itself"),
        ((*named, "--like", runs[0].folder), "--dataset is X, and"),
        ((*whole, "--modality", "t2", "--like", runs[0].folder), "--modality is T2, and"),
        ((*whole, "--like", "leaderboards/nothing.json"), "There is no file leaderboards/nothing.json"),
    ):
        code, _, err = cli("leaderboard", "submit", scores, *arguments, "--out", tmp_path)
        assert code == 2
        assert message in " ".join(err.split())
    code, _, err = cli("leaderboard", "submit", runs[0].folder, "--method", "m", "--out", tmp_path)
    assert (code, "--method: only for what" in err) == (2, True)
    code, _, err = cli("leaderboard", "submit", runs[0].folder, "--out", tmp_path)
    assert code == 2
    assert (
        'has a submitter and a licence: give --submitter "A. Researcher, Some University" and --licence CC-BY-4.0'
        in " ".join(err.split())
    )
    code, _, err = cli("leaderboard", "merge", runs[0].folder, "--out", "boards")
    assert (code, "given as --into boards" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []
    arguments = (*named, "--trained-on", "IXI")
    code, _, err = cli("leaderboard", "submit", scores, *arguments, "--out", tmp_path)
    assert (code, "Trained on IXI: adbench calls it ixi" in " ".join(err.split())) == (0, True)


@pytest.mark.parametrize(
    "sign", ["\u3164", "\u2800", "\u115f", "\u1160", "\uffa0", "\ufe0f", "\u034f", "\u180b", "\u0301", "\U000e0100"]
)
def test_a_submitter_is_seen(foreign: Submission, sign: str) -> None:
    """Neither a filler, a cell without dots, nor a mark upon nothing is a name."""
    with pytest.raises(UserError, match=r"--submitter .*write it in one line of printable characters"):
        said(sign, "CC0-1.0")
    raw = copy.deepcopy(foreign.raw)
    raw["submitted"]["submitter"] = sign
    assert "submitted.submitter" in [issue.field for issue in check(files.parse(json.dumps(raw).encode(), Path("x")))]


@pytest.mark.parametrize("name", ["A. Müller & Söhne", "李明", "नमिता", "김민수", "O’Neil", "⠃"])
def test_names_of_all_scripts_are_seen(name: str) -> None:
    assert said(f" {name} ", "CC0-1.0").submitter == name


def test_a_licence_of_several_words_is_not_read(foreign: Submission) -> None:
    for licence in ("", "foo bar baz"):
        raw = copy.deepcopy(foreign.raw)
        raw["submitted"]["licence"] = licence
        with pytest.raises(UserError, match=r"submitted\.licence: .*an identifier of one word"):
            files.parse(json.dumps(raw).encode(), Path("made"))


def test_maps_of_a_method_that_was_run_are_no_row_of_their_own(
    runs: list[api.Run], scores: Path, tmp_path: Path
) -> None:
    """Not under another name, and not by another submitter, whichever result was there first."""
    first = pack_maps(scores, WHO, method="Our method", dataset="OurSet", modality="FLAIR")
    thief = pack_maps(
        scores, WHO.model_copy(update={"submitter": "T."}), method="Our method", dataset="OurSet", modality="FLAIR"
    )
    merge([submit_maps(first, tmp_path / "a")], tmp_path / "boards")
    other = pack_maps(scores, WHO, method="Another name", dataset="OurSet", modality="FLAIR")
    for name, copy_ in (("b", thief), ("c", other)):
        with pytest.raises(UserError, match=r"method\.name: .*: the same maps stand under two names"):
            merge([submit_maps(copy_, tmp_path / name)], tmp_path / "boards")


def test_more_cases_of_a_dataset_block_nobody(scores: Path, runs: list[api.Run], tmp_path: Path) -> None:
    slices = runs[0].folder.parents[3] / "slices"
    some = scored("test", slices, tmp_path / "some", 35)
    for kind in some.values():
        sorted(kind.iterdir())[0].unlink()
    evaluate_folders(some["maps"], some["masks"], some["brain"], out=tmp_path / "scores")
    few = pack_maps(tmp_path / "scores", WHO, method="Small", dataset="OurSet", modality="FLAIR")
    all_of_them = pack_maps(scores, WHO, method="Whole", dataset="OurSet", modality="FLAIR")
    for name, one in (("few", few), ("all", all_of_them)):
        merge([submit_maps(one, tmp_path / name)], tmp_path / "boards")
    assert len(_boards(tmp_path / "boards")) == 2


def test_another_licence_is_not_lost_without_a_word(scores: Path, tmp_path: Path) -> None:
    for licence in ("CC-BY-4.0", "CC0-1.0"):
        who = WHO.model_copy(update={"licence": licence})
        path = submit_maps(
            pack_maps(scores, who, method="Our method", dataset="OurSet", modality="FLAIR"), tmp_path / licence
        )
        if licence == "CC-BY-4.0":
            merge([path], tmp_path / "boards")
    with pytest.raises(UserError, match="under which licence or link; remove the old file first"):
        merge([path], tmp_path / "boards")


def test_the_submitter_of_a_run_stands_in_its_row(runs: list[api.Run], tmp_path: Path) -> None:
    path = submit(runs[0].folder, tmp_path / "made.json", WHO)
    merge([path], tmp_path / "boards")
    (board,) = _boards(tmp_path / "boards")
    assert (board.entries[0].submitters, board.entries[0].from_maps) == ("A. Researcher", False)
    assert board.rows()[0]["licence"] == "CC-BY-4.0"
