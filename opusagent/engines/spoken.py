"""A piece of a model's answer that is speech already: the model speaks for itself, and no voice is asked.

The text that follows it in the answer is what it says.  The rule: whoever plays it tells how much of it was heard.
"""


class Spoken:
    """As it comes back from a journal: its sound was not kept, and decides nothing."""

    __slots__ = ()

    def write(self, call, epoch: int, k: int) -> None:
        """Its audio goes into segment buffer k of call.slot, as a voice's does: call.on_speech() and
        call.on_speech_failed() tell of it."""

    def played(self) -> None:
        """Some of the buffer was played: there is room again."""

    def stop(self, heard: int) -> None:
        """Nothing more of it is played; the listener has heard so many samples of it."""
