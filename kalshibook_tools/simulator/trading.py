"""Lets the generated order flow happen in real time: timestamps are the wall clock's, frames go out within milliseconds."""

import asyncio
from itertools import count

from kalshibook_core.runtime import clock
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.flow import Changed, Flow, Happening, Listed
from kalshibook_tools.simulator.hurting import Hurting
from kalshibook_tools.simulator.server import Server

TICK = 0.005
BATCH = 256


async def trade(flow: Flow, server: Server, rate: float | None, duration: float | None, hurting: Hurting | None = None) -> None:
    """Trade at `rate` frames a second (None: as fast as the sockets take it), for `duration` seconds or for ever."""
    exchange = server.exchange
    for happening in flow.opening():
        happen(exchange, happening)
    started = clock.monotonic()
    while duration is None or clock.monotonic() - started < duration:
        await _unpaused(server, flow)
        if hurting is not None and exchange.frames >= hurting.next:
            await hurting.step(exchange.frames)
            await _unpaused(server, flow)
        now_us = clock.now_us()
        for n, (_, happening) in zip(count(), flow.advance(now_us, rate), strict=False):
            happen(exchange, happening)
            if n % BATCH == BATCH - 1:
                await server.drained()
                await asyncio.sleep(0)
                await _unpaused(server, flow)
        if rate is None:
            sent = exchange.frames
            while exchange.frames - sent < BATCH:
                events = flow.burst(now_us)
                for event in events:
                    exchange.publish(event)
                if not events:
                    break
        else:
            # Where the machine is too slow for the rate, it is missed, and time does not pile up.
            flow.skip_to(now_us - 1_000_000)
        await server.drained()
        await asyncio.sleep(TICK if rate is not None else 0)
    exchange.done = True


async def _unpaused(server: Server, flow: Flow) -> None:
    """Wait while trading is paused: nothing happens then, nor afterwards what would have."""
    if not server.unpaused.is_set():
        await server.drained()
        await server.unpaused.wait()
        flow.skip_to(clock.now_us())


def happen(exchange: Exchange, happening: Happening) -> None:
    """Let one thing of the flow happen on the exchange."""
    if isinstance(happening, Listed):
        exchange.list_market(dict(happening.body), happening.event, happening.market_id)
    elif isinstance(happening, Changed):
        exchange.markets[happening.ticker].body.update(happening.changes)
    else:
        exchange.publish(happening)
