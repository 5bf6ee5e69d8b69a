"""Taking a version or a policy away: every file that it can be had as, in one folder."""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart_client.client import Client
from headstart_client.groups import add_command
from headstart_client.output import Output, table

PORTABLE = ("policy.safetensors", "policy.onnx")
"""What acts without the service: for :class:`headstart_client.LocalPolicy`, and for ONNX runtimes."""

_POLICY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Pulled:
    """What was taken away.

    Attributes:
        reference: The version, like ``cartpole/3``, or the policy's id.
        folder: Where it is.
        files: The files, each whole and of the digest that the service promised.
    """

    reference: str
    folder: Path
    files: tuple[Path, ...]


def pull(client: Client, reference: str, folder: str | Path | None = None) -> Pulled:
    """Download all of a version or a policy; files that are there already are kept.

    A version's ``manifest.json`` is replaced last: where it is of a version, so are the others.

    Args:
        client: The service.
        reference: ``"cartpole@champion"``, ``"cartpole/3"``, ``"cartpole"`` for its newest version, or a policy's id.
        folder: Where to put it; made if need be. ``cartpole-3``, or the policy's id, where not given.

    Raises:
        NotFound: If there is no such version or policy.
        DigestMismatch: If a file is not what the service says it is.
    """
    if _POLICY_ID.fullmatch(reference):
        target = Path(folder or reference)
        files = [client.policies.download(reference, target / name, file=name) for name in PORTABLE]
        return Pulled(reference, target, tuple(files))
    version = client.versions.get(reference)
    target = Path(folder or version.reference.replace("/", "-"))
    names = [*PORTABLE, *(file.name for file in version.files)]
    files = client.versions.download(version, target, files=sorted(names, key=lambda name: name == _MANIFEST))
    return Pulled(version.reference, target, tuple(files))


def add_pull(parent: Any, options: argparse.ArgumentParser) -> None:
    """Add the command ``pull``."""
    told = "take a version or a policy away, to act without the service"
    parser = add_command(parent, "pull", _pull, told, options)
    parser.add_argument("reference", help="MODEL@ALIAS, MODEL/VERSION, MODEL for its newest version, or a policy's id")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="folder to put it in (default: MODEL-VERSION, or the id)")


def _pull(client: Client, args: argparse.Namespace) -> Output:
    pulled = pull(client, args.reference, args.out)
    rows = []
    for path in pulled.files:
        content = path.read_bytes()
        rows.append([str(path), len(content), hashlib.sha256(content).hexdigest()])
    files = [dict(zip(("path", "size_bytes", "sha256"), row, strict=True)) for row in rows]
    document = {"reference": pulled.reference, "folder": str(pulled.folder), "files": files}
    return Output(document, table(["file", "bytes", "sha256"], rows))
