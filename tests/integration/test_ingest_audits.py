"""REST's order books in the raw topic: verbatim, with the time they were asked for, of every market in its turn."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import clock
from kalshibook_core.wire.events import AUDIT, RawFrame
from services.ingest import audits
from tests.integration.test_ingest_capture import capturing

pytestmark = pytest.mark.stack


async def test_every_market_is_audited_in_its_turn(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MOST", 2)
    async with capturing(cluster, tmp_path, lambda settings: replace(settings, audits_per_minute=1200)) as capture:
        await capture.begun()
        capture.exchange.pause()
        paused_us = clock.now_us()

        def audited() -> list[RawFrame]:
            return [r for r in capture.records if r.channel == AUDIT and r.generation > paused_us]

        active = {ticker for ticker, m in capture.exchange.exchange.markets.items() if m.body["status"] == "active"}
        await capture.until(lambda: active <= {r.market_ticker for r in audited()}, "a book of every market")
        books = {ticker: {"ticker": ticker, **capture.exchange.exchange.markets[ticker].rest_book()} for ticker in active}
    for r in audited():
        assert (r.kind, r.connection, r.sid, r.seq, r.detail) == ("REST", -1, -1, -1, "/trade-api/v2/markets/orderbooks")
        assert orjson.loads(r.payload) == books[r.market_ticker]
        assert r.generation <= r.recv_us and abs(r.clock_us - r.recv_us) < 10_000_000
    times = [r.generation for r in audited()]
    assert max(times.count(at) for at in times) <= 2
