"""Where prepared cases can be taken from: the journal of an interrupted preparation, or an older store."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy

from adbench.datasets.store.pixels import ARRAYS, digest_block
from adbench.datasets.store.slice_store import MANIFEST, STORE_VERSION
from adbench.datasets.store.workers import Blocks
from adbench.utils.files import replacing

JOURNAL, PLAN = "journal.jsonl", "plan.json"
WHO = ("subject", "session", "split", "site", "flags")  # what the dataset says of a case, not its pixels


class Journal:
    """One line of JSON for every case in the arrays, written after its pixels."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._file = open(self.path, "a", encoding="utf-8")

    def begin(self, entries: list[dict[str, Any]]) -> None:
        """Replace what is there by ``entries``."""
        self._file.close()
        with replacing(self.path) as temporary:
            temporary.write_text("".join(map(_line, entries)), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry; it is in the file when this returns."""
        self._file.write(_line(entry))
        self._file.flush()

    def close(self) -> None:
        """No more entries."""
        self._file.close()


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of the journal in ``folder``, up to the first that a kill cut off."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict) or {"case", "record", "remarks", "sources"} - entry.keys():
                break
            found.append(entry)
    return found


class Donor:
    """Prepared cases in a folder with the three arrays.

    Attributes:
        entries: by case id, as in a journal.
    """

    def __init__(self, folder: Path, entries: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.entries = {entry["case"]: entry for entry in entries}
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def older(cls, store: Path, partial: Path, recipe: dict[str, Any]) -> list[Self]:
        """Stores and interrupted preparations of the same dataset, modality and recipe as ``store``, other than it."""
        start = store.name.rpartition("-")[0] + "-"
        found = []
        for folder in sorted([*store.parent.glob(f"{start}*"), *partial.parent.glob(f"{start}*")]):
            if folder.is_dir() and folder not in (store, partial):
                with suppress(OSError, ValueError, KeyError, TypeError):  # damaged or older: nothing to take
                    found.append(cls(folder, _entries_of(folder, recipe)))
        return [donor for donor in found if donor.entries]

    def blocks(self, record: dict[str, Any]) -> Blocks | None:
        """The pixels of one case; None when they are not what was written."""
        rows = slice(record["start"], record["start"] + len(record["slices"]))
        try:
            found = {name: np.ascontiguousarray(self._map(name, tuple(record["shape"]))[rows]) for name in ARRAYS}
        except (OSError, ValueError):
            return None
        whole = all(digest_block(block) == record["digests"][name] for name, block in found.items())
        return found if whole else None

    def _map(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._maps:
            path = self.folder / f"{name}.npy"
            with open(path, "rb") as file:
                npy.read_magic(file)
                npy.read_array_header_1_0(file)
                start = file.tell()
            # The header of a growing array says nothing of its rows; what is there does.
            rows = (path.stat().st_size - start) // (int(np.prod(shape)) * np.dtype(ARRAYS[name]).itemsize)
            self._maps[name] = np.memmap(path, ARRAYS[name], "r", start, (rows, *shape))
        return self._maps[name]

    def discard(self) -> None:
        """Remove an interrupted preparation whose cases went into a newer store, unless somebody works on it."""
        if (self.folder / MANIFEST).exists():
            return
        from filelock import FileLock, Timeout

        path = self.folder.with_name(f"{self.folder.name}.lock")
        self._maps.clear()
        with suppress(Timeout, OSError), FileLock(path, timeout=0):
            shutil.rmtree(self.folder, ignore_errors=True)
            path.unlink(missing_ok=True)


def _entries_of(folder: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    if not (folder / MANIFEST).exists():
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return entries(folder) if plan == {"store_version": STORE_VERSION, "recipe": recipe} else []
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["store_version"] != STORE_VERSION or manifest["recipe"] != recipe:
        return []
    found: dict[str, dict[str, Any]] = {}
    for case in manifest["cases"]:
        name = f"{case['subject']}_{case['session']}" if case["session"] else case["subject"]
        record = {key: value for key, value in case.items() if key not in WHO}
        start = f"{name}: "
        remarks = [line.removeprefix(start) for line in manifest["remarks"] if line.startswith(start)]
        found[name] = {
            "case": name,
            "record": {**record, "shape": manifest["shape"]},
            "remarks": remarks,
            "sources": [],
        }
    for source in manifest["sources"]:
        if source["case"] in found:
            found[source["case"]]["sources"].append(source)
    return list(found.values())
