"Each statement of the regularisation section holds on a right thing and fails on a broken one, both measured here."
import numpy as np
import pytest
import torch
from fastai.callback import progress, schedule  # noqa: F401 (they give learners no_bar and fit_one_cycle)
from torch import nn

from lesson6.claims import statements
from lesson6.regularisation import affine_picture, affine_points, dots, find_dots, l2_penalty, point_drift, wd_sweep, weight_decay_step


def check(id, *measured):
    holds, text = statements[id].check(*measured)
    assert text and 'nan' not in text.lower()
    return bool(holds)


# Ratings made up here, few enough to train on in a second: 60 users, 40 films, two planted factors, a good deal of noise

def made_up(noise=1.):
    import pandas as pd
    g = np.random.default_rng(0)
    p, q = g.normal(size=(60, 2)), g.normal(size=(40, 2))
    u, i = np.divmod(g.permutation(60*40)[:1500], 40)
    y = 3 + .6*(p[u]*q[i]).sum(1) + noise*g.normal(size=len(u))
    return pd.DataFrame({'user': u, 'title': [f'film {o}' for o in i], 'rating': y.clip(1, 5).astype(np.float32)})


def learner(dls, n_factors=50):
    from fastai.losses import MSELossFlat
    from fastai.torch_core import set_seed
    from lesson6.collab import DotProductBias, LeanLearner
    set_seed(42, reproducible=True)
    return LeanLearner(dls, DotProductBias(*(len(dls.classes[o]) for o in ('user', 'title')), n_factors), loss_func=MSELossFlat())


@pytest.fixture(scope='module')
def dls():
    from lesson6.collab import ratings_dls
    return ratings_dls(made_up(), bs=32, seed=42, device='cpu')


def losses(learn, epochs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-2, **kwargs)
    return np.array(learn.recorder.values)[:,:2].T


def test_overfits(dls):
    from fastai.data.core import DataLoaders
    assert check('reg-overfits', *losses(learner(dls), 6))
    assert not check('reg-overfits', *losses(learner(dls), 6, wd=3))                              # held back by weight decay
    leaky = DataLoaders(dls.train, dls.train)
    leaky.classes = dls.classes
    assert not check('reg-overfits', *losses(learner(leaky), 6))                                  # validated on what it was trained on


@pytest.fixture(scope='module')
def sweep():
    from lesson6.collab import ratings_dls
    clearer = ratings_dls(made_up(noise=.6), bs=32, seed=42, device='cpu')
    return wd_sweep(lambda: learner(clearer), [.01, .1, .3, 1, 3], n_epoch=6, lr=2e-2, progress=False)


def blind(dls):
    "A learner whose optimiser forgets weight decay"
    from fastai.optimizer import Adam
    learn = learner(dls)
    learn.opt_func = lambda params, lr, **kwargs: Adam(params, lr, wd=0)
    learn.create_opt()
    learn.opt.set_hyper = lambda k, v, was=learn.opt.set_hyper: None if k == 'wd' else was(k, v)
    learn.wd = 0
    fit = learn.fit_one_cycle
    learn.fit_one_cycle = lambda n, lr, wd: fit(n, lr, wd=0)
    return learn


@pytest.fixture(scope='module')
def without_decay(dls): return wd_sweep(lambda: blind(dls), [.01, .1, 3], n_epoch=6, lr=2e-2, progress=False)


@pytest.mark.ci
def test_wd_middle(sweep, without_decay):
    assert check('reg-wd-middle', sweep)
    assert check('reg-wd-middle', sweep[::-1])
    best = sweep.wd[sweep.valid_loss.idxmin()]
    assert not check('reg-wd-middle', sweep[sweep.wd <= best])          # a sweep that ends too early: the best is at its end
    assert not check('reg-wd-middle', sweep[sweep.wd >= best])          # or begins too late
    assert not check('reg-wd-middle', without_decay)                    # an optimiser that forgets it


def test_wd_lesson(sweep, without_decay):
    "These few ratings are so noisy that they need ten times the lesson's decay, so 0.1 is the best only of what is up to 0.1."
    assert check('reg-wd-lesson', sweep[sweep.wd <= .1])
    assert not check('reg-wd-lesson', sweep)                            # ratings that need far more
    assert not check('reg-wd-lesson', without_decay)                    # an optimiser that forgets it


def test_wd_shrinks(sweep, without_decay):
    assert check('reg-wd-shrinks', sweep)
    assert not check('reg-wd-shrinks', without_decay)
    assert not check('reg-wd-shrinks', sweep.assign(wd=sweep.wd.iloc[::-1].to_numpy()))  # taken the wrong way round


# The penalty and the steps

def gradient(penalty):
    p = torch.randn(500, generator=torch.Generator().manual_seed(0)).requires_grad_()
    penalty(p).backward()
    return p.detach(), p.grad, .1


@pytest.mark.parametrize('broken', [lambda p: .1*p.abs().sum(), lambda p: .05*p.pow(2).sum(), lambda p: .1*p.pow(2).mean(), lambda p: -l2_penalty(p, .1)],
                         ids=['L1', 'half', 'mean', 'sign'])
def test_penalty_gradient(broken):
    assert check('reg-penalty-gradient', *gradient(lambda p: l2_penalty(p, .1)))
    assert not check('reg-penalty-gradient', *gradient(broken))


def trained(step, make_opt=None):
    "The weights of a small model after 30 steps, by `step(params)` or by an optimiser"
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)), (torch.randn(32, 5), torch.randn(32, 1))
    opt = make_opt(model.parameters()) if make_opt else None
    for _ in range(30):
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        opt.step() if opt else step(list(model.parameters()))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@torch.no_grad()
def decay_after(params):
    for p in params: p.sub_(.1*p.grad).mul_(1-2*.1*.01)


@pytest.mark.parametrize('broken', [lambda ps: weight_decay_step(ps, .1, .005), lambda ps: weight_decay_step(ps, .1, 0), decay_after], ids=['no 2', 'no decay', 'decay after the step'])
def test_sgd_same(broken):
    theirs = trained(None, lambda ps: torch.optim.SGD(ps, .1, weight_decay=.02))
    assert check('reg-sgd-same', trained(lambda ps: weight_decay_step(ps, .1, .01)), theirs)
    assert not check('reg-sgd-same', trained(broken), theirs)
    assert not check('reg-sgd-same', trained(lambda ps: weight_decay_step(ps, .1, .01)), trained(None, lambda ps: torch.optim.AdamW(ps, .1, weight_decay=.02)))


def left(opt, loudness=10., **kwargs):
    g, p = torch.Generator().manual_seed(0), nn.Parameter(torch.ones(10_000))
    loud = loudness*torch.cat([torch.full((5000,), 1.), torch.full((5000,), .01)])
    o = opt([p], 1e-2, weight_decay=.1, **kwargs)
    for _ in range(300):
        p.grad = loud*torch.randn(10_000, generator=g)
        o.step()
    return p[:5000].mean().item(), p[5000:].mean().item()


def test_adam_differs():
    from torch.optim import SGD, Adam, AdamW
    assert check('reg-adam-differs', left(Adam), left(AdamW))
    assert not check('reg-adam-differs', left(Adam, 1.), left(AdamW))  # gradients so small that the large ones lose as much as if decoupled
    assert not check('reg-adam-differs', left(AdamW), left(AdamW))     # nothing was coupled
    assert not check('reg-adam-differs', left(Adam), left(Adam))       # nothing was decoupled
    assert not check('reg-adam-differs', left(SGD), left(SGD))         # for SGD the two are one
    assert not check('reg-adam-differs', left(Adam), (1., 1.))         # no decay at all


# Points

def test_points_move():
    from fastai.torch_core import TensorBase, set_seed
    from fastai.vision.augment import aug_transforms
    from fastai.vision.core import TensorPoint
    set_seed(0)
    moved, forgotten = (point_drift(aug_transforms(), kind) for kind in (TensorPoint, TensorBase))
    assert check('reg-points-move', moved, forgotten)
    assert not check('reg-points-move', forgotten, forgotten)                  # a point not moved
    assert not check('reg-points-move', moved, moved)                          # augmentation that does nothing to a forgotten one
    x, p = dots(16, generator=torch.Generator().manual_seed(0))
    turn = torch.tensor([[.9, -.3, 0], [.3, .9, 0]])
    def drift(points): return ((find_dots(affine_picture(x, turn)) - points)*torch.tensor([40., 30])).norm(dim=-1).squeeze(1)
    assert check('reg-points-move', drift(affine_points(p, turn)), forgotten)
    there = torch.cat([p, torch.ones(16, 1, 1)], 2) @ turn.t()
    assert not check('reg-points-move', drift(there), forgotten)               # moved the wrong way: by the map, not by its inverse


@pytest.fixture(scope='module')
def pose():
    "Errors (on the dots trained on, on others) of a small network that finds dots mirrored never, with their points, or without them"
    g = torch.Generator().manual_seed(0)
    x, p = dots(160, (24, 32), g)
    x, p = x[:,:1] + .25*torch.randn(160, 1, 24, 32, generator=g), p[:,0]
    mirror = torch.tensor([[-1., 0, 0], [0, 1, 0]])
    def train(seen, move=None, epochs=150):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8*12*16, 2))
        opt = torch.optim.AdamW(net.parameters(), 2e-3)
        for _ in range(epochs):
            xb, pb = x[seen], p[seen]
            if move:
                shift = torch.rand(len(seen), 2, generator=g)*.6 - .3
                flip = torch.where(torch.rand(len(seen), 1, 1, generator=g) < .5, mirror, torch.eye(2, 3))
                mats = torch.cat([flip[:,:,:2], shift[...,None]], 2)
                xb, pb = affine_picture(xb, mats), affine_points(pb, mats) if move == 'both' else pb
            opt.zero_grad()
            nn.functional.mse_loss(net(xb), pb).backward()
            opt.step()
        with torch.no_grad(): return [((net(x[o])-p[o])*torch.tensor([16., 12])).norm(dim=1).mean().item() for o in (seen, range(80, 160))]
    return {'none': train(range(20)), 'moved': train(range(20), 'both'), 'forgotten': train(range(20), 'picture'), 'many': train(range(80))}


def test_augmentation(pose):
    assert check('reg-augmentation', pose['none'], pose['moved'])
    assert not check('reg-augmentation', pose['none'], pose['forgotten'])   # points not moved
    assert not check('reg-augmentation', pose['none'], pose['none'])        # transforms that do nothing
    assert not check('reg-augmentation', pose['moved'], pose['none'])


def test_point_forgotten(pose):
    assert check('reg-point-forgotten', pose['moved'], pose['forgotten'])
    assert not check('reg-point-forgotten', pose['moved'], pose['moved'])   # nothing was forgotten


# Dropout and early stopping

def test_dropout_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000)
    right = nn.functional.dropout(x, .3)
    assert check('reg-dropout-mean', x, right, .3)
    for broken in (right*.7, x, nn.functional.dropout(x, .7), right.clamp(max=1), nn.functional.dropout(x, .3, training=False), right + .01*(right == 0)):
        assert not check('reg-dropout-mean', x, broken, .3)                 # not scaled, nothing dropped, the share that is kept ...


def test_early_stopping(dls):
    from fastai.callback.tracker import EarlyStoppingCallback
    def run(epochs, **kwargs):
        learn = learner(dls)
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, cbs=EarlyStoppingCallback(monitor='valid_loss', **kwargs))
        return np.array(learn.recorder.values)[:,1], epochs
    assert check('reg-early-stopping', *run(12, patience=1))
    assert not check('reg-early-stopping', *run(12, patience=50))           # never stops
    assert not check('reg-early-stopping', *run(2, patience=1))             # too short to see
    assert not check('reg-early-stopping', *run(12, patience=1, comp=np.greater))  # watches for the worst
