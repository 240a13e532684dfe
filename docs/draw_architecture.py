"""Draws which room of the code imports which, from the syntax trees; the rooms are those of docs/architecture.md.

    python docs/draw_architecture.py

A room is a heading of the third level on that page, and the modules named in the line below it, `*` for any ending. Counted
is every import of the project's own modules, those inside functions and for type checking too. Writes
docs/images/architecture.svg, where each dot carries its two rooms as its id, and the arrows on the page between the two
comments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
SVG = ROOT / "docs" / "images" / "architecture.svg"
PACKAGES = ("manifold", "index", "apps")
BEGIN, END = "<!-- arrows: written by docs/draw_architecture.py -->", "<!-- end of arrows -->"
COLORS = {"manifold": "#2456a6", "index": "#3f7d4e", "apps": "#a6592f"}

Edges = dict[tuple[str, str], int]


def rooms_of_page(text: str) -> dict[str, list[str]]:
    """Modules of each room, in the order of the page."""
    found = re.findall(r"^### (.+)\n\n(`.*)$", text, re.MULTILINE)
    return {name.strip(): re.findall(r"`([\w.*]+)`", line) for name, line in found}


def modules() -> dict[str, Path]:
    """Every module of the project, as its folder names it, except the public lists of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name not in PACKAGES:
                found[name] = path
    return found


def room_of(module: str, rooms: dict[str, list[str]]) -> str | None:
    """The room that names the module, or a folder it lies in."""
    for name, members in rooms.items():
        if any(fnmatchcase(module, one) or module.startswith(f"{one}.") for one in members):
            return name
    return None


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a module imports; names from a public list count as the modules they live in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, attribute in found:
            ours = re.sub(r"^manifold_apps\b", "apps", source)
            if ours.split(".")[0] in PACKAGES:
                yield resolve(ours, attribute, known)


def resolve(source: str, attribute: str, known: dict[str, Path]) -> str:
    """The module in which `from source import attribute` finds it."""
    if f"{source}.{attribute}" in known:
        return f"{source}.{attribute}"
    public = ROOT.joinpath(*source.split(".")) / "__init__.pyi"
    if public.is_file():
        for node in ast.parse(public.read_text()).body:
            if isinstance(node, ast.ImportFrom) and attribute in [alias.asname or alias.name for alias in node.names]:
                return resolve(f"{source}.{node.module}" if node.module else source, attribute, known)
    return source


def room_edges(rooms: dict[str, list[str]]) -> Edges:
    """Number of imports from each room into each other one.

    Raises: ValueError naming the modules that are in no room.
    """
    known = modules()
    homeless = [name for name in known if room_of(name, rooms) is None]
    if homeless:
        raise ValueError(
            f"every module must stand in a room of docs/architecture.md, {', '.join(homeless)} stand in none; "
            "name them there and run: python docs/draw_architecture.py"
        )
    edges: Edges = {}
    for name, path in known.items():
        here = room_of(name, rooms)
        for target in imports(name, path, known):
            there = room_of(target, rooms)
            if there is None:
                raise ValueError(f"{path} imports {target}, which is no module; import from the module itself")
            if here is not None and here != there:
                edges[here, there] = edges.get((here, there), 0) + 1
    return edges


def arrows(rooms: dict[str, list[str]], edges: Edges) -> list[tuple[str, str]]:
    """The edges that do not follow from others: those without another way from the one room to the other."""
    reach: dict[str, set[str]] = {}
    for name in rooms:  # a room stands below all that it imports
        direct = [there for here, there in edges if here == name]
        reach[name] = set(direct).union(*(reach.get(there, set()) for there in direct))
    return [
        (here, there)
        for here, there in sorted(edges, key=lambda edge: [list(rooms).index(room) for room in edge])
        if not any(there in reach.get(between, set()) for one, between in edges if one == here and between != there)
    ]


def package_of(room: str, rooms: dict[str, list[str]]) -> str:
    """The package that a room's modules lie in."""
    return rooms[room][0].split(".")[0]


def mermaid(rooms: dict[str, list[str]], edges: Edges) -> str:
    """The arrows as text that code hosts draw."""
    names = {room: re.sub(r"\W", "_", room) for room in rooms}
    lines = ["```mermaid", "flowchart BT"]
    for package in PACKAGES:
        inside = [f'    {names[room]}["{room}"]' for room in rooms if package_of(room, rooms) == package]
        lines += [f"  subgraph {package}_[{package}]", *inside, "  end"]
    lines += [f"  {names[here]} --> {names[there]}" for here, there in arrows(rooms, edges)]
    return "\n".join([*lines, "```"])


def with_arrows(text: str, rooms: dict[str, list[str]], edges: Edges) -> str:
    """The page with its arrows written anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{mermaid(rooms, edges)}\n{END}{rest.split(END)[1]}"


def draw(rooms: dict[str, list[str]], edges: Edges, path: Path) -> None:
    """The table of imports as a picture: a dot where the room of the row imports the room of the column."""
    import matplotlib
    from matplotlib.figure import Figure

    order = list(rooms)
    side = 0.3 * len(order)
    with matplotlib.rc_context({"svg.hashsalt": "rooms", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(side + 2.2, side + 1.7), layout="constrained")
        axes = figure.add_subplot()
        for place, room in enumerate(order):
            color = COLORS[package_of(room, rooms)]
            axes.axhspan(place - 0.5, place + 0.5, color=color, alpha=0.10 if place % 2 else 0.05, lw=0)
            axes.plot([place], [place], "s", color=color, ms=11, alpha=0.35)
        for (here, there), count in sorted(edges.items()):
            x, y = order.index(there), order.index(here)
            color = COLORS[package_of(here, rooms)] if x < y else "#cc0000"
            axes.plot([x], [y], "o", color=color, ms=4 + 1.3 * min(count, 20) ** 0.5, gid=f"{here} -> {there}")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(order)), order, rotation=90)
        axes.set_yticks(range(len(order)), order)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for label, room in zip(labels, order, strict=True):
                label.set_color(COLORS[package_of(room, rooms)])
        axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), aspect="equal")
        axes.set_ylabel("this room ...")
        axes.set_title("... imports this one", fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def drawn_edges(svg: str) -> set[tuple[str, str]]:
    """The edges of a picture, from the ids of its dots."""
    ids = re.findall(r'id="([^"]+) -(?:&gt;|>) ([^"]+)"', svg)
    return set(ids)


def main() -> None:
    """Write the picture and the arrows."""
    text = PAGE.read_text()
    rooms = rooms_of_page(text)
    edges = room_edges(rooms)
    draw(rooms, edges, SVG)
    PAGE.write_text(with_arrows(text, rooms, edges))
    upward = [f"{here} -> {there}" for here, there in edges if list(rooms).index(here) < list(rooms).index(there)]
    print(f"{len(rooms)} rooms, {len(edges)} edges" + (f"; against the order: {', '.join(upward)}" if upward else ""))


if __name__ == "__main__":
    main()
