"""Real heads, five folds over breeds, through the section's own functions: how far off is the
middle of a head?

    python benchmarks/real_heads.py FOLDER

FOLDER holds the pets' pictures in images/ and, as boxes.csv or in annotations/xmls, the boxes
around their heads.
"""
import argparse
import random
import time
from pathlib import Path

import pandas as pd
from fastai.torch_core import set_seed

from lesson6.head_pose import fit_pose, point_errors, points_dls, pose_learner, read_points


def all_breeds():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--folds', type=int, default=5)
    parser.add_argument('--seed', type=int, default=42)
    args = parser.parse_args()
    breeds = sorted(read_points(args.folder).group.unique())
    random.Random(args.seed).shuffle(breeds)
    errors, start = [], time.perf_counter()
    for i in range(args.folds):
        set_seed(args.seed, reproducible=True)
        dls = points_dls(args.folder, valid_group=breeds[i::args.folds], seed=args.seed)
        set_seed(args.seed, reproducible=True)
        learn = pose_learner(dls)
        with learn.no_bar(), learn.no_logging(): fit_pose(learn)
        errors.append(point_errors(learn))
        off, constant = errors[-1].off.mean(), errors[-1].constant.mean()
        print(f'fold {i+1}: {off:.1f} pixels off, the constant guess {constant:.1f}: '
              f'{off/constant:.3f} of it; {time.perf_counter()-start:.0f} s so far', flush=True)
    every = pd.concat(errors)
    off, constant = every.off.mean(), every.constant.mean()
    print(f'{len(every)} heads: {off:.1f} pixels off (median {every.off.median():.1f}), the '
          f'constant guess {constant:.1f}: {off/constant:.3f} of it')


if __name__ == '__main__': all_breeds()
