"""A process of its own for every cell, without the seconds that importing the libraries takes each time.

A *warm* process imports them once and does nothing else: no thread, no GPU, no computation. Each cell gets a fork of it,
which ends with the cell, so that nothing of one cell (memory, GPU memory, settings, a crash) reaches the next. When a cell
is done, the warm process imports what the cell had imported, and the next fork starts with that.

It is talked to in lines of JSON: a request ``{"job": ..., "environment": ...}``, an answer ``{"code": ..., "result": ...}``.
When its standard input closes, the cell is killed and the process ends: nobody is left waiting for it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any, NoReturn

LIBRARIES = frozenset(
    {"accelerate", "adbench", "diffusers", "matplotlib", "monai", "scipy", "skimage", "sklearn", "torch"}
)
_POLL = 0.02  # seconds between two looks at a running cell
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Warm:
    """A warm process, from the outside. It starts with the first cell."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        """Carry out a job in a fresh process.

        Args:
            job: an :class:`adbench.executors.job.Job` as JSON.
            environment: variables of that process; None: those of this one.

        Returns:
            Exit code of the process (negative: the signal that ended it), and the
            :class:`adbench.executors.job.Result` as JSON, "" when it left none.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adbench.executors.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"job": job, "environment": dict(os.environ) if environment is None else environment}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return self._process.wait() or 1, ""
        content = json.loads(answer)
        return content["code"], content["result"]

    def close(self) -> None:
        """End the process, and the cell it may be at."""
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    for name in ("adbench.executors.job", "matplotlib.pyplot", "threadpoolctl", "torch"):
        importlib.import_module(name)
    while request := sys.stdin.readline():
        with tempfile.TemporaryFile("w+") as result:
            code = _fork_and_wait(json.loads(request), result)
            result.seek(0)
            content = json.loads(result.read() or "{}")
        answers.write(json.dumps({"code": code, "result": content.get("result", "")}) + "\n")
        answers.flush()
        _learn(content.get("modules", []))


def _fork_and_wait(request: dict[str, Any], result: IO[str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_a_cell(parent, request, result)
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if poll.poll(_POLL * 1000):  # nothing is due to come: it was closed
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit(1)


def _be_a_cell(parent: int, request: dict[str, Any], result: IO[str]) -> NoReturn:
    """The life of the fork."""
    code = 1
    try:
        os.setsid()  # with the processes that it may start, it can be killed as one
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        os.environ.clear()
        os.environ.update(request["environment"])
        from adbench.executors.job import Job, carry_out

        done = carry_out(Job.from_json(request["job"])).to_json()
        used = [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]
        result.write(json.dumps({"result": done, "modules": used}))
        result.flush()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _learn(modules: list[str]) -> None:
    for name in modules:
        if name not in sys.modules:
            with suppress(Exception):  # importing it was the cell's affair; here it only saves time
                importlib.import_module(name)


if __name__ == "__main__":
    main()
