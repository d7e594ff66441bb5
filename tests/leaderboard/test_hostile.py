"""Files made to take the reader down, to lead it elsewhere, or to speak to the terminal: one sentence each, and the rest goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from board_files import altered, place, rekey
from fuzzing import changed, changed_json, held, often
from hypothesis import strategies as st

from adbench import api
from adbench.context import Context
from adbench.errors import UserError
from adbench.leaderboard import submission as submissions
from adbench.leaderboard import verify as verifying
from adbench.leaderboard.build import build, make
from adbench.leaderboard.diff import diff
from adbench.leaderboard.merge import merge
from adbench.leaderboard.ranking import published
from adbench.leaderboard.submission import Submission, pack
from adbench.leaderboard.verify import check_one, verify
from adbench.methods.simple import HistEq
from adbench.methods.training.checkpoints import StageFolder
from adbench.report.collect import collect
from adbench.report.render import _config
from adbench.results import rundir, status
from adbench.results.record import read_record
from adbench.runner.fit import fitted, load_fit
from adbench.utils.limits import RECORD_VALUES

Cli = Callable[..., tuple[int, str, str]]


def _many(submission: Submission) -> dict[str, bytes]:
    text = json.dumps(submission.raw)
    odd: dict[str, Any] = {"splits": {"train": [0] * 400_000, "val": [], "threshold": [], "test": []}}
    return {
        "keys": (text[:-1] + ', "x": {' + ",".join(['"": 0'] * 10_000) + "}}").encode(),
        "values": (text[:-1] + ', "x": [' + ",".join(["1"] * (RECORD_VALUES + 1)) + "]}").encode(),
        "types": json.dumps(submission.raw | odd).encode(),
        "deep": (text[:-1] + ', "x": ' + "[" * 10_000_000).encode(),
        "none": altered(submission, lambda raw: raw["record"].update(subjects=[])).encode(),
        "nan": text.replace('"seed": 0', '"seed": NaN', 1).encode(),
        "names": altered(
            submission, lambda raw: raw["record"].update(files={f"/{n}": "" for n in range(9_000)})
        ).encode(),
        "distinct": altered(
            submission, lambda raw: raw["record"].update({f"k{n}": 0 for n in range(200_000)})
        ).encode(),
        "steps": altered(submission, lambda raw: raw["record"]["method"]["params"].update(steps=10**12)).encode(),
    }


WATCHED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_among_good_results_each_bad_one_is_named_and_costs_little(submission: Submission, tmp_path: Path) -> None:
    """In a process of its own, to see the memory of all that it starts."""
    bad = _many(submission)
    for name, data in bad.items():
        (tmp_path / f"{name}.json").write_bytes(data)
    (tmp_path / "good.json").write_text(submission.text)
    paths = [tmp_path / f"{name}.json" for name in ("good", *bad)]
    command = [sys.executable, "-m", "adbench.cli", "leaderboard", "verify", "--json", "-q", *map(str, paths)]
    done = subprocess.run([sys.executable, "-c", WATCHED, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert int(done.stderr.split()[-1]) <= 500 << 10, "kB, of the largest of all that it starts"
    found = json.loads(done.stdout)
    assert found["results"] == len(paths)
    said: dict[str, str] = {}
    for one in found["findings"]:
        said[Path(one["file"]).stem] = said.get(Path(one["file"]).stem, "") + f"{one['field']}: {one['why']}\n"
    assert said.keys() == bad.keys()
    for name, words in {
        "keys": "the key '' occurs twice",
        "values": f"more than {RECORD_VALUES} values",
        "types": "400000 values are missing, unknown or of a wrong type",
        "deep": "values, the limit",
        "nan": "NaN is not JSON",
        "names": "no more are listed",
        "distinct": "keys, and 10000 are the limit",
        "none": "subjects: ",
        "steps": "method.params: ",
    }.items():
        assert words in said[name]


def test_a_reader_that_dies_takes_no_other_result_along(
    submission: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verifying.check_one

    def check_one(path: Path) -> Any:
        return os._exit(9) if path.stem == "dies" else real(path)

    paths = [tmp_path / "dies.json", tmp_path / "good.json"]
    for path in paths:
        path.write_text(submission.text)
    monkeypatch.setattr(verifying, "check_one", check_one)
    first, second = verifying.check_all(paths)
    assert [issue.sentence for issue in first.issues] == [
        "file: its process ended by itself with exit code 9, without a result"
    ]
    assert second.issues == []


def test_what_a_run_folder_links_to_is_not_read(runs: list[api.Run], tmp_path: Path, cli: Cli) -> None:
    secret = tmp_path / "secret"
    secret.write_text("method: hunter2")
    for name in ("record.json", "splits.json", "histograms.npz", "spatial.json"):
        run = Path(shutil.copytree(runs[0].folder, tmp_path / f"run-{name}"))
        (run / name).rename(tmp_path / f"moved-{name}")
        (run / name).symlink_to(tmp_path / f"moved-{name}")
        with pytest.raises(UserError, match=f"{name} is a link, not a file"):
            pack(run)
        with pytest.raises(UserError, match=f"{name} is a link"):
            merge([run], tmp_path / "into")
    run = Path(shutil.copytree(runs[0].folder, tmp_path / "run"))
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(secret)
    (found,) = api.load(run)
    with pytest.raises(UserError, match="is a link"):
        _ = found.cell
    assert (
        _config(SimpleNamespace(run=found))
        == f"{run / 'config.yaml'} is a link, not a file: links are not followed. Put the file itself there."
    )


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "a/b", ".lock", "a\x1bb"])
def test_a_record_names_files_beside_it_alone(runs: list[api.Run], tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(runs[0].folder, tmp_path / "run"))
    (tmp_path / "secret").write_text("x")
    raw = json.loads((run / "record.json").read_text())
    raw["files"][name] = "0" * 64
    (run / "record.json").write_text(json.dumps(raw))
    (found,) = api.load(run)
    with pytest.raises(UserError, match="not the plain name of a file beside it"):
        found.check_files()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(subjects=[]), "subjects: no subject was tested"),
        (lambda raw: raw["metrics"]["auprc"].update(value=float("nan")), "NaN is not JSON"),
        (lambda raw: raw["metrics"]["auprc"].update(n=10**12), "metrics.auprc.n: 1000000000000 is not between 0 and"),
        (lambda raw: raw["metrics"]["dice@val"].update(n_all=-1), "metrics.dice@val.n_all: -1 is not between"),
        (lambda raw: raw["train"].update(slices=10**13), "train.slices: 10000000000000 is not between"),
        (lambda raw: raw["test"].update(subjects=10**9), "test.subjects: 1000000000 is not between 0 and"),
        (lambda raw: raw["threshold"].update(lesion_subjects=10**6), "threshold.lesion_subjects: 1000000 is not"),
        (lambda raw: raw["method"].update(parameters=-5), "method.parameters: -5 is not between"),
        (lambda raw: raw.update(prevalence=1.5), "prevalence: 1.5 is not between"),
        (lambda raw: raw.update(seed=10**30), "is too large"),
        (lambda raw: raw.update(notes=[1] * 2000), "2000 values are"),
        (lambda raw: raw.update(fit={"x": [0] * RECORD_VALUES}), "values, the limit"),
    ],
)
def test_records_of_runs_have_the_same_limits(
    runs: list[api.Run], tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    raw = json.loads((runs[0].folder / "record.json").read_text())
    change(raw)
    (tmp_path / "record.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=says):
        read_record(tmp_path)


def test_a_report_reads_no_folder_that_links_elsewhere(runs: list[api.Run], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[0].folder, tmp_path / "run"))
    raw = json.loads((run / "record.json").read_text())
    raw["files"]["../secret"] = "0" * 64
    (run / "record.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"'\.\./secret', which is not the plain name"):
        collect(api.load(run), count=0)
    del raw["files"]["../secret"]
    (run / "record.json").write_text(json.dumps(raw))
    (run / "splits.json").unlink()
    (run / "splits.json").symlink_to(runs[0].folder / "splits.json")
    with pytest.raises(UserError, match=r"splits\.json is a link"):
        collect(api.load(run), count=0)


def test_nothing_is_written_through_a_link(submission: Submission, boards: Path, tmp_path: Path) -> None:
    new, outside = tmp_path / "new.json", tmp_path / "outside"
    new.write_text(submission.text)
    for linked in (boards / "folder", boards / "folder" / "records"):
        shutil.rmtree(outside, ignore_errors=True)
        shutil.move(linked, outside)
        linked.symlink_to(outside)
        before = sorted(outside.rglob("*"))
        with pytest.raises(UserError, match="is a link, not a folder"):
            merge([new], boards)
        with pytest.raises(UserError, match="is a link, not a folder"):
            make(boards)
        assert sorted(outside.rglob("*")) == before
        linked.unlink()
        shutil.copytree(outside, linked)


def test_a_comparison_reads_strangers_files_as_carefully(submission: Submission, tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.json", tmp_path / "bomb.json"
    good.write_text(submission.text)
    bomb.write_bytes(_many(submission)["distinct"])
    with pytest.raises(UserError, match=r"bomb\.json is not a readable submission: .* keys, and 10000 are the limit"):
        diff(good, bomb)


def test_a_pipe_among_submissions_does_not_hang(submission: Submission, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(submission.text)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    count, issues = verify([tmp_path])
    assert count == 3
    assert {Path(issue.file).name: issue.field for issue in issues} == {"pipe.json": "file", "link.json": "file"}


DAMAGED = {
    "empty": b"",
    "null": b"null",
    "keys": b"{" + b",".join([b'"": 0'] * 10**6) + b"}",
    "utf-16": '{"submission": 3}'.encode("utf-16"),
    "cut": b'{ "subm',
    "no number": b'{"record": {}, "splits": {}}',
}
OTHERS = {"package": b'{"name": "x"}', "list": b"[1, 2]"}


@pytest.mark.parametrize("place", ["files", "board", "boards", "run"])
def test_no_file_of_a_folder_is_passed_over_in_silence(
    submission: Submission, boards: Path, runs: list[api.Run], tmp_path: Path, cli: Cli, place: str
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "good.json").write_text(submission.text)
    build(boards)  # its tables too
    run = shutil.copytree(runs[0].folder, tmp_path / "run")
    folder = {"files": tmp_path / "files", "board": boards / "folder", "boards": boards, "run": run}[place]
    assert cli("leaderboard", "verify", folder, "-q")[0] == 0
    for name, data in OTHERS.items():
        (folder / f"{name}.json").write_bytes(data)
    code, _, err = cli("leaderboard", "verify", folder, "-q")
    assert code == 0
    for name in OTHERS:
        assert f"Passed over, nothing of a result is in it: {folder / name}.json" in err
    for name, data in DAMAGED.items():
        (folder / f"{name}.json").write_bytes(data)
    code, out, _ = cli("leaderboard", "verify", folder, "--json")
    found = json.loads(out)
    assert code == 1
    assert {Path(one["file"]).stem for one in found["findings"]} == DAMAGED.keys()
    assert {Path(file).stem for file in found["passed_over"]} == OTHERS.keys()
    assert found["results"] == len(DAMAGED) + {"files": 1, "run": 1}.get(place, 3)
    with pytest.raises(UserError, match=rf"{len(DAMAGED)} of \d+ results do not verify"):
        merge([folder], tmp_path / "new")


def test_control_characters_reach_no_page_and_no_table(
    submission: Submission, runs: list[api.Run], tmp_path: Path
) -> None:
    name = "a\x1b]0;b\x07\u202ec\x00\r"

    def change(raw: dict[str, Any]) -> None:
        record = raw["record"]
        record["method"]["name"] = record["identity"]["method"] = name
        record["method"]["preset"] = record["identity"]["preset"] = "\x1b[31m"
        facts = {"source": "", "heading": "x", "definition": "", "less_is_better": False, "oracle": False, "unit": ""}
        record["optional"] = {"=x": facts}
        record["metrics"]["=x"] = record["metrics"]["auroc"]
        record["strata"]["\x1b[2J"] = {"\x9b": record["strata"]["lesion_size"]["small"], "\x07": {}}
        rekey(raw)

    place(tmp_path, altered(submission, change))
    made = make(tmp_path)
    assert set(made) == {"index.html", "folder/index.md", "folder/table.csv", "folder/table.json", "folder/table.tex"}
    for path, text in made.items():
        assert not [sign for sign in text if not sign.isprintable() and sign not in "\n\t"], path
        assert "x1b" in text or "u001b" in text, path
    (row,) = csv.DictReader(io.StringIO(made["folder/table.csv"]))
    assert {"'=x", "'=x_low", "'=x_high"} < row.keys()  # else a spreadsheet takes it for a formula
    assert row["method"] == r"a\x1b]0;b\x07\u202ec\x00\r"


@often
def test_submissions_changed_at_random(submission: Submission, tmp_path: Path, examples: int) -> None:
    """Those that have a right digest too, as anybody can compute it."""

    def signed(raw: dict[str, Any]) -> dict[str, Any]:
        return {**raw, "digest": submissions.own_digest(raw)}

    files = st.one_of(changed(submission.text.encode()), changed_json(submission.raw, signed))
    held(tmp_path, examples, files, "a.json", check_one, lambda path: published("a", submissions.glance(path)))


RESULTS = ("record.json", "config.yaml", "splits.json", "histograms.npz", "spatial.json", "status.json", "failure.json", "identity.json")  # fmt: skip


@often
def test_run_folders_changed_at_random(runs: list[api.Run], tmp_path: Path, examples: int) -> None:
    """What ``status`` and ``report`` read of a run."""
    out = tmp_path / "out"
    run = Path(shutil.copytree(runs[0].folder, out / "folder" / "folder-flair" / "run"))
    record = json.loads((run / "record.json").read_text())
    doing = {"state": "running", "started": 1.0, "phase": "fit", "done": 1, "total": 2, "figures": {"loss": 0.5}, "phase_started": 1.0, "label": "x"}  # fmt: skip
    whole = {name: (run / name).read_bytes() for name in RESULTS if (run / name).exists()}
    whole |= {
        "status.json": json.dumps(doing).encode(),
        "failure.json": json.dumps({"phase": "fit", "error": "E", "message": "m", "traceback": "t"}).encode(),
        "identity.json": json.dumps({name: record[name] for name in ("run_key", "fit_key", "identity")}).encode(),
    }

    def files(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        bytewise = changed(whole[name])
        by_value = changed_json(json.loads(whole[name])) if name.endswith(".json") else bytewise
        return st.tuples(st.just(name), st.one_of(bytewise, by_value))

    def look(path: Path) -> None:
        name, _, content = path.read_bytes().partition(b"\0")
        (run / name.decode()).write_bytes(content)
        try:
            list(status.runs(out))
            rundir.read_identity(run)
            collect(api.load(run), count=0)
            _config(SimpleNamespace(run=api.Run(run)))
        finally:
            for kept, there in whole.items():
                (run / kept).write_bytes(there)

    named = st.one_of(*map(files, whole)).map(lambda file: file[0].encode() + b"\0" + file[1])
    held(tmp_path, examples, named, "file", look)


@often
def test_fits_and_checkpoints_changed_at_random(runs: list[api.Run], tmp_path: Path, examples: int) -> None:
    """What a run reads before it goes on: it goes on as it was, or says which file was changed."""
    import torch

    fit, stage = tmp_path / "out" / "fit", tmp_path / "out" / "stage"
    shutil.copytree(runs[0].fit_folder, fit)
    key, context = runs[0].record.fit_key, Context(device="cpu", seed=0, workdir=fit)
    whole_fit = fitted(fit, key)
    StageFolder(stage, {"x": 1}, context.logger).write(2, {"loss": [0.5]}, {"w": torch.ones(3)}, None, 0)
    known = {path.name: path for folder in (fit, stage) for path in folder.iterdir() if path.suffix != ".lock"}
    whole = {name: path.read_bytes() for name, path in known.items()}

    def files(name: str) -> st.SearchStrategy[bytes]:
        bodies = changed(whole[name])
        if name.endswith(".json"):
            bodies = st.one_of(bodies, changed_json(json.loads(whole[name])))
        return bodies.map(lambda body: name.encode() + b"\0" + body)

    def go_on(path: Path) -> None:
        name, _, content = path.read_bytes().partition(b"\0")
        known[name.decode()].write_bytes(content)
        try:
            found = fitted(fit, key)
            assert found == whole_fit
            load_fit(HistEq, fit, found, context, runs[0].cell.params)
            read = StageFolder(stage, {"x": 1}, context.logger).read()
            assert read is not None
            assert (read[0], read[1]["w"].tolist()) == ({"loss": [0.5]}, [1, 1, 1])
        finally:
            for kept, there in whole.items():
                known[kept].write_bytes(there)

    held(tmp_path, examples, st.one_of(*map(files, whole)), "file", go_on)
