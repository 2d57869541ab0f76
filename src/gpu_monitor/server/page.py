"""The pieces of the pages that the server writes itself: no script, nothing inline, one sheet of styles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gpu_monitor import __version__

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{base}assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{base}assets/page.css">
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">The flight recorder and the ledger of a GPU fleet: central server {version}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str, base: str = "") -> str:
    """A whole page around HTML; `base` leads from its address to the server's first page."""
    return _PAGE.format(title=escape(title), version=escape(__version__), body=body, base=escape(base))


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """Names and figures, as plain text, side by side."""
    each = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    return f'<dl class="cards">{each}</dl>'


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], after: str = "") -> str:
    """A headed table of HTML cells, and HTML below it; on a narrow screen each row is a block of named values."""
    if not rows:
        return f"<h2>{escape(title)}</h2>\n{after}"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "\n".join(f"<tr>{_cells(heads, row)}</tr>" for row in rows)
    return (
        f'<h2>{escape(title)}</h2>\n<table class="rows"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>\n{after}"
    )


def _cells(heads: Sequence[str], row: Sequence[str]) -> str:
    each = zip(heads, row, strict=True)
    return "".join(f'<td data-name="{escape(head)}">{cell}</td>' for head, cell in each)


def text_of(value: float | None, unit: str) -> str:
    """A figure with its unit; `unknown` where it is None."""
    return "unknown" if value is None else f"{value:g} {unit}"


def not_found_page(path: str) -> str:
    """What a browser sees where there is nothing."""
    base = "../" * max(0, path.count("/") - 1)
    body = (
        f"<p>There is nothing at <code>{escape(path[:200])}</code>.</p>\n"
        f'<p><a href="{escape(base) or "./"}">The first page</a>, or <a href="{escape(base)}docs">the API</a>.</p>'
    )
    return page("Not found", body, base)
