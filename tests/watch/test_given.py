"""What a step is given, in all its forms, compared with CTC's loss itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.core.errors import StabilityError
from stability.watch.given import Given, joined, read_given

B, T, C = 40, 8, 5


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, lengths, padded labels and their counts. Some targets are infeasible, some empty."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 3, (B, 6), generator=generator)
    counts, lengths = torch.randint(0, 7, (B,), generator=generator), torch.randint(1, T + 1, (B,), generator=generator)
    counts[0], lengths[0] = 6, T  # the longest labels and frames
    return torch.randn(B, T, C, generator=generator), lengths, labels, counts


def utterances(given: Given, check: str) -> list[int]:
    mask = given.faulty[check]
    return [] if mask is None else np.flatnonzero(mask).tolist()


def test_all_forms_of_labels_and_lengths_are_read_alike() -> None:
    logits, lengths, labels, counts = example()
    rows = [row[:count] for row, count in zip(labels, counts.tolist(), strict=True)]
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    infinite = F.ctc_loss(log_probs, labels, lengths, counts, reduction="none").isinf().nonzero().flatten().tolist()
    empty = (counts == 0).nonzero().flatten().tolist()
    for own_labels, own_counts in (
        (labels, counts),
        (labels.numpy(), counts.numpy()),
        (labels.tolist(), counts.tolist()),
        (labels.int(), [*counts]),
        (torch.cat(rows), counts),
        (torch.cat(rows).tolist(), counts.tolist()),
        ([*torch.cat(rows).numpy()], counts),
        (rows, None),
        ([row.tolist() for row in rows], None),
        ([row.numpy() for row in rows], counts),
    ):
        for own_lengths in (lengths, lengths.tolist(), lengths.numpy(), lengths.float(), lengths / T):
            given = read_given(logits, own_lengths, own_labels, own_counts, blank=0)
            assert utterances(given, "infeasible_targets") == infinite
            assert utterances(given, "empty_targets") == empty
            assert given.frames is not None
            assert given.frames.tolist() == lengths.tolist()
            assert given.label_counts is not None
            assert given.label_counts.tolist() == counts.tolist()
            for check in ("blanks_in_labels", "labels_out_of_range", "lengths_too_long"):
                assert utterances(given, check) == []
    assert 0 < len(infinite) < B
    assert 0 < len(empty) < B


def test_logits_may_be_an_array() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    given = read_given(logits, blank=0)
    assert given.logits is not None
    assert given.logits.numpy() == pytest.approx(logits)
    assert (given.utterances, given.swapped, given.faulty) == (2, None, {})


@pytest.mark.parametrize("form", ["padded", "concatenated"])
def test_wrong_labels_are_found_but_not_in_the_padding(form: str) -> None:
    logits = torch.zeros(4, T, C)
    labels = torch.tensor([[1, 2, 0, 9], [1, 0, 3, 0], [5, 1, 0, 0], [-100, 1, 0, 0]])
    counts = torch.tensor([2, 3, 2, 2])
    given_labels = labels if form == "padded" else torch.cat([row[:n] for row, n in zip(labels, counts, strict=True)])
    given = read_given(logits, None, given_labels, counts, ["a", "b", "c", "d"], blank=0)
    assert given.names_of("blanks_in_labels") == ["b"]
    assert given.names_of("labels_out_of_range") == ["c", "d"]
    last = read_given(logits, None, given_labels, counts, blank=C - 1)
    assert last.names_of("blanks_in_labels") == []


def test_lengths_are_compared_with_the_logits() -> None:
    logits, lengths, labels, counts = example()
    given = read_given(logits, lengths * 4, labels, counts, blank=0)
    assert utterances(given, "lengths_too_long") == (lengths * 4 > T).nonzero().flatten().tolist()
    assert given.frames is not None
    assert given.frames.max() == T, "a decoder has no frames behind its last one"


@pytest.mark.parametrize("by", ["lengths", "labels", "names"])
def test_swapped_axes_are_seen_and_mended(by: str) -> None:
    logits, lengths, labels, counts = example()
    arguments = {
        "lengths": (lengths,),
        "labels": (None, labels, counts),
        "names": (None, None, None, range(B)),
    }[by]
    right = read_given(logits, *arguments, blank=0)  # type: ignore[arg-type]
    swapped = read_given(logits.transpose(0, 1), *arguments, blank=0)  # type: ignore[arg-type]
    assert (right.swapped, swapped.swapped) == (False, True)
    assert swapped.logits is not None
    assert torch.equal(swapped.logits, logits)


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_a_batch_without_faults_is_counted_like_one_with_faults(blank: int) -> None:
    """A quick check passes a batch without faults. If one utterance has a fault, each utterance is checked."""
    classes = torch.tensor([n for n in range(C) if n != blank])
    generator = torch.Generator().manual_seed(0)
    labels, counts = classes[torch.randint(0, C - 1, (B, 4), generator=generator)], torch.randint(1, 5, (B,))
    lengths = torch.full((B,), T, dtype=torch.uint8)
    logits = torch.zeros(B, T, C)
    good = read_given(logits, lengths, labels, counts.byte(), blank=blank)
    assert good.counts() == [0] * 5
    for check, own, count, length in (
        ("lengths_too_long", classes[:1], 1, T + 1),
        ("empty_targets", classes[:1], 0, T),
        ("blanks_in_labels", torch.tensor([blank]), 1, T),
        ("labels_out_of_range", torch.tensor([C]), 1, T),
        ("labels_out_of_range", torch.tensor([-1]), 1, T),
        ("infeasible_targets", classes[:1].expand(4), 4, 6),
        ("infeasible_targets", classes[:2], 2, 1),
    ):
        wrong = labels.clone()
        wrong[3, : len(own)] = own
        given = read_given(
            logits,
            lengths.index_fill(0, torch.tensor(3), length),
            wrong,
            counts.index_fill(0, torch.tensor(3), count).byte(),
            blank=blank,
        )
        assert tuple(given.faulty) == tuple(good.faulty)
        assert {name for name in given.faulty if given.names_of(name)} == {check}
        assert given.names_of(check) == ["number 4 of the batch"]


def test_long_targets_do_not_overflow_a_byte() -> None:
    labels = torch.randint(1, C, (2, 200))
    given = read_given(torch.zeros(2, 210, C), [210, 100], labels, torch.tensor([105, 200]).byte(), blank=0)
    assert given.names_of("infeasible_targets") == ["number 2 of the batch"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16])
def test_lengths_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    given = read_given(torch.zeros(2, 300, C), torch.tensor([200, 3]).to(dtype), blank=0)
    assert given.frames is not None
    assert given.frames.tolist() == [200, 3]


def test_names_in_a_tensor_that_is_used_again_are_kept() -> None:
    names = torch.tensor([3, 4])
    given = read_given(torch.zeros(2, T, C), batch=[*names], blank=0)
    names.zero_()
    assert given.names == ("tensor(3)", "tensor(4)")


def test_targets_are_checked_without_logits() -> None:
    _, lengths, labels, counts = example()
    given = read_given(None, lengths, labels, counts, blank=0)
    with_logits = read_given(*example(), blank=0)
    for check in ("infeasible_targets", "empty_targets", "blanks_in_labels"):
        assert utterances(given, check) == utterances(with_logits, check)
    assert given.utterances == B


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits, lengths, labels, counts = example()
    with pytest.raises(StabilityError, match=r"lengths hold 39, labels hold 40 and logits hold 40"):
        read_given(logits, lengths[1:], labels, counts, blank=0)
    with pytest.raises(StabilityError, match=r"shape \(8, 5\). Give them as \(batch, frames, classes\)"):
        read_given(logits[0], blank=0)
    with pytest.raises(StabilityError, match="blank=5 is not one of the 5 classes"):
        read_given(logits, blank=5)
    with pytest.raises(StabilityError, match="the labels of 39 utterances and label_counts of 40"):
        read_given(logits, lengths, labels[1:], counts, blank=0)
    with pytest.raises(StabilityError, match="the labels of 1 utterance and label_counts of 40"):
        read_given(logits, lengths, labels[:1], counts, blank=0)
    with pytest.raises(StabilityError, match="labels without label_counts"):
        read_given(logits, lengths, labels, blank=0)


def test_the_batches_of_a_step_are_joined() -> None:
    first, second = (read_given(*example(seed), [f"{seed}-{n}" for n in range(B)], blank=0) for seed in (0, 1))
    both = joined([first, second])
    assert both.utterances == 2 * B
    assert both.counts() == [a + b for a, b in zip(first.counts(), second.counts(), strict=True)]
    for check in both.faulty:
        assert both.names_of(check) == first.names_of(check) + second.names_of(check)
    assert both.logits is second.logits
    assert joined([first]) is first


@pytest.mark.parametrize("on_gpu", [("lengths", "labels", "counts"), ("lengths",), ("labels",), ("counts",), ()])
@pytest.mark.parametrize("concatenated", [False, True])
def test_the_host_does_not_wait_for_a_gpu(
    on_gpu: tuple[str, ...], concatenated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.fake_cuda import fake_cuda  # late: it needs Triton

    logits, lengths, labels, counts = example()
    if concatenated:
        labels = torch.cat([row[:count] for row, count in zip(labels, counts.tolist(), strict=True)])
    given = {"lengths": lengths, "labels": labels, "counts": counts}
    with fake_cuda(monkeypatch) as gpu:
        on_device = {name: torch.zeros(given[name].shape, dtype=torch.int64, device="cuda") for name in on_gpu}
        scores = torch.zeros(logits.shape, device="cuda")
        read = read_given(scores, *[on_device.get(name, given[name]) for name in given], blank=0)  # type: ignore[arg-type]
        assert {isinstance(count, Tensor) and count.is_cuda for count in read.counts()} == {bool(on_gpu)}
        assert not gpu.waits
