"""One cell of a grid: a method, its data, a protocol and a seed, resolved once and carried as typed objects.

Classes and parameters are looked up and validated when a cell is made. Only at the border of a process does a cell become
plain JSON (:meth:`Cell.to_json`), and :meth:`Cell.from_json` resolves it again on the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from adbench.config import protocols, registry
from adbench.config.labels import method_title, params_said, texts_apart
from adbench.config.protocols import Protocol
from adbench.config.shared_fit import SharedFit, read_shared
from adbench.config.sweep import differing
from adbench.errors import UserError
from adbench.params import ParamSet, build, param
from adbench.utils.hashing import canonical_json
from adbench.utils.named_files import given_values, shown_values


class TunedFrom(BaseModel):
    """The search that chose a method's parameters. No part of any key: where a value comes from changes no number."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    search: str  # its name
    method: str
    objective: str  # val_auprc, pseudo or recon
    value: float  # of the objective, on validation slices, with the chosen parameters
    default: float | None  # the same with the method's own parameters (trial 0)
    params: dict[str, Any]  # the parameters it chose
    changed: tuple[str, ...] = ()  # those of them that the run sets to something else
    trials: int
    complete: int
    stopped: int  # early, by successive halving
    failed: int
    cpu_hours: float  # of cores held by all trials
    gpu_hours: float
    seed: int
    slices: str  # digest of the validation slices it chose on
    identity: str  # hash of all that decides the search: method, parameters, space, data, objective, seed
    table: str  # hash of its trials


@dataclass(frozen=True)
class Source:
    """A dataset with its parameters and the folder it lies in.

    Attributes:
        root: absolute path of its folder; None for a dataset that is generated.
        dataset_class: a subclass of :class:`adbench.datasets.base.Dataset`.
    """

    dataset: str
    root: str | None
    params: ParamSet
    dataset_class: type[Any] = field(repr=False, compare=False)

    @classmethod
    def resolve(cls, dataset: str, root: str | None, values: dict[str, Any]) -> Source:
        """The dataset called ``dataset``, with ``values`` for those parameters that differ from their defaults.

        Raises:
            UserError: unknown dataset or parameter, or a value out of range.
        """
        found = registry.load("datasets", dataset)
        source = cls(dataset, root, build(found.Params, f"dataset {dataset}", values), found)
        if source.title != dataset and source.title in registry.entries("datasets"):
            raise UserError(
                f"dataset.name={source.title} is the name of another dataset: give your data a name of their own."
            )
        return source

    @property
    def title(self) -> str:
        """Name in tables, run folders and records: the one the user gave, else that of the dataset."""
        return self.dataset_class.title(self.params) or self.dataset

    def open(self) -> Any:
        """The dataset, an instance of :attr:`dataset_class`."""
        return self.dataset_class(self.params, Path(self.root) if self.root else None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for :meth:`from_json`."""
        return {"dataset": self.dataset, "root": self.root, "params": self.params.json_values}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Source:
        """The source that :meth:`to_json` describes."""
        return cls.resolve(content["dataset"], content["root"], content["params"])

    @cached_property
    def key(self) -> tuple[str, str | None, str]:
        """Equal for equal sources, and hashable."""
        return self.dataset, self.root, self.params.json_text


class Post(ParamSet):
    """Postprocessing of the anomaly maps of any method before they are counted: one implementation, off by default.

    ``--set post.median=3``; it stands in the key, the record and the name of a row, and predictions go through it too. Maps are
    smoothed first, the median is taken of what that gives.
    """

    sigma: float = param(
        0.0,
        "Gaussian smoothing of every map in its plane, 0 outside the brain, beside what the method does itself; 0: none.",
        unit="px of the slice",
        source="adbench",
        ge=0,
        le=50,
    )
    median: int = param(
        0,
        "Median of each voxel's cube in the stacked map of a volume, this odd number wide; 0: none. Where a neighbouring "
        "slice was left out or the volume ends, the nearest one is repeated: a slice alone has a median in its plane.",
        unit="voxels",
        source="pDDPM, cDDPM: 5",
        ge=0,
        le=15,
    )

    @field_validator("median")
    @classmethod
    def _has_a_middle(cls, side: int) -> int:
        if side and side % 2 == 0:
            raise ValueError("a cube has a voxel in its middle when its side is odd: 3, 5, ... (0: no median)")
        return side

    @property
    def done(self) -> dict[str, Any]:
        """The steps that are switched on, by name; empty for none, so that keys of runs without any stay as they are."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def labels(self) -> dict[str, Any]:
        """:attr:`done` as names of cells and rows say it: ``post.median=3``."""
        return {f"post.{name}": value for name, value in self.done.items()}


@dataclass(frozen=True)
class Cell:
    """Everything that one run needs to know.

    Attributes:
        preset: name of the preset that the parameters started from.
        params: the method's parameters, validated, every field present.
        test: the dataset that is scored and whose validation split chooses the threshold.
        train: the training source when it is another one, else None.
        device: a torch device string; part of no key.
        metrics: optional and plug-in metrics that are measured beside the others, by name; part of no key.
        tuned_from: the search that chose ``params``; part of no key.
        varied: what tells it from other cells of its method, for its label: "sigma=2"; part of no key.
        post: what is done to its maps before they are counted.
        fit: a shared fit of the method, which is scored instead of training one; ``train`` is then None.
        method_class: a subclass of :class:`adbench.methods.base.Method`.
    """

    method: str
    preset: str
    params: ParamSet
    test: Source
    train: Source | None
    modality: str
    protocol: Protocol
    seed: int
    device: str
    metrics: tuple[str, ...] = ()
    tuned_from: TunedFrom | None = None
    fit: SharedFit | None = None
    post: Post = field(default_factory=Post)
    varied: str = field(default="", compare=False)
    method_class: type[Any] = field(kw_only=True, repr=False, compare=False)

    @property
    def label(self) -> str:
        """A short name for progress bars and messages."""
        fold = "" if self.fold is None else f" fold {self.fold} of {self.test.params.folds}"  # type: ignore[attr-defined]
        name = f"{method_title(self.method, self.params.json_values)} [{self.preset}] {self.varied}".rstrip()
        return f"{name} {self.test.title} {self.modality}{fold} seed {self.seed}"

    @property
    def fold(self) -> int | None:
        """The fold of the dataset that is tested; None where it is not divided into folds."""
        return self.test.params.fold if getattr(self.test.params, "folds", 0) else None  # type: ignore[attr-defined]

    @property
    def train_source(self) -> Source:
        """The source of the training slices."""
        return self.train or self.test

    @property
    def data_key(self) -> tuple[Any, ...]:
        """Equal for cells that use the same slices in the same roles."""
        return (
            self.test.key,
            self.train and self.train.key,
            self.modality,
            self.protocol.name,
            self.fit and self.fit.weights.digest,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal cells, and hashable."""
        return (
            self.method,
            self.preset,
            self.given_text,
            self.seed,
            self.device,
            self.metrics,
            self.post,
            *self.data_key,
        )

    @property
    def given(self) -> dict[str, Any]:
        """The method's parameters as JSON values that give the same cell again: files with their paths; never published."""
        return given_params(self.params)

    @cached_property
    def given_text(self) -> str:
        """Equal text for equal :attr:`given`."""
        values = self.given
        return self.params.json_text if values == self.params.json_values else canonical_json(values)

    @property
    def origin(self) -> TunedFrom | None:
        """:attr:`tuned_from` as the record holds it."""
        if self.tuned_from is None:
            return None
        params = shown_values(type(self.params), self.tuned_from.params)
        return self.tuned_from.model_copy(update={"params": params})

    @property
    def trainer(self) -> Cell | None:
        """The cell of the method whose fit this one scores with (:attr:`adbench.methods.base.Method.trained_by`), if any.

        Raises:
            UserError: that method does not exist, or cannot be fitted with these parameters.
        """
        name = self.method_class.trained_by
        if name in ("", self.method):
            return None
        found = registry.load("methods", name)
        params = found.resolve(self.preset, self.method_class.trained_with(self.preset, self.params))
        return replace(self, method=name, params=params, tuned_from=None, method_class=found)

    @property
    def members(self) -> list[Cell]:
        """The cells whose fits this one is made of (:meth:`adbench.methods.base.Method.made_of`).

        Raises:
            UserError: one of them does not exist.
        """
        return [
            replace(
                self,
                **{name: getattr(one, name) for name in ("method", "preset", "params", "seed", "method_class")},
                tuned_from=None,
                post=Post(),
            )
            for one in self.method_class.made_of(self.params, self.seed)
        ]

    def with_params(self, values: dict[str, Any]) -> Cell:
        """This cell with ``values`` in the place of some of the method's parameters.

        Raises:
            UserError: an unknown parameter, or a value out of range.
        """
        changed = self.method_class.resolve(self.preset, {**self.given, **values})
        return replace(self, params=changed)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for another process or a file."""
        return {
            "method": self.method,
            "preset": self.preset,
            "params": self.given,
            "test": self.test.to_json(),
            "train": self.train.to_json() if self.train else None,
            "modality": self.modality,
            "protocol": self.protocol.name,
            "seed": self.seed,
            "device": self.device,
            "metrics": list(self.metrics),
            "tuned_from": self.tuned_from.model_dump(mode="json") if self.tuned_from else None,
            "varied": self.varied,
            "fit": str(self.fit.folder) if self.fit else None,
            "post": self.post.done,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cell:
        """The cell that :meth:`to_json` describes, resolved in this process.

        Raises:
            UserError: a method, dataset, protocol or parameter that does not exist here.
        """
        method = registry.load("methods", content["method"])
        tuned = content["tuned_from"]
        return cls(
            **{
                **content,
                "params": build(method.Params, f"method {content['method']}", content["params"]),
                "test": Source.from_json(content["test"]),
                "train": Source.from_json(content["train"]) if content["train"] else None,
                "protocol": protocols.get(content["protocol"]),
                "metrics": tuple(content["metrics"]),
                "tuned_from": TunedFrom(**tuned) if tuned else None,
                "fit": read_shared(Path(content["fit"])) if content["fit"] else None,
                "post": Post(**content["post"]),
                "method_class": method,
            }
        )


def given_params(params: ParamSet) -> dict[str, Any]:
    """Parameters as JSON values that give equal ones again: files with their paths; never published."""
    return {**params.json_values, **given_values(params)}


def preset_values(method: type[Any], preset: str) -> dict[str, Any]:
    """Parameters of a preset of ``method`` as records hold them; none where there is no such preset here."""
    try:
        values: dict[str, Any] = method.resolve(preset, {}).json_values
    except UserError:  # or it cannot do without further parameters
        return {}
    return values


def told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """``cells``, each labelled with the parameters in which it differs from its preset, or from others of it."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.preset), []).append(cell)
    texts: dict[tuple[Any, ...], str] = {}
    for group in groups.values():
        alike = {(cell.given_text, cell.post): cell for cell in group}
        own = [{**cell.given, **cell.post.labels} for cell in alike.values()]
        names = dict(zip(alike, differing(own), strict=True))
        preset = preset_values(group[0].method_class, group[0].preset)
        data: dict[tuple[str, str], dict[tuple[Any, ...], dict[str, Any]]] = {}
        for cell in group:
            sources = data.setdefault((cell.test.dataset, cell.train_source.dataset), {})
            sources[cell.test.key, cell.train_source.key] = {
                **cell.train_source.params.json_values,
                **({f"test.{n}": v for n, v in cell.test.params.json_values.items()} if cell.train else {}),
            }
        of_data = {
            key: values
            for sources in data.values()
            for key, values in zip(sources, differing(list(sources.values())), strict=True)
        }
        points = {(cell.given_text, cell.post, cell.test.key, cell.train_source.key): cell for cell in group}
        apart = [{**names[given, post], **of_data[test, train]} for given, post, test, train in points]
        sets = [
            params_said(cell.method, cell.given, own, preset, cell.post.done)
            for cell, own in zip(points.values(), apart, strict=True)
        ]
        beside = [(method_title(cell.method, cell.params.json_values), cell.test.title) for cell in points.values()]
        said = dict(zip(points, texts_apart(sets, apart, beside), strict=True))
        for cell in group:
            texts[cell.key] = said[cell.given_text, cell.post, cell.test.key, cell.train_source.key]
    return [replace(cell, varied=texts[cell.key]) for cell in cells]


def changed(cells: Sequence[Cell]) -> dict[str, dict[str, tuple[list[Any], Any]]]:
    """Scope (a method, "dataset", "train", "post") -> parameter -> its values in ``cells`` and its default, where they differ.

    The default of a method's parameter is that of the preset.
    """
    found: dict[str, dict[str, tuple[list[Any], Any]]] = {}
    apart = {(c.method, c.preset, c.given_text, c.post, c.test.key, c.train and c.train.key): c for c in cells}
    for cell in apart.values():  # seeds, of which there may be thousands, change no parameter
        scopes = {
            cell.method: (cell.params, cell.method_class.resolve(cell.preset, {})),
            "dataset": (cell.test.params, type(cell.test.params)()),
            "post": (cell.post, Post()),
        }
        if cell.train is not None:
            scopes["train"] = cell.train.params, type(cell.train.params)()
        for scope, (params, default) in scopes.items():
            for name, value in given_params(params).items():
                known = found.setdefault(scope, {}).setdefault(name, ([], default.json_values[name]))
                if value not in known[0]:
                    known[0].append(value)
    return {
        scope: {name: (values, default) for name, (values, default) in own.items() if values != [default]}
        for scope, own in found.items()
    }
