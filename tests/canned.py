"""A server on this machine that sends canned answers over plain sockets, without any of our code."""

import http.client
import http.server
import json
import socketserver
import threading
from contextlib import contextmanager

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


def error(kind, words, **details):
    """Return the body of an error."""
    told = {"type": kind, "message": words} | ({"details": details} if details else {})
    return {"type": "error", "error": told, "request_id": "req_1"}


NOT_FOUND = (404, {}, error("not_found_error", "Not found"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self._body()
        with self.server.lock:
            self.server.seen.append((self.command, self.path, dict(self.headers), body))
        status, headers, content = self.server.handler(self.command, self.path, self.headers, body)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.close_connection = "connection" in headers  # then it ends without having declared its length
        if not self.close_connection:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    do_GET = do_POST = do_DELETE = do_CONNECT = _answer  # noqa: N815 - the names that are called


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size = True, 512

    def handle_error(self, *_):
        pass  # from connections that the other side has closed


class Canned:
    """Answers ``handler(method, path, headers, body) -> (status, headers, body)``; `seen` has every call."""

    def __init__(self, handler, *, context=None):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handler, self._server.seen, self._server.lock = handler, [], threading.Lock()
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
