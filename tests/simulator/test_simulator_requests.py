"""Requests that the simulator refuses, beyond tests/golden, those it accepts, and the tokens of files."""

# ruff: noqa: E501 - tables of cases

import base64
import json
import struct

import jsonschema
import pytest
from bodies import DOCUMENT, HAIKU, OLD, OPUS, SEARCH, SENTIMENT, TOOL, cached, form, request, rows_of, said
from desks import HEADERS, NOW, answered, batches_of, desk, kinds, message_of, text_of, worked

import claudescale as cs
from claudescale.api import catalog
from claudescale.prompts.templates import source_of

OLD_HEADERS = {**HEADERS, "anthropic-version": "2023-06-01"}
PDF = "application/pdf"
PAGES = b"%PDF-1.4 " + b"<< /Type /Page >>" * 99
CITED = {**DOCUMENT, "citations": {"enabled": True}}
WORDS = {"type": "text", "text": "What is broken?"}


def png(width=64, height=64, shade=0):
    """Return as much of an image as is inspected, and a byte that distinguishes it."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes([shade])


def image(data=None, media_type="image/png"):
    """Return an image or a PDF in base64."""
    encoded = base64.b64encode(png() if data is None else data).decode()
    source = {"type": "base64", "media_type": media_type, "data": encoded}
    return {"type": "document" if media_type == PDF else "image", "source": source}


# fmt: off
REFUSED = {
    "citations and a format": (request([CITED, WORDS], **form()), "output_config.format: citations cannot be enabled"),
    "image that is none": (request([image(b"no image")]), "Could not process image"),
    "image behind http": (request([{"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}]), "messages.0.content.0.image.source.url.url: Only HTTPS"),
    "too many images and pages": (request([image(PAGES, PDF), image(), image()], model=OLD), "Too much media: 99 document pages + 2 images > 100"),
    "document that is no PDF": (request([image(b"<html>", PDF)]), "messages.0.content.0.document.source.base64.data: The PDF"),
    "geography of 4.5": (request(model=OLD, inference_geo="us"), "inference_geo: not supported on this model"),
    "forced tool with thinking": (request(model=OLD, max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000}, tools=[TOOL], tool_choice={"type": "any"}), "Thinking may not be enabled when tool_choice forces tool use."),
    "tool unknown": (request(tools=[{"type": "web_search_2020", "name": "w"}]), "tools.0: Input tag 'web_search_2020'"),
    "tool whose schema is none": (request(tools=[{"name": "t", "input_schema": {"properties": 5}}], tool_choice={"type": "any"}), "The JSON schema is invalid"),
    "a prompt too long": (request(model=OLD, system="word " * 200_000), "prompt is too long"),
    "effort of Haiku 4.5": (request(model=OLD, output_config={"effort": "low"}), "This model does not support the effort"),
    "thinking off at the most effort": (request(thinking={"type": "disabled"}, output_config={"effort": "max"}), '"thinking.type.disabled" is not supported at effort \'max\''),
    "a budget too small": (request(model=OLD, max_tokens=4_000, thinking={"type": "enabled", "budget_tokens": 5}), "thinking.budget_tokens: Input"),
    "a budget too large": (request(model=OLD, thinking={"type": "enabled", "budget_tokens": 2_000}), "`max_tokens` must be greater"),
}
BATCH_ONLY = [({"stream": True}, ""), ({"model": OPUS, "speed": "fast"}, ""), ({"max_tokens": 0}, ""), ({"fallbacks": "default"}, "server-side-fallback-2026-07-01")]
BEFORE = 1_796_054_400.0  # 2026-11-30 16:00 UTC, an hour before Sonnet 4.5 retires
OTHER = {
    "before it retires": (200, request(model="claude-sonnet-4-5"), BEFORE, HEADERS),
    "retired": (404, request(model="claude-sonnet-4-5"), BEFORE + 7200, HEADERS),
    "not for everybody": (404, request(model="claude-mythos-5"), NOW, HEADERS),
    "wrong key": (401, request(), NOW, {**HEADERS, "authorization": "Bearer wrong"}),
    "too large": (413, b" " * (catalog.MESSAGE.max_bytes + 1), NOW, HEADERS),
    "old version, default": (200, request(temperature=1.0), NOW, OLD_HEADERS),
    "old version, other": (400, request(temperature=0.2), NOW, OLD_HEADERS),
    "old version, document": (200, said("x", [DOCUMENT], "y"), NOW, OLD_HEADERS),
    "old version, citations": (200, request([{**WORDS, "citations": [{}]}]), NOW, OLD_HEADERS),
}
BETA = {
    "mcp-client-2026-09-15": {"mcp_servers": []},
    "task-budgets-2026-03-13": {"output_config": {"task_budget": {"type": "tokens", "total": 20_000}}},
    "fast-mode-2026-02-01": {"model": "claude-opus-5", "speed": "fast"},
    "computer-use-2025-11-24": {"tools": [{"type": "computer_20251124", "name": "computer"}]},
}
for beta, changes in BETA.items():
    OTHER[f"without {beta}"] = 400, request(**changes), NOW, HEADERS
    OTHER[f"with {beta}"] = 200, request(**changes), NOW, {**HEADERS, "anthropic-beta": f"other-2026-01-01, {beta}"}
TAKEN = {
    "a blank within the conversation": said("x", "abc ", "y"),
    "a system turn": request(messages=[{"role": "user", "content": "x"}, {"role": "system", "content": "Be short."}]),
    "citations without a format": request([CITED, WORDS]),
    "a tool's result with an image": said("x", [{"type": "tool_use", "id": "t", "name": "rate", "input": {}}], [{"type": "tool_result", "tool_use_id": "t", "content": [image()]}]),
    "tools of the API": request(tools=[TOOL, {"type": "bash_20250124", "name": "bash"}, SEARCH]),
}
OTHER |= {name: (200, body, NOW, HEADERS) for name, body in TAKEN.items()}
UNIONS, MANY = {f"x{n}": {"type": ["string", "null"]} for n in range(17)}, {f"x{n}": {"type": "string"} for n in range(25)}
SCHEMAS = {
    "For 'string' type, format 'iban' is not supported": {"properties": {"x": {"type": "string", "format": "iban"}}},
    "For 'array' type, 'minItems'": {"properties": {"x": {"type": "array", "items": {}, "minItems": 2}}},
    "$ref '#/$defs/Missing' cannot be resolved": {"properties": {"x": {"$ref": "#/$defs/Missing"}}},
    "Recursive": {"properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}},
    "Schemas contain too many optional": {"properties": MANY, "required": []},
    "Schemas contain too many parameters with union types": {"properties": UNIONS, "required": [*UNIONS]},
    "type 'thing' is not supported": {"properties": {"x": {"type": "thing"}}},
    "JSON schema is invalid": {"properties": []},
}
for begins, changes in SCHEMAS.items():
    REFUSED[begins] = request(**form({**SENTIMENT, **changes})), f"output_config.format.schema: {begins}"
# fmt: on


@pytest.mark.parametrize(("body", "begins"), REFUSED.values(), ids=REFUSED)
def test_what_the_api_refuses_is_refused_live_and_in_a_batch(body, begins):
    """Each is a 400 with the API's wording, live at once, in a batch as the row's result, and unbilled."""
    at = desk()
    status, headers, error = answered(at, body)
    assert (status, error["error"]["type"]) == (400, "invalid_request_error")
    assert error["error"]["message"].startswith(begins)
    assert headers["anthropic-ratelimit-requests-remaining"] == "1000000000"
    results = worked(batches_of(at), rows_of(body, request()))
    assert kinds(results) == {"0": "invalid_request_error", "1": "succeeded"}
    assert results["0"]["error"]["error"]["message"].startswith(begins)
    assert at.account.figures()["billed_rows"] == 1


@pytest.mark.parametrize(("status", "call"), [(status, call) for status, *call in OTHER.values()], ids=OTHER)
def test_other_requests_are_answered_by_moment_key_size_version_and_beta(status, call):
    """A model is gone from the moment it retires; the older version or a beta's header admits more."""
    assert answered(desk(), *call)[0] == status


@pytest.mark.parametrize(("changes", "beta"), BATCH_ONLY)
def test_some_things_are_refused_in_batches_alone(changes, beta):
    """Live they are answered; in a batch the row is errored after the batch has ended."""
    assert answered(desk(), request(**changes), headers={**HEADERS, "anthropic-beta": beta})[0] == 200
    found = worked(batches_of(), rows_of(request(**changes)), betas=beta)
    assert kinds(found) == {"0": "invalid_request_error"}


FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
TOPIC = {"$ref": "#/$defs/Topic"}
BOUNDS = {  # a type, its bounds as a description states them, and as a validator reads them
    "few": ("integer", "(maximum: 5, minimum: 4)", {"maximum": 5, "minimum": 4}),
    "share": ("number", "(exclusive maximum: 1, exclusive minimum: 0)", {"exclusiveMaximum": 1, "exclusiveMinimum": 0}),
    "code": ("string", "(max length: 4, min length: 2)", {"maxLength": 4, "minLength": 2}),
    "pair": ("array", "(max items: 2, min items: 2)", {"maxItems": 2, "minItems": 2}),
}  # fmt: skip
RICH = {
    **{name: {"type": kind, "description": words} for name, (kind, words, _) in BOUNDS.items()},
    **{kind: {"type": kind} for kind in ("string", "integer", "number", "boolean", "null")},
    **{name: {"type": "string", "format": name} for name in FORMATS},
    "mixed": {"enum": ["delivery", None, 3]},
    "fixed": {"const": "fixed"},
    "note": {"type": ["string", "null"]},
    "rating": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}, TOPIC]},
    "all": {"allOf": [TOPIC]},
    "tags": {"type": "array", "items": TOPIC, "minItems": 1},
    "rows": {"type": "array", "items": {**SENTIMENT, "required": []}},
}


def test_replies_and_the_input_of_a_forced_tool_obey_any_schema_the_api_takes():
    """They always validate, and keep to bounds that are stated in words, for lack of a keyword."""
    topics, checker = {"enum": ["price", "delivery", "other"]}, jsonschema.Draft202012Validator.FORMAT_CHECKER
    schema = {**SENTIMENT, "properties": RICH, "required": [*RICH][:16], "$defs": {"Topic": topics}}
    bounded = {"properties": {name: bounds for name, (_, _, bounds) in BOUNDS.items()}}
    tools, choice = [TOOL, {"name": "rich", "input_schema": schema}], {"type": "tool", "name": "rich"}
    parcels = (f"Parcel {n}: late. It cost {n}.50, not good!" for n in range(15))
    for text in ("x", "4 of 5", 'éß漢🙂\n"\\{}', *parcels):
        written = message_of(request(text, max_tokens=100_000, **form(schema)))
        used = message_of(request(text, max_tokens=100_000, tools=tools, tool_choice=choice))
        assert used["stop_reason"] == "tool_use"
        for value in (json.loads(text_of(written)), used["content"][-1]["input"]):
            for obeyed in (schema, bounded):
                jsonschema.validate(value, obeyed, format_checker=checker)


def tokens_with(*blocks, model=HAIKU):
    """Return the tokens that blocks add to a request, checked against the token counter."""
    at, found = desk(), []
    for body in (request([*blocks, WORDS], model=model), request([WORDS], model=model)):
        found.append(message_of(body, at)["usage"]["input_tokens"])
        del body["max_tokens"]
        assert at.count_tokens(NOW, json.dumps(body).encode(), HEADERS) == {"input_tokens": found[-1]}
    return found[0] - found[1]


FILES = [
    *((cs.image("file"), png(*size)) for size in ((3, 4), (4_000, 3_000))),
    (cs.image("file"), b"GIF89a" + struct.pack("<HH", 200, 300)),
    (cs.pdf("file"), b"%PDF-1.4 /Font " + b"<< /Type /Page >>" * 3),
    (cs.pdf("file"), b"%PDF-1.4 " + b"<< /Type /Page >>" * 2),
    (cs.image("file", kind="url"), "https://example.org/a"),
    (cs.pdf("file", kind="file_id"), "file_1"),
]


@pytest.mark.parametrize("model", [HAIKU, OLD])
@pytest.mark.parametrize(("part", "given"), FILES, ids=lambda value: str(value)[:12])
def test_a_file_takes_the_tokens_it_was_estimated_at(part, given, model):
    """Reply usage, token counter and plan agree; a file the plan cannot see has the assumed tokens."""
    estimate = source_of(part, given, catalog.model(model), keyed=False)
    source = estimate.source
    if isinstance(given, bytes):
        source = image(given, source["media_type"])["source"]
    assert tokens_with({"type": part.block, "source": source}, model=model) == estimate.tokens


def test_documents_of_text_count_as_text():
    """Plain text, or blocks of it, has no pages; an image among them counts as one."""
    written = {"type": "text", "text": "word " * 100}
    plain = {"type": "text", "media_type": "text/plain", "data": "word " * 100}
    several = {"type": "content", "content": [written, image(png(28, 28))]}
    plain, several = ({"type": "document", "source": source} for source in (plain, several))
    assert tokens_with(plain) == tokens_with(written) == tokens_with(several) - 1


def test_another_image_is_another_prefix_of_the_cache_and_another_reply():
    """An image before the mark is read only where it is the same one; the same image has the same label."""
    at, reads = desk(), []
    for shade in (1, 1, 2):
        body = request([image(png(280, 280, shade)), *cached("x")["system"], WORDS])
        message = message_of(body, at, NOW + 60 * len(reads))
        reads.append(message["usage"]["cache_read_input_tokens"] > 100)
    assert reads == [False, True, False]
    schema = {**SENTIMENT, "properties": {"grade": {"enum": ["a", "b", "c"]}}, "required": ["grade"]}
    options = {"thinking": {"type": "disabled"}, **form(schema)}
    once = [text_of(message_of(request([image(png(shade=n)), WORDS], **options))) for n in range(20)]
    assert len(set(once)) == 3
