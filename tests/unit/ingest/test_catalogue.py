"""What was known is known after a restart, and a file that is not whole is no file."""

from pathlib import Path

import pytest

from kalshibook_core.kalshi.messages import Lifecycle
from services.ingest import catalogue
from services.ingest.catalogue import Extent
from services.ingest.registry import LINGER_US, Registry

NOW = 1_785_901_540_000_000
EXTENT = Extent("http://exchange/v2", ("open", "unopened"), 1_785_901_540, 2.5, {"event": 1_785_901_539})


def filled() -> Registry:
    registry = Registry()
    for n in range(12):
        registry.read({"ticker": f"KXDOG-{n}", "status": ("active", "closed")[n % 2], "volume_fp": f"{n}.00"}, 5, NOW)
    registry.hear(Lifecycle("KXDOG-3", "settled", {}), NOW)
    registry.families["event"]["KXDOG"] = 2**64 - 1
    return registry


async def safe() -> None:
    """Everything is published."""


async def test_a_restart_knows_what_was_known(tmp_path: Path) -> None:
    path, before = tmp_path / "new" / "registry", filled()
    await catalogue.save(path, EXTENT, before, safe)
    found = catalogue.load(path, EXTENT.exchange, EXTENT.statuses)
    assert found is not None
    after, extent = found
    assert extent == EXTENT and after.markets.keys() == before.markets.keys() and after.families == before.families
    assert after.stirred(NOW) == list(before.markets)
    later = NOW + 1_000_000
    assert all(after.rank(ticker, later) == before.rank(ticker, later) for ticker in before.markets)
    assert (
        "KXDOG-3" in after.stirred(NOW + LINGER_US) and after.rank("KXDOG-3", NOW + LINGER_US) is None and after.behind("KXDOG-3")
    )
    # Nothing that was published is published again, and what has changed is.
    assert after.read({"ticker": "KXDOG-4", "status": "active", "volume_fp": "4.00"}, 6, later) is None
    assert after.markets["KXDOG-4"].skew_us == 6
    assert after.read({"ticker": "KXDOG-4", "status": "active", "volume_fp": "5.00"}, 6, later) is not None


async def test_the_old_file_stands_until_all_is_published(tmp_path: Path) -> None:
    """A digest in the file means that its definition is in the topic."""
    path = tmp_path / "registry"
    await catalogue.save(path, EXTENT, Registry(), safe)

    async def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await catalogue.save(path, EXTENT, filled(), killed)
    found = catalogue.load(path, EXTENT.exchange, EXTENT.statuses)
    assert found is not None and not found[0].markets


@pytest.mark.parametrize("damage", ["cut", "line gone", "flip", "empty", "no json", "other exchange", "other statuses"])
async def test_a_file_that_is_not_whole_is_no_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "registry"
    await catalogue.save(path, EXTENT, filled(), safe)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    changed = {
        "cut": content[:-40], "line gone": b"".join(lines[:4] + lines[5:]), "flip": content.replace(b"KXDOG-7", b"KXDOG-8"),
        "empty": b"", "no json": b"[1,2]\n",
    }  # fmt: skip
    path.write_bytes(changed.get(damage, content))
    exchange = "http://other/v2" if damage == "other exchange" else EXTENT.exchange
    assert catalogue.load(path, exchange, ("open",) if damage == "other statuses" else EXTENT.statuses) is None
