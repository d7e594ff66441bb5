"""Shared fits: the folder and the manifest of exported weights, and the checks of those that are imported.

::

    FOLDER/README.md            card, as the Hugging Face Hub shows it
           adbench_fit.json     manifest, sealed with its own digest
           run.json             record of the run that it comes from: its numbers, thresholds and preparation
           fit.json             how the fit went
           model.safetensors  method.json  ...    what the method saved: tensors and JSON, nothing else
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from adbench.config import registry
from adbench.config.attribution import Licence, Link, first_error, is_seen
from adbench.config.protocols import Protocol
from adbench.errors import UserError
from adbench.params import scoring
from adbench.utils import limits
from adbench.utils.hashing import canonical_json, digest, digest_file
from adbench.utils.named_files import shown_values
from adbench.utils.plain_files import check_no_link, open_plain, read_json

MANIFEST, RUN_RECORD, CARD = "adbench_fit.json", "run.json", "README.md"
SCHEMA = 1
FIT_BYTES = limits.Limit("FIT_BYTES", 8_000_000_000, "bytes")  # here, because limits.py is in the keys of runs
_STATED = {
    "method": str,
    "method_version": str,
    "method_source": str,
    "preset": str,
    "modality": str,
    "seed": int,
    "params": dict,
}
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}/){0,3}[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(?:json|safetensors)")


class Weights(BaseModel):
    """Author, licence, link and digest of shared weights.

    Attributes:
        author: who shares them.
        licence: they are given under, an identifier such as cc-by-4.0.
        link: https address of code or paper, "" for none.
        digest: of the manifest: it covers every file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    author: str = Field(max_length=200)
    licence: Licence
    link: Link = ""
    digest: str = ""

    @field_validator("author")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if not is_seen(text):
            raise ValueError("it must say who shares the fit, in one line of printable characters")
        return text


class SharedFit(BaseModel):
    """The manifest of a shared fit.

    Attributes:
        identity: what decided the fit, see :func:`adbench.runner.keys.fit_identity`; its hash is ``fit_key``.
        train: what it learned from, as in a record; ``val`` chose the checkpoint.
        subjects: by role ("train", "val"), sorted: none of them may be tested.
        files: name -> SHA-256 of every file beside the manifest and the card.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int
    adbench: str
    fit_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    identity: dict[str, Any]
    train: dict[str, Any]
    val: dict[str, Any] | None
    subjects: dict[str, list[str]]
    weights: Weights
    files: dict[str, str]
    _folder: Path = PrivateAttr(Path())

    @property
    def folder(self) -> Path:
        """Folder of the fit."""
        return self._folder

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.identity["method"])


def is_shared(folder: Path) -> bool:
    """Whether ``folder`` holds a shared fit."""
    return (folder / MANIFEST).is_file()


def read_shared(folder: Path) -> SharedFit:
    """The shared fit in ``folder``, every file of it checked: plain, of a known type, within the limits, as it was sealed.

    Raises:
        UserError: it is none, of another schema, damaged, or larger than a fit may be.
    """
    folder = Path(folder).absolute()
    if folder.is_file():
        raise UserError(
            f"{folder} is a file: `adbench fit import {folder} --out runs` checks it and says which folder to give."
        )
    path = folder / MANIFEST
    try:
        content = read_json(path, limits.RECORD_BYTES)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no shared fit: there is no {MANIFEST} in it.") from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has schema {found!r}; this adbench reads schema {SCHEMA}.")
    written = content.pop("digest", None)
    if (own := digest(content)) != written:
        raise UserError(f"{path} was changed: its content has the digest {own[:16]} and says {str(written)[:16]}.")
    try:
        shared = SharedFit(**content)
    except ValidationError as error:
        raise UserError(f"{path} describes no fit: {first_error(error)}.") from None
    for name, kind in _STATED.items():
        if not isinstance(shared.identity.get(name), kind):
            raise UserError(f"{path} describes no fit: identity.{name} is missing or of a wrong type.")
    if digest(shared.identity) != shared.fit_key:
        raise UserError(f"{path} describes no fit: fit_key is not the hash of identity.")
    _check_files(shared, folder)
    shared = shared.model_copy(update={"weights": shared.weights.model_copy(update={"digest": own})})
    shared._folder = folder
    return shared


def _check_files(shared: SharedFit, folder: Path) -> None:
    total = 0
    for name, written in shared.files.items():
        if not _NAME.fullmatch(name) or ".." in PurePosixPath(name).parts or name == MANIFEST:
            raise UserError(
                f"{folder / MANIFEST} lists {name[:200]!r}: a fit is made of .safetensors and .json files with plain names."
            )
        path = folder / name
        check_no_link(path, folder)
        try:
            with open_plain(path) as file:
                total += os.fstat(file.fileno()).st_size
                limits.check(folder, "holds", total, FIT_BYTES)
                length = int.from_bytes(file.read(8), "little")
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the shared fit is incomplete.") from None
        if name.endswith(".json"):
            read_json(path, limits.RECORD_BYTES)
        else:
            limits.check(path, "has a header of", length, limits.RECORD_BYTES)
        if (found := digest_file(path)) != written:
            raise UserError(
                f"{path} was changed: it has the SHA-256 {found[:16]} and the manifest says {written[:16]}. Get the fit again."
            )
    there = {
        path.relative_to(folder).as_posix() for end in ("json", "safetensors") for path in folder.rglob(f"*.{end}")
    }
    for name in sorted(there - {MANIFEST, *shared.files}):
        if not name.startswith("."):  # what the Hub's library keeps for itself
            raise UserError(
                f"{folder / name} is not in the manifest of the shared fit: take it out, or get the fit again."
            )
    for needed in (RUN_RECORD, "fit.json"):
        if needed not in shared.files:
            raise UserError(f"{folder / MANIFEST} lists no {needed}: the shared fit is incomplete.")


def as_fitted(shared: SharedFit, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that a shared fit decides: its method, parameters, modality, preset and seed; ``asked`` are
    all that the run has. Parameters that only score are those of the run that it was shared from, unless given.

    Raises:
        UserError: something else was asked for, or the method here is of another version.
    """
    about, where = shared.identity, f"The fit in {shared.folder} is of"
    method = registry.load("methods", shared.method)
    if about["method_version"] != method.version:
        raise UserError(
            f"{where} {shared.method} version {about['method_version']}, and here is version {method.version}: use the "
            f"adbench that it was made with ({shared.adbench}), or train one."
        )
    stated = {name: about[name] for name in ("method", "modality", "seed", "preset")}
    wanted = {name: asked[name] for name in stated} | {"modality": tuple(name.upper() for name in asked["modality"])}
    for name, value in wanted.items():
        if value not in (None, (), (0,) if name == "seed" else (), stated[name], (stated[name],)):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(
                f"{where} {name} {stated[name]}, and --{name} asks for {text}: leave it away, or train one."
            )
    if asked["train_on"] is not None or asked["train_root"] is not None:
        raise UserError(f"{where} {shared.method}, already trained: --train-on and --train-root are not for it.")
    given = asked["set"]
    values = {**given.get("method", {}), **given.get(shared.method, {})}
    shown = read_json(shared.folder / RUN_RECORD, limits.RECORD_BYTES)["method"]["params"]
    params = method.resolve(str(stated["preset"]), {**shown, **about["params"]})
    if canonical_json(shown_values(method.Params, about["params"])) != canonical_json(about["params"]):
        raise UserError(
            f"{where} {shared.method} and names a file by its whole path, as an earlier adbench wrote it ({shared.adbench}): train "
            "it again."
        )
    free = {name: value for name, value in values.items() if name in scoring(method.Params)}
    fixed = {name: value for name, value in values.items() if name not in free}
    try:
        changed = (
            method.resolve(str(stated["preset"]), {**params.json_values, **fixed}).json_values != params.json_values
        )
    except UserError:  # several values, say, which a run without a shared fit takes as a sweep
        changed = True
    if changed:
        raise UserError(
            f"{where} {shared.method} with parameters of its own: --set {shared.method}.… cannot change {' or '.join(fixed)}"
            f"{'' if not free else ', only what scores'}."
        )
    scopes = {name: given[name] for name in ("dataset", "post") if name in given}
    scopes["method"] = {**params.json_values, **free}
    as_lists = {name: (stated[name],) for name in ("method", "modality", "seed")}
    return {**as_lists, "preset": stated["preset"], "set": scopes}


def check_protocol(shared: SharedFit, protocol: Protocol) -> None:
    """Refuse a protocol that needs other training data than a shared fit had, or needs them here.

    Raises:
        UserError: says which.
    """
    learned = shared.train.get("name")
    if protocol.train_on not in ("", learned):
        raise UserError(
            f"The protocol {protocol.name} learns from {protocol.train_on}, and the fit in {shared.folder} learned from "
            f"{learned}: choose another with --protocol."
        )
    if protocol.threshold_on != "test":
        raise UserError(
            f"The protocol {protocol.name} chooses thresholds on healthy subjects of the training source, and the fit in "
            f"{shared.folder} comes without them: choose another with --protocol."
        )
