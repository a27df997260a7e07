"""The first lines of sixty errors: what is wrong, the valid choices, what to type."""

import datetime as dt

import anthropic
import polars as pl
import pytest
from golden import check
from plans import FRAME, HAIKU, OPUS, WIDE
from pydantic import BaseModel

import claudescale as cs


class Recursive(BaseModel):
    """A type that refers to itself."""

    inner: "Recursive | None" = None


def plan(prompt="Name it: {text}", frame=FRAME, **options):
    """Return a valid plan with the given changes."""
    return cs.plan(frame, prompt, **{"model": HAIKU, "tier": WIDE, **options})


def sent(a_plan):
    """Run a plan without a client that could spend, and return the result."""
    with cs.Simulator((60_000, 10**8, 10**8), speed=50) as api:
        return cs.wait(a_plan.run(api.client(), ledger=None, progress=False))


_BUDGET = {"type": "enabled", "budget_tokens": 2_000}
ERRORS = {
    "unknown column": lambda: plan("Read {txt}"),
    "single brace": lambda: plan("Read { {text}"),
    "empty braces": lambda: plan("Read {} {text}"),
    "attribute": lambda: plan("Read {text.upper}"),
    "no column": lambda: plan("Read"),
    "empty prompt": lambda: plan(""),
    "prompt of a wrong kind": lambda: plan(5),
    "expression of numbers": lambda: plan(pl.col("stars")),
    "expression of one": lambda: plan(pl.col("text").first()),
    "expression with an unknown column": lambda: plan(pl.col("txt")),
    "frame of a wrong kind": lambda: plan(frame=5),
    "series": lambda: plan(frame=FRAME["text"]),
    "name taken": lambda: plan(returns={"reply": pl.String}),
    "field taken": lambda: plan(returns={"text": pl.String}),
    "unknown model": lambda: plan(model="claude-haiku"),
    "foreign model": lambda: plan(model="gpt-5"),
    "model of a wrong kind": lambda: plan(model=5),
    "unknown tier": lambda: plan(tier="pro"),
    "tier of a wrong kind": lambda: plan(tier=9),
    "tier without limits": lambda: plan(tier="evaluation"),
    "unknown mode": lambda: plan(mode="batches"),
    "hybrid without deadline": lambda: plan(mode="hybrid").options,
    "deadline in words": lambda: plan(deadline="1h"),
    "deadline negative": lambda: plan(deadline=-1),
    "deadline of no time": lambda: plan(deadline=dt.timedelta(0)),
    "budget in words": lambda: plan(budget="5"),
    "budget negative": lambda: plan(budget=-1),
    "budget not a number": lambda: plan(budget=float("nan")),
    "share too large": lambda: plan(share=2),
    "share of nothing": lambda: plan(share=0),
    "concurrency of none": lambda: plan(concurrency=0),
    "concurrency broken": lambda: plan(concurrency=1.5),
    "max_tokens of none": lambda: plan(max_tokens=0),
    "max_tokens too many": lambda: plan(max_tokens=10**7),
    "effort unknown": lambda: plan(effort="huge"),
    "effort not taken": lambda: plan(model="claude-haiku-4-5", effort="low"),
    "thinking unknown": lambda: plan(thinking={"type": "deep"}),
    "thinking cannot be off": lambda: plan(model=OPUS, thinking={"type": "disabled"}),
    "thinking without budget": lambda: plan(model="claude-haiku-4-5", thinking={"type": "enabled"}),
    "thinking over max_tokens": lambda: plan(model="claude-haiku-4-5", thinking=_BUDGET, max_tokens=100),
    "system empty": lambda: plan(system=" "),
    "system of a wrong kind": lambda: plan(system=5),
    "cache without system": lambda: plan(cache=True),
    "cache of a wrong kind": lambda: plan(cache="yes", system="Be brief."),
    "temperature": lambda: plan(params={"temperature": 0}),
    "stream": lambda: plan(params={"stream": True}),
    "own argument": lambda: plan(params={"max_tokens": 5}),
    "params no JSON": lambda: plan(params={"stop_sequences": {1, 2}}),
    "returns of a wrong kind": lambda: plan(returns=5),
    "returns recursive": lambda: plan(returns=Recursive),
    "returns incomplete": lambda: plan(returns=pl.Enum),
    "returns empty": lambda: plan(returns={}),
    "replace unknown": lambda: plan().replace(temperature=0),
    "compare one value": lambda: plan().compare(model=HAIKU),
    "compare unknown": lambda: plan().compare(colour=["red"]),
    "calibrate with a frame": lambda: plan().calibrate(FRAME),
    "budget too small": lambda: sent(plan(budget=1e-9)),
    "deadline too short": lambda: sent(plan(deadline=1e-6)),
    "row too long": lambda: sent(plan(frame=pl.DataFrame({"text": ["x" * 33_000_000]}))),
    "client of a wrong kind": lambda: cs.wait(plan().run("none", ledger=None)),
    "client that does not wait": lambda: cs.wait(plan().run(anthropic.Anthropic(api_key="none"))),
    "trial of one name": lambda: cs.trial(plan(), models=HAIKU),
    "cascade of one model": lambda: cs.cascade(plan(), models=[HAIKU]),
    "no key": lambda: cs.connect(simulate=False),
}


@pytest.mark.slow
def test_first_lines_of_errors_are_those_recorded():
    """Each is a `PlanError`, raised before anything is sent."""
    found = {}
    for name, make in ERRORS.items():
        with pytest.raises(cs.PlanError) as error:
            make()
        found[name] = f"{type(error.value).__name__}: {str(error.value).splitlines()[0]}"
    check("errors", found)
