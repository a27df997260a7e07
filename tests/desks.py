"""A simulated API without a server: a desk in virtual time, and batches processed at once."""

import json
from dataclasses import fields, replace

from claudescale.simulator import Admission, Batches, Desk, Options

NOW = 1_795_000_000.0  # November 2026
HEADERS = {"authorization": "Bearer simulated", "anthropic-version": "2026-10-21"}


def desk(tier=(1e9, 1e12, 1e12), *, now=NOW, **options):
    """Return a desk, by default of an account without limits."""
    own = {field.name: options.pop(field.name) for field in fields(Options) if field.name in options}
    return Desk(Options(tier=tier, limits=options, **own), now)


def admitted(at, body, now=NOW, headers=HEADERS):
    """Return the desk's decision about a call."""
    return at.admit(now, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)


def answered(at, body, now=NOW, headers=HEADERS):
    """Admit and finish one call; return status, headers and the parsed body."""
    decision = admitted(at, body, now, headers)
    answer = at.finish(decision.done_at, decision) if isinstance(decision, Admission) else decision
    return answer.status, answer.headers, json.loads(answer.body)


def message_of(body, at=None, now=NOW):
    """Return the message that answers a valid request."""
    status, _, message = answered(at or desk(), body, now)
    assert status == 200, message
    return message


def text_of(message):
    """Return the text of a message."""
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def batches_of(at=None, seconds=600):
    """Return the batches of a desk."""
    at = at or desk()
    at.options = replace(at.options, batch_seconds=seconds)
    return Batches(at, NOW)


def made(batches, body, now=NOW, betas=""):
    """Return a new batch."""
    headers = {**HEADERS, "anthropic-beta": betas}
    return batches.find(batches.create(now, json.dumps(body).encode(), headers)["id"])


def worked(batches, body, now=NOW, seconds=600, betas=""):
    """Create a batch, process it, and return the result of each row by its id."""
    batch = made(batches, body, now, betas)
    list(batches.work(now + seconds))
    lines = map(json.loads, batches.results(now + seconds, batch)[0])
    return {line["custom_id"]: line["result"] for line in lines}


def kinds(results):
    """Return the kind of each result or of its error."""
    return {
        name: result["error"]["error"]["type"] if result["type"] == "errored" else result["type"]
        for name, result in results.items()
    }
