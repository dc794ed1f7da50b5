"""What a service is told: where everything is, and of the exchange an address and a key only."""

import json
from importlib.util import find_spec
from pathlib import Path

from kalshibook_tools.stack import Addresses
from kalshibook_tools.supervisor import faults, services
from kalshibook_tools.supervisor.home import FLOW, GATHERERS, Home
from kalshibook_tools.supervisor.screen import queries, table
from kalshibook_tools.supervisor.services import Options

ADDRESSES = Addresses("k:1", "postgresql://p/1", "redis://r:1/0")
INFO = {"ws_url": "ws://s/ws", "rest_url": "http://s/v2", "key_ids": ["id", "id2"], "private_key_path": "/key.pem"}


def test_every_service_knows_where_everything_is(tmp_path: Path) -> None:
    (tmp_path / "simulator.json").write_text(json.dumps(INFO))
    options = Options(Home(tmp_path), env={"KB_LOG_LEVEL": "debug", "KB_HEALTH_PORT": "1"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "simulator.json").write_text(json.dumps(INFO))
    elsewhere = Options(Home(tmp_path / "b"))
    for name in ("ingest", *(name for name in FLOW[:-1] if name not in GATHERERS)):
        program = services.service(options, ADDRESSES, name, 4711)
        assert program.env is not None
        assert program.env["KB_KAFKA_BROKERS"] == "k:1"
        assert program.env["KB_LOG_LEVEL"] == "debug"
        assert program.env["KB_HEALTH_PORT"] == "4711"
        assert ("KB_KALSHI_WS_URL" in program.env) == (name in ("ingest", "backfill"))
        module = str(program.command[-1])
        assert module.endswith(f".{name}") and find_spec(f"{module}.__main__") is not None
        assert program.env["KB_INSTANCE"] == services.environment(options, ADDRESSES, name, 4712)["KB_INSTANCE"]
        assert program.env["KB_INSTANCE"] != services.environment(elsewhere, ADDRESSES, name, 4711)["KB_INSTANCE"]


def test_the_real_exchange_differs_by_address_key_pace_and_memory_only(tmp_path: Path) -> None:
    (tmp_path / "simulator.json").write_text(json.dumps(INFO))
    mine = {"KALSHI_API_KEY_ID": "mine", "KALSHI_PRIVATE_KEY_PATH": "/mine.pem"}
    simulated = services.environment(Options(Home(tmp_path)), ADDRESSES, "ingest", 1)
    real = services.environment(Options(Home(tmp_path), exchange="prod", env=mine), ADDRESSES, "ingest", 1)
    differ = {name for name in simulated.keys() | real.keys() if simulated.get(name) != real.get(name)}
    addresses = {"KB_KALSHI_WS_URL", "KB_KALSHI_REST_URL", "KB_KALSHI_ENV"}
    assert differ == addresses | mine.keys() | services.UNSPARED.keys() | {"KB_REGISTRY"}
    assert real["KALSHI_API_KEY_ID"] == "mine"


def test_each_gatherer_has_its_own_name_key_and_registry(tmp_path: Path) -> None:
    (tmp_path / "simulator.json").write_text(json.dumps(INFO))
    options = Options(Home(tmp_path), gatherers=2, env={"KB_REGISTRY": "/mine", "KB_REQUESTS_PER_SECOND": "7"})
    first, second = (services.environment(options, ADDRESSES, name, 1) for name in GATHERERS[:2])
    assert {name for name in first if first[name] != second[name]} == {"KB_GATHERER", "KB_REGISTRY", "KALSHI_API_KEY_ID"}
    assert (second["KB_GATHERER"], second["KB_REGISTRY"], second["KALSHI_API_KEY_ID"]) == ("g2", "/mine-g2", "id2")
    assert second["KB_REQUESTS_PER_SECOND"] == "7"
    assert services.service(options, ADDRESSES, "ingest-2", 1).command[-1] == "services.ingest"


def test_faults_are_counted_by_gatherer_and_cause(tmp_path: Path) -> None:
    options = Options(Home(tmp_path), gatherers=2, faults=7)
    counters = {
        "simulator": {"injected": {"2": {"drop": 1, "reset": 2}}},
        "ingest-2": {"sequence_gap_total": 1, "reconnects_total": 2, "breaks_total": 30},
    }
    told = faults.told(options, counters, [{"cause": "disconnect"}, {"cause": "disconnect"}], [])
    assert told["injected"] == {"g1": {}, "g2": {"drop": 1, "reset": 2}}
    assert {label: count for label, count in told["labelled"]["g2"].items() if count} == {
        "sequence_gap": 1, "reconnect": 2, "breaks": 30,
    }  # fmt: skip
    assert (told["gaps"], told["trade_gaps"]) == ({"disconnect": 2}, {})
    assert "injected 1 drop, 2 reset" in faults.line(told)


def test_the_simulator_plays_what_was_asked_for(tmp_path: Path) -> None:
    options = Options(Home(tmp_path), recordings=(Path("/a"), Path("/b")), speed="max", generator={"seed": 3})
    command = [str(word) for word in services.simulator(options, 99).command]
    assert [command[i + 1] for i, word in enumerate(command) if word == "--recording"] == ["/a", "/b"]
    assert command[command.index("--speed") + 1] == "max"
    assert command[command.index("--seed") + 1] == "3"


def test_queries_are_three_and_quoted_for_a_shell() -> None:
    for lively in (None, ("KXA-1.5", "2025-11-03T00:00:00.000001Z")):
        lines = queries("http://h:1", "kb_demo_x", lively)
        assert len(lines) == 3
        assert all(line.startswith("curl -H 'X-API-Key: kb_demo_x' 'http://h:1/") for line in lines)
    assert lines[2].endswith("/v1/orderbook/KXA-1.5?at=2025-11-03T00:00:00.000001Z'")


def test_tables_are_aligned() -> None:
    assert table([("a", "bcd", "e"), ("ab", "c", "")]) == "  a   bcd  e\n  ab  c"
    assert table([]) == ""
