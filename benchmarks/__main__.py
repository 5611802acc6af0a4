"""Makes ``python -m benchmarks`` the command."""

import sys

from benchmarks.cli import main

sys.exit(main())
