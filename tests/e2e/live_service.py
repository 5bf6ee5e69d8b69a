"""`headstart-server serve` as an operator starts it: real processes on a real port."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from sqlalchemy import select

from app.database import Database
from app.settings import Settings
from app.tables import Adaptation, Evaluation, Run

COMMAND = str(Path(sys.executable).with_name("headstart-server"))


def wait_until(condition, timeout_s=60):
    """What the condition gives, as soon as it gives something true."""
    deadline = time.monotonic() + timeout_s
    while True:
        # The service, or a process of it, may be away for a moment: that is what these tests are about.
        with contextlib.suppress(httpx.TransportError, FileNotFoundError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def is_alive(pid):
    """Whether there is such a process and it is no zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Service:
    """`headstart-server serve` with a folder and a database of its own."""

    def __init__(self, folder, database_url):
        self.folder = folder
        self.environ = os.environ | {
            "HEADSTART_DATA": str(folder / "var"),
            "HEADSTART_DATABASE_URL": database_url,
            "HEADSTART_PORT": "0",
            "HEADSTART_THREADS": "1",
            # What else this machine does at the moment is other tests, which are in no greater hurry.
            "HEADSTART_NICENESS": "0",
            "HEADSTART_LEASE_SECONDS": "1",
            "HEADSTART_CHECKPOINT_SECONDS": "0.2",
        }
        self.settings = Settings.from_environment(self.environ)
        self.database = Database(self.settings.database_url)
        self.process = None
        self.http = None

    def start(self):
        with (self.folder / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, "serve"], env=self.environ, stdout=subprocess.PIPE, stderr=log, text=True
            )
        url = self.process.stdout.readline().rpartition(" ")[2].strip()
        key = wait_until(lambda: self.settings.admin_key_file.read_text().strip())
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        wait_until(lambda: self.http.get("/v2/health/ready").status_code == 200)

    def stop(self, number=signal.SIGTERM):
        """Send the signal and wait; the exit code."""
        self.http.close()
        self.process.send_signal(number)
        code = self.process.wait(40)
        self.process.stdout.close()
        return code

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self.database.close()

    def children(self):
        """Process ids of the API and the workers."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def start_run(self, **changes):
        response = self.http.post("/v1/runs", json=changes)
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def run(self, run_id):
        return self.http.get(f"/v1/runs/{run_id}").json()

    def worker_of(self, run_id):
        """Process id of the worker that has the run."""
        return self._worker_of(Run, run_id)

    def adapter_of(self, adaptation_id):
        """Process id of the worker that has the adaptation."""
        return self._worker_of(Adaptation, adaptation_id)

    def evaluator_of(self, evaluation_id):
        """Process id of the worker that has the evaluation."""
        return self._worker_of(Evaluation, evaluation_id)

    def _worker_of(self, table, id_):
        with self.database.snapshot() as session:
            owner = session.scalar(select(table.lease_owner).where(table.id == id_))
        return None if owner is None else int(owner.rpartition(":")[2])

    def crashes_of(self, run_id):
        with self.database.snapshot() as session:
            return session.scalar(select(Run.crashes).where(Run.id == run_id))

    def has_checkpoint(self, run_id):
        return self.http.get(f"/v1/runs/{run_id}/files/checkpoint.safetensors").status_code == 200

    def parameters_of(self, run_id):
        """Digest of the parameters of the version that a run made."""
        run = wait_until(lambda: (run := self.run(run_id))["state"] not in ("queued", "running") and run, 120)
        assert run["state"] == "succeeded", run
        version = self.http.get(f"/v1/models/{run['model']}/versions/{run['version']}").json()
        return next(file["sha256"] for file in version["files"] if file["name"] == "parameters.safetensors")
