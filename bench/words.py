"""Where words lie in synthesised speech: what is worked out from the sound, against what the voice itself says.

    python bench/words.py [--voices rms,slt,awb,kal] [--json]

Each sentence is spoken by flite, which knows where its words end.  A caller could interrupt it at every 20 ms: counted
is how often the text that was heard is right to the word, and how far off it is where it is not.  The peer is a cut in
proportion to the time, as if all words were equally long.
"""
import argparse
import json
import sys

import numpy as np
from figures import table

from opusagent.engines.embedded.voices import Voices
from opusagent.speech.wording import estimated, proportional

RATE = 8000
STEP_MS = 20
SENTENCES = (
    "Thank you. There is one parcel for you. Which playing card is printed on your parcel slip?",
    "I am sorry, I did not understand that. Please say the card on your slip.",
    "Your balance is forty two dollars.",
    "Well, the card costs $23.50 on May 3rd; I'm sorry.",
    "You can pay at the counter, by bank transfer, or in three instalments over the next half year.",
    "One moment, please.",
    "The appointment is on Thursday the 14th at 9:30 in the morning with Doctor Henderson.",
    "If it is about an invoice, say invoice. If it is about a delivery that has not arrived, say delivery.",
    "Unfortunately that is not possible before next Wednesday. Would Friday afternoon suit you instead?",
    "It left our warehouse yesterday evening and should reach you by tomorrow noon, unless it snows.",
)


def spoken(voices: Voices, name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The samples, and after which of them each word ends."""
    pieces: list[np.ndarray] = []
    ends = voices.speak(name, text, RATE, lambda pcm: pieces.append(np.array(pcm)) or True) and voices.voice(name).words
    return np.concatenate(pieces), np.asarray(ends)


def differences(truth: np.ndarray, guess: np.ndarray, length: int) -> np.ndarray:
    """By how many words each cut is off."""
    cuts = np.arange(0, length, STEP_MS * RATE // 1000)
    return np.searchsorted(guess, cuts, "right") - np.searchsorted(truth, cuts, "right")


def measured(names: list[str]) -> dict[str, dict[str, float]]:
    voices, found = Voices(names[0]), {}
    ways = {"from the sound": lambda text, pcm: estimated(text, pcm, RATE),
            "in proportion": lambda text, pcm: proportional(text, len(pcm))}
    for way, guess in ways.items():
        off, errors = [], []
        for name in names:
            for text in SENTENCES:
                pcm, truth = spoken(voices, name, text)
                off.append(differences(truth, guess(text, pcm), len(pcm)))
                errors.append(np.abs(guess(text, pcm) - truth) * 1000 / RATE)
        off, errors = np.concatenate(off), np.concatenate(errors)
        found[way] = {"cuts": len(off), "right": float(np.mean(off == 0)), "within_one": float(np.mean(abs(off) <= 1)),
                      "error_p50_ms": float(np.percentile(errors, 50)),
                      "error_p95_ms": float(np.percentile(errors, 95))}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voices", default="rms,slt,awb,kal")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measured(args.voices.split(","))
    if args.json:
        print(json.dumps(found))
        return 0
    lines = [["", "cuts", "right to the word", "off by one at most", "a word's end off p50", "p95"]]
    for way, row in found.items():
        lines.append([way, str(row["cuts"]), f"{100 * row['right']:.1f} %", f"{100 * row['within_one']:.1f} %",
                      f"{row['error_p50_ms']:.0f} ms", f"{row['error_p95_ms']:.0f} ms"])
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
