"""Every command that README and the pages print is taken by the command line, resolved or run, on small data.

A ``run`` is resolved: methods, datasets, parameters, protocol and roles are looked up as in a real one. Quick commands are run as
they are printed, in the order of the pages, in a folder with slices and volumes of the names that the pages use. Why any
other is not run stands in :data:`NOT_RUN`; a reason that no printed command needs any more fails.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from adbench import cli as commands_of
from adbench.cli.app import app
from adbench.config import run_config
from adbench.datasets.phantom.small_layouts import write_small

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))  # executed as a whole: tests/test_notebooks.py
USAGE = typer.BadParameter.__bases__[0]  # typer brings click along under a name of its own
COMMAND: Any = typer.main.get_command(app)
Cli = Callable[..., tuple[int, str, str]]

# Beginning of a command, as a pattern -> why it is not run here. The first that matches counts.
NOT_RUN = {
    r"adbench .*(localcontrast|inpaint|my_method|mine\b)": "a plug-in that is installed first: tests/plugins",
    r"adbench run .*--executor ray": "Ray takes seconds to start: tests/executors",
    r"adbench run .*--grid leaderboards": "a board, hours of training",
    r"adbench run .*--(method|dataset) (madad|constant,histeq,zscore,asymmetry,ae|ddpm|dae|vae|ensemble|phantom --method vae)": "trains",
    r"adbench run .*--dataset (ixi|bids|atlas|folder --data-root clinic)": "prepares volumes: tests/datasets/test_layouts.py",
    r"adbench run --config runs/searches": "the best of a search: tests/tune",
    r"adbench tune ": "trains for minutes: tests/tune",
    r"adbench fit (push|pull) ": "a hub on the network: tests/runner/test_shared_fits.py",
    r"adbench data get ": "downloads gigabytes",
    r"adbench data synth ": "whole heads take minutes: tests/datasets/test_layouts.py",
    r"adbench data (prepare|show|export) ": "prepares volumes: tests/datasets/test_preparation_cli.py",
    r"adbench data (check|info) .*synthetic|adbench data info .*--splits": "needs a tree that the command before it writes",
    r"adbench leaderboard (verify leaderboards|build)": "all committed records: tests/leaderboard/test_committed.py",
    r"adbench leaderboard (pool|merge|submit|verify edited)": "needs somebody's results: tests/leaderboard/test_submission.py",
    r"adbench report runs/phantom/phantom-flair( --out report)?$": "draws figures for ten seconds: tests/report",
    r"adbench eval ": "maps and masks on disk: tests/evaluation/test_eval.py",
    r"python (benchmarks|docs|examples)/": "minutes of computing, or data that may not be passed on; the script has to be there",
}


def commands(page: Path) -> list[str]:
    """The commands of its code blocks that begin with ``adbench`` or ``python``, and the scripts that its text names."""
    text = page.read_text(encoding="utf-8") if page.suffix == ".md" else as_page(json.loads(page.read_bytes()))
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python [\w/]+\.py[^`\n]*)`", text)
    found = [first(line) for line in lines if re.match(r"adbench |python [\w/]+\.py", line)]
    return [line for line in dict.fromkeys(found) if line != "adbench ..." and not line.endswith("--help")]


def as_page(notebook: Any) -> str:
    """A notebook as Markdown, with the commands of its cells as they are in a terminal."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    code = {"code": lambda source: f"```\n{re.sub('^!', '', source, flags=re.MULTILINE)}\n```", "markdown": str}
    return "\n\n".join(code[kind](source) for kind, source in cells)


def first(line: str) -> str:
    """The first command of a line of a shell, without a comment."""
    words = shlex.split(line, comments=True)
    return shlex.join(
        words[: next((at for at, word in enumerate(words) if word in ("|", "||", "&&", ">")), len(words))]
    )


PRINTED = {page: commands(page) for page in (*PAGES, *NOTEBOOKS)}


def reason(line: str) -> str:
    """The pattern of :data:`NOT_RUN` by which it is not run, "" for one that is."""
    return next((pattern for pattern in NOT_RUN if re.match(pattern, line)), "")


def parse(words: list[str]) -> Any:
    """The context in which the command line would run the words after ``adbench``; None for a bare option."""
    command = COMMAND
    context = command.context_class(command, info_name="adbench")
    while hasattr(command, "commands"):
        if words[:1] == ["--version"]:
            return None
        _, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.context_class(command, parent=context, info_name=command.name)
    return command.make_context(command.name, words)


@pytest.mark.parametrize("page", PRINTED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_command_line_takes_what_is_printed(page: Path) -> None:
    assert commands_of
    for line in PRINTED[page]:
        words = shlex.split(line)
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{page.name}: {line}"
            continue
        try:
            parse(words[1:])
        except USAGE as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_commands_are_found() -> None:
    assert sum(map(len, PRINTED.values())) > 100
    assert all(any("leaderboard" in line or "run" in line for line in PRINTED[page]) for page in NOTEBOOKS)
    assert first("adbench status --out 'a b'   # why || how") == "adbench status --out 'a b'"
    with pytest.raises(USAGE, match="No such option"):
        parse(["run", "--tensorbord"])


def test_every_reason_is_needed() -> None:
    used = {reason(line) for page in PAGES for line in PRINTED[page]}
    assert not set(NOT_RUN) - used


RUNS = [line for lines in PRINTED.values() for line in lines if line.startswith("adbench run ")]
# What only its user has.
OWN = re.compile(r"localcontrast|inpaint|my_method|mine\b|clinic|--config|--fit|grid\.yaml|madad-vae")


def test_every_run_is_resolved(
    make_slices: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Methods, datasets, parameters, presets, protocols and metrics exist and fit each other."""
    from adbench.cli.run import as_settings

    monkeypatch.setenv("ADBENCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("atlas", "bids", "brats21", "isles22", "ixi", "msd_brain", "mslub"):
        write_small(name, tmp_path / name, 1 if name == "atlas" else 2)  # whose grid is the true one
    lines = [line for line in dict.fromkeys(RUNS) if not OWN.search(line)]
    assert len(lines) > 15
    for line in lines:
        given = parse(shlex.split(line)[1:]).params
        names = ("method", "dataset", "modality", "protocol", "seed", "metrics", "preset", "data_root", "train_on")
        flags = as_settings(**{name: given[name] for name in names})
        if given["data_root"] and not given["data_root"].exists():
            given["data_root"].parent.mkdir(parents=True, exist_ok=True)
            if given["dataset"] == ["folder"]:
                make_slices(given["data_root"], train=1, val=2, test=1)
            else:
                given["data_root"].symlink_to(tmp_path / given["dataset"][0])
        assert run_config.cells(run_config.load(None, flags, given["set_"] or [])), line


SMALL = ("n_train=2", "n_val=2", "n_test=2", "slices=2", "resolution=4")


def test_quick_commands_run_as_printed(
    cli: Cli, make_slices: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layout, name in (("brats21", "brats21"), ("bids", "camcan"), ("bids", "cohort")):
        write_small(layout, tmp_path / "data" / name)
    make_slices(tmp_path / "my_slices")
    shutil.copytree(tmp_path / "my_slices" / "test", tmp_path / "my_scans", ignore=shutil.ignore_patterns("*-seg*"))
    (tmp_path / "leaderboards").symlink_to(ROOT / "leaderboards")
    small = "".join(f"    {setting.replace('=', ': ')}\n" for setting in SMALL)
    (tmp_path / "grid.yaml").write_text(f"method: [histeq, zscore]\ndataset: phantom\nset:\n  dataset:\n{small}")
    monkeypatch.setenv("ADBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert cli("run", "-m", "histeq", "-d", "folder", "--data-root", "my_slices", "--device", "cpu", "-q")[0] == 0
    (mine,) = (path.parent for path in Path("runs").rglob("record.json"))
    quick = [line for page in PAGES for line in PRINTED[page] if not reason(line)]
    # What the pages make first, then what they do with it.
    for line in sorted(dict.fromkeys(quick), key=lambda line: not line.startswith(("adbench run", "adbench fit"))):
        words = [str(mine) if word == "RUN" or "1a2b3c4d5e" in word else word for word in shlex.split(line)[1:]]
        if words[0] == "run" and "phantom" in words:
            words += [part for setting in SMALL for part in ("--set", f"dataset.{setting}")]
        code, out, err = cli(*words)
        warned = words[:2] == ["data", "check"] and "0 errors" in out  # about volumes that are small
        assert code == 0 or warned, f"{line}\n{out}\n{err}"
