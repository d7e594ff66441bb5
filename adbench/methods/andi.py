"""ANDi: the mismatch of many denoising steps, aggregated by a geometric mean (arXiv 2312.01904)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import BATCH, CHANNELS, EMA, SCHEDULE, SIGN, WARMUP, Sign
from adbench.methods.ddpm import DDPM
from adbench.methods.diffusion import SMOKE, DiffusionMethod, DiffusionParams, Noise
from adbench.params import ParamSet, param, scoring

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch


# What decides a training; it is ddpm's, whose fit serves both.
TRAINING = tuple(name for name in DiffusionParams.model_fields if name not in scoring(DiffusionParams))


def _training_of(preset: str) -> dict[str, Any]:
    """The training of a preset of ``ddpm``."""
    return DDPM.resolve(preset, {}).model_dump(include=set(TRAINING))


class ANDiParams(DiffusionParams):
    """Parameters of :class:`ANDi`."""

    channels: tuple[int, ...] = CHANNELS((64, 128, 256, 256, 512), source="ANDi", max_length=6)
    attention: tuple[bool, ...] = param(
        (False, False, True, True, True), "Levels with self-attention.", source="ANDi", max_length=6
    )
    head_channels: int = param(64, "Channels of an attention head.", source="adbench", ge=8)
    noise: Noise = param("pyramid", "Kind of noise in training.", source="ANDi")
    batch: int = BATCH(128, source="ANDi")
    warmup: int = WARMUP(500, source="ANDi (5 % of its training)")
    decay: Literal["constant", "cosine"] = SCHEDULE("cosine", source="ANDi")
    ema: float = EMA(0.995, source="ANDi")
    augment: bool = param(False, "Rotate, shift, scale and mirror training slices.", source="ANDi")
    test_noise: Noise = param(
        "gaussian", "Kind of noise at test, drawn anew at every step.", source="ANDi", scores=True
    )
    start: int = param(75, "First step whose mismatch counts.", unit="steps", source="ANDi", ge=0, scores=True)
    stop: int = param(200, "Step before which the last one lies.", unit="steps", source="ANDi", ge=1, scores=True)
    passes: int = param(
        125,
        "Steps looked at, evenly spread from start to stop: predictions a slice.",
        unit="steps",
        source="ANDi",
        ge=1,
        le=1000,
        scores=True,
    )
    mean: Literal["geometric", "arithmetic"] = param(
        "geometric", "How the steps are aggregated.", source="ANDi", scores=True
    )
    floor: float = param(
        1e-8,
        "Squared difference of intensities below which the geometric mean takes it for this one.",
        source="adbench",
        gt=0,
        lt=1,
        scores=True,
    )
    sign: Sign = SIGN("abs", source="adbench")

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        if self.stop > self.trained_steps:
            raise ValueError(
                f"stop ({self.stop}) may not exceed the {self.trained_steps} steps that the network is trained on (t_max, timesteps)"
            )
        if self.passes > self.stop - self.start:
            raise ValueError(
                f"passes ({self.passes}) may not exceed the {self.stop - self.start} steps from start to stop"
            )
        return self

    @property
    def times(self) -> list[int]:
        """The steps at which the mismatch is taken, ascending."""
        return [self.start + k * (self.stop - self.start) // self.passes for k in range(self.passes)]


class ANDi(DiffusionMethod):
    """Noise a slice to many steps, let a diffusion model take one step back from each: where it errs at all of them is a lesion.

    The mismatch of a step is the squared difference of the means of its true and its predicted posterior. A geometric mean
    over the steps keeps what is large throughout. The network is that of ``ddpm``: with equal parameters of the training, both
    score with one fit.
    """

    name = "andi"
    trained_by = "ddpm"
    gpu_memory_gb = 10.0
    Params = ANDiParams
    params: ANDiParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**_training_of("tiny"), "start": 25, "stop": 125, "passes": 16, "sigma": 2.5},
        "base": {**_training_of("base"), "start": 25, "stop": 125, "passes": 25, "sigma": 2.5},
        "paper": {"epochs": 233.0, "target": "epsilon", "schedule": "linear"},
    }
    smoke: ClassVar[dict[str, Any]] = {**SMOKE, "passes": 3}

    @classmethod
    def trained_with(cls, preset: str, params: ParamSet) -> dict[str, Any]:
        assert isinstance(params, ANDiParams)
        shared: dict[str, Any] = {name: getattr(params, name) for name in TRAINING}
        if DDPM.presets[preset].get("start", params.timesteps // 2) >= params.trained_steps:
            shared["start"] = params.trained_steps - 1  # where ddpm would score; it trains all the same
        return shared

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            total, recon = self._mismatch(2 * seen.image - 1, self.generators(batch))
            maps = seen.to_slice_grid(total * seen.brain) * batch.brain
            return gaussian_blur(maps, p.sigma), seen.restore((recon + 1) / 2)

    def _mismatch(self, clean: torch.Tensor, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Aggregated mismatch of slices in [-1, 1], in squared intensities of [0, 1], and the mean of the predicted slices.

        With the slice's own x_t in both, the means of the true and the predicted posterior differ by ``k_t (x_0 - x_0')``.
        In a geometric mean the k_t are one factor for all pixels, which is left out; in an arithmetic one they are weights.
        """
        import torch

        from adbench.methods.common.image_ops import one_sided

        p, schedule = self.params, self.noise_schedule
        weights = [schedule.clean_share(t) ** 2 if p.mean == "arithmetic" else 1.0 for t in p.times]
        total, recon = torch.zeros_like(clean), torch.zeros_like(clean)
        for t, weight in zip(p.times, weights, strict=True):
            x = schedule.noised(clean, self.draw_noise(len(clean), generators, p.test_noise), t)
            predicted = self.predict_clean(x, t, clip=False)
            squared = one_sided((clean - predicted) / 2, p.sign).square()
            part = squared if p.mean == "arithmetic" else squared.clamp(min=p.floor).log()
            total += weight / sum(weights) * part
            recon += predicted.clamp(-1, 1) / len(weights)
        return (total if p.mean == "arithmetic" else total.exp()), recon

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            **super().search_space(),
            "start": {"low": 10, "high": 60},
            "passes": {"choices": [8, 16, 25]},
            "test_noise": {"choices": ["gaussian", "simplex", "pyramid"]},
        }
