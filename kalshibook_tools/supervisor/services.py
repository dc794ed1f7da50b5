"""What is run and how: the command line and the environment of each process, as values.

Promises: an environment says where everything is, and what the person who started it set is not changed. The real exchange
differs from the simulator by an address and a key; it is asked at a modest pace, and what it said of its markets is kept for the
next start, while a simulator begins anew with each.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kalshibook_tools.stack import Addresses, External, Program
from kalshibook_tools.supervisor.home import GATHERERS, Home

START_WITHIN = 60.0
"""Seconds a process gets to say that it is ready, on a machine that starts eight others at the same time."""

STOP_WITHIN = 40.0
"""Seconds a process gets to drain (KB_DRAIN_SECONDS, 30 by default, and what Python takes to end) before it is killed."""

UNSPARED = {"KB_REQUESTS_PER_SECOND": "1000", "KB_COMMANDS_PER_SECOND": "10000"}
"""Of the simulator: at full speed a recording brings a day's new markets within seconds."""

_MODULES = dict.fromkeys(GATHERERS, "ingest") | {
    "backfill": "ingest.backfill",
    "archive": "persister.archive",
    "retention": "persister.retention",
}
"""Services whose module has another name."""

_EXPLAINS = re.compile(r"configuration:|error|exception|fatal|critical", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """What `kb up` was asked for."""

    home: Home
    recordings: tuple[Path, ...] = ()
    speed: str = "1"  # a factor, or "max"
    keep_running: bool = False
    exchange: str | None = None  # demo or prod: the real one; None: the simulator
    gateway_port: int | None = None  # None: the last run's, or the next free one
    simulator_port: int | None = None
    gatherers: int = 1
    faults: int | None = None  # the seed of a schedule that hurts the gatherers, each in its turn
    faults_overlap: bool = False
    generator: Mapping[str, int | str] = field(default_factory=dict)  # markets, rate, seed, where asked for
    external: External = field(default_factory=External)
    env: Mapping[str, str] = field(default_factory=dict)  # the supervisor's own, handed on

    def simulator_info(self) -> dict[str, Any]:
        """Return what the simulator says of itself (addresses, key); empty before it does."""
        try:
            info: dict[str, Any] = json.loads((self.home.path / "simulator.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return info


def environment(options: Options, addresses: Addresses, name: str, port: int) -> dict[str, str]:
    """Return the environment of a service."""
    env = dict(options.env) | {
        "KB_KAFKA_BROKERS": addresses.kafka,
        "KB_POSTGRES_DSN": addresses.postgres,
        "KB_REDIS_URL": addresses.redis,
        # A service that died is succeeded at once by its next life, which nothing else on this broker may be taken for.
        "KB_INSTANCE": f"kb-{hashlib.sha256(bytes(options.home.path)).hexdigest()[:16]}",
        "KB_HEALTH_HOST": "127.0.0.1",
        "KB_HEALTH_PORT": str(port),
    }
    if name == "gateway":
        env |= {"KB_GATEWAY_HOST": "127.0.0.1", "KB_GATEWAY_PORT": str(port)}
    if name == "backfill":
        env |= _exchange(options, 0)
    if name in GATHERERS:
        number = GATHERERS.index(name)
        if options.gatherers > 1:
            env |= {"KB_GATHERER": gatherer(number)}
            if registry := env.get("KB_REGISTRY"):
                env["KB_REGISTRY"] = f"{registry}-{gatherer(number)}"
        if options.exchange:
            env.setdefault("KB_REGISTRY", str(options.home.path / f"registry-{options.exchange}-{gatherer(number)}"))
        env = (UNSPARED if not options.exchange else {}) | env | _exchange(options, number)
        env.setdefault("KB_SPOOL", str(options.home.path / "spool"))
    return env


def gatherer(number: int) -> str:
    """Return the name that gatherer 0, 1, … gives to what it captures."""
    return f"g{number + 1}"


def _exchange(options: Options, number: int) -> dict[str, str]:
    if options.exchange:
        return {"KB_KALSHI_ENV": options.exchange}
    info = options.simulator_info()
    return {
        "KB_KALSHI_WS_URL": info["ws_url"],
        "KB_KALSHI_REST_URL": info["rest_url"],
        "KALSHI_API_KEY_ID": info["key_ids"][number],
        "KALSHI_PRIVATE_KEY_PATH": info["private_key_path"],
    }


def service(options: Options, addresses: Addresses, name: str, port: int) -> Program:
    """Return a service as a program."""
    command = [sys.executable, "-m", f"services.{_MODULES.get(name, name)}"]
    return _program(options, name, command, environment(options, addresses, name, port))


def simulator(options: Options, port: int) -> Program:
    """Return the exchange simulator as a program. What it says of itself it writes to `simulator.json`."""
    command: list[str | Path] = [sys.executable, "-m", "kalshibook_tools.simulator", "--port", str(port)]
    command += ["--info-file", options.home.path / "simulator.json", "--key-dir", options.home.path / "simulator"]
    command += ["--gatherers", str(options.gatherers)]
    if options.faults is not None:
        command += ["--faults", str(options.faults), *["--faults-overlap"] * options.faults_overlap]
    for recording in options.recordings:
        command += ["--recording", recording]
    if options.recordings:
        command += ["--speed", options.speed]
    for name, value in options.generator.items():
        command += [f"--{name}", str(value)]
    return _program(options, "simulator", command, dict(options.env))


def _program(options: Options, name: str, command: list[str] | list[str | Path], env: dict[str, str]) -> Program:
    return Program(
        name=name,
        command=command,
        log=options.home.log(name),
        pid_file=options.home.pid_file(name),
        env=env,
        stop_within=STOP_WITHIN,
        explains=_EXPLAINS,
    )
