"""Every example of the README and of docs/ is run as it stands, against a real service with a worker.

Of a page, Python blocks that begin with `# name.py` are files that callers and workers import; the others are programs
whose output must be what their comments `# => ...` say. In console blocks, lines after `$ ` are commands and what
follows is their output, in which `...` stands for anything and runs of blanks for one. Tables of settings and of exit
statuses must agree with the code."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from adjourn.cli.failures import ExitStatus
from adjourn.worker.cli import worker
from adjourn_service.config import ServiceConfig, env_name
from tests.processes import COMMAND, Process

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\[[^]]+\]\(([^)#]*)(?:#([^)]*))?\)")
NOT_RUN = ("pip install", "adjourn up")
"""The environment of the tests has done the one, and the fixture does the other."""


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in FENCE.findall(page.read_text())]


def is_program(block: Block) -> bool:
    return block.language == "console" or (block.language == "python" and not FILE.match(block.text))


def examples() -> list[Path]:
    return [page for page in PAGES if any(map(is_program, blocks(page)))]


@pytest.fixture(params=examples(), ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def environment(page: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a reader of the page has around them: its files, and `adjourn up` with its modules."""
    modules = []
    for block in blocks(page):
        if block.language == "python" and (named := FILE.match(block.text)):
            (tmp_path / named[1]).write_text(block.text)
            modules.append(named[1].removesuffix(".py"))
    found = {"PYTHONPATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [COMMAND, "up", *modules, "--port", "0", "--processes", "1", "--data-dir", str(tmp_path / "data")]
    with Process(command, tmp_path / "up.log", found) as up:
        target = up.wait_for_log(r"listening address=(\S+)")[1]
        yield {**os.environ, **found, "ADJOURN_TARGET": target}
        assert up.stop() == 0


def test_the_examples_of_a_page_do_what_it_says(page: Path, environment: dict[str, str], tmp_path: Path):
    for block in filter(is_program, blocks(page)):
        if block.language == "python":
            run_program(block.text, environment, tmp_path)
        else:
            run_session(block.text, environment, tmp_path)


def run_program(text: str, environment: dict[str, str], folder: Path) -> None:
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert done.stdout.splitlines() == re.findall(r"# => (.*)", text)


def run_session(text: str, environment: dict[str, str], folder: Path) -> None:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        if command.startswith(NOT_RUN):
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert re.fullmatch(pattern(expected), blanks_as_one(done.stdout)), f"$ {command}\n{done.stdout}"


def blanks_as_one(text: str) -> str:
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines)


def pattern(expected: str) -> str:
    """Return the regular expression for an output: `...` on a line of its own stands for any lines."""
    lines = (
        r"(?:.*\n)*" if line == "..." else r".*".join(map(re.escape, line.split("..."))) + r"\n"
        for line in blanks_as_one(expected).splitlines()
    )
    return "".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for path, heading in LINK.findall(FENCE.sub("", page.read_text())):
        if path.startswith("http"):
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [each.lower().replace(" ", "-") for each in headings], f"{page.name}: #{heading}"


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables of a section, without backquotes."""
    section = re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading + "\n"))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_settings_of_the_service_are_all_told():
    told = [row[:4] for row in rows("configuration.md", "Service")[1:]]
    assert told == [
        [f"--{each.name.replace('_', '-')}", env_name(each.name), each.name, str(each.default)]
        for each in fields(ServiceConfig)
    ]


def test_the_example_file_of_the_service_is_right(tmp_path: Path):
    (text,) = (block.text for block in blocks(ROOT / "docs/configuration.md") if block.language == "toml")
    path = tmp_path / "adjourn.toml"
    path.write_text(text)
    assert ServiceConfig.load({}, {}, path).drain_grace == 20


def test_the_options_of_the_worker_are_all_told():
    told = {row[0] for row in rows("configuration.md", "Worker")[1:]}
    assert told - {"MODULE..."} == {each.opts[-1] for each in worker.params if each.param_type_name == "option"}


def test_the_exit_statuses_are_all_told():
    told = [int(row[0]) for row in rows("cli.md", "Exit status")[1:]]
    assert told == [int(each) for each in ExitStatus]
