"""The API's page: plain HTML written from the OpenAPI schema, with forms to try it.

FastAPI's own pages load their scripts from a content network, which a machine without internet cannot reach, and which
would learn that this server exists. This page needs nothing but itself: no script, no font, no other address.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

__all__ = ["api_page"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c1e22;max-width:54rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2.2rem;border-top:1px solid #dee0e4;padding-top:1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f5f6f8;padding:.7rem;overflow:auto}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #eceef1}th{color:#6e727a;font-weight:normal}form{background:#f5f6f8;padding:.7rem}
label{display:inline-block;margin:0 1rem .5rem 0}input,select{font:inherit;max-width:14rem}
.verb{display:inline-block;min-width:3.2rem;color:#6e727a}
""".strip()


def api_page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI schema, as HTML.

    Arguments
        schema: an OpenAPI 3 document with its references inside `components`.
    """
    info = schema["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])}</h1><p>{_prose(info.get('description', ''))}</p>",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in schema["paths"].items():
        for verb, operation in methods.items():
            parts.append(_operation(schema, path, verb, operation))
    return "\n".join(parts) + "</html>\n"


def _operation(schema: dict[str, Any], path: str, verb: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<h2><span class=verb>{escape(verb.upper())}</span> <code>{escape(path)}</code></h2>",
        f"<p>{_prose(operation.get('description') or operation.get('summary', ''))}</p>",
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = {one["name"]: {**one["schema"], "description": one.get("description", "")} for one in parameters}
        parts.append(_fields(schema, rows, [one["name"] for one in parameters if one.get("required")]))
    if verb == "get" and not parameters:
        parts.append(f"<p><a href='{escape(path)}'>Try it</a></p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body = _resolve(schema, content["schema"])
        parts.append(f"<p>Body: <code>{escape(kind)}</code>. {_prose(body.get('description', ''))}</p>")
        parts.append(_fields(schema, body["properties"], body.get("required", [])))
        if kind == "multipart/form-data":
            parts.append(_form(schema, path, body))
        for example in body.get("examples", []):
            parts.append(_json(example))
    responses: list[list[str]] = []
    for status, response in operation.get("responses", {}).items():
        kinds = ", ".join(response.get("content", {}))
        responses.append([status, response.get("description", ""), kinds])
    parts.append(_table(["status", "meaning", "content"], responses))
    answer = operation.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
    if answer:
        shown = _example(schema, answer["schema"])
        parts.append(f"<p>Answer, in shape:</p>{_json(shown)}")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], fields: dict[str, Any], required: list[str]) -> str:
    rows = []
    for name, field in fields.items():
        default = "required" if name in required else json.dumps(field.get("default"))
        rows.append([name, _kind(schema, field), default, field.get("description", "")])
    return _table(["field", "type", "default", ""], rows)


def _form(schema: dict[str, Any], path: str, body: dict[str, Any]) -> str:
    inputs = []
    for name, field in body["properties"].items():
        resolved = _resolve(schema, field)
        default = "" if resolved.get("type") == "array" else escape(str(field.get("default", "")), quote=True)
        if resolved.get("format") == "binary":
            control = f"<input type=file name={name} required>"
        elif "enum" in resolved:
            options = (f"<option{' selected' * (one == default)}>{escape(one)}" for one in resolved["enum"])
            control = f"<select name={name}>{''.join(options)}</select>"
        else:
            control = f"<input name={name} value='{default}' size=8>"
        inputs.append(f"<label>{escape(name)} {control}</label>")
    action = escape(path.lstrip("/"), quote=True)
    return (
        f"<form method=post enctype=multipart/form-data action='{action}'>"
        f"{''.join(inputs)}<button>Try it</button></form>"
    )


def _example(schema: dict[str, Any], field: dict[str, Any], depth: int = 0) -> Any:
    """A value in the shape of a field: its example where it has one."""
    resolved = _resolve(schema, field)
    for key in ("examples", "enum"):
        if resolved.get(key):
            return resolved[key][0]
    if "const" in resolved:
        return resolved["const"]
    if "properties" in resolved and depth < 6:
        return {name: _example(schema, one, depth + 1) for name, one in resolved["properties"].items()}
    if "items" in resolved and depth < 6:
        return [_example(schema, resolved["items"], depth + 1)]
    return resolved.get("default", _kind(schema, field))


def _kind(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """The type of a field in words."""
    resolved = _resolve(schema, field)
    if "anyOf" in resolved:
        return " or ".join(_kind(schema, one) for one in resolved["anyOf"])
    if "enum" in resolved:
        return ", ".join(map(str, resolved["enum"]))
    if resolved.get("format") == "binary":
        return "file"
    if resolved.get("type") == "array" and "items" in resolved:
        return f"array of {_kind(schema, resolved['items'])}"
    signs = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    bounds = [f"{word} {resolved[name]:g}" for name, word in signs.items() if name in resolved]
    return " ".join([str(resolved.get("type", "any")), ", ".join(bounds)]).strip()


def _resolve(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """The field with a reference followed."""
    if "$ref" not in field:
        return field
    target: Any = schema
    for name in field["$ref"].removeprefix("#/").split("/"):
        target = target[name]
    return {**target, **{name: value for name, value in field.items() if name != "$ref"}}


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(one)}" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{_prose(str(cell))}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"


def _prose(text: str) -> str:
    """Text with `code` between backquotes."""
    pieces = escape(text).split("`")
    return "".join(piece if place % 2 == 0 else f"<code>{piece}</code>" for place, piece in enumerate(pieces))
