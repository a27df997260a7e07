"""Several borrowers of one book in virtual time, against the simulator's own token buckets."""

import asyncio
import json

from paced import Api

from claudescale.api.limits import read_headers
from claudescale.books import Book, terms_of
from claudescale.clock import Clock
from claudescale.leases import Borrower


class Home:
    """Keeps a book as a cluster does, or as a state that is written and read each time, as Redis does."""

    def __init__(self, *, written=False, way_seconds=0.003):
        self.loop = asyncio.get_running_loop()
        self.written, self.way_seconds = written, way_seconds
        self.book = self.state = None
        self.messages = 0
        self.down = False

    async def __call__(self, message):
        await asyncio.sleep(self.way_seconds)
        if self.down:
            raise ConnectionError
        self.messages += 1
        message = json.loads(json.dumps(message))
        now = self.loop.time()
        if self.state is not None:
            self.book = Book.restored(json.loads(self.state), now)
        self.book = self.book or Book(message["terms"], now)
        reply = self.book.exchange(message, now)
        if self.written:
            self.state = json.dumps(self.book.state())
        await asyncio.sleep(self.way_seconds)
        return json.loads(json.dumps(reply))


async def study(limits, calls, *, borrowers, bucket_seconds=60.0, written=False, seed=0, die_at=None):
    """Run `calls` through that many borrowers; one of them falls silent for good at `die_at`."""
    loop = asyncio.get_running_loop()
    clock = Clock(1.0, 0.0, loop.time)
    api, home = Api(limits, bucket_seconds, seed), Home(written=written)
    terms = terms_of(limits, share=1.0, output_tokens=300.0, clock=clock)
    pacers = [Borrower(home, terms, clock=clock) for _ in range(borrowers)]
    source, refused, done, workers = iter(calls), 0, 0, []

    async def work(pacer):
        nonlocal refused, done
        for call in source:
            status = None
            while status != 200:
                permit = await pacer.acquire(call.estimate)
                status, headers = await api.answer(call)
                readings = read_headers(headers)
                if status == 200:
                    used = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
                    pacer.settle(permit, **used, readings=readings)
                else:
                    refused += 1
                    pacer.refuse(permit, readings)
            done += 1

    workers += [[loop.create_task(work(pacer)) for _ in range(200)] for pacer in pacers]
    if die_at is not None:
        await asyncio.sleep(die_at)
        for task in [*workers.pop(0), pacers.pop(0)._ticker]:
            task.cancel()
    for task in [task for some in workers for task in some]:
        await task
    seconds = loop.time()
    for pacer in pacers:
        await pacer.close()
    api.refused, api.done, api.seconds, api.home = refused, done, seconds, home
    return api
