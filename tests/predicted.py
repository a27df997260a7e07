"""Predictions compared with outcomes: a plan after a pilot, and the whole run, in virtual time.

The real engine, pacer and ledger run with the simulator's desk in place of the network. Minutes are exact
even on a busy machine.
"""

import itertools
import random
import zlib
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

import paced
import polars as pl
import virtual
from engine import DeskSend

import claudescale as cs
from claudescale import lessons
from claudescale.api.client import Api
from claudescale.ledger.store import Store
from claudescale.pacing.pacer import Pacer
from claudescale.planning import choices, estimates
from claudescale.running.job import Job
from claudescale.running.live import Live

STORY = """the parcel was late box broken again never order refund please driver phone answer twice colour
size small large sent back money waited days week shop friendly quick thanks good great bad price label"""
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"


def words(draws, count):
    """Return that many words."""
    return " ".join(draws.choices(STORY.split(), k=count))


def texts(rows, seed=1):
    """Return a frame of texts whose lengths are lognormal."""
    draws = random.Random(seed)
    counts = [max(2, int(draws.lognormvariate(0, 0.8) * 40)) for _ in range(rows)]
    return pl.DataFrame({"text": [f"{n}: {words(draws, count)}" for n, count in enumerate(counts)]})


def limits(requests=60_000, input_tokens=1e8, output_tokens=1e8):
    """Return limits of which at most one binds."""
    return paced.table(requests, input_tokens, output_tokens)


def long_tailed(body, seed):
    """Answer briefly, and rarely at length: lognormal, one in a hundred ten times the median."""
    draws = random.Random(zlib.crc32(body["messages"][-1]["content"].encode(), seed))
    return words(draws, int(40 * draws.lognormvariate(0, 1.0)))


SECONDS = {"bucket_seconds": 1.0}
INPUT, OUTPUT = limits(input_tokens=30_000), limits(output_tokens=12_000)
CASES = {
    "long tail, output binds": (
        {"tier": OUTPUT, "prompt": "Write about: {doc}", "max_tokens": 8_000},
        SECONDS | {"replies": long_tailed},
    ),
    "requests bind, refusals and cuts": ({"tier": limits(300)}, {"faults": {"refusal": 0.05, "cut": 0.1}}),
    "input binds": ({"tier": INPUT, "model": OPUS}, {}),
    "input binds, cached": ({"tier": INPUT, "system": "Be exact and be short. " * 250, "cache": True}, {}),
}
"""What a plan is besides the ordinary, and the API that it meets; the benchmark has thirteen more."""


def case(name, rows=None, seed=1):
    """Return a plan with that many rows and the API it meets."""
    options, api = CASES[name]
    given = {"prompt": "Name the complaint: {text}", "model": HAIKU, "max_tokens": 600} | options
    docs = lessons.docstrings().rename({"text": "doc"})
    plan = cs.plan(docs if "{doc}" in given["prompt"] else texts(rows or 600, seed), **given)
    return plan if rows is None else plan.sample(rows, seed), {"seed": seed} | api


class Past(NamedTuple):
    """The records of a run for `Plan.calibrate`, and its totals."""

    plan: cs.Plan
    work: Any
    replied: pl.DataFrame
    attempts: pl.DataFrame
    limits: cs.Limits
    minutes: float

    @property
    def job(self):
        """The facts that the engine of a run knows."""
        return SimpleNamespace(work=self.work, replies=lambda: self.replied)

    @property
    def dollars(self):
        """The dollars paid."""
        return float(self.attempts["dollars"].sum())

    def pilot(self, rows, seed):
        """Return the records that a pilot of some of the rows would have left; nothing is sent for it."""
        keys = self.work.keys.sample(min(rows, self.work.keys.len()), seed=seed)
        is_drawn = pl.col("key").is_in(keys.implode())
        return self._replace(replied=self.replied.filter(is_drawn), attempts=self.attempts.filter(is_drawn))


def ran(plan, **api: Any):
    """Return the records of a live run of a plan."""
    if written := api.pop("replies", None):
        api["replies"] = lambda body: written(body, api.get("seed", 0))
    compiled = plan.compiled

    async def go():
        clock = virtual.clock()
        job = Job(plan, SimpleNamespace(middleware=()), None)
        job._work = work = compiled.work("simulator")
        job.api, job.clock = Api(name="simulator", simulated=True, clock=clock), clock
        job.wire = SimpleNamespace(send=DeskSend(clock, tier=compiled.limits.per_minute, **api))
        job.meter.begin(work.keys)
        with closing(Store(None)) as ledger:
            job.ledger = ledger
            most = min(compiled.expected.output_tokens, float(plan.max_tokens))
            given = {"share": plan.share, "concurrency": plan.concurrency, "output_tokens": most}
            pacer = Pacer(compiled.limits, clock=clock, **given)
            live = Live(job, pacer, warm=plan.cache and work.requests.height > 1)
            started = clock.seconds()

            async def rows():
                for row in job.rendered(work.requests):
                    yield row

            await live.answer(rows())
            minutes = (clock.seconds() - started) / 60
            records = ledger.replies(work.requests["key"]), ledger.attempts(run=ledger.run)
            return Past(plan, work, *records, live.pacer.limits, minutes)

    return virtual.run(go())


def resampled(name, *, worlds, pilots, sizes=(20, 50), rows=None):
    """Return the predictions of pilots with that many rows, as fractions of their run's figures.

    Each world is a run of all rows with its own replies and latencies; a pilot is some of its rows.
    """
    predictions = []
    for world in range(worlds):
        plan, api = case(name, rows, 1 + world)
        whole = ran(plan, **api)
        took = {"dollars": whole.dollars, "minutes": whole.minutes}
        for size, number in itertools.product(sizes, range(pilots)):
            known = plan.calibrate(whole.pilot(size, world * 10_000 + number))
            live = estimates.option(known.options, "live")
            figures = {name: live[name] / took[name.removesuffix("_p90")] for name in choices.FIGURES}
            predictions.append({"pilot_rows": size} | figures)
    return pl.DataFrame(predictions)


def kept(predictions):
    """Return for each pilot size how often the 90th percentiles hold, and how far off the figures are."""
    return predictions.group_by("pilot_rows", maintain_order=True).agg(
        column.alias(f"{figure}_{what}")
        for figure in ("dollars", "minutes")
        for what, column in {
            "covered": (pl.col(f"{figure}_p90") >= 1).mean(),
            "median": pl.col(figure).median() - 1,
            "wide": (pl.col(f"{figure}_p90") / pl.col(figure)).median() - 1,
        }.items()
    )
