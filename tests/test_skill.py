"""SKILL.md holds: its blocks run in test_readme.py, and what its bullets list can be planned."""

from __future__ import annotations

import json
import re
from typing import Literal

import polars as pl
import pydantic
import pytest
from test_readme import SKILL

import claudescale as cs

FRAME = pl.DataFrame(
    {"text": ["a", "b"], "language": ["Dutch", "Thai"], "photo": ["https://a.example/b.png"] * 2}
)
FRAME = FRAME.with_columns(file=pl.col("photo").str.replace("png", "pdf"), note=pl.lit("n"))
LIMITS = cs.Limits(requests_per_minute=300, input_tokens_per_minute=40_000, output_tokens_per_minute=8_000)


class Form(pydantic.BaseModel):
    """A reply."""

    word: str


OWN = cs.Model("claude-next", like="claude-haiku-5-5", input_dollars=1, output_dollars=5)
RETURNS = [Form, list[Form], ["a", "b"], bool, int, float, str, Literal["a", "b"], pl.Int8, {"a": pl.String}]
TIERS = ["start", "build", "scale", 1, 2, 3, 4, LIMITS]
OPTIONS = [{"returns": kind} for kind in RETURNS] + [{"tier": tier} for tier in TIERS]
OPTIONS += [{"mode": mode} for mode in ("live", "batch")] + [{"model": OWN}, {"budget": 5, "share": 0.5}]
OPTIONS += [{"mode": mode, "deadline": 90} for mode in ("live", "hybrid", "auto")]


def planned(prompt="Tag {text}", **options):
    """Return a plan; what cannot be sent raises PlanError here."""
    return cs.plan(FRAME, prompt, **{"model": "claude-haiku-5-5", **options})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_a_bullet_lists_can_be_planned(options):
    """Each form of a reply, tier, mode, model and limit that the page names makes a plan of both rows."""
    assert planned(**options).requests.height == FRAME.height


def test_what_a_request_has_is_as_the_bullets_say():
    """Braces, examples, a system prompt for each row, samples, pictures and documents stand in the bodies."""

    def bodies(*prompt, **options):
        return [json.loads(body) for body in planned(*prompt, **options).requests["params"]]

    assert bodies("{{x}} {text}")[0]["messages"][0]["content"] == "{x} a"
    first, second = bodies(examples=[("Broken again", "complaint")], system="Answer in {language}.")
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant", "user"]
    assert ("Dutch" in str(first["system"]), "Thai" in str(second["system"])) == (True, True)
    assert len(bodies(samples=3)) == 3 * FRAME.height
    (parts,) = bodies([cs.image("photo"), cs.pdf("file"), "What is broken? {note}"])
    assert [part["type"] for part in parts["messages"][0]["content"]] == ["image", "document", "text"]


def test_every_name_it_shows_is_there():
    """Each `cs.name` in the text is public, and there is no default model."""
    names = set(re.findall(r"\bcs\.(\w+)", SKILL.read_text(encoding="utf-8")))
    assert names - set(cs.__all__) == set()
    with pytest.raises(TypeError, match="model"):
        cs.plan(FRAME, "{text}")
