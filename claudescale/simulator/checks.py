"""What the API refuses with a 400 or 404, and in which words.

First the shape of a request is held against the table `FIELDS`, then its sense is looked into: pairs of what
is wrong and the words for it, the first of which counts. The messages follow the API's where they are known;
their exact wording is promised by nobody.
"""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from claudescale.api import catalog
from claudescale.errors import UnknownModel
from claudescale.simulator.wire import TABLES, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OLD_VERSION = "2023-06-01"
VERSIONS = frozenset({OLD_VERSION, "2026-10-21"})
GENERATION = re.compile(r"-(\d+)(?:-(\d{1,2}))?(?:-|$)")
PREFILL_UNTIL = (4, 5)  # Claude 4.6 and later refuse an assistant message at the end
SYSTEM_TURNS_FROM = (4, 8)
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
MOST_PIXELS = 8_000
MEDIA = {name: begins.encode("latin-1") for name, begins in TABLES["media"].items()}
ROLES, BETAS, SAMPLING = TABLES["roles"], TABLES["betas"], TABLES["sampling"]
TYPES, FORMATS, REFUSED_WORDS = (frozenset(words) for words in TABLES["schema"].values())
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SERVED_TOOL = re.compile(TABLES["served_tools"])

Refusals: TypeAlias = "Iterator[tuple[Any, str]]"


def generation(model_id: str) -> tuple[int, int]:
    """Return the generation of a model by its id: (4, 5) for ``claude-haiku-4-5``."""
    found = GENERATION.search(model_id)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)


def found_model(body: Mapping[str, Any], now: float) -> catalog.Model:
    """Return the model a request names."""
    name = body.get("model")
    if not isinstance(name, str):
        raise Problem(400, f"model: {'Field required' if name is None else 'Input should be a valid string'}")
    try:
        model = catalog.callable_model(name, datetime.fromtimestamp(now, UTC))
    except UnknownModel:
        model = None
    if model is None or model.verified_only:
        raise Problem(404, f"model: {name}")
    return model


def check(
    body: dict[str, Any], model: catalog.Model, version: str, betas: str = "", *, counting: bool = False
) -> None:
    """Refuse the first thing the API would refuse in a request, or in one for a token count."""
    fields = {**TABLES["counted"], **({} if counting else TABLES["request"])}
    fields |= dict.fromkeys(SAMPLING, "any") if version == OLD_VERSION else {}
    fields |= {name: "any" for name in BETAS if betas and _has(betas, name)}
    for name in body:
        if name not in fields and f"{name}!" not in fields:
            raise Problem(400, f"{name}: Extra inputs are not permitted")
    for words in _fields("", body, fields, loose=bool(betas)):
        raise Problem(400, words)
    for wrong, words in Call(body, model, betas, old=version == OLD_VERSION).refusals():
        if wrong:
            raise Problem(400, words)


def _has(betas: str, name: str) -> bool:
    """Return whether the beta header that `name` needs was sent."""
    return any(beta.strip().startswith(tuple(BETAS[name])) for beta in betas.split(","))


# ------------------------------------------------------------------------------------------------- shapes

KINDS = {"string": str, "integer": int, "boolean": bool, "list": list, "dictionary": dict}


def _shape(where: str, value: Any, spec: Any, *, loose: bool) -> Iterator[str]:
    """Yield where a value is not of a shape in `tables.toml`; `loose` lets pass what is not known."""
    if isinstance(spec, list):
        if value not in spec:
            yield f"{where}: Input should be {_either(spec)}"
        return
    if spec == "any":
        return
    kinds = _kinds(spec)
    name = next((one for one in kinds if isinstance(value, kinds[one])), next(iter(kinds)))
    if not isinstance(value, kinds[name]) or (name == "integer" and isinstance(value, bool)):
        yield f"{where}: Input should be a valid {name.partition(' of ')[0]}"
    elif name.startswith("list of "):
        for place, item in enumerate(value):
            yield from _shape(f"{where}.{place}", item, name.removeprefix("list of "), loose=loose)
    elif name in TABLES["fields"]:
        yield from _fields(where, value, TABLES["fields"][name], loose=loose)
    elif name in TABLES["choices"] or name in TABLES["tagged"]:
        yield from _chosen(where, value, name, loose=loose)


@lru_cache
def _kinds(spec: str) -> dict[str, Any]:
    """Return the kind of value that each alternative of a field asks for."""
    return {one: KINDS.get(one.partition(" of ")[0], object) for one in spec.split(" or ")}


def _chosen(where: str, value: Any, name: str, *, loose: bool) -> Iterator[str]:
    tagged = TABLES["tagged"].get(name)
    spec, kind = tagged or TABLES["choices"][name], value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        yield f"{where}.type: {'Field required' if tagged else f'Input should be {_either(spec)}'}"
    elif kind in spec:
        rest = {name: part for name, part in value.items() if name != "type"}
        yield from _fields(f"{where}.{kind}", rest, spec[kind], loose=loose)
    elif not loose and tagged:
        tag = f"Input tag {kind!r} found using 'type' does not match any of the expected tags"
        yield f"{where}: {tag}: {', '.join(map(repr, spec))}"
    elif not loose:
        yield f"{where}.type: Input should be {_either(spec)}"


def _fields(where: str, value: Any, spec: Any, *, loose: bool) -> Iterator[str]:
    if spec == "any":
        return
    if not isinstance(value, dict):
        yield f"{where}: Input should be a valid dictionary"
        return
    at = f"{where}." if where else ""
    for name, part in value.items():
        key = name if name in spec else f"{name}!"
        if key not in spec and not loose:
            yield f"{at}{name}: Extra inputs are not permitted"
        elif key in spec and part is not None:
            yield from _shape(f"{at}{name}", part, spec[key], loose=loose)
    for key in spec:
        if key[-1] == "!" and value.get(key[:-1]) is None:
            yield f"{at}{key[:-1]}: Field required"


def _either(values: Iterable[str]) -> str:
    *most, last = map(repr, values)
    return f"{', '.join(most)} or {last}" if most else last


# -------------------------------------------------------------------------------------------------- sense


class Call:
    """A request of the right shape, and what decides how strictly it is read."""

    def __init__(self, body: dict[str, Any], model: catalog.Model, betas: str, *, old: bool) -> None:
        config = body.get("output_config") or {}
        self.body, self.model, self.betas, self.old = body, model, betas, old
        self.turns: list[dict[str, Any]] = body["messages"]
        self.tools: list[dict[str, Any]] = body.get("tools") or []
        self.choice: dict[str, Any] = body.get("tool_choice") or {}
        self.forced = self.choice["type"] if self.choice.get("type") in ("any", "tool") else None
        self.effort, self.format = config.get("effort"), config.get("format")

    def refusals(self) -> Refusals:
        """Yield what may be wrong, and the words for it; each may rely on all before it being right."""
        of_the_prompt = (self._max_tokens, self._conversation, self._tools, self._cache)
        for part in (*of_the_prompt, self._output, self._thinking, self._options):
            yield from part()

    def _max_tokens(self) -> Refusals:
        tokens, most = self.body.get("max_tokens", 1), self.model.max_output_tokens
        zero = "max_tokens: 0 is not"
        which = f"which is the maximum allowed number of output tokens for {self.model.snapshot}"
        yield tokens < 0, "max_tokens: Input should be greater than or equal to 0"
        yield tokens > most, f"max_tokens: {tokens} > {most}, {which}"
        yield not tokens and self.body.get("stream"), f"{zero} supported with `stream`"
        yield not tokens and self.format, f"{zero} supported with `output_config.format`"
        yield not tokens and self.forced, f"{zero} supported with `tool_choice.type` {self.forced!r}"

    def _conversation(self) -> Refusals:
        most, number = catalog.MESSAGE.max_messages, generation(self.model.id)
        yield not self.turns, "messages: at least one message is required"
        yield len(self.turns) > most, f"messages: at most {most} messages are allowed"
        for place, turn in enumerate(self.turns):
            where, role, content = f"messages.{place}", turn["role"], turn["content"]
            early = role == "system" and number < SYSTEM_TURNS_FROM
            blank = isinstance(content, str) and not content.strip() and role != "assistant"
            yield early, f"{where}: role 'system' is not supported on this model"
            yield blank or not content, f"{where}: {role} messages must have non-empty content"
            for n, block in enumerate(content if isinstance(content, list) else ()):
                yield from self._block(f"{where}.content.{n}", role, block)
        yield self.turns[0]["role"] != "user", 'messages: first message must use the "user" role'
        if role == "assistant":
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            # A turn that the API itself paused, with its own tools in it, may be sent back as it came.
            paused = any(block["type"] == "server_tool_use" for block in blocks)
            trailing = "messages: final assistant content cannot end with trailing whitespace"
            yield number > PREFILL_UNTIL and not paused, TABLES["prefill"]
            yield str(blocks[-1].get("text", ""))[-1:].isspace(), trailing
            no_format = "assistant message prefill cannot be used with structured outputs"
            yield self.format, f"output_config.format: {no_format}"

    def _block(self, where: str, role: str, block: dict[str, Any]) -> Refusals:
        kind = block["type"]
        only = role if kind == "document" and self.old else ROLES.get(kind, role)
        yield only != role, f"{where}: `{kind}` blocks can only be in `{only}` messages"
        if kind == "text":
            cited = block.get("citations") and role == "user" and not self.old
            yield not block["text"].strip(), "messages: text content blocks must be non-empty"
            yield cited, f"{where}.text.citations: Extra inputs are not permitted"
        if kind in ("image", "document") and block["source"]["type"] == "base64":
            yield from _media(f"{where}.{kind}.source.base64", kind, **block["source"])

    def _tools(self) -> Refusals:
        for place, tool in enumerate(self.tools):
            yield from self._tool(f"tools.{place}", tool.get("type") or "custom", tool)
        names, asked = [tool["name"] for tool in self.tools if tool.get("name")], self.choice.get("name")
        never = self.forced and self.model.id in catalog.CHARGES.no_forced_tool
        yield any(names.count(name) > 1 for name in names), "tools: Tool names must be unique."
        yield never, f"tool_choice.type: {self.forced!r} is not supported on this model"
        yield self.forced and not self.tools, "tool_choice: may only be specified while providing `tools`"
        yield self.forced == "tool" and asked not in names, f"Tool {asked!r} not found in provided tools"

    def _tool(self, where: str, kind: Any, tool: dict[str, Any]) -> Refusals:
        name, at = tool.get("name"), f"{where}.{kind}"
        if kind == "custom":
            yield not isinstance(name, str), f"{at}.name: Field required"
            pattern = f"String should match pattern '^{TOOL_NAME.pattern}$'"
            yield not TOOL_NAME.fullmatch(str(name)), f"{at}.name: {pattern}"
            yield "input_schema" not in tool, f"{at}.input_schema: Field required"
            found = Schema(tool["input_schema"], strict=False).problem()
            yield found, f"{at}.input_schema: {found}"
        else:
            most, tag = tool.get("max_uses"), f"Input tag {kind!r} found using 'type' does not match any"
            known = SERVED_TOOL.fullmatch(str(kind)) or self.betas
            yield not known, f"{where}: {tag} of the expected tags"
            none = most is not None and not _at_least(most, 1)
            yield none, f"{at}.max_uses: Input should be greater than 0"

    def _cache(self) -> Refusals:
        lists = [self.tools, self.body.get("system"), *(turn["content"] for turn in self.turns)]
        blocks = [block for blocks in lists if isinstance(blocks, list) for block in blocks]
        marks = [block.get("cache_control") for block in [*blocks, self.body]]
        marks = [mark for mark in marks if mark is not None]
        for mark in marks:
            right = isinstance(mark, dict) and mark.get("type") == "ephemeral"
            yield (
                not (right and mark.keys() <= {"type", "ttl"}),
                "cache_control.type: Input should be 'ephemeral'",
            )
            life = "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"
            yield mark.get("ttl", "5m") not in ("5m", "1h"), life
        lives, most = [mark.get("ttl", "5m") for mark in marks], MAX_BREAKPOINTS
        many = f"A maximum of {most} blocks with cache_control may be provided. Found {len(marks)}."
        yield len(marks) > most, many
        after = "cache_control: a ttl='1h' block must not come after a ttl='5m' block"
        yield lives != sorted(lives), after

    def _output(self) -> Refusals:
        efforts, given = self.model.efforts, self.effort is not None
        yield given and not efforts, "This model does not support the effort parameter."
        among = ", ".join(map(repr, efforts))
        yield given and self.effort not in efforts, f"output_config.effort: Input should be one of {among}"
        if self.format:
            at, found = "output_config.format", schema_problem(json.dumps(self.format["schema"]))
            lists = [turn["content"] for turn in self.turns if isinstance(turn["content"], list)]
            cited = [block.get("citations") for blocks in lists for block in blocks]
            cites = any(isinstance(one, dict) and one.get("enabled") for one in cited)
            not_here = f"{at}: structured outputs are not supported on this model"
            yield not self.model.structured_outputs, not_here
            yield found, f"{at}.schema: {found}"
            yield cites, f"{at}: citations cannot be enabled together with structured outputs"

    def _thinking(self) -> Refusals:
        asked, model = self.body.get("thinking") or {}, self.model
        kind, bound, may = asked.get("type"), model.thinking_off_up_to_effort, ", ".join(model.thinking_types)
        never = f'"thinking.type.{kind}" is not supported for this model. Supported: {may or "none"}.'
        yield kind and kind not in model.thinking_types, never
        if kind == "enabled":
            budget, least = asked.get("budget_tokens"), FEW_THINKING_TOKENS
            few = f"thinking.budget_tokens: Input should be greater than or equal to {least}"
            yield not _at_least(budget, least), few
            over = "`max_tokens` must be greater than `thinking.budget_tokens`."
            yield budget >= self.body.get("max_tokens", math.inf), over
            yield self.forced, "Thinking may not be enabled when tool_choice forces tool use."
        elif kind != "adaptive" and kind and bound:
            late = self.effort in model.efforts[model.efforts.index(bound) + 1 :]
            words = f"is not supported at effort {self.effort!r}: use {bound!r} or lower"
            yield late, f'"thinking.type.{kind}" {words}'

    def _options(self) -> Refusals:
        body, model = self.body, self.model.id
        speed, stops = body.get("speed"), body.get("stop_sequences") or ()
        beta = speed and model in BETAS and not _has(self.betas, model)
        yield beta, "speed: Extra inputs are not permitted"
        yield speed == "fast" and model not in FAST, "speed: fast mode is not supported on this model"
        nowhere = body.get("inference_geo") and model in catalog.CHARGES.no_inference_geo
        yield nowhere, "inference_geo: not supported on this model"
        texts = all(isinstance(stop, str) for stop in stops)
        yield not texts, "stop_sequences: Input should be a valid list"
        blank = "stop_sequences: each stop sequence must contain non-whitespace"
        yield not all(stop.strip() for stop in stops), blank
        yield body.get("stream", 0) is None, "stream: Input should be a valid boolean"
        for name, default in SAMPLING.items():
            other = body.get(name) not in (None, default) and self.model.tokenizer == "2026"
            yield other, f"{name}: `{name}` may only be set to its default on {model}"


def _media(where: str, kind: str, *, type: str, media_type: Any, data: Any) -> Refusals:  # noqa: ARG001
    """Yield what may be wrong with an image or a PDF, by the first of its bytes."""
    kinds = [name for name in MEDIA if name.startswith("image/") == (kind == "image")]
    yield media_type not in kinds, f"{where}.media_type: Input should be {' or '.join(map(repr, kinds))}"
    try:
        raw = base64.b64decode(str(data), validate=True)
    except ValueError:
        yield True, f"{where}: invalid base64 data"
        return
    real = next((name for name in kinds if raw.startswith(MEDIA[name])), None)
    none = "Could not process image" if kind == "image" else f"{where}.data: The PDF was not valid."
    yield real is None, none
    says = f"The image was specified using the {media_type} media type, but the image appears to be"
    yield real != media_type, f"{where}: {says} a {real} image"
    wide = real == "image/png" and max(int.from_bytes(raw[at : at + 4]) for at in (16, 20)) > MOST_PIXELS
    yield wide, f"{where}: image dimensions exceed the maximum of {MOST_PIXELS} pixels"


def _at_least(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


# ------------------------------------------------------------------------------------------------ schemas
# Source: platform.claude.com, Structured outputs, "JSON Schema limitations" (checked 2026-08-22).

MAPPINGS, SEQUENCES = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "allOf")
SHAPES: dict[str, type] = dict.fromkeys(MAPPINGS, dict)
SHAPES |= dict.fromkeys(("required", "enum", *SEQUENCES), list) | {
    "$ref": str,
    "format": str,
    "minItems": int,
}


@lru_cache(maxsize=256)
def schema_problem(text: str) -> str | None:
    """Return why the API refuses a schema for ``output_config.format``, or None if it takes it."""
    return Schema(json.loads(text), strict=True).problem()


def resolved(root: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as ``#/$defs/Topic`` means, or None."""
    found = root if reference.startswith("#") else None
    for part in filter(None, reference[1:].split("/")):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


class Schema:
    """One look through a JSON schema; `strict` is what structured outputs ask of it, beyond being one."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        self._root, self._strict = root, strict
        self._optional = self._unions = 0

    def problem(self) -> str | None:
        """Return the first reason for refusal."""
        for wrong, words in self._walk(self._root, "(root)", frozenset()):
            if wrong:
                return words
        few, most = catalog.MESSAGE.schema_optional_parameters, catalog.MESSAGE.schema_union_parameters
        if self._optional > few:
            would = "which would make grammar compilation inefficient"
            return f"Schemas contain too many optional parameters ({self._optional}), {would}. Limit: {few}"
        if self._unions > most:
            many = f"({self._unions} parameters with type arrays or anyOf)"
            return f"Schemas contain too many parameters with union types {many}. Limit: {most}"
        return None

    def _walk(self, schema: Any, where: str, path: frozenset[str]) -> Iterator[tuple[Any, str]]:
        """Yield what may be wrong with a schema and those in it; `path` are the references that led here."""
        yield not isinstance(schema, dict), f"{where}: a schema must be an object"
        for word in SHAPES.keys() & schema.keys():
            wrong = not isinstance(schema[word], SHAPES[word]) or (schema[word] == [] and word != "required")
            yield wrong, f"{where}.{word}: not valid in a JSON schema"
        kinds = schema.get("type", "any")
        for word, texts in (
            ("type", kinds if isinstance(kinds, list) else [kinds]),
            ("required", _names(schema)),
        ):
            good = all(isinstance(text, str) for text in texts) and (texts or word == "required")
            yield not good, f"{where}.{word}: not valid in a JSON schema"
        parts = [schema["items"]] if "items" in schema else []
        parts += [part for word in SEQUENCES for part in schema.get(word, ())]
        if self._strict:
            yield from self._refused(schema, where)
            parts += schema.get("properties", {}).values()
            if reference := schema.get("$ref"):
                parts = [resolved(self._root, reference)]
                yield reference == "#" or reference in path, "Recursive schemas are not supported"
                yield parts == [None], f"{where}: $ref {reference!r} cannot be resolved"
                path |= {reference}
        else:
            parts += [part for word in MAPPINGS for part in schema.get(word, {}).values()]
        for part in parts:
            yield from self._walk(part, where, path)

    def _refused(self, schema: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
        """Yield what structured outputs may refuse of one schema's own keywords; count what they limit."""
        kind, properties = schema.get("type"), schema.get("properties", {})
        form = schema.get("format", "text")
        for word in REFUSED_WORDS.intersection(schema):
            yield True, f"For '{kind}' type, property '{word}' is not supported"
        for one in kind if isinstance(kind, list) else [kind]:
            yield one not in {None, *TYPES}, f"{where}: type {one!r} is not supported"
        few = "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
        yield schema.get("minItems", 0) not in {0, 1}, few
        unknown = kind == "string" and form not in FORMATS
        yield unknown, f"For 'string' type, format {form!r} is not supported"
        open_ = (kind == "object" or properties) and schema.get("additionalProperties") is not False
        yield open_, "For 'object' type, 'additionalProperties' must be explicitly set to false"
        self._unions += isinstance(kind, list) or "anyOf" in schema or "oneOf" in schema
        self._optional += sum(name not in _names(schema) for name in properties)


def _names(schema: dict[str, Any]) -> list[Any]:
    return schema.get("required") or []
