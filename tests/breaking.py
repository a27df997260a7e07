"""A proxy before a server that breaks any call at any point: on its way there, within it, on its way back."""

import json
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

PATHS = {
    ("POST", "/v1/messages"): "message",
    ("POST", "/v1/messages/count_tokens"): "check",
    ("POST", "/v1/messages/batches"): "create",
    ("GET", "/v1/messages/batches"): "list",
}
HANG_SECONDS = 1.2


def endpoint(method, target):
    """Return the name of what is called."""
    path = target.partition("?")[0]
    if path.startswith("/v1/messages/batches/"):
        last = path.rpartition("/")[2]
        return last if last in {"cancel", "results"} else "retrieve"
    return PATHS.get((method, path), "other")


class Break(NamedTuple):
    """One way to break a call.

    `where` says when: "before" and "within" the request, "after" it (the server never sees it), "back" (the
    server has done its work). `answer` is sent instead of the server's, or a function of the server's.
    """

    where: str
    answer: object = b""
    end: str = "close"


def http(status, body=b"", kind="application/json", **headers):
    """Return a whole answer."""
    named = {"content-type": kind, "content-length": len(body), "connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body


def error(kind, message="Words of the API.", **details):
    """Return the body of an error in the API's form."""
    told = {"type": kind, "message": message, **({"details": details} if details else {})}
    return json.dumps({"type": "error", "error": told, "request_id": "req_broken"}).encode()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        """Pass one call on, or break it; either side may be gone at any time."""
        with suppress(OSError, ConnectionError):
            self._pass_on()

    def _pass_on(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        if not head:
            return
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        broken = self.server.broken(endpoint(method, target)) or Break("back", lambda answer: answer)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-1])
        length = int(fields.get(b"content-length", 0))
        body = self.rfile.read({"before": 0, "within": length // 2}.get(broken.where, length))
        answer = self._asked(head, body) if broken.where == "back" else b""
        self.wfile.write(broken.answer(answer) if callable(broken.answer) else broken.answer)
        if broken.end == "hang":
            time.sleep(HANG_SECONDS)
        if broken.end == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _asked(self, head, body):
        """Return the server's whole answer."""
        ours = (b"connection:", b"transfer-encoding:")
        lines = [line for line in head.split(b"\r\n")[:-1] if not line.lower().startswith(ours)]
        with socket.create_connection(self.server.behind) as server:
            server.sendall(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
            return b"".join(iter(lambda: server.recv(65_536), b""))


class Breaker(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1 and passes calls on to `url`, some of them broken; `struck` has those.

    `strikes(endpoint, number)` gives the `Break` of the call that is the so-manieth to its endpoint, or None.
    """

    daemon_threads, block_on_close, request_queue_size = True, False, 512

    def __init__(self, url, strikes):
        super().__init__(("127.0.0.1", 0), _Handler)
        host, _, port = url.removeprefix("http://").partition(":")
        self.behind, self.url = (host, int(port)), f"http://127.0.0.1:{self.server_address[1]}"
        self.calls, self.struck = Counter(), []
        self._strikes, self._lock = strikes, threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def broken(self, name):
        """Return how the next call to an endpoint is broken; None where it is not."""
        with self._lock:
            self.calls[name] += 1
            broken = self._strikes(name, self.calls[name])
            if broken is not None:
                self.struck.append((name, broken))
            return broken
