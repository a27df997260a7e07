"""An account's limits, learned without a call that costs: asked of the API, or taken from a run."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from claudescale.errors import PlanError, UnknownTier
from claudescale.limits import HEADERS, Learned, Limits, read_headers
from claudescale.verdicts import read_object, verdict
from claudescale.wire import Wire

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.clock import Clock
    from claudescale.plans import Plan
    from claudescale.runs import Run

_PATH = "/v1/organizations/rate_limits"
_TRIES_AFTER_SECONDS = (0.0, 0.5, 2.0)
_MOST_PAGES = 100
UNTOLD = "this key may not read the account's limits: a pilot tells them"


def taken_over(plan: Plan, run: Run) -> Learned | None:
    """Return what is learned of a plan's limits after a run: what the API told it, if it was of this tier."""
    told = Learned(run.limits, run.plan.tier, run.plan.facts.rate_group)
    if not told.stands_for(plan.tier, plan.facts.id):
        return plan.learned
    return told if run.limits is not run.plan.limits else plan.learned or run.plan.learned


async def asked(plan: Plan, client: AsyncAnthropic) -> Learned:
    """Return the limits of a plan as the rate-limit API tells them, else as they are known.

    Spends: nothing.

    Raises
    ------
    PlanError
        The API cannot be reached, or fails.
    """
    wire = Wire(client)
    try:
        items = await _entries(wire, (await wire.api()).clock)
    finally:
        await wire.close()
    return Learned(known_better(plan, items), plan.tier, plan.facts.rate_group)


def known_better(plan: Plan, items: list[Any] | None) -> Limits:
    """Return what the entries tell; what they leave out, and all where there are none, as it is known."""
    known = plan.limits
    if items is not None:
        try:
            told = Limits.read(items, plan.facts.id)
        except UnknownTier:  # the organization has no access to this model, or the answer is of another form
            return _untold(known, f"the rate-limit API tells nothing of {plan.facts.id}: a pilot does")
        names = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
        return replace(told, **{name: getattr(told, name) or getattr(known, name) for name in names})
    return _untold(known, UNTOLD)


def _untold(known: Limits, why: str) -> Limits:
    """Return limits that say why they are no better known; those of the API's own answers are as good."""
    return known if known.source == HEADERS else replace(known, note=why)


async def _entries(wire: Wire, clock: Clock) -> list[Any] | None:
    """Return all entries of the API; None where the key may not read them."""
    found: list[Any] = []
    page = ""
    for _ in range(_MOST_PAGES):
        body = await _page(wire, clock, f"{_PATH}{page}")
        if body is None:
            return None
        data, following = body.get("data"), body.get("next_page")
        found += data if isinstance(data, list) else []
        if not isinstance(following, str) or not following:
            break
        page = f"?page={quote(following, safe='')}"
    return found


async def _page(wire: Wire, clock: Clock, path: str) -> dict[str, Any] | None:
    """Return one page; None where the API turns this key down, whatever it then says."""
    wait = found = None
    for usual in _TRIES_AFTER_SECONDS:
        await clock.sleep(usual if wait is None else wait)
        answer = await wire.call("get", path)
        if answer.status == HTTPStatus.OK:
            return read_object(answer.content)
        found = verdict(answer)
        if found.outcome in {"stop", "failed"}:
            if answer.status is not None:
                return None
            break
        wait = read_headers(answer.headers).retry_after_seconds
    reason = (found and found.message) or "no reason given"
    msg = f"The API cannot be asked for its limits ({found and found.error}): {reason}. Nothing was paid."
    raise PlanError(msg)
