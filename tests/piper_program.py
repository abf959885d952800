#!/usr/bin/env python3
"""What Piper's program is to whoever runs it: its command line, JSON lines in, raw samples out, its log on standard
error.  It speaks tones, 60 ms for each character, and misbehaves where a text says so.
"""
import argparse
import json
import math
import os
import struct
import sys
import time

MS_PER_CHARACTER = 60
PONDER_SECONDS = 2.5        # longer than Piper may say nothing that has but a few characters to compute


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--length_scale", type=float, default=1.0)
    parser.add_argument("--output-raw", action="store_true", required=True)
    parser.add_argument("--json-input", action="store_true", required=True)
    args = parser.parse_args()
    with open(args.model + ".json") as description:
        rate = json.load(description)["audio"]["sample_rate"]
    print("[2026-01-01 00:00:00.000] [piper] [info] Loaded voice in 0.1 second(s)", file=sys.stderr, flush=True)
    for line in sys.stdin:
        text = json.loads(line)["text"]
        count = round(len(text) * MS_PER_CHARACTER * args.length_scale * rate / 1000)
        pcm = b"".join(struct.pack("<h", round(3000 * math.sin(i * 2 * math.pi * 440 / rate))) for i in range(count))
        if "die at once" in text:
            return 1
        if "ponder" in text or "loop" in text:
            began = time.process_time()
            while "loop" in text or time.process_time() - began < PONDER_SECONDS:
                pass
        half = len(pcm) // 2 + 1                # an odd byte
        sys.stdout.buffer.write(pcm[:half])
        sys.stdout.buffer.flush()
        if "die later" in text:
            os._exit(1)
        if "hang" in text:
            time.sleep(3600)
        sys.stdout.buffer.write(pcm[half:] + bytes(2 * rate // 5))      # and 0.2 s between sentences
        sys.stdout.buffer.flush()
        print(f"[info] Real-time factor: 0.05 (infer=0.01 sec, audio={count / rate} sec)", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
