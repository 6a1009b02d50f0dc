"""Was one of a few files replaced or rewritten since the last look?"""

from __future__ import annotations

import os
from collections.abc import Sequence

Signature = tuple[tuple[int, ...] | None, ...]


class WatchedFiles:
    """Compares inode, size and time: a file moved into place and a mounted secret that changes are both seen."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._seen: Signature | None = None

    def have_changed(self) -> bool:
        """True once for each change, and at the first look."""
        now = self.signature()
        changed = now != self._seen
        self._seen = now
        return changed

    def signature(self) -> Signature:
        """Equal as long as no file changed; None for one that is not there."""
        return tuple(_signature(path) for path in self._paths)


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
