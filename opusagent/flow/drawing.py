"""A flow as a picture: an SVG of its states in layers, from the start downwards.

A small layered layout in the manner of Sugiyama, Tagawa and Toda ("Methods for Visual Understanding of Hierarchical
System Structures", 1981): layers by the distance from the start, long ways bent at the layers they cross, the order
within a layer by barycentres, positions by repeated averaging.  The rule: the same flow gives the same picture.
"""

from dataclasses import dataclass, field
from html import escape

from .check import reached
from .expect import Answer
from .phrases import Digits, Group
from .phrasing import KEYS
from .tools import FAILURE, TIMEOUT

WIDTH, HEIGHT = 232, 74         # of a box, in px
GAP, LAYER = 40, 96             # between boxes of a layer, between layers
BEND = 22                       # the width that a way takes where it crosses a layer
MARGIN = 28
SWEEPS = 12
LETTERS = 33                    # of a box's text lines
LABEL = 26                      # of a way's label
FONT = "font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\""

# what a state is -> the colours of its box: fill, border
COLOURS = {"start": ("#e8f1fd", "#2f6fd0"), "state": ("#ffffff", "#5b6472"), "model": ("#f3ecfd", "#7a4fc4"),
           "tool": ("#fdf3e2", "#b7791f"), "end": ("#eef7ee", "#3c8547")}
# what a way is -> its colour, how it is dashed
LINES = {"answer": ("#5b6472", ""), "model": ("#7a4fc4", ""), "tool": ("#b7791f", ""), "ladder": ("#c0392b", "4 4"),
         "global": ("#9aa3b0", "2 4"), "fact": ("#2f6fd0", "6 3")}


@dataclass
class Node:
    """A state, or a bend of a way in a layer that it crosses."""

    name: str
    layer: int
    width: int
    x: float = 0.0              # of its middle
    up: list["Node"] = field(default_factory=list)
    down: list["Node"] = field(default_factory=list)


@dataclass
class Way:
    """What leads from one state to another; several ways between the same two are one line."""

    source: str
    target: str
    kind: str
    labels: list[str]
    bends: list[Node] = field(default_factory=list)
    back: bool = False          # it leads upwards
    level: bool = False         # it stays in its layer

    def ends(self, nodes: dict[str, Node]) -> tuple[Node, Node]:
        """The upper one, the lower one."""
        source, target = nodes[self.source], nodes[self.target]
        return (target, source) if self.back else (source, target)


def draw(flow) -> str:
    """The picture, as the text of an SVG file."""
    ways = ways_of(flow)
    graph = {name: [(way.target, None) for way in ways if way.source == name] for name in flow.states}
    layers = layers_of(reached(flow.start, graph), graph, {name for name, state in flow.states.items() if state.end})
    nodes = {name: Node(name, layer, WIDTH) for name, layer in layers.items()}
    rows = arrange(nodes, ways)
    place(rows)
    return svg(flow, nodes, rows, ways)


def ways_of(flow) -> list[Way]:
    found: dict[tuple[str, str, str], Way] = {}

    def add(source, target, kind, label):
        if target in flow.states:
            way = found.setdefault((source, target, kind), Way(source, target, kind, []))
            if label and label not in way.labels:
                way.labels.append(label)
    for state in flow.states.values():
        if state.end:
            continue
        for row in state.on[:state.own]:
            if row.use:
                results(add, state, row.use, row.go)
            elif row.go:
                add(state.name, row.go, "answer", label_of(row.answer))
        for target in state.targets:
            add(state.name, target.state, "model", "model")
        for use in state.tools:
            results(add, state, use, None)
        if state.call:
            results(add, state, state.call, state.go)
        elif state.go:
            add(state.name, state.go, "answer", "")
        for branch in state.enter:
            add(state.name, branch.go, "fact", ", ".join(f"{name} {'=' if value else '?'} {value}".strip(" =")
                                                         for name, value in branch.when.items()))
        for name, ladder in zip(("silence", "no match", "failure"), state.ladders):
            if ladder.go and ladder in state.heard_ladders():
                add(state.name, ladder.go, "ladder", name)
    return list(found.values())


def results(add, state, use, go: str | None) -> None:
    for result in (*use.tool.results, FAILURE, TIMEOUT):
        target = use.target(result) or (go if result in use.tool.results else None)
        if target and not (result == TIMEOUT and TIMEOUT not in use.results):
            add(state.name, target, "ladder" if result in (FAILURE, TIMEOUT) else "tool", f"{use.tool.name}: {result}")


def label_of(answer: Answer) -> str:
    """What a row expects, in a word or two."""
    names = []
    for option in answer.spoken:
        if isinstance(option, Digits):
            names.append(f"{option.low if option.low == option.high else f'{option.low}-{option.high}'} digits")
        elif isinstance(option, Group):
            parts = (f"<{part.name}>" if hasattr(part, "name") else part for part in option.forms[0].flat())
            names.append(option.value or " ".join(parts))
        else:
            names.append(option.kind)
    if answer.free:
        names.append("anything")
    if answer.keys:
        names.append(f"key {answer.keys}")
    return " / ".join(names)


# -- layout ------------------------------------------------------------------------------------------------------------

def layers_of(order: list[str], graph, ends: set[str]) -> dict[str, int]:
    """State -> layer, its distance from the start.  An end is below all that lead to it, what nothing leads to last."""
    layers: dict[str, int] = {}
    for name in order:
        layers.setdefault(name, 0)
        for target, _ in graph[name]:
            layers.setdefault(target, layers[name] + 1)
    for end in ends:
        layers[end] = max((layers[name] + 1 for name in order if any(target == end for target, _ in graph[name])),
                          default=layers.get(end, max(layers.values())))
    last = max(layers.values())
    for name in graph:
        layers.setdefault(name, last)
    return layers


def arrange(nodes: dict[str, Node], ways: list[Way]) -> list[list[Node]]:
    """The layers, with a bend in each layer that a way crosses, in an order with few crossings."""
    rows: list[list[Node]] = [[] for _ in range(max(node.layer for node in nodes.values()) + 1)]
    for node in nodes.values():
        rows[node.layer].append(node)
    for way in ways:
        way.back = nodes[way.target].layer < nodes[way.source].layer
        way.level = nodes[way.target].layer == nodes[way.source].layer
        upper, lower = way.ends(nodes)
        chain = [upper]
        for layer in range(upper.layer + 1, lower.layer):
            bend = Node("", layer, BEND)
            rows[layer].append(bend)
            way.bends.append(bend)
            chain.append(bend)
        for one, other in zip(chain, [*chain[1:], lower]) if not way.level else ():
            one.down.append(other)
            other.up.append(one)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows[1:] if downwards else rows[-2::-1]:
            places = {id(node): place for other in rows for place, node in enumerate(other)}
            row.sort(key=lambda node: barycentre(node.up if downwards else node.down, places, places[id(node)]))
    return rows


def barycentre(neighbours: list[Node], places: dict[int, int], own: int) -> float:
    return sum(places[id(node)] for node in neighbours) / len(neighbours) if neighbours else own


def place(rows: list[list[Node]]) -> None:
    """Gives each node its x: near the mean of those it is tied to, in the order of its layer."""
    for row in rows:
        x = 0.0
        for node in row:
            node.x = x + node.width / 2
            x += node.width + GAP
    for sweep in range(SWEEPS * 2):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            settle(row, [mean([other.x for other in node.up + node.down], None) for node in row])
    left = min(node.x - node.width / 2 for row in rows for node in row)
    for row in rows:
        for node in row:
            node.x += MARGIN - left


def mean(values: list[float], otherwise: float | None) -> float | None:
    return sum(values) / len(values) if values else otherwise


def settle(row: list[Node], wanted: list[float | None]) -> None:
    """Each as near to where it wants to be as its neighbours let it: groups that touch share their mean.  None: it
    wants to be beside the one before it."""
    groups: list[list] = []         # [nodes, offsets from the first, x of the first]
    last_x, last_width = 0.0, 0
    for node, x in zip(row, wanted):
        x = last_x + (last_width + node.width) / 2 + GAP if x is None else x
        last_x, last_width = max(x, last_x + (last_width + node.width) / 2 + GAP) if groups else x, node.width
        groups.append([[node], [0.0], x])
        while len(groups) > 1:
            last, group = groups[-2], groups[-1]
            reach = (last[0][-1].width + group[0][0].width) / 2 + GAP
            if last[2] + last[1][-1] + reach <= group[2]:
                break
            shift = last[1][-1] + reach
            weight, more = len(last[0]), len(group[0])
            last[2] = (last[2] * weight + (group[2] - shift) * more) / (weight + more)
            last[0] += group[0]
            last[1] += [offset + shift for offset in group[1]]
            groups.pop()
    for nodes, offsets, first in groups:
        for node, offset in zip(nodes, offsets):
            node.x = first + offset


# -- the picture -------------------------------------------------------------------------------------------------------

def svg(flow, nodes: dict[str, Node], rows: list[list[Node]], ways: list[Way]) -> str:
    globals_ = everywhere(flow)
    top = MARGIN + 34
    right = max(node.x + node.width / 2 for row in rows for node in row)
    width = max(right + MARGIN + 40, 2 * MARGIN + 7 * max(map(len, [*globals_, flow.name])))
    height = top + len(rows) * HEIGHT + (len(rows) - 1) * LAYER + MARGIN + 20 * len(globals_) + 16
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
             f'height="{height:.0f}" {FONT} font-size="12">', "<defs>"]
    for kind, (colour, _) in LINES.items():
        parts.append(f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                     f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>')
    parts += ["</defs>", '<rect width="100%" height="100%" fill="#fbfcfd"/>',
              f'<text x="{MARGIN}" y="{MARGIN + 4}" font-size="16" font-weight="600" fill="#1f2733">'
              f'{escape(flow.name or flow.start)}</text>']
    lines, labels = edges(nodes, ways, top)
    parts += lines + [box(flow, flow.states[name], node, top) for name, node in nodes.items()] + labels
    for place, text in enumerate(globals_):
        y = height - MARGIN - 20 * (len(globals_) - 1 - place)
        parts.append(f'<text x="{MARGIN}" y="{y:.0f}" fill="#5b6472">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def everywhere(flow) -> list[str]:
    """What is open in every state, a line each."""
    found: dict[str, None] = {}
    for state in flow.states.values():
        for row in state.on[state.own:]:
            target = f"  →  {row.go}" if row.go else ""
            found[f"in every state: {label_of(row.answer)}{target}"] = None
    return list(found)


def top_of(layer: int, top: float) -> float:
    return top + layer * (HEIGHT + LAYER)


def edges(nodes, ways: list[Way], top: float) -> tuple[list[str], list[str]]:
    """The lines, and the labels that go over everything."""
    leaving, arriving = ports(nodes, ways)
    lines, labels = [], []
    for way in ways:
        colour, dash = LINES[way.kind]
        if way.level:
            path, at = level(way, nodes, top)
        else:
            path, at = downwards(way, nodes, leaving[id(way)], arriving[id(way)], top)
        lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3" '
                     + (f'stroke-dasharray="{dash}" ' if dash else "")
                     + f'marker-{"start" if way.back else "end"}="url(#{way.kind})"/>')
        label = short(", ".join(way.labels), LABEL)
        if label:
            labels.append(f'<text x="{at[0]:.0f}" y="{at[1]:.0f}" text-anchor="{at[2]}" font-size="10.5" '
                          f'fill="{colour}" stroke="#fbfcfd" stroke-width="4" paint-order="stroke">'
                          f'{escape(label)}</text>')
    return lines, labels


def level(way: Way, nodes, top: float) -> tuple[str, tuple]:
    """A way to the same state, or to another one of its layer: under the boxes."""
    source, target = nodes[way.source], nodes[way.target]
    if source is target:
        x, y = source.x + WIDTH / 2, top_of(source.layer, top) + 20
        return f"M{x:.0f} {y:.0f}c26 -8 26 34 0 28", (x + 22, y + 18, "start")
    side = 1 if target.x > source.x else -1
    x0, x1 = source.x + side * WIDTH * .36, target.x - side * WIDTH * .36
    y = top_of(source.layer, top) + HEIGHT
    dip = 22 if abs(target.x - source.x) < WIDTH + 2 * GAP else LAYER * .42
    return (f"M{x0:.0f} {y:.0f}C{x0:.0f} {y + dip:.0f} {x1:.0f} {y + dip:.0f} {x1:.0f} {y:.0f}",
            ((x0 + x1) / 2, y + dip * .75 + 12, "middle"))


def ports(nodes, ways: list[Way]) -> tuple[dict[int, float], dict[int, float]]:
    """Where each way ties to its upper box and to its lower one: side by side, in the order of where they lead."""
    leaving, arriving = {}, {}
    tied = [(way, *way.ends(nodes)) for way in ways if not way.level]
    for node in nodes.values():
        down = sorted((way for way, upper, _ in tied if upper is node),
                      key=lambda way: (way.bends[0] if way.bends else way.ends(nodes)[1]).x)
        up = sorted((way for way, _, lower in tied if lower is node),
                    key=lambda way: (way.bends[-1] if way.bends else way.ends(nodes)[0]).x)
        for ends, found in ((down, leaving), (up, arriving)):
            for place, way in enumerate(ends):
                found[id(way)] = node.x + WIDTH * .8 * ((place + 1) / (len(ends) + 1) - .5)
    return leaving, arriving


def downwards(way: Way, nodes, x0: float, x1: float, top: float) -> tuple[str, tuple]:
    """The line from the upper box to the lower one, and where its label is: near the box that it comes from."""
    upper, lower = way.ends(nodes)
    x, y, places = x0, top_of(upper.layer, top) + HEIGHT, []
    path = f"M{x:.0f} {y:.0f}"
    bends = way.bends
    stops = [*((bend.x, top_of(bend.layer, top), HEIGHT) for bend in bends), (x1, top_of(lower.layer, top), 0)]
    for to_x, to_y, through in stops:
        path += f"C{x:.0f} {y + LAYER * .55:.0f} {to_x:.0f} {to_y - LAYER * .55:.0f} {to_x:.0f} {to_y:.0f}"
        part = .68 if way.back else .38
        places.append((x + (to_x - x) * part, y + (to_y - y) * (.62 if way.back else .4) + 4, "middle"))
        x, y = to_x, to_y + through
        path += f"L{x:.0f} {y:.0f}" if through else ""
    return path, places[-1 if way.back else 0]


def box(flow, state, node: Node, top: float) -> str:
    kind = ("start" if state.name == flow.start else "end" if state.end else "model" if state.prompt
            else "tool" if state.call else "state")
    fill, border = COLOURS[kind]
    x, y = node.x - WIDTH / 2, top_of(node.layer, top)
    said = " ".join(filter(None, (state.play and state.play.text, state.keys and KEYS + state.keys.source,
                                  state.say.source if state.say else state.prompt)))
    note = ("model" if state.prompt else f"calls {state.call.tool.name}" if state.call
            else "transfer" if state.transfer else "ends the call" if state.end else "")
    lines = wrapped(" ".join(said.split()), LETTERS, 2)
    parts = [f'<g><title>{escape(state.name)}: {escape(said)}</title>'
             f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" stroke="{border}" '
             'stroke-width="1.4"/>',
             f'<text x="{x + 12:.0f}" y="{y + 20:.0f}" font-weight="600" fill="#1f2733">{escape(short(state.name, 24))}'
             '</text>',
             f'<text x="{x + WIDTH - 12:.0f}" y="{y + 20:.0f}" text-anchor="end" font-size="10" fill="{border}">'
             f'{escape(short(note, 18))}</text>']
    parts += [f'<text x="{x + 12:.0f}" y="{y + 40 + 16 * place:.0f}" font-size="11.5" fill="#47505e">'
              f'{escape(line)}</text>' for place, line in enumerate(lines)]
    return "".join(parts) + "</g>"


def wrapped(text: str, letters: int, most: int) -> list[str]:
    """The text in lines, the last one cut short where there is more of it."""
    lines, words = [], text.split(" ")
    while words and words[0] and len(lines) < most:
        line = words.pop(0)
        while words and len(line) + 1 + len(words[0]) <= letters:
            line += " " + words.pop(0)
        lines.append(line)
    if words and words[0]:
        lines[-1] = short(lines[-1] + " " + words[0] + " " * letters, letters)
    return [short(line, letters) for line in lines]


def short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[:letters - 1].rstrip(" ,;") + "…"
