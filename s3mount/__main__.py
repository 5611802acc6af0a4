"""``python -m s3mount`` is the command ``s3mount``."""

import sys

from s3mount.cli import main

sys.exit(main())
