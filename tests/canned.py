"""A server on 127.0.0.1 that answers with what a function says, and is taken for the API."""

import http.server
import json
import socketserver
import threading
from contextlib import contextmanager

import claudescale as cs

KEY = "sk-ant-api03-not_a_real_key_0123456789"


def message(text="ok", **more):
    """Return a small Message."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
        **more,
    }


def error(kind, words, **details):
    """Return the body of an error."""
    return {
        "type": "error",
        "error": {"type": kind, "message": words, **({"details": details} if details else {})},
    }


class _Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size = True, 256

    def handle_error(self, *_):
        """Say nothing of connections that the other side has closed."""


@contextmanager
def served(script, **options):
    """Lend a client whose calls `script(path, body, number)` answers: status, headers, JSON or bytes.

    What is not asked at ``/v1/messages`` is not found. Bytes without a length end with the connection.
    """
    lock, seen = threading.Lock(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            """Answer one call."""
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            with lock:
                seen.append((self.path, body))
                number = len(seen)
            status, headers, out = script(self.path, body, number)
            out = out if isinstance(out, bytes) else json.dumps(out).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            if "connection" not in headers:
                self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)
            self.close_connection = "connection" in headers

        def do_GET(self):
            """Be no simulator."""
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

    server = _Threads(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        path = options.pop("path", "")
        client = cs.connect(api_key=KEY, base_url=f"http://127.0.0.1:{server.server_address[1]}{path}")
        client.seen = seen
        yield client
    finally:
        server.shutdown()
        server.server_close()
