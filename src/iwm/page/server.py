"""`iwm app`: serve the page until Ctrl-C, on this machine alone unless asked otherwise.

Starlette and uvicorn are the extra `iwm[app]`; nothing else of the package needs them.
"""

import contextlib
import importlib.util
import socket
from collections.abc import Iterator

from iwm.page.answers import LOCAL, Answers
from iwm.page.worker import Worker
from iwm.run_folder import open_world
from iwm.runtime.console import console
from iwm.runtime.devices import Session, returned_memory
from iwm.runtime.errors import UserError
from iwm.verbs.app import App

CONNECTIONS = 128
"""Most connections at once."""


def app(o: App) -> None:
    """Serve the page until Ctrl-C.

    Raises UserError without the extra's packages, for a RUN without predictor, images that are none, and a port that
    is taken.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"iwm app needs {' and '.join(missing)}; install: pip install {' '.join(missing)}.")
    import uvicorn

    from iwm.page import routes

    with Session.open(o.speed) as session, returned_memory(), _listening(o.host, o.port) as listener:
        with session.autocast():
            answers = Answers(open_world(o.run, session), o)
        worker = Worker(session, answers.prepare)
        settings = uvicorn.Config(
            routes.build(answers, worker, o.host),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
        )
        _say_where(o, listener.getsockname()[1], answers)
        worker.work_on()
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            worker.close()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises UserError when that is not possible there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Nothing can listen at {host}:{port} ({reason}); give another --port or --host.") from None
    with listener:
        yield listener


def _say_where(o: App, port: int, answers: Answers) -> None:
    name = f"[{o.host}]" if ":" in o.host else o.host
    console.print(f"The page is at http://{name}:{port} (Ctrl-C ends it).", soft_wrap=True)
    if o.host not in LOCAL:
        console.print(
            f"[yellow]Everyone who reaches {name} can use it and see the images of {answers.folder.name}: there is no "
            "password.",
            soft_wrap=True,
        )
    if not answers.model.decodes:
        console.print(f"To see the imagined picture, fit a decoder first: iwm decoder {o.run}")
