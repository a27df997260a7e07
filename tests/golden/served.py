"""A server on this machine that gives canned answers, over plain sockets: no code of ours is in it."""

import http.server
import json
import socketserver
import threading

KEY = "sk-ant-api03-not_a_real_key_0123456789"
USAGE = {"input_tokens": 10, "output_tokens": 5}


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
    """Return an error's body."""
    told = {"type": kind, "message": words, **({"details": details} if details else {})}
    return {"type": "error", "error": told, "request_id": "req_1"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self._body()
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        status, headers, content = self.server.handler(self.command, self.path, self.headers, body)
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self):
        if "chunked" not in (self.headers.get("transfer-encoding") or ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that are called


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size = True, 512

    def handle_error(self, *_):
        pass


class Canned:
    """Answers ``handler(method, path, headers, body) -> (status, headers, body)``; `seen` has every call."""

    def __init__(self, handler):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.handler, self._server.seen = handler, []
        self.seen = self._server.seen
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path="/v1/messages"):
        """Return the bodies that were posted to a path."""
        return [body for method, target, _, body in self.seen if (method, target) == ("POST", path)]


class BatchApi:
    """A handler that takes batches, and gives ``answer(params) -> result`` for each of their rows."""

    def __init__(self, answer):
        self._answer, self._made = answer, {}

    def __call__(self, method, path, _headers, body):
        """Answer one call."""
        path = path.partition("?")[0]
        name, _, rest = (
            path.removeprefix("/v1/messages").strip("/").removeprefix("batches").strip("/").partition("/")
        )
        match method, path:
            case "POST", "/v1/messages":
                found = self._answer(json.loads(body)).get("message", message())
            case "POST", "/v1/messages/count_tokens":
                found = {"input_tokens": 12}
            case "POST", "/v1/messages/batches":
                found = self._create(json.loads(body)["requests"])
            case "GET", "/v1/messages/batches":
                found = {"data": [self._shown(each) for each in reversed(self._made)], "has_more": False}
            case "GET", _ if name in self._made:
                found = self._results(name) if rest == "results" else self._shown(name)
            case _:
                return 404, {}, error("not_found_error", "Not found")
        return 200, {}, found

    def _create(self, requests):
        batch_id = f"msgbatch_{len(self._made) + 1}"
        self._made[batch_id] = [(each["custom_id"], self._answer(each["params"])) for each in requests]
        counts = {"processing": len(requests), "succeeded": 0}
        return {**self._shown(batch_id), "processing_status": "in_progress", "request_counts": counts}

    def _results(self, batch_id):
        lines = [json.dumps({"custom_id": key, "result": result}) for key, result in self._made[batch_id]]
        return "\n".join(lines).encode()

    def _shown(self, batch_id):
        kinds = [result["type"] for _, result in self._made[batch_id]]
        counts = {name: kinds.count(name) for name in ("succeeded", "errored", "canceled", "expired")}
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended",
            "request_counts": {"processing": 0, **counts},
            "created_at": "2026-11-20T10:00:00Z",
            "expires_at": "2026-11-21T10:00:00Z",
            "ended_at": "2026-11-20T10:01:00Z",
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"/v1/messages/batches/{batch_id}/results",
        }
