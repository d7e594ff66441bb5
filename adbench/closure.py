"""The source files that a class depends on: its module and everything of the same origin that it imports, transitively.

Imports are read from the syntax tree, so nothing is executed; those inside functions count, those for type checkers do
not. Followed are modules of adbench itself and, from a plug-in, modules of its distribution and any other source code that
is not installed (a module beside its package, an editable checkout). Installed libraries are left to their versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

from adbench.errors import UserError
from adbench.hashing import digest_file

MOST_DATA = 1 << 30  # bytes of data files in a plug-in's package; they are all read whenever a key is computed
_ENDINGS = (".py", ".so", ".pyd")
_INSTALLED = {"site-packages", "dist-packages"}
_OWN = "adbench"


@lru_cache(maxsize=1024)
def _read(source: bytes, package: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """What a module says.

    Args:
        source: of the module.
        package: that relative imports start from.

    Returns:
        Dotted names that it may import (``from a import b`` gives ``a.b``, which need not be a module); its short
        strings, which may name files; whether it imports modules by names that are computed.
    """
    names: list[str] = []
    strings: list[str] = []
    computed = False
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _for_type_checkers(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                names.append(first.value)
            else:
                computed = True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 100:
            strings.append(node.value)
        waiting += ast.iter_child_nodes(node)
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(strings)), computed


def _for_type_checkers(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
    return name == "TYPE_CHECKING"


def _called(node: ast.Call) -> str:
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


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

    Attributes:
        files: sorted by name.
    """

    def __init__(self, modules: Iterable[str], own: Iterable[str] = (), within: dict[str, Path] | None = None) -> None:
        self._own, self._within = {_OWN, *own}, within or {}
        self._found: dict[str, Path] = {}
        self._tops: dict[str, tuple[Path, ...]] = {}
        waiting = list(modules)
        self._own.update(name.partition(".")[0] for name in waiting)
        while waiting:
            waiting += self._take(waiting.pop())
        self.files = dict(sorted(self._found.items()))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file, by name. The version of adbench does not count: it changes no number."""
        digests = {name: digest_file(path) for name, path in self.files.items()}
        if _OWN in digests:
            lines = self.files[_OWN].read_bytes().splitlines()
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

    def _imported(self, module: str, path: Path) -> Iterator[str]:
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        try:
            names, strings, computed = _read(path.read_bytes(), package)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} cannot be read as Python source ({error}): mend it or install it again.") from None
        ours = module.partition(".")[0] == _OWN
        yield from (name for name in names if not ours or name.partition(".")[0] == _OWN)
        if ours:
            return
        folder = self._package(module)
        if folder is not None and computed:  # it may import any module of its package
            for file in folder.rglob("*.py"):
                inner = file.relative_to(folder.parent).with_suffix("").parts
                yield ".".join(inner[:-1] if inner[-1] == "__init__" else inner)
        self._take_named(path.parent, PurePosixPath(*package.split(".")), strings)

    def _take_named(self, folder: Path, prefix: PurePosixPath, strings: Iterable[str]) -> None:
        """Take data files beside a module that it names in its strings, in one or with their folder in another."""
        names = [text for text in strings if "\0" not in text and not text.startswith(("/", "~"))]
        for parent in (folder, *(folder / name for name in names if name.isidentifier() and (folder / name).is_dir())):
            for file in (parent / name for name in names):
                if _is_data(file, folder):
                    self._found[(prefix / file.relative_to(folder)).as_posix()] = file

    def take_package(self, module: str) -> None:
        """Take the data files of the package that ``module`` lies in.

        Raises:
            UserError: they are larger than :data:`MOST_DATA` together.
        """
        package = self._package(module)
        if package is None:
            return
        files = [file for file in sorted(package.rglob("*")) if _is_data(file, package)]
        self._add(package.parent, files, f"The package {package}")

    def take_files(self, folder: Path, files: Iterable[Path]) -> None:
        """Take the data files among those that a distribution installed below ``folder``."""
        # A .pth file beside the packages belongs to the installer; within one it holds weights.
        files = (file for file in files if file.suffix != ".pth" or file.parent != folder)
        self._add(folder, [file for file in files if _is_data(file, folder)], f"The distribution in {folder}")

    def _add(self, folder: Path, files: list[Path], what: str) -> None:
        size = sum(file.stat().st_size for file in files)
        if size > MOST_DATA:
            raise UserError(
                f"{what} holds {size / 2**30:.1f} GiB of data files; {MOST_DATA / 2**30:g} GiB may be part of a key. Keep them "
                "outside and name them in a parameter that Method.files gives."
            )
        self.files = dict(
            sorted({**self.files, **{file.relative_to(folder).as_posix(): file for file in files}}.items())
        )

    def _package(self, module: str) -> Path | None:
        """The folder of the outermost regular package that ``module`` lies in, or None for a plain module."""
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            path = self._locate(".".join(parts[:count]))
            if path is not None:
                return path.parent if path.name == "__init__.py" else None
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


def of_plugin(modules: Iterable[str], home: str, distribution: Distribution | None) -> Closure:
    """The closure of a plug-in, with the data files of its package and distribution.

    Args:
        modules: where it begins.
        home: the module in the plug-in's package.
        distribution: that provides it.
    """
    folder = Path(str(distribution.locate_file(""))) if distribution else Path()
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()] if distribution else []
    code = [file.relative_to(folder) for file in files if file.suffix == ".py" and file.is_relative_to(folder)]
    closure = Closure(modules, own={file.parts[0].partition(".")[0] for file in code})
    closure.take_package(home)
    closure.take_files(folder, files)
    return closure


def _is_data(file: Path, folder: Path) -> bool:
    """Whether a file counts by its content alone: no source, no bytecode, nothing hidden, nothing of an installer."""
    try:
        parts = file.relative_to(folder).parts
    except ValueError:  # a script that an installer put elsewhere
        return False
    if any(
        part.startswith(".") or part == "__pycache__" or part.endswith((".dist-info", ".egg-info")) for part in parts
    ):
        return False
    return file.suffix not in (".py", ".pyc", ".pyo") and ".." not in parts and file.is_file()
