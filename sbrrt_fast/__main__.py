"""``python -m sbrrt_fast``: the ``sbrrt-fast`` command."""

import sys

from sbrrt_fast.cli import main

sys.exit(main())
