"""`opusagent latency-test`, for those who look for it here: the same flags, the same figures."""
import sys

from opusagent.cli import main

sys.exit(main(["latency-test", *sys.argv[1:]]))
