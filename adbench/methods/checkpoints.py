"""Checkpoints of a training stage: safetensors for tensors, JSON for the rest, consistent after a kill at any moment.

``checkpoint.json`` is the commit point: it is replaced atomically after the tensor files that it names are on disk, and
files that it does not name are removed afterwards. A reader therefore sees the whole of one checkpoint or of the last.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adbench.errors import UserError
from adbench.files import replacing, write_json

INDEX = "checkpoint.json"


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replacing(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)


class StageFolder:
    """The folder of one training stage.

    Args:
        folder: where the files go; None keeps nothing.
        identity: everything that the stage's numbers depend on; a checkpoint with another one is not continued.
        logger: told when a checkpoint is found unusable.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], logger: logging.Logger) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        self.logger = logger

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """The figures, the training state (empty when finished) and the best weights, or None when there is nothing to continue."""
        if self.folder is None or not (self.folder / INDEX).exists():
            return None
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if index["identity"] != self.identity:
                self.logger.warning("%s belongs to other parameters or data: training starts anew.", self.folder)
                return None
            files = index["files"]
            state = load_file(self.folder / files["state"]) if files.get("state") else {}
            best = load_file(self.folder / files["best"]) if files.get("best") else {}
            return index["figures"], state, best
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            self.logger.warning("The checkpoint in %s cannot be read (%s): training starts anew.", self.folder, error)
            return None

    def write(
        self,
        step: int,
        figures: dict[str, Any],
        state: dict[str, torch.Tensor] | None,
        best: dict[str, torch.Tensor] | None,
        best_step: int,
    ) -> None:
        """Commit a checkpoint.

        Args:
            step: optimiser steps done.
            figures: JSON values given back by :meth:`read`.
            state: what continuing needs; None once the stage is finished.
            best: the weights kept so far; written only when ``best_step`` is new.
            best_step: the step they are from.

        Raises:
            UserError: the disk is full.
        """
        if self.folder is None:
            return
        files = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state is not None:
                files["state"] = f"state-{step}.safetensors"
                _write_tensors(self.folder / files["state"], state)
            if best is not None:
                files["best"] = f"best-{best_step}.safetensors"
                if not self._names("best", files["best"]):
                    _write_tensors(self.folder / files["best"], best)
            write_json(self.folder / INDEX, {"identity": self.identity, "figures": figures, "files": files})
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
                free = shutil.disk_usage(self.folder.parent).free / 2**30
                raise UserError(
                    f"No space left for a checkpoint in {self.folder} ({free:.2f} GiB free): free some or name another output folder, then run the same command again."
                ) from None
            raise
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp")]:
            if path.name not in files.values():
                path.unlink(missing_ok=True)

    def _names(self, role: str, name: str) -> bool:
        """Whether the committed checkpoint of this identity already holds the file ``name``."""
        assert self.folder is not None
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            return (
                index["identity"] == self.identity
                and index["files"].get(role) == name
                and (self.folder / name).exists()
            )
        except (OSError, ValueError, KeyError):
            return False
