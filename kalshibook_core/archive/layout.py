"""Where things lie in an archive, told by their names alone. Pure.

    raw/channel=orderbook_delta/day=2026-11-21/series=KXGOLD15M/{file}.parquet    by the day of receipt
    book/day=2026-11-21/series=KXGOLD15M/{file}.parquet                           by the exchange's day; so trades, tickers, …
                                        {file}.json                               the manifest beside it
    commits/{topic}/{partition}/{first}-{next}-{first day}-{last day}-{life}.json
    repacks/{topic}/{partition}/{day}-{first}-{next}-{life}.json    and .swept, once what it stands for is deleted
    log.json                                                                      whose offsets these are
    quarantine/…                                                                  what was found damaged, under its old path

A file is named by its partition, the offsets of its commit and the life of the process that wrote it, so no two writers ever
write one name. Days in a commit's name are counted from 1970-01-01: a reader of one day opens no other commit.

A repack says "these files hold the rows of this day that the records of offsets [first, next) of this partition made", and for
that day stands for all commits of these offsets; the commits stay, as what is known of the offsets. No chain has a commit that
reaches over the end of a repack, so a row is never in both and never in none.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from datetime import date, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

DAY_US: Final = 86_400_000_000
COMMITS, REPACKS, QUARANTINE, LOG = "commits", "repacks", "quarantine", "log.json"
ROWS, MANIFEST, SWEPT = ".parquet", ".json", ".swept"

_EPOCH: Final = date(1970, 1, 1)
_LAST_DAY: Final = (date.max - _EPOCH).days
_NAME: Final = re.compile(r"commits/([^/]+)/(\d+)/(\d{20})-(\d{20})-(\d+)-(\d+)-([0-9a-z]+)\.json")
_REPACK: Final = re.compile(r"repacks/([^/]+)/(\d+)/(\d{6})-(\d{20})-(\d{20})-([0-9a-z]+)\.json")
_LONGEST: Final = 120  # bytes of a folder's name; file systems take 255, S3 1,024 of the whole key


class Commit(NamedTuple):
    """The records of offsets [first, next) of a topic's partition, written by one life of a process."""

    topic: str
    partition: int
    first: int
    next: int
    first_day: int  # of its rows, counted from 1970-01-01
    last_day: int
    life: str

    @property
    def path(self) -> str:
        """Return where it lies."""
        return (
            f"{COMMITS}/{self.topic}/{self.partition}/{self.first:020}-{self.next:020}-{self.first_day}-{self.last_day}"
            f"-{self.life}.json"
        )

    def file(self, table: str, channel: str, day: int, series: str) -> str:
        """Return the path of one of its files, without an ending."""
        return _file(self, table, channel, day, series)


class Repack(NamedTuple):
    """The rows of one day that the records of offsets [first, next) of a topic's partition made, put together anew."""

    topic: str
    partition: int
    day: int  # counted from 1970-01-01
    first: int
    next: int
    life: str

    @property
    def path(self) -> str:
        """Return where it lies."""
        return f"{REPACKS}/{self.topic}/{self.partition}/{self.day:06}-{self.first:020}-{self.next:020}-{self.life}.json"

    @property
    def swept(self) -> str:
        """Return the path of the object that says: the files it stands for are deleted."""
        return self.path.removesuffix(MANIFEST) + SWEPT

    def file(self, table: str, channel: str, series: str) -> str:
        """Return the path of one of its files, without an ending."""
        return _file(self, table, channel, self.day, series)


def _file(of: Commit | Repack, table: str, channel: str, day: int, series: str) -> str:
    by_channel = f"/channel={channel}" if channel else ""
    name = f"{of.partition}-{of.first:020}-{of.next:020}-{of.life}"
    return f"{table}{by_channel}/day={day_name(day)}/series={series}/{name}"


def repack_of(path: str) -> Repack | None:
    """Return the repack that lies there, None if it is none."""
    found = _REPACK.fullmatch(path)
    if found is None:
        return None
    topic, partition, day, first, after, life = found.groups()
    repack = Repack(topic, int(partition), int(day), int(first), int(after), life)
    return repack if repack.first < repack.next and repack.path == path else None


def in_force(repacks: Iterable[Repack]) -> dict[int, Repack]:
    """Return the repack of each day that readers go by: the one that reaches furthest."""
    return {each.day: each for each in sorted(repacks, key=lambda each: (each.next, each.life))}


def commit_of(path: str) -> Commit | None:
    """Return the commit that lies there, None if it is none."""
    found = _NAME.fullmatch(path)
    if found is None:
        return None
    topic, partition, first, after, first_day, last_day, life = found.groups()
    commit = Commit(topic, int(partition), int(first), int(after), int(first_day), int(last_day), life)
    return commit if commit.first < commit.next and commit.path == path else None


class Chain(NamedTuple):
    """The commits of a partition that hold each offset once, in order, and the offsets that none holds between them."""

    commits: tuple[Commit, ...]
    holes: tuple[tuple[int, int], ...]

    @property
    def next(self) -> int:
        """The offset a writer goes on at."""
        return self.commits[-1].next if self.commits else 0


def chain(commits: Iterable[Commit], ends: Iterable[int] = ()) -> Chain:
    """Return the chain of a partition's commits: of those that begin at one offset, the one from which most can be reached.

    `ends` are those of the partition's repacks; a commit that reaches over one is another writer's, and of no chain.
    """
    by_first: dict[int, list[Commit]] = {}
    known = sorted(ends)
    for commit in commits:
        following = bisect_right(known, commit.first)
        if following == len(known) or known[following] >= commit.next:
            by_first.setdefault(commit.first, []).append(commit)
    best: dict[int, tuple[int, Commit]] = {}
    for first in sorted(by_first, reverse=True):
        best[first] = max((best[each.next][0] if each.next in best else each.next, each) for each in by_first[first])
    taken: list[Commit] = []
    holes: list[tuple[int, int]] = []
    at = min(by_first, default=0)
    while best:
        if at not in best:
            later = min((first for first in best if first > at), default=None)
            if later is None:
                break
            holes.append((at, later))
            at = later
        taken.append(best[at][1])
        at = taken[-1].next
    return Chain(tuple(taken), tuple(holes))


def day_of(us: int) -> int:
    """Return the UTC day of an instant, counted from 1970-01-01; an instant that no calendar has counts as that day."""
    day = us // DAY_US
    return day if 0 <= day <= _LAST_DAY else 0


def day_name(day: int) -> str:
    """Return the day as YYYY-MM-DD."""
    return (_EPOCH + timedelta(days=day)).isoformat()


@lru_cache(maxsize=1 << 16)
def series_of(ticker: str) -> str:
    """Return the folder name of a ticker's series: what stands before the first dash (seen on every ticker)."""
    return folder_name(ticker.partition("-")[0])


@lru_cache(maxsize=1 << 16)
def folder_name(text: str) -> str:
    """Return the text as part of a path, whatever the exchange put in it; an overlong one ends in its hash."""
    name = quote(text, safe="@") or "none"
    return name if len(name) <= _LONGEST else f"{name[:80]}~{sha256(text.encode()).hexdigest()[:16]}"
