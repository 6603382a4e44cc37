"""`python -m parallelizer` is the `parallelizer` command."""

import sys

from parallelizer.cli import main

sys.exit(main())
