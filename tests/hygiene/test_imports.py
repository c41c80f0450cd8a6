"""Which module may import which: the layers of the design, held by reading every import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client" / "adjourn"
SERVICE = ROOT / "service" / "adjourn_service"

# Pure core: decided from values alone, so testable without a store, a network or a clock.
CORE = ("model", "names", "lifecycle", "retry", "limiter", "clock", "errors")
# Commands that act for a user of both packages; all else of the service knows only the wire API.
CLIENT_USERS = ("cli.py", "up.py", "demo.py", "demo/")
GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status")


def modules(package: Path) -> list[Path]:
    """Every module of `package` that is written by hand."""
    return sorted(path for path in package.rglob("*.py") if CLIENT / "v1" not in path.parents)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that `path` imports, also inside functions and `if TYPE_CHECKING`.

    `from a.b import c` is `a.b.c`; relative imports are made absolute."""
    top = CLIENT.parent if CLIENT in path.parents else SERVICE.parent
    package = path.relative_to(top).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def within(name: str, *packages: str) -> bool:
    """Whether the dotted `name` is one of `packages` or lies below it."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(paths: list[Path], *forbidden: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """Imports of `forbidden`, save `allowed`, as `file:line imports name`."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imported(path)
        if within(name, *forbidden) and not within(name, *allowed)
    ]


def test_there_is_something_to_read():
    assert len(modules(CLIENT)) > 10
    assert len(modules(SERVICE)) > 10


def test_the_client_never_imports_the_service():
    assert offences(modules(CLIENT), "adjourn_service") == []


def test_the_service_imports_only_the_wire_api_of_the_client():
    paths = [path for path in modules(SERVICE) if not str(path.relative_to(SERVICE)).startswith(CLIENT_USERS)]
    assert offences(paths, "adjourn", allowed=("adjourn.v1",)) == []


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_the_standard_library_and_itself(name):
    allowed = (*sys.stdlib_module_names, *(f"adjourn_service.{other}" for other in CORE))
    path = SERVICE / f"{name}.py"
    assert [f"line {line} imports {found}" for line, found in imported(path) if not within(found, *allowed)] == []


def test_grpc_stays_in_rpc_and_server():
    paths = [path for path in modules(SERVICE) if path.parent != SERVICE / "rpc" and path != SERVICE / "server.py"]
    assert offences(paths, *GRPC) == []


def test_sqlite_stays_in_the_store():
    paths = [path for path in modules(SERVICE) + modules(CLIENT) if SERVICE / "store" not in path.parents]
    assert offences(paths, "apsw", "sqlite3") == []


def test_importing_adjourn_loads_nothing_of_the_service():
    heavy = ("adjourn_service", "apsw", "protovalidate", "grpc_reflection", "uvloop", "rich", "click")
    code = f"import sys, adjourn; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
