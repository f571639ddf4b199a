"""Opening deltas, wherever they lie: one on the Hub is brought here first if all of it is read."""

from __future__ import annotations

from sparsedelta.container import open_file
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.hub.at_hand import bring, delta_location
from sparsedelta.hub.references import is_hub
from sparsedelta.locations import Location, LocationLike, as_location


def open_delta(delta: LocationLike | DeltaReader, *, whole: bool = True) -> DeltaReader:
    """A reader of ``delta``, or ``delta`` itself if it is one.

    Args:
        delta: The delta.
        whole: Whether all of it will be read: one on the Hub is then brought into the client's
            cache, unless its location says ``stream``. If not, it is read by ranges.

    Raises:
        FormatError: A rule is broken.
        CheckpointError: The file cannot be read.
    """
    if isinstance(delta, DeltaReader):
        return delta
    location = as_location(delta)
    if whole and is_hub(location):
        _bring(location)
    return DeltaReader(location, ahead=whole)


def _bring(location: Location) -> None:
    root = delta_location(location)
    bring([root])
    with open_file(root) as file:
        place = file.manifest.place
        bring([file.path.parent / part.name for part in place.parts] if place else [])
