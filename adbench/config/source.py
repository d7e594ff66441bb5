"""The source code behind a registered class, as files and as one hash that enters keys.

The files are its module and everything of the same origin that it imports, transitively. Imports are read from the syntax
tree, so nothing is executed; those inside functions count, those for type checkers do not. Followed are modules of adbench
itself and, from a plug-in, modules of its distribution and any other source code that is not installed (a module beside its
package, an editable checkout). Installed libraries are left to their versions.

Of adbench, what is imported counts. Of a plug-in, every file of each package that is followed and of its distribution does,
imported or not, source or data: what code loads by a name, from a file or from a string, need not be guessed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

from adbench.config import registry
from adbench.errors import UserError
from adbench.utils.hashing import digest, digest_file

# What turns a fitted method into counts and numbers: this and what it imports counts into the key of every run.
MEASURE = ("adbench.runner.measure",)
# Where a method is called, where it is handed its pixels, and what sets the threads it computes with: this and what it
# imports counts into the key of every fit.
FIT_AND_SCORE = (
    "adbench.runner.fit",
    "adbench.runner.inference",
    "adbench.datasets.pixels",
    "adbench.utils.threads",
)
MOST_DATA = 1 << 30  # bytes of files in a plug-in's package; they are all read whenever a key is computed
_ENDINGS = (".py", ".so", ".pyd")
_INSTALLED = {"site-packages", "dist-packages"}
_OWN = "adbench"
_REGISTRY = "adbench.config.registry"
_ASIDE = re.compile(  # what tools and installers leave in a folder
    r"__pycache__|\.(git|hg|svn|venv|tox|nox|(mypy|pytest|ruff)_cache|ipynb_checkpoints|idea|vscode|DS_Store)"
    r"|.*\.(dist-info|egg-info|swp)"
)


@lru_cache(maxsize=1024)
def _read(source: bytes, package: str) -> tuple[tuple[str, ...], bool]:
    """Imports of a module by its source text, in a package that its relative imports start from.

    Returns:
        The dotted names that it may import (``from a import b`` gives ``a.b``, which need not be a module), and whether it
        may reach any part of adbench: by a plain ``import adbench…``, or by a string with such a name.
    """
    names: list[str] = []
    anything = False
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
            anything |= any(alias.name.partition(".")[0] == _OWN and not alias.asname for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            anything |= node.value == _OWN or node.value.startswith(f"{_OWN}.")
    return tuple(dict.fromkeys(names)), anything


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without what only type checkers see."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in (
            getattr(node.test, "id", ""),
            getattr(node.test, "attr", ""),
        ):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files below a folder in a fixed order, behind links too, without what tools leave there."""
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}), and its files are part of a key: make it readable or move it out."
        ) from None
    for path in found:
        if _ASIDE.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, real))
        elif path.is_file():
            yield path


def _folders(top: str) -> tuple[Path, ...]:
    """The folders in which the top-level module or package ``top`` lies; none for what is not made of files."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations:
        return tuple(Path(location).parent for location in spec.submodule_search_locations)
    return (Path(spec.origin).parent,) if spec.has_location and spec.origin else ()


def _installed(folder: Path, top: str) -> bool:
    """Whether ``top`` in ``folder`` was put there by an installer."""
    if _INSTALLED.intersection(folder.parts):
        return True
    records = (file.read_text(encoding="utf-8", errors="replace") for file in folder.glob("*.dist-info/RECORD"))
    return any(line.startswith((f"{top}/", f"{top}.")) for record in records for line in record.splitlines())


class Closure:
    """Files by the name under which they count: modules by their dotted names, data files by their relative paths.

    Args:
        modules: where it begins.
        own: top-level names that count although they are installed: those of the plug-in's distribution.
        within: top-level name -> folder in which it is looked for, instead of where Python finds it.
        by_name: modules that count as soon as anything of adbench can be loaded by its name.

    Raises:
        UserError: a module cannot be read; a package holds more than :data:`MOST_DATA`.
    """

    def __init__(
        self,
        modules: Iterable[str],
        own: Iterable[str] = (),
        within: dict[str, Path] | None = None,
        by_name: Iterable[str] = (),
    ) -> None:
        waiting = [*modules, *own]
        self._own, self._within = {_OWN, *(name.partition(".")[0] for name in waiting)}, within or {}
        self._found: dict[str, Path] = {}
        self._tops: dict[str, tuple[Path, ...]] = {}
        self._packages: dict[Path, str] = {}  # of a plug-in: folder -> dotted name
        self._anything = False
        whole: set[Path] = set()  # those of them that are taken
        while waiting:
            waiting += self._take(waiting.pop())
            for folder in [] if waiting else [folder for folder in self._packages if folder not in whole]:
                whole.add(folder)
                waiting += self._take_whole(folder, self._packages[folder])
            if not waiting and (self._anything or _REGISTRY in self._found):
                waiting, by_name = list(by_name), ()

    @property
    def files(self) -> dict[str, Path]:
        """Sorted by name."""
        return dict(sorted(self._found.items()))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file, by name. The version of adbench does not count: it changes no number."""
        digests = {name: digest_file(path) for name, path in self.files.items()}
        if _OWN in digests:
            lines = self._found[_OWN].read_bytes().splitlines()
            digests[_OWN] = hashlib.sha256(b"\n".join(x for x in lines if not x.startswith(b"__version__"))).hexdigest()
        return digests

    def _take(self, name: str) -> Iterator[str]:
        """Take the module ``name`` and the packages it lies in; gives what they import."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            if module in self._found:
                continue
            path = self._locate(module) if parts[count - 1].isidentifier() else None
            if path is None:
                if not self._is_namespace(module):
                    return
                continue
            self._found[module] = path
            if module.partition(".")[0] != _OWN and (package := self._package(module)) is not None:
                self._packages.setdefault(*package)
            if path.suffix == ".py":
                yield from self._imported(module, path)

    def _imported(self, module: str, path: Path, guessed: bool = False) -> Iterator[str]:
        """Names that a module imports; a file that is only guessed to be source may have none."""
        try:
            names, anything = _read(
                path.read_bytes(), module if path.name == "__init__.py" else module.rpartition(".")[0]
            )
        except (OSError, SyntaxError, ValueError) as error:
            if guessed and not isinstance(error, OSError):
                return
            raise UserError(
                f"{path} cannot be read as Python source ({error}): correct it or install it again."
            ) from None
        own = module.partition(".")[0] == _OWN
        self._anything |= anything and not own
        yield from (name for name in names if not own or name.partition(".")[0] == _OWN)

    def _take_whole(self, folder: Path, package: str) -> Iterator[str]:
        """Take every file of a plug-in's package; gives what its modules import."""
        files = list(_walk(folder))
        self._add(folder, PurePosixPath(*package.split(".")), files, f"The package {folder}")
        for file in files:
            if file.suffix == ".py":
                inner = file.relative_to(folder).with_suffix("").parts
                name = ".".join([package, *(inner[:-1] if inner[-1] == "__init__" else inner)])
                yield from self._imported(name, file, guessed=True)

    def take_distribution(self, folder: Path, files: Iterable[Path]) -> None:
        """Take those files that a distribution installed below ``folder``, without what the installer needs itself."""
        kept = []
        for file in files:
            inner = file.relative_to(folder).parts if file.is_relative_to(folder) else ("..",)
            # A .pth file beside the packages belongs to the installer; within one it holds weights.
            aside = ".." in inner or any(map(_ASIDE.fullmatch, inner)) or (file.suffix == ".pth" and len(inner) == 1)
            if not aside and file.is_file():
                kept.append(file)
        self._add(folder, PurePosixPath(), kept, f"The distribution in {folder}")

    def _add(self, folder: Path, prefix: PurePosixPath, files: list[Path], what: str) -> None:
        size = sum(file.stat().st_size for file in files)
        if size > MOST_DATA:
            raise UserError(
                f"{what} holds {size / 2**30:.1f} GiB of files; {MOST_DATA / 2**30:g} GiB may be part of a key. Keep data "
                "outside and name it in a parameter that Method.files gives."
            )
        known = set(self._found.values())
        for file in files:
            if file not in known:
                self._found[(prefix / file.relative_to(folder).as_posix()).as_posix()] = file

    def _package(self, module: str) -> tuple[Path, str] | None:
        """Folder and dotted name of the outermost package that ``module`` lies in, or None for a plain module.

        Of a module that lies in a folder without ``__init__.py``, that folder is its package.
        """
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            path = self._locate(".".join(parts[:count]))
            if path is not None and path.name == "__init__.py":
                return path.parent, ".".join(parts[:count])
            if path is not None:
                return (path.parent, ".".join(parts[: count - 1])) if count > 1 else None
        return None

    def _places(self, module: str) -> Iterator[Path]:
        """Paths without ending at which the module may lie."""
        top, *rest = module.split(".")
        if top not in self._tops:
            found = (
                (self._within[top],) if top in self._within else () if top in sys.stdlib_module_names else _folders(top)
            )
            self._tops[top] = tuple(f for f in found if top in self._own or not _installed(f, top))
        return (folder.joinpath(top, *rest) for folder in self._tops[top])

    def _locate(self, module: str) -> Path | None:
        for place in self._places(module):
            if (package := place / "__init__.py").is_file():
                return package
            for ending in _ENDINGS:
                if (file := place.with_name(place.name + ending)).is_file():
                    return file
            if place.parent.is_dir():
                for file in sorted(place.parent.glob(f"{place.name}.*")):
                    if file.suffix in _ENDINGS and file.name.partition(".")[0] == place.name:
                        return file
        return None

    def _is_namespace(self, module: str) -> bool:
        return any(place.is_dir() for place in self._places(module))


def of_plugin(modules: Iterable[str], distribution: Distribution | None, by_name: Iterable[str] = ()) -> Closure:
    """The closure of a plug-in, with every file of its packages and distribution; ``by_name`` as in :class:`Closure`."""
    folder = Path(str(distribution.locate_file(""))) if distribution else Path()
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()] if distribution else []
    code = [file.relative_to(folder) for file in files if file.suffix == ".py" and file.is_relative_to(folder)]
    tops = {top for file in code if not (top := file.parts[0].partition(".")[0]).startswith("__editable__")}
    closure = Closure(modules, own=tops, by_name=by_name)
    closure.take_distribution(folder, files)
    return closure


def source_files(kind: registry.Kind, name: str) -> dict[str, str]:
    """SHA-256 of every file that decides what the class called ``name`` does, by module or path.

    These are the files it imports, directly or not (:class:`Closure`); for a method also those of
    fitting and scoring; for a plug-in every file of its package and distribution.

    Raises:
        UserError: the class does not exist, or its source cannot be read.
    """
    cls, entry = registry.load(kind, name), registry.entries(kind)[name]
    modules = [entry.target.partition(":")[0], cls.__module__, *(FIT_AND_SCORE if kind == "methods" else ())]
    if entry.origin == "built-in":
        closure = Closure(modules)
    else:
        shipped = (target for table in registry.BUILTIN.values() for target, _ in table.values())
        by_name = [target.partition(":")[0] for target in shipped]
        closure = of_plugin(modules, registry.distribution(kind, name), by_name)
    if cls.__module__ not in closure.files:
        raise UserError(
            f"The source of the {kind[:-1]} {name!r} ({cls.__module__}) lies in no file that can be read, so no key can be "
            "made of it: install its distribution unpacked."
        )
    return closure.digests()


@cache
def source_digest(kind: registry.Kind, name: str) -> str:
    """Hash of :func:`source_files`, computed once per process."""
    return digest(source_files(kind, name))


@cache
def measure_digest() -> str:
    """Hash of the source that turns a fitted method into numbers, the metrics included."""
    return digest(Closure(MEASURE).digests())
