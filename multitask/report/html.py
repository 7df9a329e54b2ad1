"""What a report is made of: figures, tables and text as HTML, and the page around them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multitask.report.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 600  # characters shown of a text


def embed(figure: Figure, folder: Path, name: str, alternative: str) -> str:
    """Save the figure and return an image element that contains it."""
    code = base64.b64encode(save_figure(figure, folder, name)).decode()
    return f'<figure><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{code}"></figure>'


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table. Every cell is escaped."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def escape(value: object) -> str:
    """Return any value as HTML text, shortened if very long. A file name's undecodable bytes become ?."""
    text = str(value).encode("utf-8", "replace").decode()
    return html.escape(text if len(text) <= LONGEST else text[:LONGEST] + " …")


# Forbids scripts and all external loads, in case something is not escaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #eee; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }}
th {{ border-bottom-color: #999; white-space: nowrap; }}
td:first-child {{ min-width: 3.5rem; }}
.scores tr:last-child {{ font-weight: bold; }}
.note {{ padding: .3rem .8rem; margin: .5rem 0; border-left: 3px solid #d55e00; background: #fdf6ee; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; height: auto; }}
pre {{ overflow-x: auto; }}
@media print {{ body {{ margin: 0; font-size: 12px; }} figure, tr, .note {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
