"""Windows of recorded motion: which they are, the lines between their ends, and what identifies them."""

import numpy as np
import pytest
import torch

from latentsb.data.stream import Stream
from latentsb.data.trajectories import Trajectories, straight
from latentsb.errors import ArgumentError, DataError

DT = 0.1
SPEED = np.array([-2.0, 0.5])


@pytest.fixture
def moving(tmp_path):
    """Two episodes of 12 and 20 steps at constant velocity, the second one from elsewhere."""
    clock = np.concatenate([np.arange(12), np.arange(20)])[:, None] * DT
    origin = np.repeat([[3.0, 1.0], [-5.0, 7.0]], [12, 20], axis=0)
    states = np.concatenate([origin + clock * SPEED, np.tile(SPEED, (32, 1))], 1).astype(np.float32)
    path = tmp_path / "moving.npz"
    np.savez(path, states=states, starts=np.array([0, 12]), dt=np.array(DT))
    return path


def test_windows_stay_inside_episodes_and_follow_the_recording(moving):
    data = Trajectories(path=moving, horizon=4, stride=3)
    assert data.first.tolist() == [*range(3), *range(12, 23)]  # 10 steps long, of episodes of 12 and 20
    items = data.read(np.array([1, 5]))
    assert items.x0.shape == (2, 4, 4)
    states = np.load(moving)["states"]
    assert np.array_equal(items.x0[0].numpy(), states[[1, 4, 7, 10]].T)
    assert np.array_equal(items.x0[1].numpy(), states[[14, 17, 20, 23]].T)


def test_motion_on_a_line_is_its_own_line_backwards_too(moving):
    # Constant velocity with one negative component: positions, and the sign and size of the velocity, must agree.
    items = Trajectories(path=moving, horizon=4, stride=3).read(np.arange(14))
    assert torch.allclose(items.x1, items.x0, atol=2e-6)
    assert (items.x1[:, 2] < 0).all()


def test_a_line_knows_the_first_state_and_the_last_position_alone():
    first = torch.tensor([[1.0, 2.0, 9.0, -9.0]])
    line = straight(first, torch.tensor([[0.0, 4.0]]), horizon=5, duration=2.0)[0]
    assert line[:, 0].tolist() == first[0].tolist()
    assert line[0].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert line[1].tolist() == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert line[2, 1:].tolist() == [-0.5] * 4
    assert line[3, 1:].tolist() == [1.0] * 4


def test_streams_bring_each_window_with_its_own_line(moving):
    batch = Stream(Trajectories(path=moving, horizon=4, stride=3), seed=3, batch=14, aligned=True).batch(0)
    assert torch.allclose(batch.x0, batch.x1, atol=2e-6)
    order = batch.x0[:, 0, 0]
    assert len(set(order.tolist())) == 14  # one epoch: every window once
    assert order.tolist() != sorted(order.tolist(), reverse=True)
    again = Stream(Trajectories(path=moving, horizon=4, stride=3), seed=3, batch=14, aligned=True).batch(0)
    assert torch.equal(again.x0, batch.x0)


def test_the_fingerprint_tells_file_and_windows(moving):
    def of(**change):
        return Trajectories(**{"path": moving, "horizon": 4, "stride": 3} | change).fingerprint()

    first = of()
    assert of() == first
    assert of(horizon=3) != first
    assert of(stride=2) != first
    arrays = dict(np.load(moving))
    arrays["states"][5, 0] += 1e-3
    np.savez(moving, **arrays)
    assert of() != first


def test_what_is_wrong_with_a_file_is_told(moving, tmp_path):
    with pytest.raises(DataError, match="latentsb record"):
        Trajectories(path=tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"no episode is as long as a window.* = 31 steps"):
        Trajectories(path=moving, horizon=4, stride=10)
    with pytest.raises(ArgumentError, match="horizon"):
        Trajectories(path=moving, horizon=1)
    np.savez(tmp_path / "odd.npz", states=np.zeros((9, 3)))
    with pytest.raises(DataError, match=r"\(9, 3\)"):
        Trajectories(path=tmp_path / "odd.npz")
