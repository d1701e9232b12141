"""The kernels' own threads: every count, many callers, forks; the same bits throughout."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from scan_cases import Case, results

from mambakernels import _threads


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Below the 32,768 elements from which torch itself would use OpenMP, which hangs in a forked child.
CASE = Case(batch=3, length=100, channels=100, states=6, segments=True)


def test_same_bits_for_any_number_of_threads() -> None:
    inputs = CASE.inputs()
    torch.set_num_threads(1)
    alone = results(CASE, inputs, "cpu")
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for name, value in results(CASE, inputs, "cpu").items():
            assert torch.equal(value, alone[name]), (threads, name)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_follows_torch_set_num_threads(threads: int) -> None:
    """As many parts as torch has threads meet at a barrier; one more thread never joins them."""
    torch.set_num_threads(threads)
    barrier = threading.Barrier(threads)
    seen = set()

    def part(number: int) -> None:
        barrier.wait(20)
        seen.add(threading.get_ident())

    _threads.run(part, threads)
    assert len(seen) == threads
    seen.clear()
    _threads.run(lambda number: seen.add(threading.get_ident()), 50)
    assert len(seen) <= threads


def test_every_part_runs_once_and_none_for_none() -> None:
    torch.set_num_threads(3)
    done: list[int] = []
    _threads.run(done.append, 200)
    assert sorted(done) == list(range(200))
    _threads.run(done.append, 0)
    assert len(done) == 200


def test_an_error_reaches_the_caller_and_the_pool_lives_on() -> None:
    torch.set_num_threads(2)

    def part(number: int) -> None:
        if number == 3:
            raise ZeroDivisionError("part three")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="part three"):
            _threads.run(part, 8)
    done: list[int] = []
    _threads.run(done.append, 8)
    assert sorted(done) == list(range(8))


def test_a_call_inside_a_call_does_not_wait_for_itself() -> None:
    torch.set_num_threads(2)
    done: list[int] = []
    _threads.run(lambda outer: _threads.run(lambda inner: done.append(inner), 5), 6)
    assert sorted(done) == sorted(list(range(5)) * 6)


def test_several_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    cases = [Case(batch=2, length=120, channels=60, seed=seed) for seed in range(4)]
    alone = [results(case, case.inputs(), "cpu") for case in cases]
    together: list[list[dict]] = [[] for _ in cases]

    def work(number: int) -> None:
        for _ in range(5):
            together[number].append(results(cases[number], cases[number].inputs(), "cpu"))

    callers = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    for expected, got in zip(alone, together, strict=True):
        assert len(got) == 5
        for one in got:
            for name, value in expected.items():
                assert torch.equal(one[name], value), name


def _in_child(connection) -> None:
    torch.set_num_threads(2)
    answer = results(CASE, CASE.inputs(), "cpu")
    connection.send({name: value.numpy() for name, value in answer.items()})


def test_a_forked_child_makes_its_own_threads() -> None:
    """The parent's pool has run, so that its threads exist; the child has none of them."""
    torch.set_num_threads(2)
    expected = results(CASE, CASE.inputs(), "cpu")
    for _ in range(3):
        context = multiprocessing.get_context("fork")
        mine, theirs = context.Pipe()
        child = context.Process(target=_in_child, args=(theirs,), daemon=True)
        child.start()
        answered = mine.poll(60)
        if not answered:
            child.kill()
        assert answered, "the forked child hangs"
        got = mine.recv()
        child.join(60)
        assert child.exitcode == 0
        for name, value in expected.items():
            assert torch.equal(torch.from_numpy(got[name]), value), name
    results(CASE, CASE.inputs(), "cpu")  # and the parent's still serve


class _Scanned(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(2)
        case = Case(length=40, seed=index)
        return results(case, case.inputs(), "cpu")["out"]


def test_workers_of_a_data_loader_can_scan() -> None:
    torch.set_num_threads(2)
    expected = [_Scanned()[index] for index in range(4)]
    loader = torch.utils.data.DataLoader(
        _Scanned(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for got, value in zip(loader, expected, strict=True):
        assert torch.equal(got, value)


def test_the_program_ends_while_threads_wait() -> None:
    code = (
        "import torch; torch.set_num_threads(3); from mambakernels import _threads; "
        "_threads.run(lambda number: None, 9); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
