"""`python -m igebm` is `igebm`."""

import sys

from .cli import program

sys.exit(program())
