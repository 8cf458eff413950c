"""Each statement of the regularisation section holds on a right thing and fails on a broken one,
both measured here."""
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback import progress, schedule  # noqa: F401, for learners
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.losses import MSELossFlat
from fastai.torch_core import TensorBase, set_seed
from fastai.vision.augment import aug_transforms
from fastai.vision.core import TensorPoint
from test_claims import holds, verdict
from torch import nn
from torch.optim import SGD, Adam, AdamW

from lesson6.claims import EVEN, FAILS, HOLDS, UNASKED
from lesson6.collab import DotProductBias, LeanLearner, ratings_dls
from lesson6.engine.augmentation import affine_picture, affine_points, dots, find_dots, point_drift
from lesson6.engine.weight_decay import l2_penalty, weight_decay_step


# Ratings made up here, few enough to train on in a second: 60 users, 40 films, two planted factors,
# a good deal of noise

def made_up(noise=1.):
    g = np.random.default_rng(0)
    p, q = g.normal(size=(60, 2)), g.normal(size=(40, 2))
    u, i = np.divmod(g.permutation(60*40)[:1500], 40)
    y = 3 + .6*(p[u]*q[i]).sum(1) + noise*g.normal(size=len(u))
    return pd.DataFrame({'user': u, 'title': [f'film {o}' for o in i],
                         'rating': y.clip(1, 5).astype(np.float32)})


def learner(dls, n_factors=50):
    set_seed(42, reproducible=True)
    return LeanLearner(dls, DotProductBias(*(len(dls.classes[o]) for o in ('user', 'title')),
                                           n_factors), loss_func=MSELossFlat())


@pytest.fixture(scope='module')
def dls():
    return ratings_dls(made_up(), bs=32, seed=42, device='cpu')


def losses(learn, epochs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-2, **kwargs)
    return np.array(learn.recorder.values)[:,:2].T


def test_overfits(dls):
    assert holds('reg-overfits', *losses(learner(dls), 6), 300)
    # held back by weight decay
    assert not holds('reg-overfits', *losses(learner(dls), 6, wd=3), 300)
    leaky = DataLoaders(dls.train, dls.train)
    leaky.classes = dls.classes
    # validated on what it was trained on
    assert not holds('reg-overfits', *losses(learner(leaky), 6), 300)


def test_not_asked():
    one = pd.DataFrame({'seed': 1, 'wd': [.01, .1, 1], 'valid_loss': [2, 1, 3],
                        'train_loss': [1, 2, 3], 'size': [3, 2, 1]})
    two = pd.concat([one, one.assign(seed=2)])
    for id in ('reg-wd-middle', 'reg-wd-lesson', 'reg-wd-shrinks'):
        assert (verdict(id, one) == verdict(id, two.replace(3, np.nan).replace(1, np.nan))
                == verdict(id, one.drop(columns='seed')) == UNASKED)
    fell = np.array([3., 2, 1])
    assert (verdict('reg-overfits', fell, fell, 9) == verdict('reg-early-stopping', fell, 3)
            == verdict('reg-points-move', [], [])
            == verdict('reg-augmentation', *[np.arange(9.)]*4, None) == UNASKED)
    assert ([verdict('reg-overfits', fell, np.array([3., 2, 2.02]), n) for n in (100, 8000)]
            == [EVEN, HOLDS])


# The penalty and the steps

def gradient(penalty):
    p = torch.randn(500, generator=torch.Generator().manual_seed(0)).requires_grad_()
    penalty(p).backward()
    return p.detach(), p.grad, .1


@pytest.mark.parametrize('broken', [lambda p: .1*p.abs().sum(), lambda p: .05*p.pow(2).sum(),
                                    lambda p: .1*p.pow(2).mean(), lambda p: -l2_penalty(p, .1)],
                         ids=['L1', 'half', 'mean', 'sign'])
def test_penalty_gradient(broken):
    assert holds('reg-penalty-gradient', *gradient(lambda p: l2_penalty(p, .1)))
    assert not holds('reg-penalty-gradient', *gradient(broken))


def trained(step, make_opt=None):
    "The weights of a small model after 30 steps, by `step(params)` or by an optimiser"
    torch.manual_seed(0)
    model, (x, y) = (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)),
                     (torch.randn(32, 5), torch.randn(32, 1)))
    opt = make_opt(model.parameters()) if make_opt else None
    for _ in range(30):
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        opt.step() if opt else step(list(model.parameters()))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@torch.no_grad()
def decay_after(params):
    for p in params: p.sub_(.1*p.grad).mul_(1-2*.1*.01)


@pytest.mark.parametrize('broken',
                         [lambda ps: weight_decay_step(ps, .1, .005),
                          lambda ps: weight_decay_step(ps, .1, 0), decay_after],
                         ids=['no 2', 'no decay', 'decay after the step'])
def test_sgd_same(broken):
    theirs = trained(None, lambda ps: torch.optim.SGD(ps, .1, weight_decay=.02))
    assert holds('reg-sgd-same', trained(lambda ps: weight_decay_step(ps, .1, .01)), theirs)
    assert not holds('reg-sgd-same', trained(broken), theirs)
    assert not holds('reg-sgd-same', trained(lambda ps: weight_decay_step(ps, .1, .01)),
                     trained(None, lambda ps: torch.optim.AdamW(ps, .1, weight_decay=.02)))


def left(opt, loudness=10., **kwargs):
    g, p = torch.Generator().manual_seed(0), nn.Parameter(torch.ones(10_000))
    loud = loudness*torch.cat([torch.full((5000,), 1.), torch.full((5000,), .01)])
    o = opt([p], 1e-2, weight_decay=.1, **kwargs)
    for _ in range(300):
        p.grad = loud*torch.randn(10_000, generator=g)
        o.step()
    return p[:5000].mean().item(), p[5000:].mean().item()


def test_adam_differs():
    assert holds('reg-adam-differs', left(Adam), left(AdamW))
    # gradients so small that the large ones lose as much as if decoupled
    assert not holds('reg-adam-differs', left(Adam, 1.), left(AdamW))
    assert not holds('reg-adam-differs', left(AdamW), left(AdamW))     # nothing was coupled
    assert not holds('reg-adam-differs', left(Adam), left(Adam))       # nothing was decoupled
    assert not holds('reg-adam-differs', left(SGD), left(SGD))         # for SGD the two are one
    assert not holds('reg-adam-differs', left(Adam), (1., 1.))         # no decay at all


# Points

def test_points_move():
    set_seed(0)
    moved, forgotten = (point_drift(aug_transforms(), kind) for kind in (TensorPoint, TensorBase))
    assert holds('reg-points-move', moved, forgotten)
    assert not holds('reg-points-move', forgotten, forgotten)                  # a point not moved
    # augmentation that does nothing to a forgotten one
    assert not holds('reg-points-move', moved, moved)
    x, p = dots(16, generator=torch.Generator().manual_seed(0))
    turn = torch.tensor([[.9, -.3, 0], [.3, .9, 0]])
    def drift(points):
        return (((find_dots(affine_picture(x, turn)) - points)*torch.tensor([40., 30])).norm(dim=-1)
                .squeeze(1))
    assert holds('reg-points-move', drift(affine_points(p, turn)), forgotten)
    there = torch.cat([p, torch.ones(16, 1, 1)], 2) @ turn.t()
    # moved the wrong way: by the map, not by its inverse
    assert not holds('reg-points-move', drift(there), forgotten)


@pytest.fixture(scope='module')
def pose():
    """Pixels off (on the dots trained on, on others) of a small network that finds dots mirrored
    never, with their points, or without them, from any seed"""
    g = torch.Generator().manual_seed(0)
    x, p = dots(160, (24, 32), g)
    x, p = x[:,:1] + .25*torch.randn(160, 1, 24, 32, generator=g), p[:,0]
    mirror, seen, others = torch.tensor([[-1., 0, 0], [0, 1, 0]]), range(20), range(80, 160)
    def train(move=None, seed=0):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Flatten(),
                            nn.Linear(8*12*16, 2))
        opt = torch.optim.AdamW(net.parameters(), 2e-3)
        for _ in range(150):
            xb, pb = x[seen], p[seen]
            if move:
                shift = torch.rand(len(seen), 2)*.6 - .3
                flip = torch.where(torch.rand(len(seen), 1, 1) < .5, mirror, torch.eye(2, 3))
                mats = torch.cat([flip[:,:,:2], shift[...,None]], 2)
                xb, pb = affine_picture(xb, mats), affine_points(pb, mats) if move == 'both' else pb
            opt.zero_grad()
            nn.functional.mse_loss(net(xb), pb).backward()
            opt.step()
        with torch.no_grad():
            return [((net(x[o])-p[o])*torch.tensor([16., 12])).norm(dim=1) for o in (seen, others)]
    return train


def test_augmentation_and_forgotten_points(pose):
    "From another seed nothing can be told apart"
    plain, again, moved, moved_again, forgotten = (pose(), pose(seed=1), pose('both'),
                                                   pose('both', 1), pose('picture'))
    def both(a, b, people=None):
        return verdict('reg-augmentation', a[0], b[0], a[1], b[1], people or range(len(a[1])))
    assert verdict('reg-augmentation', *plain, *moved, None) == 'not asked'
    assert [both(plain, o) for o in (moved, again)] == [HOLDS, EVEN] and both(moved, plain) == FAILS
    assert ([verdict('reg-point-forgotten', moved[1], o[1]) for o in (forgotten, moved_again)]
            == [HOLDS, EVEN])
    assert verdict('reg-point-forgotten', forgotten[1], moved[1]) == FAILS


# Dropout and early stopping

def test_dropout_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000)
    right = nn.functional.dropout(x, .3)
    assert holds('reg-dropout-mean', x, right, .3)
    for broken in (right*.7, x, nn.functional.dropout(x, .7), right.clamp(max=1),
                   nn.functional.dropout(x, .3, training=False), right + .01*(right == 0)):
        # not scaled, nothing dropped, the share that is kept ...
        assert not holds('reg-dropout-mean', x, broken, .3)


def test_early_stopping(dls):
    def run(epochs, **kwargs):
        learn = learner(dls)
        with learn.no_bar(), learn.no_logging():
            learn.fit(epochs, 1e-2, cbs=EarlyStoppingCallback(monitor='valid_loss', **kwargs))
        return np.array(learn.recorder.values)[:,1], epochs
    assert holds('reg-early-stopping', *run(12, patience=1))
    assert not holds('reg-early-stopping', *run(12, patience=50))           # never stops
    assert not holds('reg-early-stopping', *run(2, patience=1))             # too short to see
    # watches for the worst
    assert not holds('reg-early-stopping', *run(12, patience=1, comp=np.greater))
