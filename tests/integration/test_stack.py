"""The local stack on real parts: it comes up, keeps what it was given, and leaves nothing running, however it ends."""

import asyncio
import contextlib
import hashlib
import http.server
import io
import json
import os
import signal
import socket
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from kalshibook_tools.stack import Addresses, External, Stack, StackError, classes, jars, local_stack, probe

pytestmark = pytest.mark.stack

ELSEWHERE = External(kafka="127.0.0.1:1", postgres="postgresql://127.0.0.1:1/none", redis="redis://127.0.0.1:1/0")
ONLY_REDIS = External(kafka=ELSEWHERE.kafka, postgres=ELSEWHERE.postgres)
ONLY_POSTGRES = External(kafka=ELSEWHERE.kafka, redis=ELSEWHERE.redis)
ONLY_KAFKA = External(postgres=ELSEWHERE.postgres, redis=ELSEWHERE.redis)


async def write(addresses: Addresses) -> None:
    """Commit one transaction of one message and its offset, abort another, and put a row and a key beside them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=addresses.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("kept", 2, 1, topic_configs={"cleanup.policy": "compact"})])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=addresses.kafka, transactional_id="writer", compression_type="zstd")
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send("kept", key=b"key", value=b"committed", partition=1)
            await producer.send_offsets_to_transaction({TopicPartition("kept", 1): 7}, "group")
        with contextlib.suppress(ZeroDivisionError):
            async with producer.transaction():
                await producer.send_and_wait("kept", key=b"key", value=b"aborted", partition=1)
                raise ZeroDivisionError
    finally:
        await producer.stop()
    async with database(addresses) as connection:
        await connection.execute("CREATE TABLE kept (value text)")
        await connection.execute("INSERT INTO kept VALUES ('committed')")
    async with cache(addresses) as client:
        await client.set("kept", "set")


async def read(addresses: Addresses) -> tuple[list[bytes], int, list[str], object]:
    """Return what `write` left: messages read committed, the group's offset, rows, the key's value."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=addresses.kafka, group_id="group", isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition("kept", 1)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        messages: list[bytes] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                messages += [record.value for record in records]
        # aiokafka 0.14 takes "the coordinator is still loading", which a broker says after its start, for "no offset".
        async with asyncio.timeout(60):
            while (offset := await consumer.committed(partition)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await consumer.stop()
    async with database(addresses) as connection:
        rows = [row["value"] for row in await connection.fetch("SELECT value FROM kept")]
    async with cache(addresses) as client:
        return messages, offset, rows, await client.get("kept")


WRITTEN = ([b"committed"], 7, ["committed"], b"set")


@contextlib.asynccontextmanager
async def database(addresses: Addresses) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(addresses.postgres)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def cache(addresses: Addresses) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(addresses.redis)
    try:
        yield client
    finally:
        await client.aclose()


def pids(stack: Stack) -> list[int]:
    return [part.pid for part in stack.processes.values() if part.pid is not None]


@contextlib.contextmanager
def squatter(port: int = 0) -> Iterator[int]:
    """Somebody else's server on a port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        yield server.getsockname()[1]


async def test_everything_written_is_there_after_a_restart_on_other_ports(tmp_path: Path) -> None:
    home = tmp_path / "a home, with a comma"
    async with local_stack(home) as stack:
        first = stack.addresses
        started = pids(stack)
        assert len(started) == 3
        if shared := classes.kept(*await jars.fetch(pytest.fail)):  # what `make setup` made is what it starts with
            assert str(shared) in Path(f"/proc/{stack.processes['kafka'].pid}/maps").read_text()
        await write(first)
        assert await read(first) == WRITTEN
        with pytest.raises(StackError, match=rf"a stack already runs in .* \(pid {os.getpid()}\)"):
            async with local_stack(home):
                pass
    assert not any(psutil.pid_exists(pid) for pid in started)
    assert not list((home / "pids").iterdir())
    assert (home / "postgres" / "password").stat().st_mode & 0o777 == 0o600

    for _ in range(3):  # somebody else may have one of them by now
        last = first
        async with local_stack(home) as stack:
            first = stack.addresses
        if first == last:
            break
    assert first == last, "the ports of the last run were free"
    taken = [int(first.kafka.rpartition(":")[2]), *(urlsplit(url).port or 0 for url in (first.postgres, first.redis))]
    with contextlib.ExitStack() as squatters:
        for port in taken:
            with contextlib.suppress(OSError):  # somebody else's it is
                squatters.enter_context(squatter(port))
        async with local_stack(home) as stack:
            assert not set(stack.addresses.environment().values()) & set(first.environment().values())
            assert await read(stack.addresses) == WRITTEN


async def test_what_a_killed_supervisor_left_is_replaced_and_keeps_its_content(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kalshibook_tools.stack", "run", "--home", str(tmp_path)]
    supervisor = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=_bare_environment())
    assert supervisor.stdout is not None
    lines = [(await supervisor.stdout.readline()).decode() for _ in range(3)]
    told = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
    addresses = Addresses(told["KB_KAFKA_BROKERS"], told["KB_POSTGRES_DSN"], told["KB_REDIS_URL"])
    await write(addresses)
    supervisor.kill()
    await supervisor.wait()
    orphans = [_recorded(path) for path in (tmp_path / "pids").iterdir()]
    assert len(orphans) == 3
    assert all(orphan.is_running() for orphan in orphans)

    progress: list[str] = []
    async with local_stack(tmp_path, progress=progress.append) as stack:
        assert sum("still runs from an earlier start" in line for line in progress) == 3
        assert not set(pids(stack)) & {orphan.pid for orphan in orphans}
        assert not any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans)
        assert await read(stack.addresses) == WRITTEN


async def test_a_port_lost_between_choosing_and_binding_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = probe.free_port
    progress: list[str] = []
    with squatter() as one, squatter() as two, squatter() as three:
        first = [one, two, three]  # Kafka's broker or controller, Postgres, Redis, in whichever order they ask

        def losing(preferred: int = 0) -> int:
            return first.pop() if first and preferred != 1 else chosen(preferred)

        monkeypatch.setattr(probe, "free_port", losing)
        async with local_stack(tmp_path, progress=progress.append) as stack:
            await write(stack.addresses)
            assert await read(stack.addresses) == WRITTEN
    assert sum("its port was taken meanwhile" in line for line in progress) >= 2


async def test_a_part_that_dies_is_told_with_its_name(tmp_path: Path) -> None:
    async with local_stack(tmp_path, external=ONLY_REDIS) as stack:
        os.kill(pids(stack)[0], signal.SIGKILL)
        assert str(await stack.failed()).startswith("redis was ended by signal 9: ")


async def test_data_of_another_version_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    async with local_stack(tmp_path, external=ONLY_POSTGRES) as stack, database(stack.addresses):
        pass
    version = tmp_path / "postgres" / "data" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(StackError, match=r"was written by PostgreSQL 9, which is not here: install it"):
        async with local_stack(tmp_path, external=ONLY_POSTGRES):
            pass
    assert version.read_text() == "9\n"


async def test_programs_of_postgres_that_are_not_where_they_were_said_to_be_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KB_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(StackError, match="KB_POSTGRES_BIN: there is no `initdb` in"):
        async with local_stack(tmp_path / "home", external=ONLY_POSTGRES):
            pass


async def test_a_spoilt_broker_folder_is_told_with_the_brokers_own_words(tmp_path: Path) -> None:
    (tmp_path / "kafka" / "log").mkdir(parents=True)
    (tmp_path / "kafka" / "log" / "meta.properties").write_text("version=1\ncluster.id=somebody-elses\n")
    with pytest.raises(StackError, match=r"kafka ended with code 1: .*(meta\.properties|node\.id|RuntimeException)"):
        async with local_stack(tmp_path, external=ONLY_KAFKA):
            pass
    assert not list((tmp_path / "pids").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
async def test_root_keeps_its_database_where_only_root_may_walk(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with local_stack(private / "home", external=ONLY_POSTGRES) as stack:
        assert psutil.Process(pids(stack)[0]).uids().effective != 0
        async with database(stack.addresses) as connection:
            assert await connection.fetchval("SELECT 1") == 1
            assert await connection.fetchval("SHOW synchronous_commit") == "on"


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=r"cannot use .*file.*; set KB_HOME to a folder of your own"):
        async with local_stack(tmp_path / "file" / "home"):
            pass


async def test_nothing_is_started_where_all_is_given(tmp_path: Path) -> None:
    async with local_stack(tmp_path, external=ELSEWHERE) as stack:
        assert stack.processes == {}
        assert stack.addresses == Addresses("127.0.0.1:1", "postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1/0")


def _recorded(pid_file: Path) -> psutil.Process:
    return psutil.Process(json.loads(pid_file.read_text())["pid"])


def _bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KB_")}  # noqa: TID251


def _exec(home: Path, script: str) -> list[str | Path]:
    return [sys.executable, "-m", "kalshibook_tools.stack", "exec", "--home", home, "--", "sh", "-c", script]


async def _exec_with_redis_only(home: Path, script: str) -> asyncio.subprocess.Process:
    env = _bare_environment() | {"KB_KAFKA_BROKERS": "given:9092", "KB_POSTGRES_DSN": "postgresql://given/db"}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*_exec(home, script), stdout=pipe, stderr=pipe, env=env)


async def test_exec_hands_on_the_addresses_and_the_code(tmp_path: Path) -> None:
    child = await _exec_with_redis_only(tmp_path, 'echo "$KB_KAFKA_BROKERS $KB_TEST_POSTGRES $KB_REDIS_URL"; exit 7')
    out, _ = await child.communicate()
    brokers, dsn, url = out.decode().split()
    assert (brokers, dsn) == ("given:9092", "postgresql://given/db")
    assert url.startswith("redis://127.0.0.1:")
    assert child.returncode == 7
    assert not list((tmp_path / "pids").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_exec_passes_a_signal_on_and_then_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    script = "trap 'echo asked; exit 5' TERM INT; echo up; while :; do sleep 0.02; done"
    child = await _exec_with_redis_only(tmp_path, script)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"up\n"
    child.send_signal(number)
    out, _ = await child.communicate()
    assert (out, child.returncode) == (b"asked\n", 5)
    assert not list((tmp_path / "pids").iterdir())


async def test_run_stops_everything_on_the_first_signal_and_is_not_hurried_by_the_second(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kalshibook_tools.stack", "run", "--home", str(tmp_path)]
    env = _bare_environment() | {"KB_KAFKA_BROKERS": "x", "KB_POSTGRES_DSN": "y"}
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"export KB_KAFKA_BROKERS=x\n"
    server = _recorded(tmp_path / "pids" / "redis")
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    await child.communicate()
    assert child.returncode == 0
    assert not server.is_running()
    assert not list((tmp_path / "pids").iterdir())


async def test_exec_of_a_missing_command_is_told(tmp_path: Path) -> None:
    command = [*_exec(tmp_path, "")[:-3], "/no-such-command"]
    env = _bare_environment() | {"KB_KAFKA_BROKERS": "x", "KB_POSTGRES_DSN": "y", "KB_REDIS_URL": "z"}
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=env)
    _, err = await child.communicate()
    assert (child.returncode, err) == (127, b"error: cannot run /no-such-command: No such file or directory\n")


@pytest.mark.parametrize("honest", [True, False])
def test_without_maven_the_release_archive_is_checked_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    release = f"kafka_2.13-{jars.KAFKA_VERSION}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        jar = tarfile.TarInfo(f"{release}/libs/{release}.jar")
        jar.size = 3
        tar.addfile(jar, io.BytesIO(b"jar"))
    digest = hashlib.sha512(packed.getvalue() if honest else b"").hexdigest().upper()
    # gpg --print-md, as Apache publishes it: groups of eight, over several lines
    told = f"{release}.tgz: " + "\n ".join(" ".join(digest[i : i + 8] for i in range(o, o + 64, 8)) for o in (0, 64))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "kafka.tgz").write_bytes(packed.getvalue())
    (tmp_path / "mirror" / "kafka.tgz.sha512").write_text(told + "\n")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("KB_CACHE", str(tmp_path / "cache"))
    with _serving(tmp_path / "mirror") as url:
        monkeypatch.setattr(jars, "_ARCHIVE", f"{url}/kafka.tgz")
        if honest:
            assert (jars.fetch_kafka(lambda line: None) / f"{release}.jar").read_bytes() == b"jar"
        else:
            with pytest.raises(StackError, match="does not have the SHA-512 that Apache publishes"):
                jars.fetch_kafka(lambda line: None)
            assert not list((tmp_path / "cache").glob("**/*.jar"))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[str]:
    def here(*args: object) -> _Quiet:
        return _Quiet(*args, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), here) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
