"""`python -m lr_dist.cli` is `lr-dist`."""

import sys

from lr_dist.cli import main

sys.exit(main())
