"""The contract between an adapter that reads volumes and the recipe that prepares them.

An adapter subclasses :class:`VolumeDataset`, says what its volumes are like (:attr:`VolumeDataset.skull`,
:attr:`VolumeDataset.on_template`) and hands over one :class:`RawVolume` a case and modality (:meth:`VolumeDataset.read`).
:func:`adbench.datasets.preprocessing.pipeline.run_recipe` does the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from adbench.datasets.base import Case, Dataset, Stack
from adbench.datasets.preprocessing.pipeline import recipe_steps, run_recipe, tool_of
from adbench.datasets.preprocessing.recipe import RawVolume, RecipeParams
from adbench.params import ParamSet

__all__ = ["RawVolume", "RecipeParams", "VolumeDataset"]


class VolumeDataset(Dataset):
    """A dataset of NIfTI volumes. Subclasses give ``info``, ``discover`` and ``read``; ``discover`` leaves out what ``exclude`` names."""

    Params: ClassVar[type[ParamSet]] = RecipeParams
    params: RecipeParams
    parallel: ClassVar[bool] = True
    choosing: ClassVar[tuple[str, ...]] = ("exclude",)  # parameters that choose cases and leave pixels alone

    @property
    def memory_per_worker(self) -> int:  # type: ignore[override]
        """As measured on heads of 1 mm: the networks of hd-bet take most."""
        return 2_700_000_000 if self.skull and tool_of(self.params, self.skull) == "hd-bet" else 1_500_000_000

    @property
    def disk_per_case(self) -> int:  # type: ignore[override]
        """150 mm of brain in slices of 1 mm: images of two bytes a pixel and two masks of one."""
        return 150 // self.params.slice_step * self.params.size**2 * 4

    @property
    def skull(self) -> bool:
        """Whether a case may come with its skull and without a brain mask: then a tool must find the brain."""
        return True

    @property
    def on_template(self) -> bool:
        """Whether the images already lie on the MNI152 2009a 1 mm grid."""
        return False

    @abstractmethod
    def read(self, case: Case, modality: str) -> RawVolume:
        """Decode the files of one case and modality.

        The modalities of one case are asked for one after the other: keep the last lesion mask decoded, and every file
        is decoded once.

        Raises:
            UserError: an unreadable file, an image and mask on different grids: names the files.
        """

    def load(self, case: Case, modality: str) -> Stack:
        """Decode one case and run the recipe on it."""
        return run_recipe(self.read(case, modality), self.params, on_template=self.on_template, cache=self.products)

    def recipe(self) -> dict[str, Any]:
        """The parameters that shape pixels, and every step with the version of its tool."""
        described = super().recipe()
        for name in self.choosing:
            described["params"].pop(name, None)
        return {**described, "steps": recipe_steps(self.params, skull=self.skull, on_template=self.on_template)}
