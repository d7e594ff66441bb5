"""The contract between adbench and an anomaly-detection method.

A method learns from healthy slices (:meth:`Method.fit`) and gives each slice an anomaly map (:meth:`Method.score`).
It never sees a lesion mask: no object it is handed carries one.

This module imports no torch, and a method's module should import it inside functions only: parameters are read,
listed and hashed without it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from adbench.context import Context
from adbench.errors import UserError, unknown
from adbench.params import ParamSet, build
from adbench.utils.files import replacing, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.forward import Forward

WEIGHTS = "model.safetensors"
DESCRIPTION = "method.json"
SCORING = "scoring.json"
OWN = "_adbench_forward"  # of a method; a name that no plug-in has


@dataclass
class FitReport:
    """What happened while fitting; stored in the record.

    Attributes:
        steps: optimiser steps taken, over all stages.
        parameters: trainable and frozen parameters of the fitted model.
        best: figures of the checkpoint kept, e.g. {"unet.step": 900, "unet.val_loss": 0.12}.
        curves: per stage, the logged points, e.g. {"unet": [{"step": 50, "loss": .3, "val_loss": .2}, ...]}.
        earlier_seconds: training time of interrupted attempts that this fit continued.
        notes: what a reader of the numbers must know.
        computed: per stage, how its steps were computed, an entry for each way that interrupted attempts had: "device"; the
            "precision" of networks; "compile", the mode of ``torch.compile`` or "off"; "steps", "launched" one by one or
            "recorded" (a CUDA graph); "micro_batches" of a step; and how a resumed training "resumes" towards one that is
            not: "bit-equal", "up to rounding", "deterministic kernels" or "as far as its clock lets it".
    """

    steps: int = 0
    parameters: int = 0
    best: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    computed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one run of a method needs: CPU cores, and GPU memory in GiB (0: no GPU).

    A run computes with as many threads as it has cores here, unless the user sets ``OMP_NUM_THREADS``.
    """

    cpus: float = 1.0
    gpu_memory_gb: float = 0.0


@dataclass(frozen=True)
class Member:
    """A method with parameters and a seed whose fit is a part of another method."""

    method: str
    preset: str
    params: ParamSet
    seed: int
    method_class: type[Method]


class Method(ABC):
    """An unsupervised anomaly-detection method.

    Class attributes:
        name: what the user types; equal to the entry point's name.
        version: raised by hand when the numbers may change.
        Params: the parameters, a :class:`adbench.params.ParamSet` whose fields are made with :func:`adbench.params.param`;
            those with ``scores=True`` are read in scoring alone, and a loaded fit is given the run's values of them.
        presets: by name ("tiny", "base", "paper"), the parameter values that differ from the defaults.
        smoke: parameter values on top of "tiny" with which a fit takes a second or two; for the conformance checks.
        trained_by: name of another method, whose fit with the parameters :meth:`trained_with` gives this method's own
            tensors, to the bit: a run takes them from there, and two rows cost one training. Its module is imported by this
            method's own, so that its source counts into both keys. Empty: there is none.
        members: fits that this one is made of (:meth:`made_of`), with what happened in fitting them. A run sets them before
            :meth:`fit` is called; where nothing has, fit makes them.
        sized_by_data: whether parameters and grid do not say how many numbers it learns, as with one image a height.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    Params: ClassVar[type[ParamSet]] = ParamSet
    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}, "base": {}, "paper": {}}
    smoke: ClassVar[dict[str, Any]] = {}
    trained_by: ClassVar[str] = ""
    members: Sequence[tuple[Method, FitReport]] = ()
    sized_by_data: ClassVar[bool] = False
    _adbench_loaded = False

    def __init__(self, params: ParamSet, ctx: Context) -> None:
        self.params = params
        self.ctx = ctx

    @abstractmethod
    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Learn from healthy slices. Called once; if the process is killed, called again with the same workdir.

        Args:
            train: healthy slices, in [0, 1], background 0.
            val: healthy slices of other subjects for choosing a checkpoint, or None.
        """

    @abstractmethod
    def score(self, batch: SliceBatch) -> torch.Tensor:
        """Anomaly maps, shape (B, 1, H, W), float, on the batch's grid and device; higher is more anomalous.

        Must depend on nothing but the fitted model, the seed and each slice itself (not on its batch).
        """

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        """Pseudo-healthy images in [0, 1], shape (B, 1, H, W), or None for a method that makes none."""
        return None

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both at once; override it when one forward pass gives both."""
        return self.score(batch), self.reconstruct(batch)

    def infer(self, network: nn.Module, *inputs: torch.Tensor, call: str = "forward") -> tuple[torch.Tensor, ...]:
        """What ``network`` says of ``inputs`` in scoring: in the number format of the run, as fast as the device allows.

        In a fit that was loaded, whose weights no longer change, a GPU records it and compiles it for a long scoring. So what
        it gives must follow from its inputs and weights alone, sample by sample.

        Args:
            network: in evaluation mode, without gradients.
            inputs: tensors with first axis B.
            call: name of the network's method that is called.

        Returns:
            The tensors that it gives (one, a tuple, a list, or an output of diffusers), as float32.

        Raises:
            UserError: it gives something else.
        """
        return forward_of(self)(network, *inputs, call=call)

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that :meth:`load_state` needs; empty for a method with nothing to learn."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        if state:
            raise UserError(
                f"The checkpoint of {self.name} holds tensors that {self.name} does not expect: {', '.join(state)}."
            )

    def notes(self) -> dict[str, Any]:
        """JSON values that :meth:`load_state` needs besides the parameters, e.g. the shape of a network read from elsewhere."""
        return {}

    def load_notes(self, notes: dict[str, Any]) -> None:  # noqa: B027
        """Restore what :meth:`notes` returned; called before :meth:`load_state`."""

    def save(self, folder: Path) -> None:
        """Write the fitted method into ``folder``: tensors as safetensors, the rest as JSON. No pickle."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state().items()}
        with replacing(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        saved = {"method": self.name, "version": self.version, "params": self.params.trained_values}
        write_json(folder / DESCRIPTION, saved | ({"notes": notes} if (notes := self.notes()) else {}))
        if scoring := self.params.scoring_values:  # apart, so that equal fits have equal files but this one
            write_json(folder / SCORING, scoring)

    @classmethod
    def load(cls, folder: Path, ctx: Context) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the folder holds another method, another version, or damaged files.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            found = (saved["method"], saved["version"])
            if found != (cls.name, cls.version):
                raise UserError(
                    f"{folder} holds {found[0]} version {found[1]}, not {cls.name} version {cls.version}: fit it again or name the right folder."
                )
            scoring = json.loads((folder / SCORING).read_text(encoding="utf-8")) if (folder / SCORING).exists() else {}
            params = build(cls.Params, f"method {cls.name}", {**saved["params"], **scoring})
            tensors = load_file(folder / WEIGHTS)
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} is not a saved {cls.name}: {Path(error.filename or WEIGHTS).name} is missing."
            ) from None
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:  # of text, JSON or shapes
            raise UserError(
                f"The saved {cls.name} in {folder} is damaged ({error}): delete it and fit again."
            ) from None
        method = cls(params, ctx)
        try:
            method.load_notes(saved.get("notes", {}))
        except KeyError as error:
            raise UserError(
                f"The saved {cls.name} in {folder} has no {error} among the notes in its {DESCRIPTION}, which this version of "
                "the method reads: fit it again."
            ) from None
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"The notes of the saved {cls.name} in {folder / DESCRIPTION} cannot be used ({error}): fit it again."
            ) from None
        try:
            method.load_state(tensors)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # torch reports missing keys and wrong shapes this way
            raise UserError(
                f"The weights in {folder} do not fit {cls.name} with its stored parameters: {error}"
            ) from None
        method._adbench_loaded = True
        return method

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        """What one run with ``params`` needs."""
        return Resources()

    @classmethod
    def files(cls, params: ParamSet) -> list[Path]:
        """Files that ``params`` name and that decide the fit (pre-trained weights); their content enters its key."""
        return []

    @classmethod
    def budget(cls, params: ParamSet) -> int | None:
        """Optimiser steps that a fit with ``params`` takes at most; None when it is not counted in steps."""
        return getattr(params, "steps", None) if getattr(params, "counted", True) else None

    @classmethod
    def trained_with(cls, preset: str, params: ParamSet) -> dict[str, Any]:
        """The parameters that the method :attr:`trained_by` is fitted with, on top of its own ``preset``."""
        return {}

    @classmethod
    def made_of(cls, params: ParamSet, seed: int) -> list[Member]:
        """The fits of other methods that a fit with ``params`` and ``seed`` is made of; none for most.

        A run makes each as a run of that method would, or takes the one that is there, and they are in this method's key.

        Raises:
            UserError: one of them does not exist.
        """
        return []

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        """Parameters worth searching, e.g. {"lr": {"low": 1e-5, "high": 1e-3, "log": True}}; empty: none."""
        return {}

    @classmethod
    def resolve(cls, preset: str, overrides: dict[str, Any]) -> ParamSet:
        """The parameters of ``preset`` with ``overrides`` on top, validated.

        Raises:
            UserError: unknown preset, unknown parameter, or a value out of range.
        """
        if preset not in cls.presets:
            raise unknown(f"preset of {cls.name}", preset, cls.presets)
        return build(cls.Params, f"method {cls.name}", {**cls.presets[preset], **overrides})


def forward_of(method: Method) -> Forward:
    """What calls the networks of ``method``, made once."""
    from adbench.methods.common.forward import Forward

    own = vars(method)
    if OWN not in own:
        on_gpu = method.ctx.device.startswith("cuda")
        own[OWN] = Forward(method.ctx.device, method.ctx.logger, portions=on_gpu and method._adbench_loaded)
    found: Forward = own[OWN]
    return found


def forwards(method: Method) -> list[Forward]:
    """What has called networks of ``method`` and of its members; empty where :meth:`Method.infer` was not called."""
    parts = (method, *(member for member, _ in method.members))
    return [vars(part)[OWN] for part in parts if OWN in vars(part)]


def ways(method: Method) -> list[dict[str, Any]]:
    """How ``method`` and its members have called networks, an entry for each way.

    See :meth:`adbench.methods.common.forward.Forward.computed`.
    """
    found: list[dict[str, Any]] = []
    for forward in forwards(method):
        if (way := forward.computed()) not in found:
            found.append(way)
    return found
