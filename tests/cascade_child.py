"""A process that runs a cascade by batch until it is killed: ``python cascade_child.py <url> <ledger>``."""

import sys

import anthropic
from parity import CHEAP, MODELS, RIGHT, answering, number_of, parity_plan

import claudescale as cs


def answer(body):
    """Tell even from odd; a model errs on every n-th number, and the cheap one breaks the form on 7s."""
    broken = body["model"] == CHEAP and number_of(body) % 7 == 0
    return "no json" if broken else answering(cheap=5, middle=20, dear=10_000)(body)


def the_cascade():
    """Return the cascade that child and parent run."""
    return cs.cascade(parity_plan(100, mode="batch"), MODELS, accept=RIGHT)


if __name__ == "__main__":
    url, ledger = sys.argv[1:]
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    cs.wait(the_cascade().run(client, ledger=ledger, progress=False))
