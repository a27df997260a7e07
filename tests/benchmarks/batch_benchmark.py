"""Client processor time of a batch's rows, next to the SDK's own methods in the same run.

Run: ``python tests/benchmarks/batch_benchmark.py [rows]`` with the package importable. A small server in its
own process sends all contenders the same result lines. Each contender runs in its own process, twice, in
turns, and the smaller figure counts: microseconds of CPU per row, kernel time and all threads included, and
the highest additional memory of the process.
"""

import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from measured import measured

MODEL, BATCH, NONCE = "claude-haiku-5-5", "msgbatch_benchmark", "a1b2c3d4e5f6"
SENT_AT = 1_795_000_000.0
WORDS = ("the parcel came late", "its box was open", "“customer”", "said she wants", "her money back")


def result_lines(rows):
    """Yield results in the API's form: 2% errored, 2% expired, 4% with thinking, the rest replies."""
    drawn = random.Random(1)
    for number in range(rows):
        text = " ".join(drawn.choices(WORDS, k=drawn.randint(2, 20))) + ".\nEnd"
        content = [{"type": "text", "text": text}]
        if number % 25 == 3:
            content.insert(0, {"type": "thinking", "thinking": "", "signature": "Q" * 500})
        usage = {
            "input_tokens": 812 + number % 100,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 90 + number % 7,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "batch",
            "inference_geo": "global",
        }
        message = {"model": MODEL, "id": f"msg_{number:024d}", "type": "message", "role": "assistant",
                   "content": content, "stop_reason": "end_turn", "stop_sequence": None,
                   "stop_details": None, "usage": usage}  # fmt: skip
        result = {"type": "succeeded", "message": message}
        if number % 50 == 1:
            error = {"type": "overloaded_error", "message": "Overloaded"}
            result = {
                "type": "errored",
                "error": {"type": "error", "error": error, "request_id": f"req_{number:024d}"},
            }
        elif number % 50 == 2:
            result = {"type": "expired"}
        line = {"custom_id": f"{drawn.getrandbits(128):032x}-{NONCE}", "result": result}
        yield json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def serve(pipe, rows):
    """Serve one ended batch and its results until the process is ended."""
    from aiohttp import web  # noqa: PLC0415  # only this process

    lines = b"".join(result_lines(rows))
    counts = {"processing": 0, "succeeded": rows, "errored": 0, "canceled": 0, "expired": 0}
    moment = "2026-11-20T00:00:00Z"
    shown = {"id": BATCH, "type": "message_batch", "processing_status": "ended", "request_counts": counts,
             "created_at": moment, "expires_at": moment, "ended_at": moment}  # fmt: skip

    async def retrieve(request):
        return web.json_response(shown | {"results_url": f"{request.url}/results"})

    async def results(request):
        response = web.StreamResponse(headers={"content-type": "application/x-jsonl"})
        response.content_length = len(lines)
        await response.prepare(request)
        for start in range(0, len(lines), 1 << 18):
            await response.write(lines[start : start + (1 << 18)])
        return response

    async def create(request):
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
        assert size == request.content_length or request.content_length is None, size
        return web.json_response(shown | {"id": f"msgbatch_{size}", "processing_status": "in_progress"})

    async def run():
        app = web.Application()
        app.router.add_post("/v1/messages/batches", create)
        app.router.add_get("/v1/messages/batches/{id}", retrieve)
        app.router.add_get("/v1/messages/batches/{id}/results", results)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send((f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", len(lines) / rows))
        await asyncio.Event().wait()

    asyncio.run(run())


async def sdk_collect(url, **options):
    """Read every result by the SDK and keep the columns of a table of replies."""
    from anthropic import AsyncAnthropic  # noqa: PLC0415  # only this contender

    rows = []
    async with AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0, **options) as client:
        async for line in await client.messages.batches.results(BATCH):
            reply = line.result.message if line.result.type == "succeeded" else None
            text, tokens = (reply.content[-1].text, reply.usage.output_tokens) if reply else (None, 0)
            rows.append((line.custom_id, text, tokens))
    return len(rows)


async def sdk_collect_aiohttp(url):
    """Do the same over the SDK's faster transport."""
    from anthropic import DefaultAioHttpClient  # noqa: PLC0415  # only these contenders

    return await sdk_collect(url, http_client=DefaultAioHttpClient())


async def our_download(url):
    """Read the blocks of lines and discard them."""
    return await _streamed(url, lambda block: block.count(b"\n"))


async def our_attempts(url):
    """Read the blocks and make attempts of them."""
    return await _streamed(url, lambda block: attempts_of(block).height)


async def our_collect(url):
    """Read the blocks, make attempts of them, and keep them in a ledger on disk."""
    from claudescale.ledger.store import Store  # noqa: PLC0415  # only this contender

    def keep(block):
        frame = attempts_of(block)
        ledger.extend(frame)
        return frame.height

    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        closing(Store(Path(folder) / "a.ledger")) as ledger,
    ):
        return await _streamed(url, keep)


async def _streamed(url, take):
    """Forward the body in blocks of whole lines, about 8 MB each, and return the number of rows received."""
    from anthropic import AsyncAnthropic, DefaultAioHttpClient  # noqa: PLC0415  # only these contenders

    rows, parts, size = 0, [], 0
    transport = DefaultAioHttpClient()
    async with AsyncAnthropic(base_url=url, api_key="simulated", http_client=transport) as client:
        async with client.messages.batches.with_streaming_response.results(BATCH) as response:
            async for part in response.iter_bytes(1 << 18):
                parts.append(part)
                size += len(part)
                if size >= 1 << 23:
                    lines, _, rest = b"".join(parts).rpartition(b"\n")
                    rows += take(lines + b"\n")
                    parts, size = [rest], len(rest)
        return rows + take(b"".join(parts))


def attempts_of(block):
    from claudescale.api.prices import price  # noqa: PLC0415
    from claudescale.ledger.records import Batch  # noqa: PLC0415
    from claudescale.running.batch_rules import attempts  # noqa: PLC0415  # only our contenders

    batch = Batch(NONCE, "api", MODEL, 1, SENT_AT, "ended", BATCH, SENT_AT, ended_at=SENT_AT + 1_800)
    given = {"model": MODEL, "simulated": True, "run": "run"}
    return attempts(block, batch, price(MODEL, mode="batch"), trusted=True, **given)


COLLECT = {
    "SDK results()": sdk_collect,
    "SDK results(), aiohttp": sdk_collect_aiohttp,
    "ours, to the ledger": our_collect,
    "  without the ledger": our_attempts,
    "  download alone": our_download,
}


def texts(rows):
    """Return a frame of texts of 2.4 KB, so that 100,000 make a batch of 253 MB."""
    import polars as pl  # noqa: PLC0415  # only the contenders

    passage = " ".join(WORDS) + "\n"
    return pl.DataFrame({"text": [f"Row {number}. " + passage * 28 for number in range(rows)]})


async def sdk_create(url, frame):
    """Make the requests in Python and post them by the SDK."""
    from anthropic import AsyncAnthropic  # noqa: PLC0415  # only this contender

    same = {"model": MODEL, "max_tokens": 64}
    messages = ([{"role": "user", "content": f"Name it: {text}"}] for text in frame["text"])
    requests = [
        {"custom_id": f"{number:032x}-{NONCE}", "params": same | {"messages": each}}
        for number, each in enumerate(messages)
    ]
    async with AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0) as client:
        made = await client.messages.batches.create(requests=requests)
    return int(made.id.removeprefix("msgbatch_"))


async def our_create(url, frame):
    """Do the work of a run: key, claim and record every row, then post them as they are rendered."""
    import claudescale as cs  # noqa: PLC0415  # only this contender
    from claudescale.api.answers import read_object  # noqa: PLC0415
    from claudescale.api.client import BatchWire, RenderedBody, Wire  # noqa: PLC0415
    from claudescale.ledger.records import Batch  # noqa: PLC0415
    from claudescale.ledger.store import Store  # noqa: PLC0415
    from claudescale.running import batch_rules  # noqa: PLC0415

    plan = cs.plan(frame, "Name it: {text}", model=MODEL, max_tokens=64, thinking={"type": "disabled"})
    client = cs.connect(api_key="simulated", base_url=url)
    wire = Wire(client)
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        closing(Store(Path(folder) / "a.ledger")) as ledger,
    ):
        work = plan.compiled.work("benchmark")
        keys = ledger.claim(work.requests["key"].to_list())
        ledger.intend(Batch(NONCE, "benchmark", MODEL, len(keys), SENT_AT), keys)
        body = RenderedBody(lambda: batch_rules.body(work.requests, work, NONCE))
        answer = await BatchWire(wire, 1_000).create(body, batch_rules.body_bytes(work.requests))
    await wire.close()
    return int(read_object(answer.content)["id"].removeprefix("msgbatch_"))


CREATE = {"SDK create()": sdk_create, "ours, through the ledger": our_create}


def measure_create(pipe, contender, url, rows):
    """Send bytes, CPU seconds, wall seconds and memory of one contender, after one round of few rows."""
    asyncio.run(contender(url, texts(200)))
    frame = texts(rows)
    pipe.send(measured(lambda: asyncio.run(contender(url, frame))))


def measure(pipe, contender, small, url):
    """Send rows, CPU seconds, wall seconds and memory of one contender, after one round of few rows."""
    asyncio.run(contender(small))
    pipe.send(measured(lambda: asyncio.run(contender(url))))


def started(context, work, *arguments):
    """Return a running process and its first message."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, *arguments), daemon=True)
    process.start()
    sender.close()
    return process, receiver.recv()


def best_of_two(context, measure, contenders, *given):
    """Return each contender's reading with the least CPU, of two in turns."""
    best = {}
    for name, contender in [*contenders.items()] * 2:
        process, found = started(context, measure, contender, *given)
        process.join()
        best[name] = min(best.get(name, found), found, key=lambda each: each[1])
    return best


def collecting(context, rows):
    """Print the cost of turning a batch's results into a table."""
    servers = [started(context, serve, count) for count in (200, rows)]
    (small, _), (url, size) = (found for _, found in servers)
    best = best_of_two(context, measure, COLLECT, small, url)
    assert {found[0] for found in best.values()} == {rows}, best
    for server, _ in servers:
        server.terminate()
    base = best["SDK results()"][1]
    print(f"collecting {rows:,} results of {size:.0f} bytes: CPU us a row, wall s, memory MB")
    for name, (_, cpu, wall, memory) in best.items():
        ratio = f"{base / cpu:5.1f} x less than the SDK"
        print(f"  {name:24} {cpu / rows * 1e6:6.1f} {wall:6.2f} {memory:+6.0f}   {ratio}")


def creating(context, rows):
    """Print the cost of making a batch from a frame."""
    server, (url, _) = started(context, serve, 1)
    best = best_of_two(context, measure_create, CREATE, url, rows)
    server.terminate()
    base = best["SDK create()"][1]
    print(f"creating a batch of {rows:,} requests: MB, CPU us a row, wall s, memory MB")
    for name, (size, cpu, wall, memory) in best.items():
        ratio = f"{base / cpu:5.1f} x less than the SDK"
        print(f"  {name:24} {size / 1e6:5.0f} {cpu / rows * 1e6:6.1f} {wall:6.2f} {memory:+6.0f}   {ratio}")


def main(rows):
    context = multiprocessing.get_context("spawn")
    creating(context, rows)
    collecting(context, rows)


if __name__ == "__main__":
    main(int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 100_000)
