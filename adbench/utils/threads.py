"""How many CPU threads the numeric libraries compute with: what the user or the method says, never what the machine has.

Several threads add in another order than one does, so with another number of threads a training on a CPU differs in its last
digits. A run therefore has the same number under every executor and on every machine: ``OMP_NUM_THREADS`` where the user has
set it, else as many as its method asks for (:class:`adbench.methods.base.Resources`). Records hold the number. Like the
device it is no part of a key: the run is the same experiment, computed elsewhere.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adbench.errors import UserError

VARIABLE = "OMP_NUM_THREADS"


def default(cpus: float) -> int:
    """Threads of a run whose method asks for ``cpus`` cores, where the user says nothing."""
    return max(1, int(cpus))


def count(cpus: float) -> int:
    """Threads of a run whose method asks for ``cpus`` cores: what the user says, else the default.

    Raises:
        UserError: ``OMP_NUM_THREADS`` is no number of threads.
    """
    said = os.environ.get(VARIABLE, "").partition(",")[0].strip()  # "4,2" is for nested regions
    if not said:
        return default(cpus)
    if not said.isdecimal() or int(said) == 0:
        raise UserError(f"{VARIABLE}={said} is not a number of threads: unset it, or set it to 1, 2, ...")
    return int(said)


@contextmanager
def limited(number: int, *, load_torch: bool = True) -> Iterator[None]:
    """Within the block torch, BLAS and OpenMP compute with ``number`` threads; afterwards with as many as before.

    The environment says so too, for libraries that are loaded within the block and for processes that are started there.

    Args:
        number: of threads.
        load_torch: False leaves torch alone where it is not imported yet, which saves seconds.
    """
    from threadpoolctl import threadpool_limits

    torch: Any = importlib.import_module("torch") if load_torch else sys.modules.get("torch")
    before = {name: os.environ.get(name) for name in (VARIABLE, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    threads = torch.get_num_threads() if torch else 0
    os.environ.update(dict.fromkeys(before, str(number)))
    try:
        with threadpool_limits(number):
            if torch:
                torch.set_num_threads(number)
            yield
    finally:
        if torch:
            torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
