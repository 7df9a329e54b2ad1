"""What a report is made of: figures, tables and text as HTML, and the page around them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from multitask.report.drawing import DARK, LIGHT, Theme, save_figure, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 600  # characters shown of a text
PHONE = "(max-width: 40rem)"
DARKNESS = "(prefers-color-scheme: dark)"


class Draw(Protocol):
    """A figure but for its colours."""

    def __call__(self, *, theme: Theme) -> Figure: ...


def embed(folder: Path, name: str, alternative: str, draw: Draw, draw_narrow: Draw | None = None) -> str:
    """Save a figure as files, and return the element that contains it; see `picture`."""
    return _picture(alternative, save_figure(draw(theme=LIGHT), folder, name), draw, draw_narrow)


def picture(alternative: str, draw: Draw, draw_narrow: Draw | None = None) -> str:
    """Return an element that contains a figure in the colours of both themes and, if it would be too small
    there, in another layout for narrow screens."""
    return _picture(alternative, svg_of(draw(theme=LIGHT)), draw, draw_narrow)


def _picture(alternative: str, light: bytes, draw: Draw, draw_narrow: Draw | None) -> str:
    sources = [(DARKNESS, svg_of(draw(theme=DARK)))]
    if draw_narrow is not None:
        sources = [
            (f"{DARKNESS} and {PHONE}", svg_of(draw_narrow(theme=DARK))),
            *sources,
            (PHONE, svg_of(draw_narrow(theme=LIGHT))),
        ]
    within = "".join(f'<source media="{media}" srcset="{address(svg)}">' for media, svg in sources)
    image = f'<img alt="{escape(alternative)}" src="{address(light)}">'
    return f"<figure><picture>{within}{image}</picture></figure>"


def address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], style: str = "") -> str:
    """Return an HTML table in a box of its own, in which it scrolls if it is too wide. Every cell is
    escaped."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="table {style}">\n<table>\n' + "\n".join(lines) + "\n</table>\n</div>"


def headline(facts: Iterable[tuple[str, str, str]]) -> str:
    """Return what a reader wants to know first: of each fact its name, its value and a detail."""
    boxes = [
        f'<div><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="detail">{escape(detail)}</div></div>'
        for name, value, detail in facts
    ]
    return '<div class="headline">\n' + "\n".join(boxes) + "\n</div>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def verdict(text: str) -> str:
    return f'<p class="verdict">{escape(text)}</p>'


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + " …"


def escape(value: object) -> str:
    """Return any value as HTML text, shortened if very long. A file name's undecodable bytes become ?."""
    return html.escape(shortened(str(value).encode("utf-8", "replace").decode(), LONGEST))


def whole_page(title: str, body: str) -> str:
    """Return a whole page, given its title as text and its body as HTML."""
    return PAGE.format(policy=POLICY, style=STYLE, title=escape(title), body=body)


def _colours(theme: Theme) -> Mapping[str, str]:
    names = ("ground", "ink", "soft", "pale", "faint", "warning")
    return {**{name: getattr(theme, name) for name in names}, "accent": theme.colour(0)}


def _properties(theme: Theme) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in _colours(theme).items())


# Forbids scripts and all external loads, in case something is not escaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = (
    f"""\
:root {{ color-scheme: light dark; {_properties(LIGHT)} }}
@media {DARKNESS} {{ :root {{ {_properties(DARK)} }} }}
"""
    + """\
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { margin: 2.8rem 0 .8rem; padding-bottom: .2rem; border-bottom: 1px solid var(--faint); }
h3 { margin: 1.8rem 0 .5rem; }
p { max-width: 44rem; margin: .5rem 0; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  margin: 1rem 0 1.2rem; }
.headline > div { padding: .7rem .9rem; border: 1px solid var(--faint); border-radius: .5rem; }
.headline > div:first-child { border-color: var(--accent); }
.name, .detail, .about { color: var(--soft); font-size: .875rem; }
.value { font-size: 1.55rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 600; }
.table { overflow-x: auto; width: fit-content; max-width: 100%; margin: .6rem 0;
  background: /* a shade at the side to which it scrolls */
    linear-gradient(to right, var(--ground) 50%, transparent) 0 0 / 2rem 100% no-repeat local,
    linear-gradient(to left, var(--ground) 50%, transparent) 100% 0 / 2rem 100% no-repeat local,
    linear-gradient(to right, var(--faint), transparent) 0 0 / .8rem 100% no-repeat scroll,
    linear-gradient(to left, var(--faint), transparent) 100% 0 / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--faint); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
th { border-bottom-color: var(--pale); white-space: nowrap; font-weight: 600; }
.figures td { white-space: nowrap; }
.settings td { overflow-wrap: anywhere; min-width: 6.5rem; }
.settings td:first-child { white-space: nowrap; }
.total tr:last-child { font-weight: 600; }
.examples td { overflow-wrap: anywhere; }
.examples td:nth-child(-n+4) { white-space: nowrap; }
.note { padding: .3rem .8rem; border-left: 3px solid #d55e00; background: var(--warning); }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; }
pre { overflow-x: auto; }
@media """
    + PHONE
    + """ {
  body { padding-top: 1rem; }
  h1 { font-size: 1.35rem; }
  h2 { margin-top: 2.2rem; font-size: 1.25rem; }
  .headline { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .headline > :first-child, .headline > :nth-child(even):last-child { grid-column: 1 / -1; }
  .headline .value { font-size: 1.25rem; }
  th, td { padding-right: .8rem; font-size: .875rem; }
  .examples table, .examples tbody { display: block; }
  .examples tr { display: grid; grid-template-columns: repeat(4, 1fr); padding: .4rem 0;
    border-bottom: 1px solid var(--faint); }
  .examples th, .examples td { border: 0; padding: .1rem .5rem .1rem 0; }
  .examples td:nth-child(-n+4) { white-space: normal; color: var(--soft); }
  .examples :nth-child(n+5) { grid-column: 1 / -1; }
}
@media print { body { margin: 0; font-size: 12px; } figure, tr, .note { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
"""
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
