"""Numbers as data frames give them are taken; arguments of a wrong kind are told what to type."""

from __future__ import annotations

import datetime as dt
import functools
import math
import numbers
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest

import claudescale as cs

FRAME = pl.DataFrame({"text": ["late", "works"]})


@numbers.Integral.register
@functools.total_ordering
class Int64:
    """Stands for NumPy's integer, which need not be installed: an Integral that is no int."""

    def __index__(self):
        return 5

    __int__ = __index__

    def __float__(self):
        return 5.0

    def __eq__(self, other):
        return other == 5

    def __lt__(self, other):
        return other > 5

    def __hash__(self):
        return hash(5)


def plan(frame=FRAME, prompt="Say {text}", **options):
    """Return a small plan."""
    return cs.plan(frame, prompt, **{"model": "claude-haiku-5-5", **options})


@pytest.mark.parametrize("value", [Int64(), Decimal(5), Fraction(10, 2), 5.0])
@pytest.mark.parametrize("name", ["max_tokens", "concurrency", "budget", "deadline"])
def test_numbers_of_any_kind_are_plain_ones(name, value):
    """A number of another library gives the very plan that Python's own gives, also by replace."""
    for made in (plan(**{name: value}), plan().replace(**{name: value})):
        found = getattr(made, name)
        assert (found, type(found) in {int, float}) == (5, True)
        assert type(made.max_tokens) is int
        assert made.requests.equals(plan(**{name: 5}).requests)
        assert made.options.equals(plan(**{name: 5}).options)


def test_numpys_own():
    """NumPy's scalars are numbers, its durations are durations, its truths are no numbers."""
    numpy = pytest.importorskip("numpy")
    assert type(plan(max_tokens=numpy.int64(5)).max_tokens) is int
    assert type(plan(share=numpy.float32(0.5)).share) is float
    assert plan(deadline=numpy.timedelta64(2, "h")).deadline == dt.timedelta(hours=2)
    for value in (numpy.bool_(1), numpy.array([1, 2]), numpy.float64("nan")):
        with pytest.raises(cs.PlanError, match="budget="):
            plan(budget=value)


def test_rows_are_counted_by_numbers_of_any_kind():
    """Head and sample take such numbers as well, and a whole float."""
    assert plan().head(Fraction(1)).totals.rows == plan().sample(Decimal(1), seed=Int64()).totals.rows == 1
    assert plan().sample(2.0).totals.rows == 2


def test_a_simulators_speed_may_be_a_decimal():
    """The speed is a plain number afterwards."""
    with cs.Simulator(speed=Decimal(60)) as simulator:
        assert type(simulator.clock.speed) is float


WRONG = {
    "max_tokens": ["5", True, 5.5, None, math.nan, -1, Decimal("NaN")],
    "concurrency": [2.5, "3", True, math.inf, 0],
    "budget": [True, math.inf, -1, [5], 10**400, Decimal("sNaN"), 5j],
    "deadline": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), math.nan, -3, True, dt.timedelta(-1)],
    "share": ["1", True, None, math.nan, 0],
    "mode": ["Batch", None, ["live"]],
    "model": [None, 5, ["claude-haiku-5-5"]],
    "tier": [None, True, 2.5, [1]],
    "system": [5, ["a"], b"x"],
    "cache": ["yes", None, 3],
    "returns": [5, "str", [], {}, object],
    "effort": [5, ["low"]],
    "thinking": ["on", True],
    "params": [[1], "x", {5: 1}],
    "pay_twice": ["yes"],
    "prompt": [None, 5, b"x {text}"],
    "frame": [None, [1], "rows.csv"],
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_a_wrong_kind_are_told_what_to_type(name):
    """What cannot be a parameter is a PlanError of ours, never a raw error, and nothing is sent."""
    for value in WRONG[name]:
        with pytest.raises(cs.PlanError):
            plan(**{name: value})


@pytest.mark.parametrize("rows", ["3", -1, None, 2.5, True])
def test_no_number_of_rows(rows):
    """Head and sample say what a number of rows is."""
    for ask in (plan().head, plan().sample):
        with pytest.raises(cs.PlanError, match="how many rows"):
            ask(rows)


def test_a_ledger_is_a_path():
    """A ledger that is no path is told so before anything is sent."""
    with cs.Simulator() as simulator, pytest.raises(cs.PlanError, match="path of a file"):
        plan().start(simulator.client(), ledger=5)
