"""All invalid vectors, in the order of the rules."""

from __future__ import annotations

from collections.abc import Iterator

from invalid_beside import invalid_beside
from invalid_header import invalid_header, invalid_metadata
from invalid_layout import invalid_headers, invalid_owners
from invalid_manifest import invalid_manifest
from invalid_parts import invalid_parts
from invalid_ranked import invalid_ranked
from invalid_records import invalid_records
from invalid_sets import invalid_in_sets, invalid_sets
from invalid_streams import (
    invalid_dense,
    invalid_entries,
    invalid_frames,
    invalid_index,
    invalid_new_index,
    invalid_value,
)
from invalid_tables import invalid_relations, invalid_tables
from vector_samples import Invalid

GROUPS = (
    *(invalid_header, invalid_metadata, invalid_manifest, invalid_records, invalid_parts),
    *(
        invalid_beside,
        invalid_headers,
        invalid_owners,
        invalid_tables,
        invalid_relations,
        invalid_frames,
        invalid_index,
    ),
    *(invalid_new_index, invalid_dense, invalid_value, invalid_entries),
    *(invalid_sets, invalid_in_sets, invalid_ranked),
)


def invalid() -> Iterator[Invalid]:
    """All invalid vectors."""
    for group in GROUPS:
        yield from group()
