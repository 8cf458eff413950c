"""Real pictures through the sections' own functions, with no argument but the folder and the seed:
`python benchmarks/real.py FOLDER [FOLDS]`.

FOLDER holds `oxford-iiit-pet/` and `pascal_2007/`, as fastai's `untar_data` leaves them. Pets: five
folds, two pictures in ten of each breed to validate on, with the network that a section takes
without a GPU and with the deeper one. VOC: the set's own split. What was found is kept in
`results/real.md`.
"""
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')
import pandas as pd  # noqa: E402
from compare import report  # noqa: E402
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import get_image_files  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from sklearn.metrics import average_precision_score  # noqa: E402

from lesson6.claims import compare  # noqa: E402
from lesson6.engine.networks import lesson_arch  # noqa: E402
from lesson6.multilabel import (fit_multilabel, multilabel_dls, multilabel_learner,  # noqa: E402
                                read_labels, threshold_curve)
from lesson6.pets import breed, fit_pets, pets_dls, pets_learner  # noqa: E402


def quiet(learn):
    learn.remove_cb(ProgressCallback)
    return learn


def linked(files, fold, folder):
    """A set with a split of its own: links to the pictures, below train/ and valid/; every fifth
    picture of a breed is in a fold"""
    at = {}
    for f in files:
        n = at[breed(f)] = at.get(breed(f), -1) + 1
        to = folder/('valid' if n % 5 == fold else 'train')/f.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(f.resolve())
    return folder


def pets(path, fold):
    "{network: error} on one fold, of the section's network and of the deeper one"
    with tempfile.TemporaryDirectory() as tmp:
        folder = linked(get_image_files(path).sorted(), fold, Path(tmp)/'images')
        set_seed(fold)
        dls = pets_dls(folder, seed=fold, by='name')
        errors = {}
        for arch in None, lesson_arch('resnet50', folder):   # None: what the section takes
            set_seed(fold)
            learn = quiet(pets_learner(dls, arch))
            with learn.no_logging(): fit_pets(learn)
            errors[learn.arch.__name__] = learn.validate()[1]
        return errors


def voc(path, seed=42):
    "Accuracy at the best threshold, and mean average precision"
    set_seed(seed)
    dls = multilabel_dls(read_labels(path), path, seed=seed)
    set_seed(seed)
    learn = quiet(multilabel_learner(dls))
    with learn.no_logging():
        fit_multilabel(learn)
        probs, targets = learn.get_preds()
    return (float(threshold_curve(probs, targets)[1].max()),
            average_precision_score(targets, probs, average='macro'))


def against_each_other(found):
    "Whether the deeper network has fewer errors, paired on the folds"
    (first, its), (deeper, others) = found.items()
    return {'': 'pets, the two networks',
            'compared': str(compare(others, its, (deeper, first), 'share', over='folds'))}


def all_folds(path, folds=5):
    path, found, start = Path(path), {}, time.process_time()
    for fold in range(int(folds)):
        for name,error in pets(path/'oxford-iiit-pet', fold).items():
            found.setdefault(name, []).append(error)
        print(f'fold {fold+1}:',
              ', '.join(f'{name} {errors[-1]:.1%}' for name,errors in found.items()), flush=True)
    rows = [{'': f'pets, {name}', 'error': statistics.mean(errors),
             'folds': ', '.join(f'{e:.1%}' for e in errors),
             'standard deviation': statistics.stdev(errors) if len(errors) > 1 else None}
            for name,errors in found.items()]
    if int(folds) > 1: rows.append(against_each_other(found))
    accuracy, precision = voc(path/'pascal_2007')
    rows.append({'': 'VOC', 'accuracy at the best threshold': accuracy,
                 'mean average precision': precision})
    note = (f'{folds} folds of the pets, the own split of VOC; {time.process_time()-start:.0f} '
            'seconds of the processor.')
    report('real', "Real pictures, the sections' functions", pd.DataFrame(rows).set_index(''), note,
           chart=False)


if __name__ == '__main__': all_folds(*sys.argv[1:])
