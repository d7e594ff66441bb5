"""Speed of ``adbench data get`` from a server on this machine, checksum on and off: ``python benchmarks/download.py [--gb 1]``.

Budget: 300 MB/s with the checksum. One block is hashed while the next one arrives, so on two idle cores the slower of the two
sets the rate: MD5, some 600 MB/s of a core. CPU seconds are printed too, as other jobs on the machine change the wall clock alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adbench.datasets.download import Remote, fetch

MB_PER_S = 300.0


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.flush()
        self.connection.sendfile(source)


def main() -> int:
    """Measure, print, and return 1 when the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file")
    size = int(parser.parse_args().gb * 1000)
    with tempfile.TemporaryDirectory() as folder:
        block, md5, path = os.urandom(1_000_000), hashlib.md5(usedforsecurity=False), Path(folder) / "a.tar"
        hashing = 0.0
        with open(path, "wb") as file:
            for _ in range(size):
                file.write(block)
                start = time.process_time()
                md5.update(block)
                hashing += time.process_time() - start
        print(f"MD5 alone: {size / hashing:.0f} MB a CPU second")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
        process = get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        reached = {}
        for name, digest in (("with MD5", md5.hexdigest()), ("without", "")):
            wall, cpu = time.perf_counter(), time.process_time()
            url = f"http://127.0.0.1:{server.server_port}/a.tar"
            fetch(Remote(url, "a.tar", digest, path.stat().st_size), Path(folder) / name)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            reached[name] = size / wall
            print(f"{name}: {size / wall:.0f} MB/s, {size / cpu:.0f} MB a CPU second")
        process.terminate()
    met = reached["with MD5"] >= MB_PER_S
    print(f"budget {MB_PER_S:.0f} MB/s with MD5: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
