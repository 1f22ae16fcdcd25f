"""Which code a result depends on: computed from the imports, never listed by hand. Importing this needs no torch.

A stage's entry module and the files of its method and network are followed through their imports inside the project.
The files found give one hash: a rule reruns when it changes, and the run record keeps it. Two records with equal hashes
are of the same code, whatever commit they name.
"""

import ast
import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("ptmq", "baselines")
CODE = (*PACKAGES, "workflow", "Snakefile", "pyproject.toml")


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can hold; equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_of(module: str, beside: Path | None = None) -> Path | None:
    """The project's file of a module, None for a module of another project.

    Modules of no package of ours are looked for in the folder `beside`, as a script finds its neighbours.
    """
    names = module.split(".")
    folder = ROOT if names[0] in PACKAGES else beside
    if folder is None:
        return None
    path = folder.joinpath(*names)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def imported_by(path: Path) -> tuple[Path, ...]:
    """The project's files that a file imports itself, wherever in it; a package's own file among them."""
    found: dict[Path, None] = {}
    # only scripts of the project import their neighbours by bare names: another project's are not followed
    beside = path.parent if path.is_relative_to(ROOT) and not (path.parent / "__init__.py").exists() else None

    def add(module: str) -> None:
        names = module.split(".")
        for length in range(1, len(names) + 1):  # importing a.b.c runs a and a.b, too
            if (file := file_of(".".join(names[:length]), beside)) is not None:
                found[file] = None

    if path.suffix != ".py":  # data beside code
        return ()
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError:  # its own content is in the hash; whoever imports it says what is wrong
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                add(f"{node.module}.{alias.name}")
    return tuple(found)


def closure(*entries: str | Path) -> list[Path]:
    """The files that the entries need, themselves included, in the order of their paths.

    entries: files, or names of modules, of which those outside the project are left out.
    """
    found: set[Path] = set()
    todo = [entry if isinstance(entry, Path) else file_of(entry) for entry in entries]
    while todo:
        path = todo.pop()
        if path is not None and path not in found:
            found.add(path)
            todo += imported_by(path)
    return sorted(found)


@cache
def code_sha256(*entries: str | Path) -> str:
    """One hash of the content of all files that the entries need (see `closure`)."""
    digest = hashlib.sha256()
    for path in closure(*entries):
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        digest.update(f"{name}\n".encode() + path.read_bytes() + b"\n")
    return digest.hexdigest()


@cache
def file_of_method(name: str) -> Path | None:
    """The file in which a method is registered, None where there is no such method.

    It is found in the text of the project's files and in the entry points of other packages: importing them would take
    torch, and a file with a mistake would hide the others.
    """
    for path in (*ROOT.glob("ptmq/methods/*.py"), *ROOT.glob("baselines/*.py")):
        if _class_of_method(path, name) is not None:
            return path
    for point in entry_points(group="ptmq.methods"):
        if point.name == name and (spec := find_spec(point.module)) and spec.origin:
            return Path(spec.origin).resolve()
    return None


@cache
def declared(method: str, attribute: str, otherwise: Any) -> Any:
    """What the class of a method declares in its own body as a plain literal, such as its `style`."""
    path = file_of_method(method)
    found = _class_of_method(path, method) if path else None
    values = [part.value for part in (found.body if found else []) if _assigns(part, attribute)]
    return ast.literal_eval(values[0]) if values else otherwise


def _class_of_method(path: Path, name: str) -> ast.ClassDef | None:
    """The class with @register and that `name` in a file, None where it has none."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError:
        return None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not any(ast.unparse(d) == "register" for d in node.decorator_list):
            continue
        if any(_assigns(part, "name") and ast.literal_eval(part.value) == name for part in node.body):
            return node
    return None


def _assigns(node: ast.stmt, target: str) -> TypeGuard[ast.Assign]:
    """True where a statement gives a value to that name."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == target


@cache
def commit() -> str:
    """The git commit of the code, with '+' where the code differs from it; 'unknown' outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head[:12] + ("+" if changes else "")
