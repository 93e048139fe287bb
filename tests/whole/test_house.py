"""The shape of the house: rooms on floors, imports that only point down, files that one reads in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

import cs_aligner_cli

PACKAGE = Path(cs_aligner_cli.__file__).parent
FLOORS = {
    8: ["cli", "api"],
    7: ["stages"],
    6: ["training", "search", "experiments"],
    5: ["towers", "report", "generation"],
    4: ["encoders", "gap", "runs"],
    3: ["data", "stores", "retrieval"],
    2: ["recipe", "files", "objectives"],
    1: ["common"],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# What orders the stages may import them; whatever stages share is no stage.
SHARED_BY_STAGES = {
    "pipeline",
    "table",
    "making",
    "shared_folders",
    "shared_stores",
    "replacing",
    "continuing",
    "gap_stores",
    "formats",
    "run_result",
}
MAX_FILE, MAX_FUNCTION, MAX_CLASS = 350, 60, 200
# What is longer all the same, and how long it may be: nothing, and so it is to stay.
LONGER: dict[str, int] = {}


@lru_cache(maxsize=1)
def modules() -> dict[Path, ast.Module]:
    """Every module of the package, by its path in it."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def imported(tree: ast.Module) -> Iterator[str]:
    """The package's own modules that a module imports anywhere in it, as ``room.module``."""
    prefix = f"{PACKAGE.name}."
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix(prefix) for name in names if name.startswith(prefix))


def rooms() -> set[str]:
    return {path.parts[0] for path in modules() if len(path.parts) > 1}


def test_every_room_stands_on_a_floor_and_no_module_lies_loose() -> None:
    assert rooms() <= set(FLOOR_OF)
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert loose <= {"__init__.py", "__main__.py", "py.typed"}


def test_imports_only_point_down() -> None:
    wrong = [
        f"{path} (floor {FLOOR_OF[path.parts[0]]}) imports {name} (floor {FLOOR_OF[room]})"
        for path, tree in modules().items()
        if len(path.parts) > 1
        for name in imported(tree)
        if (room := name.split(".")[0]) in FLOOR_OF
        and room != path.parts[0]
        and FLOOR_OF[room] >= FLOOR_OF[path.parts[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_stage_imports_another() -> None:
    """A stage is a module of stages, or a package there."""
    stage_of = {path: path.parts[1].removesuffix(".py") for path in modules() if path.parts[0] == "stages"}
    stages = {*stage_of.values()} - SHARED_BY_STAGES - {"__init__"}
    assert {"prepare", "embed", "train"} <= stages
    wrong = [
        f"{path} imports {name}"
        for path, own in stage_of.items()
        if own not in {"pipeline", "table", "run_result"}
        for name in imported(modules()[path])
        if name.startswith("stages.") and name.split(".")[1] in stages - {own}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("kind", "limit"), [((ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION), ((ast.ClassDef,), MAX_CLASS)]
)
def test_functions_and_classes_are_short(kind: tuple[type[ast.stmt], ...], limit: int) -> None:
    long = [
        f"{path}: {node.name}: {lines} lines"  # type: ignore[attr-defined]
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, kind) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGER.get(node.name, limit)  # type: ignore[attr-defined]
    ]
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    lines = {path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path in modules()}
    long = [f"{path}: {count} lines" for path, count in lines.items() if count > LONGER.get(path.as_posix(), MAX_FILE)]
    assert not long, "\n".join(long)


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by name: of two, it would leave one out.
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert len(names) == len(set(names))
