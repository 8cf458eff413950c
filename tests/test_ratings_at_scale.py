"""Ratings by the million: the learner whose gradients stay where they are, beside the one that
makes them anew; and files of more than one group."""
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.torch_core import set_seed

from lesson6.collab import DotProductBias, recommend
from lesson6.engine.rating_learners import fused_learner
from lesson6.engine.ratings_at_scale import (RowsInPlace, draw_ratings, large_ratings_learner,
                                             parquet_dls)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp('scale')/'ratings.parquet'
    draw_ratings(file, 20_000, 300, 200)
    return file


def model(dls): return DotProductBias(*[len(names) for names in dls.classes.values()], 10)


def fit(make, dls, **kwargs):
    set_seed(42, reproducible=True)
    learn = make(dls, model(dls), eps=1e-8, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 0.02, wd=[1., 0.])
    return learn


def test_how_large_a_batch_is(file, tmp_path):
    """A two-hundredth of the ratings, at least 64, and never more than a quarter of them; what is
    asked for is taken."""
    few = tmp_path/'few.parquet'
    pd.DataFrame({'user': [i % 13 for i in range(130)],
                  'title': [f'film {i % 7}' for i in range(130)],
                  'rating': [float(1 + i % 5) for i in range(130)]}).to_parquet(few)
    for f, asked in (file, None), (file, 50), (few, None):
        dls = parquet_dls(f, device='cpu', **({'bs': asked} if asked else {}))
        n = len(dls.train_ds)
        assert dls.train.bs == (asked or min(max(64, n//200), n//4)), f


def test_the_split_is_that_of_the_lessons_seed(file):
    assert all(torch.equal(parquet_dls(file, device='cpu').train_ds.x,
                           parquet_dls(file, seed=seed, device='cpu').train_ds.x) == (seed == 42)
               for seed in (42, 41))


@pytest.mark.parametrize('accumulated', [False, True])
def test_the_same_numbers(file, accumulated):
    """As from the learner that makes its gradients anew, to the last digit; nearly so where those
    of several batches are added up"""
    dls = parquet_dls(file, device='cpu')
    cbs = lambda: [GradientAccumulation(4*dls.train.bs)] if accumulated else []
    ours, theirs = (fit(make, dls, cbs=cbs()) for make in (large_ratings_learner, fused_learner))
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(),
                            strict=True):
        assert torch.allclose(a, b, atol=1e-4) if accumulated else torch.equal(a, b), name
    assert list(ours.model.state_dict()) == list(theirs.model.state_dict())


def test_the_tables_are_kept(file):
    "A step empties the gradients and leaves them where they are"
    dls = parquet_dls(file, device='cpu')
    learn = large_ratings_learner(dls, model(dls))
    assert ([name for name, table in learn.model.named_children()
             if not isinstance(table, RowsInPlace)] == ['y_range'])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)
    where = [p.grad.data_ptr() for p in learn.model.parameters()]
    assert all(not p.grad.any() for p in learn.model.parameters())
    learn.opt.zero_grad()
    x, y = learn.dls.one_batch()
    learn.loss_func(learn.model(x), y).backward()
    assert (all(p.grad.any() for p in learn.model.parameters())
            and where == [p.grad.data_ptr() for p in learn.model.parameters()])


def test_a_gradient_that_is_asked_for_is_refused():
    """It is written to the table and not passed on: who asks for it by name gets an error and no
    silent zeros"""
    table = RowsInPlace(torch.nn.Parameter(torch.randn(5, 2)))
    with pytest.raises(RuntimeError):
        torch.autograd.grad(table(torch.tensor([1, 2])).sum(), table.weight)


def test_it_is_exported_and_recommends(file, tmp_path):
    "Only the names and who has seen what go with it, not the ratings"
    learn = fit(large_ratings_learner, parquet_dls(file, device='cpu'), path=tmp_path)
    learn.export('large.pkl')
    with warnings.catch_warnings(action='ignore'):
        again = load_learner(tmp_path/'large.pkl')
    assert recommend(again, 7).equals(recommend(learn, 7))
    held = sum(o.numel()*o.element_size() for o in [*learn.model.parameters(), learn.dls.seen])
    assert (tmp_path/'large.pkl').stat().st_size < held + 4*20_000, (
        'as many bytes as the ratings themselves')


@pytest.mark.parametrize('group', [700, 20_000])
def test_a_file_in_groups_and_in_any_order(file, tmp_path, group):
    "Groups of rows change nothing, and the order of the rows only the time"
    from pyarrow import parquet
    table = parquet.read_table(file)
    parquet.write_table(table, tmp_path/'groups.parquet', row_group_size=group)
    ours, whole = (parquet_dls(tmp_path/'groups.parquet', device='cpu'),
                   parquet_dls(file, device='cpu'))
    assert (torch.equal(ours.train_ds.x, whole.train_ds.x)
            and torch.equal(ours.valid_ds.y, whole.valid_ds.y))
    pd.read_parquet(file).sample(frac=1, random_state=1).to_parquet(tmp_path/'mixed.parquet')
    mixed = parquet_dls(tmp_path/'mixed.parquet', device='cpu')
    names = lambda dls: sorted((dls.classes['user'][int(u)], dls.classes['title'][int(f)], r)
                               for ds in (dls.train_ds, dls.valid_ds)
                               for (u, f), r in zip(ds.x.tolist(), ds.y.flatten().tolist(),
                                                    strict=True) if min(u, f))
    assert ((np.diff(mixed.train_ds.x[:, 0]) >= 0).all()
            and (np.diff(mixed.valid_ds.x[:, 0]) >= 0).all())
    assert (set(names(mixed))
            <= set(zip(*pd.read_parquet(file)[['user', 'title', 'rating']].values.T.tolist(),
                       strict=True)) and len(names(mixed)) > 19_000)


# A table of another kind

def table(file, **columns): return pd.read_parquet(file).assign(**columns)


@pytest.mark.parametrize('scale', [(.5, 5), (1, 10), (-10, 10)])
def test_another_scale(file, tmp_path, scale, capsys):
    "Predictions go with it, and the error is below that of always saying the mean"
    lo, hi = scale
    t = table(file)
    t['rating'] = (lo + (t.rating - 1)*(hi - lo)/4).round(1)
    t.to_parquet(tmp_path/'scaled.parquet')
    dls = parquet_dls(tmp_path/'scaled.parquet', device='cpu')
    assert dls.scale == scale and f'Ratings from {lo:g} to {hi:g}' in capsys.readouterr().out
    set_seed(1, reproducible=True)
    learn = large_ratings_learner(dls, model(dls))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 0.02, wd=[1., 0.])
    assert learn.recorder.values[-1][1] < dls.valid_ds.y.var()
    preds = learn.get_preds()[0]
    assert (preds.max() - preds.min() > (hi - lo)/2 and preds.min() > dls.y_range[0]
            and preds.max() < dls.y_range[1])


def test_the_usual_names_of_columns(file, tmp_path):
    table(file).rename(columns={'user': 'userId', 'title': 'item', 'rating': 'Stars'}).to_parquet(
        tmp_path/'named.parquet')
    assert torch.equal(parquet_dls(tmp_path/'named.parquet', device='cpu').train_ds.x,
                       parquet_dls(file, device='cpu').train_ds.x)


def held(dls):
    names = [np.array([None, *o[1:]], dtype=object) for o in dls.classes.values()]
    return sorted((str(names[0][u]), str(names[1][i]), r)
                  for (u, i), r in zip(dls.valid_ds.x.tolist(), dls.valid_ds.y.flatten().tolist(),
                                       strict=True))


def test_a_split_of_ones_own(file, tmp_path, capsys):
    "A column, positions, a second file or the latest share hold the same ratings back"
    rows = np.random.default_rng(0).permutation(20_000)
    t = table(file, timestamp=rows, part=np.where(rows >= 16_000, 'test', 'train'))
    t.to_parquet(tmp_path/'all.parquet')
    late = (rows >= 16_000)
    t[~late].to_parquet(tmp_path/'base.parquet'), t[late].to_parquet(tmp_path/'test.parquet')
    made = [parquet_dls(tmp_path/'all.parquet', valid=v, device='cpu')
            for v in ('time', 'part', np.flatnonzero(late))]
    made.append(parquet_dls(tmp_path/'base.parquet', valid=tmp_path/'test.parquet', device='cpu'))
    assert all(held(o) == held(made[0]) for o in made) and len(made[0].valid_ds) == 4_000
    assert sorted(held(made[0]))[0][2] in (1, 2, 3, 4, 5)


@pytest.mark.parametrize('columns, kw, says', [
    ({}, {'bs': 0}, 'bs is 0; a batch needs at least one rating'),
    ({}, {'bs': -1}, 'bs is -1; a batch needs at least one rating'),
    ({}, {'valid_pct': 1e-9}, 'The 20,000 ratings of .*t.parquet leave none for validation; give '
                              'more ratings, or a larger valid_pct'),
    ({}, {'valid': 'time'}, 'needs a column timestamp'),
    ({}, {'valid': [20_000]}, 'positions from 0 to 19999'),
    ({}, {'scale': (1, 4)}, r'go from 1 to 5, outside the scale \(1, 4\)'),
])
def test_what_is_refused(file, tmp_path, columns, kw, says):
    table(file, **columns).to_parquet(tmp_path/'t.parquet')
    with pytest.raises(ValueError, match=says):
        parquet_dls(tmp_path/'t.parquet', device='cpu', **kw)


def test_a_column_that_is_damaged_is_named(file, tmp_path):
    "Its description is whole, and what it describes is not"
    whole = file.read_bytes()
    (tmp_path/'t.parquet').write_bytes(whole[:1000] + bytes(byte ^ 85 for byte in whole[1000:3000])
                                       + whole[3000:])
    with pytest.raises(ValueError, match=r't.parquet is damaged in the column user \(.*\); write '
                                         r'it anew'):
        parquet_dls(tmp_path/'t.parquet', device='cpu')


def test_nothing_half_written_is_left_behind(tmp_path):
    def stop(parts):
        yield next(iter(parts))
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        draw_ratings(tmp_path/'ratings.parquet', 1_200_000, 3000, 2000, progress=stop)
    assert not list(tmp_path.iterdir())


def test_the_same_seed_makes_the_same_ratings(file, tmp_path):
    draw_ratings(tmp_path/'same', 20_000, 300, 200, seed=42)
    draw_ratings(tmp_path/'other', 20_000, 300, 200, seed=43)
    assert (tmp_path/'same').read_bytes() == file.read_bytes() != (tmp_path/'other').read_bytes()


def test_a_pair_that_is_there_twice_is_counted(file, tmp_path):
    pd.concat([table(file), table(file)[:7]]).to_parquet(tmp_path/'t.parquet')
    with pytest.warns(UserWarning, match='^7 ratings are of a pair of user and title that is there '
                                         'before'):
        parquet_dls(tmp_path/'t.parquet', device='cpu')


@pytest.mark.ci
def test_processes_that_share_a_training_average_its_gradients(tmp_path):
    """Two processes with other batches end with the mean of their gradients, as
    `DistributedDataParallel` promises"""
    code = """
import sys, torch, torch.distributed as dist
from lesson6.engine.ratings_at_scale import RowsInPlace
rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)
table = RowsInPlace(torch.nn.Parameter(torch.zeros(4, 2)))
shared = torch.nn.parallel.DistributedDataParallel(table)
for step in range(2):
    table.weight.grad = None
    shared(torch.tensor([rank + step])).sum().backward()
    print(table.weight.grad[:, 0].tolist())
"""
    both = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, str(rank),
                              tmp_path/'meeting'], stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)]
    try: said = [p.communicate(timeout=120)[0].splitlines()[-2:] for p in both]
    finally:
        for p in both: p.kill()
    assert said == [['[0.5, 0.5, 0.0, 0.0]', '[0.0, 0.5, 0.5, 0.0]']]*2


def test_what_was_not_rated_is_gone_before_the_split_and_names_are_composed(tmp_path):
    t = pd.DataFrame({'user': [i % 20 for i in range(400)],
                      'title': [('Caf\u00e9', 'Cafe\u0301', 'Alien')[i % 3] for i in range(400)],
                      'rating': [float(i % 6) for i in range(400)], 'timestamp': range(400)})
    t.loc[300:, 'rating'] = 0.
    t.to_parquet(tmp_path/'t.parquet')
    dls = parquet_dls(tmp_path/'t.parquet', valid='time', valid_pct=.2, not_rated=0, device='cpu')
    assert ((len(dls.train_ds), len(dls.valid_ds)) == (200, 50)
            and dls.classes['title'] == ['#na#', 'Alien', 'Caf\u00e9'])
