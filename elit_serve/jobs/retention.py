"""How long and how much is kept: pictures go by age and by a cap on them all, and later the records of their jobs."""

from __future__ import annotations

import time

from elit_serve.jobs.results import Results
from elit_serve.jobs.store import JobStore

RECORD_SCALE = 7  # a job can be asked for so many times as long as its pictures
AT_ONCE = 100


class Retention:
    """Used by one thread. stored_bytes: of all pictures that are kept.

    max_bytes: of these at most; the oldest go first. seconds: how long pictures are kept.
    """

    def __init__(self, store: JobStore, results: Results, *, max_bytes: int, seconds: float) -> None:
        self._store = store
        self._results = results
        self._max_bytes = max_bytes
        self._seconds = seconds
        self.stored_bytes = 0

    def recover(self) -> None:
        """At the start: what is on disk and what is in the database are made to agree."""
        kept = self._store.kept_results()
        self._results.remove_all_but(kept.keys())
        self.stored_bytes = sum(kept.values())

    def added(self, num_bytes: int) -> None:
        self.stored_bytes += num_bytes

    def shrink(self) -> None:
        """To the cap."""
        while self.stored_bytes > self._max_bytes and self._remove_oldest(limit=1):
            pass

    def tidy(self) -> None:
        now_s = time.time()
        while self._remove_oldest(limit=AT_ONCE, ended_before_s=now_s - self._seconds):
            pass
        self._store.delete_ended(now_s - RECORD_SCALE * self._seconds)

    def _remove_oldest(self, *, limit: int, ended_before_s: float | None = None) -> bool:
        """Noted first, so that nobody misses files that are said to be kept. A full disk may have no room for the
        note; the files go all the same, which makes room for the next attempt."""
        oldest = self._store.kept_results(ended_before_s=ended_before_s, limit=limit)
        for job_id, num_bytes in oldest.items():
            try:
                self._store.forget_results(job_id)
            finally:
                self._results.remove(job_id)
            self.stored_bytes -= num_bytes
        return bool(oldest)
