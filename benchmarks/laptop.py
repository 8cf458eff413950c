"""The lesson's own set on a laptop: synthetic JPEGs of 500 x 375 read, augmented twice and seen by
lite0 at 256 pixels.

`body_features`, as `fit_head` calls it, side by side with fastai's loader in front of the same
frozen body: `python benchmarks/laptop.py [PICTURES] [ROUNDS]`.
"""
import os
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore')
import torch  # noqa: E402
from compare import report, side_by_side  # noqa: E402
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import get_image_files  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from PIL import Image  # noqa: E402

from lesson6.data import lesson_path  # noqa: E402
from lesson6.engine.frozen_body import body_features, plain_head  # noqa: E402
from lesson6.engine.networks import efficientnet_lite0  # noqa: E402
from lesson6.pets import pets_dls, pets_learner  # noqa: E402

ALL, VIEWS = 7390, 2   # pictures of the lesson's set; augmented versions of each


def draw(folder, n):
    "n drawn pets of 500 x 375 pixels, the size of the real set's photographs"
    files = get_image_files(lesson_path('pets')/'images').sorted()
    for i in range(n):
        f = files[i*len(files)//n % len(files)]
        with Image.open(f) as im:
            picture = im.convert('RGB').resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(folder/f'{f.stem.rpartition("_")[0]}_{i}.jpg', quality=90)


def ours(learn): body_features(learn, VIEWS)


def stock(learn):
    "The same body in evaluation mode, fed by fastai's own loop over its loaders, a batch at a time"
    body = learn.model[0].eval()
    with torch.no_grad():
        for dl in [learn.dls.train.new(shuffle=False, drop_last=False)]*VIEWS + [learn.dls.valid]:
            for x, _ in dl: body(x).mean((2, 3))


def timed(way, folder, threads, presize, workers=0):
    "Wall clock, and seconds of processor, for all pictures of a folder"
    torch.set_num_threads(threads)
    set_seed(42)
    dls = pets_dls(folder, presize, 256, bs=64, valid_pct=.2, num_workers=workers, keep_valid=False)
    learn = pets_learner(dls, efficientnet_lite0, **plain_head)
    learn.remove_cb(ProgressCallback)
    n = len(dls.train_ds) + len(dls.valid_ds)
    start, before = time.perf_counter(), os.times()
    way(learn)
    seconds, after = time.perf_counter()-start, os.times()
    cpu = sum(after[:4])-sum(before[:4])   # of this process and of the workers that it has ended
    return {'seconds': seconds, 'ms a picture': 1000*seconds/n,
            'ms of processor a picture': 1000*cpu/n,
            f'minutes for {ALL:,}': ALL*seconds/n/60,
            'minutes on two quiet cores, from processor time': ALL*cpu/n/60/2}


def main(n=200, rounds=3):
    threads = os.cpu_count()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'images'
        folder.mkdir()
        draw(folder, n)
        table = side_by_side({"fastai's loader, Resize(460), batches of "
                              "64": partial(timed, stock, folder, threads, 460),
                              "fastai's loader, Resize(320), batches of "
                              "64": partial(timed, stock, folder, threads, 320),
                              'body_features': partial(timed, ours, folder, threads, None)},
                             "fastai's loader, Resize(460), batches of 64", rounds)
        report('laptop', "The lesson's own set on a laptop", table,
               f'{n} synthetic pictures of 500 x 375, four fifths of them augmented twice, one '
               f'fifth seen once; efficientnet_lite0 at 256 pixels, {threads} threads. The last '
               'column is half of the processor time: what two cores without other work would need '
               'if both were always busy. It is computed, not measured.')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
