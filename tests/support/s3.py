"""An S3 server of a test's own: MinIO where there is one, moto elsewhere.

MinIO is the program KB_TEST_MINIO names, `minio` of the virtual environment (`make minio` builds it there, where Go is, in a few
minutes) or `minio` on PATH. Nothing is built or fetched by a test run.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
from pyarrow import fs

from kalshibook_core.archive.store import Bucket
from kalshibook_tools.stack.probe import free_port
from tests.support.service import until

KEYS = {"AWS_ACCESS_KEY_ID": "kalshibook", "AWS_SECRET_ACCESS_KEY": "kalshibook", "AWS_REGION": "us-east-1"}
BUCKET = "kb-archive"


class S3(NamedTuple):
    """A server that runs, with a bucket in it."""

    endpoint: str
    program: str

    def bucket(self, prefix: str, endpoint: str = "") -> Bucket:
        """Return what lies under a prefix of the bucket."""
        return Bucket(f"{BUCKET}/{prefix}", endpoint or self.endpoint)


def minio() -> str | None:
    """Return MinIO's program, None where there is none."""
    named = os.environ.get("KB_TEST_MINIO")  # noqa: TID251
    beside = Path(sys.prefix, "bin", "minio")
    return named or (str(beside) if beside.exists() else shutil.which("minio"))


@contextmanager
def running(folder: Path) -> Iterator[S3]:
    """Run a server with its state in `folder`; KEYS must be in the environment."""
    port, program = free_port(), minio()
    env = {**os.environ, "MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"]}  # noqa: TID251
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if program is not None:
        command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "minio")]
    with (folder / "s3.log").open("wb") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as server:
        try:
            server_told = S3(f"http://127.0.0.1:{port}", "minio" if program else "moto")
            asyncio.run(until(lambda: _answers(server_told.endpoint)))
            _make_bucket(server_told.endpoint)
            yield server_told
        finally:
            server.kill()


async def _answers(endpoint: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{endpoint}/minio/health/ready")).status_code < 500
    except httpx.TransportError:
        return False


def _make_bucket(endpoint: str) -> None:
    made_here = fs.S3FileSystem(endpoint_override=endpoint.partition("://")[2], scheme="http", allow_bucket_creation=True)
    made_here.create_dir(BUCKET)


class Line:
    """A TCP line to a server that can be cut: after so many bytes towards it, or at once and for as long as wanted."""

    def __init__(self, endpoint: str) -> None:
        """Listen on a port of its own."""
        self._to = int(endpoint.rpartition(":")[2])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.left: int | None = None
        """Bytes that still pass, None: all."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                if self.left is not None and self.left <= 0:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pass, args=(here, there, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here, False), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while content := one.recv(65_536):
                if counted and self.left is not None:
                    self.left -= len(content)
                    if self.left <= 0:
                        break
                other.sendall(content)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        one.close()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()
