"""Transaction: what a turn has changed in the dialogue, and how much of that can still be taken back.

It holds checkpoints and decides nothing.  The rule: until something of a reply was heard, all of it can be taken back
as if it had never been decided; after that, what its tools were to do can, as long as they have not done it; and what
a tool has done that cannot be undone stays known, whatever becomes of its turn.
"""
from ..flow import Dialogue, Reply
from ..flow.dialogue import ANSWER
from ..speech.turns import TurnTaking


class Transaction:
    """One per call, for the turn that is spoken."""

    __slots__ = ("dialogue", "turns", "unheard", "undo")

    def __init__(self, dialogue: Dialogue, turns: TurnTaking):
        self.dialogue = dialogue
        self.turns = turns              # which waits as the state wants it
        self.unheard: tuple = ()        # the dialogue before an answer's reply, until that is certain
        self.undo: tuple = ()           # ... before any reply

    @property
    def revocable(self) -> bool:
        """The reply answers words of which there may be more: it can be taken back as if they had not ended."""
        return bool(self.unheard)

    def begin(self, reply: Reply) -> None:
        """The reply counts."""
        self.undo = self.dialogue.checkpoint()
        self.unheard = self.undo if reply.kind == ANSWER else ()
        self.goes_on(reply)

    def goes_on(self, reply: Reply) -> None:
        """So does this part of it."""
        self.dialogue.commit(reply)
        self._expect()

    def _expect(self) -> None:
        self.turns.expect(self.dialogue.expect.waits)

    def certain(self) -> None:
        """Something of it was heard, or is done."""
        self.unheard = ()

    def take_back(self) -> None:
        """As if it had not been decided."""
        self.dialogue.restore(self.unheard)
        self.unheard = ()
        self._expect()

    def retract(self, kept: dict[str, str]) -> None:
        """What it was to do was not done, but for what gave these facts."""
        self.dialogue.retract(self.undo)
        self.dialogue.keep(kept)
        self._expect()

    def keep(self, facts: dict[str, str]) -> None:
        """A tool that could not be stopped has done its work, though its turn is gone."""
        self.dialogue.keep(facts)
        for checkpoint in filter(None, (self.unheard, self.undo)):
            checkpoint[1].update(facts)
