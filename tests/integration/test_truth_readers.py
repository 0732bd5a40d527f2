"""Output for many readers: each gets every byte once, in order, in every form, however often it is cut."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.cluster import Cluster
from tests.integration.reader import EVENTS, FORMS, LINES, RAW, Reading
from tests.integration.truth import (
    MIB,
    known_job,
    known_parts,
    known_sha256,
    open_gate,
    reader,
    size,
)

READERS = 30


def cuts_at_random(number: int, total: int) -> list[int]:
    rng = random.Random(number)
    return sorted(rng.randrange(total) for _ in range(rng.randint(1, 4)))


@pytest.mark.timeout(size(300, 900))
def test_thirty_readers_in_three_forms_that_cut_themselves_and_resume_get_every_byte_once(
    cluster: Cluster,
) -> None:
    total = size(5 * MIB, 64 * MIB)
    job = cluster.post(known_job(total, gate=True, pause=0.005))
    forms = itertools.cycle(FORMS)

    def read(number: int, form: str) -> Reading:
        return reader(cluster, job["job_id"], form).read(cuts_at_random(number, total))

    with ThreadPoolExecutor(READERS) as pool:
        before = [pool.submit(read, n, next(forms)) for n in range(10)]
        open_gate(cluster, job["job_id"])
        during = [pool.submit(read, n, next(forms)) for n in range(10, 20)]
        end = cluster.job(job["job_id"], wait=60)
        after = [pool.submit(read, n, next(forms)) for n in range(20, READERS)]
        readings = [r.result() for r in (*before, *during, *after)]
    assert (end["state"], end["output"]["bytes"]) == ("succeeded", total)
    expected = known_sha256(total)
    assert end["output"]["sha256"] == expected
    assert {(r.offset, r.sha256) for r in readings} == {(total, expected)}
    assert all(r.cuts for r in readings)
    told = [r.end for r in readings if r.end is not None]
    assert len(told) == READERS * 2 // 3
    assert {t["tasks"][0]["sha256"] for t in told} == {expected}
    assert {(t["state"], t["reason"], t["exit_code"]) for t in told} == {("succeeded", "exited", 0)}


def test_stdout_and_stderr_are_each_exact_and_never_have_the_others_offsets(cluster: Cluster) -> None:
    total = size(2 * MIB, 32 * MIB)
    job = cluster.post(known_job(total, seed=3, fds=(1, 2), gate=True))
    kinds = [(form, stream) for form in FORMS for stream in ("stdout", "stderr")]
    with ThreadPoolExecutor(len(kinds)) as pool:
        readers = [
            pool.submit(
                reader(cluster, job["job_id"], form, stream=stream).read,
                cuts_at_random(number, total),
            )
            for number, (form, stream) in enumerate(kinds)
        ]
        open_gate(cluster, job["job_id"])
        readings = [r.result() for r in readers]
    out, err = known_parts(total, 3, 2)
    seen = [(stream, r.offset, r.sha256) for (_, stream), r in zip(kinds, readings, strict=True)]
    assert set(seen) == {("stdout", total, out), ("stderr", total, err)}
    ended = cluster.job(job["job_id"], wait=30)
    assert ended["output"]["bytes"] == 2 * total
    merged = reader(cluster, job["job_id"]).read()
    assert (merged.offset, merged.sha256) == (2 * total, ended["output"]["sha256"])


@pytest.mark.parametrize("form", [RAW, EVENTS, LINES])
def test_a_reader_that_waits_for_a_queued_job_gets_all_of_it_when_it_has_run(
    own_cluster: Cluster, form: str
) -> None:
    worker = own_cluster.workers[0]
    assert worker.stop() == 0
    job = own_cluster.post({"command": "echo after the wait"})
    assert job["state"] == "queued"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader(own_cluster, job["job_id"], form).read)
        worker.start()
        reading = waiting.result()
    assert reading.offset == len("after the wait\n")
