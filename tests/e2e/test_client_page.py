"""The page about the client does what it says: its blocks are run as one program, against a running service."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def test_every_block_of_the_page_runs(service, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.read_text().count("```") // 2
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    key = service.settings.admin_key_file.read_text().strip()
    environ = os.environ | {"HEADSTART_URL": str(service.http.base_url), "HEADSTART_API_KEY": key}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[('/observations/0', 'must hold 4 numbers, not 1')]"
