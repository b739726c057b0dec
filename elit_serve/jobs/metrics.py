"""What Prometheus sees of jobs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from elit_serve.jobs.states import ENDED

WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")


class JobMetrics:
    """All series are there from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter("elit_jobs_accepted_total", "Jobs that were stored.", registry=registry)
        self.ended = Counter("elit_jobs_ended_total", "Jobs by how they ended.", ["state"], registry=registry)
        for state in ENDED:
            self.ended.labels(state)
        self.webhooks = Counter(
            "elit_webhooks_total", "Attempts to tell of the end of a job.", ["outcome"], registry=registry
        )
        for outcome in WEBHOOK_OUTCOMES:
            self.webhooks.labels(outcome)
        self.waiting = Gauge("elit_jobs_waiting", "Jobs that wait outside the engine.", registry=registry)
        self.running = Gauge("elit_jobs_in_engine", "Jobs that the engine has.", registry=registry)
        self.stuck = Gauge(
            "elit_jobs_stuck", "1 while jobs cannot be stored: disk full, or no database.", registry=registry
        )
        self.unwritten = Gauge(
            "elit_job_reports_unwritten", "Starts and ends of jobs that are still to be stored.", registry=registry
        )
        self.stored_bytes = Gauge("elit_job_results_bytes", "Bytes of all pictures kept.", registry=registry)
