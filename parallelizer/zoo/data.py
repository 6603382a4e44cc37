"""Bytes to train on, without a download: the English text of the language reference that ships with Python.

The text is the same for everybody with the same Python version; about 465,000 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data import topics

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
TokenBatch = dict[str, npt.NDArray[np.int32]]


def corpus() -> Bytes:
    """The whole text as UTF-8, topics in alphabetical order."""
    text = "\n".join(topics.topics[name].strip() for name in sorted(topics.topics))
    return np.frombuffer(text.encode(), np.uint8)


def split(text: Bytes, validation_fraction: float = 0.1) -> tuple[Bytes, Bytes]:
    """The text cut once, the last `validation_fraction` of it for validation."""
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    cut = len(text) - round(len(text) * validation_fraction)
    return text[:cut], text[cut:]


def batch_at(text: Bytes, batch: int, sequence: int, *, seed: int = 0, index: int = 0) -> TokenBatch:
    """The batch number `index`: random windows as "tokens", and one byte on as "targets", both int32 [batch, sequence].

    It depends on its arguments alone, so that training can resume anywhere.
    """
    if len(text) <= sequence:
        raise ValueError(
            f"a window of {sequence} bytes and the next one needs more than the {len(text)} that there are"
        )
    starts = np.random.default_rng((seed, index)).integers(0, len(text) - sequence, batch)
    return _windows(text, starts, sequence)


def batches(text: Bytes, batch: int, sequence: int, *, seed: int = 0, start: int = 0) -> Iterator[TokenBatch]:
    """Batches without end, from number `start` on."""
    index = start
    while True:
        yield batch_at(text, batch, sequence, seed=seed, index=index)
        index += 1


def in_order(text: Bytes, batch: int, sequence: int) -> Iterator[TokenBatch]:
    """The text once, front to back, in full batches of windows that do not overlap: for validation."""
    starts = np.arange(0, len(text) - sequence, sequence)
    for first in range(0, len(starts) - batch + 1, batch):
        yield _windows(text, starts[first : first + batch], sequence)


def _windows(text: Bytes, starts: npt.NDArray[np.int64], sequence: int) -> TokenBatch:
    windows = text[starts[:, None] + np.arange(sequence + 1)].astype(np.int32)
    return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}
