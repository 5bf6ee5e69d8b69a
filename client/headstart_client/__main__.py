"""``python -m headstart_client`` is ``headstart``."""

import sys

from headstart_client.cli import main

sys.exit(main())
