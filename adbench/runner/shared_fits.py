"""Share fits: export one from a run, import one into the output folder, use the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adbench import __version__
from adbench.config import registry
from adbench.config.attribution import first_error
from adbench.config.shared_fit import (
    CARD,
    MANIFEST,
    RUN_RECORD,
    SCHEMA,
    SharedFit,
    Weights,
    is_shared,
    read_shared,
)
from adbench.datasets.io.unpacking import unpack
from adbench.errors import UserError
from adbench.metrics.spec import HEADLINE
from adbench.results import record as records
from adbench.results import rundir
from adbench.results.record import DataPart, Record
from adbench.results.result import Result
from adbench.runner.fit import FIT, fitted
from adbench.runner.keys import RUN_ONLY
from adbench.utils.files import replacing, scratch, sweep, write_json, write_text
from adbench.utils.hashing import digest_file, sealed
from adbench.utils.limits import RECORD_BYTES
from adbench.utils.locks import acquire
from adbench.utils.plain_files import open_plain, read_json

log = logging.getLogger("adbench")
ZIP = ".zip"
MAX_NAMES = 5  # of foreign files in a warning


def export(run: Path, out: Path, *, author: str, licence: str, link: str = "") -> SharedFit:
    """Write the fit of a finished run into a folder that others can use, or into one file, ``*.zip``, of the same content.

    The folder ``out`` must not hold anything but an earlier export of this run by this author. ``author``, ``licence`` and
    ``link`` are as in :class:`Weights`. Equal fits give equal bytes.

    Raises:
        UserError: the fit was not kept, is another author's, holds other files than tensors and JSON; no author or licence;
            ``out`` is there, or lies among the fits of runs.
    """
    try:
        weights = Weights(author=author, licence=licence, link=link)
    except ValidationError as error:
        raise UserError(f"--{first_error(error)}.") from None
    result = Result(run)
    _check_place(out, result, weights)
    if out.suffix.lower() != ZIP:
        if is_shared(out):
            return _export(result, out, weights)
        with scratch(out) as folder:
            _export(result, folder, weights)
            folder.rename(out)
        return read_shared(out)
    with scratch(out) as there:  # which removes what a killed one left behind its archive
        if out.exists():
            raise UserError(f"{out} is there: give another name with --out, or move it away.")
        folder = there / "fit"
        shared = _export(result, folder, weights)
        with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as packed:  # stored: weights hardly shrink
            for each in (MANIFEST, CARD, *sorted(shared.files)):
                with (
                    (folder / each).open("rb") as source,
                    packed.open(zipfile.ZipInfo(each), "w", force_zip64=True) as file,
                ):
                    shutil.copyfileobj(source, file)
    return shared


def _check_place(out: Path, result: Result, weights: Weights) -> None:
    """Refuse to write over anything but an export of the same run by the same author, and among the fits that runs use.

    Raises:
        UserError: says what is there.
    """
    fits = result.fit_folder.parent
    if fits.name == rundir.FITS and out.resolve().is_relative_to(fits.resolve()):
        raise UserError(f"{out} lies in {fits}, where runs keep their fits: give a folder elsewhere with --out.")
    if out.suffix.lower() == ZIP:
        return
    if is_shared(out):
        there = read_shared(out)
        if (there.weights.author, records.read_record(out / RUN_RECORD).run_key) != (
            weights.author,
            result.record.run_key,
        ):
            raise UserError(
                f"{out} holds a shared fit of {there.method} by {there.weights.author}, not an export of this run by "
                f"{weights.author}: give a new folder with --out."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no shared fit: give a new folder with --out.")


def _export(result: Result, out: Path, weights: Weights) -> SharedFit:
    record, folder = result.record, result.fit_folder
    if whose := record.weights or (read_shared(folder).weights if is_shared(folder) else None):
        raise UserError(f"The fit of {result.folder} was made by {whose.author}: pass on the folder that you got.")
    fit = fitted(folder, record.fit_key)
    if fit is None:
        raise UserError(f"The fit of {result.folder} was not kept ({folder}): make the run again with --force.")
    for name in fit["files"]:
        if not name.endswith((".safetensors", ".json")):
            raise UserError(
                f"The fit in {folder} holds {name}: only tensors (.safetensors) and .json can be shared, because untrusted "
                "files must not be unpickled. Let the method save its state as tensors."
            )
    splits = read_json(result.file(rundir.SPLITS), RECORD_BYTES)
    for name in fit["files"]:
        _copy(folder / name, out / name)
    _copy(folder / FIT, out / FIT)
    write_json(out / RUN_RECORD, record.model_dump(mode="json"))
    write_text(out / CARD, _card(record, weights))
    content = {
        "schema_version": SCHEMA,
        "adbench": __version__,
        "fit_key": record.fit_key,
        "identity": {name: value for name, value in record.identity.items() if name not in RUN_ONLY},
        "train": record.train.model_dump(mode="json"),
        "val": record.val.model_dump(mode="json") if record.val else None,
        "subjects": {role: splits[role] for role in ("train", "val")},
        "weights": weights.model_dump(exclude={"digest"}),
        "files": {name: digest_file(out / name) for name in (*sorted(fit["files"]), FIT, RUN_RECORD)},
    }
    write_json(out / MANIFEST, sealed(content))
    return read_shared(out)


def bring(given: Path, out: Path) -> SharedFit:
    """:func:`install` the shared fit in ``given``: a folder, or an archive of one (``export`` writes ``*.zip``; tar will do).

    The archive is unpacked beside its place, within the limits of all archives, and only what the manifest
    names is taken from it.

    Raises:
        UserError: it holds no shared fit, or several; see :func:`adbench.datasets.io.unpacking.unpack` and :func:`install`.
    """
    if not given.is_file():
        return install(read_shared(given), out)
    with scratch(out / given.name) as there:
        unpack(given, there)
        found = [path.parent for path in sorted(there.rglob(MANIFEST))]
        if len(found) != 1:
            held = f"{len(found)} shared fits: import one" if found else f"no shared fit: there is no {MANIFEST} in it"
            raise UserError(f"{given} holds {held}.")
        try:
            return install(read_shared(found[0]), out)
        except UserError as error:  # the folder is gone when this is read
            raise UserError(str(error).replace(str(found[0].absolute()), str(given))) from None


def foreign(shared: SharedFit) -> list[str]:
    """Names of files in the folder of a shared fit that its manifest does not list; they are never copied or uploaded."""
    listed = {MANIFEST, CARD, *shared.files}
    names = sorted(path.relative_to(shared.folder).as_posix() for path in shared.folder.rglob("*") if not path.is_dir())
    return [name for name in names if name not in listed and not name.startswith(".")]  # what the Hub's library keeps


def _tell_foreign(shared: SharedFit) -> None:
    if names := foreign(shared):
        more = f" and {len(names) - MAX_NAMES} more files" if len(names) > MAX_NAMES else ""
        one = len(names) == 1
        log.warning(
            "%s%s %s not in the manifest of the shared fit and %s left out.",
            ", ".join(names[:MAX_NAMES]), more, "is" if one else "are", "was" if one else "were",
        )  # fmt: skip


def install(shared: SharedFit, out: Path) -> SharedFit:
    """Bring a shared fit to its place below the output folder ``out``, where runs look for fits.

    What its manifest does not list is left out, with a warning.

    Raises:
        UserError: another fit of the same key lies there.
    """
    folder = rundir.fit_folder(out, shared.method, shared.fit_key)
    if folder.absolute() == shared.folder:
        return shared
    _tell_foreign(shared)
    with acquire(folder):
        sweep(folder)
        if (folder / FIT).exists() and is_shared(folder) and (there := read_shared(folder)).weights == shared.weights:
            return there
        if fitted(folder, shared.fit_key) is not None:
            raise UserError(
                f"{folder} holds another fit with the same key, made here or shared by another author: give another --out, or "
                "delete it to use the shared one."
            )
        for name in shared.files.keys() - {FIT}:
            _copy(shared.folder / name, folder / name)
        # The card that came with it is not sealed.
        write_text(folder / CARD, _card(records.read_record(folder / RUN_RECORD), shared.weights))
        for name in (MANIFEST, FIT):  # they complete it
            _copy(shared.folder / name, folder / name)
        return read_shared(folder)


def data_parts(shared: SharedFit) -> tuple[DataPart, DataPart | None]:
    """The training and validation data of a shared fit.

    Raises:
        UserError: the manifest does not say it.
    """
    try:
        return DataPart(**shared.train), DataPart(**shared.val) if shared.val else None
    except ValidationError as error:
        raise UserError(f"{shared.folder / MANIFEST} describes no fit: train.{first_error(error)}.") from None


def listed(out: Path) -> list[dict[str, Any]]:
    """The complete fits below an output folder, by name: method, key, size in bytes, what they learned from, whose they are.

    Author and licence are "" for those made here; what these learned from is said by the runs that use them.

    Raises:
        UserError: there is none, or ``out`` is a shared fit itself.
    """
    if is_shared(out):
        raise UserError(f"{out} is a shared fit, not a folder of runs: `adbench fit import {out}` brings it into one.")
    users = {record.fit_key: record for _, record in rundir.records(out)}
    found = []
    for path in sorted((out / rundir.FITS).glob(f"*/{FIT}")):
        content = read_json(path, RECORD_BYTES)
        row = {"folder": str(path.parent), "fit_key": content["fit_key"], "steps": content["steps"]}
        row |= {"bytes": sum((path.parent / name).stat().st_size for name in content["files"])}
        row |= {"method": path.parent.name.rpartition("-")[0], "author": "", "licence": "", "trained_on": ""}
        if (user := users.get(content["fit_key"])) is not None:
            row["trained_on"] = f"{user.train.name} {user.train.modality}"
        if is_shared(path.parent):
            shared = read_shared(path.parent)
            row |= {"method": shared.method, "author": shared.weights.author, "licence": shared.weights.licence}
            row |= {"trained_on": f"{shared.train['name']} {shared.train['modality']}"}
        found.append(row)
    if not found:
        raise UserError(
            f"There is no complete fit in {out / rundir.FITS}: `adbench run --out {out}` leaves them there, and `adbench fit "
            f"import` brings those of others."
        )
    return found


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a shared fit to the Hugging Face Hub (``HF_ENDPOINT``, with the token of ``hf auth login``).

    The ``repository`` ("owner/name") is made if need be. What the manifest does not list stays here, with a warning.

    Returns:
        The address of the commit.

    Raises:
        UserError: the folder holds no shared fit, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    shared = read_shared(folder)
    _tell_foreign(shared)
    with _told(repository):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        patterns = [MANIFEST, CARD, *shared.files]
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=patterns,
            commit_message=f"{shared.method} by adbench",
        )
    return str(done.commit_url)


def pull(repository: str, to: Path, revision: str | None = None) -> SharedFit:
    """Download a shared fit from the Hugging Face Hub; nothing but tensors, JSON and the card is fetched.

    The ``repository`` is "owner/name", its ``revision`` a branch, tag or commit; None: the newest.

    Raises:
        UserError: there is no such repository, or it holds no shared fit.
    """
    from huggingface_hub import snapshot_download

    with _told(repository):
        snapshot_download(
            repository, revision=revision, local_dir=to, allow_patterns=["*.safetensors", "*.json", CARD], max_workers=2
        )
    return read_shared(to)


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turn what the Hub's library raises into one sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    # The first base is that of every error of its HTTP library, whichever it uses; the second is OSError.
    raised: Any = (*HfHubHTTPError.__bases__, ValueError)  # ValueError: a name that is none
    try:
        yield
    except raised as error:
        raise UserError(
            f"The Hub did not give or take {repository}: {' '.join(str(error).split())[:300].rstrip('.')}. Check the name (owner/name), the "
            "network, and `hf auth login`."
        ) from None


def _copy(source: Path, target: Path) -> None:
    with open_plain(source) as file, replacing(target) as temporary, open(temporary, "wb") as copy:
        shutil.copyfileobj(file, copy)


def _card(record: Record, weights: Weights) -> str:
    """The card, with the front matter that the Hub reads."""
    method, train = record.method, record.train
    summary = (registry.load("methods", method.name).__doc__ or "").strip().partition("\n")[0]
    numbers = [
        f"| {name} | {number.value:.4f} |"
        for name in HEADLINE
        if (number := record.metrics.get(name)) is not None and number.value is not None
    ]
    link = f"\nMore: {weights.link}\n" if weights.link else ""
    return "\n".join(
        [
            "---",
            f"license: {json.dumps(weights.licence)}",
            "library_name: adbench",
            f"tags: [anomaly-detection, brain-mri, {method.name}, {train.modality.lower()}]",
            "---",
            f"# {method.name} for brain {train.modality}",
            "",
            summary,
            "",
            f"Weights shared by {weights.author} under {weights.licence}. Research use only.",
            link,
            f"* learned from {train.name} {train.modality}: {train.slices} slices of {train.subjects} subjects, "
            f"{train.grid[0]} x {train.grid[1]} px",
            f"* method version {method.version}, preset {method.preset}, seed {record.seed}, {method.parameters} weights",
            f"* measured on {record.test.name} {record.test.modality} ({record.test.subjects} subjects) under the protocol "
            f"{record.protocol['name']}",
            "",
            "| number | value |",
            "|---|---|",
            *numbers,
            "",
            "```bash",
            "adbench run --fit FOLDER --dataset DATASET --data-root DIR      # score another test set",
            "adbench predict --run FOLDER --images DIR --out DIR             # maps of your own scans",
            "```",
            "",
        ]
    )
