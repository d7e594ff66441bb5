"""Views of a slice store: what a method may see (:class:`SliceSet`) and what the evaluation sees (:class:`LabelledSet`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from adbench.utils.compute import to_device
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    import torch

    from adbench.datasets.pixels import CaseIndex, PixelStore, Rows, SeenCase, StoredCase


@dataclass(frozen=True)
class SliceBatch:
    """A batch of slices as a method sees it.

    Attributes:
        image: (B, 1, H, W) float32 in [0, 1], 0 outside the brain.
        brain: (B, 1, H, W) bool.
        subjects: B case ids (subject, and session where there are several). With ``slices`` they identify a slice (for
            per-slice seeds), nothing more.
        slices: B slice indices.
        modality: e.g. "FLAIR".
    """

    image: torch.Tensor
    brain: torch.Tensor
    subjects: tuple[str, ...]
    slices: tuple[int, ...]
    modality: str

    def __len__(self) -> int:
        return self.image.shape[0]

    def only(self, positions: np.ndarray) -> SliceBatch:
        """The slices at ``positions`` of this batch."""
        ids = [(self.subjects[index], self.slices[index]) for index in positions]
        subjects, slices = (tuple(part) for part in zip(*ids, strict=True)) if ids else ((), ())
        return replace(self, image=self.image[positions], brain=self.brain[positions], subjects=subjects, slices=slices)

    def to(self, device: str) -> SliceBatch:
        """The same batch with its tensors on ``device``."""
        return replace(self, image=to_device(self.image, device), brain=to_device(self.brain, device))


class SliceSet:
    """Rows of a store in a fixed order, without lesion masks.

    Args:
        store: whose rows they are; of a whole store nothing is kept but images, brain masks and ids of their split.
        rows: row numbers of the store, ascending.
    """

    def __init__(self, store: PixelStore | LabelledStore, rows: np.ndarray) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self._pixels = store.seen(self.rows)
        self._owner = self._pixels.owner(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def modality(self) -> str:
        """Sequence of every slice, upper case ("FLAIR")."""
        return self._pixels.modality

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every slice."""
        return self._pixels.shape

    @cached_property
    def _cases(self) -> list[SeenCase]:
        return [self._pixels.cases[index] for index in dict.fromkeys(self._owner.tolist())]

    @cached_property
    def subjects(self) -> list[str]:
        """The distinct subjects, in store order."""
        return list(dict.fromkeys(case.subject for case in self._cases))

    @cached_property
    def digest(self) -> str:
        """Hash of what a method can see here: ids, pixels, brain masks. Independent of paths and of lesions."""
        return digest(self._pixels.describe_rows(self.rows))

    @cached_property
    def slice_numbers(self) -> np.ndarray:
        """(n,) slice index of each position."""
        cases = self._pixels.cases
        pairs = zip(self._owner.tolist(), self.rows.tolist(), strict=True)
        return np.array([cases[index].slices[row - cases[index].start] for index, row in pairs], dtype=np.int64)

    def images(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) float16 in [0, 1]: the pixels of the given positions of this set."""
        return self._pixels.images[self.rows[positions]]

    def brains(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) bool: the brain masks of the given positions of this set."""
        return self._pixels.brains[self.rows[positions]]

    def batch(self, positions: np.ndarray | slice) -> SliceBatch:
        """The given positions as one batch on the CPU."""
        import torch

        rows = self.rows[positions]
        return SliceBatch(
            image=torch.from_numpy(self._pixels.images[rows].astype(np.float32))[:, None],
            brain=torch.from_numpy(self._pixels.brains[rows])[:, None],
            subjects=tuple(self._pixels.cases[index].id for index in self._owner[positions].tolist()),
            slices=tuple(self.slice_numbers[positions].tolist()),
            modality=self.modality,
        )

    def batches(self, size: int) -> Iterator[SliceBatch]:
        """The whole set in order, ``size`` slices at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def limited(self, count: int) -> SliceSet:
        """The first ``count`` slices of an even spread over the set (all of it when it is smaller)."""
        return self if count >= len(self) else SliceSet(self._pixels, self.rows[spread(len(self), count)])


def spread(total: int, count: int) -> np.ndarray:
    """``count`` positions evenly spread over ``total``, at most that many."""
    return np.arange(total) if count >= total else np.linspace(0, total - 1, count).astype(np.int64)


class LabelledStore(Protocol):
    """What the evaluation reads of an open store; :class:`adbench.datasets.store.slice_store.SliceStore` is one."""

    owner: CaseIndex
    lesions: Rows

    @property
    def cases(self) -> Sequence[StoredCase]:
        """All cases, in the order of their rows."""

    def seen(self, rows: np.ndarray) -> PixelStore:
        """What a method may see of the cases of ``rows``."""

    def describe_rows(self, rows: np.ndarray) -> list[Any]:
        """What identifies the pixels and masks of ``rows``, for a digest."""

    def spacing_of(self, row: int) -> tuple[float, float, float] | None:
        """Distance in mm between slices, rows and columns; None for slices of no volume."""

    def groups_of(self, row: int) -> dict[str, str]:
        """Grouping (site, sex, age, ...) -> group of the case that ``row`` belongs to, as far as they are known."""


class LabelledSet(SliceSet):
    """Rows with their lesion masks; for the evaluation only, never handed to a method.

    Attributes:
        domain: voxels that count, "brain" or "all".
    """

    domain: Literal["brain", "all"] = "brain"

    def __init__(self, store: LabelledStore, rows: np.ndarray) -> None:
        super().__init__(store, rows)
        self._store = store

    @cached_property
    def digest(self) -> str:
        """Hash of images, brain masks and lesion masks, and of the domain where it is not the brain."""
        described = self._store.describe_rows(self.rows)
        return digest(described if self.domain == "brain" else [*described, self.domain])

    def counted(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) bool: the voxels that are evaluated: the brain, or all of them."""
        brains = self.brains(positions)
        return brains if self.domain == "brain" else np.ones_like(brains)

    def lesions(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, H, W) bool lesion masks."""
        return self._store.lesions[self.rows[positions]]

    @cached_property
    def subject_index(self) -> np.ndarray:
        """(n,) index into :attr:`subjects` of each position; rows of one subject stand together."""
        number = {subject: index for index, subject in enumerate(self.subjects)}
        return np.asarray([number[self._pixels.cases[index].subject] for index in self._owner.tolist()], np.int64)

    @cached_property
    def cases(self) -> list[str]:
        """The distinct case ids, in store order: a volume each. The id is the subject's where it has one volume."""
        return [case.id for case in self._cases]

    @cached_property
    def case_index(self) -> np.ndarray:
        """(n,) index into :attr:`cases` of each position; rows of one case stand together."""
        number = {index: place for place, index in enumerate(dict.fromkeys(self._owner.tolist()))}
        return np.array([number[index] for index in self._owner.tolist()], dtype=np.int64)

    @cached_property
    def lesion_voxels(self) -> np.ndarray:
        """(n,) lesion voxels of each position, from the manifest."""
        cases = self._store.cases
        pairs = zip(self._store.owner(self.rows).tolist(), self.rows.tolist(), strict=True)
        return np.array([cases[index].lesion_voxels[row - cases[index].start] for index, row in pairs], dtype=np.int64)

    @cached_property
    def subject_of(self) -> dict[str, str]:
        """Case id -> its subject, in store order."""
        return {case.id: case.subject for case in self._cases}

    def spacing_at(self, position: int) -> tuple[float, float, float] | None:
        """Distance of slice indices, rows and columns around the slice at ``position``, mm; None for slices of no volume."""
        return self._store.spacing_of(int(self.rows[position]))

    def groups_at(self, position: int) -> dict[str, str]:
        """Grouping (site, sex, age, ...) -> group of the slice at ``position``, as far as they are known."""
        return self._store.groups_of(int(self.rows[position]))
