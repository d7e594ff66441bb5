"""Checkpoints of a training stage: safetensors for tensors, JSON for the rest, consistent after a kill at any moment.

``checkpoint.json`` is the commit point: it is replaced atomically after the tensor files that it names are on disk, and
files that it does not name are removed afterwards. A reader therefore sees the whole of one checkpoint or of the last. It
holds their SHA-256 and its own, which are checked before anything is continued.
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

from adbench.errors import UserError, disk_full
from adbench.utils import distributed
from adbench.utils.files import replacing, write_json
from adbench.utils.hashing import check_file, digest_file, read_sealed, sealed

INDEX = "checkpoint.json"


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
        self._best: dict[str, str] = {}  # name and SHA-256 of the best weights as they are committed

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """The figures, the training state (empty when finished) and the best weights, or None when there is nothing to continue.

        Raises:
            UserError: a file is missing or not the one that was written.
        """
        index = self._index()
        if index is None or self.folder is None:
            return None
        if index["identity"] != self.identity:
            self.logger.warning(
                "%s belongs to other parameters or data: training starts from the beginning.", self.folder
            )
            return None
        tensors = {}
        for role, file in index["files"].items():
            path = self.folder / file["name"]
            check_file(path, file["sha256"], self._way_out)
            tensors[role] = load_file(path)
        self._best = index["files"].get("best", {})
        if distributed.rank() == 0:
            self._remove_others(index["files"])
        return index["figures"], tensors.get("state", {}), tensors.get("best", {})

    @property
    def _way_out(self) -> str:
        return (
            f"Delete {self.folder} and run the same command again: this stage is then trained again from the beginning."
        )

    def _index(self) -> dict[str, Any] | None:
        try:
            return None if self.folder is None else read_sealed(self.folder / INDEX, self._way_out)
        except FileNotFoundError:
            return None

    def _keep(self, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
        assert self.folder is not None
        with replacing(self.folder / name) as temporary:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
            return {"name": name, "sha256": digest_file(temporary)}

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
                files["state"] = self._keep(f"state-{step}.safetensors", state)
            if best is not None:
                name = f"best-{best_step}.safetensors"
                if self._best.get("name") != name:
                    self._best = self._keep(name, best)
                files["best"] = self._best
            write_json(self.folder / INDEX, sealed({"identity": self.identity, "figures": figures, "files": files}))
        except (OSError, SafetensorError) as error:
            if disk_full(error) in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.folder.parent).free / 2**30
                raise UserError(
                    f"No space left for a checkpoint in {self.folder} ({free:.2f} GiB free): free some or name another output folder, then run the same command again."
                ) from None
            raise
        self._remove_others(files)

    def _remove_others(self, files: dict[str, dict[str, str]]) -> None:
        """Remove the tensors that no checkpoint names any more, those of an attempt that was killed here too."""
        assert self.folder is not None
        named = {file["name"] for file in files.values()}
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp")]:
            if path.name not in named:
                path.unlink(missing_ok=True)
