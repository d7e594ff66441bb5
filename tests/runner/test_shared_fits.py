"""Fits that are shared: equal numbers from somebody else's weights, and strangers' folders as data."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adbench import __version__, api
from adbench.config import registry
from adbench.config.shared_fit import MANIFEST, RUN_RECORD, read_shared
from adbench.errors import UserError
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.submission import pack
from adbench.runner import shared_fits
from adbench.utils.hashing import digest, digest_file, sealed
from adbench.utils.limits import Limit

Cli = Callable[..., tuple[int, str, str]]
WHO = ("--author", "A. Researcher", "--licence", "cc-by-4.0")


@pytest.fixture(scope="module")
def made(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    root = tmp_path_factory.mktemp("theirs")
    settings: dict[str, Any] = {"data_root": str(make_slices(root / "slices")), "device": "cpu", "out": root / "runs"}
    (run,) = api.run("ae", "folder", set={"ae": {"steps": 4}}, **settings)
    return run


@pytest.fixture(scope="module")
def exported(made: api.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "ae"
    shared_fits.export(made.folder, folder, author="A. Researcher", licence="cc-by-4.0", link="https://example.org")
    return folder


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_scores_to_equal_numbers_without_the_training_data(
    cli: Cli, made: api.Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(made.folder.parents[3] / "slices", tmp_path / "data"))
    shutil.rmtree(data / "train")
    out = tmp_path / "mine"
    code, said, err = cli(
        "run", "--fit", exported, "--dataset", "folder", "--data-root", data, "--device", "cpu", "--out", out, "--quiet"
    )
    assert code == 0, err
    assert "A. Researcher" in " ".join(said.split())
    (run,) = api.load(out)
    theirs, mine = made.record, run.record
    assert mine.weights is not None
    assert (mine.weights.author, mine.weights.digest) == ("A. Researcher", read_shared(exported).weights.digest)
    assert {n: m.value for n, m in mine.metrics.items()} == {n: m.value for n, m in theirs.metrics.items()}
    assert (mine.fit_key, mine.run_key, mine.train) == (theirs.fit_key, theirs.run_key, theirs.train)
    assert any("compared with these by name alone" in note for note in mine.notes)
    assert [one.volume for one in run.each()], "the run can be opened with its data, without the training data"
    assert check(pack(run.folder)) == [], "it can be submitted"
    (board,) = json.loads(cli("leaderboard", "show", "--out", out, "--json")[1])["boards"]
    assert board["rows"][0]["weights"]["author"] == "A. Researcher"
    with monkeypatch.context() as narrow:
        narrow.setenv("COLUMNS", "40")
        said = " ".join(cli("leaderboard", "show", "--out", out)[2].split())
    assert "Not shown at this width: trained on" in said
    assert "(trained on folder, by A. Researcher)." in said
    code, said, _ = cli("fit", "list", "--out", out, "--json")
    (row_,) = json.loads(said)
    assert (row_["method"], row_["author"], row_["trained_on"]) == ("ae", "A. Researcher", "folder FLAIR")
    (own,) = shared_fits.listed(made.folder.parents[2])
    assert (own["author"], own["trained_on"]) == ("", "folder FLAIR")
    found = api.load(exported, device="cpu").predict(data / "test", tmp_path / "found")
    assert len(found) == 6


def test_what_only_scores_can_be_set_for_a_shared_fit(cli: Cli, made: api.Run, exported: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "mine", made.folder.parents[3] / "slices"
    base = ("run", "--fit", exported, "--dataset", "folder", "--data-root", data, "--device", "cpu", "--quiet")
    code, _, err = cli(*base, "--out", out, "--set", "ae.sigma=1,2", "--set", "ae.sign=positive")
    assert code == 0, err
    found = api.load(out)
    assert sorted(run.record.method.params["sigma"] for run in found) == [1.0, 2.0]
    assert {run.record.fit_key for run in found} == {made.record.fit_key}
    assert len({run.record.run_key for run in found} | {made.record.run_key}) == 3
    for run in found:
        assert run.record.method.params["sign"] == "positive"
        assert check(pack(run.folder)) == [], "it can be submitted"


def test_a_shared_fit_whose_key_holds_every_parameter_is_still_used(cli: Cli, made: api.Run, own: Path) -> None:
    """As an earlier adbench wrote them."""
    manifest = json.loads((own / MANIFEST).read_text())
    manifest.pop("digest")
    manifest["identity"]["params"] = made.record.method.params
    manifest["fit_key"] = digest(manifest["identity"])
    fit = json.loads((own / "fit.json").read_text())
    fit.pop("digest")
    (own / "fit.json").write_text(json.dumps(sealed({**fit, "fit_key": manifest["fit_key"]})))
    manifest["files"]["fit.json"] = digest_file(own / "fit.json")
    (own / MANIFEST).write_text(json.dumps(sealed(manifest)))
    data, out = made.folder.parents[3] / "slices", own.parent / "old"
    base = ("run", "--fit", own, "--dataset", "folder", "--data-root", data, "--device", "cpu", "--quiet")
    code, _, err = cli(*base, "--out", out)
    assert code == 0, err
    (run,) = api.load(out)
    assert {n: m.value for n, m in run.record.metrics.items()} == {n: m.value for n, m in made.record.metrics.items()}
    assert check(pack(run.folder)) == []
    code, _, err = cli(*base, "--out", out, "--set", "ae.sigma=2")
    assert code == 0, err
    assert all(check(pack(run.folder)) == [] for run in api.load(out))


def test_what_a_shared_fit_cannot_be_used_for(cli: Cli, made: api.Run, exported: Path, tmp_path: Path) -> None:
    data = made.folder.parents[3] / "slices"
    base = ("run", "--fit", exported, "--dataset", "folder", "--data-root", data, "--out", tmp_path / "out", "--quiet")
    for more, expected in (
        (("--method", "histeq"), "--method asks for"),
        (("--seed", "3"), "--seed asks for"),
        (("--train-on", "phantom"), "--train-on and --train-root are not for it"),
        (("--set", "ae.steps=5"), "cannot change steps."),
        (("--set", "ae.steps=5", "--set", "ae.sigma=2"), "cannot change steps, only what scores."),
        (("--set", "dataset.size=64"), "bring them to its grid with --set dataset.size=32"),
    ):
        code, _, err = cli(*base, *more)
        assert code == 2
        assert expected in err.replace("\n", " ")
    renamed = tmp_path / "renamed"
    shutil.copytree(data / "test", renamed / "test")
    shutil.copytree(data / "val", renamed / "val")
    for path in (renamed / "test").glob("test00-*"):
        path.rename(path.with_name(path.name.replace("test00", "train01")))
    code, _, err = cli(*base[:-4], renamed, *base[-3:])
    assert code == 2
    assert "1 subject has two roles: 'train01' is a training subject of the fit in" in " ".join(err.split())
    assert "and 'train01' is a test subject here" in " ".join(err.split())


def test_the_role_of_a_subject_that_chose_the_checkpoint_is_said(
    cli: Cli, exported: Path, made: api.Run, tmp_path: Path
) -> None:
    val = next(iter(read_shared(exported).subjects["val"]))
    slices = made.folder.parents[3] / "slices"
    for split in ("val", "test"):
        shutil.copytree(slices / split, tmp_path / "data" / split)
    for path in (tmp_path / "data" / "val").glob(f"{val}-*"):
        path.unlink()
    for path in (tmp_path / "data" / "test").glob("test00-*"):
        path.rename(path.with_name(path.name.replace("test00", val)))
    data = ("--dataset", "folder", "--data-root", tmp_path / "data", "--device", "cpu", "--out", tmp_path / "out")
    code, _, err = cli("run", "--fit", exported, *data, "--quiet")
    assert code == 2
    said = " ".join(err.split())
    assert f"{val!r} is a validation subject of the fit in" in said
    assert f"{val!r} is a test subject here" in said
    assert "learned from" not in said


def test_a_fit_of_another_version_is_refused(
    cli: Cli, made: api.Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.load("methods", "ae"), "version", "99")
    data = made.folder.parents[3] / "slices"
    code, _, err = cli("run", "--fit", exported, "--dataset", "folder", "--data-root", data, "--out", tmp_path / "out")
    assert code == 2
    assert f"and here is version 99: use the adbench that it was made with ({__version__})" in " ".join(err.split())


def test_export_asks_for_what_others_must_know(cli: Cli, made: api.Run, tmp_path: Path) -> None:
    code, _, err = cli("fit", "export", made.folder, "--out", tmp_path / "x", "--author", "me", "--licence", " ")
    assert code == 2
    assert "--licence" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    code, _, err = cli("fit", "export", made.folder, "--out", tmp_path / "full", *WHO)
    assert code == 2
    assert "no shared fit: give a new folder" in err.replace("\n", " ")


def test_a_licence_is_one_word_and_a_link_an_https_address(cli: Cli, made: api.Run, tmp_path: Path) -> None:
    for more, says in (
        (("--licence", "foo bar baz"), "--licence: it must be an identifier of one word, such as CC-BY-4.0"),
        (("--link", "javascript:alert(1)"), "--link: it must be an https address"),
        (("--link", "http://example.org"), "--link: it must be an https address"),
        (("--link", "https://example.org/a b"), "--link: it must be an https address"),
    ):
        code, _, err = cli("fit", "export", made.folder, "--out", tmp_path / "x", *WHO, *more)
        assert (code, says in " ".join(err.split())) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_nobody_elses_fit_is_replaced(cli: Cli, made: api.Run, own: Path, tmp_path: Path) -> None:
    def held() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in own.iterdir()}

    before = held()
    code, _, err = cli("fit", "export", made.folder, "--out", own, "--author", "Somebody Else", "--licence", "MIT")
    assert (code, held()) == (2, before)
    assert "holds a shared fit of ae by A. Researcher, not an export of this run by Somebody Else" in " ".join(
        err.split()
    )
    settings: dict[str, Any] = {"data_root": str(made.folder.parents[3] / "slices"), "device": "cpu"}
    (other,) = api.run("histeq", "folder", out=tmp_path / "runs", **settings)
    code, _, err = cli("fit", "export", other.folder, "--out", own, *WHO)
    assert (code, held()) == (2, before)
    assert cli("fit", "export", made.folder, "--out", own, *WHO, "--link", "https://example.org")[0] == 0
    assert held() == before, "the same run by the same author: what a killed export is resumed by"
    for place in (made.fit_folder, made.fit_folder.parent / "new", made.fit_folder.parent / "new.zip"):
        code, _, err = cli("fit", "export", made.folder, "--out", place, *WHO)
        assert (code, "where runs keep their fits" in " ".join(err.split())) == (2, True)
    shared_fits.bring(own, tmp_path / "runs")
    (mine,) = api.run("ae", "folder", set={"ae": {"steps": 4}}, out=tmp_path / "runs", **settings)
    assert mine.record.weights is None, "a run whose fit was there"
    code, _, err = cli("fit", "export", mine.folder, "--out", tmp_path / "mine", "--author", "Else", "--licence", "MIT")
    assert (code, "was made by A. Researcher: pass on" in " ".join(err.split())) == (2, True)
    assert not (tmp_path / "mine").exists()


def test_a_list_says_when_there_is_nothing_to_list(cli: Cli, own: Path, tmp_path: Path) -> None:
    for out, says in (
        (own, f"{own} is a shared fit, not a folder of runs: `adbench fit import {own}`"),
        (tmp_path, f"There is no complete fit in {tmp_path / 'fits'}"),
    ):
        code, said, err = cli("fit", "list", "--out", out)
        assert (code, said) == (2, "")
        assert says in " ".join(err.split())
    shutil.move(shared_fits.bring(own, tmp_path / "out").folder, tmp_path / "out" / "fits" / "some-name")
    (row,) = shared_fits.listed(tmp_path / "out")
    assert row["method"] == "ae", "the manifest says it, not the folder"


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    change(content)
    (folder / MANIFEST).write_text(json.dumps(sealed(content)))


def test_strangers_files_are_data(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = own / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors was changed"):
        read_shared(own)
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is a link, not a file"):
        read_shared(own)
    weights.unlink()
    weights.write_bytes((1 << 40).to_bytes(8, "little") + good[8:])
    _edit(own, lambda c: c["files"].update({weights.name: digest_file(weights)}))
    with pytest.raises(UserError, match="has a header of 1099511627776 bytes"):
        read_shared(own)
    weights.write_bytes(good)
    _edit(own, lambda c: c["files"].update({weights.name: digest_file(weights)}))
    read_shared(own)
    (own / "more.json").write_text("{}")
    with pytest.raises(UserError, match=r"more\.json is not in the manifest"):
        read_shared(own)
    (own / "more.json").unlink()
    for name in ("../../evil.json", "model.pt", "/etc/passwd.json", "a/../b.json", MANIFEST):
        broken = Path(shutil.copytree(own, tmp_path / digest_file(own / RUN_RECORD)[:4] / name.replace("/", "_")))
        _edit(broken, lambda c, name=name: c["files"].update({name: "0" * 64}))
        with pytest.raises(UserError, match="with plain names"):
            read_shared(broken)
    monkeypatch.setattr("adbench.config.shared_fit.FIT_BYTES", Limit("FIT_BYTES", 1000, "bytes"))
    with pytest.raises(UserError, match="ADBENCH_MAX_FIT_BYTES"):
        read_shared(own)


def test_a_manifest_that_lies(cli: Cli, made: api.Run, own: Path, tmp_path: Path) -> None:
    data = made.folder.parents[3] / "slices"
    _edit(own, lambda c: c["identity"].update(seed=7))
    with pytest.raises(UserError, match="fit_key is not the hash of identity"):
        read_shared(own)
    (own / MANIFEST).write_text("{" * 5000)
    with pytest.raises(UserError, match="not readable JSON"):
        read_shared(own)
    shutil.copy(made.folder / "record.json", own / MANIFEST)
    with pytest.raises(UserError, match=r"has schema 1|describes no fit|was changed"):
        read_shared(own)
    code, _, err = cli("run", "--fit", tmp_path, "--dataset", "folder", "--data-root", data, "--out", tmp_path / "out")
    assert code == 2
    assert "holds no shared fit" in err


def test_one_file_goes_and_comes_back(cli: Cli, made: api.Run, exported: Path, tmp_path: Path) -> None:
    one, again, out = tmp_path / "new" / "ae.zip", tmp_path / "again.zip", tmp_path / "out"
    for path in (one, again):
        assert cli("fit", "export", made.folder, "--out", path, *WHO, "--link", "https://example.org")[0] == 0
    assert one.read_bytes() == again.read_bytes()
    assert list(one.parent.iterdir()) == [one]
    code, _, err = cli("fit", "import", one, "--out", out)
    assert code == 0, err
    (row,) = shared_fits.listed(out)
    assert row["author"] == "A. Researcher"
    assert read_shared(Path(row["folder"])).weights == read_shared(exported).weights
    assert [path.name for path in out.iterdir()] == ["fits"]
    for command in (
        ("fit", "export", made.folder, "--out", one, *WHO),
        ("predict", "--run", one, "--images", tmp_path, "--out", out),
        ("run", "--fit", one, "--dataset", "phantom", "--out", out),
    ):
        code, _, err = cli(*command)
        assert code == 2
        assert "is there: give another name" in err or "fit import" in err


def _zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def test_strangers_archives_are_data(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {p.relative_to(exported).as_posix(): p.read_bytes() for p in exported.rglob("*") if p.is_file()}
    more = {f"ae/{name}": content for name, content in files.items()} | {"ae/x.pkl": b"\x80\x04cos\nsystem\n"}
    brought = shared_fits.bring(
        _zipped(tmp_path / "more.zip", more), tmp_path / "runs"
    )  # zipped again, with more beside it
    assert not list(brought.folder.rglob("*.pkl"))
    twice = {f"{folder}/{MANIFEST}": b"{}" for folder in ("a", "b")}
    for name, content, message in (
        ("none", {"a.txt": b"a"}, r"none\.zip holds no shared fit"),
        ("two", twice, "holds 2 shared fits: import one"),
        ("out", {"../../evil.json": b"{}"}, "not to be trusted"),
        ("changed", files | {"model.safetensors": bytes(8)}, r"changed\.zip/model\.safetensors was changed"),
    ):
        with pytest.raises(UserError, match=message):
            shared_fits.bring(_zipped(tmp_path / f"{name}.zip", content), tmp_path / "others")
    monkeypatch.setattr("adbench.config.shared_fit.FIT_BYTES", Limit("FIT_BYTES", 1000, "bytes"))
    with pytest.raises(UserError, match="ADBENCH_MAX_FIT_BYTES"):
        shared_fits.bring(tmp_path / "more.zip", tmp_path / "others")
    assert list((tmp_path / "others").iterdir()) == []
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="is no tar or zip archive"):
        shared_fits.bring(tmp_path / "text.zip", tmp_path / "others")


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload and a download of small files need."""

    files: dict[str, bytes]

    def _answer(self, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}/me/ae"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": self._address + "/commit/" + "a" * 40, "commitOid": "a" * 40})
        else:
            self._answer({"url": self._address, "errors": [], "warnings": []})

    def do_GET(self) -> None:
        name = self.path.partition("/resolve/")[2].partition("/")[2].partition("?")[0]
        if name:
            self._answer(self.files[name], ETag=f'"{hash(name)}"', X_Repo_Commit="a" * 40)
        elif "/tree/" in self.path:
            listed = [{"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in self.files.items()]
            self._answer(listed)
        else:
            siblings = [{"rfilename": name} for name in self.files]
            self._answer({"id": "me/ae", "modelId": "me/ae", "sha": "a" * 40, "siblings": siblings})

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    from huggingface_hub import constants

    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield files
    server.shutdown()


def test_what_the_manifest_does_not_list_goes_nowhere(
    cli: Cli, hub: dict[str, bytes], own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own / "evil.py").write_text("import os")
    (own / "sub").mkdir()
    (own / "sub" / "weights.pt").write_bytes(b"\x80\x04")
    (own / ".gitattributes").write_text("")
    listed = {MANIFEST, "README.md", *read_shared(own).files}
    shared_fits.push(own, "me/ae")
    assert set(hub) == listed
    code, printed, said = cli("fit", "import", own, "--out", tmp_path / "runs", "-q")
    assert code == 0, said
    folder = Path(printed.strip())
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == listed
    sentence = "evil.py, sub/weights.pt are not in the manifest of the shared fit and were left out."
    assert caplog.text.count(sentence) == 2  # of the push and the import


def test_goes_to_the_hub_and_comes_back(hub: dict[str, bytes], exported: Path, tmp_path: Path) -> None:
    assert "commit" in shared_fits.push(exported, "me/ae")
    assert set(hub) == {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert hub["README.md"].startswith(b'---\nlicense: "cc-by-4.0"\nlibrary_name: adbench\n')
    hub["pytorch_model.bin"] = b"\x80\x04cos\nsystem\n"
    pulled = shared_fits.pull("me/ae", tmp_path / "pulled")
    assert pulled.weights == read_shared(exported).weights
    assert not (tmp_path / "pulled" / "pytorch_model.bin").exists()
