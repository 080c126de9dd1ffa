"""Which node of Redis is away, told from what Redis answers: nobody waits for one that is, all others are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from weakref import WeakSet

from prometheus_client import Gauge
from redis.exceptions import ClusterDownError, ReadOnlyError, ResponseError, SlotNotCoveredError

FAILURES = 3  # in a row, then the circuit opens
COOL_DOWN = 1.0  # seconds until one call may try again
QUIET = 1.0  # seconds between two lines of the log

_circuits: WeakSet[Circuit] = WeakSet()
Gauge("claude_redis_circuit_open", "Redis servers that are treated as away now.").set_function(
    lambda: sum(circuit.open for circuit in list(_circuits))
)


class Circuit:
    """Keeps callers from waiting for a Redis that is away: open after FAILURES in a row, one trial per COOL_DOWN."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.failures = 0
        self.next_trial_at = 0.0  # by `clock`
        _circuits.add(self)

    @property
    def open(self) -> bool:
        return self.failures >= FAILURES

    def admit(self) -> bool:
        if not self.open:
            return True
        now = self.clock()
        if now < self.next_trial_at:
            return False
        self.next_trial_at = now + COOL_DOWN
        return True

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1
        self.next_trial_at = self.clock() + COOL_DOWN


class Circuits:
    """One for each node, by its name; those of nodes that are no more are forgotten with the next new one."""

    def __init__(self) -> None:
        self._made: dict[str, Circuit] = {}

    def of(self, node: str, known: Callable[[], Iterable[str]]) -> Circuit:
        """The circuit of a node. `known`: the nodes that there are, asked for where this one is new."""
        circuit = self._made.get(node)
        if circuit is None:
            there = {node, *known()}
            self._made = {name: made for name, made in self._made.items() if name in there}
            circuit = self._made[node] = Circuit()
        return circuit

    @property
    def open(self) -> bool:
        """True while any node is treated as away."""
        return any(circuit.open for circuit in self._made.values())


class Quiet:
    """What goes wrong with every request is said once a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = float("-inf")

    def may_speak(self) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + QUIET
        return True


def is_away(error: Exception) -> bool:
    """True where the node serves nobody, as far as the error tells: it does not answer, or as a replica or a part of a
    Cluster that is down.

    False for any other answer, such as NOPERM or OOM: it comes at once, so that nobody needs to be kept from asking,
    and others may fare better (other keys, calls that take no memory).
    """
    if isinstance(error, SlotNotCoveredError):
        return False
    if isinstance(error, ClusterDownError):
        return "slot not served" not in str(error)
    return not isinstance(error, ResponseError) or isinstance(error, ReadOnlyError) or "READONLY" in str(error)
