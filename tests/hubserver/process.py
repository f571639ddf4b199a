"""The server as a test sees it: a process that is started, asked, and ended."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from hubserver.hub import Settings
from hubserver.people import TOKENS

SWITCHED_OFF = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
)
"""Variables that would lead a client elsewhere."""


class HubServer:
    """A running server. Use it in a ``with`` block, or call `close`.

    Args:
        state: A folder of its own, for contents.
        options: Further options of ``python -m hubserver``.
    """

    def __init__(self, state: Path, options: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "hubserver", "--state", str(state), *options]
        environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
        environment |= {"HF_HOME": str(state / "home"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"hubserver did not start: exit code {self.process.returncode}")
        where = json.loads(line)
        self.state = state
        self.url: str = where["url"]
        self.cdn_url: str = where["cdn_url"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()

    def ask(self, method: str, path: str, document: object = None) -> Any:  # noqa: ANN401
        """Ask the server something that only tests ask."""
        data = json.dumps(document).encode() if document is not None else None
        request = urllib.request.Request(f"{self.url}/_test/{path}", data=data, method=method)  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return json.load(answer)

    def reset(self, **settings: object) -> None:
        """Forget everything; settings (`hub.Settings`) as they are at first, but for these."""
        self.ask("POST", "reset")
        self.ask("POST", "settings", asdict(Settings()) | settings)

    def log(self) -> list[dict[str, Any]]:
        """All requests since the start, or since `clear_log`; see `request_log.Record`."""
        found: list[dict[str, Any]] = self.ask("GET", "log")
        return found

    def clear_log(self) -> None:
        """Start a new log."""
        self.ask("DELETE", "log")

    def fail(self, *faults: Mapping[str, object]) -> None:
        """Let requests fail (`faults`); replaces what was set before."""
        self.ask("POST", "faults", {"faults": list(faults)})

    def fail_at_random(self, seed: int, requests: int, **choice: object) -> dict[str, Any]:
        """Let a random one of the next ``requests`` requests fail; gives the fault.

        ``choice`` may have ``kinds`` and ``match``.
        """
        document = {"seed": seed, "requests": requests} | choice
        fault: dict[str, Any] = self.ask("POST", "faults", document)[0]
        return fault

    def faults(self) -> list[dict[str, Any]]:
        """The faults, and how often each has happened (``used``)."""
        found: list[dict[str, Any]] = self.ask("GET", "faults")
        return found

    def put_repo(
        self,
        repo_id: str,
        *,
        folder: Path | None = None,
        files: Mapping[str, bytes] | None = None,
        **about: object,
    ) -> dict[str, Any]:
        """Create a repository, or commit to it, as nobody could through the API.

        ``about``: ``private``, ``gated``, ``disabled``, ``accepted`` (names), ``type``, ``branch``,
        ``message``. Gives what `repo` gives.
        """
        document: dict[str, object] = {"id": repo_id, **about}
        if folder is not None:
            document["folder"] = str(folder)
        if files is not None:
            document["files"] = {
                name: base64.b64encode(data).decode() for name, data in files.items()
            }
        found: dict[str, Any] = self.ask("POST", "repo", document)
        return found

    def repo(self, repo_id: str, kind: str = "model") -> dict[str, Any]:
        """All of a repository: ``sha``, ``refs``, ``commits`` (each with its ``files``)."""
        query = urlencode({"id": repo_id, "type": kind})
        found: dict[str, Any] = self.ask("GET", f"repo?{query}")
        return found

    def files(self, repo_id: str, revision: str | None = None) -> dict[str, dict[str, Any]]:
        """The files of a commit (of ``main``): path to ``sha256``, ``size``, ``oid``, ``lfs``."""
        found = self.repo(repo_id)
        files: dict[str, dict[str, Any]] = found["commits"][revision or found["sha"]]["files"]
        return files

    def environment(
        self, home: Path, user: str | None = "alice", *, xet: bool = False, **more: str
    ) -> dict[str, str]:
        """The environment of a client of this server; it has to be there before its import.

        Args:
            home: A folder for its cache; one for each test and each user.
            user: A name in `people.TOKENS`, or a token, or None.
            xet: Whether the client may use Xet.
            more: Further variables.
        """
        environment = {key: text for key, text in os.environ.items() if key not in SWITCHED_OFF}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        environment.pop("HF_TOKEN", None)
        if user is not None:
            environment["HF_TOKEN"] = TOKENS.get(user, user)
        return environment | more
