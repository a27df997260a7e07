"""Predictions held against what then happens: a pilot, its plan, and the whole run, in virtual time.

The real engine, pacer and ledger, with the simulator's desk in the place of the network: minutes are exact,
whatever else the machine does.
"""

import inspect
import random
import zlib
from contextlib import closing
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import polars as pl
import virtual
from engine import DeskSend

import claudescale as cs
from claudescale.api import prices
from claudescale.api.client import Api
from claudescale.ledger.store import Store
from claudescale.pacing.pacer import Pacer
from claudescale.planning import estimates
from claudescale.planning.choices import prepare
from claudescale.running.job import Job
from claudescale.running.live import Live

STORY = """the parcel was late box broken again never order refund please driver phone answer twice colour
size small large sent back money waited days week shop friendly quick thanks good great bad price label"""
WORDS = STORY.split()
PILOT_ROWS = 50
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
LONG_SYSTEM = "You judge complaints of a mail-order house. Be exact and be short. " * 90


def words(draws, count):
    """Return sentences of so many words in all."""
    found = []
    while count > 0:
        length = min(count, draws.randrange(4, 14))
        found.append(" ".join(draws.choices(WORDS, k=length)).capitalize() + ".")
        count -= length
    return " ".join(found)


def lengths(shape, rows, draws, median=40):
    """Return how many words each row has."""
    if shape == "constant":
        return [median] * rows
    if shape == "bimodal":
        return [draws.choice((median // 4, median * 4)) for _ in range(rows)]
    counts = [max(2, int(draws.lognormvariate(0, 0.8) * median)) for _ in range(rows)]
    return sorted(counts) if shape == "sorted" else counts


def texts(shape, rows, seed, *, median=40, repeated=0.0):
    """Return a frame of texts whose lengths have a shape; `repeated` is the share of rows that repeat one."""
    draws = random.Random(seed)
    distinct = max(1, round(rows * (1 - repeated)))
    found = [
        f"{number}: {words(draws, count)}"
        for number, count in enumerate(lengths(shape, distinct, draws, median))
    ]
    again = [draws.choice(found) for _ in range(rows - distinct)]
    return pl.DataFrame({"text": found + again})


def table(requests, input_tokens, output_tokens):
    """Limits by hand."""
    return cs.Limits(
        requests_per_minute=requests,
        input_tokens_per_minute=input_tokens,
        output_tokens_per_minute=output_tokens,
    )


WIDE = table(60_000, 1e9, 1e9)
BINDS = {
    "requests": table(300, 1e8, 1e8),
    "input_tokens": table(60_000, 30_000, 1e8),
    "output_tokens": table(60_000, 1e8, 12_000),
}


class Workload(NamedTuple):
    """A plan and the API it meets."""

    kind: str
    plan: cs.Plan
    api: dict[str, Any]


def _echo(body, _seed):
    """Answer with the whole prompt: replies as long as texts, as of a translation."""
    return body["messages"][-1]["content"]


NAME, TRANSLATE = "Name the complaint: {text}", "Translate: {text}"
TYPED = {"who": pl.String, "stars": pl.Int64}
_LONG = {"prompt": TRANSLATE, "max_tokens": 2_000, "api": {"written": _echo}}
KINDS = {
    # Requests bind.
    "requests, one length": {"shape": "constant"},
    "requests, Sonnet": {"model": SONNET},
    "requests, enum, sorted": {"shape": "sorted", "returns": pl.Enum(["yes", "no", "other"])},
    "requests, repeated rows": {"shape": "bimodal", "repeated": 0.3},
    "requests, tier start": {"tier": "start"},
    "requests, refusals and cuts": {"api": {"faults": {"refusal": 0.05, "cut": 0.1}}},
    # Input tokens bind.
    "input, Opus, two lengths": {"tier": BINDS["input_tokens"], "shape": "bimodal", "model": OPUS},
    "input, typed": {"tier": BINDS["input_tokens"], "returns": TYPED},
    "input, cached system": {"tier": BINDS["input_tokens"], "system": LONG_SYSTEM, "cache": True},
    "input, limits by the second": {"tier": BINDS["input_tokens"], "api": {"bucket_seconds": 1.0}},
    # Output tokens bind.
    "output": {"tier": BINDS["output_tokens"]},
    "output, translated": {"tier": BINDS["output_tokens"], **_LONG},
    "output, Sonnet thinks": {"tier": BINDS["output_tokens"], "model": SONNET, "effort": "medium"},
    "output, cut at 40": {"tier": BINDS["output_tokens"], "max_tokens": 40},
    # Latency binds.
    "8 at once": {"tier": WIDE, "concurrency": 8},
    "8 at once, translated": {"tier": WIDE, "concurrency": 8, **_LONG},
    "latency, Opus": {"tier": WIDE, "model": OPUS},
    # The API fails.
    "overloaded, 5%": {"api": {"faults": {529: 0.05}}},
    "overloaded, 5%, 8 at once": {"tier": WIDE, "concurrency": 8, "api": {"faults": {529: 0.05}}},
    "answers lost, 3%": {"tier": BINDS["output_tokens"], "api": {"faults": {"drop_after": 0.03, 500: 0.02}}},
    "ramp limit, 1%": {"api": {"faults": {429: 0.01}}},
}
"""What a plan and the API it meets are, where they are not as `workload` has them."""


def workload(kind, rows, seed):
    """Return a workload of so many rows."""
    given = {"prompt": NAME, "model": HAIKU, "tier": BINDS["requests"], "max_tokens": 600, **KINDS[kind]}
    frame = texts(given.pop("shape", "lognormal"), rows, seed, repeated=given.pop("repeated", 0.0))
    api = {"seed": seed, **given.pop("api", {})}
    return Workload(kind, cs.plan(frame, given.pop("prompt"), **given), api)


@lru_cache(maxsize=1)
def docs():
    """Return the rows of the notebooks: the docstrings of Polars."""
    kinds = [pl.DataFrame, pl.LazyFrame, pl.Series, pl.Expr, pl]
    rows = [
        (kind.__name__, name, inspect.getdoc(getattr(kind, name)))
        for kind in kinds
        for name in getattr(kind, "__all__", dir(kind))
        if name[0] != "_"
    ]
    return pl.DataFrame(rows, schema=["owner", "name", "doc"], orient="row").filter(pl.col("doc") != "")


def _functions():
    """Return the rows of notebook 6: the docstrings of Polars' namespaces."""
    spaces = {"string": "str", "datetime": "dt", "list": "list", "array": "arr", "binary": "bin"}
    rows = [
        (kind, inspect.getdoc(getattr(getattr(owner, space), name)))
        for owner in (pl.col("any"), pl.Series())
        for kind, space in spaces.items()
        for name in dir(getattr(owner, space))
        if name[0] != "_"
    ]
    return pl.DataFrame(rows, schema=["truth", "doc"], orient="row").unique("doc", maintain_order=True)


def _long_tailed(body, seed):
    """Answer most briefly and few at great length: lognormal, one of a hundred ten times its median."""
    text = body["messages"][-1]["content"]
    draws = random.Random(zlib.crc32(text.encode(), seed))
    return words(draws, int(40 * draws.lognormvariate(0, 1.0)))


def _notebooks():
    """Yield name, frame, what the plan is asked, and what API it meets."""
    once = docs().unique("doc", maintain_order=True)
    parts = docs().group_by("owner", maintain_order=True).agg(pl.col("name").str.join(", "))
    guide = "Say which part of Polars a text is from. The parts and their methods:\n\n"
    guide += "\n".join(": ".join(part) for part in parts.rows())
    level = pl.Enum(["first day", "every day", "expert"])
    kinds = pl.Enum(["DataFrame", "LazyFrame", "Series", "Expr", "polars"])
    which = "Which part of Polars is this from? Say in one sentence what it does.\n\n{doc}"
    whom = "For whom is this? Say in one sentence what it does.\n\n{doc}"
    sort = "What kind of data is this function for? Are you unsure?\n\n{doc}"
    sorts = {"kind": pl.Enum(["string", "datetime", "list", "array", "binary"]), "unsure": pl.Boolean}
    editions = once.select("doc").join(pl.DataFrame({"edition": range(20)}), how="cross")
    edition = "For whom is this? Give the reason in one sentence.\n\nEdition {edition}\n{doc}"
    readers = once.select("doc").join(pl.DataFrame({"reader": ["a beginner", "an expert"]}), how="cross")
    explain = "Explain this to {reader} in one sentence.\n\n{doc}"
    longest = "Judge by this guide.\n\n" + "\n\n".join(
        once.sort(pl.col("doc").str.len_chars(), descending=True)["doc"].head(4)
    )
    level_of = {"prompt": "For whom is this?\n\n{doc}", "returns": level}
    one_sentence = "Say in one sentence what this does.\n\n{doc}"
    yield (
        "1 guess and summary",
        docs(),
        {"prompt": which, "returns": {"guess": kinds, "summary": pl.String}},
        {},
    )
    yield (
        "2 twenty editions",
        editions,
        {"prompt": edition, "returns": {"level": level, "reason": pl.String}},
        {},
    )
    yield "3 by batch", docs(), {"prompt": whom, "returns": {"level": level, "summary": pl.String}}, {}
    cached = {"prompt": "{doc}", "returns": {"part": kinds}, "system": guide, "cache": True}
    yield "3 sorting, cached", docs().sample(300, seed=5), cached, {}
    index = {"prompt": "One word for an index: {doc}", "returns": {"word": pl.String}}
    yield "3 index", docs(), index, {}
    yield "4 level", once, level_of, {}
    yield "4 level, tier 1", once, level_of | {"tier": 1}, {}
    yield "4 long guide, cached", once, level_of | {"system": longest, "cache": True}, {}
    yield "5 explain", readers, {"prompt": explain, "max_tokens": 120}, {"faults": {500: 0.01}}
    yield "6 kind, Haiku", _functions(), {"prompt": sort, "returns": sorts}, {}
    yield "6 kind, Opus", _functions(), {"prompt": sort, "returns": sorts, "model": OPUS}, {}
    yield "7 one sentence", docs(), {"prompt": one_sentence}, {"faults": {500: 0.02, "drop_after": 0.01}}
    part = {"prompt": "Which part of Polars is this from?\n\n{doc}", "returns": {"guess": kinds}}
    yield "8 guess, build", docs(), part | {"tier": "build"}, {}
    tail = {"prompt": "Write about: {doc}", "max_tokens": 8_000}
    yield "long tail", docs(), tail, {"written": _long_tailed}
    yield (
        "long tail, output binds",
        docs(),
        tail | {"tier": BINDS["output_tokens"]},
        {"written": _long_tailed},
    )


@lru_cache(maxsize=1)
def notebooks():
    """Return the plan of each notebook and what API it meets, and plans with a long tail of replies."""
    return {
        name: Workload(name, cs.plan(frame, given.pop("prompt"), **({"model": HAIKU} | given)), api)
        for name, frame, given, api in (
            (name, frame, dict(given), {"bucket_seconds": 1.0} | api)
            for name, frame, given, api in _notebooks()
        )
    }


class Past(NamedTuple):
    """What a run leaves behind for `Plan.calibrate`, and what it took."""

    plan: cs.Plan
    keys: pl.Series
    sizes: pl.DataFrame
    replies: pl.DataFrame
    attempts: pl.DataFrame
    limits: cs.Limits
    minutes: float

    def pilot(self, rows, seed):
        """Return what a pilot of some of the rows would have left behind: nothing is sent for it."""
        keys = self.keys.sample(min(rows, self.keys.len()), seed=seed).drop_nulls().unique().implode()
        mine = pl.col("key").is_in(keys)
        frames = (frame.filter(mine) for frame in (self.sizes, self.replies, self.attempts))
        return Past(self.plan, self.keys, *frames, self.limits, self.minutes)

    @property
    def dollars(self):
        """What was paid."""
        return float(self.attempts["dollars"].sum())

    @property
    def batch_dollars(self):
        """What the same replies cost by batch, without a cache."""
        price = prices.price(self.plan.facts.id, mode="batch")
        each = {name: pl.col(name) for name in prices.COLUMNS.values()}
        return self.replies.select(prices.dollars(price, **each).sum()).item()


def ran(plan, **api):
    """Return what a live run of a plan leaves behind."""
    if written := api.pop("written", None):
        api["written"] = lambda body: written(body, api.get("seed", 0))
    limits = dict(zip(("requests", "input_tokens", "output_tokens"), plan.limits.per_minute, strict=True))

    async def go():
        clock = virtual.clock()
        send = DeskSend(clock, **{f"{name}_per_minute": limit for name, limit in limits.items()}, **api)
        job = Job(plan, None, None)
        job.work = work = prepare(plan, "simulator")
        job.clock, job.wire = clock, SimpleNamespace(send=send)
        job.api = Api(name="simulator", simulated=True, clock=clock)
        job.meter.begin(work.keys)
        with closing(Store(None)) as ledger:
            job.ledger = ledger
            pacer = Pacer(
                plan.limits,
                clock=clock,
                share=plan.share,
                concurrency=plan.concurrency,
                output_tokens=min(plan.expected.output_tokens, float(plan.max_tokens)),
            )
            live = Live(job, pacer, warm=plan.cache and work.requests.height > 1)
            started = clock.seconds()

            async def rows():
                for row in job.rendered(work.requests):
                    yield row

            await live.answer(rows())
            minutes = (clock.seconds() - started) / 60
            sizes = work.requests.select("key", "estimated_tokens")
            found = ledger.replies(sizes["key"]), ledger.attempts(run=ledger.run)
            return Past(plan, work.keys, sizes, *found, live.pacer.limits, minutes)

    return virtual.run(go())


def resampled(workload, worlds, pilots, rows, seed=0):
    """Return, for some pilots of each of several sizes, what they predict as a part of what their run took.

    Each world is a run of all rows with replies and latencies of its own; a pilot is some rows of it.
    """
    wholes = [ran(workload.plan, **({"seed": seed + world} | workload.api)) for world in range(worlds)]
    return [
        pl.DataFrame(
            [
                foretold(whole, whole.pilot(count, world * 10_000 + number))
                for world, whole in enumerate(wholes)
                for number in range(pilots)
            ]
        )
        for count in rows
    ]


def foretold(whole, pilot):
    """Return what a plan says after a pilot, as parts of what the whole run took."""
    live = estimates.option(whole.plan.calibrate(pilot).options, "live")
    figures = {"dollars": whole.dollars, "minutes": whole.minutes}
    return {
        name: live[name] / figures[name.removesuffix("_p90")]
        for name in ("dollars", "dollars_p90", "minutes", "minutes_p90")
    }


def held(workload, pilots=1, seed=0):
    """Return, of each of some pilots, what was predicted after it beside what the whole run then took."""
    plan, api = workload.plan, workload.api
    whole = ran(plan, **api)
    rows = []
    for number in range(pilots):
        pilot = ran(plan.sample(PILOT_ROWS, seed=seed * 100 + number), **api)
        told = plan.calibrate(pilot)
        live, batch = (estimates.option(told.options, mode) for mode in ("live", "batch"))
        rows.append(
            {
                "kind": workload.kind,
                "binding": live["binding"],
                "rows": plan.totals.requests,
                "minutes": live["minutes"] / whole.minutes,
                "minutes_p90": live["minutes_p90"] / whole.minutes,
                "dollars": live["dollars"] / whole.dollars,
                "dollars_p90": live["dollars_p90"] / whole.dollars,
                "batch": batch["dollars"] / whole.batch_dollars if not plan.cache else None,
                "whole_minutes": whole.minutes,
                "whole_dollars": whole.dollars,
                "attempts": whole.attempts.height,
            }
        )
    return pl.DataFrame(rows)
