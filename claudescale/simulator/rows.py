"""What becomes of one row of a batch: a message, or why there is none."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.checks import Problem, found_model, invalid, problem
from claudescale.simulator.faults import ROW
from claudescale.simulator.tokens import measure

if TYPE_CHECKING:
    from claudescale.simulator.desk import Desk
    from claudescale.simulator.tokens import Measured

ROWS = tuple(ROW)
REFUSED = ("fallbacks", "thread")  # beside what the catalog lists
FEWEST_HITS, MOST_HITS = 0.30, 0.98  # of the prompt cache in batches: best effort, as the API's pages say
SECONDS_TO_BEGIN = 1.0  # of a reply: only then others can read what it wrote to the cache


def mark(batch: bytes, index: int) -> bytes:
    """Return what a row's own luck is drawn from: the mark of its batch, and its place in it."""
    return blake2b(batch + f" {index}".encode(), digest_size=16).digest()


def hit_chance(luck: float, measured: Measured) -> float:
    """Return how likely a row finds a prefix that the cache holds: better with an hour than 5 minutes."""
    hour = any(block.ttl == "1h" for block in measured.blocks)
    return FEWEST_HITS + (MOST_HITS - FEWEST_HITS) * (luck + hour) / 2


def outcome(  # noqa: PLR0917  # what decides it
    desk: Desk,
    params: dict[str, Any],
    version: str,
    moment: float,
    own: bytes,
    luck: float,
    betas: str = "",
) -> dict[str, Any]:
    """Return the ``result`` of a row that is worked off at `moment`, and bill it if it succeeded.

    Parameters
    ----------
    version : str
        The API version that the batch was created with.
    own : bytes
        `mark` of the row.
    luck : float
        From 0 to 1: how well the batch does with the prompt cache.
    betas : str
        The ``anthropic-beta`` header that the batch was created with.
    """
    model = found_model(params, moment)
    wrong = model if isinstance(model, Problem) else _wrong(params, model, version, betas)
    if wrong is not None or isinstance(model, Problem):
        return _errored(desk, wrong or invalid("model: Field required"))
    key = replies.digest(desk.seed, params)
    struck = desk.faults.strikes(ROWS, key, desk.faults.attempt(key), desk.elapsed(moment))
    if struck is not None:
        desk.account.faults[struck] += 1
        error = ROW[struck]
        return {"type": "expired"} if error is None else _errored(desk, Problem(500, *error))
    measured = measure(params, model)
    if measured.input_tokens > model.context_tokens:
        message = f"prompt is too long: {measured.input_tokens} tokens > {model.context_tokens} maximum"
        return _errored(desk, invalid(message))
    least = model.cache_minimum_tokens
    found = bool(measured.blocks) and replies.draws(own, "hit").random() < hit_chance(luck, measured)
    shares = desk.cache.shares(moment, measured, least, found=found)
    desk.cache.keep(moment, moment + SECONDS_TO_BEGIN, measured, least)
    reply = desk.reply(key, params, model, desk.elapsed(moment))
    shares = replace(shares, input_tokens=shares.input_tokens + reply.found_tokens)
    desk.account.bill(moment, model.id, "batch", key, shares, reply)
    used = wire.usage(shares, reply, "batch")
    name = desk.next_id("msg")
    diagnostics = desk.diagnosed(params, name, shares)
    return {"type": "succeeded", "message": wire.message(name, model, reply, used, diagnostics)}


def _wrong(params: dict[str, Any], model: catalog.Model, version: str, betas: str) -> Problem | None:
    for name in {*catalog.BATCH.refused_parameters, *REFUSED}:
        if params.get(name):
            return invalid(f"{name}: not supported in message batches")
    if params.get("max_tokens") == 0:
        return invalid("max_tokens: 0 is not supported in message batches")
    if not model.batch:
        return invalid(f"model: {model.id} is not supported in message batches")
    return problem(params, model, version, betas=betas)


def _errored(desk: Desk, found: Problem) -> dict[str, Any]:
    body = wire.error_body(found.type, found.message, desk.next_id("req"), found.details)
    return {"type": "errored", "error": body}
