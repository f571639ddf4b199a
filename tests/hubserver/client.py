"""A client in a process of its own, with the environment that it needs before its first import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class ClientError(Exception):
    """What a function of the client raised.

    Args:
        about: What `worker.told` tells of the exception.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__(f"{about['type']}: {about['message']}")
        self.type: str = about["type"]
        self.bases: list[str] = about["bases"]
        self.message: str = about["message"]
        self.status: int | None = about["status"]
        self.trace: str = about["trace"]


class Client:
    """A process that calls functions of test modules. Use it in a ``with`` block.

    Args:
        environment: Its environment, as of `HubServer.environment`.
        errors: A file for its standard error.
        pauses: What pauses between tries are multiplied by.
    """

    def __init__(
        self, environment: Mapping[str, str], errors: Path, *, pauses: float = 0.002
    ) -> None:
        paths = f"{ROOT}:{ROOT / 'tests'}"
        environment = {**environment, "PYTHONPATH": paths, "HUBSERVER_PAUSES": str(pauses)}
        self.home = Path(environment["HF_HOME"])
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hubserver.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
                cwd=errors.parent,
            )
        self.printed = ""

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
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def __call__(self, function: Callable[..., Any], **arguments: object) -> Any:  # noqa: ANN401
        """Call a function of a module there; arguments and result are plain data.

        Raises:
            ClientError: The function raised something.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        document = {
            "file": function.__code__.co_filename,
            "function": function.__name__,
            "arguments": arguments,
        }
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended: {self.errors.read_text()}")
        answer = json.loads(line)
        self.printed = answer["printed"]
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]
