"""Training from the command line: broken off, taken up again, and shared by two processes of which
one is killed."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from lesson6.book.running import sections as files # {'01_pet_breeds': 'pets', ...}


command = [sys.executable, '-m', 'lesson6.train', 'collab', '--bs', '256']
launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
          '-m', 'lesson6.train', 'collab', '--bs', '256']


def history(out):
    return [row[1]
            for row in torch.load(out/'collab'/'checkpoint.pt', weights_only=True)['history']]


def run(*args, words=command):
    return subprocess.run([*words, *map(str, args)], capture_output=True, text=True, timeout=300)


def wait_for(path, process):
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, f'{path.name} never came'
        time.sleep(0.02)


@pytest.mark.ci
def test_killed_and_run_again_gives_the_numbers_of_an_unbroken_training(tmp_path):
    assert run('--epochs', 3, '--out', tmp_path/'whole').returncode == 0
    broken = subprocess.Popen([*command, '--epochs', '3', '--out', str(tmp_path/'broken')],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path/'broken'/'collab'/'checkpoint.pt', broken)
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
    assert run('--epochs', 4, '--out', one).returncode == 0
    both = subprocess.Popen([*launch, '--epochs', '4', '--out', str(two)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    wait_for(two/'collab'/'checkpoint.pt', both)
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


@pytest.mark.ci
@pytest.mark.parametrize('args, sentence', [
    (['--epochs', '0'], 'at least one epoch is needed'),
    (['--bs', '1'], 'need a batch of at least 2'),
])
def test_what_cannot_be_trained_is_said_in_one_sentence(tmp_path, args, sentence):
    done = run(*args, '--out', tmp_path)
    assert done.returncode == 1 and sentence in done.stderr and 'Traceback' not in done.stderr


def test_pictures_on_two_processors(tmp_path, monkeypatch):
    from lesson6.train import train_section
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='pets on 2 processes needs a GPU for each'):
        train_section('pets', out=tmp_path)


# One recipe a section


def code_of(file):
    import nbformat
    from lesson6.book.running import notebooks_path
    return [c for c in nbformat.read(notebooks_path()/f'{file}.ipynb', 4).cells
            if c.cell_type == 'code']


def calls(cells, names):
    """{name: {keyword: value}} of the last call of each function in these cells; a value that is no
    number or text is None."""
    import ast
    found = {}
    for c in cells:
        for node in ast.walk(ast.parse('\n'.join(l for l in c.source.splitlines()
                                                 if not l.lstrip().startswith('%')))):
            if not isinstance(node, ast.Call): continue
            name = getattr(node.func, 'attr', getattr(node.func, 'id', None))
            if name in names:
                found[name] = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None
                               for k in node.keywords}
    return found


def tables(cell):
    "The last row of each training's table that a cell shows, without its number and its time."
    html = [''.join(o.data['text/html']) for o in cell.outputs if 'text/html' in o.get('data', {})]
    rows = [re.findall(r'<tr>(.*?)</tr>', t, re.S)[-1] for t in html if 'train_loss' in t]
    return [re.findall(r'<td>([^<]*)</td>', r)[1:-1] for r in rows]


@pytest.mark.parametrize('file', files)
def test_the_opening_calls_what_train_calls(file):
    """The same functions, with nothing but the folder, the seed and what `train` gives them too; a
    place to write does not count."""
    from functools import partial
    from lesson6.book.train import recipe
    *_, dls, learner, fit = recipe(file)
    cells = code_of(file)
    opening = cells[:next(i for i,c in enumerate(cells) if tables(c))+1]
    for f in dls, learner, fit:
        given = f.keywords if isinstance(f, partial) else {}
        name = getattr(f, 'func', f).__name__
        if name == 'dls': name = 'multilabel_dls' # its table is read first
        said = calls(opening, {name})
        assert name in said, f'{file} does not call {name} in its opening'
        said = {k: v for k,v in said[name].items() if k not in ('seed', 'path')}
        # None: a variable
        assert {k: given.get(k) if v is None else v for k,v in said.items()} == given, name


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
    from lesson6.book.train import recipe
    from lesson6.head_pose import biwi_dls
    from lesson6.multilabel import multilabel_dls
    parts = ([getattr(f, 'func', f) for file in files for f in recipe(file)[1:]]
             + [biwi_dls, multilabel_dls])
    return {f.__name__: f for f in parts if f.__name__ != 'dls'}


def choices(sources):
    """{recipe: the arguments, other than facts, that code gives it}; an argument without a name
    goes by that of its place"""
    import ast
    import inspect
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
    from pathlib import Path
    root = Path(__file__).parent.parent
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
    from lesson6.book.running import notebooks_path, run_notebook
    import nbformat
    done = subprocess.run([sys.executable, '-m', 'lesson6.train', file, '--seed', '42', '--out',
                           str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = [f'{v:.6f}' for v in torch.load(tmp_path/files[file]/'checkpoint.pt',
                                          weights_only=True)['history'][-1]]
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


def tiny_learner(path):
    from fastai.basics import DataLoaders, Learner, MSELossFlat
    rows = [(torch.ones(1), torch.ones(1))]*4
    return Learner(DataLoaders.from_dsets(rows, rows, bs=2, num_workers=0,
                                          device='cpu'), torch.nn.Linear(1, 1),
                   loss_func=MSELossFlat(), path=path)


def test_weights_and_checkpoints_run_nothing_when_they_are_read(tmp_path):
    from lesson6.engine.training import Checkpoint, load_weights
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
    from lesson6.engine.training import Checkpoint
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
    from PIL import Image
    for i in range(12):
        Image.new('RGB', (24, 24), ('red', 'blue')[i%2]).save(folder/f'{names[i%2]}_{i}.png')


def test_a_checkpoint_of_other_names_or_another_network_is_not_gone_on_with(tmp_path, monkeypatch):
    from lesson6.book.train import train_section
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


class PullThePlug:
    "Raises an error after `epochs` epochs, however many fits they are in"
    def __new__(cls, epochs):
        from fastai.callback.core import Callback
        def after_epoch(self):
            self.left -= 1
            if not self.left: raise KeyboardInterrupt
        made = Callback(after_epoch=after_epoch)
        made.left, made.order = epochs, 80
        return made


@pytest.mark.parametrize('done', [1, 2, 3])
def test_a_break_within_a_fit_between_two_and_after_the_last(tmp_path, done):
    """What is skipped is shown as it was; weights, optimizer, schedule, order of the batches and
    running loss go on."""
    import random
    from fastai.basics import DataLoaders, Learner, MSELossFlat, set_seed
    from lesson6.engine.training import Checkpoint
    rows = [(torch.randn(1), torch.randn(1)) for _ in range(12)]
    def train(file, *cbs):
        set_seed(1)
        dls = DataLoaders.from_dsets(rows, rows, bs=2, num_workers=0,
                                     device='cpu')
        learn, keep = (Learner(dls, torch.nn.Linear(1, 1), loss_func=MSELossFlat(), path=tmp_path),
                       Checkpoint(tmp_path/file, {}))
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
    from lesson6.engine.training import Checkpoint
    assert Checkpoint(tmp_path/'none.pt', {'epochs': 3}).resume() == 0


def test_a_training_that_diverges_ends_with_the_batch_that_shows_it(tmp_path):
    "Not with the epoch: on a real set that can be an hour later."
    from fastai.callback.core import Callback
    from lesson6.engine.training import StopAtNaN
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
    from fastai.optimizer import Adam
    from lesson6.engine.training import _to_device
    weights = torch.nn.Parameter(torch.ones(2, device='meta'))
    opt = Adam([weights], lr=.1)
    opt.state[weights] = {'grad_avg': torch.ones(2), 'step': 3}
    _to_device(opt)
    assert opt.state[weights]['grad_avg'].device.type == 'meta' and opt.state[weights]['step'] == 3


@pytest.mark.parametrize('device, bits',
                         [('cuda:0', 'float16'), ('cpu', 'bfloat16'), ('mps', 'bfloat16')])
def test_sixteen_bits_are_those_of_the_device(device, bits):
    from types import SimpleNamespace
    from lesson6.engine.training import CPUMixedPrecision, mixed_precision
    learn = SimpleNamespace(dls=SimpleNamespace(device=device), to_fp16=lambda: 'float16',
                            add_cb=lambda cb: 'bfloat16' if isinstance(cb, CPUMixedPrecision)
                            else cb)
    assert mixed_precision(learn) == bits
