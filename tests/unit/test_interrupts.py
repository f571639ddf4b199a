"""An interrupt ends a command with its own exit code, wherever it strikes."""

from __future__ import annotations

import signal

import click
import pytest

from sparsedelta.cli import run


@pytest.fixture(autouse=True)
def _handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets handlers of signals for its whole process: not for this one."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def ended(error: BaseException, context: BaseException | None) -> int | str | None:
    """The exit code of a command that ends with an error raised while another was handled."""

    def fail() -> None:
        try:
            if context is not None:
                raise context
        finally:
            raise error

    with pytest.raises(SystemExit) as caught:
        run(click.Command("work", callback=fail), "work", [])
    return caught.value.code


def test_an_interrupt_that_a_lock_turned_into_an_error_is_an_interrupt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = RuntimeError("cannot release un-acquired lock")
    assert ended(lock, KeyboardInterrupt()) == 130
    assert "interrupted; nothing was left behind" in capsys.readouterr().err


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="lock"):
        ended(RuntimeError("lock"), None)
    with pytest.raises(RuntimeError, match="lock"):
        ended(RuntimeError("lock"), ValueError())
