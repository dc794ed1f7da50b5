"""The registry on disk, so that a restart asks the exchange only for what has changed since.

A file of JSON lines: what it is of, what is known (`Registry.dump`), and a CRC-32 of all before. One that is cut, altered, of
another exchange or of another version is no file: the whole list is read again, and nothing else is lost.
"""

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import orjson
import structlog

from services.ingest.registry import Registry

VERSION: Final = 2

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Extent:
    """What a registry covers: all markets of these statuses as the exchange had them at `since_s` (its clock, Unix seconds).

    `families` is the same instant of the events and of the series, by channel, where they were read.
    """

    exchange: str
    statuses: tuple[str, ...]
    since_s: int
    full_took: float = 0.0  # seconds that reading the whole list took, by the last time
    families: Mapping[str, int] = field(default_factory=dict)


async def save(path: Path, extent: Extent, registry: Registry, published: Callable[[], Awaitable[None]]) -> None:
    """Replace the file.

    1. The new file is written beside the old one. A crash here: the old one stands.
    2. Every record made of the registry so far is safe (`published`): a digest in the file means that nobody will publish that
       definition again. A crash here: as before.
    3. The new file takes the old one's place.
    """
    fresh = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    crc = 0
    with fresh.open("wb") as file:
        head = orjson.dumps({"version": VERSION, **asdict(extent)}) + b"\n"
        crc = zlib.crc32(head)
        file.write(head)
        for lines in registry.dump():
            crc = zlib.crc32(lines, crc)
            file.write(lines)
            await asyncio.sleep(0)  # frames come meanwhile
        file.write(b"%08x\n" % crc)
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    await published()
    fresh.replace(path)


def load(path: Path, exchange: str, statuses: tuple[str, ...]) -> tuple[Registry, Extent] | None:
    """Return what was saved; None, told, where there is nothing to be had."""
    registry = Registry()
    try:
        with path.open("rb") as file:
            head = file.readline()
            said = orjson.loads(head)
            if said.pop("version") != VERSION:
                raise ValueError("it is of another version")
            extent = Extent(**said | {"statuses": tuple(said["statuses"])})
            if (extent.exchange, extent.statuses) != (exchange, statuses):
                raise ValueError(f"it is of {extent.exchange} {','.join(extent.statuses)}")
            crc, last = zlib.crc32(head), b""
            for line in file:
                if last:
                    crc = zlib.crc32(last, crc)
                    registry.load(last)
                last = line
            if last != b"%08x\n" % crc:
                raise ValueError("its checksum is not that of its content")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("registry_file_unusable", file=str(path), why=str(error), do="the whole list is read again")
        return None
    return registry, extent
