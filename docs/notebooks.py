"""Execute the notebooks of ``docs/notebooks`` and write them again with what they print and draw.

    python docs/notebooks.py [NAME ...]     # minutes; all of them, or `compare`, `hospital`, `board`
    python docs/notebooks.py --check        # a second: executes nothing, fails where a notebook is not as it was executed

Each runs in an empty folder and in a Python environment of its own: what it writes or installs is gone afterwards. A cell or a
command that fails ends it, and its file stays as it was.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "notebooks"
sys.path.insert(0, str(ROOT / "tests"))

from environments import make_environment  # noqa: E402

LARGEST = 300_000  # bytes of a file
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
OF_THIS_MACHINE = re.compile(r"/(?:tmp|home|root|work|Users|dev/shm|private|var|mnt|data|scratch|opt)/|\x1b")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def execute(path: Path, folder: Path) -> Any:
    """The notebook as it comes out of an execution in an empty folder."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    work, python = folder / "work", folder / "python"
    work.mkdir()
    environment = make_environment(python) | {"ADBENCH_CACHE": str(folder / "cache")}
    environment["OMP_NUM_THREADS"] = "1"  # small networks: beside other work a second thread costs more than it gives
    kernel = [str(python / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel += ["--InteractiveShell.system_raise_on_error=True", "--IPKernelApp.log_level=ERROR"]
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": kernel, "env": environment} | METADATA["kernelspec"]))
    found = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=found),
        timeout=1200,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(work)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            _tidy(output, f"{work}/")
    notebook.metadata = METADATA | {"executed": sources(notebook)}
    return notebook


def _tidy(output: Any, folder: str) -> None:
    """Take colours, places on this machine and the weight of pictures out of an output."""
    if output.output_type == "stream":
        text = ESCAPE.sub("", output.text).replace("\r\n", "\n").replace(folder, "")
        lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
        output.text = "\n".join(lines).strip("\n") + "\n"
    elif "image/png" in output.get("data", {}):
        output.data["image/png"] = _smaller(output.data["image/png"])
        output.metadata = {}


def _smaller(picture: str) -> str:
    """A PNG in base64 with 64 colours, and at most 900 px wide."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((900, 1200), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def sources(notebook: Any) -> str:
    """A digest of the code cells: outputs belong to these."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def issues(path: Path) -> list[str]:
    """What is wrong with a notebook that ought to be valid, executed in order without an error, small and of no machine."""
    notebook = nbformat.read(path, as_version=4)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {error.message}"]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    text = [cell.source for cell in notebook.cells]
    for output in outputs:
        shown = output.get("data", {}).items()
        text += [output.get("text", ""), *(json.dumps(said) for kind, said in shown if not kind.startswith("image/"))]
    found = {
        f"is larger than {LARGEST} bytes": path.stat().st_size > LARGEST,
        "its cells were not executed in order": [cell.execution_count for cell in cells] != [*range(1, len(cells) + 1)],
        "shows an error": any(output.output_type == "error" for output in outputs),
        "names a place on a machine": any(map(OF_THIS_MACHINE.search, text)),
        "its code was changed since it was executed": notebook.metadata.get("executed") != sources(notebook),
        "holds metadata of another kernel": notebook.metadata | {"executed": ""} != METADATA | {"executed": ""},
    }
    return [issue for issue, there in found.items() if there]


def main() -> int:
    """Execute the notebooks; with ``--check``, 1 where one is not as it was executed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="default: all")
    parser.add_argument(
        "--check", action="store_true", help="execute nothing; fail where outputs are not those of the code"
    )
    given = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in given.name] or sorted(FOLDER.glob("*.ipynb"))
    if given.check:
        found = [f"{path.relative_to(ROOT)}: {issue}" for path in paths for issue in issues(path)]
        print(*found, *(["Run python docs/notebooks.py"] if found else []), sep="\n", end="\n" if found else "")
        return bool(found)
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
