"""A proxy in front of a server that changes the answer to any call or breaks its connection."""

import json
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import canned

PATHS = {
    ("POST", "/v1/messages"): "message",
    ("POST", "/v1/messages/count_tokens"): "check",
    ("POST", "/v1/messages/batches"): "create",
    ("GET", "/v1/messages/batches"): "list",
}


class Reset(bytes):
    """The bytes sent before the connection is reset."""

    __slots__ = ()


@dataclass
class Call:
    """One call: its endpoint, its number at that endpoint, and its path; `ask` forwards it to the server."""

    name: str
    number: int
    path: str
    given: tuple
    server: object
    was_asked: bool = False

    def ask(self, path=None):
        """Return the server's answer: status, headers, content."""
        self.was_asked = True
        method, headers, body = self.given
        return self.server(method, path or self.path, headers, body)

    def raw(self):
        """Return the server's answer as bytes."""
        return http(*self.ask())


def endpoint(method, target):
    """Return the name of the endpoint."""
    path = target.partition("?")[0]
    if path.startswith("/v1/messages/batches/"):
        last = path.rpartition("/")[2]
        return last if last in {"cancel", "results"} else "retrieve"
    return PATHS.get((method, path), "other")


def http(status, headers, content):
    """Return an answer as bytes."""
    named = {"content-type": "application/json", "content-length": len(content), "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (named | headers).items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + content


def error(kind, message="Words of the API.", **details):
    """Return the body of an error in the API's form."""
    return json.dumps(canned.error(kind, message, **details)).encode()


class _Handler(canned._Handler):
    def _answer(self):
        """Forward or change one call; the client may disconnect at any time."""
        body = self._body()
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.handler(self.command, self.path, self.headers, body)
        with suppress(OSError):
            self.wfile.write(answer if isinstance(answer, bytes) else http(*answer))
        if isinstance(answer, Reset):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that are called


class Breaker(canned.Canned):
    """Forwards calls to `url`. `change(call)` returns another answer, or None.

    An answer is ``(status, headers, content)``, or raw bytes, after which the connection is closed. `calls`
    counts the calls by endpoint; `struck` has the changed ones.
    """

    def __init__(self, url, change):
        super().__init__(self._answered)
        self._server.RequestHandlerClass = _Handler
        self.calls, self.struck = Counter(), []
        self._change, self._asked = change, canned.passed_on(url)

    def _answered(self, method, path, headers, body):
        name = endpoint(method, path)
        with self._server.lock:
            self.calls[name] += 1
            call = Call(name, self.calls[name], path, (method, headers, body), self._asked)
        answer = self._change(call)
        if answer is None:
            return call.ask()
        self.struck.append(call)
        return answer
