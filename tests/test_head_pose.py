"The head-pose section and its drawn twin: what a notebook cannot show."
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lesson6 import head_pose
from lesson6.head_pose import biwi_dls, get_ctr, img2pose, pixel_error, plot_function, read_calibration, read_centre, sigmoid_range
from lesson6.mini import biwi

REAL_CAL = '517.679 0 320 \n0 517.679 240.5 \n0 0 1 \n\n0 0 0 0 \n\n1 0 0 \n0 1 0 \n0 0 1 \n\n0 0 0 \n\n640 480 \n'
TURN = '1 0 0 \n0 1 0 \n0 0 1 \n\n'


@pytest.fixture(scope='session')
def twin(twins): return twins['biwi']


@pytest.fixture(scope='session')
def frames(twin): return sorted(twin.rglob('*_rgb.jpg'))


@pytest.fixture
def person(tmp_path):
    "A folder with one frame in the real set's layout; returns the frame"
    def make(centre='112.78 48.95 900 \n', cal=REAL_CAL, folder='01', frame='frame_00003'):
        path = tmp_path/folder
        path.mkdir(exist_ok=True)
        (path/'rgb.cal').write_text(cal)
        (path/f'{frame}_pose.txt').write_text(TURN + centre)
        Image.new('RGB', (640, 480)).save(path/f'{frame}_rgb.jpg')
        return path/f'{frame}_rgb.jpg'
    return make


# The twin

def test_the_twin_has_the_layout_of_the_real_set(twin, frames):
    assert sorted(p.name for p in twin.iterdir()) == [f'{i:02d}' for i in range(1, 25)]
    assert len(frames) == biwi.expected['frames']
    for person in twin.iterdir():
        names = {p.name for p in person.iterdir()}
        assert names == {'rgb.cal'} | {n for n in names if n.startswith('frame_')}
        assert (person/'frame_00003_rgb.jpg').exists()
        assert np.genfromtxt(person/'rgb.cal', skip_footer=6).shape == (3, 3)
    for f in frames:
        assert np.genfromtxt(img2pose(f), skip_header=3).shape == (3,)
        rotation = np.loadtxt(img2pose(f), max_rows=3)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) > 0
    assert {Image.open(f).size for f in frames[::20]} == {(640, 480)}


def test_a_frame_is_drawn_alike_whenever_it_is_drawn(frames):
    "To the byte, and whatever was drawn before it"
    for f in (frames[200], frames[3], frames[117]):
        pose = biwi.find_pose(f)
        who = biwi.person(pose.person)
        bytes_ = io.BytesIO()
        Image.fromarray(biwi.render(who, pose, biwi.calibration(pose.person), biwi.room(who))[0]).save(bytes_, 'JPEG', quality=70)
        assert bytes_.getvalue() == f.read_bytes()


def test_another_seed_gives_other_people_and_poses():
    assert biwi.person(1, 42) == biwi.person(1, 42) != biwi.person(1, 43)
    assert not np.allclose(biwi.poses(1, 42)[0].centre, biwi.poses(1, 43)[0].centre)


def test_no_two_people_look_alike():
    looks = [(w.skin, w.hair, w.style, w.shirt) for w in map(biwi.person, range(1, 25))]
    assert len(set(looks)) == 24


def test_the_planted_centre_is_where_get_ctr_says(frames):
    off = [np.abs(biwi.planted_centre(biwi.find_pose(f)) - get_ctr(f).numpy()).max() for f in frames]
    assert max(off) <= .5


def test_the_camera_of_person_01_is_wrong_for_others(frames):
    "So the test above would notice a get_ctr that takes it for everybody"
    cal = biwi.calibration(1)
    f = next(f for f in frames if f.parent.name == '13')
    x, y, z = read_centre(f)
    taken_from_01 = np.array([x*cal[0,0]/z + cal[0,2], y*cal[1,1]/z + cal[1,2]])
    assert np.abs(biwi.planted_centre(biwi.find_pose(f)) - taken_from_01).max() > 2


def test_the_head_is_in_the_pixels_where_it_was_planted(frames):
    "Painting the head anew changes the pixels of the picture there, and nowhere else"
    for f in frames[::60]:
        pose = biwi.find_pose(f)
        head = biwi.silhouette(pose)
        who = biwi.person(pose.person)
        other = biwi.Person(**{**vars(who), 'skin': (0., 1., 0.), 'hair': (0., 1., 0.), 'eyes': (0., 1., 0.)})
        picture = np.asarray(Image.open(f)).astype(int)
        painted = biwi.render(other, pose, biwi.calibration(pose.person), biwi.room(who))[0].astype(int)
        changed = np.abs(picture - painted).max(2) > 60
        x, y = get_ctr(f).numpy().astype(int)
        assert head[y, x] and changed[max(0, y-40):y+40, max(0, x-30):x+30].mean() > .5
        reach = np.argwhere(head)
        assert np.abs(reach.mean(0) - (y, x)).max() < 25      # hair and nose stick out, not far
        near = np.zeros_like(head)
        (y0, x0), (y1, x1) = reach.min(0), reach.max(0)
        near[max(0, y0-8):y1+90, max(0, x0-40):x1+40] = True    # neck and collar are of skin too
        assert changed[~near].mean() < .001


# Points and pixels

@pytest.fixture(scope='session')
def heads(frames):
    "200 frames in which the head is white and all else black, with the point of each"
    chosen = np.random.default_rng(0).choice(len(frames), 200, replace=False)
    return [(biwi.silhouette(biwi.find_pose(frames[i])), get_ctr(frames[i])) for i in chosen]


def augmented(dls, heads, Point):
    "How white the augmented picture is at the augmented point, for each of them"
    from fastai.vision.core import PILImage
    items = [dls.train.after_item((PILImage.create(np.repeat(mask[...,None], 3, 2).astype(np.uint8)*255), Point(p))) for mask, p in heads]
    xb, yb = dls.train.after_batch(dls.train.create_batch(items))
    x, y = xb.as_subclass(torch.Tensor).mean(1, keepdim=True), yb.as_subclass(torch.Tensor).reshape(-1, 1, 1, 2)
    at = torch.nn.functional.grid_sample(x, y.float(), mode='nearest', align_corners=False)[:, 0, 0, 0]
    lo, hi = x.amin((1, 2, 3)), x.amax((1, 2, 3))
    return (at-lo)/(hi-lo), xb, yb


@pytest.mark.ci
@pytest.mark.parametrize('size', [(60, 80), (120, 160)])
def test_every_augmented_point_lands_on_the_head(twin, heads, size):
    from fastai.torch_core import set_seed
    from fastai.vision.core import TensorPoint
    set_seed(0)
    dls = biwi_dls(twin, size=size, bs=16, num_workers=0)
    white, xb, yb = augmented(dls, heads, TensorPoint.create)
    assert len(white) == 200 and xb.shape[-2:] == size
    assert (white > .5).all()
    before = torch.stack([p for _, p in heads])/torch.tensor([320., 240.]) - 1
    assert ((yb.as_subclass(torch.Tensor).view(-1, 2) - before).norm(dim=1) > .05).float().mean() > .5   # most points did move


@pytest.mark.ci
def test_a_point_that_fastai_does_not_know_for_one_falls_off(twin, heads):
    "The test above can fail: the same numbers, but not as a TensorPoint, stay where they are"
    from fastai.torch_core import set_seed
    set_seed(0)
    dls = biwi_dls(twin, size=(60, 80), bs=16, num_workers=0)
    white, *_ = augmented(dls, heads, lambda p: p/torch.tensor([320., 240.]) - 1)
    assert (white < .5).float().mean() > .2


def test_validation_frames_are_not_augmented(twin):
    dls = biwi_dls(twin, size=(60, 80), bs=16, num_workers=0)
    (x1, y1), (x2, y2) = dls.valid.one_batch(), dls.valid.one_batch()
    assert torch.equal(x1, x2) and torch.equal(y1, y2)
    by_hand = torch.stack([get_ctr(f) for f in dls.valid_ds.items])/torch.tensor([320., 240.]) - 1
    torch.testing.assert_close(y1.as_subclass(torch.Tensor).cpu().view(-1, 2), by_hand[:len(y1)])


# Reading

def test_get_ctr_on_a_frame_of_the_real_set(person):
    "09/frame_00667: both its centre in mm and its point in pixels were printed in fast.ai's lesson 3 of 2019"
    f = person('187.332 40.3892 893.135 \n', folder='09', frame='frame_00667')
    np.testing.assert_allclose(get_ctr(f), (428.5814, 263.9104), atol=1e-4)


def test_get_ctr_gives_the_numbers_of_the_notes(person):
    "13/frame_00349. Its millimetres were not printed: here they are worked out backwards, for a head 900 mm away"
    x, y, z = (384.6370-320)*900/517.679, (259.4787-240.5)*900/517.679, 900
    f = person(f'{x:.4f} {y:.4f} {z} \n', folder='13', frame='frame_00349')
    np.testing.assert_allclose(get_ctr(f), (384.6370, 259.4787), atol=1e-4)


def test_each_person_has_a_calibration_of_their_own(person):
    one = person(folder='01')
    two = person(folder='02', cal=REAL_CAL.replace('320 ', '300 '))
    np.testing.assert_allclose(get_ctr(one) - get_ctr(two), (20, 0), atol=1e-4)


def test_the_calibration_is_kept_but_not_when_it_changes(person, monkeypatch):
    f = person()
    read = []
    monkeypatch.setattr(head_pose, 'read_calibration', lambda p, real=read_calibration: read.append(p) or real(p))
    before = [get_ctr(f) for _ in range(5)][-1]
    assert len(read) == 1
    cal = f.parent/'rgb.cal'
    cal.write_text(REAL_CAL.replace('320 ', '300 '))
    os.utime(cal, ns=(1, 1))
    np.testing.assert_allclose(before - get_ctr(f), (20, 0), atol=1e-4)


def test_get_ctr_can_be_pickled(person):
    f = person()
    get_ctr(f)
    assert torch.equal(pickle.loads(pickle.dumps(get_ctr))(f), get_ctr(f))


def test_windows_line_ends_and_missing_last_newline(person):
    f = person('112.78 48.95 900', cal=REAL_CAL.replace('\n', '\r\n'))
    np.testing.assert_allclose(read_centre(f), (112.78, 48.95, 900))
    assert read_calibration(f.parent/'rgb.cal').shape == (3, 3)


@pytest.mark.parametrize('text, says', [
    ('', 'cut short'),
    (TURN, 'cut short'),
    (TURN[:12], 'cut short'),
    (TURN + '112.78 48.95 ', 'cut short'),
    (TURN + '112.78 48.95 90x ', 'cut short'),
    (TURN + '112.78 nan 900 ', 'cut short'),
    (TURN + '112.78 48.95 0 ', 'is 0 mm away'),
    (TURN + '112.78 48.95 -900 ', 'is -900 mm away'),
])
def test_a_pose_that_is_no_pose(person, text, says):
    f = person()
    img2pose(f).write_text(text)
    with pytest.raises(ValueError, match=f'frame_00003_pose.txt .*{says}'): get_ctr(f)


def test_a_frame_without_its_pose(person):
    f = person()
    img2pose(f).unlink()
    with pytest.raises(FileNotFoundError, match='frame_00003_rgb.jpg has no pose: frame_00003_pose.txt is missing'): get_ctr(f)


@pytest.mark.parametrize('text', ['', '517.679 0 320 \n0 517.679 240.5 \n', REAL_CAL.replace('517.679 0 320', '517.679 0'),
    REAL_CAL.replace('0 0 1', '0 0 1 0', 1), REAL_CAL.replace('517.679', '0'), REAL_CAL.replace('517.679', 'f'), '\x00\xff'*100,
    REAL_CAL.replace('0 0 1', '1 0 0', 1)])
def test_a_calibration_that_is_not_3_by_3(person, text):
    f = person()
    (f.parent/'rgb.cal').write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match='rgb.cal does not begin with a 3×3 camera matrix'): get_ctr(f)


def test_no_calibration_at_all(person):
    f = person()
    (f.parent/'rgb.cal').unlink()
    with pytest.raises(FileNotFoundError, match='rgb.cal is missing'): get_ctr(f)


def test_a_name_that_is_no_frame():
    with pytest.raises(ValueError, match='not named like a frame'): img2pose('01/rgb.jpg')


# The DataLoaders

@pytest.fixture
def few(person, tmp_path):
    "Two people with six frames each"
    for folder in ('01', '02'):
        for i in range(6): person(f'{20*i} 10 900 \n', folder=folder, frame=f'frame_{i:05d}')
    return tmp_path


def test_nobody_is_in_both_sets(few):
    dls = biwi_dls(few, valid_person='02', size=(24, 32), bs=2, num_workers=0)
    assert [f.parent.name for f in dls.train_ds.items] == ['01']*6 and [f.parent.name for f in dls.valid_ds.items] == ['02']*6


@pytest.mark.parametrize('who', ['13', 'Ada', 3])
def test_a_person_without_frames(few, who):
    with pytest.raises(ValueError, match=f'no frames of person {who:0>2}; there are frames of 01, 02'): biwi_dls(few, who, bs=2)


def test_a_person_may_be_a_number(few):
    assert {f.parent.name for f in biwi_dls(few, 2, size=(24, 32), bs=2, num_workers=0).valid_ds.items} == {'02'}


def test_fewer_frames_than_a_batch(few):
    with pytest.raises(ValueError, match='6 frames to train on, fewer than a batch of 64'): biwi_dls(few, '02')


@pytest.mark.parametrize('where', ['.', 'nothing'])
def test_no_frames_at_all(tmp_path, where):
    with pytest.raises(FileNotFoundError, match='holds no frames'): biwi_dls(tmp_path/where)


def test_centres_outside_the_frame_are_counted(few, person):
    for i, centre in enumerate(['900 10 900', '0 -800 900', '0 10 900']): person(centre + ' \n', folder='02', frame=f'frame_{90+i:05d}')
    with pytest.warns(UserWarning, match='In 2 of 15 frames the centre of the head is outside the picture, the first is .*frame_00090_rgb.jpg'):
        biwi_dls(few, '02', size=(24, 32), bs=2, num_workers=0)


def test_centres_inside_the_frame_warn_of_nothing(few, recwarn):
    biwi_dls(few, '02', size=(24, 32), bs=2, num_workers=0)
    assert not [w for w in recwarn if 'outside the picture' in str(w.message)]


@pytest.mark.parametrize('break_it, error, says', [
    (lambda f: img2pose(f).unlink(), FileNotFoundError, 'has no pose'),
    (lambda f: img2pose(f).write_text(TURN), ValueError, 'cut short'),
    (lambda f: (f.parent/'rgb.cal').write_text('1 2'), ValueError, 'camera matrix'),
])
def test_what_cannot_be_read_is_said_before_training(few, break_it, error, says):
    break_it(few/'01'/'frame_00004_rgb.jpg')
    with pytest.raises(error, match=says): biwi_dls(few, '02', size=(24, 32), bs=2, num_workers=0)


# The small parts

def test_sigmoid_range_stays_in_its_range():
    x = torch.tensor([-1e4, -1., 0., 1., 1e4])
    y = sigmoid_range(x, -2, 6)
    assert torch.equal(y[[0, 2, 4]], torch.tensor([-2., 2., 6.])) and (y.diff() > 0).all()
    assert sigmoid_range(torch.zeros(2, 3), 0, 5.5).shape == (2, 3)


def test_plot_function_draws_the_function():
    import matplotlib
    matplotlib.use('agg')
    ax = plot_function(torch.square, tx='x', title='a square', min=-3, max=3, steps=7)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [(x, x*x) for x in range(-3, 4)])
    assert (ax.get_xlabel(), ax.get_title()) == ('x', 'a square')
    assert plot_function(torch.sin, ax=ax) is ax and len(ax.lines) == 2


@pytest.mark.parametrize('shape', [(5, 2), (5, 1, 2)])
def test_pixel_error_is_a_distance_in_the_frame(shape):
    g = torch.Generator().manual_seed(0)
    preds, targs = torch.rand(5, 2, generator=g)*2-1, torch.rand(5, 2, generator=g)*2-1
    px = [(t+1)*torch.tensor([320., 240.]) for t in (preds, targs)]
    torch.testing.assert_close(pixel_error(preds, targs.view(shape), (480, 640)), (px[0]-px[1]).pow(2).sum(1).sqrt())
    assert pixel_error(targs, targs.view(shape), (480, 640)).max() == 0


# The learner

@pytest.fixture(scope='session')
def exported(twin, tmp_path_factory):
    "A learner, trained hardly at all, and what it says of one frame"
    from fastai.vision.learner import vision_learner
    from lesson6.mini.network import drawnet10
    dls = biwi_dls(twin, size=(30, 40), bs=64, num_workers=0)
    learn = vision_learner(dls, drawnet10, y_range=(-1, 1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    path = tmp_path_factory.mktemp('export')/'head_pose.pkl'
    learn.export(path)
    frame = dls.valid_ds.items[3]
    with learn.no_bar(): return path, frame, learn.predict(frame)[2]


@pytest.mark.ci
def test_an_exported_learner_predicts_in_a_fresh_process(exported, tmp_path):
    path, frame, raw = exported
    code = ('import warnings; warnings.simplefilter("ignore")\nimport sys; from fastai.learner import load_learner\n'
            'learn = load_learner(sys.argv[1])\nwith learn.no_bar(): print(*learn.predict(sys.argv[2])[2].tolist())')
    done = subprocess.run([sys.executable, '-c', code, path, frame], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(o) for o in done.stdout.split()], raw.numpy(), atol=1e-5)


@pytest.mark.ci
def test_importing_the_section_is_no_dearer_than_fastai():
    "Nothing is trained, drawn or read; no module of another section or of a twin comes along"
    code = 'import sys, lesson6.head_pose; print([m for m in sys.modules if m.startswith("lesson6")])'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == ['lesson6', 'lesson6.data', 'lesson6.pictures', 'lesson6.train', 'lesson6.head_pose']
