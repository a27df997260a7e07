"""The body of a new batch: read as it comes, row by row, so that a large one holds up nobody.

A row is checked when it is complete and kept as the bytes it came in; nothing else of the body is.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from claudescale.api import catalog
from claudescale.simulator.checks import Problem, invalid

CUSTOM_ID = re.compile(catalog.BATCH.custom_id_pattern.removeprefix("^").removesuffix("$"))
FIELDS = frozenset({"requests", "workspace_id"})
SPACE = re.compile(r"[ \t\n\r]*")
PASSES = {  # what a character in a state leads to; in the other states a value stands
    ("begin", "{"): "keys",
    ("keys", "}"): "end",
    ("colon", ":"): "value",
    ("rows", "]"): "next",
    ("comma", ","): "row",
    ("comma", "]"): "next",
    ("next", ","): "key",
    ("next", "}"): "end",
}
FOLLOWS = {"keys": "colon", "key": "colon", "value": "next", "rows": "comma", "row": "comma"}


class Intake:
    """Reads ``{"requests": [...]}`` in parts of any size.

    Parameters
    ----------
    max_bytes : int
        Beyond this the body is too long, and nothing of it is kept.

    Attributes
    ----------
    rows : list of bytes
        Each request of the batch as JSON, while nothing is wrong with any.
    """

    def __init__(self, max_bytes: int = catalog.BATCH.max_bytes) -> None:
        self.rows: list[bytes] = []
        self._max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._wrong: Problem | None = None
        self._unknown: str | None = None
        self._broken = ""
        self._seen: set[str] = set()
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._read = json.JSONDecoder().raw_decode
        self._state, self._key = "begin", ""
        self._text, self._at, self._need = "", 0, 0
        self._waiting: list[str] = []
        self._waits = 0

    def feed(self, part: bytes) -> None:
        """Read on."""
        self._bytes += len(part)
        if self._bytes > self._max_bytes or self._broken:
            self._drop()
            return
        try:
            text = self._decode(part)
        except UnicodeDecodeError as error:
            self._broken = str(error)
            return
        self._waiting.append(text)
        self._waits += len(text)
        if len(self._text) - self._at + self._waits >= self._need:
            self._text = "".join((self._text[self._at :], *self._waiting))
            self._at, self._waits = 0, 0
            self._waiting.clear()
            while self._step():
                pass

    def _step(self) -> bool:
        """Go on by one character or one value; False where more is needed."""
        self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches nothing too
        char = self._text[self._at : self._at + 1]
        if not char or self._broken:
            return False
        following = PASSES.get((self._state, char))
        if following is None and self._state == "value" and self._key == "requests" and char == "[":
            following = "rows"
        if following is not None:
            self._state = following
            self._at += 1
            return True
        if self._state not in FOLLOWS:
            self._broken = f"{char!r} was not expected"
            return False
        return self._value()

    def _value(self) -> bool:
        try:
            value, end = self._read(self._text, self._at)
        except (ValueError, RecursionError):
            end = len(self._text)
        if end == len(self._text):  # it may go on: try again when twice as much is there
            self._need = 2 * (end - self._at)
            return False
        self._need = 0
        if self._state in {"rows", "row"}:
            self._add(value, self._text[self._at : end])
        elif self._state == "value":
            self._unknown = self._unknown or (None if self._key in FIELDS else self._key)
        elif isinstance(value, str):
            self._key = value
        else:
            self._broken = "property names must be in double quotes"
        self._state, self._at = FOLLOWS[self._state], end
        return True

    def _add(self, row: Any, text: str) -> None:
        index, self._count = self._count, self._count + 1
        if self._wrong is None:
            self._wrong = self._problem(index, row)
        if self._wrong is not None or self._count > catalog.BATCH.max_requests:
            self.rows = []
        else:
            self.rows.append(text.encode("utf-8", "surrogatepass"))

    def _problem(self, index: int, row: Any) -> Problem | None:
        where = f"requests.{index}"
        if not isinstance(row, dict):
            return invalid(f"{where}: Input should be a valid dictionary")
        custom_id = row.get("custom_id")
        if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
            pattern = catalog.BATCH.custom_id_pattern
            return invalid(f"{where}.custom_id: String should match pattern {pattern!r}")
        if custom_id in self._seen:
            return invalid(f"{where}.custom_id: duplicate custom_id {custom_id!r}")
        self._seen.add(custom_id)
        if not isinstance(row.get("params"), dict):
            return invalid(f"{where}.params: Field required")
        further = next((name for name in row if name not in {"custom_id", "params"}), None)
        return None if further is None else invalid(f"{where}.{further}: Extra inputs are not permitted")

    def end(self) -> Problem | None:
        """Return why no batch can be made of what was read, or None."""
        self._need = 0
        self.feed(b"")
        self._seen = set()
        problem = self._judged()
        if problem is not None:
            self._drop()
        return problem

    def _judged(self) -> Problem | None:
        if self._bytes > self._max_bytes:
            message = "Request exceeds the maximum allowed number of bytes. "
            message += f"The maximum request size is {self._max_bytes} bytes."
            return Problem(413, "request_too_large", message)
        if self._broken or self._state != "end":
            return invalid(f"The request body is not valid JSON: {self._broken or 'it is not complete'}")
        if self._unknown is not None:
            return invalid(f"{self._unknown}: Extra inputs are not permitted")
        most = catalog.BATCH.max_requests
        if self._count > most:
            message = f"requests: at most {most} requests fit into a batch, not {self._count}"
            return Problem(413, "request_too_large", message)
        if not self._count:
            return invalid("requests: List should have at least 1 item after validation, not 0")
        return self._wrong

    def _drop(self) -> None:
        self.rows, self._text, self._waiting, self._at, self._waits = [], "", [], 0, 0
