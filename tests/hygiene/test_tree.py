"""The files of the repository as a whole."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"

# Where somebody's checkout, home or wheels happen to lie. [w] keeps this line from being found by itself.
MACHINE_PATH = re.compile(r"(?<![\w.~:/$}-])/(?:work|home|root|Users)/\w+|/opt/[w]heels|/bash_[j]obs")


def tracked() -> list[Path]:
    """The files that git knows; skips where there is no git or no checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The text of `path`, or nothing if it is binary."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode()


def test_no_file_names_a_path_of_a_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number} {match[0]}"
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for match in MACHINE_PATH.finditer(line)
    ]
    assert found == []


def test_nothing_built_is_tracked():
    built = {".venv", "build", "dist", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
    assert [str(path.relative_to(ROOT)) for path in tracked() if built & set(path.relative_to(ROOT).parts)] == []


def test_the_changelog_has_what_is_not_released():
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def has_tests(path: Path) -> bool:
    """Whether pytest finds something in `path`: a test function, a Test class or a state machine's TestCase."""
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            return True
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            return True
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "TestCase":
            return True
    return False


def test_every_test_file_has_tests():
    files = sorted(TESTS.rglob("test_*.py"))
    assert files
    assert [str(path.relative_to(ROOT)) for path in files if not has_tests(path)] == []


def test_make_test_runs_every_folder_of_tests():
    makefile = (ROOT / "Makefile").read_text()
    run = re.search(r"^TESTS := (.+)$", makefile, re.MULTILINE)
    assert run
    folders = {path.relative_to(ROOT).parts[1] for path in TESTS.rglob("test_*.py")}
    assert {f"tests/{folder}" for folder in folders} <= set(run[1].split())
