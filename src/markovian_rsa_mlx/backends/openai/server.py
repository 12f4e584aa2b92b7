"""One server of a fleet: how many calls it may have now, how long it rests, and since when it takes none."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .exchange import SLOWEST_TOKEN_S
from .identity import Identity
from .wire import Wire

#: A server that failed rests for the first of these seconds, and twice as long each further time, up to the second.
_REST_S, _LONGEST_REST_S = 0.25, 5.0
_FAILURES_ALLOWED, _LONGEST_ASKED_S = 3, 60.0
#: Rounds of calls that must end well before a server that put calls off is given one more at once.
_ROUNDS_A_STEP = 2
#: A token may take this many times as long as in the trial at the start (a batch of few) and in a reply (a full one).
_TRIAL_SLACK, _REPLY_SLACK, _QUICKEST_TOKEN_S = 16, 4, 0.05


@dataclass(eq=False)
class Server:
    """One URL. `identity` is None until it has said what it serves, and again when it was gone.

    `limit`: requests that it is said to hold at once. `away`: it could not be reached when last tried. `lost_since`
    (monotonic seconds): since when it takes no call, be it away or that it puts all of them off; None: it does.
    `token_s`: seconds that a token may take where a reply comes all at once.
    """

    wire: Wire
    limit: int
    identity: Identity | None = None
    in_flight: int = 0
    failures: int = 0
    away: bool = False
    lost_since: float | None = None
    token_s: float = SLOWEST_TOKEN_S
    _room: float = float("inf")
    _rests_until: float = 0.0
    _asked_until: float = 0.0

    @property
    def room(self) -> int:
        """Requests that may be in flight now: `limit`, or fewer after it has put some off."""
        return int(min(self.limit, self._room))

    @property
    def rests_until(self) -> float:
        """When it may be asked again, in monotonic seconds."""
        return max(self._rests_until, self._asked_until)

    def rest(self, seconds: float | None = None) -> None:
        """Leave it alone for a while: `seconds`, or longer with each failure in a row."""
        pause = self._longer_pause() if seconds is None else seconds
        self._rests_until = max(self._rests_until, time.monotonic() + pause)

    def lost(self) -> None:
        """It cannot be reached. Who comes back may be another."""
        self.identity, self._room = None, float("inf")
        self._lost(away=True)
        self.rest()

    def failed(self, retry_after_s: float | None = None) -> None:
        """A call went wrong: rest as long as the server asks for, or after some such calls in a row."""
        if retry_after_s is not None:
            self._asked(retry_after_s)
        elif self.failures >= _FAILURES_ALLOWED:
            self.rest()
        else:
            self.failures += 1

    def put_off(self, retry_after_s: float | None) -> None:
        """It takes no more calls than it has now, the one that hears of it aside."""
        others = self.in_flight - 1
        self._room = max(1.0, min(self.room, others))
        if others <= 0:
            self._lost(away=False)
        self._asked(max(retry_after_s or 0.0, self._longer_pause()))

    def heard(self) -> None:
        """It takes calls."""
        self.away, self.lost_since = False, None

    def answered(self) -> None:
        """A call ended well: its failures are forgotten, not the rest that it asked for."""
        self.heard()
        self.failures, self._rests_until = 0, 0.0
        self._room += 1 / (_ROUNDS_A_STEP * max(1.0, min(self._room, self.limit)))

    def tried(self, token_s: float) -> None:
        """The trial at the start took so many seconds a token."""
        self.token_s = min(SLOWEST_TOKEN_S, max(_QUICKEST_TOKEN_S, _TRIAL_SLACK * token_s))

    def replied(self, token_s: float) -> None:
        """A whole reply took so many seconds a token."""
        self.token_s = max(self.token_s, _REPLY_SLACK * token_s)

    def _asked(self, seconds: float) -> None:
        self._asked_until = max(self._asked_until, time.monotonic() + min(seconds, _LONGEST_ASKED_S))

    def _lost(self, away: bool) -> None:
        if self.lost_since is None or self.away != away:
            self.lost_since = time.monotonic()
        self.away = away

    def _longer_pause(self) -> float:
        """Calls that fail together count as one failure."""
        if self.rests_until <= time.monotonic():
            self.failures += 1
        doublings = min(max(self.failures - 1, 0), 10)
        return min(_REST_S * 2.0**doublings, _LONGEST_REST_S)
