"""Fits in processes of their own, killed ones and two on one training: the numbers of one that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
from importlib import import_module
from pathlib import Path

import pytest
import torch
from commands import fork
from memory_sets import SMALL, make_set

from adbench.context import Context, Progress
from adbench.errors import UserError
from adbench.methods.madad.method import MADAD
from adbench.utils import distributed

pytestmark = pytest.mark.timeout(600)  # several trainings and a launcher, beside others
ROOT = Path(__file__).parents[2]


class _Phases(Progress):
    """The first step that each phase reported."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def update(self, phase: str, done: int, total: int, **figures: object) -> None:
        self.seen.setdefault(phase, done)


class _Kill(Progress):
    """Ends the process at a step of a phase."""

    def __init__(self, phase: str, step: int) -> None:
        self.at = (phase, step)

    def update(self, phase: str, done: int, total: int, **figures: object) -> None:
        if (phase, done) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def _fit_and_die(folder: Path, phase: str, step: int) -> None:
    torch.set_num_threads(1)
    ctx = Context(workdir=folder, progress=_Kill(phase, step), checkpoint_seconds=0)
    MADAD(MADAD.resolve("tiny", SMALL), ctx).fit(make_set(12), make_set(5, seed=1, name="v"))


def _fit_together(folder: Path, rank: int, port: int) -> None:
    """One of two processes, as a launcher starts them."""
    signal.alarm(280)  # it ends when the other one is gone
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    distributed.join("cpu")
    with distributed.first():
        data = make_set(12), make_set(5, seed=1, name="v")
    values = {**SMALL, "dropout": 0.0, "batch": 5, "accumulate": 2}
    method = MADAD(MADAD.resolve("tiny", values), Context(workdir=folder, checkpoint_seconds=0))
    report = method.fit(*data)
    (folder / f"curves-{rank}.json").write_text(json.dumps(report.curves))
    distributed.wait()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def _imports() -> None:
    """Once, not in every fork."""
    own = ("adbench.methods.madad.fitting", "monai.networks.nets.patchgan_discriminator")
    for name in (*own, "torch._dynamo", "torch.distributed", "accelerate.state"):
        import_module(name)


def _ends(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = [fork(lambda rank=rank: _fit_together(tmp_path, rank, port)) for rank in (0, 1)]
    assert [_ends(rank) for rank in ranks] == [0, 0]
    values = {**SMALL, "dropout": 0.0, "batch": 5}
    whole = MADAD(MADAD.resolve("tiny", values), Context()).fit(make_set(12), make_set(5, seed=1, name="v")).curves
    for rank in (0, 1):
        curves = json.loads((tmp_path / f"curves-{rank}.json").read_text())
        assert curves.keys() == whole.keys()
        for name, curve in whole.items():
            for point, other in zip(curve, curves[name], strict=True):
                assert point == pytest.approx(other, abs=1e-5)


def test_killed_fits_end_in_the_numbers_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """kill -9 in the autoencoder, then in the UNet, then a run to the end."""
    for phase, step in (("autoencoder", 3), ("unet", 4)):
        assert _ends(fork(lambda phase=phase, step=step: _fit_and_die(tmp_path, phase, step))) == -signal.SIGKILL
    phases = _Phases()
    killed = MADAD(MADAD.resolve("tiny", SMALL), Context(workdir=tmp_path, progress=phases))
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
    said = [tmp_path / "out", tmp_path / "err"]

    def launch() -> None:
        from torch.distributed.run import main

        signal.alarm(280)
        for number, path in enumerate(said, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ["PYTHONPATH"] = str(ROOT)
        main(["--standalone", "--nproc-per-node", "2", *command])

    code = _ends(fork(launch))
    out, err = (path.read_text() for path in said)
    assert code == 0, err
    assert len(json.loads(out)["boards"][0]["rows"]) == 2
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
