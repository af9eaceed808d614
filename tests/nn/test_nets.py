"""Networks: shapes, and that an ensemble is so many separate networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tianshou_ext.nn.nets import (
    EnsembleLinear,
    EnsembleNet,
    MultiHeadNet,
    NatureCNN,
    Net,
    make_adam,
)

VECTOR, FRAMES = (3,), (4, 44, 44)
shapes = pytest.mark.parametrize("shape", [VECTOR, FRAMES], ids=["vector", "frames"])


def test_ensemble_linear_is_n_linear_layers():
    layer = EnsembleLinear(3, 5, 2)
    x = torch.randn(3, 7, 5)
    singles = []
    for k in range(3):
        single = nn.Linear(5, 2)
        single.weight.data.copy_(layer.weight[k].T)
        single.bias.data.copy_(layer.bias[k, 0])
        singles.append(single)
    out = layer(x)
    assert torch.allclose(out, torch.stack([s(x[k]) for k, s in enumerate(singles)]), atol=1e-6)
    out.square().sum().backward()
    for k, single in enumerate(singles):
        single(x[k]).square().sum().backward()
        assert torch.allclose(layer.weight.grad[k], single.weight.grad.T, atol=1e-5)
        assert torch.allclose(layer.bias.grad[k, 0], single.bias.grad, atol=1e-5)


def test_ensemble_linear_starts_as_linear_layers_do():
    layer, bound = EnsembleLinear(20, 50, 40), 50**-0.5
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not torch.equal(layer.weight[0], layer.weight[1])


@shapes
def test_members_of_an_ensemble_differ_and_learn_apart(shape):
    net = EnsembleNet(shape, 2, (16,), num=3)
    out, state = net(torch.randn(5, *shape), "kept")
    assert out.shape == (3, 5, 2)
    assert state == "kept"
    assert not torch.allclose(out[0], out[1])
    out[1].sum().backward()
    layer = net.members[0]
    assert layer.weight.grad[1].abs().sum() > 0
    assert layer.weight.grad[[0, 2]].abs().sum() == 0


@shapes
@pytest.mark.parametrize("output", [(2,), (2, 5)], ids=["values", "quantiles"])
def test_net_has_the_shape_asked_for(shape, output):
    out, state = Net(shape, output, (16, 8))(torch.randn(6, *shape))
    assert out.shape == (6, *output)
    assert state is None


@shapes
def test_heads_have_their_shapes_and_share_convolutions_only(shape):
    net = MultiHeadNet(shape, [(2,), (3,)], (16,))
    (a, b), _ = net(torch.randn(6, *shape))
    assert (a.shape, b.shape) == ((6, 2), (6, 3))
    a.sum().backward()
    assert all(p.grad is not None for p in net.trunk.parameters())
    assert all(p.grad is not None for p in net.heads[0].parameters())
    assert all(p.grad is None for p in net.heads[1].parameters())
    assert (len(list(net.trunk.parameters())) > 0) is (shape == FRAMES)


def test_no_hidden_layer_is_a_linear_net():
    net = Net(VECTOR, (2,), ())
    x = torch.randn(4, 3)
    assert torch.allclose(net(x)[0], x @ net.head.weight.T + net.head.bias)


def test_nature_cnn_has_the_sizes_of_dqn():
    cnn = NatureCNN((4, 84, 84))
    assert cnn.output_dim == 3136
    assert cnn(torch.zeros(2, 4, 84, 84)).shape == (2, 3136)
    sizes = [tuple(m.weight.shape) for m in cnn.convs if isinstance(m, nn.Conv2d)]
    assert sizes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]


def test_features_do_not_depend_on_the_memory_format():
    """The channels-last layout is for speed; flattened features keep their order."""
    cnn, plain = NatureCNN(FRAMES), NatureCNN(FRAMES)
    plain.load_state_dict(cnn.state_dict())
    plain.to(memory_format=torch.contiguous_format)
    x = torch.rand(3, *FRAMES)
    assert torch.allclose(cnn(x), plain.convs(x), atol=1e-5)


def test_make_adam_steps_shared_parameters_once():
    shared = nn.Linear(2, 2)
    a, b = nn.Sequential(shared, nn.Linear(2, 1)), nn.Sequential(shared, nn.Linear(2, 1))
    optim = make_adam(a, b, lr=0.1, eps=1e-3)
    params = optim.param_groups[0]["params"]
    assert len(params) == len({id(p) for p in params}) == 6
    assert optim.param_groups[0]["lr"] == 0.1
    assert optim.param_groups[0]["eps"] == 1e-3
