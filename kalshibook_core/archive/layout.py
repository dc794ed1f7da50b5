"""Where things lie in an archive, told by their names alone. Pure.

    raw/channel=orderbook_delta/day=2026-11-21/series=KXGOLD15M/{file}.parquet    by the day of receipt
    book/day=2026-11-21/series=KXGOLD15M/{file}.parquet                           by the exchange's day; so trades, tickers, …
                                        {file}.json                               the manifest beside it
    commits/{topic}/{partition}/{first}-{next}-{first day}-{last day}-{life}.json
    log.json                                                                      whose offsets these are
    quarantine/…                                                                  what was found damaged, under its old path

A file is named by its partition, the offsets of its commit and the life of the process that wrote it, so no two writers ever
write one name. Days in a commit's name are counted from 1970-01-01: a reader of one day opens no other commit.
"""

import re
from collections.abc import Iterable
from datetime import date, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

DAY_US: Final = 86_400_000_000
COMMITS, QUARANTINE, LOG, ROWS, MANIFEST = "commits", "quarantine", "log.json", ".parquet", ".json"

_EPOCH: Final = date(1970, 1, 1)
_LAST_DAY: Final = (date.max - _EPOCH).days
_NAME: Final = re.compile(r"commits/([^/]+)/(\d+)/(\d{20})-(\d{20})-(\d+)-(\d+)-([0-9a-z]+)\.json")
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
        by_channel = f"/channel={channel}" if channel else ""
        name = f"{self.partition}-{self.first:020}-{self.next:020}-{self.life}"
        return f"{table}{by_channel}/day={day_name(day)}/series={series}/{name}"


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


def chain(commits: Iterable[Commit]) -> Chain:
    """Return the chain of a partition's commits: of those that begin at one offset, the one from which most can be reached."""
    by_first: dict[int, list[Commit]] = {}
    for commit in commits:
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
