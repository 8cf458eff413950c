import dataclasses
import os
import re

import numpy as np
import pytest
import torch
from conftest import python, root
from PIL import Image

from lesson6.data import lesson_path
from lesson6.mini import pets as twin
from lesson6.pets import (breed, check_picture, cross_entropy, fit_discriminative, fit_pets, is_cat,
                          mixed_precision, pet_files, pets_dls, pets_learner,
                          suggest_lr, training_time)


def draw_some(path, names=('Abyssinian', 'beagle'), each=10, side=40):
    (path/'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
                path/'images'/f'{name}_{i}.jpg')
    return path


def small_net(**_):
    from torch import nn
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 2))


@pytest.fixture
def dls(tmp_path): return pets_dls(draw_some(tmp_path/'set'), 40, 32, bs=8)


@pytest.fixture
def learn(dls, tmp_path): return pets_learner(dls, small_net, pretrained=False, path=tmp_path)


# The twin

def test_drawing_fills_the_folder_as_the_real_set_does(tmp_path, monkeypatch):
    monkeypatch.setattr(twin, 'PER_BREED', 2)
    twin.draw(tmp_path/'a'); twin.draw(tmp_path/'b')
    files = pet_files(tmp_path/'a')
    assert {breed(f) for f in files} == set(twin.breeds) and len(files) == 2*len(twin.breeds)
    for f in files:
        assert f.read_bytes() == (tmp_path/'b'/'images'/f.name).read_bytes()
        assert is_cat(f) == (twin.breeds[breed(f)].kind == 'cat')
        assert min(Image.open(f).size) == 96


def test_who_are_no_look_alikes_differ_in_more_than_two_features():
    def apart(a, b):
        return {f.name for f in dataclasses.fields(twin.Breed)
                if getattr(twin.breeds[a], f.name) != getattr(twin.breeds[b], f.name)}
    # both differ from Birman in one
    alike = {frozenset(p) for p in twin.look_alikes} | {frozenset(('Ragdoll', 'Siamese'))}
    for a in twin.breeds:
        for b in twin.breeds:
            if a != b and frozenset((a, b)) not in alike: assert len(apart(a, b)) > 2, (a, b)


def test_names_are_those_of_the_real_set(real):
    assert set(twin.breeds) <= {breed(f) for f in pet_files(real/'oxford-iiit-pet')}


# Bad input: one sentence that names the file, before any training

def test_a_name_may_hold_anything_before_the_number():
    assert (breed('images/no.5_3.png') == 'no.5' and breed('chat perché_12.WEBP') == 'chat perché'
            and breed('a_1_2.jpg') == 'a_1')
    for name in ('pug_1.heic', 'pug_1'):
        with pytest.raises(ValueError, match='there is no breed in this file name'): breed(name)


@pytest.mark.parametrize('each, bs', [(10, 4), (60, 16)])
def test_batches_follow_the_size_of_the_set(tmp_path, each, bs):
    dls = pets_dls(draw_some(tmp_path/'set', each=each), 40, 32)
    assert dls.train.bs == bs and 2 <= bs <= len(dls.train_ds)//4


def test_a_picture_is_seen_as_its_camera_was_held(tmp_path):
    path = draw_some(tmp_path/'set')
    e = Image.Exif(); e[0x112] = 6
    Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(path/'images'/'beagle_0.jpg', exif=e)
    dls = pets_dls(path, 40, 32)
    sizes = {f.name: x.size for dl in dls.loaders for f,(x,_) in zip(dl.dataset.items, dl.dataset)}
    assert sizes['beagle_0.jpg'] == (30, 60) and sizes['beagle_1.jpg'] == (40, 40)


def test_what_predict_may_be_given(learn, dls):
    with learn.no_bar():
        for item in (dls.valid_ds.items[0], str(dls.valid_ds.items[0]),
                     np.zeros((40, 40, 3), np.uint8)):
            assert learn.predict(item)[0] in dls.vocab


def test_weights_that_do_not_fit(dls, learn, tmp_path):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)  # which leaves NumPy's numbers in what is saved
    saved = learn.save('mine')
    assert pets_learner(dls, small_net, saved=saved).model is not None
    wide = pets_dls(draw_some(tmp_path/'three', ('Abyssinian', 'beagle', 'pug')), 40, 32, bs=8)
    with pytest.raises(ValueError, match=r"mine\.pth doesn't fit small_net with 3 breeds"):
        pets_learner(wide, small_net, saved=saved)


def test_a_png_called_jpg_is_a_picture(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path/'pug_1.jpg', format='PNG')
    check_picture(tmp_path/'pug_1.jpg')


# The parts

@pytest.mark.parametrize('scale', [0., 1., 30., 1e4])
def test_cross_entropy_is_pytorchs(scale):
    acts, targets = torch.randn(16, 5)*scale, torch.randint(5, (16,))
    assert torch.allclose(cross_entropy(acts, targets),
                          torch.nn.functional.cross_entropy(acts, targets), rtol=1e-5)


def test_the_split_is_the_same_whatever_order_the_disk_has(tmp_path, monkeypatch):
    path = draw_some(tmp_path/'set')
    first = [f.name for f in pets_dls(path, 40, 32, bs=8).valid_ds.items]
    import os
    walk = os.walk
    def backwards(*args, **kwargs):
        for here,folders,names in walk(*args, **kwargs): yield here, folders, names[::-1]
    monkeypatch.setattr(os, 'walk', backwards)
    assert [f.name for f in pets_dls(path, 40, 32, bs=8).valid_ds.items] == first


def test_timing_changes_nothing(learn):
    before = {n: p.clone() for n,p in learn.model.state_dict().items()}
    torch.manual_seed(0); a = torch.rand(1); torch.manual_seed(0)
    assert training_time(learn, 2, batches=1) > 0
    assert torch.equal(torch.rand(1), a) and all(torch.equal(p, before[n])
                                                 for n,p in learn.model.state_dict().items())


def test_loading_is_timed_in_one_process_and_apart_from_the_steps(tmp_path):
    "Here a picture takes 40 ms to load, and two workers would have the next ones ready"
    import time
    from fastai.data.core import TfmdDL
    dls = pets_dls(draw_some(tmp_path/'set'), 40, 32, bs=4, num_workers=2)
    item = TfmdDL.create_item
    def slowly(self, s): time.sleep(.04); return item(self, s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TfmdDL, 'create_item', slowly)
        learn = pets_learner(dls, small_net, pretrained=False)
        load, step, whole = (training_time(learn, part='load'), training_time(learn, part='step'),
                             training_time(learn))
    assert load > .04*dls.train.n > step > 0 and whole >= .9*step


def test_who_reads_the_pictures(tmp_path, monkeypatch):
    "A few copies of this process for large ones on a GPU; whoever says a number is given it"
    from lesson6.engine import breeds
    there = draw_some(tmp_path/'set')
    def workers(**kwargs):
        return (pets_dls(there, **{'presize': 40, 'size': 32, 'bs': 4, **kwargs})
                .train.fake_l.num_workers)
    assert (workers(), workers(presize=300), workers(num_workers=2)) == (0, 0, 2)
    monkeypatch.setattr(breeds, 'default_device', lambda: torch.device('cuda'))
    assert ((workers(), workers(num_workers=0, presize=300)) == (0, 0)
            and 0 < workers(presize=300) <= 8)
    monkeypatch.setattr('lesson6.engine.picture_loaders.get_start_method', lambda: 'spawn')
    assert (workers(presize=300), workers(presize=300, num_workers=2)) == (0, 2)


def test_timing_trains_on_the_batches_that_it_was_asked_for_and_only_looks_at_validation(learn):
    trained, loss_func = [], learn.loss_func
    class Told:
        def __call__(self, preds, targs):
            trained.append(torch.is_grad_enabled() and preds.requires_grad)
            return loss_func(preds, targs)
    learn.loss_func = Told()
    training_time(learn, 1, batches=1)
    n = min(2, len(learn.dls.valid))
    assert trained == [True]*min(2, len(learn.dls.train)) + [False]*n


def stop_in_the_model(learn, at):
    "Whoever trains it presses stop while the network computes, in this call of it"
    calls = []
    def hook(*_):
        calls.append(1)
        if len(calls) == at: raise KeyboardInterrupt
    return learn.model[0].register_forward_hook(hook)


def test_a_finder_that_is_stopped_puts_the_weights_back(learn, tmp_path):
    before = {n: p.clone() for n,p in learn.model.state_dict().items()}
    there = sorted(p.name for p in tmp_path.iterdir())
    stop_in_the_model(learn, 12)
    with pytest.raises(KeyboardInterrupt): suggest_lr(learn, num_it=30, start_lr=1e-3)
    assert all(torch.equal(p, before[n]) for n,p in learn.model.state_dict().items())
    assert learn.path == tmp_path and sorted(p.name for p in tmp_path.iterdir()) == there


def test_mixed_precision_that_is_stopped_leaves_nothing_in_16_bits(learn):
    mixed_precision(learn)
    stop_in_the_model(learn, 2)
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert (not torch.is_autocast_enabled('cpu')
            and (torch.ones(2, 2)@torch.ones(2, 2)).dtype == torch.float32)
    assert (learn.model.eval()(torch.rand(1, 3, 32, 32)).dtype == torch.float32
            and 'forward' not in vars(learn.model))


def test_a_device_may_be_given_by_its_name(tmp_path):
    from lesson6.engine.frozen_body import body_features
    dls = pets_dls(draw_some(tmp_path/'set'), 40, 32, bs=8)
    for dl in dls.loaders: dl.device = 'cpu'
    learn = pets_learner(dls, small_net, pretrained=False)
    assert training_time(learn, 1, batches=1) > 0 and mixed_precision(learn) is learn
    with learn.no_bar(): assert len(body_features(learn)) == 2


def test_a_loss_that_is_no_number_is_told_with_its_batch():
    "Also where several losses are looked at together, as on a GPU."
    from types import SimpleNamespace
    from lesson6.engine.training import StopAtNaN
    stop = StopAtNaN()
    stop.learn = SimpleNamespace(iter=12, epoch=1,
                                 opt=SimpleNamespace(hypers=[{'lr': .1}, {'lr': .02}]))
    stop.losses = [torch.tensor(1.)]*5
    stop._look()
    stop.losses = [torch.tensor(o) for o in (1., 2., float('nan'), 3., float('inf'))]
    with pytest.raises(FloatingPointError,
                       match='became nan in epoch 1, batch 10: .* lower learning rate than 0.1,'):
        stop._look()


def test_validation_batches_are_kept_where_there_is_room(tmp_path):
    "On a large set they would fill the memory."
    from lesson6.engine.picture_loaders import KeepBatches
    there = draw_some(tmp_path/'set')
    def kept(**kwargs):
        return [isinstance(dl, KeepBatches) for dl in pets_dls(there, bs=8, **kwargs).loaders]
    assert kept(presize=40, size=32) == [False, True]
    assert kept(presize=40, size=32, keep_valid=False) == [False, False]
    assert kept(size=2_500) == [False, False]


# The recipe

@pytest.fixture
def twins(): return lesson_path('pets')


def test_the_recipe_asks_the_folder(tmp_path, twins, monkeypatch):
    "Whatever LESSON6_DATA says: synthetic pictures are small and many of them are for validation"
    monkeypatch.setenv('LESSON6_DATA', 'mini')
    real, synthetic = pets_dls(draw_some(tmp_path/'set')), pets_dls(twins)
    assert (real.pixels, synthetic.pixels) == (256, 64)
    assert len(real.valid_ds) == 4 and len(synthetic.valid_ds) == 2*len(synthetic.train_ds)
    assert ((pets_learner(real).arch.__name__, pets_learner(synthetic).arch.__name__)
            == ('efficientnet_lite0', 'drawnet10'))


def test_the_head_that_few_pictures_get(tmp_path):
    dls = pets_dls(draw_some(tmp_path/'set'), 40, 32)
    plain, lesson = (pets_learner(dls, small_net, pretrained=False),
                     pets_learner(dls, small_net, pretrained=False, head='lesson'))
    def linear(learn):
        return [m for m in learn.model[1].modules() if isinstance(m, torch.nn.Linear)]
    assert (len(linear(plain)) == 1 and not linear(plain)[0].weight.any()
            and len(linear(lesson)) == 2)


def test_the_recipe_says_what_it_takes_and_takes_what_it_is_told(tmp_path, capsys):
    dls = pets_dls(draw_some(tmp_path/'set'), 40, 32)
    learn = pets_learner(dls, small_net, pretrained=False)
    body = {n: p.clone() for n,p in learn.model[0].state_dict().items()}
    with learn.no_bar(), learn.no_logging(): fit_pets(learn)
    assert ('small_net, 32 pixels, layers in the head: 1; 20 epochs for the head, views of each '
            'picture: 2, learning rate 0.002' in capsys.readouterr().out)
    assert all(torch.equal(p, body[n]) for n,p in learn.model[0].state_dict().items())
    with learn.no_bar(), learn.no_logging(): fit_pets(learn, epochs=3, lr=1e-3, views=1)
    assert ('3 epochs for the head, views of each picture: 1, learning rate '
            '0.001' in capsys.readouterr().out)


def test_synthetic_pictures_are_fine_tuned(twins, capsys):
    learn = pets_learner(pets_dls(twins))
    fits = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(learn), 'fine_tune',
                      lambda self, epochs, lr, cbs=None: fits.append((epochs, lr)))
        fit_pets(learn); fit_pets(learn, 5, 1e-2)
    assert fits == [(2, 2e-3), (5, 1e-2)]
    assert ('drawnet10, 64 pixels, layers in the head: 2; 1 epoch for the head, 2 for all '
            'layers' in capsys.readouterr().out)


def test_the_finder_says_that_it_found_nothing(learn):
    "The loss grows fourfold within a few batches, as that of a model that makes no mistakes does"
    from fastai.callback.core import Callback
    class Explode(Callback):
        order = -8
        def after_loss(self): self.learn.loss = self.loss*0 + 10.**self.iter
    learn.add_cb(Explode())
    with pytest.raises(ValueError, match='exploded before any rate lowered it'):
        suggest_lr(learn, num_it=20)


def test_discriminative_training_holds_the_body_and_then_moves_it(learn):
    body = lambda: learn.model[0][0].weight.detach().clone()
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(learn), 'fit_one_cycle',
                      lambda self, n, lr_max=None, cbs=None: asked.append(
            (n, lr_max, [p.requires_grad for p in learn.model.parameters()].count(False) > 0)))
        fit_discriminative(learn)
    assert asked == [(3, 3e-3, True), (12, slice(1e-6, 1e-4), False)], "the lesson's"
    start = body(); fit_discriminative(learn, 1, 0); assert torch.equal(start, body())
    fit_discriminative(learn, 1, 1); assert not torch.equal(start, body())


@pytest.mark.ci
def test_an_exported_learner_predicts_in_a_fresh_process(learn, dls, tmp_path):
    learn.export('pets.pkl')
    # the network of this test lives in this file
    done = python('''
        import sys
        from fastai.learner import load_learner
        learn = load_learner(sys.argv[1])
        with learn.no_bar(): print(learn.predict(sys.argv[2])[0])
        ''', tmp_path/'pets.pkl', dls.valid_ds.items[0],
        env={'PYTHONPATH': f'{root/"tests"}{os.pathsep}{root}'})
    assert re.fullmatch('Abyssinian|beagle', done.stdout.strip())
