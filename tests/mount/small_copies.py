"""The s3mount command with a store that copies no more than 16 MiB at once, instead of 5 GiB.

So that what has to be copied in parts need not be larger than 5 GiB in a test.
"""

import sys

from s3mount.cli import main
from s3mount.fs import openfile, tree

LARGEST = 16 << 20

if __name__ == "__main__":
    openfile.MAX_COPY_SIZE = tree.MAX_COPY_SIZE = LARGEST
    sys.exit(main())
