"""README.md and SKILL.md are correct: their Python runs, and what they list can be planned."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import polars as pl
import pydantic
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import claudescale as cs

ROOT = Path(__file__).resolve().parent.parent
README, SKILL = ROOT / "README.md", ROOT / "claudescale" / "SKILL.md"
MAIN = """python3 -m venv .venv && .venv/bin/pip install -q -e ".[notebook]" \
&& .venv/bin/python -m claudescale.lessons && .venv/bin/jupyter lab notebooks/01_your_first_rows.ipynb"""
TESTS = """python3 -m venv .venv-test && .venv-test/bin/pip install -q -e ".[test]" \
&& .venv-test/bin/python -m pytest -n 3"""


def blocks(text, language):
    """Return the fenced blocks of a language in a page's text."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_two_commands_stand_in_the_first_screen():
    """The page shows the commands near its top, and the notebook that they open exists."""
    first_screen = "".join(README.read_text(encoding="utf-8").splitlines(keepends=True)[:60])
    assert {MAIN, TESTS} <= set(blocks(first_screen, "bash"))
    assert (ROOT / MAIN.rsplit(maxsplit=1)[-1]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, SKILL], ids=lambda page: page.name)
def test_its_python_runs_in_order(page, tmp_path, monkeypatch):
    """Each Python block runs after those before it, as cells of a notebook, offline, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell(user_module=ModuleType("page"), config=config)
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        shell.run_cell(block).raise_error()
    assert "client" in shell.user_ns


# the bullets of SKILL.md


class Form(pydantic.BaseModel):
    """A reply."""

    word: str


PHOTO, FILE = ["https://a.example/b.png"] * 2, ["https://a.example/b.pdf"] * 2
FRAME = pl.DataFrame(
    {"text": ["a", "b"], "language": ["Dutch", "Thai"], "photo": PHOTO, "file": FILE, "note": ["n", "o"]}
)
LIMITS = cs.Limits(requests_per_minute=300, input_tokens_per_minute=40_000, output_tokens_per_minute=8_000)
OWN = cs.Model("claude-next", like="claude-haiku-5-5", input_dollars=1, output_dollars=5)
RETURNS = [Form, list[Form], ["a", "b"], bool, int, float, str, Literal["a", "b"], pl.Int8, {"a": pl.String}]
TIERS = ["start", "build", "scale", 1, 2, 3, 4, LIMITS]
OPTIONS = [{"returns": kind} for kind in RETURNS] + [{"tier": tier} for tier in TIERS]
OPTIONS += [{"mode": mode} for mode in ("live", "batch")] + [{"model": OWN}, {"budget": 5, "share": 0.5}]
OPTIONS += [{"mode": mode, "deadline": 90} for mode in ("live", "hybrid", "auto")]


def bodies(prompt="Tag {text}", **options):
    """Return the requests of a plan; an invalid one raises PlanError here."""
    plan = cs.plan(FRAME, prompt, **{"model": "claude-haiku-5-5", **options})
    return [json.loads(body) for body in plan.requests["params"]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_a_bullet_lists_can_be_planned(options):
    """Each reply form, tier, mode, model and limit that the page names makes a plan of both rows."""
    assert len(bodies(**options)) == FRAME.height


def test_what_a_request_has_is_as_the_bullets_say():
    """Braces, examples, a system prompt for each row, samples, pictures and documents are in the bodies."""
    assert bodies("{{x}} {text}")[0]["messages"][0]["content"] == "{x} a"
    first, second = bodies(examples=[("Broken again", "complaint")], system="Answer in {language}.")
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant", "user"]
    assert ("Dutch" in str(first["system"]), "Thai" in str(second["system"])) == (True, True)
    assert len(bodies(samples=3)) == 3 * FRAME.height
    parts = bodies([cs.image("photo"), cs.pdf("file"), "What is broken? {note}"])[0]
    assert [part["type"] for part in parts["messages"][0]["content"]] == ["image", "document", "text"]


def test_every_name_it_shows_is_there():
    """Each `cs.name` in the text is public, and there is no default model."""
    names = set(re.findall(r"\bcs\.(\w+)", SKILL.read_text(encoding="utf-8")))
    assert names - set(cs.__all__) == set()
    with pytest.raises(TypeError, match="model"):
        cs.plan(FRAME, "{text}")
