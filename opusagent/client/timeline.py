"""A call as a picture: both voices over time, and every turn's wait taken apart, as SVG text.

It draws what it is given and works nothing out.  The rule: one scale for all turns, so that two waits can be
compared by eye, and nothing is needed to look at it but a browser.
"""
from dataclasses import dataclass
from html import escape

import numpy as np

from .caller import Measured

WIDTH, EDGE = 1400, 32
TITLE, LANE, AXIS, ROW, FOOT = 74, 84, 34, 104, 48     # heights
TEXT = 520                                              # width of the words beside a turn's strip,
WIDEST = 68                                             # ... in characters
BEFORE_MS, AFTER_MS = 400, 300                          # shown of the caller's last words and the agent's first
CALLER, AGENT, ALARM = "#2b6cb0", "#2f855a", "#c53030"
INK, FAINT, PAPER = "#1a202c", "#718096", "#ffffff"
REST = "#cbd5e0"                                        # the wait that no part explains

HALO = f' stroke="{PAPER}" stroke-width="3" paint-order="stroke"'     # keeps words readable on a wave

# The parts of a wait, in the order in which they pass, and their colours.
WAITS = {
    "transport": "#a0aec0", "endpointing": "#ed8936", "recognition": "#9f7aea", "decision": "#4299e1",
    "llm_first_token": "#d53f8c", "segment": "#f6ad55", "synthesis": "#38b2ac", "playout": "#68d391",
    "unexplained": REST,
}


@dataclass(frozen=True, slots=True)
class Strip:
    """A turn to draw: what was measured, what was said, and what the server says of the wait."""
    measured: Measured
    caller: str
    agent: str
    waits: tuple[tuple[str, float], ...] = ()   # its named parts, ms
    begins_ms: float = 0.0                      # where the server saw its begin, from where the caller measured it


def draw(title: str, rate: int, caller: np.ndarray, agent: np.ndarray, strips: list[Strip]) -> str:
    """The picture as one SVG document.  `caller` and `agent` are the call's two channels at `rate` Hz."""
    height = TITLE + 2 * LANE + AXIS + ROW * len(strips) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f'<title>{escape(title)}</title>', f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        f'<text x="{EDGE}" y="42" font-size="22" font-weight="bold">{escape(title)}</text>',
    ]
    parts += _overview(rate, caller, agent, strips)
    scale = _strip_scale(strips)
    for i, strip in enumerate(strips):
        parts += _strip(TITLE + 2 * LANE + AXIS + ROW * i, scale, rate, caller, agent, strip)
    parts += _legend(height - FOOT / 2, strips)
    return "\n".join([*parts, "</svg>", ""])


# -- the whole call ---------------------------------------------------------------------------------------------------

def _overview(rate, caller, agent, strips) -> list[str]:
    seconds = max(len(caller), len(agent), rate) / rate
    width = WIDTH - 2 * EDGE
    x = lambda position: EDGE + position / rate / seconds * width
    bottom = TITLE + 2 * LANE
    parts = []
    for strip in strips:
        m = strip.measured
        if m.answered is not None and m.answered > m.spoke_to:
            wide = x(m.answered) - x(m.spoke_to)
            parts.append(_box(x(m.spoke_to), TITLE, wide, 2 * LANE, WAITS["endpointing"], 0.35))
        if m.stopped is not None:
            parts.append(_box(x(m.spoke_from), TITLE, x(m.stopped) - x(m.spoke_from), 2 * LANE, ALARM, 0.3))
            parts.append(_words(x(m.spoke_from), TITLE - 6, "barge-in", ALARM, anchor="middle", size=11))
    parts.append(_wave(caller, TITLE + LANE / 2, LANE / 2 - 4, EDGE, width, seconds * rate, CALLER))
    parts.append(_wave(agent, TITLE + 1.5 * LANE, LANE / 2 - 4, EDGE, width, seconds * rate, AGENT))
    parts.append(_words(EDGE + 4, TITLE + 13, "caller", CALLER, size=11, halo=HALO))
    parts.append(_words(EDGE + 4, TITLE + LANE + 13, "agent", AGENT, size=11, halo=HALO))
    for strip in strips:
        parts += _number(x(strip.measured.spoke_from), bottom - 4, strip)
    step = next(step for step in (1, 2, 5, 10, 30, 60, 300, 3600) if seconds / step <= 24 or step == 3600)
    for second in range(0, int(seconds) + 1, step):
        at = x(second * rate)
        parts.append(f'<path d="M{at:.1f} {bottom}v5" stroke="{FAINT}"/>')
        parts.append(_words(at, bottom + 17, f"{second} s", FAINT, anchor="middle", size=11))
    return parts


def _wave(pcm: np.ndarray, middle: float, half: float, left: float, width: float, samples: float, colour: str) -> str:
    """The envelope of `pcm`, one column a pixel, over `samples` samples drawn `width` wide."""
    columns = max(1, round(width * len(pcm) / samples))
    edges = np.linspace(0, len(pcm), columns + 1).astype(int)[:-1]
    if not len(pcm):
        return ""
    peak = max(1000, int(np.abs(pcm.astype(np.int32)).max()))
    tops = middle - np.maximum.reduceat(pcm, edges) * (half / peak) - 0.5
    feet = middle - np.minimum.reduceat(pcm, edges) * (half / peak) + 0.5
    xs = left + np.arange(columns)
    around = zip(np.concatenate((xs, xs[::-1])), np.concatenate((tops, feet[::-1])))
    outline = [f"{x:.0f} {y:.1f}" for x, y in around]
    return f'<path d="M{"L".join(outline)}Z" fill="{colour}"/>'


# -- one turn ---------------------------------------------------------------------------------------------------------

def _strip_scale(strips: list[Strip]) -> float:
    """Pixels per ms: the longest wait, with what is shown around it, fills the width."""
    longest = max([500.0] + [strip.measured.gap_ms or 0.0 for strip in strips])
    return (WIDTH - 2 * EDGE - TEXT) / (BEFORE_MS + longest + AFTER_MS)


def _strip(top: float, scale: float, rate: int, caller, agent, strip: Strip) -> list[str]:
    m, left = strip.measured, EDGE + TEXT
    width, zero = WIDTH - EDGE - left, left + BEFORE_MS * scale
    first = m.spoke_to - BEFORE_MS * rate // 1000
    samples = round(width / scale * rate / 1000)
    parts = [f'<path d="M{EDGE} {top}H{WIDTH - EDGE}" stroke="{REST}" stroke-width="0.5"/>',
             *_number(EDGE + 9, top + 30, strip),
             _words(EDGE + 30, top + 28, _cut(strip.caller), CALLER),
             _words(EDGE + 30, top + 50, _cut(strip.agent), AGENT),
             _words(EDGE + 30, top + 76, _verdict(m), INK, weight="bold")]
    for ms in range(0, int((width - (zero - left)) / scale) + 1, 100):
        at = zero + ms * scale
        parts.append(f'<path d="M{at:.1f} {top + 8}V{top + ROW - 16}" stroke="{REST}" stroke-width="0.5"/>')
        parts.append(_words(at, top + ROW - 5, f"{ms}", FAINT, anchor="middle", size=10))
    for pcm, middle, colour in ((caller, top + 26, CALLER), (agent, top + 72, AGENT)):
        piece = np.zeros(samples, np.int16)
        part = pcm[max(first, 0):first + samples]
        piece[max(-first, 0):max(-first, 0) + len(part)] = part
        parts.append(_wave(piece, middle, 17, left, width, samples, colour))
    return parts + _waits(top + 44, zero, scale, strip)


def _waits(top: float, zero: float, scale: float, strip: Strip) -> list[str]:
    """The parts one after another, and what lies between the end of the last and the answer that was heard."""
    rest = (strip.measured.gap_ms or 0.0) - strip.begins_ms - sum(ms for _, ms in strip.waits)
    parts, at = [], zero + strip.begins_ms * scale
    for name, ms in (*strip.waits, ("unexplained", rest)):
        wide = max(ms, 0) * scale
        if wide > 0.2:
            parts.append(f'<rect x="{at:.1f}" y="{top}" width="{wide:.1f}" height="12" fill="{WAITS.get(name, REST)}">'
                         f'<title>{escape(name)} {ms:.1f} ms</title></rect>')
        if wide > 34:
            parts.append(_words(at + wide / 2, top + 10, f"{ms:.0f} ms", PAPER, anchor="middle", size=10))
        at += wide
    return parts


def _verdict(m: Measured) -> str:
    answer = "no answer" if m.gap_ms is None else f"answered after {m.gap_ms:.0f} ms"
    return answer if m.reaction_ms is None else f"{answer}; fell silent {m.reaction_ms:.0f} ms into the barge-in"


def _number(x: float, y: float, strip: Strip) -> list[str]:
    return [f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="9" fill="{CALLER}"/>',
            _words(x, y, str(strip.measured.index + 1), PAPER, anchor="middle", size=11)]


# -- pieces -----------------------------------------------------------------------------------------------------------

def _legend(y: float, strips: list[Strip]) -> list[str]:
    used = {name for strip in strips for name, ms in strip.waits if ms >= 0.1} | {"unexplained"}
    parts, x = [], EDGE
    for name in (*WAITS, *sorted(used - WAITS.keys())):
        if name in used:
            parts += [_box(x, y - 9, 12, 12, WAITS.get(name, REST), 1), _words(x + 17, y + 1, name, FAINT, size=12)]
            x += 36 + 7 * len(name)
    parts.append(_words(WIDTH - EDGE, y + 1, "ms after the caller's last voiced window", FAINT, anchor="end", size=12))
    return parts


def _box(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{colour}" '
            f'fill-opacity="{opacity}"/>')


def _words(x: float, y: float, text: str, colour: str, *, anchor="start", size=13, weight="normal", halo="") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}"{halo}>{escape(text)}</text>')


def _cut(text: str) -> str:
    """What fits beside a strip, without characters that XML cannot hold."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= WIDEST else text[:WIDEST - 1].rstrip() + "\u2026"
