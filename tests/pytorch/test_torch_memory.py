"""Memory of oclbn.torch: tensors that devices read where they lie, and what is kept for results to come."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
import numpy as np  # noqa: E402

import oclbn.torch as ours  # noqa: E402
from oclbn.errors import SizeError  # noqa: E402
from oclbn.functional import accumulate  # noqa: E402
from oclbn.torch import function, loan  # noqa: E402
from oclbn.torch.pool import Pool  # noqa: E402

MIB = 1 << 20


def large(pool: Pool, mib: int = 4) -> Any:
    return pool.tensor((mib, 1 << 18), (1 << 18, 1), torch.float32)


@pytest.mark.parametrize("way", ["shared", "mapped", "copied"])
def test_what_kernels_write_is_the_tensors(way: Any, queue: Any) -> None:
    if way == "shared" and loan.way_of(queue) != "shared":
        pytest.skip("needs a device whose kernels and the host see one memory")
    source, target = torch.randn(100), torch.ones(100)
    with loan.Loan(queue, way) as lending:
        accumulate(lending.change(target), lending.read(source), momentum=1.0)
    assert torch.equal(target, source + 1)


def test_nothing_is_copied_on_the_way(queue: Any) -> None:
    """A kernel enqueued behind a lend reads what the host writes after it: it is the same memory."""
    if loan.way_of(queue) != "shared":
        pytest.skip("needs a device whose kernels and the host see one memory")
    source, target = torch.zeros(100), torch.zeros(100)
    with loan.Loan(queue) as lending:
        read, changed = lending.read(source), lending.change(target)
        source.fill_(7.0)
        accumulate(changed, read)
        queue.finish()
        assert (target == 7.0).all()


def test_neighbours_are_left_alone(queue: Any) -> None:
    whole = torch.arange(30.0)
    with loan.Loan(queue, "copied") as lending:
        accumulate(lending.change(whole[10:20]), lending.read(torch.zeros(10)))
    assert whole.tolist() == [*range(10), *[0] * 10, *range(20, 30)]


def test_a_tensor_that_is_lent_twice_is_one_buffer(queue: Any) -> None:
    x = torch.randn(4, 4)
    with loan.Loan(queue) as lending:
        assert lending.read(x).base_data is lending.read(x.t()).base_data


def test_tensors_beyond_the_device_are_refused(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: str, nbytes: int, device: Any) -> None:
        if what == "a tensor" and nbytes > 100:
            raise SizeError(f"{what} needs {nbytes} bytes")

    monkeypatch.setattr(loan, "check_size", refuse)
    layer = ours.BatchNorm1d(4, opencl=spec)
    with pytest.raises(SizeError):
        layer(torch.randn(8, 4))
    assert layer.running_mean.abs().sum() == 0


def test_memory_is_used_again() -> None:
    pool = Pool(64 * MIB)
    first = large(pool)
    address, view = first.data_ptr(), first[1]
    assert address % (2 * MIB) == 0
    del first
    assert pool.kept() == 0  # a view holds all of it
    del view
    assert pool.kept() == 4 * MIB
    assert large(pool, 4).data_ptr() == address
    other = large(pool, 3)
    assert other.data_ptr() == address  # of the same number of large pages
    pool.release()
    assert pool.kept() == 0
    other.fill_(1.0)


def test_no_more_is_kept_than_was_said() -> None:
    pool = Pool(10 * MIB)
    old = [large(pool, 2) for _ in range(3)]
    del old
    assert pool.kept() == 6 * MIB
    del_me = large(pool, 8)
    del del_me
    assert pool.kept() == 10 * MIB  # 8, and one of 2: those that nobody has wanted for longest have gone
    assert large(Pool(0)).sum().shape == ()


def test_tensors_of_kept_memory_are_like_any() -> None:
    pool = Pool(64 * MIB)
    tensor = large(pool)
    assert tensor._base is None
    assert not tensor.requires_grad
    tensor.fill_(3.0)
    assert np.asarray(tensor)[0, 0] == 3.0
    tensor.share_memory_()
    assert tensor.is_shared()
    assert (tensor == 3.0).all()


def test_the_next_step_finds_the_memory_of_the_last(spec: str) -> None:
    layer, x = ours.BatchNorm2d(64, opencl=spec), torch.randn(64, 64, 16, 16, requires_grad=True)
    addresses = set()
    for _ in range(4):
        y = layer(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        addresses |= {y.data_ptr(), dx.data_ptr()}
        del y, dx
        gc.collect()
    assert len(addresses) == 2
    ours.release_memory()
    assert function.pool.kept() == 0


@pytest.mark.parametrize("way", ["shared", "mapped", "copied"])
def test_statistics_between_others_numbers_move_alone(way: Any, queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two columns of one array: neither brings old numbers of the other one back."""
    if way == "shared" and loan.way_of(queue) != "shared":
        pytest.skip("needs a device whose kernels and the host see one memory")
    monkeypatch.setattr(function, "forced_way", way)
    x, statistics = torch.randn(4, 3, 5), torch.rand(3, 2)
    wanted = statistics.clone()
    torch.nn.functional.batch_norm(x, *wanted.unbind(1), training=True)
    ours.batch_norm(x, *statistics.unbind(1), training=True, opencl=queue)
    torch.testing.assert_close(statistics, wanted)


def test_a_sign_that_pytorch_keeps_apart_is_seen(queue: Any) -> None:
    """The imaginary part of a conjugate is its memory, read with the other sign."""

    def part(*shape: int) -> Any:
        made = torch.randn(*shape, dtype=torch.complex64).conj().imag
        assert made.is_neg()
        return made

    x, dy, weight, mean = part(4, 3, 5), part(4, 3, 5), part(3), part(3)
    found = []
    for call, options in ((torch.nn.functional.batch_norm, {}), (ours.batch_norm, {"opencl": queue})):
        given, moved = x.detach().requires_grad_(), mean.resolve_neg().clone().conj()
        y = call(given, moved, torch.ones(3), weight, None, True, **options)
        y.backward(dy)
        found.append((y, given.grad, moved))
    torch.testing.assert_close(found[1], found[0])
