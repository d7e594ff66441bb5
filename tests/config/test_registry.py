"""The registry: built-ins, plugins from entry points, and plugins that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import run
from fuzzing import changed, held, often
from hypothesis import strategies as st

from adbench.config import registry
from adbench.errors import UserError
from adbench.utils import installed

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one entry point on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(distribution: str, name: str, target: str, source: str = "", group: str = "adbench.methods") -> None:
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
        if source:
            (tmp_path / f"{target.split(':')[0]}.py").write_text(source)
        registry.entries.cache_clear()

    yield put
    registry.entries.cache_clear()


GOOD = '''
from adbench.methods.base import Method, FitReport
class Mine(Method):
    """Mine alone."""
    name = "mine"
    def fit(self, train, val): return FitReport()
    def score(self, batch): return batch.image
'''


def test_every_builtin_loads_and_keeps_its_name() -> None:
    for kind in ("methods", "datasets"):
        for name in registry.BUILTIN[kind]:  # other tests of this process may have left plug-ins behind
            cls = registry.load(kind, name)
            assert registry.entries(kind)[name].origin == "built-in"
            assert (cls.name if kind == "methods" else cls.info.name) == name


def test_plugin_is_found_and_summarised(install: Install) -> None:
    install("mine-dist", "mine", "mine_module:Mine", GOOD)
    entry = registry.entries("methods")["mine"]
    assert entry.origin == "mine-dist 1.0"
    assert registry.status(entry) == ""
    assert registry.examined(entry) == ("Mine alone.", "")
    assert registry.load("methods", "mine").name == "mine"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no licence server')", "RuntimeError: no licence server"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "SystemExit: it called os._exit(3)"),
        ("import a_module_nobody_has", "No module named 'a_module_nobody_has'"),
        ("Mine = 3", "is not a subclass of adbench.methods.base.Method"),
        ("from adbench.methods.base import Method\nclass Mine(Method): name = 'mine'", "does not define fit, score"),
        ("x = 1", "has no attribute 'Mine'"),
    ],
)
def test_broken_plugin_is_unavailable_with_its_reason(install: Install, source: str, reason: str) -> None:
    module = f"broken_{abs(hash(source))}"
    install("broken-dist", "mine", f"{module}:Mine", source)
    entry = registry.entries("methods")["mine"]
    assert reason in registry.status(entry)
    assert "broken-dist 1.0" in registry.status(entry)
    assert registry.load("methods", "histeq").name == "histeq"  # the others go on working


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt was raised, but nobody has interrupted"),
        ("import os; os._exit(0)", "it called os._exit(0)"),
        ("import os; os.abort()", "its process was ended by signal 6 (SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by signal 9 (SIGKILL"),
    ],
)
def test_a_plugin_that_ends_the_process_is_a_finding(
    install: Install, tmp_path: Path, source: str, reason: str
) -> None:
    """Of a metric, which every kind of command loads; the others are listed."""
    install("deadly-dist", "deadly", "deadly_module:Mine", source, "adbench.metrics")

    def said(*command: str) -> tuple[int, str]:
        done = run(["adbench", *command], tmp_path, packages=str(tmp_path))
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    code, text = said("list", "metrics", "--json")
    found = {row["name"]: row["problem"] for row in json.loads(text)}
    assert (code, found["hd95"]) == (0, "")
    assert reason in found["deadly"]
    code, text = said("doctor", "--json")
    (verdict,) = [one["verdict"] for one in json.loads(text)["findings"] if one["what"] == "plugin metric deadly"]
    assert (code, reason in verdict) == (1, True)
    if "signal" not in reason:  # a crash in the process of the command itself ends it
        code, text = said("describe", "deadly")
        assert (code, reason in text) == (2, True)


def test_a_plugin_that_takes_for_ever_to_import_is_a_finding(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("slow-dist", "slow", "slow_module:Mine", "import time; time.sleep(60)")
    monkeypatch.setattr(registry, "_PATIENCE", 0.2)
    assert "it takes more than 0 s" in registry.examined(registry.entries("methods")["slow"])[1]


def test_os_exit_is_itself_again_after_an_import(install: Install) -> None:
    """A module that keeps it, to end copies of the process with, keeps one that ends them."""
    install("own-dist", "mine", "own_module:Mine", f"from os import _exit\n{GOOD}")
    before = os._exit
    assert registry.load("methods", "mine")
    assert os._exit is before
    child = os.fork()
    if not child:
        sys.modules["own_module"]._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_a_plugin_prints_is_not_the_answer(install: Install, tmp_path: Path) -> None:
    loud = f"import os\nprint('Loading weights...')\nos.write(1, b'from C')\n{GOOD}".replace('"mine"', '"loud"')
    install("loud-dist", "loud", "loud_module:Mine", loud)
    command = [sys.executable, "-m", "adbench.cli", "list", "methods", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "loud" in {entry["name"] for entry in json.loads(done.stdout)}
    assert "Loading weights..." in done.stderr
    assert "from C" in done.stderr


def test_builtin_cannot_be_shadowed(install: Install) -> None:
    install("evil-dist", "madad", "mine_shadow:Mine", GOOD)
    assert registry.entries("methods")["madad"].origin == "built-in"
    (shadow,) = [e for e in registry.entries("methods").values() if e.problem]
    assert "evil-dist 1.0 may not replace the built-in 'madad'" in shadow.problem


@pytest.mark.parametrize("name", ["features[lite0]", "mine]"])
def test_a_method_cannot_read_like_a_row_of_another(install: Install, name: str) -> None:
    install("evil-dist", name, "mine_brackets:Mine", GOOD)
    with pytest.raises(UserError, match=r"is unavailable: its name has brackets, .*: rename the entry point"):
        registry.load("methods", name)


def test_name_claimed_twice_is_usable_by_neither(install: Install) -> None:
    install("first-dist", "mine", "mine_first:Mine", GOOD)
    install("second-dist", "mine", "mine_second:Mine", GOOD)
    with pytest.raises(UserError, match=r"claimed by first-dist 1\.0 and second-dist 1\.0"):
        registry.load("methods", "mine")


def test_what_a_plugin_prints_goes_to_standard_error(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("loud-dist", "mine", "loud_module:Mine", f"print('Loading weights...')\n{GOOD}")
    assert registry.status(registry.entries("methods")["mine"]) == ""
    assert capsys.readouterr() == ("", "Loading weights...\n")


def test_a_plugin_whose_metadata_are_gone_is_unavailable(install: Install, tmp_path: Path) -> None:
    install("half-dist", "mine", "half_module:Mine", GOOD)
    (tmp_path / "half-dist-1.0.dist-info" / "METADATA").unlink()
    entry = registry.entries("methods")["mine"]
    assert (entry.origin, registry.status(entry)) == ("a broken installation", entry.problem)
    assert "half-dist-1.0.dist-info have no name or version" in entry.problem


@pytest.mark.parametrize("damage", ["no equals sign here", "= = =\n[", "\0"])
def test_a_damaged_package_of_somebody_else_ends_nothing(tmp_path: Path, damage: str) -> None:
    """It is a finding of the doctor; every library that asks for entry points looks past it."""
    info = tmp_path / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(b"[console_scripts]\n\xff" + damage.encode() + b"\n")
    code = (
        "import json, pathlib, sys; from adbench.cli import main; from adbench.cli.describe import listing\n"
        "from adbench.utils.installed import broken\n"
        "print(json.dumps([[row['name'] for row in listing('methods') if not row['problem']], broken()]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    names, broken = json.loads(done.stdout)
    assert "histeq" in names
    assert "its entry points cannot be read" in broken[str(info)]


@often
def test_metadata_changed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """Of another package: the built-ins are there, and what is left of it is a plug-in, a finding, or nothing."""
    info = tmp_path / "out" / "foreign-1.0.dist-info"
    info.mkdir(parents=True)
    points = b"[adbench.methods]\nmine = a.b:Mine\nzscore = c:D [extra]\n\n[adbench.metrics]\nmine=e:F\n"
    whole = {"METADATA": b"Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n", "entry_points.txt": points}

    def look(path: Path) -> None:
        name, _, content = path.read_bytes().partition(b"\0")
        for kept, there in {**whole, name.decode(): content}.items():
            (info / kept).write_bytes(there)
        with monkeypatch.context() as alone:
            alone.setattr(sys, "path", [str(info.parent)])
            alone.setattr(installed, "_BROKEN", {})
            for kind, own in registry.BUILTIN.items():
                registry.entries.cache_clear()
                found = registry.entries(kind)
                assert all(found[one].origin == "built-in" for one in own)
            assert set(installed.broken()) <= {str(info)}

    def named(name: str) -> st.SearchStrategy[bytes]:
        return changed(whole[name]).map(lambda content: name.encode() + b"\0" + content)

    try:
        held(tmp_path, examples, st.one_of(*map(named, whole)), "file", look)
    finally:
        registry.entries.cache_clear()


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from adbench.cli.describe import listing; listing('methods'); listing('datasets'); listing('protocols');"
        "from adbench.cli.describe import description; description('madad'); description('phantom');"
        "heavy = {'torch', 'monai', 'diffusers', 'pandas', 'ray', 'scipy', 'matplotlib', 'nilearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
