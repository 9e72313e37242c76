"""`python -m iwm.cli` is the `iwm` command."""

import sys

from iwm.cli.dispatch import main

sys.exit(main())
