"""The manual's sections about the dialects, for /docs: with what is to be pasted into a platform's configuration.

`manual.md` is docs/dialects.md, which comes with the package.  Of Markdown it reads what stands there: paragraphs,
lists, tables, fenced code, and in a line `code`, **bold** and links.  The rule: what it does not know stays as it was
written.
"""
import html
import re
from functools import cache
from pathlib import Path

MANUAL = Path(__file__).parent.parent / "manual.md"
INLINE = ((re.compile(r"`([^`]+)`"), r"<code>\1</code>"), (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
          (re.compile(r"\[([^\]]+)\]\([^)\s]+\)"), r"\1"))


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level, by that heading."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rendered(section: str) -> str:
    """A section as HTML."""
    out = []
    for fenced, block in blocks(section):
        if fenced:
            out.append(f"<pre>{html.escape(block)}</pre>")
        elif block.startswith("|"):
            out.append(table(block.splitlines()))
        elif block.startswith("- "):
            items = re.split(r"\n?^- ", block, flags=re.MULTILINE)[1:]
            out.append("<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>")
        elif block.startswith("#"):
            out.append(f"<h4>{inline(block.lstrip('# '))}</h4>")
        else:
            out.append(f"<p>{inline(block)}</p>")
    return "\n".join(out)


def blocks(section: str) -> list[tuple[bool, str]]:
    """(True for what stands in a fence, text) of each block, in order."""
    found = []
    for i, part in enumerate(re.split(r"^```.*\n", section, flags=re.MULTILINE)):
        found += [(True, part)] if i % 2 else [(False, block.strip()) for block in re.split(r"\n\s*\n", part)]
    return [(fenced, block) for fenced, block in found if block]


def table(lines: list[str]) -> str:
    rows = [line.strip("|").split("|") for line in lines if not line.startswith("| ---")]
    cells = ["".join(f"<td>{inline(cell.strip())}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def inline(text: str) -> str:
    text = html.escape(text, quote=False)
    for pattern, form in INLINE:
        text = pattern.sub(form, text)
    return text


@cache
def chapters() -> dict[str, str]:
    """Each section of the manual as HTML, by its heading in small letters."""
    return {name.lower(): rendered(section) for name, section in sections(MANUAL.read_text("utf-8")).items()}
