"""`python -m igebm` is `igebm`."""

import sys

from .cli import main

sys.exit(main())
