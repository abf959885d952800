"""What a worker and an engine process say to one another: the kinds of records on their two rings.

A record is (kind, slot, generation, epoch, a, b, data); see _fastpath.Ring.  The rule: a record describes, the audio
lies in the slot; and whoever reads one looks at the generation first, since the slot may belong to another call by now.
"""
import struct

# from the worker         a               b               data                epoch
LISTEN = 1          #     position        search          LEVEL               the utterance's number
ASK = 2             #                                                         "
FINISH = 3          #     position                                            "
CANCEL = 4          #                                                         the number, or the epoch
SPEAK = 5           #     buffer k        start or FRESH  voice, NUL, text    the turn's epoch
SPACE = 6           #     buffer k: the worker has played some of it
JUDGE = 7           #     from position   to position                         the utterance's number

# from the engine process
READY = 16          #
PARTIAL = 17        #     position        ms of lag       text                the utterance's number
FINAL = 18          #     confidence * 1e6  "             LEVEL, text         "
BEGUN = 23          #     buffer k                                            the turn's epoch: it is spoken now
SPEECH = 19         #     start           written         k, done (2 bytes)   the turn's epoch
JUDGED = 22         #     to position     probability * 1e6                   the utterance's number
WORDS = 21          #     buffer k                        ENDS                "  (before the first SPEECH, if at all)
FAILED = 20         #     k (voice)                       a sentence          the number, or the epoch;
                    #     before READY: a is 1 if the configuration is to blame, and the process ends

FRESH = (1 << 64) - 1       # SPEAK: nothing of it has been written; otherwise the buffer's counter at its first sample

ENDS = "<u4"                    # samples of the segment after which each of its words ends
LEVEL = struct.Struct("<d")     # what the recogniser learned of a caller, which the worker keeps: Cepstra.level
