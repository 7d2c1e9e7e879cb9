"""Pieces of HTML that pages share; every text is escaped here."""

from collections.abc import Sequence
from html import escape


def figure(name: str, title: str, caption: str) -> str:
    """A card with the place of the chart `name`."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    text = f'<span class="soft">{escape(caption)}</span>' if caption else ""
    return f'<figure class="card"><figcaption>{head}{text}</figcaption><div class="chart" id="{name}"></div></figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a cell that is a verdict has its colour."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(f"<tr>{''.join(f'<td{_style(c)}>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="even"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _style(cell: str) -> str:
    return f' class="{cell}"' if cell in ("faster", "slower") else ""
