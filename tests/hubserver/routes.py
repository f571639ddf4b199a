"""From a request to the handler that answers it."""

from __future__ import annotations

import traceback

from hubserver import commit_routes, discussions, file_routes, lfs, ref_routes, repo_routes, xet
from hubserver.calls import Call, Handler
from hubserver.errors import HubError
from hubserver.hub import Hub, Moved
from hubserver.messages import Answer, Request, of_error

OF_A_REPO: dict[tuple[str, str], Handler] = {
    **repo_routes.OF_A_REPO,
    **file_routes.OF_A_REPO,
    **ref_routes.OF_A_REPO,
    **commit_routes.OF_A_REPO,
    **discussions.OF_A_REPO,
    **xet.OF_A_REPO,
}

VERBS = {verb for _, verb in OF_A_REPO if verb}

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}


def respond(hub: Hub, request: Request) -> Answer:
    """Answer a request; one at a time, as everything that they share is in memory."""
    with hub.lock:
        try:
            return routed(hub, request)
        except Moved as moved:
            location = request.target.replace(moved.old, moved.new, 1)
            return Answer(307, {"Location": f"{hub.url}{location}"})
        except HubError as error:
            return of_error(error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours is seen, and answered
            traceback.print_exc()
            return of_error(HubError(500, f"hubserver: {type(error).__name__}: {error}"))


def routed(hub: Hub, request: Request) -> Answer:
    """Answer a request, or refuse it.

    Raises:
        HubError: There is nothing here, or not for the caller.
    """
    call = Call(hub, request)
    if request.origin == "cdn":
        return file_routes.from_cdn(call)
    if request.parts[0] == "_lfs":
        return lfs.upload(call)
    call.caller = hub.people.caller(request.headers.get("Authorization"))
    if request.parts[0] == "api":
        return api(call, request.parts[1:])
    return page_of_site(call, request.parts)


def split_id(parts: list[str], ends: set[str]) -> tuple[str, list[str]]:
    """The id at the start of a path, of one part or two, and what follows it."""
    if len(parts) > 1 and parts[1] not in ends:
        return "/".join(parts[:2]), parts[2:]
    return parts[0], parts[1:]


def api(call: Call, parts: list[str]) -> Answer:
    """Answer what is asked under ``/api/``."""
    method = call.request.method
    fixed = repo_routes.FIXED.get((method, "/".join(parts)))
    if fixed is not None:
        return fixed(call)
    if parts[0] == "resolve-cache" and method in {"GET", "HEAD"} and len(parts) > 3:
        call.kind = KINDS.get(parts[1], "model")
        call.repo_id, call.rest = "/".join(parts[2:4]), parts[4:]
        return file_routes.resolve(call)
    if parts[0] not in KINDS:
        raise HubError(404, "Not Found")
    call.kind = KINDS[parts[0]]
    if len(parts) == 1 and method == "GET":
        return repo_routes.listed(call)
    call.repo_id, rest = split_id(parts[1:], VERBS)
    handler = OF_A_REPO.get((method, rest[0] if rest else ""))
    if handler is None:
        raise HubError(404, "Not Found")
    call.rest = rest[1:]
    return handler(call)


def page_of_site(call: Call, parts: list[str]) -> Answer:
    """Answer what is asked outside of ``/api/``: files, and LFS."""
    if parts[0] in KINDS:
        call.kind = KINDS[parts[0]]
        parts = parts[1:]
    if parts[-4:-1] == ["info", "lfs", "objects"] and parts[-5].endswith(".git"):
        call.repo_id = "/".join(parts[:-4]).removesuffix(".git")
        verb = parts[-1]
    else:
        call.repo_id, rest = split_id(parts, {"resolve"})
        verb = rest[0] if rest else ""
        call.rest = rest[1:]
    handlers: dict[tuple[str, str], Handler] = {
        ("POST", "batch"): lfs.batch,
        ("POST", "verify"): lfs.verify,
        ("GET", "resolve"): file_routes.resolve,
        ("HEAD", "resolve"): file_routes.resolve,
    }
    handler = handlers.get((call.request.method, verb))
    if handler is None:
        raise HubError(404, "Not Found")
    return handler(call)
