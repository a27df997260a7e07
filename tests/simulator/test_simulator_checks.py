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
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.api import catalog
from claudescale.simulator import Admission
from claudescale.simulator.requests import check, schema_problem

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4) * 2
PAGES = b"%PDF-1.4 " + b"<< /Type /Page >>" * 99
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
    'image in broken base64': (request([source('image', 'iVBORw0KGgo?', 'image/png')]), 'Could not process image'),
    'image that is no text': (request([source('image', 5, 'image/png')]), 'messages.0.content.0.image.source.base64.data: Input should be a valid string'),
    'image of a type not taken': (request([source('image', b'BM', 'image/bmp')]), "messages.0.content.0.image.source.base64.media_type: Input should be 'image/jpeg' or 'image/png'"),
    'image behind http': (request([{'type': 'image', 'source': {'type': 'url', 'url': 'http://example.org/a.png'}}]), 'messages.0.content.0.image.source.url.url: Only HTTPS'),
    'too many images': (request([source('image', PNG, 'image/png')] * 101, model=OLD), 'Too much media: 0 document pages + 101 images > 100'),
    'too many images and pages': (request([source('document', PAGES, 'application/pdf')] + [source('image', PNG, 'image/png')] * 2, model=OLD), 'Too much media: 99 document pages + 2 images > 100'),
    'image without a source': (request([{'type': 'image'}]), 'messages.0.content.0.image.source: Field required'),
    'document that is no PDF': (request([source('document', b'<html>', 'application/pdf')]), 'messages.0.content.0.document.source.base64.data: The PDF'),
    'task budget without': (request(output_config={'task_budget': {}}), 'output_config.task_budget: Extra inputs are not permitted'),
    'fast mode without': (request(model='claude-opus-5', speed='fast'), 'speed: '),
    'geography of 4.5': (request(model=OLD, inference_geo='us'), 'inference_geo: not supported on this model'),
    'extra key of thinking': (request(thinking={'type': 'adaptive', 'budget_tokens': 2000}), 'thinking.adaptive.budget_tokens: Extra'),
    'forced tool with thinking': (request(model=OLD, max_tokens=4000, thinking={'type': 'enabled', 'budget_tokens': 2000}, tools=[TOOL], tool_choice={'type': 'any'}), 'Thinking may not be enabled when tool_choice forces tool use.'),
    'tool unknown': (request(tools=[{'type': 'web_search_2020', 'name': 'w'}]), "tools.0: Input tag 'web_search_2020'"),
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
    'a system turn': request(messages=[{'role': 'user', 'content': 'x'}, {'role': 'system', 'content': 'Be short.'}]),
    'an image and a PDF': request([source('image', PNG, 'image/png'), source('document', b'%PDF-1.7', 'application/pdf'), text()]),
    'a file': request([{'type': 'document', 'source': {'type': 'file', 'file_id': 'file_1'}, 'title': 't'}]),
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


BEFORE = 1_796_054_400.0  # 2026-11-30 16:00 UTC, an hour before Sonnet 4.5 retires
OTHER = {
    "before it retires": (request(model="claude-sonnet-4-5"), HEADERS, BEFORE, 200),
    "retired": (request(model="claude-sonnet-4-5"), HEADERS, BEFORE + 7200, 404),
    "not for everybody": (request(model="claude-mythos-5"), HEADERS, NOW, 404),
    "wrong key": (request(), {**HEADERS, "authorization": "Bearer wrong"}, NOW, 401),
    "blank key": (request(), {"x-api-key": " ", "anthropic-version": VERSION}, NOW, 401),
    "too large": (b" " * (catalog.MESSAGE.max_bytes + 1), HEADERS, NOW, 413),
    "old version, default": (request(temperature=1.0), OLD_HEADERS, NOW, 200),
    "old version, other": (request(temperature=0.2), OLD_HEADERS, NOW, 400),
    "old version, document": (said("x", [document()], "y"), OLD_HEADERS, NOW, 200),
    "old version, citations": (request([text(citations=[{}])]), OLD_HEADERS, NOW, 200),
}


@pytest.mark.parametrize(("body", "headers", "now", "status"), OTHER.values(), ids=OTHER)
def test_moment_key_size_and_version_decide_too(body, headers, now, status):
    """A model is gone from the moment it retires; the older version takes what the newest took away."""
    assert answered(desk(), body, now, headers)[0] == status


@pytest.mark.parametrize("beta", BETA)
def test_a_beta_needs_its_header_and_with_it_is_taken(beta):
    """Without the header, or with another's, a 400; with it an answer."""
    body, both = request(**BETA[beta]), {**HEADERS, "anthropic-beta": f"other-2026-01-01, {beta}"}
    assert [answered(desk(), body, headers=headers)[0] for headers in (HEADERS, both)] == [400, 200]


@pytest.mark.parametrize(("changes", "beta"), BATCH_ONLY.values(), ids=BATCH_ONLY)
def test_some_things_are_refused_in_batches_alone(changes, beta):
    """Live it is answered; in a batch the row is errored after the batch has ended."""
    admitted = desk().admit(NOW, request(**changes), {**HEADERS, "anthropic-beta": beta})
    assert isinstance(admitted, Admission)
    found = worked(batches_of(), rows_of(request(**changes)), betas=beta)
    assert kinds(found) == {"0": "invalid_request_error"}


@pytest.mark.parametrize("name", sorted(catalog.MODELS))
def test_bulk_settings_of_the_catalog_are_accepted(name):
    """What the catalog says keeps thinking off, and every effort it lists, is no 400 here."""
    model = catalog.MODELS[name]
    off = {"thinking": dict(model.thinking_off)} if model.thinking_off else {}
    for changes in (off, *({"output_config": {"effort": effort}} for effort in model.efforts)):
        check(request(model=name, **changes), model, HEADERS)


def nested(depth):
    """Return a reference inside some unions."""
    return {"$ref": "#/$defs/A"} if depth == 0 else {"anyOf": [nested(depth - 1), {"type": "null"}]}


UNIONS = {f"x{n}": {"type": ["string", "null"]} for n in range(17)}
MANY = {f"x{n}": {"type": "string"} for n in range(25)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"properties": {"x": {"type": "integer", "minimum": 0}}}, "'minimum' is not supported"),
        ({"properties": {"x": {"type": "string", "format": "iban"}}}, "format 'iban' is not supported"),
        ({"properties": {"x": {"type": "array", "items": {}, "minItems": 2}}}, "minItems"),
        ({"properties": {"x": {"$ref": "#/$defs/Missing"}}}, "cannot be resolved"),
        ({"properties": {"x": nested(2)}, "$defs": {"A": {"anyOf": [nested(0)]}}}, "Recursive"),
        ({"properties": MANY, "required": []}, "too many optional"),
        ({"properties": UNIONS, "required": [*UNIONS]}, "too many parameters with union types"),
        ({"properties": {"x": {"type": "thing"}}}, "type 'thing' is not supported"),
        ({"properties": []}, "JSON schema is invalid"),
    ],
)
def test_schemas_over_the_limits_are_refused(changes, says):
    """What structured outputs do not take is a 400 that names it."""
    status, _, error = answered(desk(), request(**form({**SENTIMENT, **changes})))
    assert status == 400
    assert says in error["error"]["message"]


KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "items",
        "anyOf",
        "allOf",
        "enum",
        "$ref",
        "$defs",
        "format",
        "minItems",
    ]
)
WORDS = st.text("abc {}", max_size=8) | st.sampled_from(["type", "text", "any", "json_schema", "#/$defs/a"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | KEYWORDS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = "messages system max_tokens tools tool_choice thinking output_config model cache_control metadata "
FIELDS += "stop_sequences stream speed service_tier"
SCHEMED = st.dictionaries(KEYWORDS, JSON, max_size=4)
ANY = st.dictionaries(st.sampled_from(FIELDS.split()), JSON, max_size=4) | SCHEMED.map(form)
ANY |= SCHEMED.map(
    lambda schema: {"tools": [{**TOOL, "input_schema": schema}], "tool_choice": {"type": "any"}}
)


@pytest.mark.slow
@given(ANY, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_json_gets_an_answer(changes, nested, beta):
    """Whatever fields and schemas hold, with a beta header or without, the desk answers or refuses."""
    if nested:
        blocks = [text(**changes), *changes.values()] if beta else [{"type": "text", "text": "x", **changes}]
        changes = {"messages": [{"role": "user", "content": blocks}]}
    headers = {**HEADERS, "anthropic-beta": "some-beta-2026-01-01"} if beta else HEADERS
    assert answered(desk(), request(**changes), headers=headers)[0] in {200, 400, 404}


SCALARS = [
    *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null", ["string", "null"])),
    *({"type": "string", "format": name} for name in ("date", "date-time", "email", "uuid", "ipv4", "uri")),
    {"enum": ["delivery", "price", None, 3]},
    {"const": "fixed"},
    {"$ref": "#/$defs/Topic"},
    {"allOf": [{"$ref": "#/$defs/Topic"}]},
]
NAMES = st.sampled_from(["name", "rating", "is_late", "email", "tags", "note"])


def objects(inner):
    """Return objects with some properties of these kinds, some of them required."""
    closed = {"type": "object", "additionalProperties": False}
    return st.builds(
        lambda properties, names: {
            **closed,
            "properties": properties,
            "required": sorted(names & {*properties}),
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.sets(NAMES),
    )


def nests(inner):
    """Return objects, arrays and unions of these."""
    arrays = st.tuples(inner, st.integers(0, 1)).map(
        lambda of: {"type": "array", "items": of[0], "minItems": of[1]}
    )
    return objects(inner) | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})


@pytest.mark.slow
@given(
    objects(st.recursive(st.sampled_from(SCALARS), nests, max_leaves=8)),
    st.text('ab9 .,:\n"\\{}éß漢🙂', max_size=80),
)
@settings(max_examples=80, deadline=None)
def test_structured_outputs_obey_any_schema_the_api_takes(schema, words):
    """Objects, arrays, unions, references, enums, formats: the reply always validates."""
    schema = {**schema, "$defs": {"Topic": {"enum": ["price", "delivery", "other"]}}}
    if schema_problem(schema):
        return  # over the API's own limits
    message = message_of(request(words + " 4 of 5", max_tokens=100_000, **form(schema)))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(json.loads(text_of(message)), schema, format_checker=checker)
