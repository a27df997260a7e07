"""Which JSON schemas structured outputs accept.

Source: platform.claude.com, Structured outputs, "JSON Schema limitations" (checked 2026-08-22).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from claudescale.api.catalog import MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = frozenset(
    {
        *(
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
            "minLength",
            "maxLength",
        ),
        *("maxItems", "uniqueItems", "minProperties", "maxProperties", "patternProperties", "prefixItems"),
        *("contains", "if", "then", "else", "not"),
    }
)
FORMATS = frozenset(
    {"text", "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
SHAPES = {
    **dict.fromkeys(("properties", "$defs", "definitions"), dict),
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf", "allOf"), list),
    **dict.fromkeys(("$ref", "format"), str),
    "minItems": int,
}
TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})


def schema_problem(schema: dict[str, Any]) -> str | None:
    """Return why the API refuses a schema for ``output_config.format``, or None if it takes it."""
    return _problem(json.dumps(schema))


def shape_problem(schema: Any, where: str = "(root)") -> str | None:
    """Return where a value is not a JSON schema at all, or None."""
    if not isinstance(schema, dict):
        return f"{where}: a schema must be an object"
    for word, kind in SHAPES.items():
        empty = word != "required" and schema.get(word) == []
        if word in schema and (empty or not isinstance(schema[word], kind)):
            return f"{where}.{word}: not valid in a JSON schema"
    kinds = schema.get("type", "any")
    if not isinstance(kinds, (str, list)) or not kinds or not all(isinstance(each, str) for each in kinds):
        return f"{where}.type: not valid in a JSON schema"
    if not all(isinstance(each, str) for each in schema.get("required", ())):
        return f"{where}.required: not valid in a JSON schema"
    parts = [schema["items"]] if "items" in schema else []
    for word in ("properties", "$defs", "definitions"):
        parts.extend(schema.get(word, {}).values())
    for word in ("anyOf", "oneOf", "allOf"):
        parts.extend(schema.get(word, ()))
    return next((found for part in parts if (found := shape_problem(part, f"{where}/"))), None)


@lru_cache(maxsize=256)
def _problem(text: str) -> str | None:
    schema = json.loads(text)
    return shape_problem(schema) or Inspection(schema).problem()


class Inspection:
    """One look through a schema, with counts of what the API limits."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._optional = 0
        self._unions = 0

    def problem(self) -> str | None:
        """Return the first reason for refusal."""
        for name in ("$defs", "definitions"):
            for key in self._root.get(name) or ():
                if self._returns(f"#/{name}/{key}", frozenset()):
                    return f"Recursive schemas are not supported: {key}"
        for found in self._walk(self._root, "", frozenset()):
            return found
        if self._optional > MESSAGE.schema_optional_parameters:
            return (
                f"Schemas contain too many optional parameters ({self._optional}), which would make grammar "
                f"compilation inefficient. Limit: {MESSAGE.schema_optional_parameters}"
            )
        if self._unions > MESSAGE.schema_union_parameters:
            return (
                f"Schemas contain too many parameters with union types ({self._unions} parameters with type "
                f"arrays or anyOf). Limit: {MESSAGE.schema_union_parameters}"
            )
        return None

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found: Any = self._root
        for part in reference[1:].split("/"):
            if part:
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key) if isinstance(found, dict) else None
        return found

    def _returns(self, reference: str, path: frozenset[str]) -> bool:
        """Whether following the references from `reference` comes back to one on the path."""
        if reference in path:
            return True
        return any(self._returns(each, path | {reference}) for each in _references(self._target(reference)))

    def _walk(self, schema: Any, where: str, path: frozenset[str]) -> Iterator[str]:
        yield from self._words(schema, where)
        if "$ref" in schema:
            yield from self._reference(schema["$ref"], where, path)
            return
        kinds = schema.get("type")
        if isinstance(kinds, list) or "anyOf" in schema or "oneOf" in schema:
            self._unions += 1
        for word in ("anyOf", "oneOf", "allOf"):
            for each in schema.get(word) or ():
                yield from self._walk(each, where, path)
        if kinds == "object" or "properties" in schema:
            yield from self._object(schema, where, path)
        if kinds == "array" and "items" in schema:
            yield from self._walk(schema["items"], f"{where}[]", path)

    def _reference(self, reference: Any, where: str, path: frozenset[str]) -> Iterator[str]:
        if self._target(reference) is None:
            yield f"{where or '(root)'}: $ref {reference!r} cannot be resolved"
        elif reference == "#" or reference in path:
            yield "Recursive schemas are not supported"
        else:
            yield from self._walk(self._target(reference), where, path | {reference})

    @staticmethod
    def _words(schema: dict[str, Any], where: str) -> Iterator[str]:
        """Yield what is refused of one schema's own keywords."""
        kinds = schema.get("type")
        for word in schema:
            if word in REFUSED:
                yield f"For '{kinds}' type, property '{word}' is not supported"
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind is not None and kind not in TYPES:
                yield f"{where or '(root)'}: type {kind!r} is not supported"
        if schema.get("minItems", 0) not in {0, 1}:
            yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
        if kinds == "string" and schema.get("format", "text") not in FORMATS:
            yield f"For 'string' type, format {schema['format']!r} is not supported"

    def _object(self, schema: dict[str, Any], where: str, path: frozenset[str]) -> Iterator[str]:
        if schema.get("additionalProperties") is not False:
            yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        self._optional += sum(1 for key in properties if key not in required)
        for key, each in properties.items():
            yield from self._walk(each, f"{where}.{key}", path)


def _references(schema: Any) -> Iterator[str]:
    """Yield every $ref below a schema, without following them."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)
