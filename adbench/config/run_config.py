"""The run configuration: defaults < preset < YAML file < ``--set``, and the cells it asks for. No name goes unchecked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adbench.config import protocols, registry, sweep
from adbench.config.cell import Cell, Post, Source, TunedFrom, given_params, told_apart
from adbench.config.protocols import Protocol
from adbench.config.shared_fit import as_fitted, check_protocol, read_shared
from adbench.config.yaml_text import parse_yaml, read_yaml
from adbench.errors import UserError, unknown
from adbench.metrics.spec import SPECS
from adbench.params import ParamSet, build
from adbench.utils import limits
from adbench.utils.hashing import canonical_json

DATA_VARIABLE = "ADBENCH_DATA"
CACHE_VARIABLE = "ADBENCH_CACHE"
_LEAST_MEMORY = 1000 << 20  # bytes of address space of a run
Seed = Annotated[int, Field(ge=0, lt=sweep.BEYOND)]


def default_cache() -> Path:
    """``$ADBENCH_CACHE``, else ``adbench`` in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adbench"


class RunConfig(BaseModel):
    """Configuration of ``adbench run``; the same names in YAML and on the command line.

    Attributes:
        method: one or more methods.
        dataset: one or more datasets to test on (each gives train, val and test unless ``train_on`` is set).
        modality: one or more sequences; empty: the first that each dataset has.
        protocol: name; None: the dataset's own.
        seed: one or more seeds, not negative.
        preset: "tiny", "base" or "paper"; None: "tiny" on the CPU, "base" on a GPU.
        data_root: where the dataset lies; None: ``$ADBENCH_DATA/<dataset>``.
        train_on: another dataset to learn from; its ``train`` and healthy ``val`` slices are used. None: the protocol's.
        train_root: where that one lies; None: ``$ADBENCH_DATA/<train_on>``.
        device: "auto", "cpu", "cuda", "cuda:1".
        out: folder of runs and fits.
        cache: folder of prepared slice stores; None: ``$ADBENCH_CACHE`` or the user's cache folder.
        metrics: plug-in metrics to measure beside the built-in ones.
        set: parameters by scope: ``method`` (every method), ``dataset``, ``train`` (the training source), ``post`` (what is
            done to maps, :class:`adbench.config.cell.Post`), or the name of one method. Several values of one are an axis, see :func:`adbench.config.sweep.variants`.
        tuned_from: written by ``adbench tune``: the search that chose the parameters of a method; goes into its records.
        fit: folder of a shared fit (``adbench fit``) that is scored instead of training one: it says the method, its
            parameters, the modality and the seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    method: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    protocol: str | None = None
    seed: tuple[Seed, ...] = (0,)
    fold: tuple[int, ...] = ()
    preset: str | None = None
    data_root: str | None = None
    train_on: str | None = None
    train_root: str | None = None
    device: str = "auto"
    out: str = "runs"
    cache: str | None = None
    metrics: tuple[str, ...] = ()
    set: dict[str, dict[str, Any]] = {}
    tuned_from: TunedFrom | None = None
    fit: str | None = None

    @field_validator("method", "dataset", "modality", "seed", "fold", "metrics", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        many = (value,) if isinstance(value, int) else value
        if isinstance(many, (list, tuple)) and any(isinstance(one, bool) for one in many):
            raise ValueError("it is true or false: write the number or name itself")
        return many

    @property
    def out_folder(self) -> Path:
        """``out``, absolute: a method may change the working directory."""
        return Path(self.out).absolute()

    @property
    def cache_folder(self) -> Path:
        """``cache`` or the default one, absolute as :attr:`out_folder`."""
        return (Path(self.cache) if self.cache else default_cache()).absolute()

    def to_yaml(self) -> str:
        """As a file that ``adbench run --config`` takes."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def from_cell(cell: Cell) -> RunConfig:
    """The configuration whose only cell is ``cell``, with every parameter spelled out."""
    scopes = {"method": cell.given, "dataset": cell.test.params.json_values}
    if cell.train is not None:
        scopes["train"] = cell.train.params.json_values
    if cell.post.done:
        scopes["post"] = cell.post.done
    return RunConfig(
        method=(cell.method,),
        dataset=(cell.test.dataset,),
        modality=(cell.modality,),
        protocol=cell.protocol.name,
        seed=(cell.seed,),
        preset=cell.preset,
        data_root=cell.test.root,
        train_on=cell.train.dataset if cell.train else None,
        train_root=cell.train.root if cell.train else None,
        device=cell.device,
        metrics=cell.metrics,
        set=scopes,
        tuned_from=cell.tuned_from,
        fit=str(cell.fit.folder) if cell.fit else None,
    )


def resolved(cells: Iterable[Cell], config: RunConfig) -> RunConfig:
    """``config`` with every default filled in from its ``cells``: the whole run in one file that gives the same cells."""
    found = list(cells)
    first = from_cell(found[0])
    scopes: dict[str, list[dict[str, Any]]] = {}
    for cell in found:
        scopes.setdefault(cell.method, []).append(cell.given)
        scopes.setdefault("dataset", []).append(cell.test.params.json_values)
        if cell.train is not None:
            scopes.setdefault("train", []).append(cell.train.params.json_values)
        if any(one.post.done for one in found):
            scopes.setdefault("post", []).append(cell.post.json_values)
    filled = {scope: sweep.joined(values) for scope, values in scopes.items()}
    shared = ["preset", "train_root", "device"]
    if len({cell.test.dataset for cell in found}) == 1:
        shared.append("data_root")
    else:  # what one of them takes is nothing that another one takes
        filled["dataset"] = config.set.get("dataset", {})
    folds = tuple(dict.fromkeys(cell.fold for cell in found if cell.fold is not None))
    if folds:
        filled["dataset"].pop("fold", None)
    return config.model_copy(
        update={
            **{name: getattr(first, name) for name in shared},
            "modality": tuple(dict.fromkeys(cell.modality for cell in found)),
            "protocol": config.protocol or first.protocol,
            "fold": folds,
            "set": filled,
        }
    )


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """``scope.key=value`` as (scope, key, value); the value is read as YAML, so ``500``, ``true`` and ``[1, 2]`` work.

    Raises:
        UserError: not of that form.
    """
    left, equals, right = text.partition("=")
    scope, dot, key = left.strip().rpartition(".")
    if not (equals and dot and scope and key):
        raise UserError(
            f"--set {text!r} is not of the form scope.key=value, e.g. method.steps=500 or dataset.size=128."
        )
    try:
        value = parse_yaml(right, f"--set {left.strip()}")
    except (yaml.YAMLError, ValueError):
        if not right.lstrip().startswith(("{", "*")):  # a path pattern such as {subject}_seg.nii.gz
            raise UserError(f"--set {text!r}: {right!r} is not a valid YAML value.") from None
        value = right.strip()
    return scope, key, value


def load(
    path: Path | None, flags: dict[str, Any], assignments: list[str], model: type[RunConfig] = RunConfig
) -> RunConfig:
    """The configuration of a YAML file (if any) with the command line's ``flags`` and ``assignments`` on top.

    Where flags name fewer methods than the file, what it sets for the others is left out with them.

    Args:
        path: the file, or None.
        flags: values given on the command line; None and empty ones are not given.
        assignments: texts of ``--set``.
        model: :class:`RunConfig`, or one with more keys.

    Raises:
        UserError: unreadable file, unknown key (the nearest is given), a value of a wrong type.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        content = read_yaml(path, "config file")
        if not isinstance(content or {}, dict):
            raise UserError(f"The config file {path} must hold a mapping such as `method: madad`.")
        merged.update(content or {})
    for name in merged:
        if name not in model.model_fields:
            raise unknown(f"key in {path}", str(name), model.model_fields)
    before = names(merged.get("method", ()))
    merged.update({name: value for name, value in flags.items() if value not in (None, (), [])})
    scopes = merged.get("set") or {}
    if not isinstance(scopes, dict) or not all(isinstance(value, dict) for value in scopes.values()):
        raise UserError(f"In {path}, `set` must map scopes to parameters, e.g. set: {{method: {{steps: 500}}}}.")
    included = [name for block in _listed(merged.get("include")) for name in names(block.get("method", ()))]
    gone = {*before} - {*names(merged.get("method", ())), *included}
    merged["set"] = {scope: dict(values) for scope, values in scopes.items() if scope not in gone}
    for text in assignments:
        scope, key, value = parse_assignment(text)
        merged["set"].setdefault(scope, {})[key] = value
    return validated(model, merged)


def names(value: Any) -> list[str]:
    """One or more names or numbers, as files and flags give them ("a, b", a list, one number), as texts."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]


def _listed(blocks: Any) -> list[dict[str, Any]]:
    """The included products of a grid; what is none is refused when it is validated."""
    return [one for one in (blocks if isinstance(blocks, list | tuple) else [blocks]) if isinstance(one, dict)]


def validated(model: type[RunConfig], content: dict[str, Any]) -> RunConfig:
    """``content`` as a configuration.

    Raises:
        UserError: a value of a wrong type.
    """
    try:
        return model(**content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} = {first.get('input')!r} is not valid: {first['msg']}.") from None


def resolve_device(device: str) -> str:
    """A torch device string for "auto" and friends, checked to exist.

    Raises:
        UserError: the device is not there, or `ulimit -v` is below what every run takes.
    """
    # With less, OpenBLAS asks for memory without end when SciPy is loaded after torch.
    limits.check_address_space(_LEAST_MEMORY, "torch and SciPy take")
    if device == "cpu":
        return device  # torch need not be imported to know that
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"Device {device!r} is not one of auto, cpu, cuda, cuda:N.") from None
    if wanted.type != "cuda":
        raise UserError(f"Device {device!r} is not supported: use auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices. `adbench doctor` tells more."
        )
    return device


def locate(name: str, root: str | None, params: dict[str, Any], flag: str) -> Source:
    """The dataset called ``name``, its parameters validated and its folder found.

    Args:
        name: of the dataset.
        root: its folder; None: ``$ADBENCH_DATA/<name>``.
        params: those that differ from the defaults.
        flag: the option that gives ``root``.

    Raises:
        UserError: unknown dataset or parameter; no root given, or none there (says what is expected and where to get it).
    """
    source = Source.resolve(name, None, params)
    info = source.dataset_class.info
    if not info.needs_root:
        if root is not None:
            raise UserError(f"The dataset {name} is generated and takes no {flag}.")
        return source
    if root is None and os.environ.get(DATA_VARIABLE):
        root = str(Path(os.environ[DATA_VARIABLE]) / name)
    expected = f"Expected there: {info.layout}. To get it: {info.obtain}."
    if root is None:
        raise UserError(
            f"The dataset {name} needs its folder: give {flag} DIR or set {DATA_VARIABLE} to the folder that holds {name}/. "
            f"{expected}"
        )
    if not Path(root).exists():
        raise UserError(f"There is no folder {root} for the dataset {name}. {expected}")
    return replace(source, root=str(Path(root).resolve()))


def named_modalities(dataset: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """The names in ``wanted`` as the opened ``dataset`` writes them.

    Raises:
        UserError: it has no such modality.
    """
    there: tuple[str, ...] = dataset.available()
    by_upper = {name.upper(): name for name in there}
    for name in wanted:
        if name.upper() not in by_upper:
            raise unknown(
                f"modality of {dataset.info.name}{f' in {dataset.root}' if dataset.root else ''}", name, there
            )
    return tuple(by_upper[name.upper()] for name in wanted)


def _modalities(config: RunConfig, source: Source, protocol: Protocol) -> tuple[str, ...]:
    dataset = source.open()
    there: tuple[str, ...] = dataset.available()
    if protocol.modalities:
        unfit = [name for name in config.modality if name.upper() not in protocol.modalities]
        if unfit or not set(protocol.modalities) & set(there):
            raise UserError(
                f"The protocol {protocol.name} is for {' and '.join(protocol.modalities)}, not for "
                f"{', '.join(unfit or there)}."
            )
        there = tuple(name for name in protocol.modalities if name in there)
    return named_modalities(dataset, config.modality) or there[:1]


def _folds(config: RunConfig, source: Source) -> list[Source]:
    """``source`` with each fold that is wanted: those of ``config.fold``, else every one; itself where it has no folds.

    Raises:
        UserError: folds are named that it has not.
    """
    folds = int(getattr(source.params, "folds", 0))
    given = "fold" in config.set.get("dataset", {})
    if config.fold and (given or not folds):
        if "folds" not in type(source.params).model_fields:
            raise UserError(f"The dataset {source.dataset} cannot be divided into folds: leave --fold out.")
        why = "dataset.fold is set too: keep one of them" if given else "say how many there are: --set dataset.folds=5"
        raise UserError(f"--fold {','.join(map(str, config.fold))}: {why}.")
    if not folds or given:
        return [source]
    if odd := [fold for fold in config.fold if not 0 <= fold < folds]:
        raise UserError(f"--fold {odd[0]}: dataset.folds={folds} has the folds 0 to {folds - 1}.")
    values = source.params.json_values
    return [
        replace(source, params=build(type(source.params), f"dataset {source.dataset}", {**values, "fold": fold}))
        for fold in dict.fromkeys(config.fold or range(folds))
    ]


def _check_scopes(config: RunConfig) -> None:
    allowed = ["method", "dataset", "train", "post", *config.method]
    for scope in config.set:
        if scope not in allowed:
            near = difflib.get_close_matches(scope, allowed, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            if trained := [name for name in config.method if registry.load("methods", name).trained_by == scope]:
                keys = ", ".join(f"{trained[0]}.{key}" for key in config.set[scope])
                hint = f"{trained[0]} trains as {scope} does, by parameters of its own: write {keys}. "
            raise UserError(
                f"Unknown scope {scope!r} in --set. {hint}Scopes here: method (every method), dataset, train, post"
                f"{', ' if config.method else ''}{', '.join(config.method)}."
            )


def _sources(name: str, root: str | None, params: dict[str, Any], flag: str) -> list[Source]:
    """:func:`locate` for every combination of ``params``, of which some may be swept."""
    points = sweep.variants(registry.load("datasets", name).Params, f"dataset {name}", params, parse_yaml)
    found = [locate(name, root, point, flag) for point in points]
    return list({source.key: source for source in found}.values())


def _train(config: RunConfig, dataset: str, protocol: Protocol) -> Sequence[Source | None]:
    """The training sources, where they are others than the test dataset; else None alone.

    Raises:
        UserError: it is not there, or parameters are given for one that nothing names.
    """
    name = config.train_on or protocol.train_on
    if not name or dataset == protocol.train_on:
        if config.train_root is not None:
            raise UserError(
                "--train-root says where the training source lies; name it with --train-on "
                "(for a folder of your own: --train-on folder)."
            )
        if "train" in config.set:
            raise UserError("--set train.… sets the training source, but --train-on names none.")
        return [None]
    try:
        return _sources(name, config.train_root, config.set.get("train", {}), "--train-root")
    except UserError as error:
        if config.train_on is not None:
            raise
        raise UserError(f"The protocol {protocol.name} learns from {name}. {error}") from None


def _tuned(search: TunedFrom | None, method: str, params: ParamSet) -> TunedFrom | None:
    """The search that chose ``params`` of ``method``, as the record states it."""
    if search is None or search.method != method:
        return None
    values = given_params(params)
    changed = tuple(name for name, value in search.params.items() if values.get(name) != value)
    return search.model_copy(update={"changed": changed})


def cells(config: RunConfig, resolve_device: Callable[[str], str] = resolve_device) -> list[Cell]:
    """Every cell of ``config``: datasets × modalities × folds × methods × swept parameters × seeds, resolved and checked.

    Args:
        config: what is wanted.
        resolve_device: makes a torch device of "auto" and friends; another one when the cells run elsewhere.

    Raises:
        UserError: anything unknown, missing or out of range, before anything runs.
    """
    shared = read_shared(Path(config.fit)) if config.fit else None
    if shared is not None:
        config = validated(type(config), {**config.model_dump(), **as_fitted(shared, config.model_dump())})
    if not config.method:
        raise UserError(
            "Name a method: --method madad (several: --method madad,ae). `adbench list methods` shows them."
        )
    if not config.dataset:
        raise UserError("Name a dataset: --dataset phantom. `adbench list datasets` shows them.")
    _check_scopes(config)
    device = resolve_device(config.device)
    preset = config.preset or ("base" if device.startswith("cuda") else "tiny")
    methods = {}
    for name in dict.fromkeys(config.method):
        cls = registry.load("methods", name)
        asked = {**config.set.get("method", {}), **config.set.get(name, {})}
        for point in sweep.variants(cls.Params, f"method {name}", asked, parse_yaml):
            params = cls.resolve(preset, point)
            methods[name, canonical_json(given_params(params))] = (
                name,
                cls,
                params,
                _tuned(config.tuned_from, name, params),
            )
    posts = [
        build(Post, "post", point) for point in sweep.variants(Post, "post", config.set.get("post", {}), parse_yaml)
    ]
    for name in config.metrics:
        if name in SPECS and name not in registry.entries("metrics"):
            raise UserError(f"{name} is measured by every run: leave it out of --metrics.")
        registry.load("metrics", name)
    found = []
    for dataset in dict.fromkeys(config.dataset):
        for source in _sources(dataset, config.data_root, config.set.get("dataset", {}), "--data-root"):
            protocol = protocols.choose(config.protocol, dataset, source.dataset_class.info.protocol, config.train_on)
            if shared:
                check_protocol(shared, protocol)
            metrics = tuple(sorted({*config.metrics, *protocol.metrics}))
            found += [
                Cell(
                    method=name,
                    method_class=cls,
                    preset=preset,
                    params=params,
                    test=part,
                    train=train,
                    modality=modality,
                    protocol=protocol,
                    seed=seed,
                    device=device,
                    metrics=metrics,
                    tuned_from=tuned,
                    fit=shared,
                    post=post,
                )
                for train, modality, part, (name, cls, params, tuned), post, seed in product(
                    [None] if shared else _train(config, dataset, protocol),
                    _modalities(config, source, protocol),
                    _folds(config, source),
                    methods.values(),
                    dict.fromkeys(posts),
                    dict.fromkeys(config.seed),
                )
            ]
    return told_apart(found)
