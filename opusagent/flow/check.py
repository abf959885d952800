"""What can be wrong with the states of a flow taken together: no place to go, no way in, no way out, nothing to say.

It reads a Flow and returns faults, (line, sentence) each; it changes nothing.  The rules: a sentence names the state
and what to do about it, and one mistake is one sentence, so a state that was not understood is not judged, and a
misspelt target counts as the one that was meant.
"""

from collections.abc import Iterator
from itertools import chain, islice

from .phrases import MORE, bare
from .tomlfile import did_you_mean, nearest

SPELLED = 300               # ways of saying a row that are compared with the other rows of its state

Fault = tuple[int, str]
Graph = dict[str, list[tuple[str, str | None]]]     # state -> (target, fact set on the way) of each way out


def faults(flow, unread: set[str]) -> list[Fault]:
    """All of them.  `unread`: the states that the file has, but with something in them that could not be read."""
    states = [state for state in flow.states.values() if state.name not in unread]
    found = [*targets(flow), *silent(states), *confusions(states)]
    if flow.start in flow.states:
        graph = {state.name: [*meant(flow, state)] for state in flow.states.values()}
        lost = {name for name in unread & flow.states.keys() if not flow.states[name].on}
        found += dead_ends(states, graph, lost)
        graph = with_machine(flow, graph)
        found += slots(flow, states, graph)
        found += [*unreachable(flow, graph)] if not lost else []
    return found


def meant(flow, state) -> Iterator[tuple[str, str | None]]:
    """The ways out of a state, misspelt targets put right."""
    for target, fact in state.ways():
        name = target if target in flow.states else nearest(target, flow.states)
        if name:
            yield name, fact


def with_machine(flow, graph: Graph) -> Graph:
    """The graph with the way of a call that a machine has answered; what is known then is what is known at first."""
    if flow.machine not in flow.states:
        return graph
    return {**graph, flow.start: [*graph[flow.start], (flow.machine, None)]}


def reached(start: str, graph: Graph) -> list[str]:
    """The states that a call can come to, the nearest to the start first."""
    order = [start]
    for name in order:                      # grows while it is read
        for target, _ in graph[name]:
            if target not in order:
                order.append(target)
    return order


def targets(flow) -> Iterator[Fault]:
    for state in flow.states.values():
        for source in (*state.on, *state.ladders):
            if source.go and source.go not in flow.states:
                yield source.line, f"\"{source.go}\" is no state to go to{did_you_mean(source.go, flow.states)}."


def unreachable(flow, graph: Graph) -> Iterator[Fault]:
    order = reached(flow.start, graph)
    for state in flow.states.values():
        if state.name not in order:
            yield state.line, f"state \"{state.name}\" is never reached: nothing leads there from \"{flow.start}\"."


def dead_ends(states, graph: Graph, lost: set[str]) -> Iterator[Fault]:
    """States that expect nothing, and, in a flow that can end, states from which it can not."""
    ending = lost | {state.name for state in states if state.end}
    endless = not ending
    while more := {name for name in graph if name not in ending and any(target in ending for target, _ in graph[name])}:
        ending |= more
    for state in states:
        if not state.end and not state.on:
            yield state.line, f"state \"{state.name}\" is a dead end: give it `on`, or `end = true`."
        elif not endless and state.name not in ending and len(graph[state.name]) == len([*state.ways()]):
            yield state.line, f"state \"{state.name}\" is a dead end: no way leads from it to the end of the call."


def silent(states) -> Iterator[Fault]:
    for state in states:
        if not state.say and not state.prompt:
            yield state.line, f"state \"{state.name}\" has nothing to say: give it `say` or `prompt`."
        if not state.prompt and (state.facts or state.history):
            yield state.line, f"state \"{state.name}\" has no `prompt`, so its `facts` and `history` would not be used."


def slots(flow, states, graph: Graph) -> Iterator[Fault]:
    """A slot may only name what is known for certain whenever the text is said, a state's `facts` what may be known."""
    everything = {*flow.facts, *(row.fact for state in flow.states.values() for row in state.on if row.fact)}
    known = certain(flow, graph, everything)
    for state in states:
        for name in state.facts:
            if name not in everything:
                yield state.line, (f"state \"{state.name}\" asks for the fact \"{name}\", which nothing sets"
                                   f"{did_you_mean(name, everything)}.")
        for text, fact in state.texts():
            for slot in text.slots:
                if slot not in everything:
                    near = did_you_mean(slot, everything)
                    yield text.line, f"the slot {{{slot}}} names a fact that nothing sets{near}."
                elif slot not in known[state.name] and slot != fact:
                    yield text.line, (f"the slot {{{slot}}} can still be empty in state \"{state.name}\": give it a "
                                      f"value under [facts], or let every way there set it.")


def certain(flow, graph: Graph, everything: set[str]) -> dict[str, set[str]]:
    """State -> the facts that are set on every way there."""
    known = {name: set(everything) for name in graph}
    known[flow.start] = set(flow.facts)
    changed = True
    while changed:
        changed = False
        for name, ways in graph.items():
            for target, fact in ways:
                there = known[name] | {fact}
                if not known[target] <= there:
                    known[target] &= there
                    changed = True
    return known


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
            yield next(lines, 1), f"the recogniser does not know the word \"{word}\"."
