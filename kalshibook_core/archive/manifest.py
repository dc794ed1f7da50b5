"""What is said of a file, beside it, and of a commit. Pure; JSON.

A file's manifest:

    format, path, table, channel, day, series, topic, partition, offsets [first, next) of its commit
    rows, bytes, sha256               of the Parquet file beside it
    time                              {first_us, last_us} of its rows, by the clock of its table
    markets                           by ticker: rows, first_us, last_us, and of a book
        first_version, last_version
        checksum                      of the book after last_version, 16 hex digits
        segments                      runs of versions that replay without a hole, {first, last, whole}; `whole`: it begins with a
                                      whole book, else with the book after version first - 1
        gaps                          what is not known, {start_us, end_us, cause}; end_us null: not ended in this file
                                      (of every kind of file, not of books alone)
        quality                       from its first row to its last: {state, from_us, to_us, covered_us, uncovered_us,
                                      recordable_us, completeness_ppm}, as `kalshibook_core.wire.quality` defines them; `state`
                                      may be `unknown` as well, and what is not known counts in none of the numbers
    quality                           the worst state of its markets, the sums {covered_us, uncovered_us, recordable_us,
                                      completeness_ppm}, and `by`, what tells them: `rows` (book, trades, and raw rows of these
                                      two channels: the file itself), `book` (tickers, checkpoints: how the book of the market
                                      was followed), null (no record tells: lifecycle, and raw rows of all else)
    sources                           of raw rows of book and trades: {gatherer, connection, generation, first_us, last_us,
                                      frames, stale, breaks}; `breaks`: how many markets, by cause

A commit's: topic, partition, first, next, rows, and `files`: path, table, channel, day, series, rows, bytes, sha256, and
manifest_sha256 of each. It is sealed with a digest of its own, so each byte of an archive is vouched for by a commit.

A repack's: topic, partition, day, first, next, made_us, `files` as a commit's, and `replaced`: the files that they stand for, in
the same words. Sealed like a commit.
"""

from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from kalshibook_core.archive.coverage import Followed, Received
from kalshibook_core.archive.layout import Commit, Repack, day_name
from kalshibook_core.archive.tables import Row, Table
from kalshibook_core.orderbook.checksum import to_hex
from kalshibook_core.wire.events import BOOK, READ_OVER, TRADES, BookDelta, BookSnapshot, Gap
from kalshibook_core.wire.quality import PPM, Quality, Record, Span, State, of_span

Json = dict[str, Any]
_BOOK_EVENTS: Final = (BookDelta, BookSnapshot, Gap)
_SUMMED: Final = ("covered_us", "uncovered_us", "recordable_us")

UNKNOWN: Final = "unknown"
"""State of a span of which, at least in part, nothing tells how whole it is."""

_STATES: Final = (State.COMPLETE, State.ENDED, State.PENDING, UNKNOWN, State.GAP)
"""Best first."""


class Entry(NamedTuple):
    """A file as its commit names it."""

    path: str  # of the Parquet file; its manifest has another ending
    table: str
    channel: str  # of raw rows; else empty
    day: int
    series: str
    rows: int
    bytes: int
    sha256: str
    manifest_sha256: str


class Repacked(NamedTuple):
    """What a repack says."""

    made_us: int
    files: list[Entry]
    replaced: list[Entry]


class Broken(ValueError):
    """A manifest or a commit is not what its writer wrote."""


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return sha256(content).hexdigest()


def describe(
    commit: Commit | Repack,
    path: str,
    table: Table,
    where: tuple[str, int, str],
    rows: Sequence[Row],
    content: bytes,
    followed: Followed | None = None,
) -> Json:
    """Return the manifest of a file of `rows`, written as `content`; `where` is its (channel, day, series).

    `followed` says how the books of its markets were, if anybody knows.
    """
    channel, day, series = where
    markets: dict[str, Json] = {}
    for _, event in rows:
        _tell(markets, table, event)
    first_us, last_us = (pick(each[name] for each in markets.values()) for pick, name in ((min, "first_us"), (max, "last_us")))
    return {
        "format": table.format,
        "path": path,
        "table": table.name,
        "channel": channel,
        "day": day_name(day),
        "series": series,
        "topic": commit.topic,
        "partition": commit.partition,
        "offsets": [commit.first, commit.next],
        "rows": len(rows),
        "bytes": len(content),
        "sha256": digest(content),
        "time": {"first_us": first_us, "last_us": last_us},
        **_judge(markets, table.name, channel, rows, followed),
        "markets": markets,
    }


def _judge(markets: dict[str, Json], table: str, channel: str, rows: Sequence[Row], followed: Followed | None) -> Json:
    """Add to each market its quality; return that of all of them, and of what."""
    told: Json = {}
    received = Received()
    if table == "raw" and channel in (BOOK, TRADES):
        for _, raw in rows:
            received.add(raw)
        told["sources"] = received.sources()
    by = "rows" if told or table in ("book", "trades") else "book" if table in ("tickers", "checkpoints") else None
    for ticker, its in markets.items():
        from_us, to_us = its["first_us"], its["last_us"] + 1
        if table in ("book", "trades"):
            gaps = sorted((Span(**gap) for gap in its.get("gaps", ())), key=lambda gap: gap.start_us)
            quality: Quality | None = of_span(Record(gaps, to_us - 1, from_us, from_us), from_us, to_us)
        else:
            quality = received.quality(ticker) if by == "rows" else None
            if by == "book" and followed is not None:
                quality = followed.quality(ticker, from_us, to_us)
            if quality is not None and quality.gaps:
                its["gaps"] = [gap._asdict() for gap in quality.gaps]
        its["quality"] = _block(quality, from_us, to_us)
    blocks = [its["quality"] for its in markets.values()]
    sums = {name: sum(block[name] for block in blocks) for name in _SUMMED}
    ppm = PPM * sums["covered_us"] // sums["recordable_us"] if sums["recordable_us"] else None
    worst = max((block["state"] for block in blocks), key=_STATES.index)
    return {"quality": {"by": by, "state": worst, **sums, "completeness_ppm": ppm}, **told}


def _block(quality: Quality | None, from_us: int, to_us: int) -> Json:
    """Return what is said of a market in [from_us, to_us), given the quality of the part of which anything is known."""
    if quality is None:
        return {"state": UNKNOWN, "from_us": from_us, "to_us": to_us, **dict.fromkeys(_SUMMED, 0), "completeness_ppm": None}
    partly = quality.from_us > from_us or quality.to_us < to_us
    state = max(str(quality.state), UNKNOWN, key=_STATES.index) if partly else quality.state
    sums = {name: getattr(quality, name) for name in _SUMMED}
    return {"state": state, "from_us": from_us, "to_us": to_us, **sums, "completeness_ppm": quality.completeness_ppm}


def _tell(markets: dict[str, Json], table: Table, event: Any) -> None:
    us, ticker = table.instant(event), event.market_ticker
    told = markets.get(ticker)
    if told is None:
        told = markets[ticker] = {"rows": 0, "first_us": us, "last_us": us}
    told["rows"] += 1
    told["first_us"], told["last_us"] = min(told["first_us"], us), max(told["last_us"], us)
    if isinstance(event, Gap) and event.connection != READ_OVER:  # which tells it again, as filled
        gaps = told.setdefault("gaps", [])
        if event.end_us is None or not gaps or gaps[-1]["start_us"] != event.start_us:
            gaps.append({"start_us": event.start_us, "end_us": event.end_us, "cause": event.cause})
        else:
            gaps[-1]["end_us"] = event.end_us
    if table.name != "book" or not isinstance(event, _BOOK_EVENTS):
        return
    version, whole = event.version, isinstance(event, BookSnapshot)
    segments = told.setdefault("segments", [])
    if isinstance(event, BookSnapshot) and event.gap_start_us is not None:
        gaps = told.setdefault("gaps", [])
        if not gaps or gaps[-1]["start_us"] != event.gap_start_us:
            gaps.append({"start_us": event.gap_start_us, "end_us": None, "cause": event.gap_cause})
        gaps[-1]["end_us"] = event.effective_us
    if not isinstance(event, Gap):
        if segments and version == told["last_version"] + 1 == segments[-1]["last"] + 1:
            segments[-1]["last"] = version
        else:
            segments.append({"first": version, "last": version, "whole": whole})
    told.setdefault("first_version", version)
    told["last_version"] = version
    told["checksum"] = to_hex(event.checksum)


class Telling:
    """What the rows of a file say, for who compares it with its manifest as he reads them."""

    def __init__(self, table: Table) -> None:
        """Begin with no row."""
        self._table = table
        self._markets: dict[str, Json] = {}

    def add(self, event: Any) -> None:
        """Take the next row."""
        _tell(self._markets, self._table, event)

    def contradicts(self, told: Json) -> str | None:
        """Return what a manifest says otherwise, None if nothing: of rows, times, versions, checksums, segments, gaps."""
        if told["markets"].keys() != self._markets.keys():
            return f"it says {len(told['markets']):,} markets, its rows {len(self._markets):,}, or others"
        mine, its = [], []
        for ticker, each in self._markets.items():
            names, said = each.keys() | ({"gaps"} if self._table.name in ("book", "trades") else set()), told["markets"][ticker]
            rows = dict(each)
            if self._table.name == "trades":  # whose columns do not tell a gap from the word that it was read over
                rows["gaps"] = [gap for gap in each.get("gaps", ()) if gap in said.get("gaps", ())] or None
            mine += [(ticker, name, rows.get(name)) for name in names]
            its += [(ticker, name, said.get(name)) for name in names]
        for name, pick in (("first_us", min), ("last_us", max)):
            mine.append(("time", name, pick(each[name] for each in self._markets.values())))
            its.append(("time", name, told["time"][name]))
        differing = (f"it says {other}, its rows {one}" for one, other in zip(mine, its, strict=True) if one != other)
        return next(differing, None)


def dump(manifest: Json) -> bytes:
    """Return a manifest as it is written."""
    return orjson.dumps(manifest) + b"\n"


def load(content: bytes, entry: Entry) -> Json:
    """Return the manifest of a file; raise Broken unless it is the one its commit names and says what the commit says."""
    if digest(content) != entry.manifest_sha256:
        raise Broken("the manifest is not the one its commit names")
    told: Json = orjson.loads(content)
    same = (told["path"], told["rows"], told["bytes"], told["sha256"]) == (entry.path, entry.rows, entry.bytes, entry.sha256)
    if not same:
        raise Broken("the manifest does not say of its file what the commit says")
    return told


def seal(commit: Commit, entries: Sequence[Entry]) -> bytes:
    """Return a commit's content."""
    return _seal("commit", commit, {"rows": sum(entry.rows for entry in entries), "files": _dicts(entries)})


def seal_repack(repack: Repack, told: Repacked) -> bytes:
    """Return a repack's content."""
    files, replaced = _dicts(told.files), _dicts(told.replaced)
    return _seal("repack", repack, {"made_us": told.made_us, "files": files, "replaced": replaced})


def resealed(damaged: bytes, commit: Commit, entries: Sequence[Entry]) -> bytes | None:
    """Return a commit's content as it was, if it named these files, in whatever order they come.

    None unless the digest that is left of it, or all else, says that it is that.
    """
    made = seal(commit, sorted(entries, key=lambda entry: (entry.channel, entry.day, entry.series)))
    digest, body = made.partition(b",")[::2]
    return made if damaged.startswith(digest) or damaged.partition(b",")[2] == body else None


def entry_of(told: Json, content: bytes) -> Entry:
    """Return a file as its commit names it, from its manifest and what that is written as."""
    day = (date.fromisoformat(told["day"]) - date(1970, 1, 1)).days
    names = ("path", "table", "channel", "series", "rows", "bytes", "sha256")
    return Entry(**{name: told[name] for name in names}, day=day, manifest_sha256=digest(content))


def unseal(content: bytes, commit: Commit) -> list[Entry]:
    """Return the files a commit names. Raises Broken unless it is whole and the one its name says."""
    return [Entry(**file) for file in _unseal("commit", content, commit)["files"]]


def unseal_repack(content: bytes, repack: Repack) -> Repacked:
    """Return what a repack says. Raises Broken unless it is whole and the one its name says."""
    told = _unseal("repack", content, repack)
    return Repacked(told["made_us"], *([Entry(**file) for file in told[name]] for name in ("files", "replaced")))


def _seal(kind: str, of: Commit | Repack, more: Json) -> bytes:
    body = orjson.dumps(of._asdict() | more)
    return b'{"sha256":"%b","%b":%b}\n' % (digest(body).encode(), kind.encode(), body)


def _unseal(kind: str, content: bytes, of: Commit | Repack) -> Json:
    head, _, body = content.partition(b',"%b":' % kind.encode())
    if not body or head != b'{"sha256":"%b"' % digest(body[:-2]).encode() or body[-2:] != b"}\n":
        raise Broken(f"the {kind} is not what was written")
    told: Json = orjson.loads(body[:-2])
    if any(told[name] != field for name, field in of._asdict().items()):
        raise Broken(f"the {kind} is not the one its name says")
    return told


def _dicts(entries: Sequence[Entry]) -> list[Json]:
    return [entry._asdict() for entry in entries]
