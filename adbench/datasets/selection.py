"""Select the labelled slices that a protocol scores. A store holds all slices, so that protocols share it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from adbench.config.protocols import Rule
from adbench.datasets.slices import LabelledSet, LabelledStore, SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    from adbench.datasets.base import Split
    from adbench.datasets.store.slice_store import SliceStore
    from adbench.datasets.synthetic_lesions import Inserted, SyntheticLesionParams

SPREAD = 16  # slices a subject
MIDDLE = 20  # slices a volume
INSERTED = 0.5  # share of the slices that get a synthetic lesion; the others stay healthy


def scored(
    store: SliceStore,
    split: Split,
    rule: Rule,
    *,
    healthy: bool = False,
    inserted: bool = False,
    domain: Literal["brain", "all"] = "brain",
) -> LabelledSet:
    """The slices of ``split`` that are scored.

    Args:
        store: of the test dataset.
        split: "test", or "val" for the slices that choose a threshold.
        rule: ``all``; ``central``, the middle one of every subject's slices; ``middle``, the middle 20 of every volume's (all
            of a smaller one); ``largest-lesion``, the one with most lesion
            voxels of every subject that has a lesion (the lowest among equals); ``spread``, 16 evenly spread.
        healthy: take the subjects as healthy: they need no lesion mask.
        inserted: put synthetic lesions into half of the slices (:mod:`adbench.datasets.synthetic_lesions`).
        domain: voxels that count, "brain" or "all".

    Raises:
        UserError: ``healthy``, and a slice has a lesion.
    """
    data = LabelledSet(store, store.rows(split)) if healthy else store.labelled(split)
    if healthy and data.lesion_voxels.any():
        subject = data.subjects[data.subject_index[int(data.lesion_voxels.argmax())]]
        raise UserError(
            f"The protocol takes the {split} subjects as healthy, but {subject} has a lesion: choose another protocol."
        )
    rows = data.rows[_positions(data, rule)]
    chosen = InsertedSet(store, rows) if inserted else LabelledSet(store, rows)
    chosen.domain = domain
    return chosen


def learned(store: SliceStore, split: Split, rule: Rule) -> SliceSet:
    """The lesion-free slices of ``split`` among those that ``rule`` chooses, see :func:`scored`: what a method may be given."""
    free, whole = store.rows(split, healthy_only=True), LabelledSet(store, store.rows(split))
    return SliceSet(store, np.intersect1d(free, whole.rows[_positions(whole, rule)]))


def of_healthy(store: SliceStore, split: Split, rule: Rule, domain: Literal["brain", "all"]) -> LabelledSet:
    """The slices that ``rule`` chooses of the subjects of ``split`` that have no lesion anywhere, see :func:`scored`."""
    whole = LabelledSet(store, store.rows(split))
    healthy = ~np.isin(whole.subject_index, whole.subject_index[whole.lesion_voxels > 0])
    chosen = LabelledSet(store, whole.rows[healthy])
    chosen = LabelledSet(store, chosen.rows[_positions(chosen, rule)])
    chosen.domain = domain
    return chosen


def _positions(data: LabelledSet, rule: Rule) -> np.ndarray:
    if rule == "all":
        return np.arange(len(data))
    if rule == "middle":
        volumes = (np.flatnonzero(data.case_index == number) for number in range(len(data.cases)))
        starts = ((own, max(0, (len(own) - MIDDLE) // 2)) for own in volumes)
        return np.concatenate([np.empty(0, np.int64), *(own[start : start + MIDDLE] for own, start in starts)])
    chosen: list[int] = []
    for number in range(len(data.subjects)):
        own = np.flatnonzero(data.subject_index == number)
        if rule == "central":
            chosen.append(int(own[len(own) // 2]))
        elif rule == "spread":
            chosen += sorted(set(own[np.linspace(0, len(own) - 1, min(SPREAD, len(own))).round().astype(int)].tolist()))
        elif data.lesion_voxels[own].any():
            chosen.append(int(own[data.lesion_voxels[own].argmax()]))
    return np.array(chosen, dtype=np.int64)


class InsertedSet(LabelledSet):
    """Healthy slices with synthetic lesions in them; made when pixels are first used, held in memory.

    Args:
        store: the open store.
        rows: row numbers of the store, ascending.
        params: what is put in; None: lesions in half of the slices.
    """

    def __init__(self, store: LabelledStore, rows: np.ndarray, params: SyntheticLesionParams | None = None) -> None:
        from adbench.datasets.synthetic_lesions import SyntheticLesionParams

        super().__init__(store, rows)
        self.params = params or SyntheticLesionParams(share=INSERTED)

    @cached_property
    def _made(self) -> Inserted:
        from adbench.datasets.synthetic_lesions import insert

        names = [self._pixels.cases[index].id for index in self._owner.tolist()]
        ids = list(zip(names, self.slice_numbers.tolist(), strict=True))
        return insert(super().images(), self.brains(), ids, self.params)

    @cached_property
    def digest(self) -> str:
        """Hash of the healthy slices and of what is put into them."""
        from adbench.datasets.synthetic_lesions import VERSION

        return digest([super().digest, VERSION, self.params.model_dump(mode="json")])

    @cached_property
    def lesion_voxels(self) -> np.ndarray:
        """(n,) voxels of the synthetic lesions."""
        return np.asarray(self._made.lesions.sum(axis=(1, 2)))

    def images(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) float16 in [0, 1], lesions included."""
        return self._made.images[positions].astype(np.float16)

    def lesions(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) bool."""
        return self._made.lesions[positions]

    def batch(self, positions: np.ndarray | slice) -> SliceBatch:
        """The given positions as one batch on the CPU."""
        import torch

        whole = super().batch(positions)
        image = torch.from_numpy(self.images(positions).astype(np.float32))[:, None]
        return SliceBatch(image, whole.brain, whole.subjects, whole.slices, whole.modality)
