"Each statement of the collaborative-filtering section holds on a right thing and fails on a broken one."
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.collab import CollabDataLoaders
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import Module, set_seed
from test_collab import final, floor_of, loaders, planted, seed, sizes, train, trained

from lesson6.claims import statements
from lesson6.collab import DotProductBias, create_params, ratings_dls, ratings_learner, similar_items


def holds(id, *measured): return bool(statements[id].check(*measured)[0])


@cache
def drawn_with_replacement():
    "The same recipe on the same ratings, drawn as fastai draws them"
    dls = loaders()
    n = len(dls.train_ds)
    again = dls.train.new(get_idxs=lambda: torch.randint(n, (n,)))
    return final(train(DataLoaders(again, dls.valid, device='cpu'), lambda: DotProductBias(*sizes(dls), 50), .1))


@cache
def without_decay(): return final(trained(None))


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
    stock = CollabDataLoaders.from_df(planted(), item_name='title', rating_name='rating', bs=64, seed=42, device='cpu')
    assert not holds('collab-epoch', *counts(stock, torch.tensor(stock.train_ds.cats.to_numpy())))
    drawn, held = counts(loaders(), loaders().train_ds.x)
    drawn[0] = 0
    assert not holds('collab-epoch', drawn, held)


@pytest.mark.ci
def test_replacement():
    once, replaced = final(trained())[1], drawn_with_replacement()[1]
    assert holds('collab-replacement', once, replaced)
    assert not holds('collab-replacement', replaced, once) and not holds('collab-replacement', once, once)


@pytest.mark.ci
def test_order():
    assert holds('collab-order', .884, .878, .893, .823)            # the lesson's own
    assert not holds('collab-order', .878, .884, .893, .823)        # the range does not help
    assert not holds('collab-order', .884, .878, .870, .823)        # the biases do not overfit
    assert not holds('collab-order', .884, .878, without_decay()[1], without_decay()[1])    # no decay at all


@pytest.mark.ci
def test_overfits():
    assert holds('collab-overfits', without_decay(), final(trained()))
    assert not holds('collab-overfits', final(trained()), without_decay())
    assert not holds('collab-overfits', without_decay(), without_decay())


@pytest.mark.ci
def test_floor():
    floor, y = floor_of(loaders()), loaders().valid_ds.y
    assert holds('collab-floor', final(trained())[1], floor)
    assert not holds('collab-floor', y.var().item(), floor)         # the same guess for all
    assert not holds('collab-floor', 0., floor)                     # validated on what it was trained on
    assert not holds('collab-floor', drawn_with_replacement()[1], floor)


def test_faster():
    large = ratings_dls(planted(), bs=1024, seed=seed, device='cpu')
    def fast(lr, wd):
        set_seed(seed, reproducible=True)
        learn = ratings_learner(large)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, lr, wd=wd)
        return learn.recorder.values[-1][1]
    assert holds('collab-faster', fast(1e-2, [.6, 0.]), final(trained())[1])
    assert not holds('collab-faster', fast(5e-3, .1), final(trained())[1])      # larger batches, and nothing to match


class Params(Module):
    "`DotProductBias` from parameters"
    def __init__(self, n_users, n_movies, n_factors):
        self.user_factors, self.user_bias = create_params([n_users, n_factors]), create_params([n_users, 1])
        self.movie_factors, self.movie_bias = create_params([n_movies, n_factors]), create_params([n_movies, 1])

    def forward(self, x):
        res = (self.user_factors[x[:,0]] * self.movie_factors[x[:,1]]).sum(dim=1, keepdim=True)
        return torch.sigmoid(res + self.user_bias[x[:,0]] + self.movie_bias[x[:,1]])*5.5


class Unbiased(Params):
    def forward(self, x): return torch.sigmoid((self.user_factors[x[:,0]] * self.movie_factors[x[:,1]]).sum(dim=1, keepdim=True))*5.5 + 0*self.user_bias.sum() + 0*self.movie_bias.sum()


class Frozen(Params):
    def forward(self, x): return super().forward(x) + (self.user_factors - self.user_factors.detach()).sum()


@pytest.mark.parametrize('cls, right', [(Params, True), (Unbiased, False), (Frozen, False)])
def test_own_embedding(cls, right):
    model, own = trained().model, cls(*sizes(loaders()), 50)
    own.load_state_dict({k.replace('.weight', ''): v for k,v in model.state_dict().items()})
    x, y = loaders().valid_ds.x[:64], loaders().valid_ds.y[:64]
    assert holds('collab-own-embedding', model, own, x, y) == right


def test_biases():
    mean = planted().groupby('title').rating.mean()
    of = lambda model: pd.Series(model.movie_bias.weight.detach()[1:,0], index=loaders().classes['title'][1:])
    assert holds('collab-biases', of(trained().model), mean)
    assert not holds('collab-biases', -of(trained().model), mean)
    assert not holds('collab-biases', of(DotProductBias(*sizes(loaders()), 50)), mean)


def test_neighbours():
    table = planted()
    rest = table.rating - table.groupby('user').rating.transform('mean') - table.groupby('title').rating.transform('mean')
    alike = table.assign(rest=rest).pivot(index='user', columns='title', values='rest').corr(min_periods=10)
    often = table.title.value_counts().index[:30]
    chance = alike.loc[often, often].to_numpy()[np.triu_indices(30, 1)]
    def neighbours(learn): return [alike.loc[a, b] for a in often for b in similar_items(learn, a).title]
    untrained = Learner(loaders(), DotProductBias(*sizes(loaders()), 50))
    assert holds('collab-neighbours', neighbours(trained()), chance)
    assert not holds('collab-neighbours', neighbours(untrained), chance)
    assert not holds('collab-neighbours', [np.nan]*50, chance)


def test_newcomer():
    "A model that knows the person is better than the average user; one that learnt nothing from the answers is not"
    x, y = loaders().valid_ds.x, loaders().valid_ds.y.flatten()
    model = trained().model
    with torch.no_grad():
        known = (model(x).flatten() - y).pow(2).mean().item()
        average = (5.5*torch.sigmoid(model.movie_factors(x[:,1])@model.user_factors.weight[1:].mean(0) + model.user_bias.weight[1:].mean() + model.movie_bias(x[:,1])[:,0]) - y).pow(2).mean().item()
    assert holds('collab-newcomer', average, known)
    assert not holds('collab-newcomer', average, average) and not holds('collab-newcomer', known, average)
