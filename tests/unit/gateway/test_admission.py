"""Large answers: handed on in pieces, bounded together, and cut off where nobody takes them."""

import asyncio
from typing import Any

import pytest
from starlette.responses import Response

from services.gateway import admission
from services.gateway.admission import PIECE, Admission

SCOPE = {"type": "http", "method": "GET", "path": "/large", "raw_path": b"/large", "query_string": b"", "headers": []}


async def receive() -> dict[str, Any]:
    return {"type": "http.request"}


def serving(body: bytes) -> Admission:
    nothing: Any = None
    return Admission(Response(body), nothing, nothing, nothing, nothing, lambda: 0.0)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 40 * PIECE + 7])
async def test_an_answer_leaves_whole_in_pieces(size: int) -> None:
    body, sent = bytes(n % 251 for n in range(size)), list[dict[str, Any]]()

    async def send(message: Any) -> None:
        sent.append(message)

    await serving(body)(dict(SCOPE), receive, send)
    parts = [message["body"] for message in sent[1:]]
    assert (b"".join(parts), max(map(len, parts)) <= PIECE) == (body, True)
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(parts) - 1) + [False]


async def test_large_answers_on_their_way_are_bounded_and_one_that_nobody_takes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_HELD", 3 * admission.LARGE)
    gate, statuses = serving(bytes(2 * admission.LARGE)), list[int]()
    begun, taken = asyncio.Event(), asyncio.Event()

    async def slowly(message: Any) -> None:
        begun.set()
        await taken.wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gate(dict(SCOPE), receive, slowly))
        await begun.wait()
        await gate(dict(SCOPE), receive, send)
        taken.set()
    await gate(dict(SCOPE), receive, send)
    taken.clear()
    monkeypatch.setattr(admission, "SEND_SECONDS", 0.01)
    await gate(dict(SCOPE), receive, slowly)
    await gate(dict(SCOPE), receive, send)
    assert (statuses, gate._held) == ([503, 200, 200], 0)
