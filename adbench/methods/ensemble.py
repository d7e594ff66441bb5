"""Several fits as one detector: their maps on one scale, averaged (Lakshminarayanan et al. 2017, arXiv 1612.01474)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import field_validator

from adbench.config import registry
from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.base import FitReport, Member, Method, Resources
from adbench.params import ParamSet, param
from adbench.utils.named_files import Shown, names_files, shown_values

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet

HEALTHY = 256  # slices at most that a scale is taken from


class _Members(Shown):
    """Of the texts of members, whose values may name files."""

    def shown(self, members: Sequence[str]) -> list[str]:
        return [self._shown(text) for text in members]

    def is_named(self, members: Sequence[str]) -> bool:
        read = [_read(text) for text in members]
        return any(names_files(registry.load("methods", name).Params, values) for name, values in read)

    def _shown(self, text: str) -> str:
        name, values = _read(text)
        shown = shown_values(registry.load("methods", name).Params, values)
        return text if shown == values else " ".join([name, *(f"{key}={value}" for key, value in shown.items())])


class EnsembleParams(ParamSet):
    """Parameters of :class:`Ensemble`."""

    members: Annotated[tuple[str, ...], _Members()] = param(
        ("dae", "dae", "dae"),
        "What is averaged: methods, each with parameters of its own behind its name ([dae sigma=3, restore]); one that stands "
        "there several times has another seed each time.",
        source="adbench",
        min_length=2,
        max_length=32,
    )
    preset: Literal["tiny", "base", "paper"] = param("tiny", "Preset of the members.", source="adbench")
    quantile: float = param(
        0.99,
        "A member's map is divided by this quantile of its scores in the brain of healthy validation slices.",
        source="adbench",
        gt=0,
        le=1,
    )

    @field_validator("members")
    @classmethod
    def _one_spelling(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(" ".join(text.split()) for text in members)


class Ensemble(Method):
    """The mean of the maps of other methods' fits, each divided by what it gives healthy validation slices.

    A run makes each member's fit as a run of that method would, and takes one that is there: with ``dae, dae, dae`` seed 0 is
    the mean of ``dae`` with seeds 0, 1 and 2, seed 1 that of 3, 4 and 5. So two seeds of an ensemble share no fit.
    """

    name = "ensemble"
    Params = EnsembleParams
    params: EnsembleParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"preset": name} for name in ("tiny", "base", "paper")}
    smoke: ClassVar[dict[str, Any]] = {"members": ("ae image_size=64 channels=8,16,16 steps=6", "histeq")}
    sized_by_data = True  # as a member may be
    _scales: torch.Tensor

    @classmethod
    def resolve(cls, preset: str, overrides: dict[str, Any]) -> ParamSet:
        params = super().resolve(preset, overrides)
        cls.made_of(params, 0)  # a wrong name is told before anything runs
        return params

    @classmethod
    def made_of(cls, params: ParamSet, seed: int) -> list[Member]:
        assert isinstance(params, EnsembleParams)
        read = [_read(text) for text in params.members]
        several, members, before = Counter(name for name, _ in read), [], Counter[str]()
        for name, values in read:
            if name == cls.name:
                raise UserError("An ensemble cannot be a member of an ensemble: name the methods that it is made of.")
            found = registry.load("methods", name)
            own = found.resolve(params.preset, values)
            members.append(Member(name, params.preset, own, several[name] * seed + before[name], found))
            before[name] += 1
        return members

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        asked = [member.method_class.resources(member.params) for member in cls.made_of(params, 0)]
        return Resources(*(max(getattr(one, part.name) for one in asked) for part in fields(Resources)))

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Fit the members where a run has not, and see what each gives healthy slices: of ``val``, or else of ``train``."""
        if not self.members:
            self.members = [self._fitted(number, train, val) for number in range(len(self.params.members))]
        healthy = val if val is not None and len(val) else train
        self._scales = self._of_healthy(healthy.limited(HEALTHY))
        reports = [report for _, report in self.members]
        named = [
            (f"{number}.{self.params.members[number].partition(' ')[0]}", each) for number, each in enumerate(reports)
        ]
        return FitReport(
            steps=sum(report.steps for report in reports),
            parameters=sum(report.parameters for report in reports),
            best={f"{name}.{key}": value for name, report in named for key, value in report.best.items()},
            curves={f"{name}.{stage}": curve for name, report in named for stage, curve in report.curves.items()},
            computed={f"{name}.{stage}": ways for name, report in named for stage, ways in report.computed.items()},
            earlier_seconds=sum(report.earlier_seconds for report in reports),
            notes=[
                *dict.fromkeys(note for report in reports for note in report.notes),
                *(["No healthy validation slice: members are scaled by training slices."] if healthy is train else []),
            ],
        )

    def _fitted(self, number: int, train: SliceSet, val: SliceSet | None) -> tuple[Method, FitReport]:
        member = self.made_of(self.params, self.ctx.seed)[number]
        workdir = self.ctx.workdir and self.ctx.workdir / str(number)
        if workdir:
            workdir.mkdir(exist_ok=True)
        method = member.method_class(member.params, replace(self.ctx, seed=member.seed, workdir=workdir, watch=None))
        report = method.fit(train, val)
        return method, replace(report, earlier_seconds=0.0)  # they are counted by whoever calls

    def _of_healthy(self, healthy: SliceSet) -> torch.Tensor:
        """(M,) the quantile of each member's scores in the brain of ``healthy``.

        Raises:
            UserError: a member gives them no positive score.
        """
        import numpy as np
        import torch

        scales = []
        for text, (method, _) in zip(self.params.members, self.members, strict=True):
            with torch.inference_mode():
                scores = [
                    method.score(batch).float()[batch.brain].cpu()
                    for batch in (part.to(self.ctx.device) for part in healthy.batches(32))
                ]
            seen = torch.cat(scores).numpy()
            scale = float(np.quantile(seen, self.params.quantile))
            if not 0 < scale < float("inf"):
                raise UserError(
                    f"The member {text!r} of the ensemble gives healthy slices the score {scale:g} at the quantile "
                    f"{self.params.quantile:g}, which is no scale: raise ensemble.quantile, or leave the member out."
                )
            scales.append(scale)
        return torch.tensor(scales)

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return self.score_and_reconstruct(batch)[1]

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        with torch.inference_mode():
            seen = [method.score_and_reconstruct(batch) for method, _ in self.members]
            maps = torch.stack(
                [one.float() / scale for (one, _), scale in zip(seen, self._scales.tolist(), strict=True)]
            )
            images = [image for _, image in seen if image is not None]
            return maps.mean(dim=0), torch.stack(images).mean(dim=0) if len(images) == len(seen) else None

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"quantile": {"choices": [0.9, 0.95, 0.99, 0.999]}}

    def state(self) -> dict[str, torch.Tensor]:
        return {"scales": self._scales}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self._scales = state["scales"]

    def save(self, folder: Path) -> None:
        """Write the scales into ``folder``, and each member into a folder of its own there: 0, 1, ..."""
        super().save(folder)
        for number, (method, _) in enumerate(self.members):
            method.save(Path(folder) / str(number))

    @classmethod
    def load(cls, folder: Path, ctx: Context) -> Self:
        method = super().load(folder, ctx)
        method.members = [
            (member.method_class.load(Path(folder) / str(number), replace(ctx, seed=member.seed)), FitReport())
            for number, member in enumerate(cls.made_of(method.params, ctx.seed))
        ]
        return method


def _read(text: str) -> tuple[str, dict[str, str]]:
    """Name and parameters of a member: "dae sigma=3 channels=32,64"; the fields read the values by their types."""
    name, *assignments = re.split(r" (?=[A-Za-z_]\w*=)", text)
    values = dict(one.split("=", 1) for one in assignments)
    if " " in name or not name or len(values) < len(assignments):
        raise UserError(
            f"The member {text!r} of the ensemble is not of the form METHOD, or METHOD NAME=VALUE ... with each parameter "
            "once, e.g. --set 'ensemble.members=[dae sigma=3, restore]'."
        )
    return name, values
