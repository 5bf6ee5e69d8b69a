"""The OpenAPI document that is committed."""

import json
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(COMMITTED.read_text())
