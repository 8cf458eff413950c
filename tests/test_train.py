"""Training from the command line: broken off, taken up again, and shared by two processes of which
one is killed."""
import ast
import inspect
import os
import random
import re
import runpy
import signal
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import root, wait_until
from fastai.basics import DataLoaders, Learner, MSELossFlat, set_seed
from fastai.callback.core import Callback
from fastai.optimizer import Adam
from PIL import Image

from lesson6.book.running import notebooks_path, run_notebook
from lesson6.book.running import sections as files # {'01_pet_breeds': 'pets', ...}
from lesson6.book.train import recipe, train_section
from lesson6.engine.training import (Checkpoint, CPUMixedPrecision, StopAtNaN, _to_device,
                                     load_weights, mixed_precision)
from lesson6.head_pose import biwi_dls
from lesson6.multilabel import multilabel_dls

command = [sys.executable, '-m', 'lesson6.train', 'collab', '--bs', '256']
launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
          '-m', 'lesson6.train', 'collab', '--bs', '256']


def history(out):
    return [row[1]
            for row in torch.load(out/'collab'/'checkpoint.pt', weights_only=True)['history']]


def run(*args, words=command):
    return subprocess.run([*words, *map(str, args)], capture_output=True, text=True, timeout=300)


def wait_for_a_checkpoint(out, process):
    path = out/'collab'/'checkpoint.pt'
    assert wait_until(lambda: path.exists() or process.poll() is not None, 120) and path.exists()


@pytest.mark.ci
def test_killed_and_run_again_gives_the_numbers_of_an_unbroken_training(tmp_path):
    train_section('collab', 3, 256, out=tmp_path/'whole')
    broken = subprocess.Popen([*command, '--epochs', '3', '--out', str(tmp_path/'broken')],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_a_checkpoint(tmp_path/'broken', broken)
    broken.kill()
    broken.wait()
    done = len(history(tmp_path/'broken'))
    assert done < 3, 'it was killed too late for this test to show anything'
    again = run('--epochs', 3, '--out', tmp_path/'broken')
    assert again.returncode == 0 and f'{done} epochs were done before' in again.stdout
    assert history(tmp_path/'broken') == history(tmp_path/'whole')
    left = {p.name for p in (tmp_path/'broken'/'collab').iterdir()}
    assert left == {'checkpoint.pt', 'learner.pkl'}


@pytest.mark.ci
def test_two_processes_one_killed_a_clear_end_and_a_resume(tmp_path):
    one, two = tmp_path/'one', tmp_path/'two'
    train_section('collab', 4, 256, out=one)
    both = subprocess.Popen([*launch, '--epochs', '4', '--out', str(two)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    wait_for_a_checkpoint(two, both)
    before = len(history(two))
    children = subprocess.run(['ps', '-o', 'pid=,args=', '--ppid', str(both.pid)],
                              capture_output=True, text=True).stdout
    workers = [int(line.split()[0]) for line in children.splitlines() if 'lesson6.train' in line]
    assert len(workers) == 2, children
    os.kill(workers[1], signal.SIGKILL)
    said, _ = both.communicate(timeout=120)
    assert both.returncode != 0 and 'SIGKILL' in said, said[-2000:]
    kept = len(history(two))
    assert before <= kept < 4
    again = run('--epochs', 4, '--out', two, words=launch)
    assert again.returncode == 0 and f'{kept} epochs were done before' in again.stdout, (
        again.stdout + again.stderr)
    assert ('trained by 2 processes' in again.stdout and len(history(two)) == 4
            and abs(history(two)[-1] - history(one)[-1]) < 0.003)


@pytest.mark.parametrize('args, sentence', [
    (['--epochs', '0'], 'at least one epoch is needed'),
    (['--bs', '1'], 'need a batch of at least 2'),
])
def test_what_cannot_be_trained_is_said_in_one_sentence(tmp_path, monkeypatch, args, sentence):
    monkeypatch.setattr(sys, 'argv', ['train', *command[3:], *args, '--out', str(tmp_path)])
    with pytest.raises(SystemExit, match=sentence):
        runpy.run_module('lesson6.train', run_name='__main__')


def test_pictures_on_two_processors(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='pets on 2 processes needs a GPU for each'):
        train_section('pets', out=tmp_path)


# One recipe a section


def code_of(file):
    return [c for c in nbformat.read(notebooks_path()/f'{file}.ipynb', 4).cells
            if c.cell_type == 'code']


def tables(cell):
    "The last row of each training's table that a cell shows, without its number and its time."
    html = [''.join(o.data['text/html']) for o in cell.outputs if 'text/html' in o.get('data', {})]
    rows = [re.findall(r'<tr>(.*?)</tr>', t, re.S)[-1] for t in html if 'train_loss' in t]
    return [re.findall(r'<td>([^<]*)</td>', r)[1:-1] for r in rows]


@pytest.mark.parametrize('file', files)
def test_the_opening_calls_what_train_calls(file):
    cells = code_of(file)
    trains = next(i for i,c in enumerate(cells) if tables(c))
    opening = '\n'.join(c.source for c in cells[:trains+1])
    for f in recipe(file)[1:]:
        name = getattr(f, 'func', f).__name__
        if name == 'dls': name = 'multilabel_dls' # its table is read first
        assert re.search(rf'(?<!def )\b{name}\(', opening), f'{file} does not call {name} there'


# What a caller of a recipe may say: where the data are, how they are divided, where to write, and
# what to watch. The rest is the recipe's choice.
FACTS = {'path', 'folder', 'df', 'table', 'ratings', 'seed', 'by', 'column', 'label_delim', 'vocab',
         'valid_group', 'valid_person', 'valid', 'valid_idx',
         'dls', 'learn', 'arch', 'frozen', 'cbs', 'metrics', 'saved'}
# Where a section or a benchmark chooses differently, that is what it is about; the choices, and the
# calls in their file that make them.
# larger batches; models of other kinds
ABOUT = {'04_collab': {'ratings_dls': {'bs'}, 'ratings_learner': {'kwargs'}},
         # the lesson's own recipe, as `train` has it
         '05_regularisation': {'ratings_dls': {'bs'}, 'fit_ratings': {'epochs', 'lr', 'wd'}},
         # one epoch for a head that is trained on
         '02_multi_label': {'fit_multilabel': {'epochs', 'head_epochs'}},
         'train': {'multilabel_dls': {'kwargs'}}, # what somebody asks for at the command line
         # the time of one loader and another
         'laptop': {'pets_dls': {'presize', 'size', 'bs', 'valid_pct', 'num_workers', 'keep_valid'},
                    'pets_learner': {'kwargs'}},
         'ratings': {'ratings_dls': {'bs'}}} # the time of batches of other sizes


def recipes():
    "The three functions of each section, and what else makes loaders of its kind"
    parts = ([getattr(f, 'func', f) for file in files for f in recipe(file)[1:]]
             + [biwi_dls, multilabel_dls])
    return {f.__name__: f for f in parts if f.__name__ != 'dls'}


def choices(sources):
    """{recipe: the arguments, other than facts, that code gives it}; an argument without a name
    goes by that of its place"""
    known, found = recipes(), {}
    for node in (n for code in sources for n in ast.walk(ast.parse(code))):
        if not isinstance(node, ast.Call): continue
        name, args = getattr(node.func, 'attr', getattr(node.func, 'id', None)), node.args
        if name == 'partial' and args: name, args = getattr(args[0], 'id', None), args[1:]
        if name not in known: continue
        places = list(inspect.signature(known[name]).parameters)
        given = {*places[:len(args)], *(k.arg or 'kwargs' for k in node.keywords)}
        if given - FACTS: found.setdefault(name, set()).update(given - FACTS)
    return found


def sources():
    "{name: code} of the sections, of what `train` calls, and of the benchmarks"
    found = {file: [re.sub(r'^(\s*)[%!].*$', r'\1pass', c.source, flags=re.M)
                    for c in code_of(file)] for file in files}
    return found | {p.stem: [p.read_text(encoding='utf-8')]
                    for p in [root/'lesson6'/'book'/'train.py',
                              *sorted((root/'benchmarks').glob('*.py'))]
                    if 'def pets_learner' not in p.read_text(encoding='utf-8')}


def test_sections_train_and_benchmarks_leave_the_choices_to_the_recipe():
    """Network, pixels, head, epochs and views; so they cannot choose differently, unless that is
    what they are about."""
    assert {name: found for name,code in sources().items() if (found := choices(code))} == ABOUT


@pytest.mark.parametrize('code, found', [
    ('pets_dls(path, seed=seed, size=128)', {'pets_dls': {'size'}}),
    ('pets_dls(path, 460, 224)', {'pets_dls': {'presize', 'size'}}),
    ("pets.pets_learner(dls, head='lesson')", {'pets_learner': {'head'}}),
    ('fit_pets(learn, 3)', {'fit_pets': {'epochs'}}),
    ('partial(fit_multilabel, views=1)', {'fit_multilabel': {'views'}}),
    ('points_dls(path, **how)', {'points_dls': {'kwargs'}}),
    ('pets_learner(pets_dls(path, seed=1, frozen=False), arch, path=work); fit_pets(learn, '
     'cbs=keep)', {})])
def test_a_choice_is_noticed(code, found):
    assert choices([code]) == found


@pytest.mark.ci
@pytest.mark.parametrize('file', files)
def test_train_ends_at_the_figure_of_the_notebook(file, tmp_path):
    """To the last digit printed. Where the processor is another one than that of the stored
    outputs, and only there, the opening is run here to see at which figure it ends."""
    row = [f'{v:.6f}' for v in train_section(file, seed=42, out=tmp_path)[-1]]
    def ends(cells):
        # of each fit in the first cell that trains
        return next(t for c in cells if (t := tables(c)))
    if row in ends(code_of(file)): return
    nb = nbformat.read(notebooks_path()/f'{file}.ipynb', 4)
    last = next(i for i,c in enumerate(nb.cells) if c.cell_type == 'code' and tables(c))
    nb.cells = nb.cells[:last+1]
    nbformat.write(nb, tmp_path/'opening.ipynb')
    ran = run_notebook(tmp_path/'opening.ipynb', progress=False)
    assert row in ends([c for c in ran.cells if c.cell_type == 'code'])


class Evil:
    "What a pickle can do to whoever loads it"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)


def tiny_learner(path, rows=None):
    rows = rows or [(torch.ones(1), torch.ones(1))]*4
    dls = DataLoaders.from_dsets(rows, rows, bs=2, num_workers=0, device='cpu')
    return Learner(dls, torch.nn.Linear(1, 1), loss_func=MSELossFlat(), path=path)


def test_weights_and_checkpoints_run_nothing_when_they_are_read(tmp_path):
    torch.save({'model': Evil(tmp_path/'mark')}, tmp_path/'evil.pth')
    with pytest.raises(ValueError, match='evil.pth holds no weights that can be read'):
        load_weights(tiny_learner(tmp_path), tmp_path/'evil.pth')
    checkpoint = Checkpoint(tmp_path/'evil.pth', {'epochs': 3})
    checkpoint.learn = tiny_learner(tmp_path)
    with pytest.raises(ValueError, match=r'evil.pth is no checkpoint that can be read '
                                         r'\(UnpicklingError\); remove it to begin anew'):
        checkpoint.resume()
    assert not (tmp_path/'mark').exists()


def test_a_checkpoint_that_is_cut_off_is_named(tmp_path):
    learn, settings = tiny_learner(tmp_path), {'epochs': 2}
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=Checkpoint(tmp_path/'c.pt', settings))
    whole = (tmp_path/'c.pt').read_bytes()
    again = Checkpoint(tmp_path/'c.pt', settings)
    again.learn = learn
    assert again.resume() == 2
    for n in 100, len(whole)//2, len(whole)-1:
        (tmp_path/'c.pt').write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r'c\.pt is no checkpoint that can be read'):
            again.resume()


def draw_two(folder, names):
    for i in range(12):
        Image.new('RGB', (24, 24), ('red', 'blue')[i%2]).save(folder/f'{names[i%2]}_{i}.png')


def test_a_checkpoint_of_other_names_or_another_network_is_not_gone_on_with(tmp_path, monkeypatch):
    pets = tmp_path/'data'/'oxford-iiit-pet'
    pets.mkdir(parents=True)
    monkeypatch.setenv('LESSON6_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('LESSON6_ARCH', 'drawnet10')
    draw_two(pets, ('aaa', 'bbb'))
    train_section('pets', 1, bs=4, out=tmp_path/'runs')
    for f in pets.glob('aaa_*'): f.rename(pets/f.name.replace('aaa', 'zzz'))
    with pytest.raises(ValueError, match='belongs to another training'):
        train_section('pets', 1, bs=4, out=tmp_path/'runs')
    for f in pets.glob('zzz_*'): f.rename(pets/f.name.replace('zzz', 'aaa'))
    monkeypatch.setenv('LESSON6_ARCH', 'drawnet18')
    with pytest.raises(ValueError, match=r'belongs to another training \(.*drawnet10.*, now '
                                         r'.*drawnet18'):
        train_section('pets', 1, bs=4, out=tmp_path/'runs')


class PullThePlug(Callback):
    "Raises an error after `epochs` epochs, however many fits they are in"
    order = 80
    def __init__(self, epochs): self.left = epochs
    def after_epoch(self):
        self.left -= 1
        if not self.left: raise KeyboardInterrupt


@pytest.mark.parametrize('done', [1, 2, 3])
def test_a_break_within_a_fit_between_two_and_after_the_last(tmp_path, done):
    """What is skipped is shown as it was; weights, optimizer, schedule, order of the batches and
    running loss go on."""
    rows = [(torch.randn(1), torch.randn(1)) for _ in range(12)]
    def train(file, *cbs):
        set_seed(1)
        learn, keep = tiny_learner(tmp_path, rows), Checkpoint(tmp_path/file, {})
        learn.add_cbs([keep, *cbs])
        keep.resume()
        with learn.no_bar(), learn.no_logging():
            try:
                learn.fit_one_cycle(2, .1)
                learn.fit_one_cycle(1, .01)
            except KeyboardInterrupt: pass
        return (keep.history, [list(map(float, v)) for v in learn.recorder.values],
                learn.model.weight.item())
    whole = train('whole')
    assert len(whole[0]) == 3 and len(train('broken', PullThePlug(done))[0]) == done
    random.seed(99)
    assert train('broken') == whole


def test_there_is_nothing_to_resume_at_first(tmp_path):
    assert Checkpoint(tmp_path/'none.pt', {'epochs': 3}).resume() == 0


def test_a_training_that_diverges_ends_with_the_batch_that_shows_it(tmp_path):
    "Not with the epoch: on a real set that can be an hour later."
    class Break(Callback):
        order, seen = -10, 0
        def after_loss(self):
            self.seen += 1
            if self.training: self.learn.loss = self.loss*float('nan')
    learn, broken = tiny_learner(tmp_path), Break()
    with learn.no_bar(), learn.no_logging(), pytest.raises(FloatingPointError,
                                                           match='became nan in epoch 0, batch 0:'):
        learn.fit(2, cbs=[broken, StopAtNaN()])
    assert broken.seen == 1


def test_what_an_optimizer_remembers_goes_where_its_weights_are():
    weights = torch.nn.Parameter(torch.ones(2, device='meta'))
    opt = Adam([weights], lr=.1)
    opt.state[weights] = {'grad_avg': torch.ones(2), 'step': 3}
    _to_device(opt)
    assert opt.state[weights]['grad_avg'].device.type == 'meta' and opt.state[weights]['step'] == 3


@pytest.mark.parametrize('device, bits',
                         [('cuda:0', 'float16'), ('cpu', 'bfloat16'), ('mps', 'bfloat16')])
def test_sixteen_bits_are_those_of_the_device(device, bits):
    learn = SimpleNamespace(dls=SimpleNamespace(device=device), to_fp16=lambda: 'float16',
                            add_cb=lambda cb: 'bfloat16' if isinstance(cb, CPUMixedPrecision)
                            else cb)
    assert mixed_precision(learn) == bits
