"""The house's own rules: who imports whom, what is imported late, how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentsb

ROOT = Path(__file__).parents[1]
ROOMS = ("autoencoders", "bridges")
ENGINE = """
    bench checkpoint codefiles codes compare edits evaluate experiment fetch generate guard held latents outputs
    planning previews progress report resized results rounds run stages tasks tracking trained trainer translate
    update walks
""".split()
RANKS = [
    {"registry", "errors", "tensors", "randomness", "ranges", "parallel", "disk", "weights"},
    {"laws", "normalisers", "norms", "tiles"},
    {"process"},
    {"networks"},
    {"trainable", "bridge", "autoencoder"},
    {"the rest of the core"},
    set(ROOMS),
    set(ENGINE),
    {"cli"},
]
LATE = {  # imported inside the function that needs it, and only there
    "diffusers": ("autoencoders/", "latentsb/networks/"),
    "timm": ("autoencoders/", "latentsb/networks/", "latentsb/features/"),
    "xformers": ("latentsb/networks/attention.py",),
    "accelerate": ("latentsb/trainer.py",),
    "sklearn": ("",),
    "matplotlib": ("",),
}


def files() -> dict[str, Path]:
    """Every module of the package by the path that it has in the repository."""
    found = {p.resolve() for room in ("latentsb", *ROOMS, "recipes") for p in (ROOT / room).rglob("*.py")}
    return {p.relative_to(ROOT).as_posix(): p for p in sorted(found)}


FILES = files()


def module_of(path: str) -> str:
    parts = list(Path(path).with_suffix("").parts)
    parts = parts if parts[0] == "latentsb" else ["latentsb", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, path: str) -> Iterator[tuple[str, bool]]:
    """Full names of what a module imports, and whether at its top; type-only imports do not count."""
    package = module_of(path).split(".")
    package = package if path.endswith("__init__.py") else package[:-1]

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            children: list[ast.stmt] = node.orelse
            for child in children:
                yield from visit(child, top)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*head, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", top) for alias in node.names)
        inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, True)


def room_of(module: str) -> str:
    """The first name below the package: `process` of `latentsb.process.path`."""
    return [*module.split("."), ""][1]


def rank_of(module: str) -> int:
    room = room_of(module)
    return next((k for k, names in enumerate(RANKS) if room in names), RANKS.index({"the rest of the core"}))


def wrong_imports(tree: ast.Module, path: str) -> list[str]:
    here, wrong = module_of(path), []
    for name, top in imports(tree, path):
        library = name.split(".")[0]
        if library == "latentsb" and room_of(name):
            if rank_of(name) > rank_of(here):
                wrong.append(f"{here} imports {name}, which is above it")
            if room_of(name) in ROOMS and room_of(name) != room_of(here):
                wrong.append(f"{here} imports {name}: parts are found through their registry")
        if library in LATE and (top or not path.startswith(LATE[library])):
            wrong.append(f"{here} imports {name} at its top or in the wrong place")
        if library in {"pickle", "cPickle", "dill", "cloudpickle"} or name == "torch.load":
            wrong.append(f"{here} imports {name}: no pickle is ever read")
    return wrong


@pytest.mark.parametrize("path", FILES)
def test_directions(path):
    # The package's own face names everything lazily, and the way in of `python -m` is the command line.
    if path not in ("latentsb/__init__.py", "latentsb/__main__.py"):
        assert wrong_imports(ast.parse(FILES[path].read_text()), path) == []


@pytest.mark.parametrize("path", [p for p in FILES if p.startswith(ROOMS)])
def test_concrete_methods_are_not_subclassed(path):
    tree = ast.parse(FILES[path].read_text())
    # What several methods share stands in a file that begins with an underscore, and is no method itself.
    found = [name for name, _ in imports(tree, path) if room_of(name) in ROOMS]
    siblings = {name.rsplit(".", 1)[-1] for name in found if "._" not in name}
    bases = {ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
    assert not siblings & bases


def test_what_methods_share_is_no_method():
    shared = [path for path in FILES if path.startswith(ROOMS) and "/_" in path]
    assert shared
    assert [path for path in shared if ".register(" in FILES[path].read_text()] == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("latentsb/process/path.py", "from latentsb.solvers.base import Solver"),
        ("latentsb/process/path.py", "def f():\n    from ..networks import base"),
        ("latentsb/trainer.py", "from latentsb.bridges.dbae import DBAE"),
        ("bridges/dbae.py", "from latentsb.autoencoders import kl"),
        ("bridges/dbae.py", "from latentsb.trainer import Trainer"),
        ("autoencoders/kl.py", "import diffusers"),
        ("bridges/dbae.py", "def f():\n    import diffusers"),
        ("latentsb/checkpoint.py", "from pickle import loads"),
    ],
)
def test_the_check_sees(path, code):
    assert wrong_imports(ast.parse(code), path)


def test_files_are_short():
    tests = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "tests").rglob("*.py")}
    lengths = {name: len(path.read_text().splitlines()) for name, path in {**FILES, **tests}.items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_mistakes_are_told_without_torch():
    modules = "latentsb, latentsb.errors, latentsb.registry, latentsb.recipe, latentsb.cli"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"one of {modules} imports torch"


def test_the_package_names_what_it_exports():
    assert sorted(latentsb.__all__) == sorted([*latentsb._HOME_OF, "__version__"])
    assert all(getattr(latentsb, name) is not None for name in latentsb.__all__)


@pytest.mark.parametrize(
    "name", ["experiment", "networks.transformer", "networks.unet", "networks.mlp", "bridges.dbae", "bridges.score"]
)
def test_a_part_is_imported_without_the_compiler_and_what_only_some_commands_need(name):
    slow = "torch._dynamo torch._inductor sympy sklearn scipy matplotlib diffusers timm pandas".split()
    code = f"import sys, torch; before = set(sys.modules); import latentsb.{name}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(slow)
