"""Serve a trained model over HTTP: `python -m multitask.serve --run RUN`, or the option `serve`."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minbert.command import explain, guarded
from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import Config, Serving
from multitask.predictor import Predictor
from multitask.runs import load_run, set_up
from multitask.stopping import Stopped, terminable

if TYPE_CHECKING:
    import uvicorn

MOST_CONNECTIONS = 1000
WARM_WORDS = 40  # enough for the matrix libraries to be compared: see minbert/products.py
STOP_SECONDS = 60  # seconds that a stop waits for requests whose bodies are still to come


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Return the exit status: 0, or after an error that of
    `minbert.command.explain`."""
    with guarded():
        try:
            config = resolve(["serve", *(sys.argv[1:] if argv is None else argv)])
            assert isinstance(config, Config)
            with terminable():
                run_server(config)
            return 0
        except Stopped as stopped:
            return 128 + stopped.number
        except (Exception, KeyboardInterrupt) as error:
            return explain(error)


def run_server(config: Config) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then finish those that were taken."""
    limits, run = config.serving, Path(config.runs.run[0])
    if limits.queue < limits.max_rows:
        raise InputError(f"--queue {limits.queue} must hold a request of --max-rows {limits.max_rows}")
    model = load_run(run, config, set_up(config))
    warm_up(model)
    server = server_of(model, run.resolve().name, limits)
    with listen(limits) as listener:
        address = address_of(listener)
        print(f"serving {run} at {address}, described at {address}/docs; Ctrl-C stops", flush=True)
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            print("warning: whoever reaches this address may use it, without a password", flush=True)
        with suppress(Stopped, KeyboardInterrupt):  # uvicorn hands the signal on once it has stopped
            server.run(sockets=[listener])
    print("stopped; every request that was taken has been answered")


def server_of(model: Predictor, name: str, limits: Serving) -> uvicorn.Server:
    """Return a server that answers with this model. Raises InputError if the extra is not installed."""
    try:
        import uvicorn

        from multitask.serving.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f'no server without {error.name}: pip install "minbert[serve]"') from None
    options = uvicorn.Config(
        create_app(model, name, limits),
        log_config=None,
        access_log=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(options)


def warm_up(model: Predictor) -> None:
    """Predict once for each task: a model that cannot is found now, and the first request is quick."""
    for name, task in model.tasks.items():
        model.logits(name, [("warm " * WARM_WORDS,) * len(task.texts)])


def listen(limits: Serving) -> socket.socket:
    """Return a socket that listens on the address. Raises InputError if it cannot."""
    family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
    try:
        listener = socket.create_server((limits.host, limits.port), family=family)
    except OSError as error:
        place, reason = f"{limits.host}:{limits.port}", str(error.strerror).partition(" (while")[0]
        raise InputError(f"{place}: cannot listen ({reason}); choose another --port or --host") from None
    # Connections inherit it. Without it, the body of an answer, sent after its head, waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
