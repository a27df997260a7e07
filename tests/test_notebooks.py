"""The notebooks as files: executed, saved with outputs, checked figures, no traces of a person."""

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
IMPORTS = {"IPython", "altair", "anthropic", "claudescale", "polars", "pydantic"} | sys.stdlib_module_names
CONFTEST = runpy.run_path(str(ROOT / "notebooks" / "conftest.py"))
SOLUTION = CONFTEST["SOLUTION"]
each_notebook = pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)


def cells_of(path, kind=""):
    """Return a notebook's cells, of this kind if one is given, each source as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if kind in cell["cell_type"]]


def with_tag(cells, tag):
    return [number for number, cell in enumerate(cells) if tag in cell["metadata"].get("tags", ())]


@each_notebook
def test_a_lesson_is_short_and_saved_as_it_ran(path):
    """Its cells ran once, from top to bottom, none failed, nothing shows who ran them; one is compared."""
    cells, saved = cells_of(path, "code"), path.read_text(encoding="utf-8")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert re.findall(r"/home/\w+|/root/|/Users/\w+|/tmp/\w+|sk-ant-\w+|\"execution\": ", saved) == []
    assert "widgets" not in json.loads(saved)["metadata"]
    lines = [len(cell["source"].splitlines()) for cell in cells]
    assert max(lines) <= 15
    assert statistics.median(lines) <= 4
    assert 20 <= len(cells_of(path)) <= 36
    assert with_tag(cells, "nbval-check-output")


@each_notebook
def test_an_exercise_has_a_task_a_place_a_check_and_a_solution(path):
    """A lesson has two or three, after its heading "On your own", each of four cells in this order."""
    cells = cells_of(path)
    exercises = with_tag(cells, "exercise")
    headings = [number for number, cell in enumerate(cells) if "## On your own" in cell["source"]]
    assert len(exercises) in {2, 3}
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
    sources = [cell["source"] for cell in cells_of(path, "code")]
    prose = "\n\n".join(cell["source"] for cell in cells_of(path, "markdown"))
    nodes = [*ast.walk(ast.parse("\n".join([*sources, *SOLUTION.findall(prose)])))]
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in plain | {node.module for node in froms}} <= IMPORTS
    assert [name for name in plain if name.startswith("claudescale.")] == []
    ours = [node for node in froms if node.module.startswith("claude")]
    assert {ast.unparse(node) for node in ours} <= {"from claudescale import lessons"}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    assert [node.attr for node in attributes if node.attr in {"compiled", "job"} or node.attr[0] == "_"] == []
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "cs"}
    assert used <= {*cs.__all__, "__version__"}
    links = re.findall(r"\]\(([^):]+)\)", prose)
    assert [link for link in links if not (path.parent / link.partition("#")[0]).is_file()] == []


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
