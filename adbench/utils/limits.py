"""Limits on what a file from a stranger may ask for: memory, disk, time. Every reader of such files asks here.

Each is read from the environment variable ``ADBENCH_MAX_`` and its name, when that is set, for files that you trust:
``ADBENCH_MAX_VOLUME_BYTES=2000000000``. With the defaults no reader takes more than 500 MB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Self

from adbench.errors import UserError


class Limit(int):
    """A number that can be exceeded, with its name and unit; the environment may set another."""

    variable: str
    unit: str

    def __new__(cls, name: str, default: int, unit: str) -> Self:
        variable = f"ADBENCH_MAX_{name}"
        text = os.environ.get(variable, "").strip()
        if text and not (text.isascii() and text.isdigit()):
            raise UserError(f"{variable}={text} is no whole number of {unit}: give one, or unset it.")
        limit = super().__new__(cls, text or default)
        limit.variable, limit.unit = variable, unit
        return limit


VOLUME_BYTES = Limit("VOLUME_BYTES", 320_000_000, "bytes")  # of a NIfTI file uncompressed, and of its decoded voxels
IMAGE_PIXELS = Limit("IMAGE_PIXELS", 4096 * 4096, "pixels")  # of a PNG image
ARCHIVE_FILES = Limit("ARCHIVE_FILES", 200_000, "files")  # in a tar or zip
ARCHIVE_DEPTH = Limit("ARCHIVE_DEPTH", 30, "folders")  # within each other in an archive
ARCHIVE_GROWTH = Limit("ARCHIVE_GROWTH", 100, "times its size")  # that unpack from an archive; 100 MB in any case
ARRAY_BYTES = Limit("ARRAY_BYTES", 200_000_000, "bytes")  # of the arrays in an .npz
TABLE_BYTES = Limit("TABLE_BYTES", 20_000_000, "bytes")  # of a table unpacked
TABLE_VALUES = Limit("TABLE_VALUES", 500_000, "values")  # in a table of text, empty rows too
PICKLE_BYTES = Limit("PICKLE_BYTES", 2_000_000, "bytes")  # of the names and shapes in a .pth file
WEIGHTS_BYTES = Limit("WEIGHTS_BYTES", 400_000_000, "bytes")  # of a file of pre-trained weights, unpacked
YAML_BYTES = Limit("YAML_BYTES", 200_000, "bytes")  # of a configuration
YAML_VALUES = Limit("YAML_VALUES", 100_000, "values")  # in a configuration, a repeated alias counted every time
LIST_BYTES = Limit("LIST_BYTES", 16_000_000, "bytes")  # of one page of a server's list of files
LIST_PAGES = Limit("LIST_PAGES", 10_000, "pages")  # of such a list
LIST_FILES = Limit("LIST_FILES", 1_000_000, "files")  # in such a list
YAML_DEPTH = Limit("YAML_DEPTH", 50, "levels")  # of lists and mappings within each other
RECORD_BYTES = Limit("RECORD_BYTES", 32 << 20, "bytes")  # of a record, or of a submission
RECORD_VALUES = Limit("RECORD_VALUES", 500_000, "values")  # of a record or submission, in JSON
SPATIAL_BYTES = Limit("SPATIAL_BYTES", 64 << 20, "bytes")  # of spatial counts, unpacked
SPATIAL_VALUES = Limit("SPATIAL_VALUES", 3_000_000, "values")  # of spatial counts: three a slice
STATUS_BYTES = Limit(
    "STATUS_BYTES", 4 << 20, "bytes"
)  # of what a run says while it is not complete, and of its configuration
GROUPINGS = Limit("GROUPINGS", 16, "groupings")  # of the subjects of a submission: lesion_size, site, ...
GROUPS = Limit("GROUPS", 1000, "groups")  # in all of these together
SUBJECTS = Limit("SUBJECTS", 20_000, "subjects")  # of a submission
BINS = Limit("BINS", 1 << 22, "bins")  # of the histograms of all subjects together; a run joins scores beyond it
ISSUES = Limit("ISSUES", 1000, "issues")  # that are listed of one result
VERIFY_BYTES = Limit(
    "VERIFY_BYTES", 1 << 30, "bytes"
)  # of address space to verify one result, beyond that of an idle process
VERIFY_SECONDS = Limit("VERIFY_SECONDS", 900, "seconds")  # to verify one result
JSON_DEPTH = 50  # of lists and objects within each other
JSON_KEYS = 10_000  # of one object: a typed reader says of each that is unknown that it is, in a kilobyte
SMALLEST_GROWTH = 100_000_000  # bytes that any archive may unpack to


def exceeded(file: object, what: str, found: int, limit: Limit) -> str:
    """One sentence when ``found`` is more than ``limit``, else "".

    Args:
        file: its name begins the sentence.
        what: verb and object ("holds voxels of"), after the name.
        found: the number, in the unit of the limit.
        limit: one of this module.
    """
    if found <= limit:
        return ""
    return (
        f"{file} {what} {found} {limit.unit}, where at most {int(limit)} are read: if you trust the file, set "
        f"{limit.variable} to what it needs and run again."
    )


def check(file: object, what: str, found: int, limit: Limit) -> None:
    """Refuse what is beyond a limit, see :func:`exceeded`.

    Raises:
        UserError: names the file, the value, the limit and how to raise it.
    """
    if problem := exceeded(file, what, found, limit):
        raise UserError(problem)


def check_address_space(least: int, what: str) -> bool:
    """Refuse what cannot run within ``ulimit -v``, before a library ends the process.

    Args:
        least: bytes of address space that it takes.
        what: it is, with a verb: "the libraries alone take".

    Returns:
        Whether there is a limit.

    Raises:
        UserError: names both.
    """
    import resource

    given = resource.getrlimit(resource.RLIMIT_AS)[0]
    if given != resource.RLIM_INFINITY and given < least:
        raise UserError(f"`ulimit -v` allows {given >> 20} MiB of memory, and {what} {least >> 20}: raise that limit.")
    return given != resource.RLIM_INFINITY


def check_growth(archive: Path, size: int, unpacked: int) -> None:
    """Refuse an archive whose content is out of proportion.

    Args:
        archive: the file.
        size: of it, bytes.
        unpacked: bytes of its content so far, what comes next included.

    Raises:
        UserError: names the archive, how much larger its content is, and how to raise the limit.
    """
    if unpacked > SMALLEST_GROWTH:
        check(archive, "unpacks to", -(-unpacked // max(1, size)), ARCHIVE_GROWTH)


def check_free(archive: Path, more: int, out: Path) -> None:
    """Refuse what does not fit on the disk.

    Args:
        archive: whose content is written.
        more: bytes that are to be written next.
        out: folder on the disk that is written to, there or not.

    Raises:
        UserError: names the archive, both sizes and the way out.
    """
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if more > free:
        raise UserError(
            f"{archive} needs {more} bytes more in {out}, where {free} are free: make room or give another --out."
        )
