"""`python -m opusagent` is `opusagent`."""
import sys

from .cli import main

sys.exit(main())
