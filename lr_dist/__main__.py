"""`python -m lr_dist` is `lr-dist`."""

import sys

from lr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
