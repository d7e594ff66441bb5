"""Networks as scoring calls them: in the number format of the run and, on a GPU, recorded and compiled.

The module imports torch; :meth:`adbench.methods.base.Method.infer` is the way to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adbench.errors import UserError
from adbench.methods.common.preprocess import autocast
from adbench.methods.common.recording import Recording
from adbench.utils import compute

PORTION = 32  # samples that a GPU computes at a time: enough to fill it
LAUNCHED = 2  # portions before one is recorded: they choose algorithms, allocate, or compile
# Operations of a scoring for which compiling pays, if it is worth what it is to a training of large networks: it takes about a
# minute and halves the rest, which before took about a minute for each 1e16.
COMPILES_FROM = 3e16

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

Tensors = tuple[torch.Tensor, ...]


class Forward:
    """Calls of networks by a method that scores; their outputs are float32.

    A GPU computes portions of one shape: the last is filled up with copies of its last sample, and fewer samples than one
    portion are computed as they are. So all samples of a call go through the same kernels, however many there are. A portion
    is recorded once (a CUDA graph) and replayed, and networks of a long scoring are compiled (:meth:`expect`).

    Args:
        device: of the run.
        logger: told when a network cannot be recorded or compiled.
        portions: compute in portions, as a GPU should with weights that no longer change; otherwise a call is just that.
    """

    def __init__(self, device: str, logger: logging.Logger, portions: bool) -> None:
        self._device, self._logger, self._portions = torch.device(device), logger, portions
        self._calls: dict[Any, _Call] = {}
        self._decided = False

    def __call__(self, network: nn.Module, *inputs: torch.Tensor, call: str = "forward") -> Tensors:
        """What ``network`` gives for ``inputs``; see :meth:`adbench.methods.base.Method.infer`."""
        function = network if call == "forward" else getattr(network, call)
        if not self._portions or not _by_sample(inputs):
            return _launch(function, inputs, self._device)
        format = compute.precision(str(self._device))
        which = (network, call, format, *((one.shape[1:], one.dtype) for one in inputs))
        if which not in self._calls:
            what = f"{type(network).__name__}.{call}"
            self._calls[which] = _Call(what, function, self._device, self._logger)
        # Not in inference mode: a recording writes to its inputs again, and what is compiled for tensors of that mode is
        # compiled again for others.
        with torch.inference_mode(False), torch.no_grad():
            return self._calls[which]([one.clone() if one.is_inference() else one for one in inputs])

    def expect(self, done: int, total: int) -> None:
        """``done`` of ``total`` slices are scored: what they took says whether to compile for the others. Decided once."""
        if self._decided:
            return
        self._decided = True
        calls = self._calls.values()
        if sum((call.operations or 0.0) * call.samples for call in calls) / done * (total - done) < COMPILES_FROM:
            return
        if (mode := compute.compile_mode(str(self._device))) != "off":
            for call in calls:
                call.compile(mode)

    def forget(self) -> None:
        """Give back the memory of what is recorded; it is recorded again when it is called again."""
        for call in self._calls.values():
            call.recording, call.launched, call.samples = None, 0, 0

    def computed(self) -> dict[str, Any]:
        """How networks were called: "device", "precision", "compile" (the mode, or "off"), "networks" ("recorded", "launched")."""
        calls = self._calls.values()
        modes = [call.mode for call in calls if call.mode != "off"]
        return {
            "device": self._device.type,
            "precision": compute.precision(str(self._device)),
            "compile": modes[0] if modes else "off",
            "networks": "recorded" if any(call.recording for call in calls) else "launched",
        }


class _Call:
    """One function of a network, for inputs of one shape.

    Attributes:
        recording: of a portion.
        launched: portions that were not replayed, since the function is what it is.
        operations: of one sample; None: not counted yet.
        samples: that have been computed.
        mode: of ``torch.compile``, or "off".
    """

    def __init__(self, what: str, function: Callable[..., Any], device: torch.device, logger: logging.Logger) -> None:
        self._what, self._plain, self._function = what, function, function
        self._device, self._logger = device, logger
        self._records = self._in_portions = True
        self.recording: Recording | None = None
        self.operations: float | None = None
        self.launched, self.samples, self.mode = 0, 0, "off"

    def compile(self, mode: str) -> None:
        """Compile the function for portions to come."""
        self._function, self.mode = compute.compiled(self._plain, mode), mode
        self.recording, self.launched = None, 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Tensors:
        count = len(inputs[0])
        self.samples += count
        if self.operations is None:
            counted = _Operations()
            with counted:
                found = _launch(self._plain, [one[:1] for one in inputs], self._device)
            self.operations = float(counted.total)
            if counted.waits:
                self._records = False
                self._warn("is launched kernel by kernel, which is slower", f"it waits in {min(counted.waits)}")
            self._in_portions = _by_sample((inputs[0][:1], *found))
            if count == 1:
                return found
        if count >= PORTION and self._in_portions:
            portions = zip(*(torch.split(one, PORTION) for one in inputs), strict=True)
            each = [self._portion(portion) for portion in portions]
            self._in_portions = all(_by_sample((inputs[0][:PORTION], *found)) for found in each)
            if self._in_portions:
                return tuple(torch.cat(parts)[:count] for parts in zip(*each, strict=True))
        return _launch(self._plain, inputs, self._device)

    def _portion(self, inputs: Sequence[torch.Tensor]) -> Tensors:
        missing = PORTION - len(inputs[0])
        if missing:
            inputs = [torch.cat([one, one[-1:].expand(missing, *one.shape[1:])]) for one in inputs]
        named = {str(number): one for number, one in enumerate(inputs)}
        if self.recording is None and self._records and self.launched >= LAUNCHED:
            self._record(named)
        if self.recording is not None:
            return self.recording(named)
        if self.mode != "off" and not self.launched:
            self._try_compiled(inputs)
        self.launched += 1
        return _launch(self._function, inputs, self._device)

    def _record(self, inputs: dict[str, torch.Tensor]) -> None:
        try:
            self.recording = Recording(
                lambda named: _launch(self._function, list(named.values()), self._device), inputs
            )
        except RuntimeError as error:
            self._records = False
            self._warn("is launched kernel by kernel, which is slower", str(error))

    def _try_compiled(self, inputs: Sequence[torch.Tensor]) -> None:
        try:
            _launch(self._function, inputs, self._device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._function, self.mode = self._plain, "off"
            self._warn("is not compiled, which is slower", str(error))

    def _warn(self, what: str, why: str) -> None:
        self._logger.warning("Scoring: %s %s (%s).", self._what, what, why.strip().split("\n")[0])


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations (a multiplication and an addition are two), as ``torch.utils.flop_counter`` does.

    ``waits`` are those for which the host waits for the device: to look at a number, or to copy from one to the other. To
    begin to record them is to break the recording, after which the process keeps memory that it should give back.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        copies = "copy" in name and len({tensor.device for tensor in tensors}) > 1
        masks = name.startswith("aten.index") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        if copies or masks or any(word in name for word in WAITS):
            self.waits.add(name)
        if (count := flop_registry.get(getattr(func, "_overloadpacket", None))) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _launch(function: Callable[..., Any], inputs: Sequence[torch.Tensor], device: torch.device) -> Tensors:
    with autocast(device):
        found = function(*inputs)
    if isinstance(found, dict):  # of diffusers
        found = tuple(found.values())
    parts = found if isinstance(found, (tuple, list)) else (found,)
    for part in parts:
        if not isinstance(part, torch.Tensor):
            name = getattr(function, "__qualname__", type(function).__name__)
            raise UserError(
                f"{name} gives {type(part).__name__} where a network that a method scores with gives tensors: have it give "
                "a tensor, or several, or call it without infer and apply."
            )
    return tuple(part.float() for part in parts)


def _by_sample(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all of ``tensors`` have as many entries along a first axis; what does not is called as it is."""
    return all(one.ndim for one in tensors) and len({len(one) for one in tensors}) == 1
