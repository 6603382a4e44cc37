"""The bytes that ship with Python, cut into batches."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from parallelizer.zoo import data


def test_the_corpus_is_english_text_of_some_size() -> None:
    text = data.corpus()
    assert text.dtype == np.uint8
    assert len(text) > 300_000
    assert text.tobytes().decode().count(" the ") > 2_000


def test_split_cuts_once() -> None:
    text = data.corpus()
    train, validation = data.split(text, 0.1)
    assert np.array_equal(np.concatenate([train, validation]), text)
    assert len(validation) == round(len(text) * 0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_split_refuses_an_empty_half(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        data.split(data.corpus(), fraction)


def test_targets_are_the_tokens_one_byte_on() -> None:
    text = np.arange(200, dtype=np.uint8)
    batch = data.batch_at(text, batch=5, sequence=16, seed=3)
    assert batch["tokens"].shape == batch["targets"].shape == (5, 16)
    assert batch["tokens"].dtype == batch["targets"].dtype == np.int32
    assert np.array_equal(batch["targets"], batch["tokens"] + 1)


def test_batches_repeat_for_a_seed_and_resume_anywhere() -> None:
    text = data.corpus()
    first = list(islice(data.batches(text, 4, 32, seed=1), 6))
    resumed = list(islice(data.batches(text, 4, 32, seed=1, start=3), 3))
    other = next(data.batches(text, 4, 32, seed=2))
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(first[3:], resumed, strict=True))
    assert not np.array_equal(first[0]["tokens"], first[1]["tokens"])
    assert not np.array_equal(first[0]["tokens"], other["tokens"])


def test_windows_reach_the_last_byte_and_no_further() -> None:
    text = np.arange(9, dtype=np.uint8)
    ends = {int(data.batch_at(text, 1, 4, index=i)["targets"][0, -1]) for i in range(200)}
    assert ends == {4, 5, 6, 7, 8}
    assert data.batch_at(text, 2, 8)["targets"].tolist() == [list(range(1, 9))] * 2


def test_a_text_too_short_for_one_window_is_refused() -> None:
    with pytest.raises(ValueError, match="more than the 8"):
        data.batch_at(np.arange(8, dtype=np.uint8), 1, 8)


def test_in_order_reads_every_full_batch_once() -> None:
    text = np.arange(100, dtype=np.uint8)
    seen = [row for batch in data.in_order(text, batch=2, sequence=16) for row in batch["tokens"]]
    assert np.concatenate(seen).tolist() == list(range(96))
