"""An S3 server of a test's own: MinIO where there is one, moto elsewhere.

MinIO is the program that KB_TEST_MINIO names, the one that `make setup` built (this module, run), or `minio` on PATH. It is built
where Go is, once for all clones: it lies in the folder of Kafka's jars. No test builds or fetches it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
from pyarrow import fs

from kalshibook_core.archive.store import Bucket
from kalshibook_tools.stack.jars import cache_folder
from tests.support.service import WITHIN, own_port

KEYS = {"AWS_ACCESS_KEY_ID": "kalshibook", "AWS_SECRET_ACCESS_KEY": "kalshibook", "AWS_REGION": "us-east-1"}
BUCKET = "kb-archive"

_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
_BUILD_SECONDS = 600


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
    return named or (str(_built()) if _built().exists() else shutil.which("minio"))


def _built() -> Path:
    return cache_folder() / f"minio-{_VERSION}" / "minio"


def build() -> str:
    """Build MinIO, unless it is there; return what the tests run on. Whatever Go has against it, they run on moto."""
    if (program := minio()) is not None:
        return program
    if (go := shutil.which("go")) is None:
        return "moto: MinIO is built where Go is, and there is none on PATH"
    _tell(f"building MinIO into {_built().parent}, once, in a few minutes: the S3 tests run on it")
    _built().parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_built().parent.parent, prefix="minio-") as folder:
        if (why := _go(go, Path(folder))) is not None:
            return f"moto: MinIO cannot be built: {why}"
        _built().parent.mkdir(exist_ok=True)
        Path(folder, "minio").replace(_built())
    return str(_built())


def _go(go: str, folder: Path) -> str | None:
    """Have Go put MinIO into a folder, while nobody else wants the cores; return why it did not."""
    command = ["nice", "-n", "15", go, "install", "-ldflags=-s -w", f"github.com/minio/minio@{_VERSION}"]
    env = {**os.environ, "GOBIN": str(folder)}  # noqa: TID251
    with subprocess.Popen(command, env=env, stdout=-1, stderr=-2, text=True, start_new_session=True) as building:
        try:
            said, _ = building.communicate(timeout=_BUILD_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(building.pid, signal.SIGKILL)  # Go's compilers with it
            return "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"it takes longer than {_BUILD_SECONDS} s"
    errors = [line for line in said.splitlines() if line and not line.startswith("go: downloading ")]
    return None if building.returncode == 0 else (errors or ["Go does not say why"])[-1]


@contextmanager
def running(folder: Path) -> Iterator[S3]:
    """Run a server with its state in `folder`; KEYS must be in the environment."""
    port, program = own_port(), minio()
    user, password = KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]
    quiet = {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}  # neither a port of its own, nor a look for a newer release
    env = {**os.environ, **quiet, "MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": password}  # noqa: TID251
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if program is not None:
        command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "minio")]
    with (folder / "s3.log").open("wb") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as server:
        try:
            told = S3(f"http://127.0.0.1:{port}", "minio" if program else "moto")
            deadline = time.monotonic() + WITHIN
            while not _answers(told.endpoint):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise TimeoutError(f"{told.program} does not answer:\n{(folder / 's3.log').read_text()}")
                time.sleep(0.05)
            _make_bucket(told.endpoint)
            yield told
        finally:
            server.kill()


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(f"{endpoint}/minio/health/ready").status_code < 500
    except httpx.TransportError:
        return False


def _make_bucket(endpoint: str) -> None:
    made_here = fs.S3FileSystem(endpoint_override=endpoint.partition("://")[2], scheme="http", allow_bucket_creation=True)
    made_here.create_dir(BUCKET)


class Line:
    """A TCP line to a server that can be cut: after so many bytes towards it or from it, or at once and for as long as wanted."""

    def __init__(self, endpoint: str) -> None:
        """Listen on a port of its own."""
        self._to = int(endpoint.rpartition(":")[2])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.left: dict[str, int] = {}
        """Bytes that still pass, "there" or "back"; what is not in it is not cut."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                if min(self.left.values(), default=1) <= 0:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pass, args=(here, there, "there"), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here, "back"), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with suppress(OSError):
            while content := one.recv(65_536):
                if way in self.left:
                    self.left[way] -= len(content)
                    if self.left[way] <= 0:
                        break
                other.sendall(content)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        one.close()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        _tell(f"the S3 tests run on {build()}")
    except OSError as error:
        _tell(f"the S3 tests run on moto: MinIO cannot be kept: {error}")
