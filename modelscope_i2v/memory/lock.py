"""A readers–writer lock for networks: threads that compute share it, one that changes weights does not."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator

from torch import nn


class Lock:
    """A reentrant readers–writer lock.

    A thread that has it shared must not ask for it exclusively: two such would wait for each other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._depths: Counter[int] = Counter()
        """Times that each thread holds it; a thread that does not is not listed."""
        self._exclusive = False
        self._writers_waiting = 0

    @contextlib.contextmanager
    def acquire(self, exclusive: bool = False) -> Iterator[None]:
        """Waits until the thread can have it."""
        me = threading.get_ident()
        with self._changed:
            self._writers_waiting += exclusive
            try:
                self._changed.wait_for(lambda: self._is_free(me, exclusive))
            finally:
                self._writers_waiting -= exclusive
            before = self._exclusive
            self._depths[me] += 1
            self._exclusive = exclusive or before
        try:
            yield
        finally:
            with self._changed:
                self._depths[me] -= 1
                if not self._depths[me]:
                    del self._depths[me]
                self._exclusive = before
                self._changed.notify_all()

    def _is_free(self, me: int, exclusive: bool) -> bool:
        others = any(thread != me for thread in self._depths)
        if not others or exclusive:
            return not others
        # A new reader does not overtake a waiting writer, which might otherwise wait for ever.
        return not self._exclusive and (me in self._depths or not self._writers_waiting)


# One lock a network, also where two generators share it.
_locks: weakref.WeakKeyDictionary[nn.Module, Lock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(network: nn.Module) -> Lock:
    """A network's lock, the same for every caller."""
    with _guard:
        return _locks.setdefault(network, Lock())
