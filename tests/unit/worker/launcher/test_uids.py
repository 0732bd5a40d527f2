from __future__ import annotations

import pytest
from jobcluster_worker.launcher.uids import BLOCK_UIDS, SLICE_UIDS, Block, NoUids, Slice, Uids, mapped

FIRST = 1_000_000


def test_a_block_belongs_to_one_launcher_and_is_free_again_after_it() -> None:
    one, other = Block.reserve(FIRST), Block.reserve(FIRST)
    assert other.first >= one.first + BLOCK_UIDS
    one.close()
    again = Block.reserve(FIRST)
    assert again.first == one.first
    again.close()
    other.close()


def test_a_block_with_a_uid_that_some_process_has_is_not_taken() -> None:
    free = Block.reserve(FIRST)
    free.close()
    block = Block.reserve(FIRST, in_use={free.first + 7, 0, 3})
    assert block.first > free.first
    block.close()


def test_slices_do_not_overlap_and_come_back() -> None:
    block = Block.reserve(FIRST)
    slices = [block.take_slice() for _ in range(BLOCK_UIDS // SLICE_UIDS)]
    assert len({uid for taken in slices for uid in (*taken.task_uids, taken.signaller)}) == BLOCK_UIDS
    with pytest.raises(NoUids):
        block.take_slice()
    block.give_back(slices[5])
    assert block.take_slice() == slices[5]
    block.close()


def test_a_uid_comes_back_into_use_as_late_as_possible_and_never_while_it_lives() -> None:
    uids = Uids(Slice(FIRST))
    first, second = uids.take(), uids.take()
    uids.give_back(first)
    later = [uids.take() for _ in range(SLICE_UIDS - 3)]
    assert first not in later and second not in later
    assert uids.take() == first
    with pytest.raises(NoUids):
        uids.take()


@pytest.mark.parametrize(
    ("text", "is_mapped"),
    [("0 0 4294967295", True), ("0 1000 1\n1 100000 65536", False), ("0 0 x", False), ("", False)],
)
def test_a_block_must_be_mapped_wholly(text: str, is_mapped: bool) -> None:
    assert mapped(100_000, 4096, lambda: text) is is_mapped
