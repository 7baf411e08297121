"""`python -m structprune` is the command `structprune`."""

import sys

from .cli import main

sys.exit(main())
