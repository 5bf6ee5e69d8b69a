"""The operators' command: headstart-server."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, get_args

from app.logs import configure_logging
from app.settings import InvalidSetting, Settings, table

if TYPE_CHECKING:
    from app.database import Database
    from app.supervisor import Child

SLOTS = ("runs", "adaptations", "evaluations")
"""Kinds of work, each with a worker process of its own: the keys of :data:`app.worker.SLOTS`, slow to import."""


class CommandFailed(Exception):
    """The command cannot go on; the message is for the operator."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; by default those of the process.

    Returns:
        The exit code: 0, or 1 where it failed and said why on stderr.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(Settings.from_environment(os.environ), arguments)
    except (CommandFailed, InvalidSetting) as error:
        print(f"headstart-server: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headstart-server",
        description="The Headstart service.",
        epilog=f"Settings are environment variables (name, default, meaning):\n\n{table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    supervised = argparse.ArgumentParser(add_help=False)
    supervised.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    http = argparse.ArgumentParser(add_help=False)
    http.add_argument("--access-log", action="store_true", help="log every request")

    serve = commands.add_parser("serve", parents=[http], help="API and workers, all in one")
    serve.set_defaults(run=_serve)
    api = commands.add_parser("api", parents=[http, supervised], help="the HTTP API alone")
    api.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    api.set_defaults(run=_api)
    worker = commands.add_parser("worker", parents=[supervised], help="workers alone")
    worker.add_argument("--slot", choices=SLOTS, help="only this kind of work, in this very process; default: all")
    worker.set_defaults(run=_worker)
    migrate = commands.add_parser("migrate", help="bring the database to this version's schema")
    migrate.set_defaults(run=_migrate)
    openapi = commands.add_parser("openapi", help="print the OpenAPI document of the HTTP API")
    openapi.set_defaults(run=_openapi)

    keys = commands.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="command")
    create = keys.add_parser("create", help="make a key and print it, this once")
    create.add_argument("name", help="what histories show of its holder")
    create.add_argument("--scope", action="append", help="such as tasks:write; repeat for more; default: admin")
    create.add_argument("--days", type=float, help="days until it expires; default: never")
    create.set_defaults(run=_create_key)
    keys.add_parser("list", help="all keys, never their secrets").set_defaults(run=_list_keys)
    revoke = keys.add_parser("revoke", help="end a key")
    revoke.add_argument("id")
    revoke.set_defaults(run=_revoke_key)
    return parser


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.supervisor import Child, Supervisor

    configure_logging("serve")
    listeners = _listen(settings, settings.api_processes)
    _announce(settings, listeners[0])
    flags = ["--access-log"] if arguments.access_log else []
    apis = []
    for i, listener in enumerate(listeners, start=1):
        name, descriptor = "api" if len(listeners) == 1 else f"api-{i}", listener.fileno()
        apis.append(Child(name, ["api", "--descriptor", str(descriptor), *flags], descriptors=[descriptor]))
    return Supervisor([*apis, *_workers()]).run()


def _api(settings: Settings, arguments: argparse.Namespace) -> int:
    configure_logging("api")
    if arguments.supervised:
        from app.supervisor import end_with_supervisor

        end_with_supervisor()
    if arguments.descriptor is not None:
        listener = socket.socket(fileno=arguments.descriptor)
    else:
        [listener] = _listen(settings)
        _announce(settings, listener)
    return _run_api(settings, listener, access_log=arguments.access_log)


def _run_api(settings: Settings, listener: socket.socket, *, access_log: bool) -> int:
    with _collector_paused():
        import uvicorn

        from app.heads import HEAD_S, Heads
        from app.main import create_app
        from app.streaming import IDLE_S, MAX_MESSAGE_BYTES

    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=access_log,
        server_header=False,
        # Only the log asks whom a proxy speaks for.
        proxy_headers=access_log,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        # A small message costs more to compress than to send, and a large one may be larger than it seems.
        ws_per_message_deflate=False,
        # A client that reads when it acts, and not between, answers pings late; one that is gone is idle, too.
        ws_ping_timeout=IDLE_S,
        # Event streams have no end of their own.
        timeout_graceful_shutdown=3,
        timeout_notify=int(HEAD_S),
    )
    server = uvicorn.Server(config)
    config.callback_notify = Heads(server).look
    # When it has ended in order it raises the signal again, for whoever handled it before: nobody, not the default.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What was made so far stays; the collector need not look at it again.
    gc.freeze()
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _worker(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.supervisor import Supervisor, end_with_supervisor

    if arguments.slot is None:
        configure_logging("worker")
        return Supervisor(_workers()).run()
    configure_logging(f"worker-{arguments.slot}")
    if arguments.supervised:
        end_with_supervisor()
    with _collector_paused():
        from app.worker import run_worker

    run_worker(settings, arguments.slot)
    return 0


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Import without the garbage collector, which finds nothing then and would take a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _migrate(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.migrating import migrate

    del arguments
    configure_logging("migrate")
    migrate(settings.database_url)
    return 0


def _openapi(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.documentation import render
    from app.main import create_app

    del arguments
    print(render(create_app(settings).openapi()), end="")
    return 0


def _create_key(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.auth import OPERATOR, PermissionScope
    from app.keys import service

    scopes = arguments.scope or ["admin"]
    if unknown := set(scopes) - set(get_args(PermissionScope)):
        known = ", ".join(get_args(PermissionScope))
        raise CommandFailed(f"unknown scope {min(unknown)!r}; the scopes are {known}")
    expires_at = None if arguments.days is None else datetime.now(UTC) + timedelta(days=arguments.days)
    with _open(settings) as database, database.transaction() as session:
        key, token = service.create_key(session, OPERATOR, arguments.name, scopes, expires_at)
    print(f"{key.id}  {key.name}  {' '.join(key.scopes)}", file=sys.stderr)
    print(token)
    return 0


def _list_keys(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.keys import service
    from app.pagination import Page

    del arguments
    page: Page | None = Page(1000)
    with _open(settings) as database:
        while page is not None:
            with database.snapshot() as session:
                keys, token = service.list_keys(session, page)
            for key in keys:
                end = f"until {key.expires_at:%Y-%m-%d %H:%M}Z" if key.expires_at else "stands"
                print(f"{key.id}  {key.name}  {' '.join(key.scopes)}  {'revoked' if key.revoked_at else end}")
            page = Page(1000, token) if token else None
    return 0


def _revoke_key(settings: Settings, arguments: argparse.Namespace) -> int:
    from app.auth import OPERATOR
    from app.errors import NotFound
    from app.keys import service

    try:
        with _open(settings) as database, database.transaction() as session:
            service.revoke_key(session, OPERATOR, arguments.id)
    except NotFound as error:
        raise CommandFailed(error.detail) from error
    return 0


def _workers() -> list[Child]:
    from app.supervisor import WORKER_ENVIRONMENT, Child

    return [Child(f"worker-{slot}", ["worker", "--slot", slot], WORKER_ENVIRONMENT) for slot in SLOTS]


@contextlib.contextmanager
def _open(settings: Settings) -> Iterator[Database]:
    """The database, migrated, for a command that is over soon."""
    from app.database import Database
    from app.migrating import migrate

    migrate(settings.database_url)
    database = Database(settings.database_url)
    try:
        yield database
    finally:
        database.close()


def _listen(settings: Settings, processes: int = 1) -> list[socket.socket]:
    """A socket for each API process; a supervisor keeps them, so that whoever calls a crashed API just waits.

    Of one port they all are; the system deals connections out among them. From one socket that all accept from, whoever
    wakes first would take most.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listen = partial(socket.create_server, family=family, backlog=2048)
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        alone = listen((settings.host, settings.port))
        if processes == 1:
            return [alone]
        # Nobody else has the port, which sockets that share it would not notice.
        address = alone.getsockname()[:2]
        alone.close()
        return [listen(address, reuse_port=True) for _ in range(processes)]
    except FileExistsError as error:
        raise CommandFailed(f"{settings.data} is not a folder (HEADSTART_DATA)") from error
    except OSError as error:
        if error.filename is not None:
            raise CommandFailed(f"{error.filename}: {error.strerror} (HEADSTART_DATA)") from error
        where = f"{settings.host}:{settings.port}"
        reason = f"{error.strerror} (HEADSTART_HOST, HEADSTART_PORT)"
        raise CommandFailed(f"cannot listen on {where}: {reason}") from error


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    print(f"Headstart listens on http://{shown}:{port}", flush=True)
    print(f"The administrator's key is in {settings.admin_key_file}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
