"""Server-sent events in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def event_stream_content(*events: type[BaseModel], **others: type[BaseModel]) -> dict[str, Any]:
    """The `content` of a response that streams events: models whose `type` names them, and others by their names.

    Schemas stand in the document as a whole, because FastAPI gathers only those of JSON bodies for references.
    """
    named = {str(event.model_fields["type"].default): event for event in events} | others
    variants = [_event_schema(name, model) for name, model in named.items()]
    return {"text/event-stream": {"itemSchema": {"oneOf": variants}}}


def _event_schema(name: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _inlined(schema, schema)}
    return {"type": "object", "required": ["event", "data"], "properties": {"event": {"const": name}, "data": data}}


def _inlined(part: Any, schema: dict[str, Any]) -> Any:
    """`part` of a schema with its definitions in place of references to them."""
    if isinstance(part, list):
        return [_inlined(each, schema) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    return {name: _inlined(each, schema) for name, each in part.items() if name != "$defs"}
