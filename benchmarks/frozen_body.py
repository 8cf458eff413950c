"The head on stored features against fastai's frozen epochs and scikit-learn's logistic regression, on real pets."
import os
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore')
import torch  # noqa: E402
from compare import report, side_by_side  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import CategoryBlock, DataBlock, IndexSplitter, get_image_files  # noqa: E402
from fastai.metrics import error_rate  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from fastai.vision.all import ImageBlock, Resize, aug_transforms, vision_learner  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

from lesson6.engine.frozen_body import body_features, fit_head  # noqa: E402
from lesson6.engine.networks import efficientnet_lite0  # noqa: E402
from lesson6.pets import breed  # noqa: E402

SIZE, RATE = 256, 5e-3
plain = dict(lin_ftrs=[], first_bn=False, concat_pool=False, ps=.25)   # one layer on the average of the map
curves = {}                                       # name -> for each round, [(seconds, error)] after each epoch


class Watch(Callback):
    "Notes the time and the error after each epoch"
    order = 65
    def __init__(self, start): self.start, self.points = start, []
    def after_epoch(self): self.points.append((time.perf_counter()-self.start, self.recorder.values[-1][-1]))


def pets_learner(pictures, fold, **head):
    "A fold of two pictures a breed is kept out; the others are trained on"
    set_seed(fold)
    at, valid = {}, []
    for i, f in enumerate(pictures):
        at[breed(f)] = at.get(breed(f), -1) + 1
        if at[breed(f)] % 5 == fold: valid.append(i)
    dls = DataBlock((ImageBlock, CategoryBlock), get_y=breed, splitter=IndexSplitter(valid), item_tfms=Resize(460),
                    batch_tfms=aug_transforms(size=SIZE, min_scale=.75)).dataloaders(pictures, bs=64, num_workers=0)
    learn = vision_learner(dls, efficientnet_lite0, metrics=error_rate, **head)
    learn.remove_cb(ProgressCallback)
    return learn


def trained(name, pictures, train, **head):
    "One round: a fold, a learner, and how its error falls"
    rounds = curves.setdefault(name, [])
    learn = pets_learner(pictures, len(rounds), **head)
    watch = Watch(time.perf_counter())
    with learn.no_logging(): train(learn, cbs=watch)
    rounds.append(watch.points)
    return {'seconds': watch.points[-1][0], 'error': watch.points[-1][1]}


def from_zeros(learn):
    torch.nn.init.zeros_(learn.model[1][-1].weight)
    return learn


def regression(name, pictures, **head):
    rounds = curves.setdefault(name, [])
    learn = pets_learner(pictures, len(rounds), **head)
    start = time.perf_counter()
    (x, y), (valid_x, valid_y) = body_features(learn)
    error = 1 - LogisticRegression(max_iter=1000).fit(x, y).score(valid_x, valid_y)
    rounds.append([(time.perf_counter()-start, error)])
    return {'seconds': rounds[-1][0][0], 'error': error}


def reached(points, error): return next((t for t, e in points if e <= error), float('inf'))
def had(points, seconds, breeds): return next((e for t, e in reversed(points) if t <= seconds), 1-1/breeds)


def main(rounds=3):
    folder = Path(os.environ.get('LESSON6_REAL', Path(__file__).parent.parent.parent/'shared'/'real'))/'oxford-iiit-pet'/'images'
    if not folder.is_dir(): return print(f'There are no real pets at {folder}; set LESSON6_REAL to the folder that holds oxford-iiit-pet/.')
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    pictures = get_image_files(folder).sorted()
    breeds = len({breed(f) for f in pictures})
    frozen, ours = 'fastai, three frozen epochs', 'fit_head, ten epochs'
    ways = {frozen: (trained, dict(train=lambda learn, cbs: learn.fit_one_cycle(3, RATE, cbs=cbs))),
            ours: (trained, dict(train=lambda learn, cbs: fit_head(learn, 10, RATE, cbs=cbs))),
            'the same, plain head': (trained, dict(train=lambda learn, cbs: fit_head(learn, 10, RATE, cbs=cbs), **plain)),
            'the same, plain head, from zeros': (trained, dict(train=lambda learn, cbs: fit_head(from_zeros(learn), 10, RATE, cbs=cbs), **plain)),
            'the same, plain head, three views': (trained, dict(train=lambda learn, cbs: fit_head(learn, 10, RATE, views=3, cbs=cbs), **plain)),
            'logistic regression on the features of the plain head': (regression, plain)}
    table = side_by_side({name: partial(f, name, pictures, **args) for name, (f, args) in ways.items()}, frozen, rounds)
    goals = [points[-1] for points in curves[frozen]]
    table[f'seconds to the error of {frozen}'] = [statistics.median(reached(p, e) for p, (_, e) in zip(curves[n], goals, strict=True)) for n in ways]
    ratios = [t/reached(p, e) for p, (t, e) in zip(curves[ours], goals, strict=True)]
    same_time = statistics.mean(had(f, p[-1][0], breeds) for f, p in zip(curves[frozen], curves[ours], strict=True))
    report('frozen_body', 'A frozen body, computed once', table,
           f'{len(pictures)} real pictures of {breeds} breeds, a fifth kept out, {rounds} folds; efficientnet_lite0 at {SIZE} pixels, {torch.get_num_threads()} thread(s), '
           f'the same rate of {RATE} for all. The plain head is one layer on the average of the map; that of the lesson, in the first two rows, has two layers, BatchNorm before both, and takes the largest values of the map as well. '
           'The regression starts from zeros. A new head starts from random weights, and what a few pictures a breed say nothing about stays in them: the row "from zeros" begins as the regression does. '
           f'{ours} reach the error of {frozen} {statistics.median(ratios):.1f} times as fast. When they are done, at {table["error"][ours]:.1%} error, '
           f'the frozen epochs are at {same_time:.1%} (before the end of the first epoch, that of guessing).')


if __name__ == '__main__': main()
