"""How networks compute on a device: number format and compilation, as the user says, never as torch happens to be set.

``ADBENCH_PRECISION`` names the format on a GPU, for training and scoring alike: ``bf16`` (networks alone, the default where the
GPU has it), ``tf32``, or ``float32``. torch computes the convolutions of "float32" in TF32 unless it is told not to, which
keeps 10 bits of a product: a map's difference of two similar images then is off in its second digit. So TF32 is on when
``tf32`` is asked for and off otherwise, also in what surrounds the networks (smoothing, perceptual maps).

``ADBENCH_COMPILE`` is a mode of ``torch.compile`` ("default" where Triton is installed, "off", ...) for the networks of
trainings that are long enough to pay for it, on a GPU. CPUs compute in float32, uncompiled. What was on is in the record; like the device
the settings are in no key: the run is the same experiment, computed elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from adbench.errors import UserError

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])
PRECISION, COMPILE = "ADBENCH_PRECISION", "ADBENCH_COMPILE"
Precision = Literal["bf16", "tf32", "float32"]
FORMATS: tuple[Precision, ...] = ("bf16", "tf32", "float32")
# torch's other modes make CUDA graphs of their own, which those that adbench records cannot hold.
MODES = ("off", "default", "max-autotune-no-cudagraphs")
NETWORKS = 256  # of one class that a process may compile; torch stops at 8 without a word


def precision(device: str) -> Precision:
    """Number format of networks on ``device``.

    Raises:
        UserError: the environment names no format, or one that the GPU does not have.
    """
    said = os.environ.get(PRECISION, "")
    wanted = next((name for name in FORMATS if name == said), None)
    if said and wanted is None:
        raise UserError(f"{PRECISION}={said} is not one of {', '.join(FORMATS)}: unset it, or set it to one of them.")
    if not device.startswith("cuda"):
        return "float32"
    import torch

    # Of this GPU: torch.cuda.is_bf16_supported looks at the current one.
    has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if wanted == "bf16" and not has_bf16:
        raise UserError(f"{torch.cuda.get_device_name(device)} has no bf16: unset {PRECISION}, or set it to float32.")
    return wanted or ("bf16" if has_bf16 else "float32")


@contextmanager
def applied(device: str) -> Iterator[None]:
    """Within the block products of float32 on ``device`` keep all digits, unless :func:`precision` is "tf32"."""
    import torch

    on = precision(device) == "tf32"
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def to_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; from the host to a GPU through page-locked memory, so that nothing waits for the copy."""
    if str(device).startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compile_mode(device: str) -> str:
    """Mode of ``torch.compile`` on ``device``: what the user asks for, else "default"; "off" without Triton, and on a CPU.

    Raises:
        UserError: the environment names no mode.
    """
    said = os.environ.get(COMPILE) or ("default" if find_spec("triton") else "off")
    if said not in MODES:
        raise UserError(f"{COMPILE}={said} is not one of {', '.join(MODES)}: unset it, or set it to one of them.")
    return said if device.startswith("cuda") else "off"


def compiled(function: F, mode: str) -> F:
    """``function`` (a module, or its method) compiled for inputs of one shape, at its first call."""
    import torch._dynamo.config

    limit: Any = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, NETWORKS)
    return cast(F, torch.compile(function, mode=mode, dynamic=False))


def current(device: str) -> AbstractContextManager[object]:
    """Within the block ``device`` is this thread's current one: streams, events and recordings are made on that."""
    import torch

    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()
