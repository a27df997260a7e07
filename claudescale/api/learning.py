"""What is learned without a call that costs: an account's limits, and the models, asked of the API."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import polars as pl

from claudescale import clock as clocks
from claudescale import loops
from claudescale.api import catalog
from claudescale.api.answers import read_object, verdict
from claudescale.api.client import Wire
from claudescale.api.connecting import check_client
from claudescale.api.limits import HEADERS, Learned, Limits, read_headers
from claudescale.errors import PlanError, UnknownTier

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.api.answers import Answer, Verdict
    from claudescale.clock import Clock
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run

_PATH = "/v1/organizations/rate_limits"
_TRIES_AFTER_SECONDS = (0.0, 0.5, 2.0)
_MOST_PAGES = 100
UNTOLD = "this key may not read the account's limits: a pilot tells them"


def taken_over(plan: Plan, run: Run) -> Learned | None:
    """Return what is learned of a plan's limits after a run: what the API told it, if it was of this tier."""
    told = Learned(run.limits, run.plan.tier, run.plan.facts.rate_group)
    if not told.stands_for(plan.tier, plan.facts):
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
        body = await _limits_page(wire, clock, f"{_PATH}{page}")
        if body is None:
            return None
        data, following = body.get("data"), body.get("next_page")
        found += data if isinstance(data, list) else []
        if not isinstance(following, str) or not following:
            break
        page = f"?page={quote(following, safe='')}"
    return found


async def _limits_page(wire: Wire, clock: Clock, path: str) -> dict[str, Any] | None:
    """Return one page; None where the API turns this key down, whatever it then says."""
    answer, found = await _asked(wire, clock, path)
    if answer.status == HTTPStatus.OK:
        return read_object(answer.content)
    if found.outcome in {"stop", "failed"} and answer.status is not None:
        return None
    raise _unasked(found, "limits")


async def _page(wire: Wire, clock: Clock, path: str, subject: str) -> dict[str, Any]:
    """Return one page; raise what the API says where it gives none."""
    answer, found = await _asked(wire, clock, path)
    if answer.status != HTTPStatus.OK:
        raise _unasked(found, subject)
    return read_object(answer.content)


async def _asked(wire: Wire, clock: Clock, path: str) -> tuple[Answer, Verdict]:
    """Return the answer to a free call, tried again where that may help."""
    wait = None
    for usual in _TRIES_AFTER_SECONDS:
        await clock.sleep(usual if wait is None else wait)
        answer = await wire.call("get", path)
        found = verdict(answer)
        if answer.status == HTTPStatus.OK or found.outcome in {"stop", "failed"}:
            break
        wait = read_headers(answer.headers).retry_after_seconds
    return answer, found


def _unasked(found: Verdict | None, subject: str) -> PlanError:
    """Return the error that says why the API told nothing."""
    reason = (found and found.message) or "no reason given"
    msg = f"The API cannot be asked for its {subject} ({found and found.error}): {reason}. Nothing was paid."
    return PlanError(msg)


_API = {
    "api_lifecycle": pl.String(),
    "retires_at": pl.Datetime("us", "UTC"),
    "max_input_tokens": pl.Int64(),
    "max_tokens": pl.Int64(),
    "api_efforts": pl.List(pl.String()),
    "thinking_types": pl.List(pl.String()),
    **dict.fromkeys(("batch", "structured_outputs", "image_input", "pdf_input", "citations"), pl.Boolean()),
}
API_MODELS = pl.Schema({**catalog.MODELS_SCHEMA, **_API, "differs": pl.List(pl.String())})
"""Columns of `models` with a client: the catalog's, what the Models API says, and in which of the catalog's
columns the two differ; ``"model"`` where only one of them has it."""

_MODELS_PATH = "/v1/models?limit=1000" + "".join(
    f"&lifecycle[]={each}" for each in ("active", "deprecated", "retired")
)


def models(client: AsyncAnthropic | None = None, *, at: datetime | None = None) -> pl.DataFrame:
    """Return one row per model that can be called, newest of each line first, as `catalog.MODELS_SCHEMA`.

    With a client the Models API is asked, once, and its lifecycle, dates, lengths and capabilities stand
    beside the catalog's, as `API_MODELS`; retired models and those that only the API knows are there too.
    `differs` names the columns in which the two do not agree. Where `price_step_tokens` is set, a prompt
    longer than that costs more for the whole request; a price that genai-prices does not know is null.

    Spends: nothing (one free request with a client).

    Parameters
    ----------
    client : AsyncAnthropic, optional
        From `connect`. It works from a script and from a notebook, without ``await``.
    at : datetime, optional
        The moment the models are to be called; the default is now.

    Raises
    ------
    PlanError
        The Models API cannot be asked: what it says.

    Examples
    --------
    >>> models().select("model", "line").head(1).row(0)
    ('claude-haiku-5-5', 'haiku')
    """
    if client is None:
        return catalog.models(at=at)
    check_client(client)
    return _beside(loops.wait(_listed(client)), at or clocks.now())


async def _listed(client: AsyncAnthropic) -> list[dict[str, Any]]:
    """Return what the Models API says of every model."""
    wire = Wire(client)
    found: list[dict[str, Any]] = []
    try:
        clock, after = (await wire.api()).clock, ""
        for _ in range(_MOST_PAGES):
            body = await _page(wire, clock, f"{_MODELS_PATH}{after}", "models")
            data, last = body.get("data"), body.get("last_id")
            found += [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
            if body.get("has_more") is not True or not isinstance(last, str):
                break
            after = f"&after_id={quote(last, safe='')}"
    finally:
        await wire.close()
    return [each for each in found if isinstance(each.get("id"), str)]


def _beside(listed: list[dict[str, Any]], at: datetime) -> pl.DataFrame:
    """Return the catalog's models with what the API says of each, and those that only one of them has."""
    told = {str(each["id"]): each for each in listed}
    rows = []
    known: list[catalog.Model | catalog.RetiredModel] = [*catalog.MODELS.values(), *catalog.RETIRED.values()]
    for each in known:
        info = told.pop(each.snapshot, None)
        info = told.pop(each.id, info)
        retired = catalog.lifecycle(each, at) == "retired"
        if info is None and retired:
            continue
        rows.append(_row(catalog.models_row(each, at), info, each))
    unknown = [_row({"model": name}, info, None) for name, info in told.items()]
    return pl.DataFrame(
        [{name: row.get(name) for name in API_MODELS} for row in [*rows, *unknown]], API_MODELS
    )


def _row(
    row: dict[str, Any], info: dict[str, Any] | None, model: catalog.Model | catalog.RetiredModel | None
) -> dict[str, Any]:
    if info is None:
        return row | {"differs": ["model"]}
    api = _told(info)
    if model is None:
        return row | api | {"line": info.get("line"), "differs": ["model"]}
    told = {
        "lifecycle": api["api_lifecycle"],
        "retires_on": api["retires_at"] and api["retires_at"].date(),
        "context_tokens": api["max_input_tokens"],
        "max_output_tokens": api["max_tokens"],
        "efforts": api["api_efforts"],
        "thinking_types": api["thinking_types"],
        "batch": api["batch"],
        "structured_outputs": api["structured_outputs"],
    }
    ours = row | {
        name: getattr(model, name, None) for name in ("thinking_types", "batch", "structured_outputs")
    }
    ours["lifecycle"] = (
        "active" if ours["lifecycle"] == "legacy" else ours["lifecycle"]
    )  # no word of the API's
    differs = [name for name, value in told.items() if not _agree(name, ours.get(name), value)]
    return row | api | {"differs": differs}


def _agree(name: str, ours: Any, told: Any) -> bool:
    """Whether the catalog has what the API says; of what the API does not say nothing differs."""
    if told is None:
        return name != "retires_on" or ours is None
    if isinstance(told, list):
        return set(told) == set(ours or ())
    return bool(ours == told)


def _told(info: dict[str, Any]) -> dict[str, Any]:
    """Return what the API says of a model as columns; null where it says nothing that can be read."""
    capabilities = info.get("capabilities")
    can: dict[str, Any] = capabilities if isinstance(capabilities, dict) else {}
    thinking = can.get("thinking")
    flags = ("batch", "structured_outputs", "image_input", "pdf_input", "citations")
    lifecycle = info.get("lifecycle")
    return {
        "api_lifecycle": lifecycle if isinstance(lifecycle, str) else None,
        "retires_at": _moment(info.get("retires_at")),
        **{name: _count(info.get(name)) for name in ("max_input_tokens", "max_tokens")},
        "api_efforts": _supported(can.get("effort")),
        "thinking_types": _supported(thinking.get("types") if isinstance(thinking, dict) else None),
        **{name: _is_supported(can.get(name)) for name in flags},
    }


def _is_supported(told: Any) -> bool | None:
    value = told.get("supported") if isinstance(told, dict) else None
    return value if isinstance(value, bool) else None


def _supported(told: Any) -> list[str] | None:
    """Return the names of what is supported of several."""
    if not isinstance(told, dict):
        return None
    return [name for name, each in told.items() if name != "supported" and _is_supported(each)]


def _count(told: Any) -> int | None:
    return told if isinstance(told, int) and not isinstance(told, bool) else None


def _moment(told: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(told) if isinstance(told, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
