"""Downloads from a local server that breaks off, lies about lengths and serves other files."""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adbench.config import run_config
from adbench.datasets import download
from adbench.datasets.download import Remote, fetch, files_of, missing
from adbench.errors import UserError

CONTENT = hashlib.sha256(b"seed").digest() * 100_000  # 3.2 MB
OTHER = bytes(reversed(CONTENT))  # of the same length
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``mood`` says how it misbehaves, ``asked`` what ranges were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {"/a.tar": CONTENT}
        self.mood = ""
        self.asked: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """A client that goes away before the end is what some of the tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        if self.server.mood.startswith("no HEAD"):
            self.send_error(int(self.server.mood[-3:]))
            return
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range", ""))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        mood, content = self.server.mood, self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        tag = str(len(self.server.asked)) if mood == "nodes" else hashlib.sha256(content).hexdigest()
        if mood == "no ranges" or (
            mood in ("changes", "nodes") and self.headers.get("If-Range", f'"{tag}"') != f'"{tag}"'
        ):
            start = 0
        if start and start >= len(content):
            self.send_error(416)
            return
        if mood == "busy" and len(self.server.asked) < 3:
            self.send_error(503)
            return
        if mood == "loop":
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}{self.path}")
            self.end_headers()
            return
        if self.headers.get("Range") == "bytes=0-0" and mood != "no HEAD, no ranges 405":
            self.send_response(206)
            whole = "*" if mood.startswith("no HEAD, no length") else len(content)
            self.send_header("Content-Range", f"bytes 0-0/{whole}")
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(content[:1])
            return
        sent = content[start:]
        self.send_response(206 if start else 200)
        if "change" in mood or mood == "nodes":
            self.send_header("ETag", f'"{tag}"')
        self.send_header("Content-Type", "text/html" if mood == "page" else "application/octet-stream")
        if mood != "no length":
            self.send_header(
                "Content-Length", "-5" if mood == "negative" else str(len(sent) + 1000 * (mood == "too long"))
            )
        self.end_headers()
        if body:
            self.wfile.write(
                sent[:1_000_000] if mood in ("breaks off", "no ranges", "nodes") or "change" in mood else sent
            )
            if "change" in mood:
                self.server.files[self.path] = OTHER
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def remote(server: Server, **more: Any) -> Remote:
    return replace(Remote(f"{server.url}/a.tar", "a.tar", MD5), **more)


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    (wanted,) = missing([remote(server)], tmp_path / "new")
    assert wanted.size == len(CONTENT)
    assert fetch(wanted, tmp_path / "new").read_bytes() == CONTENT
    assert missing([remote(server)], tmp_path / "new") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tar"]


def test_a_server_that_breaks_off_is_asked_for_the_rest(server: Server, tmp_path: Path) -> None:
    server.mood = "breaks off"
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:2_000_000])
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=2000000-"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.mood = "busy"
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_that_breaks_off(server: Server, tmp_path: Path) -> None:
    server.mood = "no ranges"
    with pytest.raises(UserError, match=r"/a.tar broke off after 1000000 of 3200000 bytes, 5 times in a row"):
        fetch(remote(server), tmp_path)
    assert not (tmp_path / "a.tar").exists()


def test_a_length_that_is_a_lie(server: Server, tmp_path: Path) -> None:
    server.mood = "too long"
    with pytest.raises(UserError, match=r"/a.tar broke off after \d+ of 3201000 bytes, 5 times in a row"):
        fetch(remote(server, md5=""), tmp_path)
    assert not (tmp_path / "a.tar").exists()
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT  # by its checksum it is whole


@pytest.mark.parametrize(
    ("mood", "says"),
    [
        ("negative", "states a length of '-5' bytes: give another address with --mirror."),
        ("loop", "answers 302 and redirects to itself"),
    ],
)
def test_a_server_that_misleads_is_named_in_one_line(server: Server, tmp_path: Path, mood: str, says: str) -> None:
    server.mood = mood
    for ask in (lambda: missing([remote(server)], tmp_path), lambda: fetch(remote(server), tmp_path)):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value).startswith(f"{server.url}/a.tar ")
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_without_length_or_checksum_a_cut_gzip_file_is_noticed(server: Server, tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(256)) * 40)
    server.mood, server.files["/a.nii.gz"] = "no length", whole[:60]
    file = Remote(f"{server.url}/a.nii.gz", "a.nii.gz")
    with pytest.raises(UserError, match="ends after 60 bytes, in the middle of a gzip file"):
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.files["/a.nii.gz"] = whole
    assert fetch(file, tmp_path).read_bytes() == whole


GZIP = gzip.compress(bytes(range(256)) * 40)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"Rate limit exceeded\n", "is no gzip file, it begins with b'Rate limit exceeded"),
        (b"", "is no gzip file, it begins with b''"),
        (b"\n<!DOCTYPE html><p>", "is a page, not a file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "is a pointer of Git LFS"),
        (GZIP[:-30], "ends after [0-9]+ bytes, in the middle of a gzip file"),
        (GZIP[:-8] + b"abcd" + GZIP[-4:], "is a damaged gzip file .CRC"),
    ],
)
def test_what_a_mirror_gives_instead_of_a_gzip_file(server: Server, tmp_path: Path, content: bytes, says: str) -> None:
    file = Remote(f"{server.url}/a.nii.gz", "a.nii.gz")
    server.files["/a.nii.gz"] = content
    with pytest.raises(UserError, match=f"/a.nii.gz {says}.*, and was removed"):
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.nii.gz").write_bytes(content)  # of an earlier version
    with pytest.raises(UserError, match=f"a.nii.gz is there and {says}.*: move it away, and it is fetched again"):
        missing([file], tmp_path)
    server.files["/a.nii.gz"] = GZIP
    (tmp_path / "a.nii.gz").unlink()
    assert fetch(file, tmp_path).read_bytes() == GZIP
    assert missing([file], tmp_path) == []


def test_another_file(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar"] = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match=rf"/a.tar has the MD5 [0-9a-f]+, and {MD5} is expected: it is another file"):
        fetch(remote(server), tmp_path)
    with pytest.raises(UserError, match=r"has 3200000 bytes there, where 7 were announced: it is another file"):
        fetch(remote(server, md5="", size=7), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_noticed_by_the_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(b"?" * 1000)
    with pytest.raises(UserError, match="has the MD5"):
        fetch(remote(server), tmp_path)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_page_instead_of_a_file(server: Server, tmp_path: Path) -> None:
    server.mood = "page"
    with pytest.raises(UserError, match=r"/a.tar gives a page, not a file: open it in a browser"):
        fetch(remote(server), tmp_path)


def test_addresses_that_do_not_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/b.tar answers 404 Not Found: try again later, or give another address"):
        missing([Remote(f"{server.url}/b.tar", "b.tar")], tmp_path)
    with pytest.raises(UserError, match=r"/b.tar answers 404 Not Found"):
        fetch(Remote(f"{server.url}/b.tar", "b.tar"), tmp_path)
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/b.tar does not answer"):
        missing([Remote("http://127.0.0.1:1/b.tar", "b.tar")], tmp_path)


def test_room_is_looked_for_first(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1000000\.0 GB are still to be fetched, and .* GB free: make room, or name"):
        missing([remote(server, size=10**15)], tmp_path / "not yet")
    assert server.asked == []


def listing(names: dict[str, bytes], token: str = "") -> bytes:
    entries = "".join(
        f"<Contents><Key>{name}</Key><ETag>&quot;{hashlib.md5(content, usedforsecurity=False).hexdigest()}&quot;</ETag>"
        f"<Size>{len(content)}</Size></Contents>"
        for name, content in names.items()
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{entries}{more}</ListBucketResult>'.encode()
    )


def test_openneuro_lists_what_there_is(server: Server, tmp_path: Path) -> None:
    mask = gzip.compress(b"mask")
    first = {
        "ds004889/sub-1/anat/sub-1_FLAIR.nii.gz": gzip.compress(b"flair"),
        "ds004889/sub-1/perf/sub-1_asl.nii.gz": b"asl",
    }
    second = {"ds004889/derivatives/lesion_masks/sub-1/dwi/sub-1_desc-lesion_mask.nii.gz": mask}
    start = "/?list-type=2&prefix=ds004889%2F"
    server.files |= {start: listing(first, "n+1"), f"{start}&continuation-token=n%2B1": listing(second)}
    server.files |= {f"/{name}": content for name, content in {**first, **second}.items()}
    found = files_of("soop", mirror=server.url)
    assert [file.name for file in found] == [
        "sub-1/anat/sub-1_FLAIR.nii.gz",
        "derivatives/lesion_masks/sub-1/dwi/sub-1_desc-lesion_mask.nii.gz",
    ]
    with pytest.raises(
        UserError, match=r"/ds004889/ lists no T1 of soop, but FLAIR: is --mirror a copy of the whole bucket"
    ):
        files_of("soop", ["FLAIR", "T1"], server.url)
    assert files_of("soop", ["FLAIR"], server.url) == found
    with pytest.raises(UserError, match="There is no BANANA to get of soop: there is T1, FLAIR, ADC, DWI"):
        files_of("soop", ["BANANA"], server.url)
    for file in missing(found, tmp_path):
        fetch(file, tmp_path)
    assert (tmp_path / found[1].name).read_bytes() == mask
    (tmp_path / found[0].name).write_bytes(b"flai")
    with pytest.raises(UserError, match=r"sub-1_FLAIR\.nii\.gz is there and is not the published file"):
        missing(found, tmp_path)
    server.files[start] = listing({"ds004889/derivatives/lesion/../../../../x": b""})
    with pytest.raises(UserError, match="would land outside the folder: it is not to be trusted"):
        files_of("soop", mirror=server.url)
    server.files[start] = b"<html>"
    with pytest.raises(UserError, match=r"The list of files at .* cannot be read"):
        files_of("soop", mirror=server.url)


_ENTRY = "<Contents><Size>5</Size><Key>ds004889/sub-1/anat/"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<Contents><Key>ds004889/sub-1/anat/sub-1_T1w.nii.gz</Key><Size>abc</Size></Contents>", "the size 'abc'"),
        (f"<Contents><Key>ds004889/derivatives/lesion/{'a' * 300}</Key></Contents>", "a name longer than"),
        ("<Contents/><NextContinuationToken>t</NextContinuationToken>", "comes round to its beginning"),
        ("<Contents><Key>ds004889/derivatives/lesion_masks/</Key><Size>0</Size></Contents>", "lists no file"),
        (f"{_ENTRY}a_T1w.nii.gz</Key></Contents>" * 2, "lists 'sub-1/anat/a_T1w.nii.gz' twice"),
        ("<Contents/>" + " " * 16_000_000, "16000077 bytes|holds 1600000. bytes"),
    ],
)
def test_lists_that_are_not_to_be_trusted(server: Server, content: str, says: str) -> None:
    page = f"<ListBucketResult>{content}</ListBucketResult>".encode()
    for more in ("", "&continuation-token=t"):
        server.files[f"/?list-type=2&prefix=ds004889%2F{more}"] = page
    with pytest.raises(UserError, match=says):
        files_of("soop", mirror=server.url)


def test_what_is_wanted_of_ixi() -> None:
    assert [file.name for file in files_of("ixi", ["T2"])] == ["IXI-T2.tar"]
    assert files_of("ixi", mirror="http://here/x/")[0].url == "http://here/x/IXI-T1.tar"
    with pytest.raises(UserError, match=r"There is no FLAIR to get of ixi: there is T1, T2, PD\."):
        files_of("ixi", ["FLAIR"])
    with pytest.raises(UserError, match="All sequences of msd_brain are in one file"):
        files_of("msd_brain", ["FLAIR"])
    with pytest.raises(UserError, match=r"The mirror 127\.0\.0\.1:80 is no address: it begins with http"):
        files_of("ixi", mirror="127.0.0.1:80")


def test_a_file_that_was_brought_otherwise_is_compared(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"junk")
    with pytest.raises(UserError, match="is not the published file"):
        missing([Remote("http://127.0.0.1:1/a.tar", "a.tar", "0" * 32)], tmp_path)
    same = Remote("http://127.0.0.1:1/a.tar", "a.tar", hashlib.md5(b"junk").hexdigest())
    assert missing([same], tmp_path) == []


def test_mslub_is_fetched_in_names_that_its_adapter_reads(server: Server, tmp_path: Path) -> None:
    wanted = files_of("mslub", ["FLAIR"], server.url)
    assert len(wanted) == 3 * 30  # with consensus and brain mask
    server.files = {"/" + remote.name: gzip.compress(CONTENT[:1000]) for remote in wanted[:3]}
    for remote in missing(wanted[:3], tmp_path):
        fetch(remote, tmp_path)
    (scan,) = run_config.locate("mslub", str(tmp_path), {}, "--data-root").open().index.scans  # type: ignore[attr-defined]
    assert (scan.subject, sorted(scan.files)) == ("patient01", ["FLAIR", "brain", "lesion"])


def test_the_command(
    cli: Callable[..., tuple[int, str, str]], server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(download.SOURCES, "ixi", (Remote("http://127.0.0.1:1/a.tar", "a.tar", MD5, modality="T1"),))
    common = ("data", "get", "ixi", "--out", tmp_path, "--mirror", server.url)
    code, _, err = cli(*common)
    assert code == 2
    assert "ixi is under CC BY-SA 3.0: say --accept-licence to agree and fetch it." in " ".join(err.split())
    code, _, err = cli(*common, "--accept-licence")
    assert code == 0, err
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert "adbench data check --dataset ixi --data-root" in err
    code, out, _ = cli("data", "get", "phantom")
    assert code == 0
    assert " ".join(out.split()).endswith(
        "phantom is made by adbench, there is nothing to fetch: adbench run --method histeq --dataset phantom"
    )
    code, out, _ = cli("data", "get", "brats23")
    assert code == 0
    assert "https://www.synapse.org/brats2023" in out
    assert "cannot be fetched without you" in " ".join(out.split())
    code, _, err = cli("data", "get", "ixy")
    assert code == 2
    assert "Did you mean 'ixi'?" in err


@pytest.mark.parametrize("code", [403, 405, 501])
def test_a_server_that_knows_no_head_is_asked_for_the_first_byte(server: Server, tmp_path: Path, code: int) -> None:
    server.mood = f"no HEAD {code}"
    (wanted,) = missing([remote(server)], tmp_path)
    assert (wanted.size, server.asked) == (len(CONTENT), ["bytes=0-0"])
    assert fetch(wanted, tmp_path).read_bytes() == CONTENT
    server.mood, server.asked = f"no HEAD, no length {code}", []
    (wanted,) = missing([remote(server)], tmp_path / "other")
    assert wanted.size is None


def test_a_server_that_knows_no_head_and_no_ranges(server: Server, tmp_path: Path) -> None:
    server.mood = "no HEAD, no ranges 405"
    (wanted,) = missing([remote(server)], tmp_path)
    assert wanted.size == len(CONTENT)
    server.mood = "no HEAD 404"  # any other answer is the answer
    with pytest.raises(UserError, match=r"/a.tar answers 404"):
        missing([remote(server)], tmp_path)


@pytest.mark.parametrize("mood", ["changes", "changes without a word"])
def test_a_file_that_changes_on_the_server_is_fetched_from_the_start(server: Server, tmp_path: Path, mood: str) -> None:
    """By its ETag: a server that knows If-Range sends the whole of the new one, of another the tag of the rest tells it."""
    server.mood = mood
    assert fetch(remote(server, md5="", size=len(CONTENT)), tmp_path).read_bytes() == OTHER
    assert "bytes=1000000-" in server.asked


def test_nodes_with_a_tag_each_go_on_where_another_broke_off(server: Server, tmp_path: Path) -> None:
    server.mood = "nodes"
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    parts = range(1_000_000, len(CONTENT), 1_000_000)
    assert [each for each in server.asked if each] == [f"bytes={start}-" for start in parts]
