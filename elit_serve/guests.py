"""Who the guests of the server are: the one place that knows both."""

from __future__ import annotations

from elit_serve.jobs.desk import JobDesk
from elit_serve.jobs.routes import router
from elit_serve.server.guest import Guest

GUESTS = (Guest(name="jobs", router=router, open=JobDesk),)
