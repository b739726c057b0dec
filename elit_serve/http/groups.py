"""The groups of operations in `/docs`: every operation is in exactly one."""

from __future__ import annotations

from enum import StrEnum


class Group(StrEnum):
    """The value is the heading."""

    PICTURES = "Pictures"
    JOBS = "Jobs"
    OPENAI = "OpenAI"
    MODELS = "Models"
    OPERATIONS = "Operations"


_ABOUT = {
    Group.PICTURES: "Pictures at once, and what would become of a request for them.",
    Group.JOBS: "Pictures later: stored, followed, cancelled and fetched.",
    Group.OPENAI: "What OpenAI's clients ask for, answered in their shape.",
    Group.MODELS: "What is served here, and what it costs.",
    Group.OPERATIONS: "For whoever runs the server: health, load and metrics.",
}

TAGS = [{"name": group.value, "description": _ABOUT[group]} for group in Group]
