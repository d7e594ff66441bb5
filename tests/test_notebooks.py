"""The notebooks: executed in order, with outputs that belong to their code, shown by the site, and (nightly) executed again."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

DOCS = Path(__file__).parents[1] / "docs"
HOOKS = DOCS / "hooks.py"
SCRIPT = runpy.run_path(str(DOCS / "notebooks.py"))
NOTEBOOKS = sorted(SCRIPT["FOLDER"].glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_as_it_was_executed(path: Path) -> None:
    assert SCRIPT["issues"](path) == []


def _code(notebook: Any) -> Any:
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def _fails(notebook: Any) -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    _code(notebook)["outputs"].append(error)


def _prints(text: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        _code(notebook)["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]

    return change


def _results(notebook: Any) -> None:
    data = {"text/plain": "PosixPath('/data/somebody/runs')"}
    _code(notebook)["outputs"] = [{"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}]


FAULTS: list[tuple[str, Callable[[Any], Any]]] = [
    ("shows an error", _fails),
    ("names a place on a machine", _prints("Records: /home/somebody/runs")),
    ("names a place on a machine", _prints("Records: /mnt/somebody/runs")),
    ("names a place on a machine", _results),
    ("names a place on a machine", _prints("\x1b[1mbold")),
    ("is larger than 300000 bytes", _prints("x" * 300_000)),
    ("its cells were not executed in order", lambda notebook: _code(notebook).update(execution_count=7)),
    ("its cells were not executed in order", lambda notebook: _code(notebook).update(execution_count=None)),
    ("its code was changed since it was executed", lambda notebook: _code(notebook).update(source="1 + 1")),
    ("holds metadata of another kernel", lambda notebook: notebook["metadata"]["kernelspec"].update(name="mine")),
    ("not a valid notebook: 'outputs' is a required property", lambda notebook: _code(notebook).pop("outputs")),
]


@pytest.mark.parametrize(("issue", "change"), FAULTS)
def test_faults_are_named(issue: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    change(notebook)
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert SCRIPT["issues"](path) == [issue]


def test_the_site_shows_what_was_printed_and_drawn(tmp_path: Path) -> None:
    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", text="<1 s & done\n\nlast line\n"),
        v4.new_output(
            "execute_result", {"text/plain": "4", "text/html": '<table border="1" class="dataframe"></table>'}
        ),
        v4.new_output("display_data", {"text/plain": "<Figure>", "image/png": "QUJD\n"}),
        v4.new_output("display_data", {"text/plain": "<Markdown>", "text/markdown": "**bold**"}),
        v4.new_output("execute_result", {"text/plain": "[5]"}),
    ]
    cells = [
        v4.new_markdown_cell("# One\n\n[page](../index.md) and [licence](../../LICENSE)"),
        v4.new_code_cell("x = 1", outputs=outputs),
    ]
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "docs" / "sub" / "one.ipynb")
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[notebook](sub/one.ipynb#one)\n")
    (tmp_path / "LICENSE").touch()
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: small\nhooks: [{HOOKS}]\nmarkdown_extensions: [toc]\nnav: [index.md, sub/one.ipynb]\n"
        "validation: {links: {not_found: warn, anchors: warn}}\n"
    )
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "sub" / "one" / "index.html").read_text(encoding="utf-8")
    for part in (
        "x = 1",
        "&lt;1 s &amp; done\n\nlast line",
        "<table></table>",
        "data:image/png;base64,QUJD",
        "<strong>bold</strong>",
        "<code>[5]</code>",
        '<a href="../../">page</a> and licence',
    ):
        assert part in page, part
    assert 'href="sub/one/#one"' in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_no_link_of_the_site_is_broken(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=HOOKS.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_can_be_executed_again(path: Path, tmp_path: Path) -> None:
    """Each cell and command succeeds, and prints and draws things of the same kinds as in the file."""
    again, there = SCRIPT["execute"](path, tmp_path), nbformat.read(path, as_version=4)
    nbformat.write(again, tmp_path / path.name)
    assert SCRIPT["issues"](tmp_path / path.name) == []
    assert _kinds(again) == _kinds(there)


def _kinds(notebook: Any) -> list[list[list[str]]]:
    """By code cell and output: what it is."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[sorted(output.get("data", [output.output_type])) for output in cell.outputs] for cell in cells]
