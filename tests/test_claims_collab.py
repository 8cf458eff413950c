"""Each statement of the collaborative-filtering section holds on a right thing and fails on a
broken one."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.collab import CollabDataLoaders
from fastai.learner import Learner
from fastai.torch_core import Module, set_seed
from test_claims import holds, verdict
from test_collab import loaders, planted, sizes

from lesson6.claims import EVEN, FAILS, HOLDS, UNASKED
from lesson6.collab import DotProductBias, create_params, ratings_dls, ratings_learner
from lesson6.mini.movielens import best_guess, truth


def test_by_hand():
    user, film, other = (np.array(o) for o in ((.9, .8, -.6), (.98, .9, -.9), (-.99, -.3, .8)))
    assert holds('collab-by-hand', user, film, other)
    assert not holds('collab-by-hand', user, other, film)
    assert not holds('collab-by-hand', user, np.abs(film), other)


def test_one_hot():
    m = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert holds('collab-one-hot', m, torch.eye(20), torch.arange(20))
    assert not holds('collab-one-hot', m, torch.eye(20), torch.arange(20).roll(1))
    assert not holds('collab-one-hot', m, 2*torch.eye(20), torch.arange(20))


def counts(dls, x):
    n = len(dls.classes['title'])
    number = lambda x: (x[:,0].long()*n + x[:,1]).bincount(minlength=n*len(dls.classes['user']))
    held = number(x)
    return sum(number(b[0]) for b in dls.train)[held>0], held[held>0]


def test_epoch():
    assert holds('collab-epoch', *counts(loaders(), loaders().train_ds.x))
    stock = CollabDataLoaders.from_df(planted(), item_name='title', rating_name='rating', bs=64,
                                      seed=42, device='cpu')
    assert not holds('collab-epoch', *counts(stock, torch.tensor(stock.train_ds.cats.to_numpy())))
    drawn, held = counts(loaders(), loaders().train_ds.x)
    drawn[0] = 0
    assert not holds('collab-epoch', drawn, held)


class Params(Module):
    "`DotProductBias` from parameters"
    def __init__(self, n_users, n_movies, n_factors):
        self.user_factors, self.user_bias = (create_params([n_users, n_factors]),
                                             create_params([n_users, 1]))
        self.movie_factors, self.movie_bias = (create_params([n_movies, n_factors]),
                                               create_params([n_movies, 1]))

    def forward(self, x):
        res = (self.user_factors[x[:,0]] * self.movie_factors[x[:,1]]).sum(dim=1, keepdim=True)
        return torch.sigmoid(res + self.user_bias[x[:,0]] + self.movie_bias[x[:,1]])*5.5


class Unbiased(Params):
    def forward(self, x):
        return (torch.sigmoid((self.user_factors[x[:,0]] * self.movie_factors[x[:,1]])
                              .sum(dim=1, keepdim=True))*5.5 + 0*self.user_bias.sum()
                + 0*self.movie_bias.sum())


class Frozen(Params):
    def forward(self, x):
        return super().forward(x) + (self.user_factors - self.user_factors.detach()).sum()


@pytest.mark.parametrize('cls, right', [(Params, True), (Unbiased, False), (Frozen, False)])
def test_own_embedding(cls, right):
    model, own = DotProductBias(*sizes(loaders()), 50, (0, 5.5)), cls(*sizes(loaders()), 50)
    own.load_state_dict({k.replace('.weight', ''): v for k,v in model.state_dict().items()
                         if k.endswith('.weight')})
    x, y = loaders().valid_ds.x[:64], loaders().valid_ds.y[:64]
    assert holds('collab-own-embedding', model, own, x, y) == right


@cache
def fast(seed, epochs=5):
    """Trained in large batches, from the weights and in the order of a seed; the split is the same
    for all"""
    large = ratings_dls(planted(), bs=1024, seed=42, device='cpu')
    set_seed(seed, reproducible=True)
    learn = ratings_learner(large)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2, wd=[.6, 0.])
    return learn


@pytest.mark.parametrize('id', ['collab-replacement', 'collab-range', 'collab-bias-overfits',
                                'collab-factors', 'collab-faster', 'reg-penalty-in-loss'])
def test_the_same_from_other_seeds_cannot_be_told_apart(id):
    for a, b in ((1, 2), (2, 3), (3, 1)): assert verdict(id, fast(a), fast(b)) == EVEN
    # two epochs against five
    short = verdict(id, fast(1), fast(1, 2)), verdict(id, fast(1, 2), fast(1))
    assert set(short) == {HOLDS, FAILS}


def test_floor():
    floor, y = ((best_guess(truth(), *(ids(c) for c in ('user', 'title')))[0]
                 - valid().flatten())**2, valid().flatten())
    assert (verdict('collab-floor', fast(1), floor) == HOLDS
            and verdict('collab-floor', fast(1), None) == UNASKED)
    # the same guess for all
    assert verdict('collab-floor', (y-y.mean())**2, floor) == FAILS
    # validated on what it was trained on
    assert verdict('collab-floor', 0*floor, floor) == FAILS


def valid(): return fast(1).dls.valid_ds.y.float().numpy()


def ids(column):
    return np.array([int(fast(1).dls.classes[column][i]) for i in fast(1)
                     .dls.valid_ds.x[:,'user title'.split().index(column)].tolist()])


def test_biases():
    of = lambda learn: pd.Series(learn.model.movie_bias.weight.detach()[1:,0].cpu(),
                                 index=learn.dls.classes['title'][1:])
    mean = (pd.Series(valid().flatten(),
                      index=[fast(1).dls.classes['title'][i] for i in fast(1)
                             .dls.valid_ds.x[:,1].tolist()]).groupby(level=0).mean())
    assert verdict('collab-biases', of(fast(1)), mean) == HOLDS
    assert verdict('collab-biases', -of(fast(1)), mean) == FAILS
    # untrained
    assert verdict('collab-biases', of(Learner(loaders(), DotProductBias(*sizes(loaders()), 50))),
                   mean) == EVEN
    assert (verdict('collab-biases', of(fast(1))[:5], mean)
            == verdict('collab-biases', 0*of(fast(1)), mean) == UNASKED)


def test_not_asked():
    assert (verdict('collab-neighbours', [np.nan]*50, np.ones(50))
            == verdict('collab-newcomer', [], []) == UNASKED)
