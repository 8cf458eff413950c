"""The drawn ratings at 1, 10 and 32 million: ours, from the file to the error after three epochs;
cmfrec, which solves the same task by alternating least squares in C; and fastai's own loaders, to
where they break.

Each contender runs in a process of its own, in turn. fastai's is watched, and broken off at ten
gigabytes or ten minutes; of its epoch a fixed number of batches is measured, and the rest is
reckoned from them.
"""
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

# as the sets of MovieLens are
sizes = {1_000_000: (6_040, 3_706), 10_000_000: (69_878, 10_677), 32_000_000: (200_948, 87_585)}
factors, epochs, batches = 50, 3, 200
most_bytes, most_seconds = 10*2**30, 600
# the best lambda_ of those tried at each size
als_settings = {n: dict(k=50, lambda_=lambda_, niter=4)
                for n, lambda_ in zip(sizes, (24, 30, 24), strict=True)}


def rss():
    import resource
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*unit


class Clock:
    "Seconds on the clock and of the processor since the last look"
    def __init__(self): self()
    def __call__(self):
        now = time.perf_counter(), time.process_time()
        gone = [b-a for a, b in zip(getattr(self, 'last', now), now, strict=True)]
        self.last = now
        return gone


def draw(file, n):
    from lesson6.engine.ratings_at_scale import draw_ratings
    draw_ratings(file, n, *sizes[n])


def ours(file, n):
    import numpy as np
    from fastai.callback.core import Callback
    from fastai.torch_core import set_seed

    from lesson6.mini.movielens import best_guess, plant
    from lesson6.collab import DotProductBias
    from lesson6.engine.ratings_at_scale import large_ratings_learner, parquet_dls
    clock = Clock()
    dls = parquet_dls(file, device='cpu')
    reading = clock()
    set_seed(42)
    learn = large_ratings_learner(dls,
                                  DotProductBias(*[len(names) for names in dls.classes.values()],
                                                 factors, dls.y_range))
    times = []
    class Time(Callback):
        order = 90
        def before_epoch(self): clock()
        def after_epoch(self): times.append(clock())
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 0.02, wd=[1., 0.], cbs=Time())
    peak = rss()
    some = dls.valid_ds.x[::max(1, len(dls.valid_ds)//200_000)].cpu().numpy()
    some = some[some.min(1) > 0]
    users, films = (np.array([0, *dls.classes['user'][1:]]),
                    np.array([0, *(int(t[5:]) for t in dls.classes['title'][1:])]))
    floor = best_guess(plant(*sizes[n]), users[some[:, 0]], films[some[:, 1]])[1].mean()
    return {'batch': dls.train.bs, 'reading s': reading[0],
            'an epoch s': statistics.median(t for t, _ in times),
            'reading and an epoch, processor s': reading[1]
            + statistics.median(t for _, t in times),
            'all of the training s': sum(t for t, _ in times),
            'peak GB': peak/1e9, 'validation MSE': learn.recorder.values[-1][1],
            'lowest possible': floor}


als = """
import json, resource, sys, time, numpy as np, pandas as pd
from cmfrec import CMF
columns = ['UserId', 'ItemId', 'Rating']
train, test = (pd.DataFrame({c: np.load(f'{sys.argv[1]}/{part}_{c}.npy') for c in columns})
               for part in ('train', 'valid'))
start = time.perf_counter()
model = CMF(**json.loads(sys.argv[2]), use_float=True, nthreads=2, random_state=42, verbose=False)
model.fit(train)
seconds = time.perf_counter() - start
guess = np.nan_to_num(model.predict(test.UserId, test.ItemId), nan=train.Rating.mean())
off = np.clip(guess, train.Rating.min(), train.Rating.max()) - test.Rating
print(json.dumps({'all of the training s': seconds, 'validation MSE': float((off**2).mean()),
                  'peak GB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9}))
"""


def cmfrec(file, n, **settings):
    "The split of `parquet_dls`, trained and measured in cmfrec's own environment"
    import tempfile

    import numpy as np
    from ratings import cmfrec_python

    from lesson6.engine.ratings_at_scale import parquet_dls
    python = cmfrec_python()
    if not python: raise SystemExit('cmfrec could not be installed')
    dls = parquet_dls(file, device='cpu')
    with tempfile.TemporaryDirectory() as d:
        for part, ds in ('train', dls.train_ds), ('valid', dls.valid_ds):
            for column, values in (('UserId', ds.x[:, 0]), ('ItemId', ds.x[:, 1]),
                                   ('Rating', ds.y.flatten())):
                np.save(Path(d)/f'{part}_{column}.npy', values.numpy())
        del dls, ds, values
        done = subprocess.run([python, '-c', als, d, json.dumps(settings or als_settings[n])],
                              capture_output=True, text=True, check=True,
                              env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    return json.loads(done.stdout)


def stock(file, n, bs):
    import pandas as pd
    from fastai.callback.core import Callback, CancelFitException
    from fastai.collab import CollabDataLoaders, Learner, MSELossFlat

    from lesson6.collab import DotProductBias
    clock = Clock()
    dls = CollabDataLoaders.from_df(pd.read_parquet(file), item_name='title', bs=bs)
    reading = clock()
    print(json.dumps({'batch': bs, 'reading s': reading[0], 'peak GB': rss()/1e9}), flush=True)
    model = DotProductBias(len(dls.classes['user']), len(dls.classes['title']), factors, (0, 5.5))
    measured = min(batches, len(dls.train)-1)
    begun = []
    class Some(Callback):
        def after_batch(self):
            if self.iter == 0: begun.append(clock())   # the first one is left out
            if self.iter == measured: raise CancelFitException
    learn = Learner(dls, model, loss_func=MSELossFlat(), cbs=Some())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 5e-3, wd=0.1)
    epoch = [t/measured*len(dls.train) for t in clock()]
    return {'batch': bs, 'reading s': reading[0], 'an epoch s': epoch[0],
            'reading and an epoch, processor s': reading[1] + epoch[1], 'peak GB': rss()/1e9}


def alone(*words):
    "Runs this file in a process of its own; what it printed as JSON, or why it was broken off"
    import psutil
    env = {**os.environ, 'OMP_NUM_THREADS': '2', 'OMP_WAIT_POLICY': 'passive'}
    process = subprocess.Popen([sys.executable, __file__, *map(str, words)], env=env,
                               stdout=subprocess.PIPE, text=True)
    end, why = time.monotonic() + most_seconds, ''
    watched = words[0] == 'stock'
    while process.poll() is None:
        try: held = psutil.Process(process.pid).memory_info().rss
        except psutil.NoSuchProcess: break
        if watched and held > most_bytes:
            why = f'broken off at {most_bytes/2**30:.0f} GiB of memory'
        if watched and time.monotonic() > end: why = f'broken off after {most_seconds} s'
        if why: process.kill()
        time.sleep(0.5)
    said = process.communicate()[0].strip().splitlines()
    if process.returncode and not why: why = f'ended with {process.returncode}'
    return (json.loads(said[-1]) if said else {}), why


columns = ['thousand ratings a second', 'times as fast', 'reading s', 'an epoch s',
           'reading and an epoch, processor s', 'all of the training s', 'peak GB',
           'validation MSE', 'lowest possible']


def ways(file, n):
    large = min(131_072, int(0.8*n)//200)
    return {'ours': ('ours', file, n), 'cmfrec': ('cmfrec', file, n),
            'fastai, batches of 64': ('stock', file, n, 64),
            f'fastai, batches of {large:,}': ('stock', file, n, large)}


def tell(found, rounds):
    "found: {(ratings, contender): [(what was measured, why it was broken off), ...]}"
    import pandas as pd
    from compare import report
    rows, notes = [], []
    for n in sizes:
        whole = {name: [r['reading s'] + r['an epoch s'] for r, why in tries if 'an epoch s' in r
                        and not why] for (m, name), tries in found.items() if m == n}
        base = next((whole[name] for name in ways('', n) if name != 'ours' and whole.get(name)),
                    None)
        for name in reversed(ways('', n)):
            tries = found.get((n, name))
            if not tries: notes.append(f'{n//10**6} M, {name}: not measured.'); continue
            for why in {why for _, why in tries if why}:
                notes.append(f'{n//10**6} M, {name}: {why}.')
            measured = [r for r, why in tries if not why]
            if not measured: continue
            median = {k: statistics.median(r[k] for r in measured) for k in measured[0]
                      if k != 'batch'}
            rate = ({'thousand ratings a second': n/statistics.median(whole[name])/1000}
                    if whole[name] else {})
            if whole[name] and base:
                pairs = zip(base, whole[name], strict=False)
                rate['times as fast'] = statistics.median(b/w for b, w in pairs)
            rows.append({'': f'{n//10**6} M, {name}', **rate, **median})
    table = pd.DataFrame(rows).set_index('')
    table = table[[c for c in columns if c in table]]
    settings = '; '.join(f'{n//10**6} M: '
                         + ', '.join(f'{name} {value}' for name, value in o.items())
                         for n, o in als_settings.items())
    each = f'{rounds} rounds' if rounds > 1 else 'one round'
    report('ratings_large', 'Ratings, large', table,
           'Drawn ratings in the sizes of MovieLens 1M, 10M and 32M, from a Parquet file; '
           f'{factors} factors, two threads, {each}, each contender in a process of its own. '
           'Ratings a second: all of the file, by the time to read it and to train and validate '
           f'for one epoch (the median of {epochs}). Of fastai\'s epoch {batches} batches at most '
           'were measured, without validation, and the rest reckoned from them. Times as fast: as '
           'fastai with batches of 64 at the same size, or with the larger ones where those were '
           f'not measured. All of the training: {epochs} epochs of ours with their validations; '
           'cmfrec has no epochs, and reads no files: its time is that of `fit` alone '
           f'({settings}). The machine has {os.cpu_count()} cores and was at a load of '
           f'{os.getloadavg()[2]:.0f}: where the load is higher than the cores, only the seconds '
           'of the processor tell how the time grows. ' + ' '.join(notes))


def main(chosen=tuple(sizes), rounds=3):
    from lesson6.data import cache_path
    folder = cache_path()/'ratings_large'
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for n in chosen:
        file = folder/f'{n}.parquet'
        if not file.exists(): alone('draw', file, n)
        for i in range(rounds):
            for name, words in ways(file, n).items():
                tries = found.setdefault((n, name), [])
                if any(why for _, why in tries): continue   # broken off once is enough
                tries.append(alone(*words))
                print(f'{n:>10,} round {i+1}/{rounds}  {name:<28} {tries[-1]}', flush=True)
    tell(found, rounds)


if __name__ == '__main__':
    if len(sys.argv) == 1: main()
    else:
        warnings.filterwarnings('ignore')
        what, file, *numbers = sys.argv[1:]
        result = ({'draw': draw, 'ours': ours, 'stock': stock,
                   'cmfrec': cmfrec}[what](Path(file), *map(int, numbers)))
        if result: print(json.dumps({k: float(v) for k, v in result.items()}))
