"""The documentation of the API is in groups."""

from __future__ import annotations

from typing import Any


def test_every_operation_is_in_one_group_and_every_group_is_explained(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert all(description.endswith(".") for description in groups.values())
    tags = {
        f"{method} {path}": operation.get("tags", [])
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert {name: of_it for name, of_it in tags.items() if len(of_it) != 1} == {}
    assert {group for of_it in tags.values() for group in of_it} == set(groups)


def test_the_groups_are_what_a_reader_looks_for(server: Any) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]

    def group_of(path: str) -> str:
        (operation, *_) = paths[path].values()
        return str(operation["tags"][0])

    assert group_of("/v1/generate") == group_of("/v1/plan") == "Pictures"
    assert group_of("/v1/jobs") == group_of("/v1/jobs/{job_id}/events") == "Jobs"
    assert group_of("/v1/images/generations") == "OpenAI"
    assert group_of("/metrics") == group_of("/load") == group_of("/readiness") == "Operations"
