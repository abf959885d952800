"""What a call was before it came here: the state in which it was held elsewhere (handover.committed), taken up again.

The rule: a call that was held nowhere before is none the wiser.
"""
import secrets

from ..dialects.keeping import come_back
from ..flow.dialogue import checkpoint_of


def noted(state: dict | None) -> tuple:
    """For the journal, which must tell a replay the same."""
    return () if state is None else (state,)


def of(connection, dialect) -> dict | None:
    """The state that has come with a connection, if one has; the dialect goes on with what was spoken in it, where that
    is more than the platform says again."""
    state = getattr(connection, "earlier", None)
    if state is not None:
        come_back(dialect, state["spoken"])
    return state


def name(state: dict | None) -> str:
    """The id that the call had, or one of its own."""
    return state["call"]["id"] if state is not None else secrets.token_hex(8)


def began_at(state: dict | None) -> str:
    """The time of day at which it began, as its record says it; "" for one that begins now."""
    return state.get("usage", {}).get("began_at", "") if state is not None else ""


def recalled(call, dialogue):
    """The dialogue, which stands where it stood; so do the receipts, the call's age and what it has used."""
    state = call.earlier
    if state is not None:
        dialogue.restore(checkpoint_of(state["dialogue"]))
        dialogue.today = state["today"]
        call.ledger.receipts = state["receipts"]
        call.began -= state["age"]
        call.usage.restore(state.get("usage", {}) | {
            "outcome": "", "payers": call.usage.payers, "heard_at": call.usage.heard_at})
    return dialogue
