"""Requests to a simulated API, live and in a batch."""

HAIKU, OLD, OPUS = "claude-haiku-5-5", "claude-haiku-4-5", "claude-opus-5-5"
EPHEMERAL = {"type": "ephemeral"}
LONG = "The parcel arrived late and the box was broken. " * 60
SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}
TOOL = {"name": "rate", "input_schema": SENTIMENT}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def request(text="The parcel arrived late. The box was broken.", **changes):
    """Return a small valid request with changes."""
    return {"model": HAIKU, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **changes}


def said(*turns, **changes):
    """Return a request of several turns, alternately of the user and the assistant."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return request(messages=messages, **changes)


def form(schema=SENTIMENT):
    """Return the `output_config` that requests a schema."""
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def cached(row, prefix=LONG, ttl="5m", **changes):
    """Return a request with a prefix marked for the prompt cache."""
    block = {"type": "text", "text": prefix, "cache_control": {**EPHEMERAL, "ttl": ttl}}
    return request(row, system=[block], **changes)


def rows_of(*bodies, name=""):
    """Return the body of a batch of these requests."""
    return {"requests": [{"custom_id": f"{name}{n}", "params": body} for n, body in enumerate(bodies)]}


def batch_of(rows, **changes):
    """Return the body of a batch with that many rows."""
    return rows_of(*(request(f"row {n}", **changes) for n in range(rows)), name="row-")
