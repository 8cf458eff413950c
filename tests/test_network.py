"The small pretrained networks: what ships, how fastai sees them, and what they are worth."
import runpy
import sys
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import python
from PIL import Image

warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated',
                        category=FutureWarning)
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, Normalize,
                               RandomSplitter, Resize, aug_transforms, error_rate, get_image_files,
                               imagenet_stats, set_seed, vision_learner)
from torch import nn

from lesson6.engine.networks import efficientnet_lite0, efficientnet_lite2
from lesson6.engine.picture_loaders import KeepBatches
from lesson6.mini.network import (drawnet10, drawnet18, load_weights, read_weights, save_weights,
                                  weights_path)

benchmarks = Path(__file__).parent.parent/'benchmarks'
both = pytest.mark.parametrize('arch', [drawnet10, drawnet18])


@pytest.fixture(scope='module')
def training():
    "The notebook that draws and trains, as a module"
    sys.path.insert(0, str(benchmarks))
    from pretrain import pretraining
    sys.path.remove(str(benchmarks))
    return pretraining()


def fixed_input():
    return torch.sin(torch.arange(2*3*64*64, dtype=torch.float32)*.37).reshape(2, 3, 64, 64)


# What ships

@both
def test_small_and_noted(arch):
    path = weights_path(arch.__name__)
    assert path.stat().st_size <= 5_000_000
    state, notes = read_weights(path)
    assert {'command', 'minutes', 'seed', 'score', 'scaled'} <= set(notes)
    assert notes['command'].startswith(f'python -m lesson6.mini.network {arch.__name__} --steps')
    assert all(v.isfinite().all() for v in state.values())


@both
def test_pretrained_and_weights_are_the_same(arch):
    a, b, c = (arch(pretrained=True), arch(weights='DEFAULT'),
               arch(weights=weights_path(arch.__name__)))
    for x, y, z in zip(a.state_dict().values(), b.state_dict().values(), c.state_dict().values()):
        assert torch.equal(x, y) and torch.equal(x, z)
    torch.manual_seed(0)
    assert not torch.equal(arch().conv1.weight, a.conv1.weight)


# The first six outputs for `fixed_input()`; new weights have new ones.
outputs = {'drawnet10': [-13.2268, -18.805, -8.9065, -13.6638, -14.5844, -9.0592],
           'drawnet18': [-16.1566, -21.604, -11.6582, -15.3919, -16.6315, -11.0583]}


@both
def test_fixed_output(arch):
    with torch.no_grad(): out = arch(pretrained=True).eval()(fixed_input())[0,:6]
    torch.testing.assert_close(out, torch.tensor(outputs[arch.__name__]), atol=2e-3, rtol=2e-3)


@both
def test_shipped_convolutions_have_the_same_spread(arch, training):
    "So that one learning rate means the same to each of them"
    model = arch(pretrained=True)
    spreads = [(m.weight.std()*m.weight[0].numel()**.5).item() for m in model.modules()
               if isinstance(m, nn.Conv2d)]
    assert np.allclose(spreads, training.SPREAD, rtol=.01)
    # eps stays small beside it
    assert min(m.running_var.min().item()/m.eps for m in model.modules()
               if isinstance(m, nn.BatchNorm2d)) > 30


def test_drawings_are_the_ones_trained_on(training):
    "A change to a recipe would make the noted command untrue"
    drawn = [training.draw_picture(42, i) for i in range(20)]
    sums = [int(p[0].astype(np.int64).sum()) for p in drawn]
    assert [int(p[1][0]) for p in drawn] == recipes_of_42
    # other versions of Pillow round otherwise
    assert np.abs(np.array(sums)/np.array(sums_of_42) - 1).max() < .01


recipes_of_42 = [35, 255, 88, 309, 159, 104, 271, 192, 163, 321, 338, 186, 218, 50, 395, 300, 156,
                 77, 367, 135]
sums_of_42 = [2296633, 2073733, 1685855, 2180251, 1563420, 1477455, 1387080, 2681662, 2471922,
              1850551,
              1953021, 1760877, 2111481, 3303462, 997226, 2352376, 1402390, 1936697, 1553315,
              1777775]


# Weights that don't fit

def test_weights_of_the_other_network(tmp_path):
    with pytest.raises(ValueError, match=r'The weights in .*drawnet10.safetensors are not those of '
                                         r'this network: it has no layer1\.1\.'):
        load_weights(drawnet18(), weights_path('drawnet10'))
    with pytest.raises(ValueError, match=r'drawnet18.safetensors are not those of this network: '
                                         r'the network has no layer1\.1\.'):
        drawnet10(weights=weights_path('drawnet18'))


def test_a_refused_file_changes_nothing():
    model = drawnet18()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    with pytest.raises(ValueError): load_weights(model, weights_path('drawnet10'))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())


@pytest.mark.parametrize('content', [b'', b'not weights', 'half'])
def test_broken_file(tmp_path, content):
    whole = weights_path('drawnet10').read_bytes()
    file = tmp_path/'broken.safetensors'
    file.write_bytes(whole[:len(whole)//2] if content == 'half' else content)
    with pytest.raises(ValueError, match='broken.safetensors is not a whole safetensors file'):
        drawnet10(weights=file)


def test_saved_weights_come_back(tmp_path):
    model = drawnet10()
    save_weights(model, tmp_path/'w.safetensors', why='a test')
    again = drawnet10(weights=tmp_path/'w.safetensors')
    for a, b in zip(model.state_dict().values(), again.state_dict().values()):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    assert read_weights(tmp_path/'w.safetensors')[1] == {'why': 'a test'}
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


# As fastai sees them

@pytest.fixture
def dls(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(24):
        picture = rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path/f'{"ab"[i%2]}_{i}.png')
    return ImageDataLoaders.from_name_func(tmp_path, sorted(tmp_path.glob('*.png')), first_letter,
                                           bs=8, num_workers=0)


def first_letter(name): return name[0]


@pytest.mark.parametrize('arch', [drawnet10, drawnet18, efficientnet_lite0, efficientnet_lite2])
def test_cut_split_freeze(arch, dls):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = vision_learner(dls, arch, metrics=error_rate)
    norm = next(f for f in dls.after_batch.fs if isinstance(f, Normalize))
    assert torch.allclose(norm.mean.flatten().cpu(), torch.tensor(imagenet_stats[0]))
    whole = arch(pretrained=True).state_dict()
    body = list(learn.model[0].state_dict().values())
    assert len(body) == len(whole)-2 and all(torch.equal(a.cpu(), b)
                                             for a,b in zip(body, whole.values()))
    groups = learn.opt.param_lists
    assert len(groups) == 3 and all(len(g) > 4 for g in groups)
    assert sum(map(len, groups)) == len(list(learn.model.parameters()))
    assert len({id(p) for g in groups for p in g}) == len(list(learn.model.parameters()))
    convs = [m.weight for m in learn.model[0].modules() if isinstance(m, nn.Conv2d)]
    before = [w.detach().clone() for w in convs]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        assert all(torch.equal(a, b) for a,b in zip(before, convs))
        learn.unfreeze()
        learn.fit(1, slice(1e-4,1e-2))
    assert not any(torch.equal(a, b) for a,b in zip(before, convs))
    assert [round(h['lr'], 6) for h in learn.opt.hypers] == [1e-4, 1e-3, 1e-2]


@pytest.mark.parametrize('arch', [drawnet10, efficientnet_lite0])
@pytest.mark.parametrize('n', [1, 4])
def test_other_channels(n, arch, dls):
    learn = vision_learner(dls, arch, n_in=n)
    x = torch.rand(2, n, 64, 64, device=next(learn.model.parameters()).device)
    assert learn.model.eval()(x).shape == (2, 2)


@pytest.mark.ci
def test_import_is_quiet_and_reads_no_weights():
    code = '''
        import torch, fastai.vision.learner, safetensors, time, warnings
        safetensors.safe_open = lambda *a, **k: exit('weights are read')
        warnings.simplefilter('error')
        start = time.perf_counter()
        import lesson6.mini.network
        print(time.perf_counter()-start)'''
    run = python(code)
    assert float(run.stdout) < 1 and not run.stderr


@pytest.mark.ci
def test_command(training, tmp_path, monkeypatch, capsys):
    "Draws, trains, scores and writes; given again, it goes on from its checkpoint and its drawings"
    monkeypatch.setattr(training, 'HELD_OUT', 20)
    argv = ['drawnet18', '--start', 'DEFAULT', '--steps', '3', '--lr', '1e-4', '--pictures', '60',
            '--bs', '16',
            '--threads', str(torch.get_num_threads()), '--folder', str(tmp_path/'work'), '--out',
            str(tmp_path/'new.safetensors')]
    training.main(argv)
    first = capsys.readouterr().out
    assert 'step 3 of 3' in first
    notes = read_weights(tmp_path/'new.safetensors')[1]
    assert notes['command'] == ('python benchmarks/pretrain.py drawnet18 --steps 3 --seed 42 '
                                '--pictures 60 --bs 16 --lr 0.0001 --start DEFAULT')
    assert str(tmp_path) not in str(notes)
    drawnet18(weights=tmp_path/'new.safetensors')
    training.main(argv)
    again = capsys.readouterr().out
    assert 'step' not in again and again == first[first.index('{'):]


def test_command_as_a_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['pretrain.py', 'drawnet12', '--steps', '3'])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(benchmarks/'pretrain.py'), run_name='__main__')
    assert "invalid choice: 'drawnet12'" in capsys.readouterr().err


# What they are worth. These train for minutes; `python -m pytest tests/test_network.py -m slow -s`
# runs them alone.

def breed_dls(path, presize, size, bs, seed, valid_pct=.2):
    return (DataBlock((ImageBlock, CategoryBlock), get_items=lambda p: sorted(get_image_files(p)),
                      get_y=lambda f: f.stem.rpartition('_')[0],
                      splitter=RandomSplitter(valid_pct, seed=seed), item_tfms=Resize(presize),
                      batch_tfms=[*aug_transforms(size=size, min_scale=.75),
                                  Normalize.from_stats(*imagenet_stats)],
                      ).dataloaders(path/'images', bs=bs, num_workers=0))


def discriminative(learn):
    learn.freeze()
    learn.fit_one_cycle(3, 3e-3)
    learn.unfreeze()
    learn.fit_one_cycle(12, slice(1e-6,1e-4))


def fine_tuned(learn, epochs, rate):
    learn.fine_tune(epochs - (frozen := epochs//5 or 1), rate, freeze_epochs=frozen)


def all_layers(learn, epochs, rate):
    learn.unfreeze()
    learn.fit_one_cycle(epochs, rate)


def error(dls, arch, pretrained, train, seed):
    set_seed(seed, reproducible=True)
    learn = vision_learner(dls, arch, pretrained=pretrained, metrics=error_rate)
    with learn.no_bar(), learn.no_logging():
        train(learn)
        return learn.validate()[1]


def best(make, arch, pretrained, epochs, seeds, rates=(3e-3, 6e-3, 1e-2)):
    """The lowest mean error over the seeds that any of the rates reaches: fine-tuned, or from
    scratch"""
    train = fine_tuned if pretrained else all_layers
    means = {r:
             np.mean([error(make(seed=s), arch, pretrained, partial(train, epochs=epochs, rate=r),
                            s) for s in seeds]) for r in rates}
    print(f'\n{epochs} epochs, {train.__name__}: '
          + ', '.join(f'{m:.1%} at {r:g}' for r,m in means.items()))
    return min(means.values())


def on_the_twin(seed):
    "The drawn pets, split as the notebook splits them"
    from lesson6.data import lesson_path
    dls = breed_dls(lesson_path('pets'), 80, 64, 16, seed, valid_pct=2/3)
    dls.loaders[1] = dls.valid.new(cls=KeepBatches)
    return dls


@cache
def best_on_the_twin(epochs, pretrained):
    return best(on_the_twin, drawnet10, pretrained, epochs, (42, 1, 2))


def not_reached(*values, reason):
    return pytest.param(*values, marks=pytest.mark.xfail(reason=f'not reached: {reason} when last '
                                                         'measured', strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('epochs,share',
                         [(3, 1/2), (15, 2/3), not_reached(15, 3/5, reason='a share of 0.601'),
                          not_reached(15, 1/2, reason='a share of 0.601')])
def test_earns_its_name_on_the_twin(epochs, share, monkeypatch):
    """On the drawn pets, at most a share of the error of the same network trained from scratch for
    as many epochs; half is what we want"""
    monkeypatch.delenv('LESSON6_DATA', raising=False)
    assert best_on_the_twin(epochs, True) <= share*best_on_the_twin(epochs, False)


@pytest.mark.slow
@pytest.mark.parametrize('share', [not_reached(4/5, reason='a share of 0.83')])
def test_the_lessons_small_rates_on_the_twin(share, monkeypatch):
    """Frozen, then all layers at the lesson's rates, which are meant for a body that has seen
    photographs"""
    monkeypatch.delenv('LESSON6_DATA', raising=False)
    errors = [error(on_the_twin(s), drawnet10, True, discriminative, s) for s in (42, 1, 2)]
    print(f'\n15 epochs, discriminative: {np.mean(errors):.1%}')
    assert np.mean(errors) <= share*best_on_the_twin(15, False)


@pytest.mark.slow
def test_real_pets(real, monkeypatch):
    """Real photographs: what comes out is printed. Measured, pretraining on drawings saves nothing
    here (86.5 % and 85.8 %); ImageNet's does (52.0 %)"""
    monkeypatch.setenv('TORCH_HOME', str(real/'torch'))
    from torchvision.models import squeezenet1_1
    make = partial(breed_dls, real/'oxford-iiit-pet', 160, 128, 32)
    seeds = (1, 2)
    errors = {f'{a.__name__}, pretrained': np.mean([error(make(seed=s), a, True, discriminative, s)
                                                    for s in seeds])
              for a in (drawnet10, squeezenet1_1)}
    errors['drawnet10, from scratch'] = best(make, drawnet10, False, 15, seeds)
    print('\nreal pets, 15 epochs: ' + '; '.join(f'{k} {v:.1%}' for k,v in errors.items()))
    assert max(errors.values()) < 36/37                        # all have learnt something
    assert errors['squeezenet1_1, pretrained'] < errors['drawnet10, pretrained']
