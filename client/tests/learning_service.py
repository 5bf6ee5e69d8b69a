"""A service that learns from environments of the client's, as small as it can be: a real WebSocket, and no learning.

It waits for so many episodes a step, and each step makes one more revision. What a test writes down beforehand goes
wrong.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


def wild(observations: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M], in [0, 1): the same for the same observation, and else as good as random."""
    return np.abs(np.sin(1e3 * observations.sum(1)) * 1e3) % 1.0


def acted(observations: NDArray[np.float64], action_size: int | None, revision: int) -> dict[str, Any]:
    """What the policy does: it depends on what it sees, and is the same in every revision."""
    draw = wild(observations)
    answer: dict[str, Any] = {"log_probs": (-draw).tolist(), "values": draw.tolist(), "revision": revision}
    if action_size is None:
        return answer | {"actions": (draw < 0.7).astype(int).tolist()}
    drawn = np.repeat((6.0 * draw - 3.0)[:, None], action_size, 1)
    return answer | {"actions": np.clip(drawn, -2.0, 2.0).tolist(), "policy_actions": drawn.tolist()}


class LearningService:
    """One adaptation, ``a1``, and its policy, ``p1``.

    Args:
        steps: That its method takes.
        episodes: That each wants.
        environment_steps: That those have, at least.
        slow: Whether a step takes longer than an upload is waited for.
    """

    def __init__(self, steps: int = 2, episodes: int = 4, environment_steps: int = 0, slow: bool = False) -> None:
        self.created: dict[str, Any] = {}
        self.uploads: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.faults = deque[int]()
        """Statuses to answer uploads with, after they have been taken in; 0 for none."""
        self.breaks = deque[tuple[int, int]]()
        """Message, counted from 0, and the code that the stream is closed with in place of its answer."""
        self.file = b""
        """The policy as a file, the same in every revision."""
        self.files_asked: list[str | None] = []
        """The revisions that it was asked for in."""
        self.state = "collecting"
        self.revision = 0
        self.connections = 0
        self._wanted = (steps, episodes, environment_steps)
        self._slow = slow
        self._episodes: dict[str, dict[str, Any]] = {}
        self._used = 0
        self._steps_used = 0
        self._looks = 0
        routes = [
            Route("/v1/adaptations", self._create, methods=["POST"]),
            Route("/v1/adaptations/a1/episodes", self._upload, methods=["POST"]),
            Route("/v1/adaptations/a1:finish", self._finish, methods=["POST"]),
            Route("/v1/adaptations/a1:cancel", self._cancel, methods=["POST"]),
            Route("/v1/adaptations/a1", self._look),
            Route("/v1/policies/p1", self._describe),
            Route("/v1/policies/p1/files/policy.safetensors", self._send_file),
            WebSocketRoute("/v1/policies/p1/stream", self._stream),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), port=0, log_level="error", lifespan="off", ws="websockets-sansio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """What was brought, each episode once, in the order in which they came."""
        return list(self._episodes.values())

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _needed(self) -> tuple[int, int]:
        steps, episodes, environment_steps = self._wanted
        if self.revision >= steps:
            return 0, 0
        waiting = sum(len(each["rewards"]) for each in self.episodes) - self._steps_used
        return max(0, episodes - (len(self._episodes) - self._used)), max(0, environment_steps - waiting)

    def _learn(self) -> None:
        while self.revision < self._wanted[0] and self._needed() == (0, 0):
            self.revision += 1
            self._used = len(self._episodes)
            self._steps_used = sum(len(each["rewards"]) for each in self.episodes)

    def _body(self) -> dict[str, Any]:
        episodes, environment_steps = self._needed()
        return {
            "id": "a1",
            "state": self.state,
            "policy": "p1",
            "revision": self.revision,
            "method": self.created.get("method", {}),
            "progress": {"fraction": self.revision / self._wanted[0]},
            "remote": {
                "episodes": len(self._episodes),
                "environment_steps": sum(len(each["rewards"]) for each in self.episodes),
                "episodes_needed": episodes,
                "environment_steps_needed": environment_steps,
            },
        }

    async def _create(self, request: Request) -> Response:
        self.created = await request.json()
        return JSONResponse(self._body(), 201)

    async def _upload(self, request: Request) -> Response:
        uploaded = (await request.json())["episodes"]
        self.uploads.append({"episodes": uploaded, "prefer": request.headers.get("prefer")})
        accepted = 0
        for piece in uploaded:
            whole = self._episodes.get(piece["id"])
            if whole is None:
                self._episodes[piece["id"]] = piece
                accepted += 1
            elif piece["offset"] == len(whole["rewards"]):
                for name in ("actions", "rewards", "log_probs", "policy_actions"):
                    whole.get(name, []).extend(piece.get(name, []))
                whole["observations"] += piece["observations"][1:]
                whole |= {name: piece[name] for name in ("terminated", "truncated")}
        if self._slow:
            self.state, self._looks = "running", 0
        else:
            self._learn()
        if self.faults and (status := self.faults.popleft()):
            return JSONResponse({"status": status, "title": "X", "detail": "no"}, status)
        duplicates = len(uploaded) - accepted
        return JSONResponse({"accepted": accepted, "duplicates": duplicates, "adaptation": self._body()})

    async def _look(self, _: Request) -> Response:
        self._looks += 1
        if self.state == "running" and self._looks > 1:
            self.state = "collecting"
            self._learn()
        return JSONResponse(self._body())

    async def _describe(self, _: Request) -> Response:
        return JSONResponse({"id": "p1"})

    async def _send_file(self, request: Request) -> Response:
        self.files_asked.append(request.query_params.get("revision"))
        return Response(self.file, media_type="application/octet-stream")

    async def _finish(self, _: Request) -> Response:
        self.state = "succeeded"
        return JSONResponse(self._body())

    async def _cancel(self, _: Request) -> Response:
        self.state = "cancelled"
        return JSONResponse(self._body())

    async def _stream(self, socket: WebSocket) -> None:
        await socket.accept()
        self.connections += 1
        spaces = self.created["task"]["remote"]["action_space"]
        size = None if spaces["type"] == "discrete" else len(spaces["low"])
        try:
            while True:
                message = json.loads(await socket.receive_text())
                if not message:
                    await socket.send_text(json.dumps({"policy": "p1", "revision": self.revision}))
                    continue
                self.messages.append(message)
                if self.breaks and self.breaks[0][0] == len(self.messages) - 1:
                    await socket.close(self.breaks.popleft()[1])
                    return
                one = "observation" in message
                observations = np.array([message["observation"]] if one else message["observations"])
                answer = acted(observations, size, self.revision)
                if one:
                    answer = {key.removesuffix("s"): value for key, value in answer.items() if key != "revision"}
                    answer = {key: value[0] for key, value in answer.items()} | {"revision": self.revision}
                await socket.send_text(json.dumps(answer))
        except WebSocketDisconnect:
            pass
