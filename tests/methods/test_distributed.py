"""Fits in processes of their own, killed ones and two on one training: the numbers of one that nothing disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from memory_sets import SMALL, make_set

from adbench.context import Context, Progress
from adbench.errors import UserError
from adbench.methods.madad.method import MADAD
from adbench.utils import distributed

pytestmark = pytest.mark.timeout(600)  # several trainings and a launcher, beside others
ROOT = Path(__file__).parents[2]
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
APART = """
    import json, os, signal, socket, sys
    from pathlib import Path
    import torch, torch._dynamo
    torch.set_num_threads(1)
    import adbench.methods.madad.fitting, monai.networks.nets.patchgan_discriminator  # once, not in every fork
    from adbench.context import Context, Progress
    from adbench.methods.madad.method import MADAD
    from adbench.utils import distributed
    from memory_sets import SMALL, make_set

    class Kill(Progress):
        def update(self, phase, done, total, **figures):
            if (phase, done) == at:
                os.kill(os.getpid(), signal.SIGKILL)

    killed, together = sys.argv[1:]
    data = make_set(12), make_set(5, seed=1, name="v")
    for at in (("autoencoder", 3), ("unet", 4)):
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        ctx = Context(workdir=Path(killed), progress=Kill(), checkpoint_seconds=0)
        MADAD(MADAD.resolve("tiny", SMALL), ctx).fit(*data)
        os._exit(0)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    child = os.fork()  # as a launcher starts them
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(int(not child)))
    distributed.join("cpu")
    with distributed.first():
        data = make_set(12), make_set(5, seed=1, name="v")
    values = {**SMALL, "dropout": 0.0, "batch": 5, "accumulate": 2}
    method = MADAD(MADAD.resolve("tiny", values), Context(workdir=Path(together), checkpoint_seconds=0))
    report = method.fit(*data)
    Path(f"{together}/curves-{distributed.rank()}.json").write_text(json.dumps(report.curves))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class _Phases(Progress):
    """The first step that each phase reported."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def update(self, phase: str, done: int, total: int, **figures: object) -> None:
        self.seen.setdefault(phase, done)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    """Fits in forks of one process, which makes the imports once: killed ones in a folder, two on one training in another."""
    killed, together = (tmp_path_factory.mktemp(name) for name in ("killed", "together"))
    return python("-c", textwrap.dedent(APART), str(killed), str(together)), killed, together


def test_two_processes_have_the_loss_curve_of_one(
    apart: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    done, _, folder = apart
    assert done.returncode == 0, done.stderr
    values = {**SMALL, "dropout": 0.0, "batch": 5}
    whole = MADAD(MADAD.resolve("tiny", values), Context()).fit(make_set(12), make_set(5, seed=1, name="v")).curves
    for rank in (0, 1):
        curves = json.loads((folder / f"curves-{rank}.json").read_text())
        assert curves.keys() == whole.keys()
        for name, curve in whole.items():
            for point, other in zip(curve, curves[name], strict=True):
                assert point == pytest.approx(other, abs=1e-5)


def test_killed_fits_end_in_the_numbers_of_an_uninterrupted_one(
    apart: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    """kill -9 in the autoencoder, then in the UNet, then a run to the end."""
    done, folder, _ = apart
    assert done.stdout.split() == ["-9", "-9"], done.stderr
    phases = _Phases()
    killed = MADAD(MADAD.resolve("tiny", SMALL), Context(workdir=folder, progress=phases))
    killed.fit(make_set(12), make_set(5, seed=1, name="v"))
    assert "autoencoder" not in phases.seen  # finished, so not trained again
    assert phases.seen["unet"] > 1  # continued, not started from the beginning
    whole = MADAD(MADAD.resolve("tiny", SMALL), Context())
    whole.fit(make_set(12), make_set(5, seed=1, name="v"))
    for key, value in whole.state().items():
        assert torch.equal(value, killed.state()[key]), key
    batch = make_set(4, seed=3, name="t").batch(slice(None))
    assert torch.equal(whole.score(batch), killed.score(batch))


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
