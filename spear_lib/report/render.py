"""From what was collected to report.md and report.html: sections of text, tables and pictures.

A section is rendered twice from the same content, so that both files say the same. Every section begins with
one sentence for a reader who sees such a report for the first time.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined


@dataclass
class Table:
    """A table of strings; numbers are formatted by whoever builds it."""

    header: list[str]
    """Column titles with units."""
    rows: list[list[str]]
    """One list of cells per row."""
    numeric: bool = True
    """Right-align every column but the first."""


@dataclass
class Picture:
    """A PNG with the sentence beneath it."""

    name: str
    """File name without extension, unique in the report."""
    png: bytes
    """The picture."""
    caption: str
    """What to see in it."""


@dataclass
class Code:
    """Lines shown as they are (commands, configuration)."""

    text: str
    """The lines."""


@dataclass
class Fold:
    """Content that is closed at first: long tables and listings."""

    title: str
    """The line one clicks."""
    content: list["Block"]
    """What appears."""


Block = str | Table | Picture | Code | Fold


@dataclass
class Section:
    """A heading with its content."""

    title: str
    """Heading."""
    blocks: list[Block] = field(default_factory=list)
    """Paragraphs (plain text), tables and pictures in order."""


def number(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it: thousands separated, few digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.{digits}f}" if abs(value) < 1e4 else f"{value:,.0f}"


def facts_table(values: dict[str, Any]) -> Table:
    """Scalars and short lists of a nested object as rows of name and value."""
    rows = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}, {key}" if prefix else str(key), item)
        elif isinstance(value, list):
            if len(value) <= 16 and all(isinstance(item, int | float | str) for item in value):
                rows.append([prefix.replace("_", " "), ", ".join(number(item) for item in value)])
        else:
            rows.append([prefix.replace("_", " "), number(value, 4)])

    add("", values)
    return Table(["", "value"], rows, numeric=False)


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of appearance."""
    return list(dict.fromkeys(names))


_STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1d2430;
background:#f4f5f7;margin:0}
main{max-width:60rem;margin:0 auto;padding:2rem 1.2rem 4rem}
section{background:#fff;border:1px solid #e3e6ea;border-radius:10px;
padding:.4rem 1.6rem 1.4rem;margin:1.2rem 0}
h1{font-size:1.7rem;margin:.3rem 0}h2{font-size:1.2rem;margin:1rem 0 .3rem}
p{margin:.5rem 0}p.lead{color:#4a5565}p.meta{color:#6b7686;font-size:.9rem}
div.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.8rem 0;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid #e8eaee;text-align:left;vertical-align:top}
th{color:#4a5565;font-weight:600}
table.num td:not(:first-child),table.num th:not(:first-child){text-align:right}
figure{margin:1rem 0}img{max-width:100%;height:auto}figcaption{color:#6b7686;font-size:.88rem}
pre{background:#f4f5f7;border-radius:6px;padding:.7rem 1rem;overflow-x:auto;font-size:.82rem}
summary{cursor:pointer;color:#0b62a4}details{margin:.6rem 0}
nav a{color:#0b62a4;margin-right:1rem;text-decoration:none;font-size:.9rem}
"""


_PAGE = """
{%- macro table(block) %}
<div class="wide"><table{% if block.numeric %} class="num"{% endif %}>
<tr>{% for cell in block.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{%- for row in block.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</table></div>
{%- endmacro %}
{%- macro show(block, lead=false) %}
{%- if block is string %}
<p{% if lead %} class="lead"{% endif %}>{{ block }}</p>
{%- elif block.png is defined %}
<figure><img alt="{{ block.caption }}" src="data:image/png;base64,{{ block.png | base64 }}">
<figcaption>{{ block.caption }}</figcaption></figure>
{%- elif block.content is defined %}
<details><summary>{{ block.title }}</summary>{% for inner in block.content %}{{ show(inner) }}{% endfor %}
</details>
{%- elif block.header is defined %}{{ table(block) }}
{%- else %}
<pre>{{ block.text }}</pre>
{%- endif %}
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="meta">{{ meta }}</p>
<nav>{% for section in sections %}<a href="#s{{ loop.index0 }}">{{ section.title }}</a> {% endfor %}</nav>
{%- for section in sections %}
<section id="s{{ loop.index0 }}"><h2>{{ section.title }}</h2>
{%- for block in section.blocks %}{{ show(block, loop.first) }}{% endfor %}
</section>
{%- endfor %}
</main></body></html>
"""


def to_html(title: str, meta: str, sections: list[Section]) -> str:
    """One file without references to any other: pictures inside, no scripts, no fonts from elsewhere."""
    page = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    page.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    return page.from_string(_PAGE).render(title=title, meta=meta, sections=sections, style=_STYLE)


def to_markdown(title: str, meta: str, sections: list[Section], picture_dir: str) -> str:
    """The same as Markdown; pictures are files in ``picture_dir`` beside it."""
    lines = [f"# {title}", "", meta, ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [_markdown_block(block, picture_dir), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(block: Block, picture_dir: str) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Picture):
        return f"![{block.caption}]({picture_dir}/{block.name}.png)\n\n*{block.caption}*"
    if isinstance(block, Fold):
        inner = "\n\n".join(_markdown_block(item, picture_dir) for item in block.content)
        return f"<details><summary>{block.title}</summary>\n\n{inner}\n\n</details>"
    right = "--:" if block.numeric else "---"

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "| " + " | ".join(["---"] + [right] * (len(block.header) - 1)) + " |"
    return "\n".join([row(block.header), rule, *(row(cells) for cells in block.rows)])


def pictures(sections: list[Section]) -> list[Picture]:
    """Every picture of the report, folded ones included."""

    def inside(blocks: list[Block]) -> list[Picture]:
        found = []
        for block in blocks:
            if isinstance(block, Picture):
                found.append(block)
            elif isinstance(block, Fold):
                found += inside(block.content)
        return found

    return [picture for section in sections for picture in inside(section.blocks)]


def write_pictures(sections: list[Section], folder: Path) -> None:
    """Write every picture as ``folder/<name>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures(sections):
        (folder / f"{picture.name}.png").write_bytes(picture.png)
