"""Every bound of the format and of its readers, in one place (spec section 9.1).

A number that stands here is checked before memory is taken or a loop is run.
"""

from typing import Final

FORMAT_VERSION: Final = "1.1"
"""What this release reads."""

PORTABLE_VERSION: Final = "1.0"
"""What defines all that a portable delta uses."""

COMPACT_VERSION: Final = "1.1"
"""What defines the profile ``compact``."""

FORMAT_MAJOR: Final = 1

MAX_HEADER_BYTES: Final = 65_528
"""JSON header of a delta: with its length word, one range read of 64 KiB."""

MAX_CHECKPOINT_HEADER_BYTES: Final = 100_000_000
"""JSON header of a checkpoint file, as safetensors has it."""

MAX_MANIFEST_BYTES: Final = 1 << 26
MAX_INDEX_BYTES: Final = 100_000_000
"""Text of a ``model.safetensors.index.json``."""

MAX_JSON_DEPTH: Final = 8
MAX_JSON_INTEGER: Final = (1 << 53) - 1
MAX_NAME_BYTES: Final = 1024
MAX_NAMES: Final = 1 << 20
MAX_FILE_NAME_BYTES: Final = 255
MAX_BLOBS: Final = 1 << 16
MAX_BLOB_BYTES: Final = 1 << 27
MAX_BLOBS_BYTES: Final = 1 << 30
"""All blobs of a delta together, decoded."""

MAX_SET_PARTS: Final = 1 << 16
MAX_DIMENSIONS: Final = 64
MAX_WORDS: Final = 1 << 48

MIN_BLOCK_LOG2: Final = 8
MAX_BLOCK_LOG2: Final = 24
SEGMENT_WORDS: Final = 1 << 22

MAX_ZSTD_WINDOW_BYTES: Final = 1 << 27
WORK_BUDGET_BYTES: Final = 1 << 36
"""Decoded bytes that a reader without a base is willing to produce for one delta."""

MEMORY_BUDGET_BYTES: Final = 1 << 33
"""Bytes of entries (8 of index and a word each) that reading a delta into memory may take."""

MAX_PROBLEMS: Final = 100
"""Problems of one kind that are told of a delta: a stranger's may have a million."""

MAX_COMPANION_BYTES: Final = 1 << 26
"""Size up to which a file beside the weights (config, tokenizer) is copied along, or carried."""
