"""The body of one row of each kind, as the SDK's own types accept it: live and in a batch."""

import json
from collections.abc import Iterable

import polars as pl
import pytest
from anthropic.types.messages.batch_create_params import Request
from pydantic import BaseModel, ConfigDict, TypeAdapter
from running import a_plan, finished, simulator

import claudescale as cs

REQUEST = TypeAdapter(Request)  # for a batch; its params are a live call's
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x1c\0\0\0\x1c\x08\x02"
FRAME = pl.DataFrame(
    {"text": ["late again"], "language": ["German"], "photo": [PNG], "file": [b"%PDF-1.7 << /Type /Page >>"]}
    | {"url": ["https://example.org/a"], "id": ["file_011"]}
)


class Mood(BaseModel):
    """What a customer feels."""

    model_config = ConfigDict(extra="forbid")
    word: str
    sure: float | None


TEXT, LONG = "Name it: {text}", "You are brief. " * 400
TOOLS = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]
# fmt: off
KINDS = {
    "text": {}, "system": {"system": LONG, "cache": True}, "samples": {"samples": 3},
    "image": {"prompt": [cs.image("photo"), TEXT]}, "image behind a URL": {"prompt": [cs.image("url"), TEXT]},
    "image by its id": {"prompt": [cs.image("id", kind="file_id"), TEXT]},
    "system by row": {"system": "Answer in {language}."},
    "PDF": {"prompt": [cs.pdf("file"), TEXT]}, "PDF behind a URL": {"prompt": [cs.pdf("url"), TEXT]},
    "PDF by its id": {"prompt": [cs.pdf("id", kind="file_id"), TEXT]},
    "several": {"prompt": [cs.image("photo"), cs.pdf("file"), TEXT], "examples": [("Hi", "there")]},
    "examples": {"examples": [("works", "praise"), ("late", "complaint")], "system": "Be brief."},
    "examples cached": {"examples": [("works", "praise")], "system": "Be brief.", "cache": True},
    "typed examples": {"examples": [("works", Mood(word="glad", sure=1))], "returns": Mood},
    "thinking": {"thinking": {"type": "adaptive"}, "effort": "high", "returns": bool},
    "params": {"params": {"stop_sequences": ["END"], "metadata": {"user_id": "u"}, "tools": TOOLS}},
    "dict": {"returns": {"label": pl.Enum(["good", "bad"]), "sure": pl.Float64 | None, "on": pl.Date}},
    "model": {"returns": Mood}, "list of models": {"returns": list[Mood]},
}
# fmt: on


def read(value):
    """Return a validated value and its content: the types validate an Iterable only when it is read."""
    if isinstance(value, dict):
        return {name: read(inner) for name, inner in value.items()}
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    return [read(inner) for inner in value] if is_list else value


def plan_of(kind, mode="live"):
    """Return a plan over one row of a kind."""
    return a_plan(FRAME, **{"prompt": TEXT, "max_tokens": 1_000, "mode": mode, **KINDS[kind]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_of_each_kind_is_of_the_sdk_s_types(kind):
    """Each field has its type, and none is unknown to the types, which would drop it."""
    rows = plan_of(kind).requests
    assert rows.height == KINDS[kind].get("samples", 1)
    for key, params in rows.iter_rows():
        request = {"custom_id": key, "params": json.loads(params)}
        assert read(REQUEST.validate_python(request, strict=True)) == request


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_the_simulator_answers_a_row_of_each_kind(mode):
    """Each is answered as by the API, none is refused, and the reply has the requested form."""
    with simulator(speed=600, batch_seconds=6) as api:
        for kind in KINDS:
            results = finished(plan_of(kind, mode), api.client()).results
            assert results["reply"].null_count() == results["error"].count() == 0, kind
