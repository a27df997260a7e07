"""What the simulator refuses beside what is recorded in tests/golden, and what it takes: live and in a batch."""

# ruff: noqa: E501, Q000 - tables of cases

import base64
import json

import jsonschema
import pytest
from desks import (
    HEADERS,
    NOW,
    OLD,
    OLD_HEADERS,
    OPUS,
    SEARCH,
    SENTIMENT,
    TOOL,
    VERSION,
    answered,
    batches_of,
    desk,
    form,
    kinds,
    message_of,
    request,
    rows_of,
    text_of,
    worked,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.api import catalog
from claudescale.simulator import Admission
from claudescale.simulator.checks import check, schema_problem

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4) * 2
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
FORMAT = form()["output_config"]


def said(*turns, **changes):
    """Return a request of several turns, the user's first."""
    roles = ("user", "assistant")
    return request(
        messages=[{"role": roles[n % 2], "content": each} for n, each in enumerate(turns)], **changes
    )


def text(value="x", **more):
    """Return a block of text."""
    return {"type": "text", "text": value, **more}


def source(kind, data, media_type):
    """Return an image or a document in base64."""
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": kind, "source": {"type": "base64", "data": encoded, "media_type": media_type}}


def document(**more):
    """Return a document of text."""
    return {"type": "document", "source": {"type": "text", "data": "x", "media_type": "text/plain"}, **more}


# fmt: off
REFUSED = {
    'a block of it that does': (said('x', [text('abc\n')], model=OLD), 'messages: final assistant content cannot'),
    'prefill of JSON': (said('x', '{', model=OLD, output_config=FORMAT), 'output_config.format: assistant message'),
    'unknown key of a block': (request([text(x=1)]), 'messages.0.content.0.text.x: Extra inputs are not permitted'),
    'image of the assistant': (said('x', [source('image', PNG, 'image/png')], 'y'), 'messages.1.content.0: `image` blocks can only'),
    'thinking of the user': (request([{'type': 'thinking', 'thinking': '', 'signature': 's'}]), 'messages.0.content.0: `thinking` blocks'),
    'citations and a format': (request([document(citations={'enabled': True}), text()], output_config=FORMAT), 'output_config.format: citations cannot be enabled'),
    'image that is none': (request([source('image', b'no image', 'image/png')]), 'Could not process image'),
    'image of another type': (request([source('image', JPEG, 'image/png')]), 'messages.0.content.0.image.source.base64: The image was specified using the image/png media type'),
    'image that is not base64': (request([source('image', '!', 'image/png')]), 'messages.0.content.0.image.source.base64: invalid base64'),
    'image that is too wide': (request([source('image', PNG[:16] + (9_000).to_bytes(4) * 2, 'image/png')]), 'messages.0.content.0.image.source.base64: image dimensions exceed'),
    'image without a source': (request([{'type': 'image'}]), 'messages.0.content.0.image.source: Field required'),
    'document that is no PDF': (request([source('document', b'<html>', 'application/pdf')]), 'messages.0.content.0.document.source.base64.data: The PDF'),
    'fallbacks without': (request(fallbacks='default'), 'fallbacks: '),
    'task budget without': (request(output_config={'task_budget': {}}), 'output_config.task_budget: Extra inputs are not permitted'),
    'fast mode without': (request(model='claude-opus-5', speed='fast'), 'speed: '),
    'research preview': (request(research_preview_2026_02='active'), 'research_preview_2026_02: Extra inputs'),
    'geography of 4.5': (request(model=OLD, inference_geo='us'), 'inference_geo: not supported on this model'),
    'extra key of thinking': (request(thinking={'type': 'adaptive', 'budget_tokens': 2000}), 'thinking.adaptive.budget_tokens: Extra'),
    'display unknown': (request(thinking={'type': 'adaptive', 'display': 'full'}), 'thinking.adaptive.display: Input'),
    'forced tool with thinking': (request(model=OLD, max_tokens=4000, thinking={'type': 'enabled', 'budget_tokens': 2000}, tools=[TOOL], tool_choice={'type': 'any'}), 'Thinking may not be enabled when tool_choice forces tool use.'),
    'extra key of a choice': (request(tools=[TOOL], tool_choice={'type': 'none', 'name': 'rate'}), 'tool_choice.none.name: Extra inputs'),
    'tool unknown': (request(tools=[{'type': 'web_search_2020', 'name': 'w'}]), "tools.0: Input tag 'web_search_2020'"),
    "metadata's type": (request(metadata={'user_id': 7}), 'metadata.user_id: Input should be a valid string'),
    'diagnostics': (request(diagnostics={'x': 1}), 'diagnostics.x: Extra inputs are not permitted'),
    "system's key": (request(system=[text(x=1)]), 'system.0.text.x: Extra inputs are not permitted'),
    'system turn of 4.5': (request(model=OLD, messages=[{'role': 'user', 'content': 'x'}, {'role': 'system', 'content': 'y'}]), "messages.1: role 'system' is not supported on this model"),
    'max_tokens over the most': (request(max_tokens=128_001), 'max_tokens: 128001 > 128000'),
    'a prompt too long': (request(model=OLD, system='word ' * 200_000), 'prompt is too long'),
    'effort of Haiku 4.5': (request(model=OLD, output_config={'effort': 'low'}), 'This model does not support the effort'),
    'thinking off at the most effort': (request(thinking={'type': 'disabled'}, output_config={'effort': 'max'}), '"thinking.type.disabled" is not supported at effort \'max\''),
    'thinking off on Opus': (request(model=OPUS, thinking={'type': 'disabled'}), '"thinking.type.disabled" is not supported for this model'),
    'a budget too small': (request(model=OLD, max_tokens=4_000, thinking={'type': 'enabled', 'budget_tokens': 5}), 'thinking.budget_tokens: Input'),
    'a budget too large': (request(model=OLD, thinking={'type': 'enabled', 'budget_tokens': 2_000}), '`max_tokens` must be greater'),
    'a blank stop sequence': (request(stop_sequences=[' ']), 'stop_sequences: each stop sequence must'),
    'no searches': (request(tools=[{**SEARCH, 'max_uses': 0}]), 'tools.0.web_search_20250305.max_uses: Input'),
}
TAKEN = {
    'a blank within the conversation': said('x', 'abc ', 'y'),
    'a paused turn sent back': said('x', [{'type': 'server_tool_use', 'id': 's', 'name': 'web_search', 'input': {}}], tools=[SEARCH]),
    'a system turn': request(messages=[{'role': 'user', 'content': 'x'}, {'role': 'system', 'content': 'Be short.'}]),
    'an image and a PDF': request([source('image', PNG, 'image/png'), source('document', b'%PDF-1.7', 'application/pdf'), text()]),
    'a file and an address': request([{'type': 'image', 'source': {'type': 'url', 'url': 'https://example.com/a.png'}}, {'type': 'document', 'source': {'type': 'file', 'file_id': 'file_1'}, 'title': 't'}]),
    'citations without a format': request([document(citations={'enabled': True}), text()]),
    "a tool's result with an image": said('x', [{'type': 'tool_use', 'id': 't', 'name': 'rate', 'input': {}}], [{'type': 'tool_result', 'tool_use_id': 't', 'content': [source('image', JPEG, 'image/jpeg')]}]),
    'prefill of 4.5': said('x', 'The answer is', model=OLD),
    'tools of the API': request(tools=[TOOL, {'type': 'bash_20250124', 'name': 'bash'}, SEARCH]),
    'forced tool without thinking': request(tools=[TOOL], tool_choice={'type': 'tool', 'name': 'rate'}),
}
BATCH_ONLY = {
    "stream": ({"stream": True}, ""),
    "speed": ({"model": OPUS, "speed": "fast"}, ""),
    "max_tokens": ({"max_tokens": 0}, ""),
    "fallbacks": ({"fallbacks": "default"}, "server-side-fallback-2026-07-01"),
}
BETA = {
    "mcp-client-2026-09-15": {"mcp_servers": []},
    "context-management-2025-06-27": {"context_management": {}},
    "server-side-fallback-2026-07-01": {"fallbacks": "default"},
    "task-budgets-2026-03-13": {"output_config": {"task_budget": {"type": "tokens", "total": 20_000}}},
    "fast-mode-2026-02-01": {"model": "claude-opus-5", "speed": "fast"},
    "computer-use-2025-11-24": {"tools": [{"type": "computer_20251124", "name": "computer"}]},
}
# fmt: on


@pytest.mark.parametrize(("body", "begins"), REFUSED.values(), ids=REFUSED)
def test_what_the_api_refuses_is_refused_live_and_in_a_batch(body, begins):
    """A 400 in the API's kind of words, live at once, in a batch as the row's result; nothing is billed."""
    at = desk()
    status, headers, error = answered(at, body)
    assert (status, error["error"]["type"]) == (400, "invalid_request_error")
    assert error["error"]["message"].startswith(begins)
    assert headers["anthropic-ratelimit-requests-remaining"] == "1000000000"
    results = worked(batches_of(at), rows_of(body, request()))
    assert kinds(results) == {"0": "invalid_request_error", "1": "succeeded"}
    assert results["0"]["error"]["error"]["message"].startswith(begins)
    assert at.account.figures()["billed_rows"] == 1


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
def test_what_the_api_takes_is_taken(body):
    """Near to what is refused, and in order."""
    message_of(body)
    assert kinds(worked(batches_of(), rows_of(body))) == {"0": "succeeded"}


@pytest.mark.parametrize("name", ["claude-none-9", "claude-opus-4-1", "claude-mythos-5"])
def test_a_model_that_is_not_offered_is_not_found(name):
    """Unknown, retired, or for verified customers only: a 404 that names it, without headers of limits."""
    status, headers, error = answered(desk(), request(model=name))
    assert (status, error["error"]["type"], error["error"]["message"]) == (
        404,
        "not_found_error",
        f"model: {name}",
    )
    assert "anthropic-ratelimit-requests-limit" not in headers


def test_a_model_is_gone_from_the_moment_it_retires():
    """Sonnet 4.5 answers until 9 AM Pacific of November 30 2026, then it is not found."""
    before = 1_796_054_400.0  # 2026-11-30 16:00 UTC
    message_of(request(model="claude-sonnet-4-5"), now=before)
    assert answered(desk(), request(model="claude-sonnet-4-5"), before + 7200)[0] == 404


def test_a_key_can_be_sent_in_two_ways_and_can_be_wrong():
    """As a token or as x-api-key; one that begins as a wrong one is turned down."""
    keys = {"k": 200, "wrong": 401, " ": 401}
    for key, status in keys.items():
        assert answered(desk(), request(), headers={**HEADERS, "authorization": f"Bearer {key}"})[0] == status
        assert (
            answered(desk(), request(), headers={"x-api-key": key, "anthropic-version": VERSION})[0] == status
        )


def test_a_body_over_the_limit_is_too_large_and_one_that_is_no_json_is_invalid():
    """413 over 32 MB, 400 for what cannot be read."""
    status, _, error = answered(desk(), b" " * (catalog.MESSAGE.max_bytes + 1))
    assert (status, error["error"]["type"]) == (413, "request_too_large")
    assert [answered(desk(), raw)[0] for raw in (b"{not json", b"[1, 2]")] == [400, 400]


def test_the_older_api_version_takes_what_the_newest_took_away():
    """Sampling parameters (newer models only the default), a document of the assistant, citations of a text."""
    assert answered(desk(), request(model=OLD, temperature=0.2), headers=OLD_HEADERS)[0] == 200
    assert answered(desk(), request(temperature=1.0), headers=OLD_HEADERS)[0] == 200
    assert answered(desk(), request(temperature=0.2), headers=OLD_HEADERS)[0] == 400
    assert answered(desk(), said("x", [document()], "y"), headers=OLD_HEADERS)[0] == 200
    assert answered(desk(), request([text(citations=[{}])]), headers=OLD_HEADERS)[0] == 200


@pytest.mark.parametrize("beta", BETA)
def test_a_beta_needs_its_header_and_with_it_is_taken(beta):
    """Without the header, or with another's, a 400; with it an answer."""
    body = request(**BETA[beta])
    assert answered(desk(), body)[0] == 400
    assert (
        answered(desk(), body, headers={**HEADERS, "anthropic-beta": f"other-2026-01-01, {beta}"})[0] == 200
    )


@pytest.mark.parametrize(("changes", "beta"), BATCH_ONLY.values(), ids=BATCH_ONLY)
def test_some_things_are_refused_in_batches_alone(changes, beta):
    """Live it is answered; in a batch the row is errored after the batch has ended."""
    admitted = desk().admit(NOW, request(**changes), {**HEADERS, "anthropic-beta": beta})
    assert isinstance(admitted, Admission)
    found = worked(batches_of(), rows_of(request(**changes)), betas=beta)
    assert kinds(found) == {"0": "invalid_request_error"}


@pytest.mark.parametrize(
    "changes",
    [
        form(),
        {"stream": True},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"model": OLD, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
)
def test_warming_the_cache_takes_no_request_for_output(changes):
    """`max_tokens` 0 with what asks for output is a 400."""
    assert answered(desk(), request(max_tokens=0, **changes))[0] == 400


@pytest.mark.parametrize("name", sorted(catalog.MODELS))
def test_bulk_settings_of_the_catalog_are_accepted(name):
    """What the catalog says keeps thinking off, and every effort it lists, is no 400 here."""
    model = catalog.MODELS[name]
    off = {"thinking": dict(model.thinking_off)} if model.thinking_off else {}
    for changes in (off, *({"output_config": {"effort": effort}} for effort in model.efforts)):
        check(request(model=name, **changes), model, "2026-10-21")


# ------------------------------------------------------------------------------------------ schemas


def nested(depth):
    """Return a reference inside some unions."""
    return {"$ref": "#/$defs/A"} if depth == 0 else {"anyOf": [nested(depth - 1), {"type": "null"}]}


UNIONS = {f"x{n}": {"type": ["string", "null"]} for n in range(17)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"additionalProperties": True}, "additionalProperties"),
        ({"properties": {"x": {"type": "integer", "minimum": 0}}}, "'minimum' is not supported"),
        ({"properties": {"x": {"type": "string", "format": "iban"}}}, "format 'iban' is not supported"),
        ({"properties": {"x": {"type": "array", "items": {}, "minItems": 2}}}, "minItems"),
        ({"properties": {"x": {"$ref": "#/$defs/Missing"}}}, "cannot be resolved"),
        ({"properties": {"x": {"$ref": "#"}}}, "Recursive"),
        ({"properties": {"x": nested(2)}, "$defs": {"A": {"anyOf": [nested(0)]}}}, "Recursive"),
        (
            {"properties": {f"x{n}": {"type": "string"} for n in range(25)}, "required": []},
            "too many optional",
        ),
        ({"properties": UNIONS, "required": [*UNIONS]}, "too many parameters with union types"),
        ({"properties": {"x": {"type": "thing"}}}, "type 'thing' is not supported"),
        ({"properties": []}, "properties: not valid in a JSON schema"),
    ],
)
def test_schemas_over_the_limits_are_refused(changes, says):
    """What structured outputs do not take is a 400 that names it."""
    status, _, error = answered(desk(), request(**form({**SENTIMENT, **changes})))
    assert status == 400
    assert says in error["error"]["message"]


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "items", "anyOf", "allOf", "enum", "$ref", "$defs", "format"]
)
ALMOST = st.recursive(
    st.sampled_from(["string", "object", "array", "#/$defs/a", "date", True, None, 1, []]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(KEYWORDS | st.sampled_from(["const", "minItems"]), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(st.dictionaries(KEYWORDS, ALMOST, max_size=4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_schema_gets_an_answer(schema, of_a_tool):
    """A schema that is none is refused, as output format and as a tool's input; nothing fails."""
    tool = {"tools": [{"name": "t", "input_schema": schema}], "tool_choice": {"type": "any"}}
    assert answered(desk(), request(**(tool if of_a_tool else form(schema))))[0] in (200, 400)


WORDS = st.text("abc {}", max_size=8) | st.sampled_from(["type", "text", "any", "json_schema", "format"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = "messages system max_tokens tools tool_choice thinking output_config model cache_control metadata "
FIELDS += "stop_sequences stream speed service_tier"


@given(st.dictionaries(st.sampled_from(FIELDS.split()), JSON, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_json_gets_an_answer(changes, nested, beta):
    """Whatever the fields hold, with a beta header or without, the desk answers or refuses; it never fails."""
    if nested:
        blocks = [text(**changes), *changes.values()] if beta else [{"type": "text", "text": "x", **changes}]
        changes = {"messages": [{"role": "user", "content": blocks}]}
    headers = {**HEADERS, "anthropic-beta": "some-beta-2026-01-01"} if beta else HEADERS
    assert answered(desk(), request(**changes), headers=headers)[0] in {200, 400, 404}


SCALARS = st.sampled_from(
    [
        *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null", ["string", "null"])),
        *(
            {"type": "string", "format": name}
            for name in ("date", "date-time", "email", "uuid", "ipv4", "uri")
        ),
        {"enum": ["delivery", "price", None, 3]},
        {"const": "fixed"},
        {"$ref": "#/$defs/Topic"},
        {"allOf": [{"$ref": "#/$defs/Topic"}]},
    ]
)


def objects(inner):
    """Return objects with some properties of these kinds, some of them required."""
    keys = st.sampled_from(["name", "rating", "is_late", "email", "tags", "note"])
    properties = st.dictionaries(keys, inner, max_size=4)
    closed = {"type": "object", "additionalProperties": False}
    return st.tuples(properties, st.sets(keys)).map(
        lambda pair: {**closed, "properties": pair[0], "required": [key for key in pair[0] if key in pair[1]]}
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        objects(inner)
        | st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 1),
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several})
    ),
    max_leaves=8,
)


@given(objects(SCHEMAS), st.text('abcdefg .,:\n"\\{}09éß漢🙂', max_size=80))
@settings(max_examples=150, deadline=None)
def test_structured_outputs_obey_any_schema_the_api_takes(schema, words):
    """Objects, arrays, unions, references, enums, formats: the reply always validates."""
    schema = {**schema, "$defs": {"Topic": {"enum": ["price", "delivery", "other"]}}}
    if schema_problem(json.dumps(schema)):
        return  # over the API's own limits
    message = message_of(request(words + " 4 of 5", max_tokens=100_000, **form(schema)))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(json.loads(text_of(message)), schema, format_checker=checker)
