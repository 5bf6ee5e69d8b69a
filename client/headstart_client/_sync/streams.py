# Generated from headstart_client/_async/streams.py by: python client/generate_sync.py
"""A stream to a policy of a service: one message an observation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from numpy.typing import ArrayLike

from headstart_client._sync.transport import Transport
from headstart_client.errors import StreamClosed, Unauthorised
from headstart_client.policies import Action
from headstart_client.streams import MEANINGS, message, read_message, stream_action
from headstart_client.transport import NO_KEY, segment

if TYPE_CHECKING:
    from headstart_client._sync.sockets import Socket


@final
class PolicyStream:
    """A connection on which a policy acts. Use it in a ``with`` statement, and not from two places at once.

    A stream that has ended stays so: what it raised says why. It can be opened again, and opens itself where that was
    asked for.

    Attributes:
        policy: Id of what acts.
        revision: Of the policy, as it was told last.
    """

    def __init__(self, transport: Transport, policy: str, deterministic: bool, reopen: bool) -> None:
        self.policy = policy
        self.revision: int | None = None
        self._transport = transport
        self._deterministic = deterministic
        self._reopen = reopen
        self._socket: Socket | None = None
        self._sent = 0
        self._received = 0
        self._awaited = deque[int]()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect, and ask which policy this is; tried again as any call that may be repeated.

        Raises:
            ConnectionFailed: If there is no answer.
            Unauthorised: If the key is not valid.
            Forbidden: If it lacks the scope.
            NotFound: If there is no such policy.
            Gone: If it has expired or was deleted.
            ServiceFailed: If the service has too much to do.
        """
        self._transport.repeat(self._connect)

    def close(self) -> None:
        """Say goodbye; a closed stream can be opened again."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def act(
        self,
        observations: ArrayLike,
        *,
        deterministic: bool | None = None,
        episode_start: bool = False,
        seed: int | None = None,
        revision: int | None = None,
        policy_actions: bool = False,
    ) -> Action:
        """Ask for actions and wait for them.

        A call that was not answered in time, or was cancelled as it waited, may be made again: its late answer is
        passed over. A stream that an interrupt may have broken says so, with the code 1006.

        Args:
            observations: [M, O], or [O] for one, in environment units.
            deterministic: The likeliest action (True) or one drawn from the policy's distribution; as the stream does
                where not given.
            episode_start: Whether an episode begins; the first message of a connection begins one anyway.
            seed: Makes the actions that are drawn in this episode repeatable; where an episode begins.
            revision: Of the policy, at least.
            policy_actions: Whether to answer continuous actions as they were drawn, too.

        Returns:
            The action: arrays over M observations, 1 for [O].

        Raises:
            Problem: If the service refused the message; the stream goes on, unless it was closed with it: ``Gone``,
                ``ServiceFailed``.
            StreamClosed: If the stream is over.
            ConnectionFailed: If there is no answer in time.
            ValueError: If an observation holds a NaN or an infinity, or answers are still to be received.
        """
        if self._awaited:
            raise ValueError(f"{len(self._awaited)} answers are still to be received: receive() them first")
        data = self._message(observations, deterministic, episode_start, seed, revision, policy_actions)

        def ask(attempt: int) -> Action:
            if attempt or (self._reopen and self._socket is None):
                self._connect(attempt)
            with self._torn_by_interrupts():
                return self._acted(self._take(self._put(data)))

        return self._transport.repeat(ask) if self._reopen else ask(0)

    def send(
        self,
        observations: ArrayLike,
        *,
        deterministic: bool | None = None,
        episode_start: bool = False,
        seed: int | None = None,
        revision: int | None = None,
        policy_actions: bool = False,
    ) -> None:
        """Ask for actions, and receive them later; any number may be on their way. Arguments as :meth:`act`."""
        data = self._message(observations, deterministic, episode_start, seed, revision, policy_actions)
        with self._torn_by_interrupts():
            self._awaited.append(self._put(data))

    def receive(self) -> Action:
        """The answer to the oldest :meth:`send` that has not been received; raises as :meth:`act`.

        Raises:
            ValueError: If there is none.
        """
        if not self._awaited:
            raise ValueError("every answer has been received")
        with self._torn_by_interrupts():
            data = self._take(self._awaited[0])
            # An answer that is late or whose call was cancelled is still to come: the next call receives it.
            self._awaited.popleft()
            return self._acted(data)

    def _acted(self, data: bytes) -> Action:
        action = stream_action(read_message(data), self.policy)
        self.revision = self.revision if action.revision is None else action.revision
        return action

    def _message(
        self,
        observations: ArrayLike,
        deterministic: bool | None,
        episode_start: bool,
        seed: int | None,
        revision: int | None,
        policy_actions: bool,
    ) -> bytes:
        return message(
            observations,
            deterministic=self._deterministic if deterministic is None else deterministic,
            episode_start=episode_start,
            seed=seed,
            revision=revision,
            policy_actions=policy_actions,
        )

    def _connect(self, _attempt: int) -> None:
        known = self._transport.key.found()
        try:
            self._greet()
        except Unauthorised as refused:
            if known is not None:
                raise
            # The service may have been starting, and answers once its key is written.
            if self._transport.key.found() is None:
                if NO_KEY not in getattr(refused, "__notes__", ()):
                    refused.add_note(NO_KEY)
                raise
            self._greet()

    def _greet(self) -> None:
        """Connect, and ask which revision acts: what the service refuses, it refuses here."""
        # No command needs it, and it takes a while to load.
        from headstart_client._sync.sockets import open_socket

        self.close()
        self._socket = open_socket(self._transport, f"/v1/policies/{segment(self.policy)}/stream")
        self._sent, self._received = 0, 0
        self._awaited.clear()
        try:
            self.revision = read_message(self._take(self._put(b"{}"))).get("revision")
        except BaseException:
            self.close()
            raise

    def _put(self, data: bytes) -> int:
        """Send a message; its number."""
        self._opened().send(data)
        self._sent += 1
        return self._sent - 1

    def _take(self, number: int) -> bytes:
        """The answer to a message; those before it, which nobody waits for any more, are passed over."""
        socket = self._opened()
        while True:
            data = socket.receive()
            self._received += 1
            if self._received > number:
                return data

    @contextmanager
    def _torn_by_interrupts(self) -> Iterator[None]:
        """Ctrl-C comes anywhere: which answer belongs to which message is not known any more."""
        try:
            yield
        except KeyboardInterrupt:
            if self._socket is not None:
                self._socket.tear()
            self._awaited.clear()
            raise

    def _opened(self) -> Socket:
        if self._socket is None:
            raise StreamClosed(MEANINGS[1000], 1000)
        return self._socket
