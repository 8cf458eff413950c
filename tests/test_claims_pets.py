"Each statement about pets holds on something right and fails on something broken."
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lesson6.pets import cross_entropy
from test_claims import holds, verdict


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
                         nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


def trained(model, parameters):
    model = deepcopy(model); names = dict(model.named_parameters())
    opt = torch.optim.Adam([names[n] for n in names if parameters(n)], lr=.1)
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8)).square().mean().backward(); opt.step(); opt.zero_grad()
    return model


def test_cross_entropy():
    acts, targets = torch.randn(32, 7), torch.randint(7, (32,))
    assert holds('pets-cross-entropy', cross_entropy, acts, targets)
    assert not holds('pets-cross-entropy', lambda a, t: (1-a.softmax(1)[range(len(t)), t]).mean(),
                     acts, targets)
    assert not holds('pets-cross-entropy', lambda a, t: -a.softmax(1).log()[range(len(t)), t].sum(),
                     acts, targets)


def test_frozen(model):
    body, head = (lambda n: n.startswith('0.')), (lambda n: n.startswith('1.'))
    assert holds('pets-frozen', model, trained(model, head))
    assert holds('pets-frozen', model, trained(model, lambda n: head(n) or n.startswith('0.1.')))
    assert not holds('pets-frozen', model, trained(model, lambda n: True))     # the body moves
    assert not holds('pets-frozen', model, trained(model, body))               # the head doesn't
    assert not holds('pets-frozen', model, deepcopy(model))                    # nothing does


def test_transfer(model):
    def new(part, seed):
        other = deepcopy(model); torch.manual_seed(seed)
        for m in other[part].modules():
            if hasattr(m, 'reset_parameters'): m.reset_parameters()
        return other
    other, untrained = new(1, 5), new(0, 6)
    assert holds('pets-transfer', model, other, untrained)
    # the head is not random
    assert not holds('pets-transfer', model, deepcopy(model), untrained)
    assert not holds('pets-transfer', model, untrained, untrained)             # the body is
    # pretraining changed nothing
    assert not holds('pets-transfer', model, other, deepcopy(model))


def test_diagonal():
    truth, guess = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    matrix = np.zeros((3, 3), int); np.add.at(matrix, (truth, guess), 1)
    error = float((truth != guess).mean())
    assert holds('pets-diagonal', matrix, error)
    # the rows are another breed's
    assert not holds('pets-diagonal', np.roll(matrix, 1, axis=0), error)


def test_slice():
    from fastai.optimizer import SGD
    def rates(lr):
        opt = SGD([[nn.Parameter(torch.ones(1))] for _ in range(3)], lr=0.)
        opt.set_hyper('lr', lr)
        return [float(h['lr']) for h in opt.hypers]
    assert holds('pets-slice', rates(slice(1e-6, 1e-4)), 1e-6, 1e-4)
    for broken in (1e-4, slice(1e-4), slice(1e-5, 1e-4)):
        assert not holds('pets-slice', rates(broken), 1e-6, 1e-4)
    assert (not holds('pets-slice', list(np.linspace(1e-6, 1e-4, 3)), 1e-6, 1e-4)
            and not holds('pets-slice', [1e-4], 1e-4, 1e-4))


def test_what_look_alikes_cannot_be_asked_of():
    pairs = [('a', 'b')]
    for matrix, vocab in ((np.full((3, 3), 9), list('xyz')), (np.ones((3, 3), int), list('abc')),
                          (np.diag([9]*3), list('abc'))):
        assert verdict('pets-look-alikes', matrix, vocab, pairs) == 'not asked'
    assert verdict('pets-deeper', (10, [1., 1, 1]), (10, [2., 2, 2])) == 'not asked'
