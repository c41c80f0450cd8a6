"""The locks hold all that pyproject.toml asks for, each by hash, and say nothing about where it comes from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)


def wanted(lock: str) -> list[Requirement]:
    """What `requirements/{lock}.txt` is made from."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if lock == "build":
        return [Requirement(text) for text in pyproject["build-system"]["requires"]]
    extras = pyproject["project"]["optional-dependencies"]
    texts = pyproject["project"]["dependencies"] + extras["service"] + (extras["dev"] if lock == "dev" else [])
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "adjourn"]


def pins(lock: str) -> dict[str, list[str]]:
    """Name -> versions; several where they differ by platform."""
    found: dict[str, list[str]] = {}
    for name, version in PIN.findall((ROOT / "requirements" / f"{lock}.txt").read_text()):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_the_locks_are_those_we_know():
    assert [path.stem for path in LOCKS] == ["build", "dev", "service"]


@pytest.mark.parametrize("lock", ["build", "dev", "service"])
def test_a_lock_has_every_dependency(lock):
    locked = pins(lock)
    lacking = [
        str(requirement)
        for requirement in wanted(lock)
        if not any(requirement.specifier.contains(v) for v in locked.get(canonicalize_name(requirement.name), []))
    ]
    assert lacking == [], "run 'make lock'"


def test_the_image_runs_what_the_tests_ran():
    tested = pins("dev")
    assert {
        name: found for lock in ("build", "service") for name, found in pins(lock).items() if tested[name] != found
    } == {}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_holds_pins_with_hashes_and_nothing_else(path):
    logical = path.read_text().replace("\\\n", " ").splitlines()
    form = re.compile(PIN.pattern + r"(?: ;[^#]*?)?(?:\s+--hash=sha256:[0-9a-f]{64})+\s*$")
    assert [line for line in logical if not form.match(line)] == []


@pytest.mark.parametrize(
    "name", [*(f"requirements/{path.name}" for path in LOCKS), "Dockerfile", "Makefile", ".ci/run"]
)
def test_no_index_is_named(name):
    text = (ROOT / name).read_text()
    assert re.findall(r"https?://\S*|--(?:extra-)?index-url\S*|--find-links\S*|--trusted-host\S*", text) == []
