"""Whether a server answers, in its own protocol, and which ports are free to give to one."""

import asyncio
import contextlib
import socket
import struct

import asyncpg

from kalshibook_tools.stack.process import StackError


def free_port(preferred: int = 0) -> int:
    """Return a loopback port nobody listens on: `preferred` where it is free. It is not reserved: a server may yet lose it."""
    for port in (preferred, 0):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                server.bind(("127.0.0.1", port))
                return int(server.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


async def kafka_answers(port: int) -> bool:
    """Tell whether the broker knows of a live broker, itself (Metadata v1, for no topic)."""
    request = struct.pack(">hhihi", 3, 1, 0, -1, 0)
    reply = await _ask(port, struct.pack(">i", len(request)) + request, 12)
    return len(reply) == 12 and struct.unpack(">i", reply[8:])[0] > 0


async def redis_answers(port: int) -> bool:
    """Tell whether Redis answers PING, which it does not while it loads its data."""
    return await _ask(port, b"PING\r\n", 7) == b"+PONG\r\n"


async def postgres_answers(dsn: str) -> bool:
    """Tell whether Postgres lets `dsn` in. Raises StackError if it never will."""
    try:
        connection = await asyncpg.connect(dsn, timeout=5)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError):
        return False
    except asyncpg.PostgresError as error:
        raise StackError(f"PostgreSQL does not let us in: {error}; was its folder replaced?") from error
    await connection.close()
    return True


async def _ask(port: int, request: bytes, size: int) -> bytes:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                return await reader.readexactly(size)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return b""
