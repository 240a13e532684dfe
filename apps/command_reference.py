"""The reference page of the `manifold` command, written from the commands themselves.

    python -m manifold_apps.command_reference > docs/commands.md

Everything on it is read from the Typer app: a command added there stands on the page when it is written again, and a test
fails until it is. Kinds of values are read from the functions' annotations, since versions of Typer keep them in different
places.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from .cli import app

__all__ = ["REGENERATE", "command_reference", "main"]

REGENERATE = "python -m manifold_apps.command_reference > docs/commands.md"
"""The command that writes the page."""

_INTRODUCTION = f"""# The commands

Written by `{REGENERATE}`; change the commands, not this page.

`manifold --debug COMMAND` shows the traceback of an error, `manifold COMMAND --help` what stands here. Results go to standard
output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C,
143 by SIGTERM.
"""
_HUB = re.compile(r"--(?:encoder|clip) [\w.-]+/[\w.-]+")
_MARK = "<!-- needs a download: in the tests a small model of that name stands in -->"
_DEFAULT = re.compile(r"\s*\[default: (.*?)\]\s*$")


def command_reference() -> str:
    """The whole page as markdown, ending in a newline."""
    group: Any = typer.main.get_command(app)
    functions = {}
    for one in app.registered_commands:
        if one.callback is not None:
            functions[one.name or one.callback.__name__.replace("_", "-")] = one.callback
    commands = [(name, command) for name, command in group.commands.items() if not command.hidden]
    rows = [f"| [`{name}`](#manifold-{name}) | {_cell(_paragraphs(command)[0])} |" for name, command in commands]
    parts = [_INTRODUCTION, "\n".join(["| command | what it does |", "|---|---|", *rows, ""])]
    for name, command in commands:
        kinds = typing.get_type_hints(functions[name], include_extras=True)
        parts.append(_section(name, command, kinds))
    return "\n".join(parts)


def _section(name: str, command: Any, kinds: Mapping[str, Any]) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [
        one for one in command.params if one.param_type_name == "option" and one.name in kinds and not one.hidden
    ]
    usage = ["manifold", name, *(_argument_name(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
    purpose, *rest = _paragraphs(command)
    lines = [f"## manifold {name}", "", purpose, "", "```text", " ".join(usage), "```", ""]
    for paragraph in rest:
        example = paragraph.removeprefix("Example: ")
        marked = [_MARK] if _HUB.search(example) else []
        lines += [paragraph, ""] if example == paragraph else [*marked, "```sh", example, "```", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{_argument_name(one)}` | {_cell(one.help or '')} |" for one in arguments]
        lines.append("")
    if options:
        lines += ["| option | | default |", "|---|---|---|"]
        lines += [_option_row(one, kinds[one.name]) for one in options]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").strip().split("\n\n")]


def _argument_name(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name += "..." if argument.nargs == -1 and not name.endswith("...") else ""
    return name if argument.required else f"[{name}]"


def _option_row(option: Any, kind: Any) -> str:
    text = (option.help or "").strip()
    said = _DEFAULT.search(text)
    default = said.group(1) if said else _default(option)
    names = ", ".join(f"`{one}`" for one in [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts])
    if not option.is_flag:
        names += f" {_value(option.metavar, kind)}"
    return f"| {names} | {_cell(_DEFAULT.sub('', text))} | {_cell(default)} |"


def _value(metavar: str | None, kind: Any) -> str:
    """What comes after the option's name: its metavar, the choices, or the kind of value."""
    if metavar:
        return f"`{metavar}`"
    origin = get_origin(kind)
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(kind))
    if origin in (Annotated, list):
        return _value(None, get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return _value(None, next(one for one in get_args(kind) if one is not type(None)))
    plain = {"int": "INTEGER", "float": "NUMBER", "str": "TEXT", "Path": "PATH"}
    return f"`{plain.get(kind.__name__, kind.__name__)}`"


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return "required"
    if option.is_flag:
        return f"`{(option.opts if value else option.secondary_opts)[0]}`" if option.secondary_opts else ""
    # Older versions mark "none given" by an object of their own.
    return f"`{value}`" if isinstance(value, str | int | float) or hasattr(value, "parts") else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Print the page."""
    sys.stdout.write(command_reference())


if __name__ == "__main__":
    main()
