"""The contract between adbench and a dataset on disk.

A dataset finds its cases (:meth:`Dataset.discover`, cheap, nothing decoded) and loads one case at a time as a stack of
axial slices (:meth:`Dataset.load`). :func:`adbench.datasets.store.prepare.prepare` calls both, once, and writes the slice
store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adbench.datasets.issues import Issue
from adbench.errors import UserError
from adbench.params import ParamSet

if TYPE_CHECKING:
    import numpy as np

    from adbench.datasets.geometry import Geometry
    from adbench.datasets.io.archive import File

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset for its users.

    Attributes:
        name: what the user types.
        version: version of the adapter; raised when the prepared arrays may change.
        modalities: sequences it can have, upper case ("T1", "T2", "FLAIR").
        licence: of the data.
        obtain: how to get it.
        layout: what is expected below the data root.
        protocol: name of the protocol used when none is given.
        needs_root: False for a dataset that is generated.
        citation: what to cite, "" for data of your own.
    """

    name: str
    version: str
    modalities: tuple[str, ...]
    licence: str
    obtain: str
    layout: str
    protocol: str
    needs_root: bool = True
    citation: str = ""


@dataclass(frozen=True)
class Case:
    """One subject (and session) of one split, as found on disk.

    Attributes:
        subject: identity that splits must keep together.
        split: the role the dataset gives it.
        files: every source file of the case, on disk or in a tar; their names, sizes and times decide whether a store is
            still valid.
        session: "" when there is one session.
        site: scanner or centre, "" when unknown.
        groups: what else is known of the person, as far as it is: sex, age, ... -> the group; numbers are repeated in each.
        flags: known remarks ("artefact").
        healthy: why it counts as healthy though it has no lesion mask; "" when a mask decides.
        extra: whatever :meth:`Dataset.load` needs to find the pixels.
    """

    subject: str
    split: Split
    files: tuple[File, ...] = ()
    session: str = ""
    site: str = ""
    groups: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    flags: tuple[str, ...] = ()
    healthy: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Subject and session in one word."""
        return f"{self.subject}_{self.session}" if self.session else self.subject


@dataclass
class Stack:
    """The prepared slices of one case, before they enter the store; S slices on the dataset's common grid.

    Attributes:
        image: (S, H, W) float32 in [0, 1], 0 outside the brain.
        brain: (S, H, W) bool.
        lesion: (S, H, W) bool, or None when the case has no lesion mask.
        slices: S slice indices, ascending, unique within the case.
        remarks: what was left out and why ("slice 12: no brain").
        geometry: where the slices lie in the original volume; None when there was none (single slices).
        labels: values above 0 that its lesion mask holds, where the dataset chooses among them; None elsewhere.
        quality: figures about the preparation of this case (brain volume in ml, ...), finite numbers by name.
    """

    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray | None
    slices: Sequence[int]
    remarks: list[str] = field(default_factory=list)
    geometry: Geometry | None = None
    quality: dict[str, float] = field(default_factory=dict)
    labels: Sequence[int] | None = None


class Dataset(ABC):
    """A dataset as its provider distributes it.

    Attributes:
        parallel: whether cases are worth a process each (seconds of work) and the dataset is the same object when built
            again from ``params`` and ``root``.
        quick: whether reading every pixel takes seconds, so that ``data check`` always does.
        products: folder where :meth:`load` may keep what is slow to make (a brain mask, a registration); None: nowhere.
        disk_per_case: bytes that the prepared slices of one case and modality take, roughly; 0: little.
        memory_per_worker: bytes that one process needs to prepare a case, roughly; 0: little.
    """

    info: ClassVar[DatasetInfo]
    Params: ClassVar[type[ParamSet]] = ParamSet
    parallel: ClassVar[bool] = False
    quick: ClassVar[bool] = False
    products: Path | None = None
    disk_per_case: int = 0
    memory_per_worker: int = 0

    def __init__(self, params: ParamSet, root: Path | None) -> None:
        self.params = params
        self.root = root

    @classmethod
    def title(cls, params: ParamSet) -> str:
        """The name that the user gave to data of his own, "" for none."""
        return ""

    @property
    def excludes_by_name(self) -> bool:
        """Whether ``--set dataset.exclude=[ID]`` leaves a case out."""
        return "exclude" in type(self.params).model_fields

    def available(self) -> tuple[str, ...]:
        """The modalities that are really there, the default one first."""
        return self.info.modalities

    @abstractmethod
    def discover(self, modality: str) -> list[Case]:
        """The cases that have ``modality``, in a stable order, without decoding images.

        Raises:
            UserError: the root is missing, empty, or of another layout (says what is expected and where to get it),
                or the modality is not there (says which are).
        """

    @abstractmethod
    def load(self, case: Case, modality: str) -> Stack:
        """Decode one case. Every case of one dataset gives the same H and W.

        The split, the site and the groups of the case must not matter, remarks included: stores with other splits share what was
        prepared. What depends on them belongs into ``Case.extra``.

        Raises:
            UserError: an unreadable file, an image and mask of different size, NaN or Inf: names the file.
        """

    def faults(self) -> Iterable[Issue]:
        """Issues of the set of files, by their names: ``data check`` lists them, :meth:`discover` refuses errors."""
        return ()

    def scales(self, modality: str) -> Iterable[Issue]:
        """Issues of the images of ``modality`` taken together, by their values; used as :meth:`faults` is."""
        return ()

    def found(self, modality: str) -> list[Case]:
        """The cases on disk even where :meth:`faults` gives errors: for ``data check``."""
        return self.discover(modality)

    def examine(self, case: Case, modality: str) -> tuple[Stack | None, list[Issue]]:
        """Decode one case and say what is wrong with it: :meth:`load` refuses errors and remarks on all else.

        Returns:
            The stack, None when there is an error; its issues.
        """
        try:
            stack = self.load(case, modality)
        except UserError as error:
            return None, [Issue("error", "unreadable", case.id, "", str(error))]
        return stack, [Issue("info", "remark", case.id, "", remark) for remark in stack.remarks]

    def exclusions(self, modality: str) -> list[str]:
        """Cases that :meth:`discover` left out, and why; one line each, for the manifest."""
        return []

    def recipe(self) -> dict[str, Any]:
        """Every step and parameter that shapes the pixels, for the manifest and its hash."""
        return {"dataset": self.info.name, "version": self.info.version, "params": self.params.model_dump(mode="json")}
