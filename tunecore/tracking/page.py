"""The frame of a report: one HTML page with its style inside, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1b1b1a; --soft: #5c5b57; --rule: #e2e1dc;
  --c0: #2a78d6; --c1: #e0602b; --c2: #12925f; --c3: #b07800; --c4: #c44f86; --c5: #5a49b8; --most: 75%; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #201f1e; --ink: #f1f0ec; --soft: #b3b1aa;
  --rule: #3a3936; --c0: #4c97ee; --c1: #ee7b48; --c2: #2cb983; --c3: #d39b22; --c4: #e077a8;
  --c5: #9d90f0; --most: 60%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 32px 0 10px; }
p { margin: 6px 0; max-width: 70ch; }
.lead, .note { color: var(--soft); } .note { font-size: .85rem; }
.grid2 { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
figure, .card, .tiles div, details { margin: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 10px 14px; }
figcaption { font-weight: 600; }
.legend { list-style: none; margin: 4px 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .85rem;
  color: var(--soft); } .legend b { color: var(--ink); font-weight: 600; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px;
  background: currentColor; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); font-size: 12px; font-family: system-ui, sans-serif; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.pale { opacity: .3; stroke-width: 1; } .dot { fill: currentColor; stroke: var(--card); } .fill { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); }
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin: 14px 0; }
.tiles span { display: block; font-size: .8rem; color: var(--soft); } .tiles b { font-size: 1.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: 6px; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th { font-weight: 600; } th[scope=row], thead th:first-child { text-align: left; font-weight: 500; }
.words td { text-align: left; overflow-wrap: anywhere; }
.heat td { text-align: center; padding: 4px 7px; border: 1px solid var(--card);
  background: color-mix(in srgb, var(--c0) calc(var(--v, 0) * var(--most)), var(--card)); }
.heat .turn { vertical-align: bottom; padding: 4px 2px; border: 0; }
.turn span { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 500; }
details { margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; } code { font-family: ui-monospace, monospace; }
"""


def page(title: str, lead: str, parts: Sequence[str]) -> str:
    """Return the whole document. ``title`` and ``lead`` are plain text, ``parts`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n' + "\n".join(p for p in parts if p) + "\n"
        "</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A headed section; "" where it has no content."""
    body = "".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def fold(title: str, body: str, *, opened: bool = False) -> str:
    """Content behind a title that opens on a click; "" where there is none."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{body}</details>" if body else ""


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """A row of single figures, each (label, value)."""
    cells = "".join(f"<div><span>{escape(label)}</span><b>{escape(value)}</b></div>" for label, value in figures)
    return f'<div class="tiles">{cells}</div>' if cells else ""
