"""``python -m hubserver --state DIR``: start the server; print where it is as a line of JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from functools import partial
from pathlib import Path

from hubserver import control
from hubserver.errors import HubError
from hubserver.faults import Faults
from hubserver.hub import Hub, Settings
from hubserver.messages import Answer, Request, of_error
from hubserver.request_log import RequestLog
from hubserver.routes import respond
from hubserver.wire import Server


def dispatch(hub: Hub, faults: Faults, log: RequestLog, request: Request) -> Answer:
    """What a test asks goes to `control`, everything else is the Hub's."""
    if request.parts[0] != "_test":
        return respond(hub, request)
    try:
        return control.answer(hub, faults, log, request)
    except HubError as error:
        return of_error(error)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        return of_error(HubError(400, f"{type(error).__name__}: {error}"))


def main() -> None:
    """Serve until standard input ends, which it does when whoever started this is gone."""
    parser = argparse.ArgumentParser(prog="hubserver")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--state", type=Path, required=True, help="a folder for contents")
    parser.add_argument("--xet", action="store_true", help="large files go through Xet")
    parser.add_argument("--cdn", action="store_true", help="large files are at another origin")
    parser.add_argument("--resolve-cache", action="store_true", help="small files are elsewhere")
    parser.add_argument("--multipart", type=int, default=0, help="bytes of a part of an upload")
    parser.add_argument("--page-size", type=int, default=1000, help="entries in a page")
    options = parser.parse_args()
    settings = Settings(
        xet=options.xet,
        cdn=options.cdn,
        resolve_cache=options.resolve_cache,
        multipart=options.multipart,
        page_size=options.page_size,
    )
    options.state.mkdir(parents=True, exist_ok=True)
    hub = Hub(options.state.resolve(), settings=settings)
    faults, log = Faults(), RequestLog()
    answer = partial(dispatch, hub, faults, log)
    servers = [
        Server(options.port, "hub", answer, faults, log),
        Server(0, "cdn", answer, faults, log),
    ]
    hub.url, hub.cdn_url = (server.url for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({"url": hub.url, "cdn_url": hub.cdn_url}) + "\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()


main()
