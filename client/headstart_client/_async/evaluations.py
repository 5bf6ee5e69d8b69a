"""Evaluations of a service: what versions and policies are worth on tasks that they have not seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart_client._async.downloads import download
from headstart_client._async.transport import AsyncTransport
from headstart_client._async.waiting import poll
from headstart_client.downloads import plain_name
from headstart_client.errors import EvaluationFailed, HeadstartError
from headstart_client.evaluations import Evaluation, subject_reference
from headstart_client.policies import Policy
from headstart_client.registry import Version
from headstart_client.transport import json_of, segment
from headstart_client.wire import id_of, parse, without_none


class AsyncEvaluations:
    """``client.evaluations``: what versions and policies are worth."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        subjects: Sequence[str | Version | Policy | Mapping[str, Any]],
        tasks: Mapping[str, Any],
        *,
        methods: Sequence[str | Mapping[str, Any]] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **others: Any,
    ) -> Evaluation:
        """Measure how well versions and policies adapt to tasks; this is ``client.evaluate``.

        Args:
            subjects: Versions (``"cartpole/3"``, ``"cartpole@champion"``), policies, or objects with ``name`` and
                ``version`` or ``policy``. The first is compared with the others; the verdict is on it and the second.
            tasks: ``{"family": ..., "split": "test", "count": 20}``, ``{"ids": [...]}`` or ``{"labels": {...}}``.
            methods: How they are adapted, each a name or an object with its options; by default the inner loop.
            wait: Whether to return only when it has succeeded.
            timeout_s: When to give up waiting, in seconds; ``None`` for never.
            **others: ``name``, ``scratch``, ``multitask``, ``training_tasks``, ``seeds``, ``seed``, ``threshold``.

        Raises:
            EvaluationFailed: If it failed or was cancelled.
            Timeout: If the time is over; the evaluation goes on.
            InvalidRequest: If something in it is wrong.
        """
        body = without_none(
            subjects=[subject_reference(each) for each in subjects],
            tasks=dict(tasks),
            methods=None if methods is None else [{"name": m} if isinstance(m, str) else dict(m) for m in methods],
            **others,
        )
        evaluation = await self.submit(body)
        return await self.wait(evaluation, timeout_s) if wait else evaluation

    async def submit(self, request: Mapping[str, Any]) -> Evaluation:
        """Queue an evaluation by its whole request; the ``protocol`` of another one repeats that."""
        return parse(Evaluation, await self._transport.create("/v1/evaluations", dict(request)))

    async def get(self, evaluation: str | Evaluation) -> Evaluation:
        """An evaluation as it is now, with its results if it has any."""
        return parse(Evaluation, await self._transport.get(f"/v1/evaluations/{segment(id_of(evaluation))}"))

    def list(self, *, name: str | None = None, state: str | None = None) -> AsyncIterator[Evaluation]:
        """Evaluations without their results, newest first, fetched as they are iterated over."""
        found = self._transport.items("/v1/evaluations", "evaluations", without_none(name=name, state=state))
        return (parse(Evaluation, each) async for each in found)

    async def cancel(self, evaluation: str | Evaluation) -> Evaluation:
        """Ask an evaluation to stop; a queued one never starts."""
        answer = await self._transport.request("POST", f"/v1/evaluations/{segment(id_of(evaluation))}:cancel")
        return parse(Evaluation, json_of(answer))

    async def wait(
        self,
        evaluation: str | Evaluation,
        timeout_s: float | None = None,
        *,
        show: Callable[[Evaluation], None] | None = None,
    ) -> Evaluation:
        """Wait for an evaluation to succeed.

        Args:
            evaluation: The evaluation, or its id.
            timeout_s: When to give up, in seconds from now; ``None`` for never.
            show: Called with the evaluation as it is, about twice a second.

        Raises:
            EvaluationFailed: If it failed or was cancelled.
            Timeout: If the time is over; the evaluation goes on.
        """

        async def look() -> Evaluation:
            found = await self.get(evaluation)
            if show is not None:
                show(found)
            return found

        ended = await poll(look, lambda now: now.finished, f"evaluation {id_of(evaluation)}", timeout_s)
        if ended.state != "succeeded":
            raise EvaluationFailed(ended)
        return ended

    async def download(self, evaluation: str | Evaluation, to: str | Path, *, file: str = "report.html") -> Path:
        """Download one of its files to the file ``to``, checked."""
        found = await self.get(id_of(evaluation))
        sha256 = next((each.sha256 for each in found.files if each.name == file), None)
        if sha256 is None:
            known = ", ".join(each.name for each in found.files) or f"none: it is {found.state}"
            raise HeadstartError(f"evaluation {found.id} has no file {file!r}; its files: {known}")
        return await download(self._transport, f"/v1/evaluations/{segment(found.id)}/{segment(file)}", Path(to), sha256)

    async def download_all(self, evaluation: str | Evaluation, folder: str | Path) -> tuple[Path, ...]:
        """Download every file into a folder, which is made."""
        found = await self.get(id_of(evaluation))
        paths = [
            await self.download(found, Path(folder) / plain_name(each.name), file=each.name) for each in found.files
        ]
        return tuple(paths)
