"""Real pictures through the sections' own functions, with no argument but the folder and the seed: `python benchmarks/real.py FOLDER [FOLDS]`.

FOLDER holds `oxford-iiit-pet/` and `pascal_2007/`, as fastai's `untar_data` leaves them. Pets: five folds, two pictures in ten of each breed
to validate on, with the network that a section takes without a GPU and with the deeper one. VOC: the set's own split.
"""
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import get_image_files  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from sklearn.metrics import average_precision_score  # noqa: E402

from lesson6.engine.networks import lesson_arch, lesson_size  # noqa: E402
from lesson6.multilabel import fit_multilabel, multilabel_dls, multilabel_learner, read_labels, threshold_curve  # noqa: E402
from lesson6.pets import breed, fit_pets, pets_dls, pets_learner  # noqa: E402


def quiet(learn):
    learn.remove_cb(ProgressCallback)
    return learn


def linked(files, fold, folder):
    "A set with a split of its own: links to the pictures, below train/ and valid/; every fifth picture of a breed is in a fold"
    at = {}
    for f in files:
        n = at[breed(f)] = at.get(breed(f), -1) + 1
        to = folder/('valid' if n % 5 == fold else 'train')/f.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(f.resolve())
    return folder


def pets(path, fold, deeper=False):
    "Error on one fold"
    with tempfile.TemporaryDirectory() as tmp:
        folder = linked(get_image_files(path).sorted(), fold, Path(tmp)/'images')
        arch = lesson_arch('resnet50', folder) if deeper else None   # None: what the section takes
        size = lesson_size(arch, 224, folder) if deeper else None
        set_seed(fold)
        dls = pets_dls(folder, size=size, seed=fold, by='name')
        set_seed(fold)
        learn = quiet(pets_learner(dls, arch))
        with learn.no_logging(): fit_pets(learn)
        return learn.validate()[1]


def voc(path, seed=42):
    "Accuracy at the best threshold, and mean average precision"
    set_seed(seed)
    dls = multilabel_dls(read_labels(path), path, seed=seed)
    set_seed(seed)
    learn = quiet(multilabel_learner(dls))
    with learn.no_logging():
        fit_multilabel(learn)
        probs, targets = learn.get_preds()
    return float(threshold_curve(probs, targets)[1].max()), average_precision_score(targets, probs, average='macro')


def main(path, folds=5):
    path, folds = Path(path), int(folds)
    for deeper in (False, True):
        start = time.perf_counter()
        errors = [pets(path/'oxford-iiit-pet', fold, deeper) for fold in range(folds)]
        spread = statistics.stdev(errors) if folds > 1 else float('nan')
        print(f'pets, {"deeper" if deeper else "the section"}: {statistics.mean(errors):.1%} error (folds: {", ".join(f"{e:.1%}" for e in errors)}; '
              f'standard deviation {spread:.1%}), {(time.perf_counter()-start)/folds:.0f} s a fold', flush=True)
    accuracy, found = voc(path/'pascal_2007')
    print(f'VOC: accuracy {accuracy:.1%} at the best threshold, mean average precision {found:.3f}')


if __name__ == '__main__': main(*sys.argv[1:])
