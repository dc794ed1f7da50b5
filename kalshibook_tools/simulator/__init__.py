"""The exchange simulator: REST and websocket that a real Kalshi client cannot tell from the exchange's, for market data.

Plays: recorded frames with their own bytes (`recording`, `playback`) or a seeded order flow (`flow`, `trading`). Guarantees:
`seq` has no hole on a sid but where a fault was asked for; what it sent and what it lost is known (`truth`); the same seed
and start give the same flow. Scale: one process, one core; it is a test bench and a demo, not a service.

In a process of one's own:

    async with simulator.serve(simulator.Config(markets=20, key_dir=folder)) as exchange:
        exchange.ws_url, exchange.rest_url, exchange.key_id, exchange.private_key_path
        exchange.truth("KXTEST-1"), exchange.inject(kind="drop", count=2)

"""

from kalshibook_tools.simulator.faults import UnknownFault
from kalshibook_tools.simulator.recording import UnreadableRecording
from kalshibook_tools.simulator.running import Config, Running, serve

__all__ = ["Config", "Running", "UnknownFault", "UnreadableRecording", "serve"]
