"""A server on this machine that sends canned answers, or another server's, over plain sockets."""

import http.client
import http.server
import json
import socket
import socketserver
import struct
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import claudescale as cs

KEY = "sk-ant-api03-not_a_real_key_0123456789"
USAGE = {"input_tokens": 10, "output_tokens": 5}
HOP_BY_HOP = {"connection", "content-length", "transfer-encoding"}


def message(text="ok", **changes):
    """Return a Message."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
        **changes,
    }


def error(kind, words="Words of the API.", **details):
    """Return the body of an error."""
    told = {"type": kind, "message": words} | ({"details": details} if details else {})
    return {"type": "error", "error": told, "request_id": "req_1"}


NOT_FOUND = (404, {}, error("not_found_error", "Not found"))


class Reset(bytes):
    """The bytes sent before the connection is reset."""

    __slots__ = ()


def http_bytes(status, headers, content, **more):
    """Return an answer as bytes, with more headers."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"content-type": "application/json", "content-length": len(content), **headers, **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + content


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.handler(self.command, self.path, self.headers, body)
        with suppress(OSError):  # the client may disconnect at any time
            self.wfile.write(answer if isinstance(answer, bytes) else http_bytes(*answer))
        if isinstance(answer, Reset):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = isinstance(answer, bytes)

    do_GET = do_POST = do_DELETE = do_CONNECT = _answer  # noqa: N815 - the names that are called


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size = True, 512

    def handle_error(self, *_):
        pass  # from connections that the other side has closed


class Canned:
    """Answers ``handler(method, path, headers, body) -> (status, headers, body)``; `seen` has every call.

    Raw bytes are an answer too; then the connection is closed.
    """

    def __init__(self, handler, *, context=None):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handler, self._server.seen = handler, []
        self.seen, self.port = self._server.seen, self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path="/v1/messages"):
        """Return the bodies posted to a path."""
        return [body for method, target, _, body in self.seen if (method, target) == ("POST", path)]


@contextmanager
def served(script, *, path=""):
    """Yield a client whose calls `script(path, body, number)` answers; anything but a POST gets a 404."""

    def handler(method, target, _headers, body):
        if method != "POST":
            return NOT_FOUND
        client.seen.append((target, body))
        return script(target, body, len(client.seen))

    with Canned(handler) as server:
        client = cs.connect(api_key=KEY, base_url=server.url + path)
        client.seen = []
        yield client


def passed_on(url):
    """Return a handler that asks another server, such as a simulator."""

    def handler(method, path, headers, body):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        dropped = HOP_BY_HOP | {"host", "accept-encoding"}
        asked = {name.lower(): value for name, value in headers.items() if name.lower() not in dropped}
        connection.request(method, path, body or None, {"authorization": "Bearer any", **asked})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        named = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        return answer.status, named, content

    return handler


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
        return http_bytes(*self.ask())


def endpoint(method, target):
    """Return the name of the endpoint."""
    match method, target.partition("?")[0].split("/"):
        case "POST", ["", "v1", "messages"]:
            return "message"
        case _, ["", "v1", "messages", "batches"]:
            return "create" if method == "POST" else "list"
        case _, ["", "v1", "messages", "batches", _]:
            return "retrieve"
        case _, ["", "v1", "messages", "batches", _, last]:
            return last
    return "other"


class Breaker(Canned):
    """Forwards calls to `url`. `change(call)` returns another answer, or None.

    `calls` counts the calls by endpoint; `struck` has the changed ones.
    """

    def __init__(self, url, change):
        super().__init__(self._answered)
        self.calls, self.struck = Counter(), []
        self._change, self._asked, self._lock = change, passed_on(url), threading.Lock()

    def _answered(self, method, path, headers, body):
        name = endpoint(method, path)
        with self._lock:
            self.calls[name] += 1
            call = Call(name, self.calls[name], path, (method, headers, body), self._asked)
        answer = self._change(call)
        if answer is None:
            answer = call.ask()
        else:
            self.struck.append(call)
        return answer if isinstance(answer, bytes) else http_bytes(*answer, connection="close")


class BatchApi:
    """A handler that ends batches at once and takes each row's result from ``answer(params) -> result``."""

    def __init__(self, answer):
        self._answer, self._lines = answer, {}

    def __call__(self, method, path, _headers, body):
        """Answer one call."""
        match method, path:
            case "POST", "/v1/messages":
                return 200, {}, self._answer(json.loads(body)).get("message", message())
            case "POST", "/v1/messages/batches":
                rows = json.loads(body)["requests"]
                results = {row["custom_id"]: self._answer(row["params"]) for row in rows}
                kinds = [result["type"] for result in results.values()]
                shown = {
                    "id": f"msgbatch_{len(self._lines) + 1}",
                    "processing_status": "ended",
                    "request_counts": {kind: kinds.count(kind) for kind in kinds},
                    "created_at": "2026-11-20T10:00:00Z",
                    "ended_at": "2026-11-20T10:01:00Z",
                    "results_url": "any",
                }
                lines = ({"custom_id": name, "result": result} for name, result in results.items())
                self._lines[f"{path}/{shown['id']}/results"] = "\n".join(map(json.dumps, lines)).encode()
                return 200, {}, shown
        return (200, {}, self._lines[path]) if path in self._lines else NOT_FOUND
