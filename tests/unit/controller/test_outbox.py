from __future__ import annotations

import asyncio

from jobcluster_controller.outbox import Batch, Outbox

from tests.unit.controller.makers import eventually


class Post:
    """Where an outbox sends to: it notes each batch, and answers when ``open``."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fails = 0

    async def send(self, batch: Batch[str, int]) -> None:
        self.batches.append(list(batch))
        if self.fails:
            self.fails -= 1
            raise ConnectionError
        await self.open.wait()

    @property
    def sent(self) -> list[str]:
        return [key for batch in self.batches for key in batch]


def take_all(pending: Batch[str, int]) -> Batch[str, int]:
    batch = dict(pending)
    pending.clear()
    return batch


def outbox(post: Post, **options: float) -> Outbox[str, int]:
    made = Outbox(
        post.send,
        take_all,
        (ConnectionError,),
        retry_seconds=0.01,
        patience_seconds=options.get("patience_seconds", 0.02),
        flights_max=int(options.get("flights_max", 8)),
    )
    made.open()
    return made


async def test_what_comes_together_goes_together_and_what_comes_meanwhile_goes_next() -> None:
    post = Post()
    box = outbox(post, patience_seconds=60)
    post.open.clear()
    for key in "abc":
        box.put(key, 1)
    await eventually(lambda: post.batches)
    for key in "de":
        box.put(key, 1)
    await asyncio.sleep(0)
    assert post.batches == [["a", "b", "c"]]
    post.open.set()
    await eventually(lambda: len(post.batches) == 2)
    assert post.batches[1] == ["d", "e"]
    await box.close()


async def test_a_batch_that_hangs_does_not_hold_up_the_next() -> None:
    post = Post()
    post.open.clear()
    box = outbox(post)
    box.put("hangs", 1)
    await eventually(lambda: post.batches)
    box.put("goes", 1)
    await eventually(lambda: post.batches == [["hangs"], ["goes"]])
    await box.close()


async def test_no_more_than_so_many_are_under_way() -> None:
    post = Post()
    post.open.clear()
    box = outbox(post, patience_seconds=0, flights_max=2)
    for key in "abc":
        box.put(key, 1)
        await asyncio.sleep(0.005)
    assert post.sent == ["a", "b"]
    post.open.set()
    await eventually(lambda: post.sent == ["a", "b", "c"])
    await box.close()


async def test_what_failed_is_sent_again() -> None:
    post = Post()
    post.fails = 2
    box = outbox(post)
    box.put("a", 1)
    await eventually(lambda: post.sent == ["a", "a", "a"])
    await box.close()


async def test_a_closed_one_takes_nothing_sends_nothing_and_leaves_no_task() -> None:
    post = Post()
    post.open.clear()
    box = outbox(post)
    box.put("under way", 1)
    await eventually(lambda: post.batches)
    box.put("waits", 1)
    await box.close()
    box.put("late", 1)
    await asyncio.sleep(0.03)
    assert post.sent == ["under way"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_is_dropped_before_it_goes_is_not_sent() -> None:
    post = Post()
    box = outbox(post)
    box.put("a", 1)
    box.put("b", 1)
    box.drop("a")
    await eventually(lambda: post.sent == ["b"])
    await box.close()
