"""The command line: ``sparsedelta COMMAND …``, also as ``python -m sparsedelta``.

Results go to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 verification mismatch, 4 a URL that leads to nothing, or to what may not be read, and whatever
the Hub refuses.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
from importlib import import_module
from typing import Final, NoReturn

import click

import sparsedelta
from sparsedelta.errors import SparseDeltaError, printable

_EXIT_INTERRUPTED: Final = 130
_OPEN_FILES: Final = 1 << 14
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_COMMANDS: Final = {
    "diff": "making",
    "recode": "recoding",
    "apply": "using",
    "revert": "using",
    "compose": "composing",
    "merge": "composing",
    "squash": "chains",
    "invert": "chains",
    "log": "chains",
    "which": "chains",
    "validate": "looking",
    "info": "looking",
    "fingerprint": "looking",
    "ls": "parts_of_deltas",
    "rows": "parts_of_deltas",
    "export": "making",
    "push": "hub",
    "pull": "hub",
    "search": "hub",
    "history": "hub",
}
"""The module of each command, in the order in which help lists them."""


class _Commands(click.Group):
    """Commands that are imported when they are asked for: a short one does not pay for the rest."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (as click calls it)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        home = _COMMANDS.get(cmd_name)
        if home is None:
            return None
        command = getattr(import_module(f"sparsedelta.commands.{home}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sparsedelta.__version__, prog_name="sparsedelta")
def cli() -> None:
    """Bit-exact, invertible sparse deltas between model checkpoints.

    A checkpoint is a .safetensors file, or a directory with one file or with shards and an index.
    What is only read may be a URL: s3://, gs://, https:// … (see docs/remote.md), or a repository
    on the Hub: NAMESPACE/NAME, NAMESPACE/NAME@REVISION (see docs/hub.md).
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors of ours are one message, no traceback."""
    run(cli, "sparsedelta", arguments)


def _interrupt_once() -> None:
    """Make Ctrl-C, a polite kill and a closed terminal one interrupt each, and only the first.

    Temporary files are removed on the way out; a second signal must not interrupt that. A signal
    that is ignored, as in a background job, stays so.
    """

    def interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, interrupt)


def _allow_many_files() -> None:
    """Use what the system grants: a checkpoint of hundreds of shards is open at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(command: click.Command, name: str, arguments: list[str] | None = None) -> None:
    """Run a click command; map our errors and an interrupt to exit codes."""
    _interrupt_once()
    _allow_many_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name must not break a terminal of another age
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SparseDeltaError as error:
        click.echo(f"error: {printable(error.message)}", err=True)
        if error.hint:
            click.echo(f"hint: {printable(error.hint)}", err=True)
        for note in getattr(error, "__notes__", ()):
            click.echo(f"note: {printable(note)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RuntimeError, KeyboardInterrupt) as error:
        interrupt = _interrupt_in(error)
        if interrupt is None:
            raise
        notes = getattr(interrupt, "__notes__", ["nothing was left behind"])
        click.echo(printable(f"interrupted; {'; '.join(notes)}"), err=True)
        sys.exit(_EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt_in(error: BaseException) -> BaseException | None:
    """The interrupt that an error is, or comes of."""
    if isinstance(error, click.Abort):
        return error.__cause__ or error  # click has put its own in the interrupt's place
    # In the middle of a wait for a thread, `threading` then fails to give back a lock that it does
    # not hold, and that is what arrives here.
    found = error if isinstance(error, KeyboardInterrupt) else error.__context__
    return found if isinstance(found, KeyboardInterrupt) else None
