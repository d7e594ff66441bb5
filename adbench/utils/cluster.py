"""Ray clusters: one started here and reachable from this machine alone, or one that runs already."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adbench.errors import UserError
from adbench.utils.limits import check_address_space

ADDRESS_VARIABLE = "RAY_ADDRESS"
_PATIENCE = 5.0  # seconds for a node to answer
_LEAST_MEMORY = 2300 << 20  # bytes of address space of a Ray process on two cores; with less it ends by itself, in C++
_OBJECT_STORE = 128 << 20  # bytes; what travels are names and small numbers


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus: cores that Ray may use.
        gpus: GPUs that Ray may use.
    """

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray.

    Attributes:
        address: of the head, host:port.
        local: started by this process, and ends with it.
    """

    address: str
    local: bool

    @property
    def nodes(self) -> list[Node]:
        """The machines that are alive now."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return [Node(n["NodeID"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in alive]

    @property
    def cpus(self) -> float:
        """Cores of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def require(self, cpus: float, gpus: float) -> None:
        """Refuse a run that no node can ever take.

        Raises:
            UserError: no single node has that many.
        """
        nodes = self.nodes
        if any(node.cpus >= cpus and node.gpus >= gpus for node in nodes):
            return
        where = "this machine" if self.local else f"the largest of the {len(nodes)} nodes at {self.address}"
        most_gpus, most_cpus = max(n.gpus for n in nodes), max(n.cpus for n in nodes)
        if most_gpus < gpus:
            raise UserError(
                f"A run asks for {gpus:g} GPU and {where} has {most_gpus:g}: lower --gpus-per-run, or use --device cpu."
            )
        raise UserError(f"A run asks for {cpus:g} CPU cores and {where} has {most_cpus:g}: lower --cpus-per-run.")


def check(address: str | None) -> str:
    """What :func:`connect` connects to, where that can succeed: known in a moment, before data are prepared for it.

    Raises:
        UserError: memory is short, or nothing answers at the address.
    """
    check_address_space(_LEAST_MEMORY, "a process of Ray takes")
    address = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    if address != "local":
        _check_answers(address)
    return address


@contextmanager
def connect(
    address: str | None = None, *, cpus: float | None = None, gpus: float | None = None, **options: Any
) -> Iterator[Cluster]:
    """Ray for the time of a ``with``: the cluster at ``address`` or ``RAY_ADDRESS``, else one on this machine.

    A local Ray listens on loopback only, has no dashboard, sends no usage statistics, and leaves Ray's token authentication
    on. A connection that is open already (a notebook's) is used and left open.

    Args:
        address: "host:port", "ray://host:port", "auto" (the cluster that this machine belongs to), or "local" for a Ray
            of one's own whatever ``RAY_ADDRESS`` says.
        cpus: cores that a local Ray may use; None: all that this process may use.
        gpus: GPUs that a local Ray may use; None: all.
        **options: more arguments of ``ray.init``.

    Raises:
        UserError: nothing answers at the address, it refuses (another version of Ray, another token), memory is short, or
            this machine is too busy to start Ray in the half minute that Ray gives it.
    """
    address = check(address)
    local = address == "local"
    _prepare_environment(address)
    try:
        import ray
    except ImportError:
        raise UserError(f"Ray is not installed for {sys.executable}: pip install 'ray[tune]'.") from None
    if ray.is_initialized():
        yield Cluster(ray.get_runtime_context().gcs_address, local=False)
        return
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **options}
    if local:
        if ray._private.ray_constants.ENABLE_RAY_CLUSTER:
            raise UserError(
                "Ray was imported with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER on, so it would listen on every network interface: "
                "set it to 0 before Ray is imported, or call ray.init() yourself."
            )
        arguments |= {
            "num_cpus": int(cpus or len(os.sched_getaffinity(0))),
            "num_gpus": None if gpus is None else int(gpus),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    before = signal.getsignal(signal.SIGTERM)
    try:
        context: Any = ray.init(address=address, **arguments)
    except Exception as error:  # a node that is slow to start is an Exception and nothing more
        ray.shutdown()
        raise UserError(_refusal(address, error)) from error
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends the process at once
    try:
        yield Cluster(context.address_info.get("gcs_address") or address, local)
    finally:
        ray.shutdown()


def _prepare_environment(address: str) -> None:
    """Set what Ray reads from the environment, some of it on import only; what the user has set stays."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_oom_retries": "2",  # Ray's own default is to retry without end
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    host = "localhost" if address in ("local", "auto") else _host_and_port(address)[0]
    if host in ("localhost", "::1") or host.startswith("127."):
        # Ray then takes 127.0.0.1 for what it is, instead of this machine's address in its network.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address != "local" and (Path.home() / ".ray" / "auth_token").exists():
        # Ray itself does so for clusters of its own and for "auto"; a cluster without authentication takes no notice.
        wanted["RAY_AUTH_MODE"] = "token"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    _keep_token(Path.home() / ".ray" / "auth_token", make=address == "local")


def _keep_token(path: Path, make: bool) -> None:
    """Make Ray's token readable for this user alone: who has it can run programs as this user. Ray itself does not mind."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}.intersection(os.environ)
    if make and not given and os.environ.get("RAY_AUTH_MODE", "token") == "token" and not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    with suppress(OSError):  # it is not there, or not ours
        path.chmod(0o600)


def _host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port" or "ray://host:port".

    Raises:
        UserError: not of that form.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"The Ray address {address!r} is not of the form host:port, e.g. 192.168.1.10:6379 (`ray start --head` prints it)."
        )
    return host.strip("[]"), int(port)


def _check_answers(address: str) -> None:
    """Refuse an address that does not answer; Ray itself would try for two minutes."""
    if address == "auto":
        return
    try:
        socket.create_connection(_host_and_port(address), timeout=_PATIENCE).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error.strerror or error}): start one with `ray start --head`, correct "
            f"--address or {ADDRESS_VARIABLE}, or leave both out to use this machine alone."
        ) from None


def _refusal(address: str, error: BaseException) -> str:
    """A sentence on why ``ray.init`` failed."""
    text, cause = (" ".join(str(part or "").split()) for part in (error, error.__cause__))
    if "ersion mismatch" in text + cause:
        return f"The Ray cluster at {address} runs other versions than this environment: {text or cause}"
    if address == "local":
        return f"Ray cannot be started on this machine: {text}"
    if address == "auto":
        return f"There is no Ray cluster on this machine to join ({text}): start one with `ray start`, or leave --address out."
    return (
        f"The Ray cluster at {address} refuses this process ({text}): this machine must be one of its nodes and have its "
        "token (~/.ray/auth_token or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token)."
    )
