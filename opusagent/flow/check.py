"""What can be wrong with the states of a flow taken together: no place to go, no way in, no way out, nothing to say.

It reads a Flow and returns faults, (line, sentence) each; it changes nothing.  The rules: a sentence names the state
and what to do about it, and one mistake is one sentence, so a state that was not understood is not judged, and a
misspelt target counts as the one that was meant.
"""

from collections.abc import Iterator
from itertools import chain, islice, product

from .phrases import MORE, Digits, bare
from .phrasing import TODAY
from .quantities import Quantity
from .sounds import alike
from .tomlfile import did_you_mean, nearest
from .tools import FAILURE, TIMEOUT

SPELLED = 300               # ways of saying a row that are compared with the other rows of its state
STEPS = 500                 # that are looked at, from a state on, to find a circle,
WAYS = 500                  # and ways that the facts on it can be

# kind -> a value of it; text can be anything
SAMPLES = {"digits": "7", "number": "7", "amount": "23.50 EUR", "date": "2026-03-03", "time": "15:30", "yes_no": "yes"}

Fault = tuple[int, str]
Graph = dict[str, list[tuple[str, frozenset[str]]]]     # state -> (target, facts set on the way) of each way out


def faults(flow, unread: set[str]) -> list[Fault]:
    """All of them.  `unread`: the states that the file has, but with something in them that could not be read."""
    states = [state for state in flow.states.values() if state.name not in unread]
    found = [*targets(flow), *silent(states), *confusions(states), *alike(states), *unused(flow, states),
             *(fault for fault, always in unfit(flow) if always)]
    if flow.start in flow.states:
        graph = {state.name: [*meant(flow, state)] for state in flow.states.values()}
        lost = {name for name in unread & flow.states.keys() if not flow.states[name].on}
        rings = circles(flow)
        found += [*dead_ends(states, graph, lost, {name for ring in rings for name in ring}), *endless(flow, rings)]
        graph = with_machine(flow, graph)
        found += slots(flow, states, graph)
        found += [*unreachable(flow, graph)] if not lost else []
    return found


def meant(flow, state) -> Iterator[tuple[str, frozenset[str]]]:
    """The ways out of a state, misspelt targets put right."""
    for target, facts in state.ways():
        name = target if target in flow.states else nearest(target, flow.states)
        if name:
            yield name, facts


def with_machine(flow, graph: Graph) -> Graph:
    """The graph with the way of a call that a machine has answered; what is known then is what is known at first."""
    if flow.machine not in flow.states:
        return graph
    return {**graph, flow.start: [(flow.machine, frozenset()), *graph[flow.start]]}


def reached(start: str, graph: Graph) -> list[str]:
    """The states that a call can come to, the nearest to the start first."""
    order, known = [start], {start}
    for name in order:                      # grows while it is read
        for target, _ in graph[name]:
            if target not in known:
                known.add(target)
                order.append(target)
    return order


def sources(state) -> Iterator[tuple[int, str]]:
    """(line, target) of everything that names a state."""
    for source in (*state.enter, *state.on, *state.ladders):
        if source.go:
            yield source.line, source.go
    for use in state.uses():
        yield from ((use.line, target) for target in use.results.values())
    yield from ((target.line, target.state) for target in state.targets)
    if state.go:
        yield state.line, state.go


def targets(flow) -> Iterator[Fault]:
    for state in flow.states.values():
        for line, go in sources(state):
            if go not in flow.states:
                yield line, f"\"{go}\" is no state to go to{did_you_mean(go, flow.states)}."


def unreachable(flow, graph: Graph) -> Iterator[Fault]:
    order = reached(flow.start, graph)
    for state in flow.states.values():
        if state.name not in order:
            yield state.line, f"state \"{state.name}\" is never reached: nothing leads there from \"{flow.start}\"."


def dead_ends(states, graph: Graph, lost: set[str], circling: set[str]) -> Iterator[Fault]:
    """States that expect nothing, and, in a flow that can end, states from which it can not; what leads into a circle
    would end if that were mended."""
    ending = lost | {state.name for state in states if state.end}
    endless = not ending
    ending |= circling
    while more := {name for name in graph if name not in ending and any(target in ending for target, _ in graph[name])}:
        ending |= more
    for state in states:
        if not state.end and not state.on and not state.passing:
            yield state.line, f"state \"{state.name}\" is a dead end: give it `on`, or `end = true`."
        elif not endless and state.name not in ending and len(graph[state.name]) == len([*state.ways()]):
            yield state.line, f"state \"{state.name}\" is a dead end: no way leads from it to the end of the call."


def circles(flow) -> list[list[str]]:
    """States that lead on to one another at once, for ever; the first of each circle is the first in the flow."""
    rings: list[list[str]] = []
    before: dict[str, list[str]] = {}           # state -> those from which a call goes on there at once
    for state in flow.states.values():
        for target, _ in moves(state):
            before.setdefault(target, []).append(state.name)
    for name in flow.states:
        steps = iter(range(STEPS))
        if not any(name in known for known in rings) and name in (back := leading(before, name)) \
                and (ring := circle(flow, [name], [], back, steps)):
            rings.append(ring)
    return rings


def leading(before: dict[str, list[str]], name: str) -> set[str]:
    """The states from which a call may come there at once, whatever the facts are."""
    found, rest = set(), [name]
    while rest:
        new = set(before.get(rest.pop(), ())) - found
        found |= new
        rest += new
    return found


def circle(flow, path: list[str], passed: list, back: set[str], steps: Iterator[int]) -> list[str] | None:
    """The states from the first of `path` back to it, if a call can go on from its last one to there without a word
    of the caller's; `passed` are the branches on the way, and whether each was taken; only `back` leads there."""
    for target, more in moves(flow.states[path[-1]]):
        if target not in back or target in path[1:] or next(steps, None) is None or not possible(passed + more):
            continue
        ring = path if target == path[0] else circle(flow, [*path, target], passed + more, back, steps)
        if ring:
            return ring
    return None


def moves(state) -> Iterator[tuple[str, list]]:
    """(target, branches and whether each is taken) of the ways that a call takes at once."""
    passed: list[tuple] = []
    for branch in state.enter:
        yield branch.go, [*passed, (branch, True)]
        passed.append((branch, False))
    if state.go and not state.call:
        yield state.go, passed


def possible(passed: list) -> bool:
    """Whether facts can be so that these branches are taken, or not; they are the same all the way."""
    values: dict[str, dict[str, None]] = {}
    for branch, _ in passed:
        for name, value in branch.when.items():
            values.setdefault(name, {"": None, "*": None})[value] = None        # "*": known, as none of the others
    for branch in (branch for branch, taken in passed if taken):
        for name, value in branch.when.items():
            values[name] = {each: None for each in values[name] if (each if value == "*" else each == value)}
    ways = islice(product(*values.values()), WAYS)
    return any(all(branch.holds(facts) is taken for branch, taken in passed)
               for facts in (dict(zip(values, way)) for way in ways))


def endless(flow, rings: list[list[str]]) -> Iterator[Fault]:
    for first, *others in rings:
        line, to = flow.states[first].line, others[0] if others else first
        yield line, f"state \"{first}\" goes on at once to \"{to}\", and comes back without an end."


def silent(states) -> Iterator[Fault]:
    for state in states:
        if not (state.say or state.play or state.keys or state.prompt or state.passing):
            yield state.line, (f"state \"{state.name}\" has nothing to say: give it `say` or `prompt`; "
                               "say = \"\" if it only listens.")
        if not state.prompt and (state.facts or state.history):
            yield state.line, f"state \"{state.name}\" has no `prompt`, so its `facts` and `history` would not be used."
        if not state.prompt and (state.tools or state.targets or state.profile):
            yield state.line, (f"state \"{state.name}\" has no `prompt`, so there is no model for its `tools`, "
                               "`may_go` and `profile`.")
        if state.prompt and state.passing:
            yield state.line, f"state \"{state.name}\" goes on at once, so its `prompt` would never be answered."
        names = [tool["function"]["name"] for tool in state.functions]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            yield state.line, f"state \"{state.name}\" offers its model two functions called {twice}: rename one."
        if state.end and state.passing:
            yield state.line, f"state \"{state.name}\" ends the call, so nothing can follow it."


def unused(flow, states) -> Iterator[Fault]:
    """Tools: results without a way, ways without a result, arguments that are no facts, tools nobody calls."""
    everything = settable(flow)
    for state in states:
        calls = [*((use, row.go, False) for row in state.on for use in [row.use] if use)]
        calls += [(state.call, state.go, True)] if state.call else []
        calls += [(use, None, None) for use in state.tools]
        for use, go, entering in calls:
            names = (*use.tool.results, FAILURE, TIMEOUT)
            for name in use.results:
                if name not in names:
                    yield use.line, f"the tool \"{use.tool.name}\" has no result \"{name}\"{did_you_mean(name, names)}."
            if entering:
                missing = [name for name in use.tool.results if not (go or use.target(name))]
                missing += [FAILURE] if not (use.target(FAILURE) or state.failure.go) else []
                for name in missing:
                    yield use.line, (f"state \"{state.name}\" does not say where to go when \"{use.tool.name}\" gives "
                                     f"\"{name}\": give it `go`, or `results`.")
            for typed in use.tool.arguments:
                if (entering is not None or typed.fixed) and typed.fact not in everything:
                    yield use.line, (f"the tool \"{use.tool.name}\" needs the fact \"{typed.fact}\", which nothing "
                                     f"sets{did_you_mean(typed.fact, everything)}.")
    called = {(use.tool.name, use.tool.line) for state in flow.states.values() for use in state.uses()}
    for tool in flow.tools.values():
        if (tool.name, tool.line) not in called and (tool.run or tool.url) and len(states) == len(flow.states):
            yield tool.line, f"the tool \"{tool.name}\" is never called."


def unfit(flow) -> Iterator[tuple[Fault, bool]]:
    """Arguments whose facts can be, or always are, what the tool does not take."""
    found = samples(flow)
    for state in flow.states.values():
        for use in state.uses():
            for typed in use.tool.arguments:
                if use in state.tools and not typed.fixed or typed.fact == TODAY:
                    continue
                values = found.get(typed.fact, {})
                wrong = [value for value in values if value is not None and typed.accept(value) is None]
                if wrong:
                    takes = f"one of {', '.join(typed.choices)}" if typed.choices else typed.kind
                    yield (use.line, f"the tool \"{use.tool.name}\" takes {takes} as `{typed.name}`, and the fact "
                           f"\"{typed.fact}\" can be \"{wrong[0]}\": then it fails."), len(wrong) == len(values)


def samples(flow) -> dict[str, dict[str | None, None]]:
    """Fact -> what it can be, by examples; None among them is anything."""
    found: dict[str, dict[str | None, None]] = {}
    for state in flow.states.values():
        for row in (row for row in state.on if row.fact):
            values = [None] if row.answer.free else [row.answer.pressed] if row.answer.keys else []
            for option in row.answer.spoken:
                values += ([SAMPLES[option.kind]] if isinstance(option, Quantity) else ["7" * option.low]
                           if isinstance(option, Digits) else islice(option.values(), SPELLED))
            found.setdefault(row.fact, {}).update(dict.fromkeys(values))
        given = chain.from_iterable(facts for use in state.uses() for facts in use.tool.results.values())
        for typed in chain(given, *(target.given for target in state.targets)):
            found.setdefault(typed.fact, {}).update(dict.fromkeys(typed.choices or [SAMPLES.get(typed.kind)]))
    for name, value in flow.facts.items():                  # the platform can give it another value
        found.setdefault(name, {}).update({None: None, **({value: None} if value else {})})
    return found


def settable(flow) -> set[str]:
    """All facts that something sets."""
    states = flow.states.values()
    return {TODAY, *flow.facts, *(fact for state in states for _, facts in state.ways() for fact in facts),
            *(row.fact for state in states for row in state.on if row.fact),
            *(typed.fact for state in states for use in state.uses()
              for facts in use.tool.results.values() for typed in facts)}


def slots(flow, states, graph: Graph) -> Iterator[Fault]:
    """A slot may only name what is known for certain whenever the text is said, a state's `facts` what may be known."""
    everything = settable(flow)
    known = certain(flow, graph, everything)
    for state in states:
        asked = ((name, "asks for the fact") for name in state.facts)
        looked = ((name, "looks at the fact") for branch in state.enter for name in branch.when)
        for name, does in (*asked, *looked):
            if name not in everything:
                yield state.line, (f"state \"{state.name}\" {does} \"{name}\", which nothing sets"
                                   f"{did_you_mean(name, everything)}.")
        for text, fact in state.texts():
            for slot in text.slots:
                if slot not in everything:
                    near = did_you_mean(slot, everything)
                    yield text.line, f"the slot {{{slot}}} names a fact that nothing sets{near}."
                elif slot not in known[state.name] and slot != fact:
                    yield text.line, (f"the slot {{{slot}}} can still be empty in state \"{state.name}\": give it a "
                                      f"value under [facts], or let every way there set it.")
    for name in flow.profile:
        if name not in everything:
            yield flow.lines["profile"], (f"`profile` names the fact \"{name}\", which nothing sets"
                                          f"{did_you_mean(name, everything)}.")


def certain(flow, graph: Graph, everything: set[str]) -> dict[str, set[str]]:
    """State -> the facts that are set on every way there, or that it has looked at on entering."""
    known = {name: set(everything) for name in graph}
    known[flow.start] = {TODAY, *flow.facts}
    changed = True
    while changed:
        changed = False
        for name, ways in graph.items():
            state = flow.states[name]
            for place, (target, facts) in enumerate(ways):
                there = known[name] | facts | (passed(state) if place >= len(state.enter) else set())
                if not known[target] <= there:
                    known[target] &= there
                    changed = True
    return {name: facts | passed(flow.states[name]) for name, facts in known.items()}


def passed(state) -> set[str]:
    """Facts that are known wherever the state itself is spoken: without one, it would have gone on elsewhere."""
    return {name for branch in state.enter if len(branch.when) == 1 for name, value in branch.when.items() if not value}


def confusions(states) -> Iterator[Fault]:
    """Rows that accept the same, so that the second is never chosen.  A state's row may take what a global one has."""
    scopes = [(state.on[:state.own], f"state \"{state.name}\"") for state in states]
    scopes += [(state.on[state.own:], "[[global]]") for state in states if not state.end][:1]
    for rows, owner in scopes:
        for place, row in enumerate(rows):
            for other in rows[place + 1:]:
                same = next(chain(common(row.answer, other.answer), common(other.answer, row.answer)), None)
                if same:
                    yield other.line, f"two rows of {owner} expect {same}."


def common(one, other) -> Iterator[str]:
    """What `other` accepts of what `one` accepts."""
    if one.free and other.free:
        yield "free speech"
    if one.keys and one.keys == other.keys:
        yield f"the key {one.keys}"
    for option in one.spoken:
        for said in map(bare, islice(option.spell(), SPELLED)):
            if any(end != MORE for end, _ in other.read(said)):
                yield f"\"{' '.join(said)}\""


def unknown_words(flow, known) -> Iterator[Fault]:
    """Every word that a recogniser's grammar has and its dictionary lacks."""
    for word in sorted(set().union(*(search.words for search in flow.searches))):
        if word not in known:
            lines = (row.line for state in flow.states.values() for row in state.on for option in row.answer.spoken
                     if any(word in said for said in islice(option.spell(), SPELLED)))
            yield next(lines, flow.lines.get("lead_ins", 1)), f"the recogniser does not know the word \"{word}\"."
