"""How busy a GPU is in an epoch of pets at 224 pixels: the lesson's way in float32, smaller
pictures, bfloat16, channels last.

Without a GPU it says so: every row of its table is 'not measured'. `measure` runs the same code on
a CPU, which is how it is tested.
"""
import os
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from compare import report  # noqa: E402
from fastai.callback.channelslast import ChannelsLast  # noqa: E402
from fastai.callback.core import Callback, CancelFitException  # noqa: E402
from fastai.callback.progress import ProgressCallback  # noqa: E402
from fastai.data.all import (CategoryBlock, DataBlock, Normalize, RandomSplitter,  # noqa: E402
                             get_image_files)
from fastai.torch_core import set_seed  # noqa: E402
from fastai.vision.all import (ImageBlock, Resize, aug_transforms, imagenet_stats,  # noqa: E402
                               resnet34, vision_learner)
from laptop import draw  # noqa: E402

from lesson6.pets import breed  # noqa: E402

lesson = "the lesson's DataBlock, float32"
ways = {lesson: (False, False, False), 'smaller first, float32': (True, False, False),
        'smaller first, bfloat16': (True, True, False),
        # smaller first, bfloat16, channels last
        'smaller first, bfloat16, channels last': (True, True, True)}


def wait(device):
    if device.type == 'cuda': torch.cuda.synchronize(device)


class Window(Callback):
    """Times the batches after the first `skip`, up to `n` of them, and adds up what the GPU did
    meanwhile"""
    order = 100

    def __init__(self, skip, n): self.skip, self.n, self.pictures, self.busy = skip, n, 0, None

    def before_batch(self):
        if self.iter != self.skip: return
        wait(self.dls.device)
        if self.dls.device.type == 'cuda':
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profile.start()
        self.began = time.perf_counter()

    def after_batch(self):
        if self.iter >= self.skip: self.pictures += len(self.x)
        if self.iter + 1 < min(self.skip + self.n, len(self.dls.train)): return
        wait(self.dls.device)
        self.seconds = time.perf_counter() - self.began
        if self.dls.device.type == 'cuda':
            self.profile.stop()
            spans = sorted((e.time_range.start, e.time_range.end) for e in self.profile.events()
                           if e.device_type == torch.autograd.DeviceType.CUDA)
            self.busy = covered(spans)/1e6/self.seconds
        raise CancelFitException


def covered(spans):
    "The length of what sorted spans cover together, each moment counted once"
    total, until = 0, float('-inf')
    for start, end in spans:
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


def from_memory(learn, batch, bf16, n):
    "Pictures a second where the same batch, on the device already, is trained on again and again"
    x, y = batch
    def step():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = learn.loss_func(learn.model(x), y)
        loss.backward()
        learn.opt.step()
        learn.opt.zero_grad()
    learn.model.train()
    for _ in range(3): step()
    wait(x.device)
    began = time.perf_counter()
    for _ in range(n): step()
    wait(x.device)
    return n*len(y)/(time.perf_counter() - began)


def measure(name, files, device, arch=resnet34, bs=64, skip=5, n=60, workers=0):
    "One way, for one round"
    quick, bf16, channels_last = ways[name]
    norm = Normalize.from_stats(*imagenet_stats, cuda=device.type == 'cuda')
    data = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda files: files, get_y=breed,
                     splitter=RandomSplitter(seed=42),
                     item_tfms=Resize(280 if quick else 460),
                     batch_tfms=[*aug_transforms(size=224), norm])
    set_seed(42)
    dls = data.dataloaders(files, bs=bs, num_workers=workers, device=device)
    learn = vision_learner(dls, arch, pretrained=False, normalize=False)
    learn.remove_cb(ProgressCallback)
    learn.unfreeze()
    if bf16: learn.to_bf16()
    if channels_last: learn.add_cb(ChannelsLast())
    window = Window(skip, n)
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=window)
    found = {'pictures a second': window.pictures/window.seconds,
             'share of the time that the GPU works': window.busy}
    x, y = (t.as_subclass(torch.Tensor).to(device) for t in dls.train.one_batch())
    learn.model.to(device)
    if channels_last:
        x, learn.model = (x.to(memory_format=torch.channels_last),
                          learn.model.to(memory_format=torch.channels_last))
    fed = from_memory(learn, (x, y), bf16, n)
    return {**found, 'fed from memory, pictures a second': fed,
            'share of that': found['pictures a second']/fed}


def main(n=7390, rounds=3):
    title, columns = 'Pets on a GPU', ['times as fast', 'pictures a second',
                                       'share of the time that the GPU works',
                                       'fed from memory, pictures a second', 'share of that']
    note = (f'resnet34, all layers, 224 pixels, batches of 64, {n:,} drawn pictures of 500 x 375, '
            'random weights (the time is the same)')
    if not torch.cuda.is_available():
        table = pd.DataFrame('not measured', index=list(ways), columns=columns)
        report('gpu', title, table, f'{note}. This machine has no GPU.', chart=False)
        return
    device, found = torch.device('cuda'), {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'pictures'
        folder.mkdir()
        draw(folder, n)
        files = get_image_files(folder).sorted()
        for i in range(rounds):
            for name in ways:
                found[name].append(measure(name, files, device, workers=min(8, os.cpu_count())))
                print(f'round {i+1}/{rounds}  {name:<40} {found[name][-1]}', flush=True)
    table = pd.DataFrame({name: pd.DataFrame(several).median()
                          for name, several in found.items()}).T
    table.insert(0, 'times as fast',
                 table['pictures a second']/table.loc[lesson, 'pictures a second'])
    report('gpu', title, table, f'{note}; {torch.cuda.get_device_name()}, {min(8, os.cpu_count())} '
                                f'workers, {rounds} rounds.')


if __name__ == '__main__': main()
