"""Every line of SKILL.md holds: its blocks run in test_readme.py, and each bullet has its proof here."""

from __future__ import annotations

import inspect
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
BULLETS = re.findall(r"^- (.+(?:\n  .+)*)", SKILL.read_text(encoding="utf-8"), flags=re.MULTILINE)
LIMITS = cs.Limits(requests_per_minute=300, input_tokens_per_minute=40_000, output_tokens_per_minute=8_000)
ADVICE = (
    "Ask the user",
    "Do not wrap",
    "Pass `claude`",
    "A batch takes minutes",
    "`cs.map`, `cs.batch` and runs",
)
"""What an agent should do, and what other tests run for: limits (test_limit), batches left (test_crashes)."""


class Form(pydantic.BaseModel):
    """A reply."""

    word: str


def planned(prompt="Tag {text}", **options):
    """Return a plan; what cannot be sent raises PlanError here."""
    return cs.plan(FRAME, prompt, **{"model": "claude-haiku-5-5", **options})


def bodies(plan):
    """Return the bodies that a plan would send."""
    return [json.loads(body) for body in plan.requests["params"]]


def speed():
    """Only a simulator has a speed: with an address of one's own it is taken and changes nothing."""
    client = cs.connect(api_key="k" * 20, base_url="https://gateway.example.com", speed=600)
    assert client.base_url.host == "gateway.example.com"


def braces():
    """Doubled braces are sent as single ones."""
    assert bodies(planned("{{x}} {text}"))[0]["messages"][0]["content"] == "{x} a"


def models():
    """Without a model there is no plan; one that is not listed takes another's facts."""
    with pytest.raises(TypeError, match="model"):
        cs.plan(FRAME, "{text}")
    assert {"model", "dollars_per_million_input_tokens"} <= set(cs.models().columns)
    own = cs.Model("claude-next", like="claude-haiku-5-5", input_dollars=1, output_dollars=5)
    assert bodies(planned(model=own))[0]["model"] == "claude-next"


def ledger():
    """Both helpers have the same default."""
    for helper in (cs.map, cs.batch):
        assert str(inspect.signature(helper).parameters["ledger"].default) == "claudescale.ledger"


def returns():
    """Each kind of reply can be planned."""
    kinds = [
        Form,
        list[Form],
        ["a", "b"],
        bool,
        int,
        float,
        str,
        Literal["a", "b"],
        pl.Int8,
        {"a": pl.String},
    ]
    assert all(planned(returns=kind).requests.height == 2 for kind in kinds)


def modes():
    """Each mode can be planned, two of them with a deadline."""
    assert set(planned().options["mode"]) >= {"live", "batch"}
    for mode in ("live", "batch", "hybrid", "auto"):
        assert planned(mode=mode, deadline=None if mode == "batch" else 90).mode == mode


def tiers():
    """Each way to name a tier can be planned."""
    for tier in ("start", "build", "scale", 1, 2, 3, 4, LIMITS):
        assert planned(tier=tier)


def budget_and_samples():
    """Three samples are three requests a row."""
    assert planned(samples=3, budget=5).requests.height == 3 * FRAME.height


def examples_and_system():
    """Examples stand before the row, and each row has its own system prompt."""
    plan = planned(examples=[("Broken again", "complaint")], system="Answer in {language}.")
    first, second = bodies(plan)
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant", "user"]
    assert ("Dutch" in str(first["system"]), "Thai" in str(second["system"])) == (True, True)


def files():
    """Pictures and documents stand in the row's message."""
    (first,) = bodies(planned([cs.image("photo"), cs.pdf("file"), "What is broken? {note}"]))
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image", "document", "text"]


def errors():
    """Both can be told apart, and caught together."""
    assert issubclass(cs.PlanError, cs.ClaudescaleError)
    assert not issubclass(cs.PlanError, cs.RunStopped)
    assert issubclass(cs.RunStopped, cs.ClaudescaleError)


def share():
    """Half the limits take twice the time, where they bind."""
    many = cs.plan(pl.DataFrame({"n": range(5_000)}), "{n}", model="claude-haiku-5-5")
    whole, half = (plan.options["minutes"][0] for plan in (many, many.replace(share=0.5)))
    assert half == pytest.approx(2 * whole, rel=0.1)


PROOFS = {
    "`speed`": speed,
    "`{text}`": braces,
    "There is no default model": models,
    "`map` and `batch` keep": ledger,
    "`returns` takes": returns,
    "`mode` is": modes,
    "`tier` is": tiers,
    "`budget` is": budget_and_samples,
    "`examples=": examples_and_system,
    "Images and PDFs": files,
    "`cs.PlanError`": errors,
    "Do not start many": share,
}


def test_every_bullet_has_a_proof():
    """No line of the page stands without one, but for advice."""
    starts = (*PROOFS, *ADVICE)
    assert [bullet for bullet in BULLETS if not bullet.startswith(starts)] == []
    assert [start for start in starts if not any(bullet.startswith(start) for bullet in BULLETS)] == []


@pytest.mark.parametrize("proof", PROOFS.values(), ids=lambda proof: proof.__name__)
def test_what_a_bullet_says_holds(proof):
    """The proof that belongs to a bullet."""
    proof()


def test_every_name_it_shows_is_there():
    """Each `cs.name` in the text is public."""
    names = set(re.findall(r"\bcs\.(\w+)", SKILL.read_text(encoding="utf-8")))
    assert names - set(cs.__all__) == set()
