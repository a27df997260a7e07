"""A proxy before a server that breaks any call at any point: on its way there, within it, on its way back."""

import asyncio
import json
import socket
import struct
import threading
from typing import NamedTuple

PATHS = {
    ("POST", "/v1/messages"): "message",
    ("POST", "/v1/messages/count_tokens"): "check",
    ("POST", "/v1/messages/batches"): "create",
    ("GET", "/v1/messages/batches"): "list",
}
HANG_SECONDS = 30.0


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

    @property
    def is_seen(self):
        """Whether the server has done its work."""
        return self.where == "back"


def http(status, body=b"", kind="application/json", **headers):
    """Return a whole answer."""
    named = {"content-type": kind, "content-length": len(body), "connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body


def error(kind, message="Words of the API.", **details):
    """Return the body of an error in the API's form."""
    told = {"type": kind, "message": message, **({"details": details} if details else {})}
    return json.dumps({"type": "error", "error": told, "request_id": "req_broken"}).encode()


def cut(place):
    """Return what cuts an answer: within the first line, the headers, or the body."""

    def shortened(answer):
        head = answer.index(b"\r\n\r\n") + 4
        ends = {"line": 10, "headers": head // 2, "body": head, "middle": (head + len(answer)) // 2}
        return answer[: ends[place]]

    return shortened


class Breaker:
    """Listens on 127.0.0.1 in a thread of its own and passes calls on to `url`, some of them broken.

    `strikes(endpoint, number)` gives the `Break` of the call that is the so-manieth to its endpoint, or None.
    """

    def __init__(self, url, strikes):
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._strikes = strikes
        self.calls = {}
        self.struck = []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self, ready):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._call, "127.0.0.1", 0, limit=2**26))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _call(self, reader, writer):
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError):  # one side has gone
            pass
        finally:
            writer.close()

    async def _pass_on(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        name = endpoint(method, target)
        number = self.calls[name] = self.calls.get(name, 0) + 1
        broken = self._strikes(name, number)
        if broken is not None:
            self.struck.append((name, broken))
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        length = int(fields.get(b"content-length", 0))
        if broken is not None and broken.where in {"before", "within"}:
            await reader.readexactly(length // 2 if broken.where == "within" else 0)
            await self._end(writer, broken, b"")
            return
        body = await reader.readexactly(length)
        answer = b"" if broken is not None and not broken.is_seen else await self._asked(head, body)
        if broken is None:
            writer.write(answer)
            await writer.drain()
        else:
            await self._end(writer, broken, answer)

    async def _asked(self, head, body):
        """Return the server's whole answer."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        ours = (b"connection:", b"transfer-encoding:")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(ours)]
        writer.write(b"\r\n".join([*lines[:-2], b"connection: close", b"", b""]) + body)
        await writer.drain()
        try:
            return await reader.read()
        finally:
            writer.close()

    async def _end(self, writer, broken, answer):
        writer.write(broken.answer(answer) if callable(broken.answer) else broken.answer)
        await writer.drain()
        if broken.end == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if broken.end == "reset":
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
