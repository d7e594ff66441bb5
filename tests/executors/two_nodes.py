"""A grid on two Ray nodes of which one worker process, and then one node, is killed. Run by ``test_two_nodes.py``.

The first argument is the YAML file of a configuration; prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", "a" * 64)

from ray.cluster_utils import Cluster

from adbench.config.run_config import load
from adbench.executors import Options
from adbench.executors.launch import Launch
from adbench.executors.ray import RayExecutor
from adbench.results import status

BUSY = 5  # steps that a cell has made before something is done to it


def main() -> None:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    second = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    raylet = second.all_processes["raylet"][0].process.pid
    launch = Launch(load(Path(sys.argv[1]), {}, []), Options("ray", nodes.address, cpus=1))
    told: dict[str, object] = {"killed": []}

    def disturb(running: list[Path]) -> None:
        """Kill the process of a cell first; later the whole second node while it is at one."""
        done = told["killed"]
        assert isinstance(done, list)
        for folder in running:
            doing = status.read_status(folder)
            if len(done) == 2 or doing is None or doing["state"] != "running" or doing["done"] < BUSY:
                continue
            on_second = raylet in (parent.pid for parent in psutil.Process(doing["pid"]).parents())
            if not done:
                os.kill(doing["pid"], signal.SIGKILL)
                done.append(str(folder))
            elif on_second and str(folder) not in done:
                nodes.remove_node(second, allow_graceful=False)
                done.append(str(folder))

    with launch.connected():
        cluster = launch.cluster
        assert cluster is not None
        told["nodes"] = len(cluster.nodes)
        executor = RayExecutor(cluster, launch.out, launch.cache, launch.options)
        begin = time.monotonic()
        outcomes = list(executor.run(launch.plan(), lambda: disturb([plan.run_folder for plan in executor.running])))
        told["seconds"] = time.monotonic() - begin
        deadline = time.monotonic() + 60
        while len(cluster.nodes) > 1 and time.monotonic() < deadline:  # Ray notices a lost node after some seconds
            time.sleep(0.5)
        told["left"] = len(cluster.nodes)
        told["cells"] = [
            {"reason": o.reason, "reused": o.reused, "folder": str(o.plan.run_folder), "fit": str(o.plan.fit_folder)}
            for o in outcomes
        ]
    nodes.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
