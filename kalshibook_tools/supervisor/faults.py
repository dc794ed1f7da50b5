"""What a schedule of faults did, and what became of it: counted by the exchange that did it and by the services that told it.

Each fault that loses or repeats something has a counter of its own at the gatherer it was done to: a frame dropped is a hole in a
`seq`, one sent twice is stale, a reset is a reconnect, error 25 is an error. A delay must show nowhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kalshibook_tools.supervisor.home import GATHERERS
from kalshibook_tools.supervisor.services import Options, gatherer

_LABELS = {
    "sequence_gap": "sequence_gap_total",
    "duplicate": "stale_total",
    "reconnect": "reconnects_total",
    "terminal_error": "error_total",
    "breaks": "breaks_total",
}


def told(
    options: Options,
    counters: Mapping[str, Mapping[str, Any]],
    gaps: Sequence[Mapping[str, Any]],
    trade_gaps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the state file says: injected and labelled by gatherer, gaps of the merged stream by cause."""
    injected = counters.get("simulator", {}).get("injected", {})
    names = {gatherer(number): name for number, name in enumerate(GATHERERS[: options.gatherers])}
    return {
        "seed": options.faults,
        "overlap": options.faults_overlap,
        "injected": {who: injected.get(str(number), {}) for number, who in enumerate(names, 1)},
        "labelled": {
            who: {label: int(counters.get(name, {}).get(counter, 0)) for label, counter in _LABELS.items()}
            for who, name in names.items()
        },
        "gaps": dict(Counter(gap["cause"] for gap in gaps)),
        "trade_gaps": dict(Counter(gap["cause"] for gap in trade_gaps)),
    }


def line(told: Mapping[str, Any]) -> str:
    """Return it for a person."""
    kinds: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for injected, labelled in zip(told["injected"].values(), told["labelled"].values(), strict=True):
        kinds.update(injected)
        labels.update(labelled)
    gaps, trade_gaps = sum(told["gaps"].values()), sum(told["trade_gaps"].values())
    return (
        f"faults (seed {told['seed']}): injected {_list(kinds)}; the gatherers labelled {_list(labels)}; "
        f"the merged stream has {gaps:,} gaps of books, {trade_gaps:,} of trades"
    )


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if count) or "nothing"
