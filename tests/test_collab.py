"""Collaborative filtering: what a notebook cannot show.

The lesson's recipe on the three splits of the real ratings (a minute), and its four models (four
minutes):

    LESSON6_SEEDS=42,1,2 pytest tests/test_collab.py -k real_recipe -s
    pytest tests/test_collab.py -m slow -s
"""
import gzip
import inspect
import os
import pickle
import re
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import python
from fastai.callback.core import Callback, CancelFitException
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.learner import Learner, load_learner
from fastai.losses import MSELossFlat
from fastai.optimizer import Adam, OptimWrapper
from fastai.tabular.core import TabDataLoader
from fastai.tabular.model import get_emb_sz
from fastai.torch_core import set_seed

from lesson6.collab import (CollabNN, DotProduct, DotProductBias, LeanLearner, Newcomers,
                            create_params, extreme_items, factor_map, fit_ratings, ratings_dls,
                            ratings_learner, read_ratings, recommend, similar_items)
from lesson6.data import lesson_path
from lesson6.engine.rating_learners import fused_learner
from lesson6.engine.rating_scales import range_for
from lesson6.engine.rating_tables import movielens_files
from lesson6.engine.ratings import lowest_errors
from lesson6.engine.ratings_at_scale import parquet_dls
from lesson6.engine.recommending import taste_agreement
from lesson6.mini.movielens import best_guess, film_similarity, stars, truth, who_rates_what

warnings.filterwarnings('ignore', message='The given NumPy array is not writable')
seed = int(os.environ.get('LESSON6_SEED', 42))


@cache
def planted():
    "The ratings of the twin as a table, made without files: titles are the numbers of the films"
    t = truth()
    users, films = who_rates_what(t, 40_000)
    return pd.DataFrame({'user': users, 'movie': films, 'rating': stars(t, users, films),
                         'title': [f'{f:03d}' for f in films]})


@cache
def loaders(): return ratings_dls(planted(), bs=64, seed=seed, device='cpu')


def sizes(dls): return len(dls.classes['user']), len(dls.classes['title'])


def train(dls, model, wd=None, epochs=5):
    "The lesson's recipe, quietly, on one thread; the learner"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        set_seed(seed, reproducible=True)
        learn = LeanLearner(dls, model() if callable(model)
                            and not isinstance(model, torch.nn.Module) else model,
                            loss_func=MSELossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 5e-3, wd=wd)
    finally: torch.set_num_threads(threads)
    learn.at_the_end = learn.recorder.values[-1]      # kept, for predicting overwrites them
    return learn


@cache
def trained():
    "`DotProductBias` on the twin"
    return train(loaders(), lambda: DotProductBias(*sizes(loaders()), 50), .1)


def final(learn): return learn.at_the_end


@pytest.fixture
def learn(): return trained()


@pytest.fixture
def small():
    "300 ratings by 12 users of 30 films"
    pairs = torch.randperm(360, generator=torch.Generator().manual_seed(1))[:300].numpy()
    return pd.DataFrame({'user': pairs//30 + 1, 'title': [f'Film {i:02d}' for i in pairs%30],
                         'rating': pairs%5 + 1})


# What an epoch sees

def pairs(x): return sorted((a, b) for a, b in x.tolist())


def assert_once(dls, epochs=2):
    "That every epoch draws every training rating exactly once"
    held = pairs(dls.train_ds.x if hasattr(dls.train_ds, 'x')
                 else torch.tensor(dls.train_ds.cats.to_numpy()))
    for _ in range(epochs):
        drawn = pairs(torch.cat([b[0] for b in dls.train]))
        # compared here, because in CI pytest would spend hours on showing how 32,000 rows differ
        once = drawn == held
        assert once, (
            f'{len(held) - len(set(drawn)):,} of {len(held):,} ratings were not drawn in an epoch')


@pytest.mark.parametrize('n', [300, 299, 162, 161])
@pytest.mark.parametrize('bs', [1, 7, 16, 64, 129])
def test_an_epoch_draws_every_rating_once(small, n, bs):
    assert_once(ratings_dls(small[:n], bs=bs, device='cpu'))


def test_an_epoch_of_the_twin_draws_every_rating_once(): assert_once(loaders())


@pytest.mark.ci
def test_an_epoch_of_fastai_does_not():
    """The fault that `ratings_dls` is for. If this fails, fastai has been mended, and the notebook
    has something to tell."""
    stock = CollabDataLoaders.from_df(planted(), item_name='title', rating_name='rating', bs=64,
                                      seed=seed, device='cpu')
    with pytest.raises(AssertionError): assert_once(stock, epochs=1)
    drawn = len(set(pairs(torch.cat([b[0] for b in stock.train]))))
    assert drawn/len(stock.train_ds) == pytest.approx(1 - 1/np.e, abs=.02)


def test_epochs_differ_and_can_be_repeated(small):
    def epochs(s):
        set_seed(s)
        return [torch.cat([b[0] for b in dls.train]).tolist() for _ in range(2)]
    dls = ratings_dls(small, bs=64, device='cpu')
    assert epochs(1) == epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]
    assert torch.cat([b[0] for b in dls.valid]).tolist() == dls.valid_ds.x.tolist()


@pytest.mark.parametrize('n, bs', [(300, 64), (81, 64), (240, 191), (64, 51)])
def test_no_small_last_batch(small, n, bs):
    dls = ratings_dls(small[:n], bs=bs, device='cpu')
    lengths = [len(b[0]) for b in dls.train]
    assert (len(lengths) == len(dls.train) and max(lengths) - min(lengths) <= 1
            and max(lengths) <= bs and sum(lengths) == len(dls.train_ds))


def test_split_is_that_of_fastai(small):
    theirs = CollabDataLoaders.from_df(small, item_name='title', rating_name='rating', bs=16,
                                       seed=3, dl_type=TabDataLoader, device='cpu')
    ours = ratings_dls(small, bs=16, seed=3, device='cpu')
    held_back = small.loc[theirs.valid_ds.items.index]
    assert ours.valid_ds.y.flatten().tolist() == held_back.rating.tolist()
    assert ([ours.classes['user'][i] for i in ours.valid_ds.x[:,0].tolist()]
            == held_back.user.tolist())


def test_the_split_leaves_the_global_generator_alone(small):
    torch.manual_seed(9)
    first = torch.rand(1)
    torch.manual_seed(9)
    ratings_dls(small, bs=16, seed=3)
    assert torch.rand(1) == first


def test_no_seed_is_another_split_each_time(small):
    rated = lambda: ratings_dls(small, bs=16, seed=None).valid_ds.x.tolist()
    assert rated() != rated()


def test_what_only_the_validation_part_has_is_unknown(small):
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(42)).numpy()
    table = small.copy()
    table.loc[order[0], 'title'] = 'Seen once'                 # the first of the order is held back
    dls = ratings_dls(table, bs=16, device='cpu')
    assert 'Seen once' not in dls.classes['title'] and dls.valid_ds.x[0,1] == 0
    assert (dls.train_ds.x > 0).all()


# What fastai does with it

def test_learner_methods(small, monkeypatch):
    dls = ratings_dls(small, bs=16, device='cpu')
    learn = train(dls, DotProductBias(*sizes(dls), 5), epochs=1)
    preds, targs = learn.get_preds()
    assert preds.shape == targs.shape == (60, 1) and torch.equal(targs, dls.valid_ds.y)
    preds, targs = learn.get_preds(ds_idx=0)
    # in the order of the rows, though training shuffles
    assert torch.equal(targs, dls.train_ds.y)
    assert learn.validate()[0] == pytest.approx(float(F.mse_loss(*learn.get_preds())), rel=1e-5)
    shown = []
    monkeypatch.setattr('lesson6.engine.ratings.display_df', shown.append)
    learn.show_results(max_n=3), dls.show_batch(max_n=3)
    columns = ['user', 'title', 'rating']
    assert [list(o) for o in shown] == [[*columns, 'prediction'], columns]
    assert [len(o) for o in shown] == [3, 3]
    assert Learner(dls, learn.model).loss_func is not None


def test_predict_a_row(learn):
    x = loaders().valid_ds.x[:1]
    user, title = (loaders().classes[c][i] for c, i in zip(('user', 'title'), x[0].tolist()))
    with learn.no_bar(), torch.no_grad():
        stars = learn.model(x).item()
        for row in ({'user': user, 'title': title}, (user, title),
                    pd.Series({'title': title, 'user': user})):
            assert learn.predict(row)[0] == pytest.approx(stars)
        preds, targs = learn.get_preds(dl=learn.dls.test_dl(planted()[:50]))
    assert preds.shape == (50, 1) and targs.flatten().tolist() == planted().rating[:50].tolist(), (
        'a table with ratings brings them along')


@pytest.mark.parametrize('make', [lambda dls: DotProduct(*sizes(dls), 5, dls.y_range),
                                  lambda dls: DotProductBias(*sizes(dls), 5, dls.y_range),
                                  lambda dls: CollabNN(*get_emb_sz(dls), dls.y_range)])
def test_any_loss_is_right(small, make):
    """A prediction of another shape than the ratings would make torch compare everybody with
    everybody."""
    dls = ratings_dls(small, bs=16, device='cpu')
    x, y = dls.one_batch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        preds = make(dls)(x)
        assert F.mse_loss(preds, y).item() == pytest.approx(MSELossFlat()(preds, y).item())
    assert preds.shape == y.shape == (len(x), 1) and y.dtype == torch.float32
    assert make(dls)(x.long()).shape == y.shape


def test_half_stars(small):
    dls = ratings_dls(small.assign(rating=small.rating - .5), bs=16, device='cpu')
    assert set(dls.train_ds.y.flatten().tolist()) == {.5, 1.5, 2.5, 3.5, 4.5}


def test_create_params():
    p = create_params([2000, 5])
    assert isinstance(p, torch.nn.Parameter) and p.requires_grad and p.shape == (2000, 5)
    assert p.std().item() == pytest.approx(.01, rel=.1) and abs(p.mean().item()) < 1e-3


def floor_of(dls):
    "MSE on the validation ratings of somebody who knows all that is planted"
    users, films = (np.array([int(dls.classes[c][i]) for i in dls.valid_ds.x[:,j].tolist()])
                    for j, c in enumerate(('user', 'title')))
    return float(((dls.valid_ds.y.flatten().numpy() - best_guess(truth(), users, films)[0])**2)
                 .mean())


def test_error_comes_within_a_tenth_of_what_is_possible(learn):
    floor, mse = floor_of(loaders()), final(learn)[1]
    print(f'validation MSE {mse:.4f}, lowest possible {floor:.4f}, {mse/floor-1:.1%} above')
    assert .95*floor < mse < 1.1*floor


# What was planted, found


def test_neighbours_are_those_that_were_planted(learn):
    alike = film_similarity(truth())
    def mean_cosine(learn):
        return np.mean([alike[int(t)-1, int(o)-1] for t in learn.dls.classes['title'][1:]
                        for o in similar_items(learn, t).title])
    found = mean_cosine(learn)
    print(f'planted cosine of the five neighbours of each film: {found:.2f}')
    assert found > .7
    fresh = Learner(loaders(), DotProductBias(*sizes(loaders()), 50))
    assert abs(mean_cosine(fresh)) < .2, 'an untrained model knows nothing'


def test_the_best_films_rank_first(learn):
    planted_rank = {f'{f:03d}': r for r, f in enumerate((-truth().film_bias).argsort()+1)}
    best, worst = ([planted_rank[t] for t in extreme_items(learn, 5).loc[which].title]
                   for which in ('best', 'worst'))
    print(f'of 240 films, the planted ranks of the five best {best} and of the five worst {worst}')
    assert max(best) < 24 and min(worst) >= 240-24
    ranks = [planted_rank[t] for t in extreme_items(learn, 240).loc['best'].title]
    assert np.corrcoef(ranks, range(240))[0,1] > .85


def test_the_map_shows_the_planted_directions(learn):
    m = factor_map(learn, 240)
    planted_at = truth().film_factors[m.title.astype(int)-1]
    fit = np.linalg.lstsq(np.c_[m.x, m.y], planted_at, rcond=None)[0]
    explained = (1 - ((planted_at - np.c_[m.x, m.y]@fit)**2)
                 .sum()/((planted_at - planted_at.mean(0))**2).sum())
    assert explained > .7


# Reading and recommending

def test_recommend_leaves_out_what_is_rated(learn):
    for user in 1, 100, 280:
        rated, best = set(planted().query('user == @user').title), recommend(learn, user, 500)
        assert not rated & set(best.title) and len(best) == 240-len(rated)
        assert best.prediction.is_monotonic_decreasing


def test_recommendations_are_the_models(learn):
    best = recommend(learn, 7, 3)
    with learn.no_bar():
        preds = learn.get_preds(dl=learn.dls.test_dl([(7, t) for t in best.title]))[0]
    assert preds.flatten().tolist() == pytest.approx(best.prediction.tolist())


def test_a_newcomer_is_the_average_user(learn):
    model, before = learn.model, {k: v.clone() for k, v in learn.model.state_dict().items()}
    best = recommend(learn, None, 240)
    with torch.no_grad():
        score = (model.movie_factors.weight[1:] @ model.user_factors.weight[1:].mean(0)
                 + model.movie_bias.weight[1:,0])
    assert best.title.tolist() == [learn.dls.classes['title'][i+1]
                                   for i in score.argsort(descending=True).tolist()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), (
        'the model itself stays as it is')


def test_similar_items_are_the_cosines(learn):
    near = similar_items(learn, '010', 239)
    w = dict(zip(learn.dls.classes['title'], learn.model.movie_factors.weight.detach()))
    assert '010' not in set(near.title) and '#na#' not in set(near.title) and len(near) == 239
    assert near.cosine.tolist() == pytest.approx([F.cosine_similarity(w['010'], w[t], dim=0).item()
                                                  for t in near.title], abs=1e-5)


def test_other_models_are_read_too(small):
    dls = ratings_dls(small, bs=16, device='cpu')
    for learn in (collab_learner(dls, n_factors=5, y_range=(0, 5.5)),
                  Learner(dls, DotProductBias(*sizes(dls), 5))):
        assert len(extreme_items(learn, 3)) == 6
    for learn in (collab_learner(dls, use_nn=True, y_range=(0, 5.5)),
                  Learner(dls, CollabNN(*get_emb_sz(dls))),
                  Learner(dls, DotProduct(*sizes(dls), 5))):
        with pytest.raises(ValueError, match='has no biases of titles to read; DotProductBias has'):
            extreme_items(learn)
        assert (len(similar_items(learn, 'Film 03')) == 5 and len(recommend(learn, 3, 2)) == 2
                and len(recommend(learn)) == 5)
        assert len(factor_map(learn, 8)) == 8


def test_a_learner_of_other_loaders_is_told_what_is_missing(small):
    stock = CollabDataLoaders.from_df(small, item_name='title', rating_name='rating', bs=16,
                                      device='cpu')
    for read in extreme_items, recommend, factor_map:
        with pytest.raises(ValueError, match='make them with ratings_dls'):
            read(collab_learner(stock))


# Exported

program = """
import sys
from fastai.learner import load_learner
from lesson6.collab import recommend, similar_items
for f in sys.argv[1:]:
    learn = load_learner(f)
    learn.remove_cb(learn.progress)
    said = f"{learn.predict((7, '010'))[0]:.4f}", len(learn.dls.train_ds)
    print(*recommend(learn, 7).title, *recommend(learn).title, *similar_items(learn, '010').title,
          *said, sep='|')
"""


@pytest.mark.ci
def test_exported_learners_work_in_a_fresh_process(learn, tmp_path):
    other = Learner(loaders(), CollabNN(*get_emb_sz(loaders())), path=tmp_path)
    learn.path = tmp_path
    expected, dls = [], learn.dls
    for name, o in ('dot', learn), ('nn', other):
        o.export(f'{name}.pkl')
        with o.no_bar(): rating = o.predict((7, '010'))[0]
        expected.append('|'.join([*recommend(o, 7).title, *recommend(o).title,
                                  *similar_items(o, '010').title, f'{rating:.4f}', '0']))
    assert learn.dls is dls and len(dls.train_ds) == 32_000, 'exporting leaves the learner as it is'
    done = python(program, tmp_path/'dot.pkl', tmp_path/'nn.pkl')
    assert done.stdout.splitlines() == expected


class Asked(Callback):
    "Notes what it is asked, and can end the training or bring another callback."
    def __init__(self, brings=None, ends_at=None):
        self.brings, self.ends_at, self.events = brings, ends_at, []
    def before_fit(self): self.events.append('before_fit')
    def after_batch(self):
        self.events.append('after_batch')
        if self.brings and self.iter == 2: self.learn.add_cb(self.brings); self.brings = None
        if self.iter == self.ends_at: raise CancelFitException
    def after_cancel_fit(self): self.events.append('after_cancel_fit')
    def after_fit(self): self.events.append('after_fit')


@pytest.mark.parametrize('ends_at', [None, 4])
def test_a_lean_learner_does_what_a_learner_does(small, ends_at):
    """The same numbers, the same questions to each callback, also to one that joins in the middle,
    and to one that was switched off"""
    def run(cls):
        set_seed(42, reproducible=True)
        dls = ratings_dls(small, bs=64, device='cpu')
        late, first, off = Asked(), Asked(ends_at=ends_at), Asked()
        first.brings, off.run = late, False
        learn = cls(dls, DotProductBias(*sizes(dls), 5), loss_func=MSELossFlat(), cbs=[first, off])
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 5e-3)
            after_one = len(off.events), off.run
            first.ends_at = None
            learn.fit(1, 5e-3)
            learn.remove_cb(late)
            learn.fit(1, 5e-3)
        return (learn.recorder.values, learn.recorder.losses, first.events, late.events, off.events,
                after_one, [p.detach().clone() for p in learn.model.parameters()])
    ours, theirs = run(LeanLearner), run(Learner)
    assert repr(ours) == repr(theirs) and ours[4] and ours[5] == (0, True)
    assert all(torch.equal(a, b) for a, b in zip(ours[-1], theirs[-1], strict=True))


def test_the_fast_learner_says_so_when_it_diverges(small):
    learn = ratings_learner(ratings_dls(small, bs=64, device='cpu'), 5)
    with torch.no_grad(): learn.model.user_factors.weight[1:] = np.inf
    with learn.no_bar(), learn.no_logging(), pytest.raises(FloatingPointError,
                                                           match='lower learning rate than 0.01'):
        learn.fit(1, 1e-2)


def test_the_fast_optimizer_tells_its_hyperparameters(small):
    "What it says without asking PyTorch's groups one by one is what fastai's wrapper says"
    learn = ratings_learner(ratings_dls(small, bs=64, device='cpu'), 5)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2, wd=[.6, 0.])
    whole = OptimWrapper.hypers.fget(learn.opt)
    assert ([{k: w[k] for k in h} for h, w in zip(learn.opt.hypers, whole, strict=True)]
            == learn.opt.hypers)
    assert [h['wd'] for h in learn.opt.hypers] == [.6, 0.]


def test_the_fast_learner_is_exported_too(small, tmp_path):
    dls = ratings_dls(small, bs=64, device='cpu')
    learn = ratings_learner(dls, 5, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, wd=[.6, 0.])
    learn.export('fast.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'fast.pkl')
    assert recommend(again, 3).equals(recommend(learn, 3))


def test_the_fast_learner_decays_the_factors_and_not_the_biases(small):
    "Without a gradient, decay alone moves the parameters"
    learn = ratings_learner(ratings_dls(small, bs=64, device='cpu'), 5)
    learn.loss_func = lambda preds, targs: 0*preds.sum()
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, wd=[.5, 0.])
    for name, p in learn.model.named_parameters():
        left = 1 if 'bias' in name else (1 - 1e-2*.5)**len(learn.dls.train)
        torch.testing.assert_close(p.detach(), left*before[name], rtol=1e-5, atol=1e-8, msg=name)


# Files

good = '1\t1\t3\t880000000\n2\t1\t5\t880000001\n2\t3\t4\t880000002\n'
titles = "1|Café in Köln (1950)|01-Jan-1950\n3|Ninth Ambush, The (1987)|\n"


@pytest.fixture
def folder(tmp_path):
    def make(data=good, item=titles, encoding='latin-1'):
        for name, text in ('u.data', data), ('u.item', item):
            if text is not None:
                (tmp_path/name).write_bytes(text.encode(encoding) if isinstance(text, str)
                                            else text)
        return tmp_path
    return make


@pytest.mark.parametrize('encoding', ['latin-1', 'utf-8', 'utf-8-sig'])
def test_encodings(folder, encoding):
    assert (read_ratings(folder(encoding=encoding)).title.tolist() == ['Café in Köln (1950)']*2
            + ['Ninth Ambush, The (1987)'])


def test_forgiven(folder):
    "Windows line ends, empty lines, a blank round a title, films that nobody has rated"
    table = read_ratings(folder(good.replace('\n', '\r\n') + '\r\n', '1| Café in Köln (1950) '
                                '|x\r\n\r\n3|Ninth Ambush, The (1987)\r\n4|Unseen (1960)\r\n'))
    assert table.equals(read_ratings(folder()))
    assert (table.columns.tolist() == ['user', 'movie', 'rating', 'timestamp', 'title']
            and table.dtypes[:4].eq('int64').all())


def test_half_stars_are_read(folder):
    table = read_ratings(folder(good.replace('\t3\t8', '\t2.5\t8')))
    assert table.rating.tolist() == [2.5, 5, 4]


def test_another_scale(folder):
    table = read_ratings(folder(good.replace('\t3\t8', '\t10\t8')), scale=(1, 10))
    assert table.rating.tolist() == [10, 5, 4]


@pytest.mark.parametrize('change, kw, says', [
    (lambda t: t, {'valid': 'title'}, "The table, row 0: the column title says 'Film "),
    *((lambda t: t, {'valid': o}, 'positions from 0 to 299') for o in ([7, 300], [-1, 7])),
    *((lambda t: t, {'valid': o}, "valid must be a column, positions from 0 to 299, a second "
                                  "table, or 'time'")
      for o in (True, False, 7, 3.5, [], {'test'}, [[1, 2], [3]], [[1, 2]], ['test']*300)),
    (lambda t: t, {'valid': [True]*299}, 'valid has 299 truth values for 300 ratings'),
    (lambda t: t, {'valid_pct': '20 %'}, 'valid_pct is 20 %; it must be a share'),
    (lambda t: t, {'valid': np.zeros(300, bool)}, 'valid holds nothing back'),
    (lambda t: t, {'valid': range(300)}, 'valid leaves nothing to train on'),
    (lambda t: t.assign(timestamp='soon'), {'valid': 'time'},
     "The table, row 0: the time is 'soon'"),
    (lambda t: t[:4], {'bs': 2}, '4 ratings leave none for validation'),
    (lambda t: t.assign(user=t.user.where(t.index != 7)), {}, 'The table, row 7 has no user'),
    (lambda t: t.assign(rating=t.rating.astype(str).where(t.index != 5, 'x')), {},
     "The table, row 5: the rating is 'x'; it must be a number"),
    (lambda t: t.assign(rating=t.rating.astype(float).where(t.index != 5, np.inf)), {},
     "The table, row 5: the rating is 'inf'"),
    (lambda t: t, {'valid_pct': 1.5}, 'valid_pct is 1.5; it must be a share, from 0 to below 1'),
])
def test_bad_tables(small, change, kw, says):
    with pytest.raises(ValueError, match=re.escape(says)) as e: ratings_dls(change(small), **kw)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('ask, says', [(lambda l: similar_items(l, 'Flim 12'),
     r"nearest it knows are 'Film 12', 'Film \d\d', 'Film \d\d'\."),
    (lambda l: similar_items(l, '#na#'), "has not seen the title '#na#'"),
    (lambda l: similar_items(l, None), 'has not seen the title None'),
    (lambda l: recommend(l, 99), 'has not seen the user 99; the nearest it knows are .* For '
                                 'somebody new take user=None'),
    (lambda l: recommend(l, '7'), "has not seen the user '7', which is text; it knows 7, which is "
                                  "a number"),
    (lambda l: l.dls.test_dl(pd.DataFrame({'user': ['3'], 'title': ['Film 03']})),
     "has not seen the user '3', which is text; it knows 3"),
    (lambda l: l.predict({'user': 3, 'title': 'Film 77'}), "has not seen the title 'Film 77'"),
    (lambda l: l.predict({'user': 3}), 'has no column for the title'),
])
def test_unknown_names(small, ask, says):
    dls = ratings_dls(small, bs=16, device='cpu')
    with pytest.raises(ValueError, match=says): ask(Learner(dls, DotProductBias(*sizes(dls), 5)))


# The forms that ratings come in

def test_genres_are_shown_beside_titles_where_they_are_known(folder):
    "Those of MovieLens 100k are flags at the end of a line; without their names there are none"
    lines = good.splitlines()
    here = folder('\n'.join(line.replace(line.split('\t')[0], str(u), 1) for u in range(1, 9)
                            for line in lines) + '\n',
                  '1|Café (1950)|01-Jan-1950|||0|1|1\n3|Ambush, The (1987)||||1|0|0\n')
    assert 'genres' not in read_ratings(here)
    (here/'u.genre').write_text('unknown|0\nAction|1\nSci-Fi|2\n\n')
    table = read_ratings(here)
    assert table.groupby('title').genres.first().to_dict() == {'Café (1950)': 'Action, Sci-Fi',
                                                               'Ambush, The (1987)': ''}
    with warnings.catch_warnings(action='ignore'):
        learn = ratings_learner(ratings_dls(here, bs=4, device='cpu'), 2)
    assert extreme_items(learn, 1).columns.tolist() == ['title', 'genres', 'bias', 'ratings']
    learn.export(here/'learner.pkl')
    with warnings.catch_warnings(action='ignore'): again = load_learner(here/'learner.pkl')
    assert set(recommend(again).genres) == {'Action, Sci-Fi', ''}


def test_any_ratings_in_the_layout_of_movielens(tmp_path, named):
    "What the lesson reads by hand is there for ratings in another form, too"
    named.to_csv(tmp_path/'ratings.csv', index=False)
    there = movielens_files(tmp_path)
    ratings = pd.read_csv(there/'u.data', delimiter='\t', header=None,
                          names=['user', 'movie', 'rating', 'timestamp'])
    movies = pd.read_csv(there/'u.item', delimiter='|', encoding='latin-1', usecols=(0, 1),
                         names=('movie', 'title'), header=None)
    both = ratings.merge(movies)
    for column in 'user', 'rating', 'timestamp', 'title':
        assert both[column].tolist() == named[column].map(lambda o: o.replace('"', "'")
                                                          if isinstance(o, str) else o).tolist()
    assert movielens_files(there) == there and not (tmp_path/'u.data').exists()


def test_the_lowest_error_is_known_of_synthetic_ratings_alone(real):
    dls = ratings_dls(lesson_path('movielens'), device='cpu')
    held = dls.valid_ds.table()
    assert held.shape == (8000, 3) and held.rating.tolist() == dls.valid_ds.y.flatten().tolist()
    errors = lowest_errors(dls)
    assert len(errors) == 8000 and 1.05 < errors.mean() < 1.17
    assert lowest_errors(loaders()) is None
    with warnings.catch_warnings(action='ignore'):
        assert lowest_errors(ratings_dls(real/'ml-100k', device='cpu')) is None


def test_neighbours_agree_and_those_of_a_memoriser_do_not(learn):
    "On ratings that neither was trained on"
    mean = lambda pairs: np.nanmean(pairs)
    near, far = taste_agreement(learn)
    assert len(near) == len(far) > 600 and mean(near) > .08 and abs(mean(far)) < .07
    fresh = Learner(loaders(), DotProductBias(*sizes(loaders()), 50))
    assert abs(mean(taste_agreement(fresh)[0])) < .07


def test_errors_after_some_answers_are_per_user(learn):
    newcomers = Newcomers(learn)
    errors, users = newcomers.errors_after(10)
    held = np.bincount(learn.dls.valid_ds.x[:, 0], minlength=281)
    assert np.bincount(users, minlength=281).tolist() == [n - 10 if n >= 20 and u else 0
                                                          for u, n in enumerate(held)]
    assert errors.mean() == pytest.approx(newcomers.error_after(10))


@pytest.fixture
def named():
    return planted().assign(timestamp=880_000_000 + np.arange(40_000),
                            title='"Café", ' + planted().title + ' (1950)')


def test_the_names_of_columns_can_be_given(tmp_path):
    (tmp_path/'log.csv').write_text('\ufeffwho,what,how much,when\nAnn,Tea,4,2020-01-01\n'
                                    'Bob,Rum,7.5,2021-01-01\n', encoding='utf-8')
    table = read_ratings(tmp_path/'log.csv', user='who', title='what', rating='how much',
                         timestamp='when')
    assert (list(table) == ['user', 'title', 'rating', 'timestamp']
            and table.rating.tolist() == [4, 7.5] and table.user.tolist() == ['Ann', 'Bob'])
    with pytest.raises(ValueError, match=r"log\.csv has no column for the user, such as .*; it has "
                                         r"who, what, how much, when"):
        read_ratings(tmp_path/'log.csv')
    with pytest.raises(ValueError, match="log.csv has no column 'whom'; it has who"):
        read_ratings(tmp_path/'log.csv', user='whom')


def test_identifiers_that_begin_with_zero_stay_text(tmp_path):
    (tmp_path/'books.csv').write_text('User-ID;ISBN;Book-Rating\n7;0155061224;5\n8;155061224;3\n')
    table = read_ratings(tmp_path)
    assert (table.title.tolist() == ['0155061224', '155061224'] and table.user.tolist() == [7, 8]
            and table.rating.tolist() == [5, 3])


def test_one_title_with_several_numbers_is_counted(folder):
    with pytest.warns(UserWarning, match='^1 titles have more than one number; the ratings of a '
                                         'title are taken together') as told:
        table = read_ratings(folder(good, titles.replace('3|Ninth Ambush, The (1987)',
                                                         '3|Café in Köln (1950)')))
    assert told[0].filename == __file__
    assert table.title.nunique() == 1


def test_a_pair_that_is_there_twice_is_counted_and_kept(small):
    with pytest.warns(UserWarning, match='^2 ratings are of a pair of user and title that is there '
                                         'before; all are kept') as told:
        dls = ratings_dls(pd.concat([small, small[:2]]), device='cpu')
    assert told[0].filename == __file__, 'the warning points at the line that it is about'
    assert len(dls.train_ds) + len(dls.valid_ds) == 302


@pytest.mark.parametrize('names',
                         [['12345678901234567890', '12345678901234567891', '12345678901234567892'],
                          ['1e3', '1000', '1E3'], ['007', '7', '07'],
                          ['9007199254740993', '9007199254740992', '9007199254740991']])
def test_numbers_that_a_float_would_make_one_stay_what_they_are(names, tmp_path):
    (tmp_path/'ratings.csv').write_text('user,title,rating\n'
                                        + ''.join(f'{names[i%3]},{names[i%2]},{1 + i%5}\n'
                                                  for i in range(60)))
    with warnings.catch_warnings(action='ignore'):
        table = read_ratings(tmp_path)
    assert (sorted(map(str, set(table.user))) == sorted(names)
            and set(map(str, table.title)) == set(names[:2]))


def test_floats_that_cannot_tell_identifiers_apart_are_refused(small):
    with pytest.raises(ValueError, match='The column user holds numbers as large as 1e\\+19, which '
                                         'floats cannot tell apart; give them as whole numbers or '
                                         'as text'):
        ratings_dls(small.assign(user=small.user + 1e19), device='cpu')


def test_a_column_that_is_asked_for_takes_the_place_of_the_usual_one(small):
    "Here the one called rating says something else"
    table = read_ratings(small.assign(stars=small.rating, rating='PG', who=small.user),
                         rating='stars', user='who')
    assert (table.rating.tolist() == small.rating.tolist()
            and table.user.tolist() == small.user.tolist())


def test_mixed_identifiers_become_text(small):
    mixed = small.assign(user=[str(u) if i%3 else u for i, u in enumerate(small.user)])
    with pytest.warns(UserWarning, match=r'column user mixes numbers \(100\) and text \(200\); all '
                                         r'are taken as text'):
        dls = ratings_dls(mixed, device='cpu')
    assert set(dls.classes['user'][1:]) == {str(u) for u in range(1, 13)}


def test_identifiers_that_a_gap_has_made_floats_are_whole_numbers_again(small):
    "As pandas reads a column of numbers with a gap that is filled later; and among text"
    for user in (small.user.astype(float),
                 small.user.map(lambda u: float(u) if u%3 else f'u{u}').astype(object)):
        with warnings.catch_warnings(action='ignore'):
            known = ratings_dls(small.assign(user=user), device='cpu').classes['user'][1:]
        assert {str(u) for u in known} == {str(u) if u%3 or user.dtype == float else f'u{u}'
                                           for u in range(1, 13)}


def test_the_range_of_the_lesson(): assert range_for((1, 5)) == (0, 5.5)

scaled = pytest.mark.parametrize('scale, step', [((1, 5), 1), ((.5, 5), .5), ((1, 10), 1),
                                                 ((-10, 10), .1), ((0, 1), 1), ((0, 100), 1)])


@scaled
def test_any_scale_is_learnt(scale, step, capsys):
    """Predictions span the scale, and the error is below that of always saying the mean, for each
    model and with fastai's own `Learner`"""
    lo, hi = scale
    r = np.random.default_rng(0)
    good = r.normal(size=60)
    pairs = r.permutation(60*60)[:2400]
    rating = (lo+hi)/2 + (hi-lo)/4*(good[pairs%60] + .4*r.normal(size=2400))
    table = pd.DataFrame({'user': pairs//60, 'title': [f'T{i}' for i in pairs%60],
                          'rating': np.clip(np.round(rating/step)*step, lo, hi).round(1)})
    dls = ratings_dls(table, device='cpu')
    assert dls.y_range == pytest.approx(range_for(scale))
    said = capsys.readouterr().out
    assert (f'Ratings from {lo:g} to {hi:g}' in said) == (scale != (1, 5))
    set_seed(1, reproducible=True)
    for cls in Learner, LeanLearner:
        learn = cls(dls, DotProductBias(*sizes(dls), 10), loss_func=MSELossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, 2e-2, wd=.1)
        preds, targs = learn.get_preds()
        assert ((preds - targs)**2).mean() < .6*targs.var()
        assert preds.max() - preds.min() > .55*(hi - lo)
        best = recommend(learn, 3, 60).prediction
        assert best.between(*range_for(scale)).all()


# Scales

def test_a_model_that_cannot_reach_the_ratings_is_refused_before_training(small):
    "By ours when it is made, by fastai's before the first step"
    dls = ratings_dls(small.assign(rating=2*small.rating), bs=16, device='cpu')
    model = DotProductBias(*sizes(dls), 5, y_range=(0, 5.5))
    says = (r'go from 2 to 10, and the model can only predict from 0 to 5\.5; make it with '
            r'y_range=\(0\.0, 11\.0\)')
    with pytest.raises(ValueError, match=says): LeanLearner(dls, model, loss_func=MSELossFlat())
    with pytest.raises(ValueError, match=says): ratings_learner(dls, 5, y_range=(0, 5.5))
    before = [p.detach().clone() for p in model.parameters()]
    learn = Learner(dls, model, loss_func=MSELossFlat())
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match=says): learn.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert LeanLearner(dls, DotProductBias(*sizes(dls), 5, y_range=(2, 10)),
                       loss_func=MSELossFlat())


def test_the_scale_is_that_of_the_ratings_or_the_one_that_is_given(small):
    """It is not remembered behind the table's back: ratings that have been rescaled since have
    another one"""
    table = read_ratings(small.assign(movie=1, rating=2*small.rating), scale=(1, 10))
    assert ratings_dls(table, device='cpu').scale == (2, 10)
    assert ratings_dls(table.assign(rating=table.rating//2), device='cpu').y_range == (0, 5.5)
    assert ratings_dls(table, scale=(1, 10), device='cpu').y_range == range_for((1, 10))
    assert not table.attrs


def test_the_scale_goes_with_an_exported_learner(small, tmp_path):
    dls = ratings_dls(small.assign(rating=2*small.rating), bs=16, device='cpu')
    Learner(dls, DotProductBias(*sizes(dls), 5), loss_func=MSELossFlat(),
            path=tmp_path).export('never_trained.pkl')
    with warnings.catch_warnings(action='ignore'):
        again = load_learner(tmp_path/'never_trained.pkl')
    assert recommend(again, 3).prediction.between(5, 6).all(), (
        'the middle of 0 to 11, which a fresh model says')


# Splits of one's own

def held(dls):
    return sorted((str(dls.classes['user'][u]), str(dls.classes['title'][i]), r)
                  for (u, i), r in zip(dls.valid_ds.x.tolist(), dls.valid_ds.y.flatten().tolist(),
                                       strict=True))


def test_a_split_of_ones_own(small):
    """A column, positions, truth values, a second table or the latest share hold the same ratings
    back"""
    when = np.random.default_rng(0).permutation(300)
    table = small.assign(timestamp=when, is_valid=when >= 240,
                         part=np.where(when >= 240, 'Test', 'train'),
                         date=pd.to_datetime(when, unit='D').astype(str))
    late = np.flatnonzero(when >= 240)
    made = [ratings_dls(table, valid=v, device='cpu')
            for v in ('time', 'is_valid', 'part', late, late.tolist(), when >= 240)]
    made += [ratings_dls(table[when < 240], valid=table[when >= 240], device='cpu'),
             ratings_dls(table, valid_idx=late, device='cpu'),
             ratings_dls(table.drop(columns='timestamp').rename(columns={'date': 'timestamp'}),
                         valid='time', device='cpu')]
    assert len(held(made[0])) == 60 and all(held(o) == held(made[0]) for o in made)
    assert all(o.train_ds.x.tolist() == made[1].train_ds.x.tolist() for o in made[1:])
    for o in made: assert_once(o)


def test_published_splits_are_read_as_they_are(folder, capsys):
    here = folder(''.join(f'{u}\t{i}\t{u%5+1}\t88000000{u}\n' for u in range(1, 9) for i in (1, 3)))
    lines = (here/'u.data').read_text().splitlines(keepends=True)
    (here/'u1.base').write_text(''.join(lines[:14])), (here/'u1.test').write_text(
        ''.join(lines[14:]))
    dls = ratings_dls(read_ratings(here/'u1.base'), valid=read_ratings(here/'u1.test'), bs=4,
                      device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (14, 2)
    assert ('Of 2 ratings to validate on, 2 have a user and 0 a title that the training ratings do '
            'not have' in capsys.readouterr().out)


def test_all_of_a_table_to_train_on(small):
    dls = ratings_dls(small[:280], valid_pct=0, device='cpu')
    learn = ratings_learner(dls, 5)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 5e-3)
        (mse,) = learn.validate(dl=dls.test_dl(small[280:]))
    assert len(dls.train_ds) == 280 and 0 < mse < 9


def test_strangers_in_a_table_are_counted(small, capsys):
    dls = ratings_dls(small, bs=16, device='cpu')
    learn = Learner(dls, DotProductBias(*sizes(dls), 5), loss_func=MSELossFlat())
    rows = pd.DataFrame({'user': [3, 99, 98], 'title': ['Film 03', 'Film 03', 'Other'],
                         'rating': [1, 2, 3]})
    dl = dls.test_dl(rows)
    assert ('Of 3 rows, 2 have a user and 1 a title that the training ratings do not have; these '
            'count as #na#' in capsys.readouterr().out)
    assert dl.dataset.x[:,0].tolist()[1:] == [0, 0] and dl.dataset.y.flatten().tolist() == [1, 2, 3]
    with learn.no_bar(), learn.no_logging():
        assert learn.validate(dl=dl)[0] > 0
        assert learn.get_preds(dl=dls.test_dl(rows, with_labels=False))[1] is None
        assert learn.get_preds(dl=dls.test_dl(rows.drop(columns='rating')))[1] is None
    assert len(dls.test_dl(rows.rename(columns={'user': 'userId'})).dataset) == 3
    with pytest.raises(ValueError, match='has no column for the rating'):
        dls.test_dl(rows.drop(columns='rating'), with_labels=True)


def test_loaders_can_be_pickled_and_leave_the_ratings_behind(small):
    dls = ratings_dls(small, bs=16, device='cpu')
    again = pickle.loads(pickle.dumps(dls))
    assert torch.equal(again.train_ds.x, dls.train_ds.x) and again.scale == dls.scale
    empty = pickle.loads(pickle.dumps(dls.new_empty()))
    assert len(empty.train_ds) == 0 and torch.equal(empty.seen, dls.seen)
    assert dls.train_ds.new_empty().x.untyped_storage().nbytes() == 0


@pytest.mark.parametrize('n, bs, epochs', [(60, 12, 38), (600, 64, 19), (2_500, 66, 5),
                                           (20_000, 533, 5), (40_000, 1024, 5), (100_000, 1024, 5)])
def test_the_recipe_follows_how_many_ratings_there_are(n, bs, epochs, monkeypatch, capsys):
    "Steps enough to learn something, however few ratings there are"
    r = np.random.default_rng(0)
    dls = ratings_dls(pd.DataFrame({'user': r.integers(0, 3000, n), 'title': r.permutation(n)%2000,
                                    'rating': r.integers(1, 6, n)}), device='cpu')
    asked = []
    learn = ratings_learner(dls)
    monkeypatch.setattr(learn, 'fit_one_cycle',
                        lambda *args, **kwargs: asked.append((*args, kwargs)))
    fit_ratings(learn)
    assert dls.bs == bs and asked == [(epochs, 1e-2, {'wd': [.6, 0.]})]
    said = capsys.readouterr().out
    assert said.startswith(f'{epochs} epochs of {len(dls.train)} batches, learning rate 0.01, ')
    assert '0.6 for factors, 0 for biases' in said
    fit_ratings(learn, 3, 5e-3, .1)
    assert asked[1] == (3, 5e-3, {'wd': .1}) and len(dls.train)*epochs >= 150


def test_ratings_are_read_where_they_are(folder, small):
    "A folder, a file or a table; the loaders note the folder"
    here = folder(''.join(f'{u}\t{i}\t{u%5+1}\t88000000{u}\n' for u in range(1, 9) for i in (1, 3)))
    for path in here, str(here), here/'u.data':
        dls = ratings_dls(path, device='cpu')
        assert (dls.train_ds.x.tolist() == ratings_dls(read_ratings(here), device='cpu')
                .train_ds.x.tolist() and str(dls.folder) == str(path))
    assert ratings_dls(small, device='cpu').folder is None


@pytest.mark.ci
@pytest.mark.parametrize('which, most', [('synthetic', 1.185), ('real', .815)])
def test_the_recipe_reaches_what_is_promised(which, most, request):
    set_seed(42, reproducible=True)
    dls = ratings_dls(planted() if which == 'synthetic'
                      else request.getfixturevalue('real')/'ml-100k', device='cpu')
    set_seed(42, reproducible=True)
    learn = ratings_learner(dls)
    with learn.no_bar(), learn.no_logging(): fit_ratings(learn)
    assert learn.recorder.values[-1][1] < most


def test_a_small_set_gets_small_batches(small):
    assert (ratings_dls(small[:40], device='cpu').train.bs == 8
            and ratings_dls(small, device='cpu').train.bs == 60)


def test_decoded_batches_are_pairs_and_their_rating(small):
    dls = ratings_dls(small, bs=16, device='cpu')
    (x, y), stars = dls.valid.one_batch(), small.set_index(['user', 'title']).rating
    for ((user, title), rating), known in zip(dls.valid.decode_batch((x, y), max_n=4),
                                              y.flatten().tolist(), strict=False):
        assert rating == known == stars[user, title]


def test_a_fault_in_the_ratings_to_validate_on_is_looked_for_there(small):
    with pytest.raises(ValueError, match='^The table to validate on, row 3 has no title'):
        ratings_dls(small[:200],
                    valid=small[200:].assign(title=lambda t: t.title.where(t.title.index != 203)),
                    device='cpu')


def test_a_map_needs_three_titles(small):
    two = small[small.title.isin(['Film 01', 'Film 02'])]
    dls = ratings_dls(two, bs=4, device='cpu')
    with pytest.raises(ValueError, match='at least 3 titles; the model knows 2'):
        factor_map(Learner(dls, DotProductBias(*sizes(dls), 5)))


models = pytest.mark.parametrize('make', [lambda n, m, **kw: DotProduct(n, m, 5, **kw),
                                          lambda n, m, **kw: DotProductBias(n, m, 5, **kw),
                                          lambda n, m, **kw: CollabNN((n, 5), (m, 5), **kw)])


@models
def test_the_range_is_saved_and_loaded_with_the_weights(small, make, tmp_path):
    "Weights for a scale of 1 to 10 mean the same in a new model, whatever range it was made with"
    learn = LeanLearner(dls := ratings_dls(small.assign(rating=2*small.rating), device='cpu'),
                        make(13, 31, y_range=(-1.25, 11.125)), path=tmp_path)
    x = dls.valid_ds.x.clone()
    said = learn.model(x)
    torch.save(learn.model.state_dict(), tmp_path/'weights.pt')
    for kw in {}, {'y_range': (0, 5.5)}:
        again = make(13, 31, **kw)
        again.load_state_dict(torch.load(tmp_path/'weights.pt', weights_only=True))
        assert tuple(again.y_range) == (-1.25, 11.125) and torch.equal(again(x), said)
    learn.save('all')
    fresh = LeanLearner(dls, make(13, 31), path=tmp_path).load('all')
    assert torch.equal(fresh.model(x), said)
    if hasattr(fresh.model, 'movie_bias'):
        assert len(Newcomers(fresh).recommend({'Film 03': 8})) == 5


@models
def test_a_model_never_guesses_a_range(small, make):
    """Without one it says what it needs, and a batch that brings a scale leaves it as it was; our
    learners give it theirs"""
    x, model = torch.ones(2, 2, dtype=torch.long), make(13, 31)
    for _ in range(2):
        with pytest.raises(ValueError,
                           match='The model has no range: make it with y_range=dls.y_range'):
            model(x)
        dls = ratings_dls(small.assign(rating=2*small.rating), device='cpu')
        assert 4 < model(dls.one_batch()[0]).mean() < 7
    with pytest.raises(ValueError, match='y_range'):
        learn = Learner(CollabDataLoaders.from_df(small, item_name='title', rating_name='rating',
                                                  bs=16, device='cpu'), model,
                        loss_func=MSELossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert tuple(LeanLearner(dls, model).model.y_range) == dls.y_range


def test_a_range_that_is_none_is_refused():
    for ends in (5.5, 0), (3, 3):
        with pytest.raises(ValueError, match='it must be the lower end and the upper one'):
            DotProductBias(13, 31, 5, y_range=ends)


def test_ratings_that_a_model_cannot_reach_are_noticed_when_they_come_later(small):
    "After loading, and with other loaders"
    learn = ratings_learner(ratings_dls(small, device='cpu'), 5)
    learn.dls = ratings_dls(small.assign(rating=2*small.rating), device='cpu')
    with pytest.raises(ValueError, match='go from 2 to 10, and the model can only predict from 0 '
                                         'to 5.5'):
        learn.fit(1)
    assert LeanLearner(ratings_dls(small.assign(rating=small.rating/10), device='cpu'),
                       DotProductBias(13, 31, 5, y_range=(.1, .5))), 'the buffer rounds .1'


def test_the_hidden_layer_has_the_lessons_width():
    assert ([(layer.in_features, layer.out_features)
             for layer in CollabNN((10, 3), (20, 4)).layers[::2]] == [(7, 100), (100, 1)])


def test_how_many_titles_are_told(learn):
    assert (len(recommend(learn, 1, 1)) == 1 and len(recommend(learn, 1)) == 5
            and extreme_items(learn).groupby(level=0).size().tolist() == [5, 5])


def test_ratings_csv_may_come_without_movies_csv(tmp_path):
    (tmp_path/'ratings.csv').write_text('userId,movieId,rating\n'
                                        + ''.join(f'{u},{m},{1 + u%5}\n' for u in range(9)
                                                  for m in (1, 2)))
    assert set(read_ratings(tmp_path).title) == {1, 2}


def test_titles_of_the_ratings_themselves_are_taken_before_those_beside_them(tmp_path):
    (tmp_path/'movies.csv').write_text('movieId,title,genres\n1,Other,x\n2,Another,x\n')
    (tmp_path/'ratings.csv').write_text('userId,movieId,title,rating\n'
                                        + ''.join(f'{u},{m},Own {m},{1 + u%5}\n' for u in range(9)
                                                  for m in (1, 2)))
    assert set(read_ratings(tmp_path).title) == {'Own 1', 'Own 2'}


def test_rows_in_a_list_may_bring_their_ratings_along(learn, small):
    pairs = [{'user': 1, 'title': '010', 'rating': 4}, {'user': 2, 'title': '020', 'rating': 2}]
    assert learn.dls.test_dl(pairs).one_batch()[1].flatten().tolist() == [4, 2]
    assert (len(learn.dls.test_dl(pairs, with_labels=False).one_batch())
            == len(learn.dls.test_dl([{'user': 1, 'title': '010'}]).one_batch()) == 1)


def test_newcomers_are_the_average_user_before_they_answer(learn):
    newcomers = Newcomers(learn)
    ours, theirs = newcomers.recommend({}, 240), recommend(learn, None, 240)
    assert (ours.title.tolist() == theirs.title.tolist()
            and ours.prediction.tolist() == pytest.approx(theirs.prediction.tolist(), abs=1e-4))


# Newcomers

@pytest.mark.parametrize('y_range', [(0, 5.5), (.5, 5.5), (-3, 7)])
def test_what_is_known_of_a_newcomer_is_the_likeliest_person(small, y_range):
    """Of all people, with their biases and factors, the one who fits the answers and the other
    users best, as a search from the formula finds them"""
    dls = ratings_dls(small, bs=16, device='cpu')
    learn = train(dls, DotProductBias(*sizes(dls), 2, y_range=y_range), epochs=8)
    newcomers, model = Newcomers(learn), learn.model
    bias, factors = (model.user_bias.weight.detach().double(),
                     model.user_factors.weight.detach().double())
    people = torch.cat([bias, factors], 1)
    x = torch.stack([torch.full((30,), 4), torch.arange(1, 31)], 1)
    assert (newcomers.predict(people[4], x[:, 1]).tolist()
            == pytest.approx(model(x).flatten().tolist(), abs=1e-4)), 'a user whom the model knows'
    logit = lambda stars: torch.logit((stars.double() - y_range[0])/(y_range[1] - y_range[0]))
    seen, given = dls.train_ds.x, dls.train_ds.y
    chance = (logit(given) - logit(model(seen).detach())).var()
    expected, spread = people[1:].mean(0), people[1:].t().cov()
    titles, stars = torch.tensor([3, 7, 11, 20]), torch.tensor([5., 1., 4., 2.])
    person = torch.zeros(3, dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS([person], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14,
                               line_search_fn='strong_wolfe')
    def unlikely():
        search.zero_grad()
        said = (person[0] + model.movie_bias.weight[titles, 0].detach().double()
                + model.movie_factors.weight[titles].detach().double() @ person[1:])
        loss = ((said - logit(stars)).pow(2).sum()/chance
                + (person - expected) @ torch.linalg.solve(spread, person - expected))
        loss.backward()
        return loss
    search.step(unlikely)
    assert newcomers.person(titles, stars).tolist() == pytest.approx(person.tolist(), abs=1e-4)


def test_answers_change_what_newcomers_are_told(learn):
    newcomers = Newcomers(learn)
    near = similar_items(learn, '010', 239).title.tolist()
    stars = lambda rated: newcomers.recommend(rated, 240).set_index('title').prediction
    fan, foe = stars({'010': 5}), stars({'010': 1})
    assert (fan - foe)[near[:10]].mean() > (fan - foe)[near[-10:]].mean() and '010' not in fan
    assert newcomers.error_after(10) < newcomers.error_after(0)
    with pytest.raises(ValueError, match="has not seen the title 'Film'"):
        newcomers.recommend({'Film': 5})


def test_a_range_that_ends_where_the_ratings_do(small):
    """A rating at its end would be infinitely far away: what is known of a newcomer stays finite,
    and some titles are recommended"""
    learn = train(ratings_dls(small, bs=16, device='cpu'),
                  DotProductBias(13, 31, 5, y_range=(1, 5)), epochs=2)
    newcomers = Newcomers(learn)
    assert (newcomers.chance.isfinite()
            and newcomers.recommend({'Film 03': 5}).prediction.between(1, 5).sum() == 5)


def test_nothing_is_recommended_in_silence_by_a_model_of_gaps(small):
    "Nan among the predictions was an empty table"
    learn = ratings_learner(ratings_dls(small, device='cpu'), 5)
    learn.model.user_bias.weight.data[3] = float('nan')
    assert len(recommend(learn, 4)) == 4
    with pytest.raises(ValueError, match=r'The model predicts nan for \d+ of 31 titles'):
        recommend(learn, 3)


def test_newcomers_need_a_range(small):
    learn = collab_learner(ratings_dls(small, bs=16, device='cpu'), n_factors=5)
    with pytest.raises(ValueError, match='EmbeddingDotBias predicts without a range'):
        Newcomers(learn)


@pytest.mark.parametrize('stars', [0, 6, 10, float('nan')])
def test_an_answer_outside_the_scale_is_refused(learn, stars):
    with pytest.raises(ValueError, match="'010' was given .*; the ratings go from 1 to 5"):
        Newcomers(learn).recommend({'020': 3, '010': stars})


def test_nobody_has_enough_ratings_to_ask(small):
    dls = ratings_dls(small, bs=16, device='cpu')
    assert np.isnan(Newcomers(train(dls, DotProductBias(*sizes(dls), 5), epochs=1)).error_after(10))


# Real ratings

seeds = [int(o) for o in os.environ.get('LESSON6_SEEDS', '42').split(',')]
lessons_best = {'Titanic (1997)', "Schindler's List (1993)", 'Shawshank Redemption, The (1994)',
                'L.A. Confidential (1997)', 'Star Wars (1977)',
                'Silence of the Lambs, The (1991)', 'Good Will Hunting (1997)',
                'Rear Window (1954)', 'Apt Pupil (1998)', 'Close Shave, A (1995)'}


@cache
def real_learner(path, split):
    dls = ratings_dls(path, bs=64, seed=split)
    return train(dls, lambda: DotProductBias(*sizes(dls), 50), .1)


@pytest.mark.ci
def test_real_recipe(real):
    """The lesson's recipe reaches the lesson's level, and the films that the lesson names are the
    best-liked"""
    mse = [final(real_learner(real/'ml-100k', s))[1] for s in seeds]
    print(f'validation MSE {", ".join(f"{s}: {m:.4f}" for s, m in zip(seeds, mse))}; mean '
          f'{np.mean(mse):.4f}')
    assert np.mean(mse) <= .822
    for s in seeds:
        best, worst = (extreme_items(real_learner(real/'ml-100k', s), 10).loc[o].title.tolist()
                       for o in ('best', 'worst'))
        print(best, worst, sep='\n')
        assert (len(lessons_best & set(best[:5])) >= 3
                and {'Titanic (1997)', 'Shawshank Redemption, The (1994)',
                     "Schindler's List (1993)"} <= set(best))
        assert any(t.startswith('Children of the Corn') for t in worst)


@cache
def real_four(path, split):
    "Validation MSE of dot product, range, biases, weight decay on one split"
    dls = ratings_dls(path, bs=64, seed=split)
    class NoRange(DotProduct):
        def forward(self, x):
            return (self.user_factors(x[:,0]) * self.movie_factors(x[:,1])).sum(dim=1)
    three = [final(train(dls, lambda model=model: model(*sizes(dls), 50)))[1]
             for model in (NoRange, DotProduct, DotProductBias)]
    return *three, final(real_learner(path, split))[1]


@pytest.mark.slow
@pytest.mark.parametrize('split', [42, 1, 2])
def test_real_best_and_worst(real, split):
    """Weight decay is the best of the four and the biases without it the worst, on each split and
    so on average, as in the lesson; between them its order holds on the first split alone"""
    dot, in_range, biases, decayed = real_four(real/'ml-100k', split)
    print(f'split {split}: {dot:.4f}, {in_range:.4f}, {biases:.4f}, {decayed:.4f}')
    assert decayed < min(dot, in_range) and max(dot, in_range) < biases
    # dot product and range: .8803 and .8824 on split 1, .8870 and .8893 on split 2
    assert (dot > in_range) == (split == 42)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason='means of 0.8793 and 0.8803; with LESSON6_SEED=1 to 8 dot '
                                       'and range are 0.8758 and 0.8785, 0.8775 and 0.8778, 0.8662 '
                                       'and 0.8709, 0.8804 and 0.8801, 0.8681 and 0.8791, 0.8782 '
                                       'and 0.8752, 0.8733 and 0.8793, 0.8730 and 0.8834: in seven '
                                       'of nine the range does not help')
def test_real_range_helps(real):
    """In the lesson, which measured once, the range alone brings 0.884 to 0.878. Here it does not
    help, on the mean of three splits"""
    dot, in_range, _, _ = np.mean([real_four(real/'ml-100k', split) for split in (42, 1, 2)],
                                  axis=0)
    print(f'means: {dot:.4f}, {in_range:.4f}')
    assert dot > in_range


@pytest.mark.slow
@pytest.mark.parametrize('split', [42, 1])
def test_real_biases_help_where_both_decay(real, split):
    "By about a hundredth, on each of two splits"
    dls = ratings_dls(real/'ml-100k', bs=64, seed=split)
    without, biases = (final(train(dls, lambda: DotProduct(*sizes(dls), 50), .1))[1],
                       final(real_learner(real/'ml-100k', split))[1])
    print(f'split {split}: {without:.4f} without biases, {biases:.4f} with them')
    assert .003 < without - biases < .03


def test_real_splits(real):
    "By time and by a second table; what the data has twice is counted"
    with pytest.warns(UserWarning, match='^18 titles have more than one number'):
        table = read_ratings(real/'ml-100k')
    with pytest.warns(UserWarning, match='^307 ratings are of a pair'):
        by_time = ratings_dls(table, valid='time', device='cpu')
    order = table.timestamp.argsort(kind='stable')
    with pytest.warns(UserWarning):
        by_table = ratings_dls(table.iloc[order[:80_000]], valid=table.iloc[order[80_000:]],
                               device='cpu')
    assert (held(by_time) == held(by_table) and len(by_time.valid_ds) == 20_000
            and by_time.scale == (1, 5))


def test_the_fused_learner_steps_as_fastai_does_by_default():
    ours, theirs = (inspect.signature(f).parameters['eps'].default for f in (fused_learner, Adam))
    assert ours == theirs


def test_the_row_of_a_rating_outside_the_scale_is_named_where_others_are_not_rated():
    table = pd.DataFrame({'user': range(5), 'title': list('abcde'), 'rating': [0, 0, 3, 9, 4]})
    with pytest.raises(ValueError, match='row 3'): read_ratings(table, scale=(1, 5), not_rated=0)


@pytest.mark.parametrize('ids', [('0345417623', '345417623'), ('1e5', '100000')])
def test_names_of_digits_that_a_number_would_change_stay_as_they_are_behind_a_blank(ids, tmp_path):
    file = tmp_path/'ratings.csv'
    file.write_text('user, title, rating\n' + ''.join(f'{i}, {o}, {i}\n' for i,o in enumerate(ids)))
    assert list(read_ratings(file).title.astype(str)) == list(ids)


def test_the_titles_beside_a_packed_file_are_found_whatever_the_case_of_its_ending(tmp_path):
    (tmp_path/'u.item').write_text('1|Film A\n2|Film B\n')
    for end in 'gz', 'GZ':
        (tmp_path/f'u.data.{end}').write_bytes(gzip.compress(b'1\t1\t5\t0\n2\t2\t4\t0\n'))
        assert set(read_ratings(tmp_path/f'u.data.{end}').title) == {'Film A', 'Film B'}


def test_a_row_is_said_to_be_counted_without_those_that_are_not_rated(tmp_path):
    table = pd.DataFrame({'user': range(20), 'title': 'a', 'rating': [0, 1, 2, 3]*5,
                          'part': ['train', 'valid']*9 + ['train', 'whatever']})
    table.to_parquet(tmp_path/'t.parquet')
    for dls in (lambda: ratings_dls(table, valid='part', not_rated=0),
                lambda: parquet_dls(tmp_path/'t.parquet', valid='part', not_rated=0)):
        with pytest.raises(ValueError, match='without what is not rated, row 14'): dls()


def test_times_of_several_zones_are_sorted_by_the_moment():
    zones = ['2024-05-13T10:00:00+02:00', '2024-05-13T09:00:00Z', '2024-05-13T07:30:00-02:00']
    table = pd.DataFrame({'user': list('aabbcc'), 'title': list('xyyzzx'),
                          'rating': [1, 2, 3, 1, 2, 3], 'timestamp': zones*2})
    dls = ratings_dls(table, valid='time', valid_pct=.34, bs=2, device='cpu')
    assert [rating for *_, rating in held(dls)] == [3, 3]
