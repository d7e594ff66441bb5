"""Fetching what may be fetched without an agreement: resumed, compared with checksums, never half a file under its name."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from adbench.context import Progress
from adbench.errors import UserError
from adbench.utils.limits import LIST_BYTES, LIST_FILES, LIST_PAGES, check

ATTEMPTS = 5  # in a row without a byte more
TIMEOUT = 60.0  # s without an answer
_PART = ".part"  # an unfinished download, as adbench.datasets.io.archive knows it
_BLOCK = 1 << 20
_NO_HEAD = (403, 405, 501)  # answers to HEAD of servers, and of signed addresses, that know GET alone
_LONGEST_NAME = 255  # bytes
_SLACK = 100_000_000  # bytes that stay free


@dataclass(frozen=True)
class Remote:
    """One file to fetch.

    Attributes:
        url: of it.
        name: below the folder, with ``/``.
        md5: of its bytes; "" where it is not published.
        size: in bytes; None: the server says it.
        modality: what is in it; "" for what all sequences need.
    """

    url: str
    name: str
    md5: str = ""
    size: int | None = None
    modality: str = ""


@dataclass(frozen=True)
class Bucket:
    """A folder of an S3 bucket that lists its files with sizes and MD5 (the ETag of a file that was sent in one piece).

    Attributes:
        url: of the bucket.
        prefix: of the folder, with ``/`` at its end.
        wanted: pattern of the names below the prefix.
        modalities: sequence, upper case, and the pattern of the names of its files; the first that fits.
    """

    url: str
    prefix: str
    wanted: str
    modalities: tuple[tuple[str, str], ...] = ()


_MSLUB = "https://raw.githubusercontent.com/muschellij2/open_ms_data/65704901f60650824565aa5a4818611aa89716f4/cross_sectional"
_OF_MSLUB = {"FLAIR": "FLAIR", "T1W": "T1", "T1WKS": "T1CE", "T2W": "T2", "consensus_gt": "", "brainmask": ""}
_IXI = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
# Addresses and MD5 of IXI: torchio/datasets/ixi.py (TorchIO 1.2); of MSD: monai/apps/datasets.py (MONAI 1.5), DecathlonDataset;
# MSLUB: the README of github.com/muschellij2/open_ms_data, a copy of the publisher's files (CC BY), which states no checksums;
# OpenNeuro: docs.openneuro.org, "Downloading data from OpenNeuro" (s3://openneuro.org, no sign-in).
SOURCES: dict[str, tuple[Remote, ...] | Bucket] = {
    "ixi": (
        Remote(f"{_IXI}/IXI-T1.tar", "IXI-T1.tar", "34901a0593b41dd19c1a1f746eac2d58", modality="T1"),
        Remote(f"{_IXI}/IXI-T2.tar", "IXI-T2.tar", "e3140d78730ecdd32ba92da48c0a9aaa", modality="T2"),
        Remote(f"{_IXI}/IXI-PD.tar", "IXI-PD.tar", "88ecd9d1fa33cb4a2278183b42ffd749", modality="PD"),
    ),
    "msd_brain": (
        Remote(
            "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task01_BrainTumour.tar",
            "Task01_BrainTumour.tar",
            "240a19d752f0d9e9101544901065d872",
        ),
    ),
    "mslub": tuple(
        Remote(f"{_MSLUB}/{name}", name, modality=modality)
        for number in range(1, 31)
        for stem, modality in _OF_MSLUB.items()
        for name in (f"coregistered/patient{number:02d}/{stem}.nii.gz",)
    ),
    "soop": Bucket(
        "https://s3.amazonaws.com/openneuro.org",
        "ds004889/",
        r"participants\.(tsv|json)|dataset_description\.json|.*_(T1w|FLAIR|trace|adc|dwi)\.nii\.gz|derivatives/.*lesion.*",
        (
            ("T1", r"(?!derivatives/).*_T1w\..*"),
            ("FLAIR", r"(?!derivatives/).*_FLAIR\..*"),
            ("ADC", r"(?!derivatives/)(?:.*_adc\.|.*[-_]ADC[-_].*_dwi\.).*"),
            ("DWI", r"(?!derivatives/).*_(?:trace|dwi)\..*"),
        ),
    ),
}


def files_of(name: str, modalities: Sequence[str] = (), mirror: str = "") -> list[Remote]:
    """What belongs to the dataset ``name``.

    Args:
        name: key of :data:`SOURCES`.
        modalities: those that are wanted, upper case; empty: all. Only files of their own are chosen by it.
        mirror: address of a folder that holds the same files, or of a bucket; "": the publisher's.

    Raises:
        UserError: a modality that no file is of, or a list of files that cannot be read.
    """
    source = SOURCES[name]
    if mirror and urllib.parse.urlsplit(mirror).scheme not in ("http", "https"):
        raise UserError(f"The mirror {mirror} is no address: it begins with http:// or https://.")
    if isinstance(source, Bucket):
        source = replace(source, url=mirror.rstrip("/") or source.url)
        there = [modality for modality, _ in source.modalities]
    else:
        there = [remote.modality for remote in source if remote.modality]
    for modality in modalities:
        if not there:
            raise UserError(f"All sequences of {name} are in one file: leave --modality out.")
        if modality not in there:
            raise UserError(f"There is no {modality} to get of {name}: there is {', '.join(there)}.")
    if isinstance(source, Bucket):
        listed = _listed(source)
        of = {remote.modality for remote in listed} - {""}
        if lacking := [modality for modality in modalities if modality not in of] or ([] if of else ["image"]):
            raise UserError(
                f"{source.url}/{source.prefix} lists no {lacking[0]} of {name}, but {', '.join(sorted(of)) or 'tables and masks'}: is "
                "--mirror a copy of the whole bucket?"
            )
        return [remote for remote in listed if not modalities or remote.modality in ("", *modalities)]
    chosen = [remote for remote in source if not modalities or remote.modality in ("", *modalities)]
    if not mirror:
        return chosen
    return [replace(remote, url=f"{mirror.rstrip('/')}/{urllib.parse.quote(remote.name)}") for remote in chosen]


def _listed(bucket: Bucket) -> list[Remote]:
    found: list[Remote] = []
    token, seen = "", {""}
    while True:
        query = {"list-type": "2", "prefix": bucket.prefix, **({"continuation-token": token} if token else {})}
        url = f"{bucket.url}/?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                text = answer.read(LIST_BYTES + 1)
            check(url, "holds", len(text), LIST_BYTES)
            page = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", text, count=1))
        except (OSError, http.client.HTTPException, ElementTree.ParseError) as error:
            raise UserError(
                f"The list of files at {url} cannot be read ({error}): try again, or give --mirror."
            ) from None
        for entry in page.iter("Contents"):
            key, tag = entry.findtext("Key", ""), entry.findtext("ETag", "").strip('"')
            name = key.removeprefix(bucket.prefix)
            if re.fullmatch(bucket.wanted, name) and not name.endswith("/"):  # S3 lists folders that were made by hand
                md5 = tag if re.fullmatch("[0-9a-f]{32}", tag) else ""
                stated = entry.findtext("Size", "0")
                if not re.fullmatch(r"[0-9]{1,18}", stated):
                    raise UserError(
                        f"The list of files at {url} gives {key} the size {stated[:40]!r}: give another --mirror."
                    )
                size = int(stated)
                of = next((modality for modality, names in bucket.modalities if re.fullmatch(names, name)), "")
                found.append(Remote(f"{bucket.url}/{urllib.parse.quote(key)}", _inside(name), md5, size, of))
        check(url, "lists", len(found), LIST_FILES)
        check(url, "comes on", len(seen), LIST_PAGES)
        token = page.findtext("NextContinuationToken", "")
        if not token:
            break
        if token in seen:
            raise UserError(f"The list of files at {url} comes round to its beginning: give another --mirror.")
        seen.add(token)
    if not found:
        raise UserError(f"{bucket.url}/{bucket.prefix} lists no file of the dataset: is --mirror a copy of the bucket?")
    names = [remote.name for remote in found]
    folders = {name[:at] for name in names for at, sign in enumerate(name) if sign == "/"}
    if clash := sorted(folders.intersection(names)) or [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{bucket.url} lists {clash[0]!r} twice, or as a file and a folder: give another --mirror.")
    return found


def _inside(name: str) -> str:
    """``name``, which must stay inside the folder: the list comes from a server."""
    if name.startswith(("/", "\\")) or ".." in name.split("/") or "\\" in name:
        raise UserError(f"The server lists {name!r}, which would land outside the folder: it is not to be trusted.")
    if any(len(part.encode()) + len(_PART) > _LONGEST_NAME for part in name.split("/")):
        raise UserError(
            f"The server lists {name[:80]!r}..., a name longer than file systems keep: it is not to be trusted."
        )
    return name


def missing(files: Sequence[Remote], folder: Path) -> list[Remote]:
    """Those of ``files`` that ``folder`` does not hold, with their sizes.

    Raises:
        UserError: a server that does not answer, there is less disk space than they need, or a file of such a name is there
            and is not the one to be fetched, by its size, or by its MD5 where the size is not known.
    """
    for remote in files:
        _refuse_other(folder / remote.name, remote)
    wanted = [
        replace(remote, size=_length(remote) if remote.size is None else remote.size)
        for remote in files
        if not (folder / remote.name).is_file()
    ]
    needed = 0
    for remote in wanted:
        part = folder / f"{remote.name}{_PART}"
        needed += max(0, (remote.size or 0) - (part.stat().st_size if part.is_file() else 0))
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed and needed + _SLACK > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are still to be fetched, and {there} has {free / 1e9:.1f} GB free: make room, or name "
            "another folder with --out."
        )
    return wanted


def _length(remote: Remote) -> int | None:
    """The length that the server states: to HEAD, or where it does not take that, to a request for the first byte."""
    head = urllib.request.Request(remote.url, method="HEAD")
    first = urllib.request.Request(remote.url, headers={"Range": "bytes=0-0"})
    for request in (head, first):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if answer.status == 206:  # of "bytes 0-0/1234" what follows the stroke, "*" where it is not known
                    length = answer.headers.get("Content-Range", "").rpartition("/")[2]
                    return _stated(remote, None if length == "*" else length)
                return _stated(remote, answer.headers.get("Content-Length"))
        except (OSError, http.client.HTTPException) as error:
            if request is first or not (isinstance(error, urllib.error.HTTPError) and error.code in _NO_HEAD):
                raise _unreachable(remote.url, error) from None
    raise AssertionError


def _strong(tag: str | None) -> str:
    """A tag that changes with every byte of the file; "" for a weak one or none."""
    return tag if tag and tag.startswith('"') else ""


def _stated(remote: Remote, length: str | None) -> int | None:
    """The length that an answer states; None where it states none.

    Raises:
        UserError: it is that of no file.
    """
    if length and not (length.isascii() and length.strip().isdigit()):
        raise UserError(f"{remote.url} states a length of {length[:40]!r} bytes: give another address with --mirror.")
    return int(length) if length else None


def _reason(error: urllib.error.HTTPError) -> str:
    """In one line: urllib writes three of a loop of redirections."""
    return "and redirects to itself" if "infinite loop" in error.reason else " ".join(error.reason.split())


def _unreachable(url: str, error: Exception) -> UserError:
    what = (
        f"answers {error.code} {_reason(error)}"
        if isinstance(error, urllib.error.HTTPError)
        else f"does not answer ({error})"
    )
    return UserError(f"{url} {what}: try again later, or give another address with --mirror.")


def _refuse_other(path: Path, remote: Remote) -> None:
    if not path.is_file():
        return
    if remote.size is not None:
        other = path.stat().st_size != remote.size
    else:
        with open(path, "rb") as file:
            other = bool(remote.md5) and hashlib.file_digest(file, _md5).hexdigest() != remote.md5
    if other:
        raise UserError(f"{path} is there and is not the published file (another size or MD5): move it away.")
    if what := _no_such_file(path, path.name, unpack=remote.size is None and not remote.md5):
        raise UserError(f"{path} is there and {what}: move it away, and it is fetched again.")


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


class _Part:
    """An unfinished file and its MD5; a block is hashed while the next one arrives.

    Attributes:
        size: bytes that are there; those of an earlier attempt count.
        total: bytes that belong there; None where nobody has said it yet.
    """

    def __init__(self, remote: Remote, path: Path, file: Any, beside: ThreadPoolExecutor, progress: Progress) -> None:
        self.size, self.total = 0, remote.size
        self._remote, self._path, self._file, self._beside, self._progress = remote, path, file, beside, progress
        self._tag = ""  # of the file on the server
        self._content = _md5()
        self._pending: Future[None] | None = None
        self._room, self._hashed_room = (memoryview(bytearray(_BLOCK)) for _ in range(2))
        file.seek(0)
        while count := file.readinto(self._room):
            self._content.update(self._room[:count])
            self.size += count

    @property
    def complete(self) -> bool:
        """Whether nothing is missing; there may be too much."""
        return self.total is not None and self.size >= self.total

    @property
    def md5(self) -> str:
        """Of the bytes that are there, where the remote file has one."""
        if self._pending:
            self._pending.result()
        return str(self._content.hexdigest())

    def go_on(self) -> None:
        """Take in what one answer of the server gives of the rest.

        Raises:
            UserError: it gives a page, or a file of another size.
            OSError, HTTPException: it breaks off, or refuses.
        """
        with urllib.request.urlopen(self._request(), timeout=TIMEOUT) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise UserError(
                    f"{self._remote.url} gives a page, not a file: open it in a browser, or give another address with --mirror."
                )
            before, self._tag = self._tag, _strong(answer.headers.get("ETag"))
            other = bool(before and self._tag and self._tag != before and not self._remote.md5)
            rest_of_another = bool(self.size) and answer.status == 206 and other
            if self.size and (
                answer.status != 206 or rest_of_another
            ):  # the server starts from the beginning, or we do
                self._start_again()
                self.total = self._remote.size
            if not rest_of_another:
                self._take(answer)
                return
        self.go_on()

    def refused(self, error: urllib.error.HTTPError) -> None:
        """Nothing lies behind what is here (status 416): it is the whole file, or of another one."""
        if self.md5 == self._remote.md5 or error.headers.get("Content-Range") == f"bytes */{self.size}":
            self.total = self.size
        else:
            self._start_again()

    def _request(self) -> urllib.request.Request:
        # The rest of the same file, else all of it. Nodes of a mirror may have a tag each, and an MD5 tells more.
        same = {"If-Range": self._tag} if self._tag and not self._remote.md5 else {}
        rest = {"Range": f"bytes={self.size}-", **same}
        return urllib.request.Request(self._remote.url, headers=rest if self.size else {})

    def _start_again(self) -> None:
        self._file.truncate(0)
        self._content, self.size = _md5(), 0

    def _take(self, answer: Any) -> None:
        stated = _stated(self._remote, answer.headers.get("Content-Length"))
        whole = None if stated is None else self.size + stated
        if self.total is not None and whole is not None and whole != self.total:
            raise _other(self._remote, f"has {whole} bytes there, where {self.total} were announced", self._path)
        self.total = whole if self.total is None else self.total
        while count := answer.readinto(self._room):
            self._file.write(self._room[:count])
            if self._pending:
                self._pending.result()
            if self._remote.md5:
                self._pending = self._beside.submit(self._content.update, self._room[:count])
                self._room, self._hashed_room = self._hashed_room, self._room
            self.size += count
            self._progress.update(f"get {Path(self._remote.name).name}", self.size, self.total or 0)
        if self.total is None:
            self.total = self.size


def fetch(remote: Remote, folder: Path, progress: Progress | None = None) -> Path:
    """Fetch one file; what an earlier attempt left behind is not fetched again.

    Args:
        remote: the file.
        folder: that it is put into, made if need be.
        progress: receives bytes.

    Returns:
        The file, whole and with the right checksum where one is known.

    Raises:
        UserError: the server breaks off again and again, gives a page, a file of another size, or one with another MD5.
    """
    target = folder / remote.name
    if target.is_file():
        return target
    path = target.with_name(target.name + _PART)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as beside, open(path, "a+b", buffering=0) as file:
        part = _Part(remote, path, file, beside, progress or Progress())
        problem = _complete(part, remote)
    if not part.complete:
        raise UserError(
            f"{remote.url} broke off after {part.size} of {part.total or 'an unknown number of'} bytes, {ATTEMPTS} times in a row "
            f"({problem}): run the command again, it goes on from there, or give another address with --mirror."
        )
    if part.size != part.total:
        raise _other(remote, f"gave {part.size} bytes, where {part.total} were announced", path)
    if remote.md5 and part.md5 != remote.md5:
        raise _other(remote, f"has the MD5 {part.md5}, and {remote.md5} is expected", path)
    if what := _no_such_file(path, target.name, unpack=not remote.md5):
        raise _other(remote, what, path)
    path.replace(target)
    return target


def _complete(part: _Part, remote: Remote) -> str:
    """Ask until ``part`` is complete, or :data:`ATTEMPTS` answers in a row brought nothing; says what was wrong with the last."""
    failures, best, problem = 0, part.size, ""
    while failures < ATTEMPTS and not part.complete:
        try:
            part.go_on()
            problem = "the connection ended"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise _unreachable(remote.url, error) from None
            problem = f"{error.code} {_reason(error)}"
            if error.code == 416:
                part.refused(error)
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        failures, best = (0, part.size) if part.size > best else (failures + 1, best)
        if 0 < failures < ATTEMPTS and not part.complete:
            time.sleep(min(2**failures, 30) * 0.1)
    return problem


def _no_such_file(path: Path, name: str, *, unpack: bool) -> str:
    """Why ``path`` cannot be the file ``name``, by its first bytes and, where a gzip file is unpacked, by its checksum."""
    with open(path, "rb") as file:
        start = file.read(200)
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "is a page, not a file"
    if not name.lower().endswith(".gz"):
        return ""
    if not start.startswith(b"\x1f\x8b"):
        return f"is no gzip file, it begins with {start[:20]!r}"
    try:
        with gzip.open(path) if unpack else nullcontext() as packed:
            while packed is not None and packed.read(1 << 20):
                pass
    except EOFError:
        return f"ends after {path.stat().st_size} bytes, in the middle of a gzip file"
    except (OSError, zlib.error) as error:
        return f"is a damaged gzip file ({error})"
    return ""


def _other(remote: Remote, what: str, part: Path) -> UserError:
    part.unlink(missing_ok=True)
    return UserError(
        f"{remote.url} {what}: it is another file than the one that was published, and was removed. Give another address with --mirror."
    )
