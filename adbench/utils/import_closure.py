"""The source files that a class depends on: its module and everything of the same origin that it imports, transitively.

Imports are read from the syntax tree, so nothing is executed; those inside functions count, those for type checkers do
not. Followed are modules of adbench itself and, from a plug-in, modules of its distribution and any other source code that
is not installed (a module beside its package, an editable checkout). Installed libraries are left to their versions.

Of a plug-in, the data files of every package that is followed count too; all source of a package, where one of its modules
runs code that cannot be told from its text; and what can be had by name, where it reaches the registry.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adbench.errors import UserError
from adbench.utils.hashing import digest_file

MOST_DATA = 1 << 30  # bytes of data files in a plug-in's package; they are all read whenever a key is computed
_ENDINGS = (".py", ".so", ".pyd")
_INSTALLED = {"site-packages", "dist-packages"}
_OWN = "adbench"
_REGISTRY = "adbench.config.registry"
_ASIDE = re.compile(  # what tools and installers leave in a folder
    r"__pycache__|\.(git|hg|svn|venv|tox|nox|(mypy|pytest|ruff)_cache|ipynb_checkpoints|idea|vscode|DS_Store)"
    r"|.*\.(dist-info|egg-info|swp)"
)
# Modules, and names that need no import, by which code is run that is found by a name, in a file or in a string.
_RUNNERS = {"builtins", "imp", "marshal", "pickle", "pkgutil", "pydoc", "runpy", "site", "subprocess", "zipimport"}
_BARE = {"exec", "eval", "compile", "__import__", "__builtins__", "__all__"}
_CALLS = ("importlib.import_module", "__import__")


class _Contents(NamedTuple):
    """What the text of a module shows.

    Attributes:
        names: dotted names that it may import or reach (``from a import b`` gives ``a.b``, which need not be a module).
        strings: its short strings, which may name files.
        opaque: whether it may run code that its text does not name.
    """

    names: tuple[str, ...]
    strings: tuple[str, ...]
    opaque: bool


@lru_cache(maxsize=1024)
def _read(source: bytes, package: str) -> _Contents:
    """What a module with this source says, in a package that its relative imports start from."""
    nodes = list(_nodes(ast.parse(source)))
    names: list[str] = []
    bound: dict[str, list[str]] = {}  # name in the module -> what an import may have bound to it
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                bound.setdefault(local, []).append(alias.name if alias.asname else local)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
            for alias in node.names:
                bound.setdefault(alias.asname or alias.name, []).append(f"{base}.{alias.name}")
    opaque = any(_runs(name) for name in names if name not in ("importlib", *_CALLS))
    unused = not {"importlib", *_CALLS}.isdisjoint(names)  # imported for another module's use, as far as is seen
    strings: list[str] = []
    plain: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 100:
            strings.append(node.value)
        elif isinstance(node, ast.Call):
            if (name := _constant(node)) and not set(_reached(node.func, bound)).isdisjoint(_CALLS):
                names.append(name)
                plain.add(id(node.func))
                unused = False
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            if all(isinstance(element, ast.Constant) for element in node.value.elts):  # an __all__ that can be read
                plain.update(map(id, node.targets))
        elif isinstance(node, ast.Name | ast.Attribute) and id(node) not in plain:
            for name in _reached(node, bound):
                opaque |= _runs(name)
                unused &= not name.startswith("importlib.")
                names.append(name)
    return _Contents(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(strings)), opaque or unused)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, parents first, without what only type checkers see; ``a.b.c`` is one node."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _dotted(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            waiting += node.orelse
        elif not _dotted(node):
            waiting += ast.iter_child_nodes(node)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` as a string; "" for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _reached(node: ast.AST, bound: dict[str, list[str]]) -> list[str]:
    """The dotted names, as they would be imported, that an expression may stand for."""
    first, dot, rest = _dotted(node).partition(".")
    return [f"{name}{dot}{rest}" for name in bound.get(first, [first] if first in _BARE else [])]


def _constant(call: ast.Call) -> str:
    """The absolute name of a module that is the only argument of a call, or ""."""
    match call:
        case ast.Call(args=[ast.Constant(value=str(name))], keywords=[]) if not name.startswith("."):
            return name
    return ""


def _runs(name: str) -> bool:
    """Whether code that is had by this dotted name runs other code that the name does not tell."""
    first, *rest = name.split(".")
    if first == "importlib" and rest and rest[0] in ("resources", "metadata"):
        return "entry_points" in rest
    if first == "sys":
        return bool(rest) and rest[0].startswith(("path", "meta_path", "modules"))
    return first in {*_RUNNERS, *_BARE, "importlib"} or not {"importlib", "import_module"}.isdisjoint(rest)


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
        by_name: modules that count as soon as anything can be loaded by its name.

    Raises:
        UserError: a module cannot be read; a package holds more data than :data:`MOST_DATA`.
    """

    def __init__(
        self,
        modules: Iterable[str],
        own: Iterable[str] = (),
        within: dict[str, Path] | None = None,
        by_name: Iterable[str] = (),
    ) -> None:
        self._beside = list(own)
        self._own, self._within = {_OWN, *self._beside}, within or {}
        self._found: dict[str, Path] = {}
        self._tops: dict[str, tuple[Path, ...]] = {}
        self._packages: dict[Path, str] = {}  # of a plug-in: folder -> dotted name
        self._whole: set[Path] = set()  # those of them whose source is taken, imported or not
        self._opaque = self._names_own = self._reaches_any = False
        waiting = list(modules)
        self._own.update(name.partition(".")[0] for name in waiting)
        while waiting:
            waiting += self._take(waiting.pop())
            if not waiting and self._opaque:
                waiting = self._rest()
            if not waiting and (self._reaches_any or (self._opaque and self._names_own) or _REGISTRY in self._found):
                waiting, by_name = list(by_name), ()
        for folder, package in self._packages.items():
            data = (file for file in _walk(folder) if file.suffix != ".py")
            self._add(folder, PurePosixPath(*package.split(".")), data, f"The package {folder}")

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
            if path.suffix == ".py":
                yield from self._imported(module, path)
            else:  # compiled: what it imports cannot be told
                self._of_plugin(module, opaque=True)

    def _imported(self, module: str, path: Path, guessed: bool = False) -> Iterator[str]:
        """What a module imports; one whose file is only guessed to be source may be none."""
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        contents = self._contents(path, package, guessed)
        if module.partition(".")[0] == _OWN:
            yield from (name for name in contents.names if name.partition(".")[0] == _OWN)
            return
        self._of_plugin(module, contents.opaque)
        self._reaches_any |= _OWN in contents.names  # the package itself: whatever is loaded is an attribute below it
        self._names_own |= any(text == _OWN or text.startswith(f"{_OWN}.") for text in contents.strings)
        self._take_named(path.parent, PurePosixPath(*package.split(".")), contents.strings)
        for name in contents.names:
            yield from self._starred(name[:-2]) if name.endswith(".*") else (name,)

    def _of_plugin(self, module: str, opaque: bool) -> None:
        self._opaque |= opaque
        if (found := self._package(module)) is not None:
            self._packages.setdefault(*found)

    def _contents(self, path: Path, package: str, guessed: bool = False) -> _Contents:
        try:
            return _read(path.read_bytes(), package)
        except (OSError, SyntaxError, ValueError) as error:
            if guessed and not isinstance(error, OSError):
                return _Contents((), (), opaque=False)
            raise UserError(
                f"{path} cannot be read as Python source ({error}): correct it or install it again."
            ) from None

    def _starred(self, package: str) -> Iterator[str]:
        """What ``from package import *`` may import: the modules that ``__all__``, or any other string, names."""
        yield package
        path = self._locate(package)
        if path is not None and path.name == "__init__.py":
            yield from (f"{package}.{text}" for text in self._contents(path, package).strings if text.isidentifier())

    def _rest(self) -> list[str]:
        """Take all source of the plug-in's packages; gives what it imports, and the other modules of its distribution."""
        names, self._beside = self._beside, []
        for folder, package in list(self._packages.items()):
            if folder not in self._whole:
                self._whole.add(folder)
                names += self._take_whole(folder, package)
        return names

    def _take_whole(self, folder: Path, package: str) -> Iterator[str]:
        for file in _walk(folder):
            if file.suffix == ".py":
                inner = file.relative_to(folder).with_suffix("").parts
                name = ".".join([package, *(inner[:-1] if inner[-1] == "__init__" else inner)])
                if self._found.setdefault(name, file) != file:  # beside a package or a compiled module of the same name
                    self._found[f"{name}.py"] = file
                yield from self._imported(name, file, guessed=True)

    def _take_named(self, folder: Path, prefix: PurePosixPath, strings: Iterable[str]) -> None:
        """Take files that a module names in its strings: beside it or above, or in a folder there that it names.

        Above are the folders that its package lies in, up to two above the outermost: that of a project with ``src/``.
        """
        names = [text for text in strings if "\0" not in text and not text.startswith(("/", "~"))]
        for base in (folder, *folder.parents[: len(prefix.parts) + 1]):
            for parent in (base, *(base / name for name in names if name.isidentifier() and (base / name).is_dir())):
                for file in (parent / name for name in names):
                    if file.is_file():
                        inner = Path(os.path.relpath(file, folder)).as_posix()
                        self._found[posixpath.normpath((prefix / inner).as_posix())] = file

    def take_files(self, folder: Path, files: Iterable[Path]) -> None:
        """Take the data files among those that a distribution installed below ``folder``."""
        data = []
        for file in files:
            inner = file.relative_to(folder).parts if file.is_relative_to(folder) else ("..",)
            # A .pth file beside the packages belongs to the installer; within one it holds weights.
            code = file.suffix == ".py" or (file.suffix == ".pth" and len(inner) == 1)
            if not code and ".." not in inner and not any(map(_ASIDE.fullmatch, inner)) and file.is_file():
                data.append(file)
        self._add(folder, PurePosixPath(), data, f"The distribution in {folder}")

    def _add(self, folder: Path, prefix: PurePosixPath, files: Iterable[Path], what: str) -> None:
        files = list(files)
        size = sum(file.stat().st_size for file in files)
        if size > MOST_DATA:
            raise UserError(
                f"{what} holds {size / 2**30:.1f} GiB of data files; {MOST_DATA / 2**30:g} GiB may be part of a key. Keep them "
                "outside and name them in a parameter that Method.files gives."
            )
        for file in files:
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
    """The closure of a plug-in, with the data files of its packages and distribution.

    Args:
        modules: where it begins.
        distribution: that provides it.
        by_name: modules that count if it can load anything by its name.
    """
    folder = Path(str(distribution.locate_file(""))) if distribution else Path()
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()] if distribution else []
    code = [file.relative_to(folder) for file in files if file.suffix == ".py" and file.is_relative_to(folder)]
    tops = {top for file in code if not (top := file.parts[0].partition(".")[0]).startswith("__editable__")}
    closure = Closure(modules, own=tops, by_name=by_name)
    closure.take_files(folder, files)
    return closure
