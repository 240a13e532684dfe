"""The report as one HTML file: no script, no font, no other address, so it opens anywhere and tells nobody."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Picture", "Section", "Table", "page"]

_STYLE = """
:root{color-scheme:light dark;--ground:#fdfdfc;--ink:#1c1e22;--faint:#63676f;--line:#e2e4e8;--soft:#f4f5f7;--blue:#2456a6;
--amber:#a65f14}
@media(prefers-color-scheme:dark){:root{--ground:#16181c;--ink:#e6e7ea;--faint:#9a9fa8;--line:#2f333a;--soft:#1e2126;
--blue:#8fb4ee;--amber:#e5a560}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:17px/1.6 ui-serif,Charter,"Bitstream Charter",Georgia,serif}
main{max-width:52rem;margin:0 auto;padding:3.5rem 1.25rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.25rem;line-height:1.3;margin:0 0 .35rem}
section{margin-top:3.4rem;padding-top:1.5rem;border-top:1px solid var(--line)}
.lead{color:var(--faint);margin:0 0 1.6rem}
.number{color:var(--faint);font-weight:400;margin-right:.55rem}
.claim{margin:0 0 1.1rem}
figure{margin:0 0 1.1rem}
figure img{display:block;width:100%;height:auto;background:#fff;border-radius:6px;padding:.5rem;border:1px solid var(--line)}
figcaption,.note,nav,footer,table{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
figcaption{color:var(--faint);font-size:.84rem;line-height:1.5;margin-top:.55rem}
.note{color:var(--faint);font-size:.84rem;line-height:1.5;margin:.7rem 0 0}
.wide{overflow-x:auto;margin-top:1.1rem}
table{border-collapse:collapse;width:100%;font-size:.86rem;line-height:1.45;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:right;padding:.35rem 0 .35rem 1.1rem;border-bottom:1px solid var(--faint);vertical-align:bottom}
td{text-align:right;padding:.32rem 0 .32rem 1.1rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}
th.measured{color:var(--blue)}th.gaussian{color:var(--amber)}th.null{color:var(--faint)}td.null{color:var(--faint)}
td.measured{font-weight:600}td{white-space:nowrap}td:first-child{white-space:normal}
small{display:block;font-weight:400;color:var(--faint);font-size:.78rem;line-height:1.25}
table.facts td{text-align:left;vertical-align:top;white-space:normal}
table.facts td:first-child{color:var(--faint);white-space:nowrap;width:9rem}
nav ol{columns:2;column-gap:2.5rem;padding-left:1.2rem;margin:1.6rem 0 0;font-size:.9rem}
nav a{color:var(--blue);text-decoration:none}nav a:hover{text-decoration:underline}nav li{margin:.15rem 0}
footer{margin-top:3.5rem;padding-top:1.2rem;border-top:1px solid var(--line);color:var(--faint);font-size:.84rem}
@media(max-width:38rem){body{font-size:16px}main{padding-top:2rem}nav ol{columns:1}}
@media print{section{break-inside:avoid}}
""".strip()


@dataclass(frozen=True)
class Picture:
    """A PNG file, what it shows to those who cannot see it, and one sentence on how to read it."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells as text; what follows a line break in a cell is small print.

    `kinds` names each column after the first: measured, gaussian, null or nothing.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: Sequence[str] = ("measured", "gaussian", "null")


@dataclass(frozen=True)
class Section:
    """One question: what was found in one sentence, pictures, tables, and what else to know."""

    title: str
    claim: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str = "") -> str:
    """The whole page, pictures inside.

    Arguments
        title: of the page. lead: one line below it. facts: name and value of what was measured, the first section.
        sections: the findings, numbered from 2. footer: plain text.

    Raises: FileNotFoundError if a picture is missing.
    """
    named = ["What was measured", *(section.title for section in sections)]
    listed = "".join(f"<li><a href='#s{number}'>{escape(name)}</a></li>" for number, name in enumerate(named, 1))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<header><h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p></header>",
        f"<nav aria-label=Contents><ol>{listed}</ol></nav>",
        f"<section id=s1>{_heading(1, named[0])}<div class=wide><table class=facts>{rows}</table></div></section>",
        *(_section(number, section) for number, section in enumerate(sections, 2)),
        f"<footer>{escape(footer)}</footer>" if footer else "",
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _heading(number: int, title: str) -> str:
    return f"<h2><span class=number>{number}</span>{escape(title)}</h2>"


def _section(number: int, section: Section) -> str:
    parts = [f"<section id=s{number}>", _heading(number, section.title), f"<p class=claim>{_prose(section.claim)}</p>"]
    parts += [_figure(picture) for picture in section.pictures]
    parts += [_table(table) for table in section.tables]
    if section.note:
        parts.append(f"<p class=note>{_prose(section.note)}</p>")
    return "\n".join([*parts, "</section>"])


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    image = f"<img alt='{escape(picture.alt, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{_prose(picture.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    kinds = ["", *table.kinds]
    head = "".join(_cell("th", kind, name) for kind, name in zip(kinds, table.header, strict=True))
    rows = ("".join(_cell("td", kind, text) for kind, text in zip(kinds, row, strict=True)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(tag: str, kind: str, text: str) -> str:
    marked = f" class={kind}" if kind else ""
    main, _, small = text.partition("\n")
    return f"<{tag}{marked}>{_prose(main)}{f'<small>{_prose(small)}</small>' if small else ''}</{tag}>"


def _prose(text: str) -> str:
    """Text with the signs that its figures are printed with: a minus, and spaces at which no line ends."""
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    return escape(re.sub(r"(?<=\d) ?%", "\u00a0%", text).replace("σ / α", "σ\u00a0/\u00a0α"))
