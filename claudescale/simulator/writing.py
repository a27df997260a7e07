"""Values that obey a JSON schema, chosen to look like an answer about a text."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from claudescale.simulator.words import FALLBACKS, Subject, label_stems

if TYPE_CHECKING:
    from random import Random

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
MAX_DEPTH = 24
MAX_VALUES = 5_000  # a tool may have a schema that contains itself
RATING_STEMS = frozenset(
    {"ratin", "score", "stars", "star", "grade", "senti", "satis", "sever", "prior", "urgen"}
)
ASIDE_STEMS = frozenset({"is", "has", "was", "are", "does", "menti", "conta", "inclu"})
FORMATS = {
    "date": "2026-01-{day:02d}",
    "time": "{hour:02d}:30:00Z",
    "date-time": "2026-01-{day:02d}T{hour:02d}:30:00Z",
    "duration": "P{day}D",
    "email": "person{day}@example.com",
    "hostname": "host{day}.example.com",
    "uri": "https://example.com/{day}",
    "ipv4": "192.0.2.{day}",
    "ipv6": "2001:db8::{day}",
    "uuid": "00000000-0000-4000-8000-0000000000{day:02d}",
}


TOLD = re.compile(
    r"(exclusive minimum|exclusive maximum|m(?:ax|in) (?:items|length)|minimum|maximum): (-?[\d.]+)"
)


def told_bounds(schema: dict[str, Any]) -> dict[str, float]:
    """Return the bounds that a description tells in words, where the API has no keyword for them."""
    text = schema.get("description")
    return (
        {name: float(value.rstrip(".")) for name, value in TOLD.findall(text)}
        if isinstance(text, str)
        else {}
    )


def within(value: float, bounds: dict[str, float], *, whole: bool) -> float:
    """Return the nearest number that the bounds allow."""
    step = 1 if whole else 0.01
    least = max(bounds.get("minimum", -math.inf), bounds.get("exclusive minimum", -math.inf) + step)
    most = min(bounds.get("maximum", math.inf), bounds.get("exclusive maximum", math.inf) - step)
    return min(max(value, least), most)


class Writer:
    """Writes one answer about one text.

    Parameters
    ----------
    subject : Subject
        The text the answer is about.
    schema : dict
        The root schema, for its definitions.
    fair : Random
        Draws that are the same for every model.
    own : Random
        Draws of the model that answers: where it errs.
    skill : float
        Chance that this model chooses as a perfect one would.
    """

    def __init__(
        self, subject: Subject, schema: dict[str, Any], fair: Random, own: Random, skill: float
    ) -> None:
        self._subject = subject
        self._root = schema
        self._fair = fair
        self._own = own
        self._skill = skill
        self._written = 0

    def write(self) -> Any:
        """Return a value that obeys the root schema."""
        return self._value(self._root, "", 0)

    def _value(self, schema: Any, name: str, depth: int) -> Any:
        self._written += 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._written > MAX_VALUES:
            return None
        further = self._further(schema)
        if further is not None:
            return self._value(further, name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choose(list(schema["enum"]))
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        return self._array(schema, name, depth) if kind == "array" else self._scalar(kind, schema, name)

    def _further(self, schema: dict[str, Any]) -> Any:
        """Return the schema that one of reference, union or merge stands for; None if it is none."""
        if "$ref" in schema:
            return self._resolve(schema["$ref"])
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self._branch(list(schema[word]))
        if schema.get("allOf"):
            return self._merge(schema)
        kind = schema.get("type")
        return {**schema, "type": self._type(kind)} if isinstance(kind, list) else None

    def _scalar(self, kind: Any, schema: dict[str, Any], name: str) -> Any:
        if kind == "boolean":
            return self._boolean(name)
        bounds = told_bounds(schema)
        if kind == "integer":
            return round(within(self._number(name, whole=True), bounds, whole=True))
        if kind == "number":
            return within(self._number(name, whole=False), bounds, whole=False)
        if kind == "null":
            return None
        text = self._string(schema.get("format"), name)
        most = int(bounds.get("max length", len(text)))
        return text[:most].ljust(int(bounds.get("min length", 0)), ".")

    def _resolve(self, reference: str) -> Any:
        found: Any = self._root
        for part in reference.removeprefix("#").split("/"):
            if part:
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key, {}) if isinstance(found, dict) else {}
        return found

    def _merge(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            whole = self._resolve(part["$ref"]) if "$ref" in part else part
            for key, value in whole.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *value]
                else:
                    merged.setdefault(key, value)
        return merged

    def _branch(self, branches: list[Any]) -> Any:
        rich = [each for each in branches if each.get("type") != "null"]
        if len(rich) < len(branches) and (not rich or self._fair.random() < 0.15):  # noqa: PLR2004
            return {"type": "null"}
        return rich[self._fair.randrange(len(rich))]

    def _type(self, kinds: list[str]) -> str:
        rich = [each for each in kinds if each != "null"]
        if len(rich) < len(kinds) and (not rich or self._fair.random() < 0.15):  # noqa: PLR2004
            return "null"
        return rich[0]

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = [key for key in schema.get("required") or () if key in properties]
        optional = [key for key in properties if key not in required and self._fair.random() < 0.8]  # noqa: PLR2004
        return {key: self._value(properties[key], key, depth + 1) for key in [*required, *optional]}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        bounds = told_bounds(schema)
        least = int(bounds.get("min items", schema.get("minItems", 0)))
        many = max(least, self._fair.randrange(1, 4))
        found: list[Any] = []
        for _ in range(min(many, int(bounds.get("max items", many)))):
            value = self._value(schema.get("items") or {"type": "string"}, name, depth + 1)
            if value not in found or len(found) < least:
                found.append(value)
        return found

    def _choose(self, labels: list[Any]) -> Any:
        texts = [each if isinstance(each, str) else json.dumps(each) for each in labels]
        if all(NUMBER.fullmatch(each) for each in texts):
            order = sorted(range(len(labels)), key=lambda index: float(texts[index]))
            best = order[self._place(len(labels))]
        else:
            scores = [self._subject.likeness(each) for each in texts]
            top = max(scores)
            if top > 0:
                ties = [index for index, score in enumerate(scores) if score == top]
            else:
                ties = [
                    index for index, each in enumerate(texts) if FALLBACKS & set(label_stems(each))
                ] or list(range(len(labels)))
            best = ties[self._fair.randrange(len(ties))]
        if len(labels) > 1 and self._own.random() > self._skill:
            best = (best + self._own.randrange(1, len(labels))) % len(labels)
        return labels[best]

    def _place(self, steps: int) -> int:
        """Where the text stands on a scale of `steps`, from its worst words to its best."""
        share = 0.5 + 0.2 * self._subject.sentiment + self._fair.uniform(-0.12, 0.12)
        return min(steps - 1, max(0, int(share * steps)))

    def _boolean(self, name: str) -> bool:
        stems = [each for each in label_stems(name) if each not in ASIDE_STEMS]
        likeness = sum(self._subject.likeness(each) for each in stems)
        answer = likeness > 0 or self._fair.random() < 0.2  # noqa: PLR2004
        return answer if self._own.random() <= self._skill else not answer

    def _number(self, name: str, *, whole: bool) -> float:
        if RATING_STEMS & set(label_stems(name)):
            return (
                self._place(5) + 1
                if whole
                else round(min(1.0, max(0.0, 0.5 + 0.15 * self._subject.sentiment)), 2)
            )
        if "confi" in label_stems(name) or "proba" in label_stems(name):
            return self._fair.randrange(60, 100) if whole else round(self._fair.uniform(0.6, 0.99), 2)
        found = [each for each in NUMBER.findall(self._subject.text[:4000]) if len(each) <= len("123456.789")]
        if found:
            value = float(found[self._fair.randrange(len(found))])
            return int(value) if whole else value
        return self._fair.randrange(1, 100) if whole else round(self._fair.uniform(0, 100), 2)

    def _string(self, form: Any, name: str) -> str:
        if form in FORMATS:
            return FORMATS[form].format(day=self._fair.randrange(1, 28), hour=self._fair.randrange(24))
        if "email" in label_stems(name):
            found = EMAIL.search(self._subject.text)
            return found.group() if found else "person@example.com"
        sentences = self._subject.sentences()
        words = sentences[self._fair.randrange(len(sentences))].split()
        return " ".join(words[: self._fair.randrange(6, 16)]).rstrip(",;:") or "nothing"
