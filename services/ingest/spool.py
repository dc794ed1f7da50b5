"""Records waiting on the local disk for a broker that is away: written at one end, read at the other, in order.

A folder holds the segments of one gatherer, `<life>-<number>.spool`, where a life is one run of the process. What was written
survives the process; what a power cut takes is decided by how often the operating system is told to bring it to the disk.
Nothing damaged is believed: the rest of that life's segments is dropped and told. No loss is hidden by that, since a life that
is over has no later frame in any other place: its generations simply end there, as they do when the process is killed. Damage
to what the running process wrote itself raises SpoolDamaged: only a new life, with new generations, can say that honestly.

It has no bound of its own: the caller looks at `size`. What a full disk refuses is kept in memory, and tried again at the next
`write`; `blocked` says so meanwhile.
"""

import fcntl
import json
import os
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from kalshibook_core.runtime import logs
from services.ingest import segments
from services.ingest.segments import Damaged, Record

SEGMENT_BYTES: Final = 16 * 1024 * 1024
_SUFFIX: Final = ".spool"
_POSITION: Final = "position"

_log = structlog.get_logger()

Floor = dict[int, int]
"""By partition, an offset of the topic at or before the first record that stands in the spool and in the topic."""


class SpoolDamaged(OSError):
    """What this process wrote cannot be read back."""


class SpoolTaken(OSError):
    """Another process uses the folder."""


@dataclass(frozen=True, order=True, slots=True)
class Segment:
    """One file, by its place in the order."""

    life: int
    number: int

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.life:020d}-{self.number:08d}{_SUFFIX}"


class Spool:
    """One folder, opened by one process. `size` is in bytes, what is not written yet included."""

    def __init__(self, folder: Path, life: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open the folder, made if it is not there; `life` is greater than any before. Raises SpoolTaken, OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SpoolTaken(f"{folder} is used by another gatherer of that name") from None
        self._segment_bytes = segment_bytes
        first, self.floor = self._remembered()
        found = sorted(_parse(path.name) for path in folder.glob(f"*{_SUFFIX}"))
        for segment in found:
            if segment < first:
                (folder / segment.name).unlink()
        self._segments = deque(segment for segment in found if segment >= first)
        self._life = max(life, first.life + 1, *(segment.life + 1 for segment in found), 0)
        self._number = 0
        self._sizes = {segment: (folder / segment.name).stat().st_size for segment in self._segments}
        self.size = sum(self._sizes.values())
        self._pending = bytearray()
        self._written_chain = self._chain = 0  # of what is on disk, and with what is pending
        self._file: int | None = None
        self._unsynced = False
        self._reading: Segment | None = None  # the last one that was read from, up to `_offset`
        self._offset = self._read_chain = 0
        self.appended = self.written = 0  # records of this process
        self.blocked = False  # the disk refused the last write
        self.dropped_bytes = 0

    def close(self) -> None:
        """Write what is pending and give the folder back."""
        self.write()
        self.sync()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    @property
    def last(self) -> Segment | None:
        """The segment that is written, or was last."""
        return self._segments[-1] if self._segments else None

    @property
    def empty(self) -> bool:
        """True when there is no segment and nothing to be written."""
        return not self._segments and not self._pending

    # Writing.

    def append(self, record: Record) -> None:
        """Add a record; `write` brings it to the disk."""
        packed, self._chain = segments.pack(record, self._chain)
        self._pending += packed
        self.appended += 1
        self.size += len(packed)

    def write(self) -> None:
        """Hand what was appended to the operating system: from here on it survives the process."""
        if not self._pending:
            return
        try:
            if self._file is None or self._sizes[self._segments[-1]] >= self._segment_bytes:
                self._begin()
            assert self._file is not None
            last = self._segments[-1]
            written = os.write(self._file, self._pending)
            while written < len(self._pending):
                written += os.write(self._file, memoryview(self._pending)[written:])
        except OSError as error:
            if self._file is not None:
                os.ftruncate(self._file, self._sizes[self._segments[-1]])  # no half record stays between two whole ones
            if not self.blocked:
                _log.error("spool_write_failed", why=str(error), folder=str(self._folder), waiting_bytes=len(self._pending))
            self.blocked = True
            return
        self._sizes[last] += len(self._pending)
        self._pending.clear()
        self._written_chain = self._chain
        self.written = self.appended
        self._unsynced = True
        self.blocked = False

    def sync(self) -> None:
        """Bring what was written to the disk itself, or tell and leave it for the next call; blocks, and may run in a thread."""
        if not self._unsynced or self._file is None:
            return
        self._unsynced = False
        file = os.dup(self._file)  # the spool may turn to its next segment meanwhile
        try:
            os.fsync(file)
        except OSError as error:  # what is read back is verified, so that nothing wrong comes of going on
            self._unsynced = True
            if logs.once_a_minute("spool_sync_failed"):
                _log.error(
                    "spool_sync_failed", why=str(error), folder=str(self._folder), do="look at the disk; it is tried again"
                )
        finally:
            os.close(file)

    def _begin(self) -> None:
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None
        segment = Segment(self._life, self._number)
        path = self._folder / segment.name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        header = segments.pack_header(self._written_chain)
        try:
            if os.write(descriptor, header) != len(header):
                raise OSError(f"no room for {segment.name}")
        except OSError:
            os.close(descriptor)
            path.unlink()  # or the next try would find it there
            raise
        self._file = descriptor
        self._number += 1
        self._segments.append(segment)
        self._sizes[segment] = len(header)
        self.size += len(header)

    # Reading.

    def read(self, most_bytes: int = 1 << 20) -> tuple[Segment, list[Record]] | None:
        """Return the next records of what is written, all of one segment; None at its end. Raises SpoolDamaged."""
        while True:
            try:
                if self._reading is not None:
                    records = self._take(self._reading, most_bytes)
                    if records:
                        return self._reading, records
                    if self._offset < self._sizes[self._reading]:
                        raise Damaged("it ends within a record")
                following = self._following()
                if following is None:
                    return None
                self._turn_to(following)
            except Damaged as error:
                self._cut(str(error))

    @property
    def exhausted(self) -> bool:
        """True when all that was appended has been read."""
        if self._pending or self._following() is not None:
            return False
        return self._reading is None or self._offset == self._sizes[self._reading]

    def _following(self) -> Segment | None:
        if self._reading is None:
            return self._segments[0] if self._segments else None
        return next((segment for segment in self._segments if segment > self._reading), None)

    def _turn_to(self, segment: Segment) -> None:
        before = self._reading
        self._reading, self._offset = segment, 0
        with (self._folder / segment.name).open("rb") as file:
            chain = segments.unpack_header(file.read(segments.HEADER_BYTES))
        continues = before is not None and before.life == segment.life
        if before is not None and continues and (segment.number != before.number + 1 or chain != self._read_chain):
            raise Damaged("it does not continue the segment before it")
        self._offset, self._read_chain = segments.HEADER_BYTES, chain

    def _take(self, segment: Segment, most_bytes: int) -> list[Record]:
        """Read what of the next `most_bytes` is whole records, more where the first one is larger. Raises Damaged."""
        left = self._sizes[segment] - self._offset
        records: list[Record] = []
        with (self._folder / segment.name).open("rb") as file:
            while not records and left:
                file.seek(self._offset)
                buffer = file.read(min(most_bytes, left))
                at, chain = 0, self._read_chain
                try:
                    while (found := segments.unpack(buffer, at, chain)) is not None:
                        record, at, chain = found
                        records.append(record)
                except Damaged:
                    if not records:
                        raise
                if most_bytes >= left:
                    break
                most_bytes *= 4
        if records:
            self._offset += at
            self._read_chain = chain
        return records

    def _cut(self, why: str) -> None:
        """Take the rest of the life that is being read as read."""
        reading = self._reading
        assert reading is not None
        if reading.life == self._life:
            raise SpoolDamaged(f"{self._folder / reading.name}: {why}")
        lost = self._sizes[reading] - self._offset
        rest = [segment for segment in self._segments if segment.life == reading.life and segment > reading]
        lost += sum(self._sizes[segment] for segment in rest)
        self.dropped_bytes += lost
        _log.error("spool_cut", segment=reading.name, at=self._offset, why=why, dropped_bytes=lost, segments=1 + len(rest))
        self._reading = (rest or [reading])[-1]
        self._offset = self._sizes[self._reading]

    # Giving up what the broker has.

    def remember(self, floor: Floor) -> None:
        """Note the floor of all that is here and will be appended; empty: nothing of it was handed on yet. Raises as `delete`."""
        self._note(self._segments[0] if self._segments else Segment(self._life, self._number), floor)

    def delete(self, last: Segment, floor: Floor) -> None:
        """Give up the segments up to `last`, whose records the broker has; `floor` is that of what remains.

        1. The floor is noted with the first segment it is for. A crash before: all segments are there, with the floor they had.
        2. The segments are deleted. A crash before: the next life deletes them, by the note.

        Raises OSError where a full disk does not take the note: then nothing has changed.
        """
        self._note(next((segment for segment in self._segments if segment > last), Segment(self._life, self._number)), floor)
        if last == self._segments[-1] and self._file is not None:
            os.close(self._file)
            self._file = None
        while self._segments and self._segments[0] <= last:
            segment = self._segments.popleft()
            self.size -= self._sizes.pop(segment)
            (self._folder / segment.name).unlink()
        if self._reading is not None and self._reading <= last:
            self._reading = None

    def _note(self, first: Segment, floor: Floor) -> None:
        body = json.dumps({"life": first.life, "number": first.number, "floor": floor}).encode()
        fresh = self._folder / "position.new"
        with fresh.open("wb") as file:
            file.write(b"%08x %s\n" % (zlib.crc32(body), body))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._folder / _POSITION)
        self.floor = floor

    def _remembered(self) -> tuple[Segment, Floor | None]:
        """What was noted last; without a (whole) note nothing is known to be delivered from where on: None."""
        try:
            crc, _, body = (self._folder / _POSITION).read_bytes().rstrip(b"\n").partition(b" ")
        except FileNotFoundError:
            return Segment(0, 0), None
        if crc != b"%08x" % zlib.crc32(body):
            _log.error("spool_position_damaged", do="the topic is searched from its beginning", folder=str(self._folder))
            return Segment(0, 0), None
        said = json.loads(body)
        return Segment(said["life"], said["number"]), {int(partition): at for partition, at in said["floor"].items()}


def _parse(name: str) -> Segment:
    life, _, number = name.removesuffix(_SUFFIX).partition("-")
    return Segment(int(life), int(number))
