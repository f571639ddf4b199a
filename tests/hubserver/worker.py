"""The other side of `client`: a process that calls functions, one after the other.

It reads a line of JSON for each call on standard input and answers it with another on what was its
standard output. ``HUBSERVER_PAUSES`` is what pauses are multiplied by: clients wait seconds between
tries of a request, and a test has no time for that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType


def shorten_pauses(factor: float) -> None:
    """Let everything in this process sleep less."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(float(seconds) * factor)


def module(path: str) -> ModuleType:
    """The module in a file, loaded once."""
    name = f"called_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(path).parent))
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def told(error: BaseException) -> dict[str, object]:
    """An exception as plain data."""
    response = getattr(error, "response", None)
    return {
        "type": type(error).__name__,
        "bases": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "status": getattr(response, "status_code", None),
        "trace": "".join(traceback.format_exception(error)),
    }


def call(document: dict[str, object]) -> dict[str, object]:
    """Call a function; gives its result or its exception, and what it printed."""
    printed, answer = io.StringIO(), dict[str, object]()
    with contextlib.redirect_stdout(printed):
        try:
            function = getattr(module(str(document["file"])), str(document["function"]))
            answer["result"] = function(**document["arguments"])  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is told
            answer["error"] = told(error)
    return answer | {"printed": printed.getvalue()}


def main() -> None:
    """Answer calls until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed past Python must not end up among the answers
    if "HUBSERVER_PAUSES" in os.environ:
        shorten_pauses(float(os.environ["HUBSERVER_PAUSES"]))
    home = Path.cwd()
    for line in sys.stdin:
        answers.write(json.dumps(call(json.loads(line))) + "\n")
        answers.flush()
        os.chdir(home)  # where a function went to will not be there for long


if __name__ == "__main__":
    main()
