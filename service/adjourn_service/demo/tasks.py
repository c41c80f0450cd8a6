"""The work of the demo: one source file parsed, one report written."""

import ast
import json
import os
import tokenize
import warnings
from pathlib import Path
from typing import Any, Final

import adjourn

RUNS: Final = "runs"
REPORTS: Final = "reports"


def survey(source: str, folder: str) -> None:
    """Parse the Python file `source` and write a report of what is in it to `folder`.

    Runs of this are counted from what they leave behind, not from what the service says: each makes a file of its own
    before it does anything else. The report appears whole or not at all, and is the same however often this runs."""
    task = adjourn.current_task()
    assert task is not None, "to be run by a worker"
    Path(folder, RUNS, f"{task.uid}.{task.attempt}.{os.getpid()}").touch(exist_ok=False)
    path = Path(folder, REPORTS, f"{task.uid}.json")
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(_describe(Path(source))))
    unfinished.replace(path)


def _describe(path: Path) -> dict[str, Any]:
    """Return the counts of a file; for one that is no valid Python, as some test data is on purpose, why not."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError) as error:
        return {"parsed": False, "error": f"{type(error).__name__}: {error}"}
    return {
        "parsed": True,
        "lines": text.count("\n"),
        "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "imports": sorted({name for node in nodes for name in _imported(node)}),
    }


def _imported(node: ast.AST) -> list[str]:
    """Return the top-level modules that an import statement names; relative ones are left out."""
    match node:
        case ast.Import():
            return [alias.name.partition(".")[0] for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
    return []
