"""The voice `espeak`: espeak-ng where it is installed, for languages that flite does not read.

It is a program of its own under the GPL, and is run as one: text to its standard input, a WAV from its output.  The
rule: as with flite, the same text in the same manner gives the same samples.
"""
import re
import shutil
import subprocess
from collections.abc import Callable

import numpy as np

from ... import ConfigError, EngineError
from ..speech import Speech

COMMAND = "espeak-ng"
INSTALL = "The voice espeak needs espeak-ng: apt install espeak-ng."
GAIN = 1.0                  # that brings it to -20 dBFS, as flite's table has it
WORDS = 175                 # a minute, at rate 1
LANGUAGE = "en-us"
LANGUAGES = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")
HEAD = 44                   # bytes of the WAV's head
PIECE = 4096                # bytes read at once
LONGEST = 2000              # characters spoken at once


def reads(language: str) -> bool:
    """Whether it knows that language; True where it is not installed, which is told of elsewhere."""
    if (command := shutil.which(COMMAND)) is None:
        return True
    return LANGUAGES.fullmatch(language) is not None and not subprocess.run(
        [command, "-q", "-v", language, "a"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL).returncode


class Voice:
    """It speaks one text at a time."""

    words: list[int] = []       # it does not tell where they end

    def __init__(self):
        self.command = shutil.which(COMMAND)
        if self.command is None:
            raise ConfigError(INSTALL)

    def speak(self, text: str, rate: int, write: Callable[[np.ndarray], bool], speed: float = 1.0,
              language: str = "") -> bool:
        """As flite.Voice.speak().  EngineError where it has no such language, or ends in trouble."""
        language = (language or LANGUAGE).lower()
        if not LANGUAGES.fullmatch(language):
            raise EngineError(f"{language[:20]!r} is no language as espeak-ng names them.")
        words = [self.command, "--stdin", "--stdout", "-v", language, "-s", str(round(WORDS * speed))]
        speech = Speech(rate, GAIN, write)
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as process:
            process.stdin.write(text[:LONGEST].encode("utf-8", "replace"))
            process.stdin.close()
            own_rate, wanted = rate_of(process.stdout.read(HEAD), language), True
            while wanted and (data := process.stdout.read(PIECE)):
                wanted = speech.push(np.frombuffer(data[:len(data) & ~1], "<i2"), own_rate)
            if not wanted:
                process.kill()
        if wanted and process.returncode:
            raise EngineError(f"espeak-ng ended with code {process.returncode}.")
        return speech.finish()


def rate_of(head: bytes, language: str) -> int:
    """Of a WAV's head.  EngineError where it is none: espeak-ng had nothing to say."""
    if len(head) < HEAD or head[:4] != b"RIFF":
        raise EngineError(f"espeak-ng does not speak {language!r}.")
    return int.from_bytes(head[24:28], "little")
