"""Two processes on one training: the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from memory_sets import SMALL, make_set

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.madad.method import MADAD
from adbench.utils import distributed

ROOT = Path(__file__).parents[2]
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FIT = """
    import json, os, socket, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from adbench.context import Context
    from adbench.methods.madad.method import MADAD
    from adbench.utils import distributed
    from memory_sets import SMALL, make_set

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    child = os.fork()  # as a launcher starts them, but the imports are made once
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(int(not child)))
    distributed.join("cpu")
    with distributed.first():
        data = make_set(12), make_set(5, seed=1, name="v")
    values = {**SMALL, "dropout": 0.0, "batch": 5, "accumulate": 2}
    method = MADAD(MADAD.resolve("tiny", values), Context(workdir=Path(sys.argv[1]), checkpoint_seconds=0))
    report = method.fit(*data)
    Path(f"{sys.argv[1]}/curves-{distributed.rank()}.json").write_text(json.dumps(report.curves))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    done = python("-c", textwrap.dedent(FIT), str(tmp_path))
    assert done.returncode == 0, done.stderr
    values = {**SMALL, "dropout": 0.0, "batch": 5}
    whole = MADAD(MADAD.resolve("tiny", values), Context()).fit(make_set(12), make_set(5, seed=1, name="v")).curves
    for rank in (0, 1):
        curves = json.loads((tmp_path / f"curves-{rank}.json").read_text())
        assert curves.keys() == whole.keys()
        for name, curve in whole.items():
            for point, other in zip(curve, curves[name], strict=True):
                assert point == pytest.approx(other, abs=1e-5)


def test_a_launched_run_reports_once(tmp_path: Path, slices: Path) -> None:
    """The command line on two processes: one table, one record and one fit a method."""
    command = ["-m", "adbench.cli", "run", "--method", "ae,histeq", "--dataset", "folder", "--data-root", str(slices)]
    command += ["--device", "cpu", "--out", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--json"]
    command += [f"--set=ae.{value}" for value in ("image_size=32", "channels=[8]", "steps=3", "batch=4")]
    done = python(*LAUNCH, *command)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["boards"][0]["rows"]) == 2
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 2
    assert len(list((tmp_path / "runs").rglob("fit.json"))) == 2
    assert not list((tmp_path / "runs").rglob("failure.json"))


def test_one_gpu_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda, not cuda:0"):
        distributed.join("cuda:0")


def test_a_single_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # left over from elsewhere: without a world it means nothing
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (distributed.rank(), distributed.world()) == (0, 1)
    distributed.join("cuda:0")
    with distributed.first():
        distributed.wait()
