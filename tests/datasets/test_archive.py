"""Tars read in place, archives refused with the reason, and unpacking that cannot escape its folder."""

from __future__ import annotations

import io
import re
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import real_layouts as layouts

from adbench.datasets.adapters.brats import BraTS21
from adbench.datasets.io import archive, nifti
from adbench.datasets.io.archive import Member, members, read_bytes, size_of
from adbench.datasets.io.unpacking import unpack
from adbench.errors import UserError

SMALL = layouts.SMALL


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    root = tmp_path / "training data"
    for number in ("00000", "00002", "00003"):
        layouts.brats(root, number, SMALL)
    return root


@pytest.fixture
def tar(cases: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tars é" / "BraTS2021_Training_Data.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as file:
        file.add(cases, "BraTS2021_Training_Data")
    return path


@pytest.mark.parametrize("as_root", ["file", "folder"])
def test_a_tar_is_read_in_place_as_the_folder_would_be(cases: Path, tar: Path, as_root: str) -> None:
    inside = layouts.dataset(BraTS21, tar if as_root == "file" else tar.parent)
    outside = layouts.dataset(BraTS21, cases)
    assert inside.available() == outside.available() == ("FLAIR", "T1", "T1CE", "T2")
    assert inside.roles == outside.roles
    for one, other in zip(inside.discover("T1"), outside.discover("T1"), strict=True):
        assert (one.id, one.split) == (other.id, other.split)
        assert all(isinstance(file, Member) for file in one.files)
        mine, theirs = inside.read(one, "T1"), outside.read(other, "T1")
        np.testing.assert_array_equal(mine.image, theirs.image)
        np.testing.assert_array_equal(mine.lesion, theirs.lesion)
        assert [size_of(f) for f in one.files] == [size_of(f) for f in other.files]
        assert [archive.digest_of(f) for f in one.files] == [archive.digest_of(f) for f in other.files]
    assert str(one.files[0]).startswith(f"{tar}:BraTS2021_Training_Data/BraTS2021_00003/")


def test_a_member_never_reads_beyond_itself(tar: Path) -> None:
    member = members(tar)[0]
    assert read_bytes(member, member.size - 4, 100) == read_bytes(member)[-4:]
    assert read_bytes(member, member.size + 10, 5) == b""


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
def test_a_half_downloaded_tar(tar: Path, keep: float) -> None:
    content = tar.read_bytes()
    tar.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"half downloaded.*[Dd]ownload it again") as caught:
        layouts.dataset(BraTS21, tar).available()
    assert str(tar) in str(caught.value)


def test_a_tar_cut_between_two_members(tar: Path) -> None:
    third = members(tar)[3]
    tar.write_bytes(tar.read_bytes()[: third.offset - 512])
    with pytest.raises(UserError, match="half downloaded"):
        layouts.dataset(BraTS21, tar).available()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ATLAS_2.0_encrypted.tar.gz", b"Salted__abcdefgh" * 9, "is encrypted: decrypt it"),
        ("ATLAS_2.0_encrypted.tar.gz", b"U2FsdGVkX1+abcdefgh" * 9, "is encrypted: decrypt it"),
        ("data.tar.gpg", b"\x85\x02\x0c" * 9, "is encrypted: decrypt it"),
        ("BraTS2021.tar.part", b"x" * 600, "is a download that has not finished"),
        ("BraTS2021.tar.crdownload", b"x" * 600, "is a download that has not finished"),
        ("BraTS2021.zip", b"PK\x03\x04" + b"x" * 600, "is damaged or half downloaded"),
        ("BraTS2021.tar", b"", "is empty"),
        ("BraTS2021.tar.gz", b"\x1f\x8b\x08" + b"x" * 600, "unpack it once with `adbench data unpack"),
    ],
)
def test_archives_that_cannot_be_read_say_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        layouts.dataset(BraTS21, tmp_path).available()
    assert name in str(caught.value)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("BraTS2021_00000/x.nii.gz", b"secret")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of the local header, then that of the central directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is encrypted \(its member BraTS2021_00000/x.nii.gz needs a password\)"):
        layouts.dataset(BraTS21, tmp_path).available()


def test_a_tar_that_is_really_compressed(cases: Path, tmp_path: Path) -> None:
    path = tmp_path / "liar" / "data.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        file.add(cases, "x")
    with pytest.raises(UserError, match="is a compressed archive, which cannot be read in place: unpack it once"):
        layouts.dataset(BraTS21, path).available()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_unpacking(cases: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "packed"
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in sorted(cases.rglob("*.gz")):
                zipped.write(file, file.relative_to(cases))
    else:
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            tar.add(cases, ".")
    out = tmp_path / "out put"
    assert unpack(path, out) == (15, [], [])
    for file in sorted(cases.rglob("*.gz")):
        assert (out / file.relative_to(cases)).read_bytes() == file.read_bytes()
    kept = sorted(out.rglob("*.gz"))[0]
    stamp = kept.stat().st_mtime_ns
    lost = sorted(out.rglob("*.gz"))[-1]
    lost.write_bytes(b"half")
    other = sorted(out.rglob("*.gz"))[-2]
    other.write_bytes(other.read_bytes()[:-1] + b"?")  # of another release, say
    assert unpack(path, out) == (15, [], [])  # goes on: whole files stay, others are written again
    assert other.read_bytes() == (cases / other.relative_to(out)).read_bytes()
    assert kept.stat().st_mtime_ns == stamp
    assert nifti.read(lost).data.shape == SMALL


def test_folders_within_folders_are_bounded(tmp_path: Path) -> None:
    """A small archive could make millions of them."""
    for depth in (30, 31):
        path = tmp_path / f"{depth}.tar"
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("/".join([*["d"] * depth, "f"])))
        if depth == 30:
            assert unpack(path, tmp_path / "out").files == 1
    with pytest.raises(UserError, match=r"31\.tar goes down, at 'd/d/.* 31 folders, where at most 30 .*ARCHIVE_DEPTH"):
        unpack(path, tmp_path / "deep")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", ["../outside.nii.gz", "a/../../outside.nii.gz"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_unpacking_stays_in_its_folder(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"evil.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"bad"))
    else:
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, b"bad")
    with pytest.raises(UserError, match=rf"holds {re.escape(name)}, which would land outside"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "outside.nii.gz").exists()


def test_unpacking_a_truncated_archive_leaves_whole_files(cases: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(cases, ".")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"x.tar.gz is damaged or half downloaded .* download it again"):
        unpack(path, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            nifti.read(file)


def test_unpacking_a_tar_cut_between_two_members(tar: Path, tmp_path: Path) -> None:
    third = members(tar)[3]
    tar.write_bytes(tar.read_bytes()[: third.offset - 512])
    with pytest.raises(UserError, match="half downloaded"):
        unpack(tar, tmp_path / "out")


def test_a_zip_of_a_kind_that_python_cannot_unpack(tmp_path: Path) -> None:
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a.nii.gz", b"voxels")
    content = bytearray(path.read_bytes())
    content[8] = 9  # Deflate64, in the local header and in the central directory
    content[content.index(b"PK\x01\x02") + 10] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"windows.zip cannot be unpacked here \(.*\): unpack it with 7-Zip"):
        unpack(path, tmp_path / "out")


def test_a_nested_archive_is_pointed_at(tar: Path, tmp_path: Path) -> None:
    path = tmp_path / "kaggle.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.write(tar, tar.name)
    assert unpack(path, tmp_path / "out") == (1, [tmp_path / "out" / tar.name], [])
    assert len(layouts.dataset(BraTS21, tmp_path / "out").discover("T1")) == 3


def test_an_endless_name_in_a_zip_is_not_repeated(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("deep/" * 200 + "a.nii", b"voxels")
    with pytest.raises(UserError, match="name has 1005 characters") as refused:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert len(str(refused.value)) < 500
    assert not (tmp_path / "out").exists()


Given = tuple[str, str | bytes]  # name and content; a text is what a link leads to


def packed(path: Path, *given: Given, kind: bytes = tarfile.SYMTYPE) -> Path:
    """An archive of that type; its links in a tar are of that ``kind``."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, that a name is a duplicate
            for name, content in given:
                info = zipfile.ZipInfo(name)
                info.external_attr = ((stat.S_IFLNK if isinstance(content, str) else stat.S_IFREG) | 0o644) << 16
                zipped.writestr(info, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in given:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = kind, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


KINDS = pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])


@KINDS
def test_a_name_that_is_there_twice(tmp_path: Path, kind: str) -> None:
    """Twice the same is one file; with other content, nothing says which is meant."""
    path = packed(tmp_path / f"a.{kind}", ("b", b"b"), ("s/x", b"one"), ("./s/x", b"one"))
    assert unpack(path, tmp_path / "out") == (2, [], [])
    for other in (b"two", b"three"):
        path = packed(tmp_path / f"a.{kind}", ("b", b"b"), ("s/x", b"one"), ("./s/x", other))
        with pytest.raises(UserError, match=r"holds \./s/x twice with different content"):
            unpack(path, tmp_path / "other")
    assert not (tmp_path / "other").exists(), "nothing is written of what is refused"


@KINDS
def test_symbolic_links_are_left_out_and_named(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / f"a.{kind}", ("a", b"one"), ("b", "a"), ("lnk", "/etc"), ("lnk/x", b"two"))
    assert unpack(path, tmp_path / "out") == (2, [], ["b", "lnk"])
    found = {f.relative_to(tmp_path / "out").as_posix(): f.read_bytes() for f in (tmp_path / "out").rglob("?")}
    assert found == {"a": b"one", "lnk/x": b"two"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_hard_link_is_the_file_it_is_a_link_to(tmp_path: Path, kind: str) -> None:
    links = (
        ("f/b.nii", "f/a.nii"),
        ("c.nii", "./f/b.nii"),
        ("f/a.nii", "f/a.nii"),
        ("p", "/etc/passwd"),
        ("q", "later"),
    )
    path = packed(tmp_path / f"a.{kind}", ("f/a.nii", b"voxels"), *links, ("later", b"x"), kind=tarfile.LNKTYPE)
    for _ in range(2):  # the second time goes on with what is there
        assert unpack(path, tmp_path / "out") == (4, [], ["p", "q"])
    assert {(tmp_path / "out" / name).read_bytes() for name in ("f/a.nii", "f/b.nii", "c.nii")} == {b"voxels"}
    if kind == "tar":
        assert [(m.path, read_bytes(m)) for m in members(path)][:3] == [
            (name, b"voxels") for name in ("f/a.nii", "f/b.nii", "c.nii")
        ]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_any_number_of_links_and_empty_files(tmp_path: Path, kind: str) -> None:
    links = [(f"link {number}", "a" if number % 2 else "") for number in range(3000)]
    path = packed(tmp_path / f"a.{kind}", ("a", b"x"), *links, ("b", b""), kind=tarfile.LNKTYPE)
    found = unpack(path, tmp_path / "out")
    assert (found.files, len(found.left_out)) == (1502, 1500)


def test_a_hard_link_over_another_file_is_two_contents(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", ("a", b"one"), ("b", b"two"), ("b", "a"), kind=tarfile.LNKTYPE)
    with pytest.raises(UserError, match="holds b twice with different content"):
        unpack(path, tmp_path / "out")


@KINDS
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("A", "b", "A!", "A/c/d"), "holds A as a file and as a folder (with A/c/d)"),
        (("..\\..\\x",), r"a file named '..\\..\\x', which Windows alone reads as folders"),
        (("C:\\x",), "which Windows alone reads as folders or a drive"),
        (("C:/x",), "which Windows alone reads as folders or a drive"),
        (("a\x1b[2Jb",), r"a file named 'a\x1b[2Jb', which has characters that cannot be printed"),
        (("a\nb",), r"a file named 'a\nb', which has characters that cannot be printed"),
        (("x" * 256,), "which has a part of more than 255 bytes"),
    ],
)  # fmt: skip
def test_names_that_are_refused(tmp_path: Path, kind: str, names: tuple[str, ...], message: str) -> None:
    path = packed(tmp_path / f"a.{kind}", ("good", b"x"), *((name, b"y") for name in names))
    with pytest.raises(UserError, match=re.escape(message)):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    path, out = packed(tmp_path / "a.tar", ("a/b", b"x")), tmp_path / "out"
    out.mkdir()
    (out / "a").touch()
    with pytest.raises(UserError, match=r"out/a is there already and is no folder\. Move it away"):
        unpack(path, out)
    (out / "a").unlink()
    (out / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out/a/b is there already and is a folder"):
        unpack(path, out)
