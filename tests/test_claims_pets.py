"Each statement about pets holds on something right and fails on something broken."
from copy import deepcopy

import numpy as np
import pytest
import torch
from fastai.callback import progress, schedule  # noqa: F401, for learners
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import params, set_seed
from test_claims import holds, verdict
from torch import nn

from lesson6.claims import EVEN, FAILS, HOLDS, item_errors
from lesson6.pets import cross_entropy


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


class Patterns(torch.utils.data.Dataset):
    "Noisy 16×16 pictures of `n` kinds; a kind is a pattern, the same for every seed"
    def __init__(self, size, strength=1., n=8, seed=0):
        kinds = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(99))
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(n, (size,), generator=g)
        self.x = strength*kinds[self.y] + torch.randn(size, 3, 16, 16, generator=g)

    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], self.y[i]


def pattern_learner(n_layers=2, strength=1., seed=0):
    "A learner with a small body of `n_layers` convolutions and a head, in three groups"
    # the body is the same for every seed, as a pretrained one is
    set_seed(0)
    conv = lambda i: nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1),
                                   nn.BatchNorm2d(8), nn.ReLU())
    body = nn.Sequential(*[conv(i) for i in range(n_layers)])
    set_seed(seed)
    model = nn.Sequential(body,
                          nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8)))
    # no workers: from Python 3.14 on each of them would import fastai anew, every epoch
    dls = DataLoaders.from_dsets(Patterns(400, strength), Patterns(200, strength, seed=1), bs=25,
                                 num_workers=0, device='cpu')
    first = lambda m: [params(m[0][0]), params(m[0][1:]), params(m[1])]
    return Learner(dls, model, loss_func=nn.CrossEntropyLoss(), splitter=first)


def errors(seed, epochs=10, lr=1e-2, strength=.5, unfrozen=0):
    """Right or wrong on the validation pictures, after frozen epochs and as many unfrozen as are
    asked for"""
    learn = pattern_learner(strength=strength, seed=seed)
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr)
        if unfrozen: learn.unfreeze(); learn.fit_one_cycle(unfrozen, slice(1e-3, 1e-2))
    return item_errors(learn)


def test_real_trainings():
    """The same from other seeds can't be told apart; a rate that wrecks, and layers that were let
    go, can"""
    seeds = [errors(s) for s in range(3)]
    for a, b in zip(seeds, seeds[1:]+seeds[:1]):
        assert {verdict('pets-discriminative', a, b), verdict('pets-deeper-better', a, b),
                verdict('pets-lr', a, b, 7/8)} == {EVEN}
    unfrozen, wrecked = errors(0, unfrozen=10), errors(0, epochs=2, lr=30.)
    assert (verdict('pets-discriminative', seeds[0], unfrozen) == HOLDS
            and verdict('pets-discriminative', unfrozen, seeds[0]) == FAILS)
    assert (verdict('pets-lr', wrecked, unfrozen, 7/8) == HOLDS
            and verdict('pets-lr', unfrozen, wrecked, 7/8) == FAILS)
    assert verdict('pets-lr', wrecked, wrecked, 7/8) != HOLDS
