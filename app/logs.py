"""What the processes of the service write to stderr: one line for each event."""

from __future__ import annotations

import logging
import time
from typing import Final

_LINE: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s {process}[%(process)d] %(name)s: %(message)s"


class OneLine(logging.Formatter):
    """Writes a record, its traceback included, on one line, with the time in UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self, process: str) -> None:
        super().__init__(_LINE.format(process=process), "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return super().format(record).replace("\n", " | ")


def configure_logging(process: str) -> None:
    """Log everything from INFO up to stderr.

    Args:
        process: What to call this process in every line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Which migrations there are is of interest only when they fail.
    logging.getLogger("alembic").setLevel(logging.WARNING)
