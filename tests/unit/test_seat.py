"""GPUs and their memory, shared out among pools and their replicas."""

import pytest

from sessile.engines.seat import Gpu, Machine, share_gpus, shares
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings

GB = 10**9


def machine(gpus: int) -> Machine:
    """One of so many GPUs."""
    return Machine(gpus=tuple(Gpu(number, 80 * GB) for number in range(gpus)), cores=8)


def pool(**settings: object) -> PoolSettings:
    """A pool of SGLang's."""
    return PoolSettings.model_validate({"engine": "sglang", "model": "org/m", **settings})


@pytest.mark.parametrize(
    ("settings", "placed"),
    [
        ({}, [(0,), (1,), (2,), (3,)]),
        ({"tensor_parallel": 2}, [(0, 1), (2, 3)]),
        ({"tensor_parallel": 3}, [(0, 1, 2)]),
        ({"replicas": 2}, [(0,), (1,)]),
        ({"replicas": 2, "tensor_parallel": 2}, [(0, 1), (2, 3)]),
        ({"data_parallel": 2, "tensor_parallel": 2}, [(0, 1, 2, 3)]),
        ({"data_parallel": 2}, [(0, 1), (2, 3)]),
        ({"replicas": 3, "gpus": 1}, [(0,), (0,), (0,)]),
        ({"replicas": 6, "gpus": (2, 3)}, [(2,), (3,), (2,), (3,), (2,), (3,)]),
        ({"replicas": 2, "gpus": 0}, [(), ()]),
    ],
)
def test_the_gpus_of_a_pool_go_to_its_replicas_in_turn(settings, placed):
    """As many replicas as there are groups of GPUs unless their number is given."""
    assert share_gpus([pool(**settings)], machine(4)) == [placed]


def test_a_pool_gets_what_the_others_have_not_named():
    """Named GPUs first, whatever the order of the pools."""
    pools = [pool(), pool(gpus=(0,)), pool(gpus=1)]
    with pytest.raises(SettingsError, match="1 are asked for, 0 are left"):
        share_gpus(pools, machine(3))
    pools = [pool(gpus=1), pool(gpus=(0,)), pool()]
    assert share_gpus(pools, machine(3)) == [[(1,)], [(0,)], [(2,)]]


def test_without_a_gpu_replicas_are_on_the_cpu():
    """One, unless more are asked for."""
    assert share_gpus([pool(), pool(replicas=2)], machine(0)) == [[()], [(), ()]]


@pytest.mark.parametrize(
    ("settings", "gpus", "said"),
    [
        ({"gpus": (7,)}, 2, "there is no GPU 7; there are: 0, 1"),
        ({"gpus": 3}, 2, "3 are asked for, 2 are left"),
        ({"tensor_parallel": 4}, 2, "needs 4, 2 are left"),
        ({"gpus": (0, 1, 2), "tensor_parallel": 2}, 4, "groups of 2"),
        ({"gpus": (0, 1, 2), "data_parallel": 2}, 4, "data_parallel: 3 GPUs"),
        ({"data_parallel": 2, "tensor_parallel": 2}, 3, "needs 4, 3 are left"),
        ({"tensor_parallel": 2}, 0, "there is no GPU"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(settings, gpus, said):
    """One sentence, with the setting."""
    with pytest.raises(SettingsError, match=said):
        share_gpus([pool(**settings)], machine(gpus))


def test_replicas_of_one_gpu_split_its_memory():
    """Evenly, of nine tenths; one that is alone leaves it to the engine; `memory` wins."""
    pools = [pool(replicas=3, gpus=1), pool(gpus=1), pool(gpus=1, memory=0.5), pool(gpus=0)]
    placed = share_gpus(pools, machine(3))
    assert shares(pools, placed) == [
        [(0.3, False)] * 3, [(None, True)], [(0.5, True)], [(None, True)],
    ]  # fmt: skip


def test_a_gpu_is_not_promised_twice_over():
    """Two replicas of six tenths do not fit on one."""
    pools = [pool(replicas=2, gpus=1, memory=0.6)]
    with pytest.raises(SettingsError, match=r"would take 1\.20 of it"):
        shares(pools, share_gpus(pools, machine(1)))
