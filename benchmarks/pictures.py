"Pictures a second through the lesson's own DataBlock and through presized pictures; then a frozen epoch, stock against ours."
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore')
os.environ['LESSON6_DATA'] = 'mini'
import torch  # noqa: E402
from compare import report, side_by_side  # noqa: E402
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import CategoryBlock, DataBlock, Normalize, RandomSplitter, get_image_files  # noqa: E402
from fastai.torch_core import TensorBase, set_seed  # noqa: E402
from fastai.vision.all import ImageBlock, Resize, aug_transforms, imagenet_stats, vision_learner  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.models import resnet18, squeezenet1_1  # noqa: E402

from lesson6.data import lesson_path  # noqa: E402
from lesson6.pets import breed  # noqa: E402
from lesson6.engine.picture_loaders import PresizedBlock, PresizedPictures  # noqa: E402


def draw(folder, n):
    "n drawn pets of 500 x 375 pixels, the size of the real set's photographs"
    files = get_image_files(lesson_path('pets')/'images').sorted()
    for i in range(n):
        f = files[i*len(files)//n % len(files)]
        with Image.open(f) as im: picture = im.convert('RGB').resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(folder/f'{f.stem.rpartition("_")[0]}_{i}.jpg', quality=90)


def block(first, *extra, item_tfms=None):
    return DataBlock(blocks=(first, CategoryBlock), get_items=lambda files: files, get_y=breed, splitter=RandomSplitter(seed=42),
                     item_tfms=item_tfms, batch_tfms=[*aug_transforms(size=224), *extra])


def epoch(dls, difference, threads):
    "One epoch of training batches, and no network"
    torch.set_num_threads(threads)
    set_seed(42)
    start, cpu = time.perf_counter(), time.process_time()
    n = sum(len(x) for x, _ in dls.train)
    seconds = time.perf_counter() - start
    return {'seconds': seconds, 'pictures a second': n/seconds, 'ms of processor a picture': (time.process_time()-cpu)*1000/n,
            'mean difference (of 255)': difference}


def mean_difference(one, other):
    "Of the validation pictures, where no transform depends on chance; of 255, in pixels that were not yet normalised"
    pairs = [((a - b).abs()*torch.tensor(imagenet_stats[1])[:, None, None]*255).mean((1, 2, 3))
             for a, b in zip((TensorBase(x) for x, _ in one.valid), (TensorBase(x) for x, _ in other.valid), strict=True)]
    return torch.cat(pairs).mean().item()


def frozen_epoch(dls, arch):
    torch.set_num_threads(2)
    set_seed(42)
    learn = vision_learner(dls, arch, pretrained=False, normalize=False)
    learn.remove_cb(ProgressCallback)
    learn.freeze()
    start, cpu = time.perf_counter(), time.process_time()
    with learn.no_logging(): learn.fit(1)
    return {'seconds': time.perf_counter() - start, 'seconds of processor': time.process_time() - cpu}


def main(n=1000):
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'pictures'
        folder.mkdir()
        draw(folder, n)
        presized = PresizedPictures(get_image_files(folder), folder=Path(tmp)/'cache')
        norm = Normalize.from_stats(*imagenet_stats)
        ways = {"the lesson's DataBlock": (block(ImageBlock, norm, item_tfms=Resize(460))), 'presized': block(PresizedBlock(presized), norm)}
        dls = {name: b.dataloaders(get_image_files(folder).sorted(), bs=64, num_workers=0) for name, b in ways.items()}
        stock = next(iter(dls))
        difference = {name: mean_difference(dls[stock], d) for name, d in dls.items()}
        assert list(difference.values())[1] <= 2, 'the pictures are not the same to the eye'
        start = time.perf_counter()
        PresizedPictures(get_image_files(folder), folder=Path(tmp)/'once')
        once = time.perf_counter() - start
        ways_and_threads = {f'{name}, {words}': partial(epoch, d, difference[name], threads)
                            for threads, words in ((2, 'two threads'), (1, 'one thread')) for name, d in dls.items()}
        table = side_by_side(ways_and_threads, f'{stock}, two threads')
        report('pictures', 'An epoch of batches', table,
               f'{n} drawn pictures of 500 x 375, {len(dls[stock].train_ds)} of them in the training set: Resize(460) and aug_transforms(size=224) against '
               f'presized pictures and the same aug_transforms, no network. Presizing all {n}, once and for all, took {once:.1f} s, '
               f'{once/table["median s"].iloc[0]:.1f} epochs of the first row. Where other work shares the machine, two threads wait for each other. The difference is that of the validation pictures, where nothing depends on chance.')
        for arch in (squeezenet1_1, resnet18):
            table = side_by_side({name: partial(frozen_epoch, d, arch) for name, d in dls.items()}, stock)
            report(f'pictures_{arch.__name__}', f'A frozen epoch of {arch.__name__}', table,
                   f'{n} drawn pictures of 500 x 375 at 224, batches of 64, head only, random weights (the time is the same), two threads.')


if __name__ == '__main__': main()
