"""The notebooks as files: executed, saved with outputs, checked figures, no traces of a person."""

from __future__ import annotations

import ast
import json
import re
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

import claudescale as cs

ROOT = Path(__file__).resolve().parent.parent
ALL = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELLS = range(20, 37)
EXERCISES = range(2, 4)
LONGEST_CELL_LINES = 15
MEDIAN_CELL_LINES = 4
IMPORTS = {"IPython", "altair", "anthropic", "claudescale", "polars", "pydantic"} | sys.stdlib_module_names
each_notebook = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def notebook(path):
    """Return a notebook, each source as one text."""
    read = json.loads(path.read_text(encoding="utf-8"))
    for cell in read["cells"]:
        cell["source"] = "".join(cell["source"])
    return read


def code_cells(path):
    return [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]


def with_tag(cells, tag):
    return [number for number, cell in enumerate(cells) if tag in cell["metadata"].get("tags", ())]


@each_notebook
def test_a_notebook_is_saved_as_it_ran(path):
    """Every cell ran once, from top to bottom, none failed, and nothing shows who ran it, or when."""
    cells, saved = code_cells(path), path.read_text(encoding="utf-8")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert re.findall(r"/home/\w+|/root/|/Users/\w+|/tmp/\w+|sk-ant-\w+", saved) == []
    assert "widgets" not in notebook(path)["metadata"]
    assert [cell["source"] for cell in cells if "execution" in cell["metadata"]] == []


@each_notebook
def test_a_lesson_is_short_and_has_a_checked_figure(path):
    """It has 20 to 36 cells; no code cell is over 15 lines, half have four at most, one is compared."""
    cells = code_cells(path)
    lines = [len(cell["source"].splitlines()) for cell in cells]
    assert len(notebook(path)["cells"]) in CELLS
    assert max(lines) <= LONGEST_CELL_LINES
    assert statistics.median(lines) <= MEDIAN_CELL_LINES
    assert with_tag(cells, "nbval-check-output")
    assert [cell["source"] for cell in cells if "NBVAL" in cell["source"]] == []


@each_notebook
def test_an_exercise_has_a_task_a_place_a_check_and_a_solution(path):
    """A lesson has two or three, after its heading "On your own", each of four cells in this order."""
    cells = notebook(path)["cells"]
    exercises = with_tag(cells, "exercise")
    headings = [number for number, cell in enumerate(cells) if "## On your own" in cell["source"]]
    assert len(exercises) in EXERCISES
    assert max(headings) < min(exercises)
    for number in exercises:
        task, place, check, solution = cells[number - 1 : number + 3]
        kinds = [cell["cell_type"] for cell in (task, place, check, solution)]
        assert kinds == ["markdown", "code", "code", "markdown"]
        assert "lessons.check(" in check["source"]
        assert SOLUTION.fullmatch(solution["source"])
        assert "Your turn" in json.dumps(check["outputs"])


@each_notebook
def test_a_lesson_lives_on_public_names(path):
    """It imports only what a reader has, uses no internal name, and links to existing files."""
    cells = notebook(path)["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    sources += [match[1] for cell in cells if (match := SOLUTION.fullmatch(cell["source"]))]
    nodes = [*ast.walk(ast.parse("\n".join(sources)))]
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    froms = {
        (node.module, each.name) for node in nodes if isinstance(node, ast.ImportFrom) for each in node.names
    }
    assert {name.partition(".")[0] for name in plain | {module for module, _ in froms}} <= IMPORTS
    assert [name for name in plain if name.startswith("claudescale.")] == []
    assert {each for each in froms if each[0].startswith("claude")} <= {("claudescale", "lessons")}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    assert [node.attr for node in attributes if node.attr in {"compiled", "job"} or node.attr[0] == "_"] == []
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "cs"}
    assert used <= {*cs.__all__, "__version__"}
    prose = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^):]+)\)", prose)
    assert [link for link in links if not (path.parent / link.partition("#")[0]).is_file()] == []


CONFTEST = runpy.run_path(str(ROOT / "notebooks" / "conftest.py"))
SOLUTION = CONFTEST["SOLUTION"]
SOLVED = "<details><summary>Solution</summary>\n\n```python\nanswer = 2\n```\n\n</details>"


@pytest.mark.parametrize(("below", "code"), [(SOLVED, "answer = 2"), ("## Next", CONFTEST["MISSING"])])
def test_an_exercise_is_run_as_its_solution(below, code):
    """The code of the solution replaces it, and an exercise without one cannot pass."""
    exercise = {"metadata": {"tags": ["exercise"]}, "source": "answer = None"}
    CONFTEST["solve"]([exercise, {"metadata": {}, "source": "check"}, {"metadata": {}, "source": below}])
    assert exercise["source"] == code


def test_figures_are_compared():
    """The comparison by nbval ignores times, speeds and folders, and no other figure."""
    figures = "live $1.23 2 m 14 s; 812 of 1,000 rows answered (81.2%)"
    shown = f"{figures} at 2026-10-08 12:00 UTC in /tmp/ab"
    for pattern, replacement in get_sanitize_patterns((ROOT / "tests/nbval_sanitize.cfg").read_text("utf-8")):
        shown = re.sub(pattern, replacement, shown)
    assert shown == f"{figures} at A-MOMENT in A-FOLDER"
