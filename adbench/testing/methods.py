"""The rules that a method must keep, and the check of a method class against them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from adbench.context import Context, Progress
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet, build, scoring
from adbench.testing.data import small_sets
from adbench.testing.rules import Finding, apply, require

SEED = 3


class _Interrupted(KeyboardInterrupt):
    """A user's Ctrl-C in the middle of training."""


class _Updates(Progress):
    """Counts reports of progress; interrupts at the ``stop_at``-th."""

    def __init__(self, stop_at: int = 0) -> None:
        self.count, self.stop_at = 0, stop_at

    def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
        self.count += 1
        if self.count == self.stop_at:
            raise _Interrupted


@dataclass
class MethodUnderTest:
    """The subject of the rules of a method; what one rule fitted, the next ones reuse."""

    cls: type[Method]
    params: ParamSet
    train: SliceSet
    val: SliceSet
    test: SliceSet
    folder: Path
    device: str
    progress: _Updates = field(default_factory=_Updates)
    fitted: Method | None = None
    report: FitReport | None = None

    def context(self, name: str, progress: Progress | None = None) -> Context:
        """A context with a folder of its own, called ``name``."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return Context(self.device, SEED, folder, checkpoint_seconds=0, progress=progress or Progress())

    def fit(self, name: str, progress: Progress | None = None, params: ParamSet | None = None) -> Method:
        """A method fitted in the context ``name``, with ``params`` in place of its own."""
        method = self.cls(params or self.params, self.context(name, progress))
        self.report = method.fit(self.train, self.val)
        return method

    @property
    def method(self) -> Method:
        """The first fit, made when it is asked for."""
        if self.fitted is None:
            self.fitted = self.fit("first", self.progress)
        return self.fitted

    @property
    def batch(self) -> SliceBatch:
        """Every test slice, as a new batch on the device."""
        return self.test.batch(slice(0, len(self.test))).to(self.device)

    @cached_property
    def maps(self) -> Any:
        """Maps of every test slice by the first fit, when it was first asked."""
        return self.score(self.method).clone()  # it may give the same memory each time

    def score(self, method: Method, batch: SliceBatch | None = None) -> Any:
        """Maps of ``batch``, or of every test slice."""
        import torch

        with torch.inference_mode():
            return method.score(batch or self.batch)


def _largest_difference(first: Any, second: Any) -> float:
    """Largest difference as a share of the range of ``first``."""
    span = float((first.max() - first.min()).clamp_min(1e-12))
    return float((first.float() - second.float()).abs().max()) / span


def rule_is_documented(trial: MethodUnderTest) -> None:
    """The class has a docstring, a name, and parameters that each say what they do and where their default is from."""
    cls = trial.cls
    require((cls.__doc__ or "").strip(), "the class has no docstring")
    require(isinstance(getattr(cls, "name", None), str) and cls.name, "the class has no `name`")
    for name, parameter in cls.Params.model_fields.items():
        extra = parameter.json_schema_extra
        require(parameter.description, f"parameter {name} has no description: make it with adbench.params.param")
        require(
            isinstance(extra, dict) and extra.get("source"), f"parameter {name} does not say the source of its default"
        )


def rule_presets_resolve(trial: MethodUnderTest) -> None:
    """The presets tiny, base and paper exist and hold valid parameters; an unknown parameter is refused."""
    for preset in ("tiny", "base", "paper"):
        trial.cls.resolve(preset, {})
    try:
        trial.cls.resolve("tiny", {"no_such_parameter": 1})
    except UserError:
        return
    require(False, "an unknown parameter was accepted (Params must forbid extra fields)")


def rule_never_reads_a_label(trial: MethodUnderTest) -> None:
    """Fitting opens no lesion mask."""
    require(isinstance(trial.method, trial.cls), "fit did not leave a method")
    require(isinstance(trial.report, FitReport), f"fit returned {type(trial.report).__name__}, not a FitReport")


def rule_honours_the_budget(trial: MethodUnderTest) -> None:
    """The fit takes no more optimiser steps than Method.budget allows."""
    _ = trial.method
    assert trial.report is not None
    allowed = trial.cls.budget(trial.params)
    if allowed is not None:
        require(trial.report.steps <= allowed, f"took {trial.report.steps} steps, its parameters allow {allowed}")


def rule_map_has_the_shape_of_the_slice(trial: MethodUnderTest) -> None:
    """score gives floating-point maps (B, 1, H, W) on the grid and device of the batch."""
    maps, batch = trial.maps, trial.batch
    require(
        tuple(maps.shape) == tuple(batch.image.shape), f"maps {tuple(maps.shape)}, slices {tuple(batch.image.shape)}"
    )
    require(maps.dtype.is_floating_point, f"maps are {maps.dtype}")
    require(maps.device == batch.image.device, f"maps are on {maps.device}, the batch is on {batch.image.device}")


def rule_map_is_finite(trial: MethodUnderTest) -> None:
    """No NaN and no infinity, on ordinary slices and on one without any contrast."""
    batch = trial.batch
    require(bool(trial.maps.isfinite().all()), "the maps hold NaN or infinite values")
    flat = replace(batch, image=batch.brain.float() * 0.5)
    require(
        bool(trial.score(trial.method, flat).isfinite().all()), "a slice without contrast gives NaN or infinite values"
    )


def rule_leaves_its_input_alone(trial: MethodUnderTest) -> None:
    """score does not write into the batch it is given."""
    batch = trial.batch
    before = batch.image.clone()
    trial.score(trial.method, batch)
    require(bool((batch.image == before).all()), "score changed batch.image in place")


def rule_reconstruction_is_an_image(trial: MethodUnderTest) -> None:
    """reconstruct gives None or images in [0, 1] of the shape of the slices."""
    import torch

    with torch.inference_mode():
        recon = trial.method.reconstruct(trial.batch)
    if recon is None:
        return
    require(tuple(recon.shape) == tuple(trial.batch.image.shape), f"reconstructions {tuple(recon.shape)}")
    low, high = float(recon.min()), float(recon.max())
    require(low >= -1e-6 and high <= 1 + 1e-6, f"reconstructions from {low:g} to {high:g}, expected [0, 1]")


def rule_does_not_depend_on_the_batch(trial: MethodUnderTest) -> None:
    """A slice gets the same map alone, in pairs, among others, and beside much brighter ones (to 1e-3 of the range)."""
    import torch

    whole = trial.maps
    for size in (1, 2):
        parts = [trial.score(trial.method, part.to(trial.device)) for part in trial.test.batches(size)]
        difference = _largest_difference(whole, torch.cat(parts))
        require(difference < 1e-3, f"maps differ by {difference:.2g} of their range in batches of {size}")
    batch, half = trial.batch, len(trial.test) // 2
    image = torch.cat([batch.image[:half], batch.brain[half:].to(batch.image.dtype)])
    difference = _largest_difference(whole[:half], trial.score(trial.method, replace(batch, image=image))[:half])
    require(difference < 1e-3, f"maps differ by {difference:.2g} of their range beside slices of full intensity")


def rule_does_not_depend_on_what_came_before(trial: MethodUnderTest) -> None:
    """A slice gets the same map whatever was scored before it: none, the same subject's other slices, or other subjects'.

    A method that rescales by what it saw of a subject or of a test set gives a slice another map when the order changes.
    """
    import torch

    folder = trial.folder / "before"
    trial.method.save(folder)
    loaded = trial.cls.load(folder, trial.context("order"))
    subjects = [subject for batch in trial.test.batches(1) for subject in batch.subjects]
    turns = [subjects[:position].count(subject) for position, subject in enumerate(subjects)]
    order = sorted(range(len(subjects)), key=lambda position: (-turns[position], -position))  # subjects in turn
    maps = {at: trial.score(loaded, trial.test.batch(slice(at, at + 1)).to(trial.device)) for at in order}
    difference = _largest_difference(trial.maps, torch.cat([maps[at] for at in sorted(maps)]))
    require(difference < 1e-3, f"maps differ by {difference:.2g} of their range when slices come in another order")


def rule_is_deterministic(trial: MethodUnderTest) -> None:
    """The same seed gives the same maps, when scored again and when fitted again."""
    first = trial.maps
    require(bool((trial.score(trial.method) == first).all()), "scoring twice gave different maps: seed every draw")
    difference = _largest_difference(first, trial.score(trial.fit("second")))
    require(
        difference < 1e-5, f"fitting twice gave maps that differ by {difference:.2g} of their range: seed every draw"
    )


def rule_fits_alike_whatever_only_scores(trial: MethodUnderTest) -> None:
    """Parameters that are said to score only (``scores=True``) change no weight, note, curve or figure of a fit, and a loaded
    fit scores with the values it is given.
    """
    names = sorted(scoring(trial.cls.Params))
    first, told = trial.method, trial.report
    params = trial.params
    for name in names:
        params = with_another(trial.cls, params, name)
    if params == trial.params:
        return
    second = trial.fit("otherwise", params=params)
    if problem := _fits_differ(first, told, second, trial.report):
        alone = [name for name in names if _matters(trial, name, first, told)]
        named = f"{' and '.join(alone or names)} {'is' if len(alone or names) == 1 else 'are'} marked scores=True"
        require(
            False, f"{named}, and the fit depends on it: {problem} differ; leave scores out, or read it in score alone"
        )
    first.save(trial.folder / "scored")
    loaded = trial.cls.load(trial.folder / "scored", trial.context("given"))
    loaded.params = params
    difference = _largest_difference(trial.score(second), trial.score(loaded))
    require(
        difference < 1e-5,
        f"a loaded fit that is given other values of {', '.join(names)} scores otherwise than one that was fitted with them "
        f"({difference:.2g} of the range): read what only scores from self.params in score",
    )


def _matters(trial: MethodUnderTest, name: str, first: Method, told: FitReport | None) -> bool:
    changed = with_another(trial.cls, trial.params, name)
    return bool(_fits_differ(first, told, trial.fit(f"otherwise-{name}", params=changed), trial.report))


def _fits_differ(first: Method, told: FitReport | None, second: Method, said: FitReport | None) -> str:
    """In what two fits differ but for rounding; "" for nothing."""
    assert told is not None
    assert said is not None
    states = first.state(), second.state()
    if states[0].keys() != states[1].keys() or any(
        states[0][key].shape != states[1][key].shape
        or _largest_difference(states[0][key].float(), states[1][key]) > 1e-5
        for key in states[0]
        if states[0][key].numel()
    ):
        return "weights"
    parts = {
        "notes": (first.notes(), second.notes()),
        "curves": (told.curves, said.curves),
        "figures": (
            [told.best, told.steps, told.parameters, told.notes],
            [said.best, said.steps, said.parameters, said.notes],
        ),
    }
    return next((what for what, (one, other) in parts.items() if _text(one) != _text(other)), "")


def _text(content: Any) -> str:
    """Equal text for what is equal to six digits."""
    return json.dumps(
        json.loads(json.dumps(content), parse_float=lambda digits: f"{float(digits):.6g}"), sort_keys=True
    )


def with_another(cls: type[Method], params: ParamSet, name: str) -> ParamSet:
    """``params`` with another value of the parameter ``name`` that is valid beside the others; as they are where none was found."""
    for value in _others(getattr(params, name), cls.Params.model_fields[name].annotation):
        try:
            changed = build(cls.Params, cls.name, {**params.model_dump(), name: value})
        except UserError:
            continue
        if getattr(changed, name) != getattr(params, name):
            return changed
    return params


def _others(value: Any, annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1, value * 2, value / 2, value + 0.1, value // 2]
    if isinstance(value, tuple) and value:
        return [value[:-1], *((one, *value[1:]) for one in _others(value[0], Any))]
    return (
        []
        if value is not None
        else [number if single else (number,) for number in (10, 100, 1) for single in (True, False)]
    )


def rule_survives_saving(trial: MethodUnderTest) -> None:
    """A saved and loaded method gives equal maps, and the folder holds safetensors and JSON only."""
    folder = trial.folder / "saved"
    trial.method.save(folder)
    others = sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in {".safetensors", ".json"})
    require(not others, f"save wrote {', '.join(others)}: only safetensors and JSON are allowed")
    loaded = trial.cls.load(folder, trial.context("loaded"))
    difference = _largest_difference(trial.maps, trial.score(loaded))
    require(difference < 1e-6, f"maps differ by {difference:.2g} of their range after saving and loading")


def rule_resumes_to_equal_numbers(trial: MethodUnderTest) -> None:
    """A fit that is interrupted in the middle and called again ends with the same maps."""
    expected = trial.maps
    if trial.progress.count < 2:
        return  # nothing to interrupt: the fit reports no intermediate progress
    try:
        trial.fit("resumed", _Updates(stop_at=max(1, trial.progress.count // 2)))
    except _Interrupted:
        difference = _largest_difference(expected, trial.score(trial.fit("resumed")))
        require(difference < 1e-5, f"maps differ by {difference:.2g} of their range after an interruption")
        return
    require(False, "the fit swallowed KeyboardInterrupt: a user could not stop it")


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]


def check_method(cls: type[Method], *, overrides: dict[str, Any] | None = None, device: str = "cpu") -> list[Finding]:
    """Check ``cls`` against every rule, on a few slices of 64x64 pixels.

    Args:
        cls: the method.
        overrides: parameters on top of the preset ``tiny`` and of ``cls.smoke``; choose them so that a fit takes seconds.
        device: where to run.

    Returns:
        One finding per rule, in order; ``problem`` is empty where the rule holds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = cls.resolve("tiny", {**cls.smoke, **(overrides or {})})
        return apply(RULES, MethodUnderTest(cls, params, *small_sets(folder), folder, device))
