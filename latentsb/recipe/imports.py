"""Python files and modules that a recipe brings along, so that a part of one's own is one file and one line.

A file is imported under a name made from its contents: the copy that a run keeps and the original are one module
and register once. Its folder is *appended* to `sys.path`: it may import its neighbours and can shadow nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from latentsb.errors import Error, Problem, RecipeError

__all__ = ["Import", "load_import"]


@dataclass(frozen=True)
class Import:
    """One entry of `imports:` or `--import`.

    Args:
        target: the file, or the name of an installed module.
        where: place of the entry.
    """

    target: Path | str
    where: str = ""

    @classmethod
    def of(cls, text: str, folder: Path, where: str) -> Import:
        """Read an entry: what ends in `.py` is a file, relative to `folder`; anything else is a module."""
        if not text.endswith(".py"):
            return cls(text, where)
        # Not resolved through links: the file belongs to the folder in which its user sees it.
        return cls(Path(os.path.abspath(folder / Path(text).expanduser())), where)

    @property
    def label(self) -> str:
        """The file's name, or the module's."""
        return self.target.name if isinstance(self.target, Path) else self.target


def load_import(entry: Import) -> str:
    """Import the file or module and return the sha256 of its source.

    Raises:
        RecipeError: if it is missing or raises; names the line.
    """
    try:
        if isinstance(entry.target, Path):
            return _load_file(entry.target)
        module = importlib.import_module(entry.target)
        source = Path(module.__file__ or "")
        return hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""
    except Exception as error:
        raise RecipeError([Problem(entry.where, "imports", _what(entry, error))]) from error


def _load_file(path: Path) -> str:
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    name = f"latentsb_import_{digest[:16]}"
    if name in sys.modules:
        return digest
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return digest


def _what(entry: Import, error: Exception) -> str:
    if isinstance(entry.target, Path) and not entry.target.is_file():
        return f"there is no file {entry.target}"
    if isinstance(error, ModuleNotFoundError) and error.name == entry.target:
        return f"there is no module '{entry.target}'; a file ends in .py"
    if isinstance(error, Error):
        return f"{entry.label}: {error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in last if frame.filename == str(entry.target)] or last
    return f"{own[-1].filename}:{own[-1].lineno}: {type(error).__name__}: {error}"
