"""Where an archive is kept: a folder, or a bucket of S3-compatible storage. Objects are put whole, read whole, and never changed.

Promises of both: `put` returns when the object is durable, and until then nobody sees any of it; `listed` sees every object whose
`put` has returned (S3 does since 2020). Whatever the storage has against it is an OSError. Every call blocks: call from a thread.

S3's region and keys are found the standard way: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the shared configuration
files, or the role of the machine.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Final, Protocol

_UNFINISHED: Final = ".tmp"
_PIECE: Final = 1 << 23


class Store(Protocol):
    """Objects by path; a path has no leading slash."""

    def put(self, path: str, content: bytes) -> None:
        """Write an object, whole or not at all."""

    def get(self, path: str) -> bytes:
        """Return an object; raise FileNotFoundError."""

    def listed(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the path and size of every object below a folder, in no order."""

    def move(self, path: str, to: str) -> None:
        """Give an object another path; raise FileNotFoundError."""

    def delete(self, path: str) -> None:
        """Delete an object, if it is there."""


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        """Keep everything under `root`, which need not exist yet."""
        self._root = root

    def put(self, path: str, content: bytes) -> None:
        """Write an object, whole or not at all.

        1. The folders are made. 2. The content goes into a file of another name, and to the disk. 3. That file is renamed.
        4. The folder goes to the disk. A crash before 3 leaves a file that no reader takes for an object; after it, the object.
        """
        target = self._root / path
        _make_folder(target.parent)
        unfinished = target.with_name(target.name + _UNFINISHED)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
        _to_disk(target.parent)

    def get(self, path: str) -> bytes:
        """Return an object; raise FileNotFoundError."""
        return (self._root / path).read_bytes()

    def listed(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the path and size of every object below a folder, in no order."""
        for where, _, names in os.walk(self._root / folder, onerror=_unless_missing):
            for name in names:
                if not name.endswith(_UNFINISHED):
                    found = Path(where, name)
                    with suppress(FileNotFoundError):
                        yield found.relative_to(self._root).as_posix(), found.stat().st_size

    def move(self, path: str, to: str) -> None:
        """Give an object another path; raise FileNotFoundError."""
        target = self._root / to
        _make_folder(target.parent)
        (self._root / path).replace(target)
        _to_disk(target.parent)

    def delete(self, path: str) -> None:
        """Delete an object, if it is there, and the folder that it leaves empty."""
        where = self._root / path
        where.unlink(missing_ok=True)
        with suppress(OSError):
            where.parent.rmdir()

    def __str__(self) -> str:
        return str(self._root)


class Bucket:
    """A bucket of S3-compatible storage, or what lies under a prefix in one."""

    def __init__(self, root: str, endpoint: str = "") -> None:
        """Keep everything under `root`: bucket or bucket/prefix. `endpoint` is the storage's URL, nothing for Amazon's."""
        from pyarrow import fs

        self._root = root.strip("/")
        scheme, _, address = endpoint.rpartition("://")
        # No compression anywhere below: Arrow would go by the ending of a name.
        # Delayed: an object of ours is one PUT then, and not the three calls of an upload in parts.
        self._s3: Any = fs.S3FileSystem(
            endpoint_override=address.strip("/") or None,
            scheme=scheme or "https",
            allow_delayed_open=True,
            connect_timeout=5,
            request_timeout=30,
        )
        self._file, self._selector = fs.FileType.File, fs.FileSelector

    def put(self, path: str, content: bytes) -> None:
        """Write an object, whole or not at all: S3 shows it when the request has ended well."""
        with self._s3.open_output_stream(f"{self._root}/{path}", compression=None) as out:
            out.write(content)

    def get(self, path: str) -> bytes:
        """Return an object; raise FileNotFoundError."""
        # Two requests, whatever its size: Arrow asks for that first. Of a stream it would ask for each 256 KiB by itself.
        with self._s3.open_input_file(f"{self._root}/{path}") as file:
            content: bytes = file.read()
        return content

    def fetch(self, path: str, to: Path) -> None:
        """Write an object to a file, a piece at a time; raise FileNotFoundError."""
        with self._s3.open_input_stream(f"{self._root}/{path}", compression=None) as stream, to.open("wb") as file:
            copyfileobj(stream, file, _PIECE)

    def listed(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the path and size of every object below a folder, in no order."""
        selector = self._selector(f"{self._root}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        for found in self._s3.get_file_info(selector):
            if found.type == self._file:
                yield found.path[len(self._root) + 1 :], found.size

    def move(self, path: str, to: str) -> None:
        """Give an object another path: a copy, and then the deletion of the old one."""
        if self._s3.get_file_info(f"{self._root}/{path}").type != self._file:
            raise FileNotFoundError(f"{self}/{path}")
        self._s3.move(f"{self._root}/{path}", f"{self._root}/{to}")

    def delete(self, path: str) -> None:
        """Delete an object, if it is there."""
        with suppress(FileNotFoundError):
            self._s3.delete_file(f"{self._root}/{path}")

    def __str__(self) -> str:
        return f"s3://{self._root}"


def open_store(location: str, endpoint: str = "") -> Store:
    """Return the store at a folder's path or at s3://bucket/prefix. Raises ValueError for any other address."""
    scheme, found, rest = location.partition("://")
    if not found:
        return Folder(Path(location).expanduser())
    if scheme != "s3" or not rest.strip("/"):
        raise ValueError(f"{location!r} is neither a folder nor s3://bucket/prefix")
    return Bucket(rest, endpoint)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _to_disk(folder.parent)


def _to_disk(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
