"""README.md and SKILL.md do what they say: their Python runs; the two commands are what one sees first."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
README, SKILL = ROOT / "README.md", ROOT / "claudescale" / "SKILL.md"
FIRST_SCREEN_LINES = 60
MAIN = """python3 -m venv .venv && .venv/bin/pip install -q -e ".[notebook]" \
&& .venv/bin/python -m claudescale.lessons && .venv/bin/jupyter lab notebooks/01_your_first_rows.ipynb"""
TESTS = """python3 -m venv .venv-test && .venv-test/bin/pip install -q -e ".[test]" \
&& .venv-test/bin/python -m pytest -n 3"""


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of README.md on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page=README):
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(f[1], f[2], text.count("\n", 0, f.start(2)) + 1) for f in fences]


def test_the_two_commands_stand_in_the_first_screen():
    """Whoever opens the page sees, without scrolling far, what to type; the notebook it opens is there."""
    first = [each.text.strip() for each in blocks() if each.line <= FIRST_SCREEN_LINES]
    assert {MAIN, TESTS} <= set(first)
    assert (ROOT / MAIN.rsplit(maxsplit=1)[-1]).is_file()


async def run_as_cells(page, cells):
    """Run blocks as a notebook would: one namespace, `await` at the top level, the last value shown."""
    namespace = {"__name__": "__main__"}
    for block in cells:
        tree = ast.parse("\n" * (block.line - 1) + block.text, str(page))  # with the line numbers of the page
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        parts = [(tree, "exec")] + ([(ast.Expression(last.value), "eval")] if last else [])
        for part, mode in parts:
            code = compile(part, str(page), mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = eval(code, namespace)
            value = await value if code.co_flags & inspect.CO_COROUTINE else value
            assert mode == "exec" or isinstance(repr(value), str)


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, SKILL], ids=lambda page: page.name)
def test_its_python_runs_in_order(page, tmp_path, monkeypatch):
    """Each Python block runs after those before it, offline, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    cells = [block for block in blocks(page) if block.language == "python"]
    assert cells
    asyncio.run(run_as_cells(page, cells))
