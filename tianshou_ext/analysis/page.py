"""One self-contained HTML page: headings, paragraphs, tables, pictures inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from tianshou_ext.files import atomic_write

__all__ = ["Page"]

TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
img { max-width: 100%; height: auto; }
p, li { max-width: 60rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


class Page:
    """Collects parts and writes them; all text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first cell of a row names it."""
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
        lines = [
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in rows
        ]
        self.parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(lines)
            + "</tbody></table></div>"
        )

    def picture(self, png: bytes, caption: str) -> None:
        """Add a picture; the caption stands in for it where it cannot be seen."""
        data = base64.b64encode(png).decode()
        said = html.escape(caption, quote=True)
        self.parts.append(
            f'<figure><img alt="{said}" src="data:image/png;base64,{data}">'
            f"<figcaption>{said}</figcaption></figure>"
        )

    def write(self, path: Path) -> None:
        """Write the page, complete or not at all."""
        body = "\n".join(self.parts)
        text = TEMPLATE.substitute(title=html.escape(self.title), body=body)
        atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
