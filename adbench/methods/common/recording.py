"""What a GPU does in a call, recorded once and replayed; the module imports torch."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Recording:
    """What a call does on a GPU, recorded once (a CUDA graph) and replayed on inputs of the same shapes: one launch a call.

    Args:
        call: of tensors on the device alone: it copies nothing from the host, looks at no number, and does the same each time.
        inputs: of the call, for their shapes; nothing is computed yet.

    Raises:
        RuntimeError: the call does what cannot be recorded, or memory does not suffice for a second set of its tensors.
    """

    def __init__(
        self, call: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]], inputs: dict[str, torch.Tensor]
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        device = next(iter(inputs.values())).device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # The outer block is left in any case; the graph's own is not where the end of a broken recording raises.
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self._outputs = call(self._inputs)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)
