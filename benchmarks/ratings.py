"""The lesson's recipe for ratings on fastai as it comes, with true epochs, and ours;
scikit-surprise, cmfrec and a bare PyTorch loop beside them."""
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from compare import report, side_by_side  # noqa: E402
from fastai.collab import CollabDataLoaders, Learner, MSELossFlat  # noqa: E402
from fastai.tabular.all import TabDataLoader  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402

from lesson6.collab import DotProductBias, ratings_dls, ratings_learner, read_ratings  # noqa: E402

real = Path(os.environ.get('LESSON6_REAL', Path(__file__).parents[2]/'shared'/'real'))/'ml-100k'
seeds = (42, 1, 2)
als_settings = {'50 factors': dict(k=50, lambda_=14, niter=6),
                '50 factors, and who rated '
                'what': dict(k=50, lambda_=16, niter=6, add_implicit_features=True, w_implicit=1.)}


def ratings():
    "MovieLens 100k where it is at hand, otherwise the twin's recipe at its size"
    if real.is_dir(): return read_ratings(real), 'MovieLens 100k'
    from lesson6.mini import movielens
    planted = movielens.plant(943, 1682)
    users, films = movielens.who_rates_what(planted, 100_000)
    return (pd.DataFrame({'user': users, 'title': films,
                          'rating': movielens.stars(planted, users, films)}),
            'a twin of the size of MovieLens 100k')


def fit(learn, epochs, lr, wd):
    "Seconds and the last validation MSE"
    start = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, wd=wd)
    return {'seconds': time.process_time() - start, 'validation MSE': learn.recorder.values[-1][1]}


def lesson(table, seed, **kwargs):
    "50 factors, batches of 64, 5 epochs, 5e-3, weight decay 0.1"
    dls = CollabDataLoaders.from_df(table, item_name='title', bs=64, seed=seed, **kwargs)
    set_seed(seed)
    model = DotProductBias(len(dls.classes['user']), len(dls.classes['title']), 50, (0, 5.5))
    return fit(Learner(dls, model, loss_func=MSELossFlat()), 5, 5e-3, 0.1)


def ours(table, seed, bs, lr, wd, epochs):
    dls = ratings_dls(table, bs=bs, seed=seed)
    set_seed(seed)
    return fit(ratings_learner(dls), epochs, lr, [wd, 0.])


def bare(table, seed, bs, lr, wd, epochs):
    "The same batches, model, schedule and decay in a loop of ten lines"
    dls = ratings_dls(table, bs=bs, seed=seed)
    set_seed(seed)
    model = DotProductBias(len(dls.classes['user']), len(dls.classes['title']), 50, dls.y_range)
    factors, biases = ([model.user_factors.weight, model.movie_factors.weight],
                       [model.user_bias.weight, model.movie_bias.weight])
    opt = torch.optim.AdamW([{'params': factors, 'weight_decay': wd},
                             {'params': biases, 'weight_decay': 0.}],
                            lr=lr, betas=(0.9, 0.99), eps=1e-5, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=epochs*len(dls.train),
                                                   pct_start=0.25, base_momentum=0.85,
                                                   max_momentum=0.95)
    start = time.process_time()
    for _ in range(epochs):
        for x, y in dls.train:
            F.mse_loss(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
        with torch.no_grad():
            valid = (sum(F.mse_loss(model(x), y, reduction='sum').item()
                         for x, y in dls.valid)/len(dls.valid_ds))
    return {'seconds': time.process_time() - start, 'validation MSE': valid}


# scikit-surprise has to be compiled, against a NumPy older than ours: so it gets an environment of
# its own, and is run there.
svd = """
import json, sys, time, numpy as np, pandas as pd
from surprise import SVD, Dataset, Reader, accuracy
with np.load(sys.argv[1]) as f: train, test, seed = f['train'], f['test'], int(f['seed'])
train = pd.DataFrame(train, columns=['user', 'film', 'rating'])
trainset = Dataset.load_from_df(train, Reader(rating_scale=(1, 5))).build_full_trainset()
start = time.process_time()
algo = SVD(n_factors=50, random_state=seed).fit(trainset)
seconds = time.process_time() - start
mse = accuracy.mse(algo.test(test.tolist()), verbose=False)
print(json.dumps({'seconds': seconds, 'validation MSE': mse}))
"""


# The strongest library for explicit ratings on a CPU: alternating least squares in C. Its settings
# were searched on the same splits as ours.
als = """
import json, sys, time, numpy as np, pandas as pd
from cmfrec import CMF
with np.load(sys.argv[1]) as f: train, test, seed = f['train'], f['test'], int(f['seed'])
columns = ['UserId', 'ItemId', 'Rating']
train, test = pd.DataFrame(train, columns=columns), pd.DataFrame(test, columns=columns)
start = time.process_time()
model = CMF(**json.loads(sys.argv[2]), nthreads=1, random_state=seed, verbose=False).fit(train)
seconds = time.process_time() - start
guess = np.nan_to_num(model.predict(test.UserId, test.ItemId), nan=train.Rating.mean())
off = np.clip(guess, train.Rating.min(), train.Rating.max()) - test.Rating
print(json.dumps({'seconds': seconds, 'validation MSE': float((off**2).mean())}))
"""


def environment(library, *installs):
    """The Python of an environment of its own for a library, made on the first call (minutes);
    None, having said why, where it can't be made"""
    home = (
        Path(tempfile.gettempdir())/f'lesson6-{library}-{sys.version_info[0]}{sys.version_info[1]}')
    python, ready = home/'bin'/'python', home/'ready'
    if ready.exists(): return python
    print(f'{library} is being built in {home} ...', flush=True)
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    for step in ([sys.executable, '-m', 'venv', '--clear', home],
                 *[[*pip, *words] for words in installs]):
        done = subprocess.run(step, capture_output=True, text=True,
                              env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
        if done.returncode:
            print(f'{library} could not be installed and is left out: '
                  f'{(done.stderr.strip().splitlines() or ["no message"])[-1]}')
            return
    ready.touch()
    return python


def surprise_python():
    return environment('surprise', ['numpy<2', 'pandas<3', 'cython<3.1', 'setuptools', 'wheel'],
                       ['--no-build-isolation', 'scikit-surprise==1.1.4', 'numpy<2'])


def cmfrec_python():
    return environment('cmfrec',
                       ['numpy', 'scipy', 'pandas', 'cython', 'setuptools', 'wheel', 'findblas',
                        'threadpoolctl'], ['--no-build-isolation', 'cmfrec>=3.5.1.post14'])


def elsewhere(python, program, table, seed, **settings):
    """The split of `ratings_dls` with this seed, trained and measured by a program in another
    environment"""
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).numpy()
    held_back = int(0.2*len(table))
    rows = np.stack([table.user, pd.factorize(table.title)[0], table.rating], 1)[order]
    with tempfile.TemporaryDirectory() as d:
        np.savez(Path(d)/'split.npz', train=rows[held_back:], test=rows[:held_back], seed=seed)
        done = subprocess.run([python, '-c', program, Path(d)/'split.npz', json.dumps(settings)],
                              capture_output=True, text=True, check=True,
                              env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
                              | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'})
    return json.loads(done.stdout)


def in_turn(f, *args, **kwargs):
    "Each round is another split"
    splits = cycle(seeds)
    return lambda: f(*args, seed=next(splits), **kwargs)


def main(repeats=3):
    torch.set_num_threads(1)
    table, name = ratings()
    true_epochs = '(b) the same with true epochs'
    contenders = {"(a) the lesson's recipe, fastai as it comes": in_turn(lesson, table),
                  true_epochs: in_turn(lesson, table, dl_type=TabDataLoader)}
    beside = {}
    for bs, lr, wd, epochs in ((1024, 1e-2, 0.6, 5), (4096, 4e-2, 1.6, 5), (8192, 6e-2, 2., 6),
                               (4096, 4e-2, 1.6, 3)):
        how = f'batches of {bs:,}, {epochs} epochs'
        contenders[f'(c) ours, {how}'] = in_turn(ours, table, bs=bs, lr=lr, wd=wd, epochs=epochs)
        contenders[f'bare PyTorch, {how}'] = in_turn(bare, table, bs=bs, lr=lr, wd=wd,
                                                     epochs=epochs)
        beside[f'(c) ours, {how}'] = f'bare PyTorch, {how}'
    if python := surprise_python():
        contenders['(d) scikit-surprise, SVD with 50 '
                   'factors'] = in_turn(partial(elsewhere, python, svd), table)
    if python := cmfrec_python():
        for note, settings in als_settings.items():
            contenders['(e) cmfrec, alternating least squares, '
                       f'{note}'] = in_turn(partial(elsewhere, python, als), table, **settings)
    # the first training of a process is slower than all others
    ours(table, 42, 1024, 1e-2, 0.6, 1)
    result = side_by_side(contenders, true_epochs, repeats)
    seconds = result.attrs['seconds']
    result['times the bare loop'] = [f'{np.median(np.divide(seconds[n], seconds[beside[n]])):.2f}'
                                     if n in beside else '' for n in result.index]
    report('ratings', 'Ratings, small', result,
           f'{name}, {repeats} rounds, each on another split (seeds {", ".join(map(str, seeds))}); '
           'processor seconds of one training with its validations, one thread. The validation MSE '
           'is the mean over the splits.')


if __name__ == '__main__': main()
