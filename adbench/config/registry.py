"""Where methods, datasets and metrics are found by name: a built-in table and entry points, loaded on use.

Nothing here imports torch; listing the built-ins reads a table and imports none of them.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NoReturn

from adbench.errors import UserError, text_of, unknown
from adbench.metrics.spec import SPECS, MetricSpec
from adbench.utils import installed
from adbench.utils.processes import in_child
from adbench.utils.signals import insisting

_PATIENCE = 120.0  # seconds for a plug-in to be imported when it is only looked at
Kind = Literal["methods", "datasets", "metrics"]

# What comes with adbench: name -> where the class is, below the package of its kind, and one line about it.
_METHODS = {
    "madad": ("madad.method:MADAD", "Masked latent diffusion that finds and repairs its own anomalies"),
    "latent": ("latent:Latent", "Distance of a slice's latents from the healthy ones, without diffusion"),
    "reflect": ("reflect:Reflect", "Rectified flow that carries corrupted latents back to healthy ones"),
    "ae": ("ae:AE", "Autoencoder with a dense bottleneck; residual of the reconstruction"),
    "vae": ("vae:VAE", "Variational autoencoder; residual of the reconstruction or of the restoration"),
    "dae": ("dae:DAE", "Denoising autoencoder trained on coarse noise; one pass"),
    "restore": ("restore:Restore", "A network repairs synthetic anomalies, or detects them (DISYRE, FPI, PII, NSA)"),
    "ddpm": ("ddpm:DDPM", "Denoising diffusion: noise the slice, walk back, take the residual"),
    "pddpm": ("pddpm:PDDPM", "Diffusion that noises one box at a time and fills it from the others"),
    "andi": ("andi:ANDi", "Diffusion: how far many single steps miss, aggregated; the fit of ddpm"),
    "thor": ("thor:THOR", "Diffusion that harmonises its path with the slice by its own maps"),
    "features": ("features:Features", "Frozen features of a network trained on something else, or not at all"),
    "itermask": ("itermask:IterMask", "Two UNets lift a mask where they can paint in what is under it"),
    "ensemble": ("ensemble:Ensemble", "The mean of other methods' maps, or of one method's seeds, on one scale"),
    "asymmetry": ("simple:Asymmetry", "Difference to the mirrored half of the brain, no training"),
    "histeq": ("simple:HistEq", "Histogram-equalised intensity, no training"),
    "zscore": ("simple:ZScore", "Voxel-wise |z| against the healthy training slices"),
    "constant": ("simple:Constant", "The same score everywhere: the floor of every metric"),
}
_DATASETS = {
    "phantom": ("phantom.dataset:Phantom", "Deformed MNI152 anatomy with synthetic lesions; needs no download"),
    "ixi": ("adapters.ixi:IXI", "IXI as distributed: healthy T1, T2 and PD with skull, three scanners"),
    "atlas": ("adapters.atlas:Atlas", "ATLAS v2.0 as distributed: stroke, T1 with skull on the MNI grid"),
    "brats21": ("adapters.brats:BraTS21", "BraTS'21 as distributed: glioma, FLAIR, T1, T1CE and T2"),
    "brats23": (
        "adapters.brats23:BraTS23",
        "BraTS 2023 and 2024 (GLI, MET, PED, MEN, SSA): tumours, FLAIR, T1, T1CE and T2",
    ),
    "msd_brain": (
        "adapters.described:MSDBrain",
        "Medical Segmentation Decathlon, Task01: glioma, four sequences in 4-D files",
    ),
    "isles22": ("adapters.described:ISLES22", "ISLES'22: acute stroke, FLAIR, DWI and ADC"),
    "mslub": ("adapters.described:MSLUB", "MSLUB: multiple sclerosis, FLAIR, T1, T1CE and T2"),
    "wmh": ("adapters.described:WMH", "WMH challenge: white-matter hyperintensities, FLAIR and T1"),
    "soop": ("adapters.described:SOOP", "SOOP (OpenNeuro ds004889): acute stroke, FLAIR, T1, DWI, ADC"),
    "bids": (
        "adapters.bids:Bids",
        "Any BIDS dataset: OASIS-3, CamCAN and others, healthy by participants.tsv, masks in derivatives",
    ),
    "nnunet": (
        "adapters.nnunet:NnUNet",
        "nnU-Net raw and Decathlon folders: imagesTr, labelsTr, channels from dataset.json",
    ),
    "folder": (
        "adapters.folder:Folder",
        "Your own NIfTI volumes (BIDS derivatives too) or PNG slices, with or without masks",
    ),
}
_METRICS = {
    "alarms@fpr1": "optional:FalseAlarms1",
    "alarms@fpr5": "optional:FalseAlarms5",
    "dice_pooled@val": "optional:PooledDice",
    "dice_slice@val": "optional:SliceDice",
    "dice_pooled@slice05": "optional:PooledDice05",
    "dice_slice@slice05": "optional:SliceDice05",
    "fa_slice@slice05": "optional:SliceAlarms05",
    "dice_pooled@slice10": "optional:PooledDice10",
    "dice_slice@slice10": "optional:SliceDice10",
    "fa_slice@slice10": "optional:SliceAlarms10",
    "surface_dice@2mm": "optional:SurfaceDice",
    "hd95": "optional:HD95",
    "volume_error": "optional:VolumeError",
    "aupro": "optional:AUPRO",
    "ece": "optional:ECE",
    "box_ap": "boxes:BoxAP",
    "box_f1@val": "boxes:BoxF1",
    "box_f1@fpr1": "boxes:BoxF1Alarms",
}
BUILTIN: dict[str, dict[str, tuple[str, str]]] = {
    "methods": {name: (f"adbench.methods.{target}", summary) for name, (target, summary) in _METHODS.items()},
    "datasets": {name: (f"adbench.datasets.{target}", summary) for name, (target, summary) in _DATASETS.items()},
    "metrics": {name: (f"adbench.metrics.{target}", SPECS[name].definition) for name, target in _METRICS.items()},
}


@dataclass(frozen=True)
class Entry:
    """One name in the registry.

    Attributes:
        kind: "methods", "datasets" or "metrics".
        name: what the user types.
        target: "package.module:Class".
        summary: one line; empty for a plugin until it is loaded.
        origin: "built-in", or the distribution that provides it ("my-method 0.2").
        problem: why it cannot be used; empty when it can (a plugin's import is only tried by :func:`status`).
    """

    kind: Kind
    name: str
    target: str
    summary: str
    origin: str
    problem: str = ""


def _plugin(kind: Kind, point: EntryPoint) -> Entry:
    origin = "unknown distribution" if point.dist is None else installed.label(point.dist)
    if point.dist is None or origin:
        return Entry(kind, point.name, point.value, "", origin)
    where = installed.place(point.dist)
    problem = (
        f"the metadata in {where} have no name or version: install the package that it belongs to again, or remove it"
    )
    return Entry(kind, point.name, point.value, "", "a broken installation", problem)


@cache
def entries(kind: Kind) -> dict[str, Entry]:
    """Every name of ``kind``, built-ins first. Two distributions that claim one name make it unusable, by either."""
    found = {name: Entry(kind, name, target, summary, "built-in") for name, (target, summary) in BUILTIN[kind].items()}
    plugins: dict[str, list[Entry]] = {}
    for point in sorted(entry_points(group=f"adbench.{kind}"), key=lambda p: (p.name, p.value)):
        entry = _plugin(kind, point)
        if entry not in plugins.setdefault(point.name, []):  # one package may be seen twice on the path
            plugins[point.name].append(entry)
    for name, claims in plugins.items():
        claimants = " and ".join(c.origin for c in claims)
        if name in found:
            problem = f"{claimants} may not replace the built-in {name!r}: rename the entry point"
            found[f"{name} ({claimants})"] = Entry(kind, name, claims[0].target, "", claimants, problem)
        elif len(claims) > 1:
            problem = f"claimed by {claimants}: uninstall all but one"
            found[name] = Entry(kind, name, claims[0].target, "", claimants, problem)
        elif kind == "methods" and {"[", "]"} & set(name):
            problem = "its name has brackets, which hold what tables say of a row: rename the entry point"
            found[name] = Entry(kind, name, claims[0].target, "", claimants, problem)
        else:
            found[name] = claims[0]
    return found


def load(kind: Kind, name: str) -> type[Any]:
    """The class behind ``name``.

    Raises:
        UserError: the name is unknown (the nearest is given), claimed twice, or its plugin cannot be imported.
    """
    known = entries(kind)
    if name not in known:
        raise unknown(kind[:-1], name, (n for n, e in known.items() if not e.problem))
    entry = known[name]
    if entry.problem:
        raise UserError(f"The {kind[:-1]} {name!r} is unavailable: {entry.problem}.")
    module, _, attribute = entry.target.partition(":")
    if entry.origin == "built-in":
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found
    try:
        with redirect_stdout(sys.stderr), insisting(), _staying():  # standard output is for tables and JSON
            return _checked(kind, getattr(importlib.import_module(module), attribute))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in's module may raise anything, SystemExit included
        raise UserError(_unavailable(entry, f"failed with {type(error).__name__}: {text_of(error)}")) from error


def _unavailable(entry: Entry, why: str) -> str:
    return f"The {entry.kind[:-1]} {entry.name!r} of {entry.origin} is unavailable: loading {entry.target} {why}."


@contextmanager
def _staying() -> Iterator[None]:
    """Within the block ``os._exit`` raises: a module that calls it when it is imported would end the command without a word."""
    process, leave, loading = os.getpid(), os._exit, True

    def stay(status: int) -> NoReturn:
        if loading and os.getpid() == process:
            raise SystemExit(f"it called os._exit({status})")
        leave(status)

    os._exit = stay
    try:
        yield
    finally:
        os._exit, loading = leave, False


def metric_spec(name: str) -> MetricSpec:
    """The facts of the metric called ``name``: a built-in one, or a plug-in, whose class is loaded.

    A name that is not installed here (a record from a machine with other plug-ins) stands for itself, more being better;
    :func:`adbench.results.record.facts` reads what such a record says about it.
    """
    if name in SPECS:
        return SPECS[name]
    from adbench.metrics.base import spec_of

    try:
        return spec_of(load("metrics", name), name)
    except UserError:
        return not_here(name)


def not_here(name: str) -> MetricSpec:
    """What stands for the facts of a metric that cannot be loaded here."""
    return MetricSpec(name, name, "a metric that is not installed here", "subject mean", high=None, group="optional")


def distribution(kind: Kind, name: str) -> Distribution | None:
    """The distribution that provides the plug-in ``name``; None for a built-in one."""
    points = entry_points(group=f"adbench.{kind}", name=name)
    return next((point.dist for point in points if point.dist), None)


def _checked(kind: Kind, cls: Any) -> type[Any]:
    """``cls`` if it is a complete subclass of the contract of ``kind``; a ``TypeError`` that says why otherwise."""
    base = {
        "methods": ("adbench.methods.base", "Method"),
        "datasets": ("adbench.datasets.base", "Dataset"),
        "metrics": ("adbench.metrics.base", "Metric"),
    }[kind]
    contract = getattr(importlib.import_module(base[0]), base[1])
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise TypeError(f"{cls!r} is not a subclass of {base[0]}.{base[1]}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise TypeError(f"{cls.__name__} does not define {', '.join(missing)}")
    return cls


def status(entry: Entry) -> str:
    """Why ``entry`` cannot be used, or "" when it can. Plugins are imported to find out, built-ins are not."""
    if entry.problem or entry.origin == "built-in":
        return entry.problem
    try:
        load(entry.kind, entry.name)
    except UserError as error:
        return str(error)
    return ""


def examined(entry: Entry) -> tuple[str, str]:
    """One line about ``entry``, and its :func:`status`.

    A plug-in is imported in a process of its own, so that one that crashes is found and not suffered; its line is the first
    of its class's docstring.
    """
    if entry.problem or entry.origin == "built-in":
        return entry.summary, entry.problem

    def look() -> list[str]:
        problem = status(entry)
        doc = "" if problem else load(entry.kind, entry.name).__doc__ or ""
        return [doc.strip().split("\n")[0], problem]

    found, why = in_child(look, _PATIENCE)
    summary, problem = found or ("", _unavailable(entry, f"failed: {why}"))
    return summary, problem


def card_text(method: type[Any]) -> str:
    """The card of a method: the file ``NAME.md`` beside its module; "" when there is none."""
    path = Path(inspect.getfile(method)).with_name(f"{method.name}.md")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
