"""Who has a network: any number of threads that use it as it is, or one that moves or changes it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator

from torch import nn


class Access:
    """A lock that threads share, or that one has alone; a thread that has it may take it again.

    One that has it together with others must not ask for it alone: two such would wait for each other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._depths: Counter[int] = Counter()
        """How often each thread has it."""
        self._alone = False
        self._wanted_alone = 0

    @contextlib.contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        """Waits until the thread can have it."""
        me = threading.get_ident()
        with self._changed:
            self._wanted_alone += alone
            try:
                self._changed.wait_for(lambda: self._is_free(me, alone))
            finally:
                self._wanted_alone -= alone
            before = self._alone
            self._depths[me] += 1
            self._alone = alone or before
        try:
            yield
        finally:
            with self._changed:
                self._depths[me] -= 1
                self._alone = before
                self._changed.notify_all()

    def _is_free(self, me: int, alone: bool) -> bool:
        others = any(depth for thread, depth in self._depths.items() if thread != me)
        if not others or alone:
            return not others
        # A newcomer does not overtake a thread that waits to be alone, or that would wait for ever.
        return not self._alone and (self._depths[me] > 0 or not self._wanted_alone)


# A network of two generators has one.
_accesses: weakref.WeakKeyDictionary[nn.Module, Access] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def access(network: nn.Module) -> Access:
    """The one to a network, whoever asks."""
    with _guard:
        return _accesses.setdefault(network, Access())
