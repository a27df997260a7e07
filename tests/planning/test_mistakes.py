"""The likely mistakes: each is told before a cent is spent, in words that say what to type next."""

from __future__ import annotations

import asyncio
import re
import warnings

import anthropic
import polars as pl
import pytest
from running import a_plan, finished, simulator

import claudescale as cs

FRAME = pl.DataFrame(
    {"text": ["late again", "works", None], "stars": [1, 5, 3], "when": [None, None, None]},
    schema={"text": pl.String, "stars": pl.Int64, "when": pl.Date},
)
TEMPLATE, MODEL = "Name the complaint: {text}", "claude-haiku-5-5"
THINKING = {"type": "enabled", "budget_tokens": 2_000}


class DataFrame:
    """Looks like one of pandas, which need not be installed for this."""

    __module__ = "pandas.core.frame"


def plan(frame=FRAME, prompt=TEMPLATE, **options):
    return cs.plan(frame, prompt, **{"model": MODEL, **options})


# What somebody types, and what the message has to say: what is wrong, and what to type.
# fmt: off
MISTAKES = {
    "a pandas frame": (lambda: plan(DataFrame()), ["pandas.DataFrame", "pl.from_pandas(frame)"]),
    "a dict": (lambda: plan({"text": ["late"]}), ["builtins.dict", "pl.DataFrame(frame)"]),
    "a list of texts": (lambda: plan(["late"]), ["builtins.list", "pl.DataFrame({'text': frame})"]),
    "JSON in the prompt": (lambda: plan(prompt='As {"label": 1}: {text}'), ["line 1", "{{ and }}"]),
    "messages instead of a prompt": (lambda: plan(prompt=[{"role": "user"}]), ["a list", "'Name the topic"]),
    "a retired model": (lambda: plan(model="claude-3-opus-20240229"), ["retired", "Use 'claude-"]),
    "no model": (lambda: plan(model=None), ["no default", "model='claude-haiku-5-5'"]),
    "a model for each row": (lambda: plan(model=pl.col("model")), ["one name for all rows", ".filter("]),
    "several models": (lambda: plan(model=[MODEL, "claude-opus-5-5"]), ["cs.trial(plan, models="]),
    "one limit of three": (
        lambda: plan(tier=cs.Limits(requests_per_minute=300)),
        ["requests_per_minute=300, input_tokens_per_minute=..., output_tokens_per_minute=...", "1e9"],
    ),
    "no limits at all": (cs.Limits, ["needs all three", "requests_per_minute=..."]),
    "no room for thinking": (
        lambda: plan(model="claude-haiku-4-5", max_tokens=1_024, thinking=THINKING),
        ["budget_tokens=2,000", "Raise max_tokens="],
    ),
    "labels as a list": (lambda: plan(returns=["good", "bad"]), ["returns=pl.Enum([...])"]),
    "a Python type": (lambda: plan(returns=str), ["returns=pl.String"]),
    "a key instead of a client": (lambda: finished(plan(), "none"), ["a str", "cs.connect()"]),
    "an old client": (lambda: finished(plan(), anthropic.Anthropic(api_key="none")), ["AsyncAnthropic"]),
}
# fmt: on


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_what_to_type(mistake):
    """Nothing is sent; the error is one of ours, says what is wrong and what to type."""
    make, words = MISTAKES[mistake]
    with pytest.raises(cs.PlanError) as error:
        make()
    told = str(error.value)
    assert [word for word in words if word not in told] == []
    assert len(told) < 400


LEDGERS = {
    "a file of something else": (
        "rows.csv",
        "text\nlate\n" * 50,
        ["rows.csv is not a ledger", "ledger='replies.ledger'"],
    ),
    "a folder": (".", None, ["is a folder", "replies.ledger"]),
    "a folder that is not there": ("missing/replies.ledger", None, ["no folder", "mkdir"]),
}


@pytest.mark.parametrize("mistake", LEDGERS)
def test_a_ledger_that_cannot_be_one(mistake, tmp_path):
    """The run stops before it sends, the file is left as it was, and the message says what to name."""
    name, content, words = LEDGERS[mistake]
    path = tmp_path / name
    if content:
        path.write_text(content)
    with simulator() as api:
        with pytest.raises(cs.RunStopped) as error:
            finished(a_plan(FRAME), api.client(), ledger=path)
        assert api.stats["calls"] == 0
    told = str(error.value)
    assert [word for word in ["Nothing was sent", *words] if word not in told] == []
    assert not content or path.read_text() == content


@pytest.mark.parametrize("ask", [lambda run: run.results, lambda run: run.summary, repr])
def test_a_forgotten_await_says_so(ask):
    """What was not awaited has no results, and says what to type; nothing is sent."""
    with simulator() as api, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        waiting = a_plan(FRAME).run(api.client(), ledger=None, progress=False)
        try:
            told = ask(waiting)
        except AttributeError as error:
            told = str(error)
        waiting.close()
        assert api.stats["calls"] == 0
    assert "await is missing" in told
    assert "run = await plan.run(client)" in told


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda plan, client: plan.count_tokens(client).options, "plan = await plan.count_tokens(client)"),
        (lambda plan, client: plan.learn_limits(client).options, "plan = await plan.learn_limits(client)"),
        (
            lambda plan, client: cs.cascade(plan, models=[MODEL, "claude-opus-5-5"]).run(client).results,
            "run = await cascade.run(client)",
        ),
    ],
)
def test_every_other_await_that_is_forgotten_says_so(ask, line):
    """What has to be awaited names itself; nothing is asked of the API."""
    with simulator() as api, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(AttributeError, match=re.escape(line)):
            ask(a_plan(FRAME), api.client())
        assert api.stats["calls"] == 0


def test_what_is_awaited_is_a_coroutine_like_any_other():
    """``asyncio.run``, ``await`` and `wait` take it; so do tasks."""

    async def both(client):
        task = asyncio.create_task(a_plan(FRAME).run(client, ledger=None, progress=False))
        return await task

    with simulator() as api:
        whole = asyncio.run(a_plan(FRAME).run(api.client(), ledger=None, progress=False))
        again = asyncio.run(both(api.client()))
    assert whole.state == again.state == "finished"


def test_a_column_in_the_system_prompt_is_told():
    """Braces there are text; the card of the plan says so, with the name."""
    assert "{stars} is text there" in repr(plan(system="They gave {stars}."))
    assert "is text there" not in repr(plan(system="Answer with {braces}."))
