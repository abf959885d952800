"""The manual that a server shows at /docs: whoever has the address can paste what a platform needs."""
import html
import re
import urllib.request
from pathlib import Path

import pytest

from opusagent.dialects import DIALECTS
from opusagent.server.manual import blocks, inline, rendered, sections
from served import SCRIPTED, serving

MANUAL = (Path(__file__).parent.parent / "docs" / "dialects.md").read_text()


def test_docs_has_every_dialects_section_with_what_is_to_be_pasted():
    with serving(*SCRIPTED) as server:
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/docs") as answer:
            page = answer.read().decode()
    for name, section in sections(MANUAL).items():
        if name.lower() in (*DIALECTS, "audiosocket"):
            shown = page.partition(f"<h3 id={name.lower()}>")[2].partition("<h3")[0]
            pasted = [block for fenced, block in blocks(section) if fenced]
            assert shown and all(f"<pre>{html.escape(block)}</pre>" in shown for block in pasted), name
    assert all(f'href=#{name}>' in page for name in DIALECTS)
    assert "```" not in page and not re.search(r"\]\(", page)


@pytest.mark.parametrize(("written", "shown"), [
    ("Twilio wants `wss`.\n\nIt *buffers*.\n", "<p>Twilio wants <code>wss</code>.</p>\n<p>It *buffers*.</p>"),
    ("See [who may call](#who-may-call), **first**.", "<p>See who may call, <b>first</b>.</p>"),
    ("Say:\n\n```xml\n<Response>\n\n</Response>\n```\n",
     "<p>Say:</p>\n<pre>&lt;Response&gt;\n\n&lt;/Response&gt;\n</pre>"),
    ("- one\n  and more\n- `two`", "<ul><li>one\n  and more</li><li><code>two</code></li></ul>"),
    ("| a | b |\n| --- | --- |\n| `c` | d < e |",
     "<table><tr><td>a</td><td>b</td></tr><tr><td><code>c</code></td><td>d &lt; e</td></tr></table>"),
    ("### Keys\n", "<h4>Keys</h4>"),
])
def test_what_the_manual_is_written_in(written, shown):
    assert rendered(written) == shown


def test_what_looks_like_a_form_but_is_none_stays():
    assert inline("2 ** 3 and a ` alone, [this] (that)") == "2 ** 3 and a ` alone, [this] (that)"
