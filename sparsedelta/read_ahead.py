"""Reading ahead in a remote delta: blocks that follow one another come in a few large requests."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from sparsedelta.locations import Url
from sparsedelta.remote import RemoteFile

_MAX_WINDOW_BYTES: Final = 1 << 20
"""What is read ahead at most; longer reads go past all of this."""

_PIECES: Final = 4
"""Pieces that are remembered: one for each part of a tensor that is followed."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A run of the file that came in one request, or is on its way.

    Attributes:
        start: Its first byte.
        stop: The byte behind its last.
        unread: How many of its bytes nobody has read yet.
        data: Its bytes; None once all were read: who reads on needs no more than the place.
    """

    start: int
    stop: int
    unread: int
    data: Future[bytes] | None


class ReadAhead:
    """A remote file whose short reads are grouped, if they follow one another.

    A read that begins where what was asked for before ends asks for twice as much; any other asks
    for exactly what it needs. So a whole delta is read in a few requests, and a block of it alone.

    Args:
        file: The file; closed with this.

    Attributes:
        location: Where it lies.
        size: Its size in bytes.
    """

    def __init__(self, file: RemoteFile) -> None:
        self.location: Url = file.location
        self.size = file.size
        self._file = file
        self._lock = threading.Lock()
        self._pieces: deque[_Piece] = deque(maxlen=_PIECES)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; raises as :meth:`RemoteFile.read_into`."""
        stop = offset + len(buffer)
        if len(buffer) >= _MAX_WINDOW_BYTES or stop > self.size:
            self._file.read_into(buffer, offset)
            return
        position = offset
        while position < stop:
            piece, data, is_mine = self._piece(position, stop)
            if is_mine:
                self._fill(piece, data)
            found = data.result()[position - piece.start : stop - piece.start]
            buffer[position - offset : position - offset + len(found)] = found
            position += len(found)
            with self._lock:
                piece.unread -= len(found)
                if piece.unread <= 0:
                    piece.data = None

    def _piece(self, position: int, stop: int) -> tuple[_Piece, Future[bytes], bool]:
        """The piece that holds ``position``, its data, and whether the caller has to fetch it."""
        with self._lock:
            for piece in self._pieces:
                data = piece.data
                if data is not None and piece.start <= position < piece.stop:
                    return piece, data, False
            before = [p for p in self._pieces if p.stop == position]
            window = 2 * max((p.stop - p.start for p in before), default=0)
            # Not over what another thread, which was faster, has asked for.
            last = min((p.start for p in self._pieces if p.start >= stop), default=self.size)
            end = min(max(stop, position + min(window, _MAX_WINDOW_BYTES)), last)
            data = Future()
            piece = _Piece(position, end, end - position, data)
            for each in before:
                self._pieces.remove(each)
            self._pieces.append(piece)
            return piece, data, True

    def _fill(self, piece: _Piece, data: Future[bytes]) -> None:
        try:
            data.set_result(self._file.read(piece.start, piece.stop - piece.start))
        except BaseException as error:
            with self._lock:  # the next reader asks again
                if piece in self._pieces:
                    self._pieces.remove(piece)
            data.set_exception(error)
            raise

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises as :meth:`read_into`."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def identity(self) -> list[Any]:
        """What would be other, as far as can be told, if it were another file; as JSON."""
        return self._file.identity()

    def check_unchanged(self) -> None:
        """Insist that the file is the one that was opened; see :class:`RemoteFile`."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
