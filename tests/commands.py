"""Command lines in processes of their own that are forked from a warm one: real processes, without the seconds of imports.

What is tested of the start of a fresh Python (what it imports, which packages it finds installed) needs one: use
:mod:`subprocess` there.
"""

from __future__ import annotations

import os
import runpy
import shlex
import site
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from adbench.executors.worker import in_process

MODULES = {"adbench": "adbench.cli", "pytest": "pytest"}
Done = subprocess.CompletedProcess[str]


def fork(work: Callable[[], object]) -> int:
    """The id of a child of this process that does ``work``, with the imports that were made here; it ends with code 0 or 1.

    Only for a command whose own child (:mod:`adbench.utils.supervisor`) does not matter: it has none in such a process.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run(words: list[str], folder: Path, environment: Mapping[str, str] = os.environ, packages: str = "") -> Done:
    """Run one of :data:`MODULES` with its arguments.

    Args:
        words: its name and the arguments.
        folder: the working directory.
        environment: its environment variables.
        packages: a folder of installed packages that it finds too.
    """
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / "out", Path(name) / "err"]
        code = in_process(partial(_work, words, folder, dict(environment), packages, streams))
        return Done(words, code, *(path.read_text(encoding="utf-8") for path in streams))


def _work(
    words: list[str], folder: Path, environment: dict[str, str], packages: str, streams: list[Path], tell: Any
) -> int:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if packages:
        site.addsitedir(packages)
    sys.argv = list(words)
    try:
        runpy.run_module(MODULES[words[0]], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def shell(script: str, folder: Path, environment: Mapping[str, str], packages: str = "") -> str:
    """Run the lines of a script, one command each, as far as they succeed; what they print.

    ``adbench`` and ``pytest`` are run by :func:`run`, everything else by a shell.
    """
    said = ""
    for line in script.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] in MODULES:
            done = run(words, folder, environment, packages)
        else:
            done = subprocess.run(["sh", "-ec", line], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    return said
