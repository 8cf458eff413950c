"Presized pictures: whole or not there, the same pixels as shrinking on the spot, and usable where the cache is not."
import pickle

import numpy as np
import pytest
import torch
from fastai.data.core import TfmdLists, Transform
from PIL import Image

from lesson6.engine.picture_loaders import CropSquare, InParts, KeepBatches, KeepItems, PresizedBlock, PresizedDL, PresizedPictures


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate([(90, 60), (60, 90), (200, 64), (50, 50)]):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    return sorted(tmp_path.glob('*.png'))


def test_the_shorter_side_is_the_size(files, tmp_path):
    presized = PresizedPictures(files, 48, tmp_path/'cache')
    assert [tuple(presized(f).shape) for f in files] == [(3, 48, 72), (3, 72, 48), (3, 48, 150), (3, 48, 48)]


def test_the_cache_is_where_the_drawn_data_is(files, environment, tmp_path):
    assert PresizedPictures(files, 48).bytes.parent == tmp_path/'cache'/'presized'


def test_a_cached_picture_is_the_one_shrunk_on_the_spot(files, tmp_path):
    presized = PresizedPictures(files, 48, tmp_path/'cache')
    cached = [presized(f) for f in files]
    presized.index = {}
    assert all((presized(f) == c).all() for f, c in zip(files, cached, strict=True))


def test_a_changed_picture_is_not_taken_from_an_old_cache(files, tmp_path):
    before = PresizedPictures(files, 48, tmp_path/'cache')
    Image.new('RGB', (90, 60), 'red').save(files[0])
    after = PresizedPictures(files, 48, tmp_path/'cache')
    assert after.bytes != before.bytes and (after(files[0])[0] == 255).all()


def test_an_unreadable_picture_is_named_and_nothing_half_made_is_used(files, tmp_path):
    (tmp_path/'5.png').write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(ValueError, match='5.png cannot be read as a picture'): PresizedPictures([*files, tmp_path/'5.png'], 48, tmp_path/'cache')
    assert [f.suffix for f in (tmp_path/'cache').iterdir()] == ['.lock'], 'nor does a half of it stay'
    with pytest.raises(ValueError, match='no pictures to presize'): PresizedPictures([], 48, tmp_path/'cache')


def test_a_copy_sent_to_another_place_works_with_and_without_the_cache(files, tmp_path):
    presized = PresizedPictures(files, 48, tmp_path/'cache')
    sent = pickle.dumps(presized)
    assert len(sent) < 1000 and (pickle.loads(sent)(files[0]) == presized(files[0])).all()
    presized.bytes.unlink()
    assert (pickle.loads(sent)(files[0]) == presized(files[0])).all()


def test_training_crops_move_and_validation_crops_do_not(files, tmp_path):
    presized = PresizedPictures(files, 48, tmp_path/'cache')
    crop = CropSquare(48)
    train = {bytes(crop(presized(files[2]), split_idx=0).numpy()) for _ in range(20)}
    valid = {bytes(crop(presized(files[2]), split_idx=1).numpy()) for _ in range(20)}
    assert len(train) > 10 and len(valid) == 1


def test_in_parts_every_item_is_transformed_once_and_in_order():
    from fastai.data.core import Transform
    seen = []
    class Note(Transform):
        def encodes(self, x: torch.Tensor): seen.append(len(x)); return x*2
    x, y = torch.arange(40.)[:, None], torch.arange(40)
    done = InParts([Note()])((x, y))
    assert (done[0] == x*2).all() and (done[1] == y*2).all()
    assert seen == [16, 16, 16, 16, 8, 8]
    seen.clear()
    assert (InParts([Note()], n=64)((x, y))[0] == x*2).all() and seen == [40, 40]
    assert InParts([])((x, 'no tensor')) == (x, 'no tensor')


def test_a_learner_keeps_the_loader_and_predicts_where_the_cache_is_gone(files, tmp_path):
    from fastai.vision.all import CategoryBlock, DataBlock, Flip, IndexSplitter, Learner, load_learner, nn
    presized = PresizedPictures(files, 48, tmp_path/'cache')
    block = DataBlock(blocks=(PresizedBlock(presized), CategoryBlock), get_y=parity, splitter=IndexSplitter([0, 1]), batch_tfms=Flip())
    dls = block.dataloaders(files, bs=2, num_workers=0)
    assert isinstance(dls.train, PresizedDL) and isinstance(dls.valid.after_batch, InParts) and isinstance(dls.test_dl(files).after_batch, InParts)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(): before = learn.predict(files[2])
    learn.export(tmp_path/'learner.pkl')
    presized.bytes.unlink()
    again = load_learner(tmp_path/'learner.pkl')
    with again.no_bar(): assert torch.allclose(again.predict(files[2])[2], before[2])


def parity(file): return int(file.stem) % 2


def test_kept_batches_are_made_once_and_are_the_same():
    made = []
    def item(i): made.append(i); return torch.tensor([i])
    dl = KeepBatches(TfmdLists(range(5), item), bs=2, num_workers=0)
    made.clear()
    next(iter(dl))
    assert dl.kept is None, 'an epoch that was broken off is not kept'
    made.clear()
    first, second = [b.tolist() for b in dl], [b.tolist() for b in dl]
    assert first == second == [[[0], [1]], [[2], [3]], [[4]]] and made == [0, 1, 2, 3, 4]
    assert [b.tolist() for b in dl.new(TfmdLists(range(2), item))] == [[[0], [1]]], 'a new loader makes its own'


class AddsTen(Transform):
    def encodes(self, x:torch.Tensor): return x+10


def test_what_was_kept_is_made_anew_when_a_transform_is_added():
    "A learner adds `Normalize`, and may be made after somebody has gone through the batches"
    for kind in KeepBatches, KeepItems:
        for event in 'after_item', 'after_batch':
            dl = kind(TfmdLists(range(3), lambda i: torch.tensor([i])), bs=3, num_workers=0)
            assert [b.flatten().tolist() for b in dl] == [[0, 1, 2]]
            getattr(dl, event).add(AddsTen())
            assert [b.flatten().tolist() for b in dl] == [[10, 11, 12]], (kind, event)


def test_kept_items_are_made_once_and_batches_of_them_are_free_to_change():
    made = []
    def item(i): made.append(i); return torch.tensor([i])
    dl = KeepItems(TfmdLists(range(5), item), bs=2, num_workers=0)
    made.clear()
    for b in dl: b += 10
    assert [b.tolist() for b in dl] == [[[0], [1]], [[2], [3]], [[4]]] and made == [0, 1, 2, 3, 4]
    assert [b.tolist() for b in dl.new(TfmdLists(range(2), item))] == [[[0], [1]]], 'a new loader makes its own'


def test_nothing_is_kept_while_the_transforms_are_set_up():
    "Each of them looks at an item as the ones before it leave it, as fastai's `PointScaler` does"
    class Doubles(Transform):
        def setups(self, dl): self.seen = dl.do_item(None).item()
        def encodes(self, x:torch.Tensor): return x*2
    class AddsOne(Doubles):
        order = 1
        def encodes(self, x:torch.Tensor): return x+1
    doubles, adds_one = Doubles(), AddsOne()
    dl = KeepItems(TfmdLists([3, 4], lambda i: torch.tensor([i])), bs=2, after_item=[doubles, adds_one], num_workers=0)
    assert (doubles.seen, adds_one.seen) == (3, 6) and [b.tolist() for b in dl] == [[[7], [9]]]


# Upright

@pytest.mark.parametrize('kind', ['path', 'text', 'bytes', 'picture'])
def test_a_picture_is_upright_wherever_it_comes_from(kind, tmp_path):
    "What an upload brings is bytes, and what another program hands over is a Pillow image"
    from lesson6.engine.pictures import UprightImage
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new('RGB', (40, 20), 'red').save(tmp_path/'phone.jpg', exif=turned)
    Image.fromarray(np.full((20, 40), 65535//2, np.uint16)).save(tmp_path/'deep.png')
    Image.new('CMYK', (40, 20), (0, 255, 255, 0)).save(tmp_path/'print.jpg')
    Image.new('RGBA', (40, 20), (9, 99, 199, 50)).save(tmp_path/'clear.png')
    def given(f): return {'path': f, 'text': str(f), 'bytes': f.read_bytes(), 'picture': Image.open(f)}[kind]
    made = {n: UprightImage.create(given(tmp_path/n)) for n in ('phone.jpg', 'deep.png', 'print.jpg', 'clear.png')}
    assert {n: im.size for n, im in made.items()} == {'phone.jpg': (20, 40), 'deep.png': (40, 20), 'print.jpg': (40, 20), 'clear.png': (40, 20)}
    assert {im.mode for im in made.values()} == {'RGB'} and made['deep.png'].getpixel((5, 5)) == (127, 127, 127)
    assert UprightImage.create(made['phone.jpg']).size == (20, 40), 'once is enough'


def test_bytes_that_are_no_picture_are_told():
    from lesson6.engine.pictures import UprightImage
    with pytest.raises(ValueError, match='The picture of 9 bytes cannot be read as a picture'): UprightImage.create(b'no bytes!')


@pytest.mark.parametrize('mode, values, seen', [('F', (0, .5, 1), (0, 128, 255)), ('F', (0, 1, 200), (0, 1, 200)), ('I', (0, 1, 1), (0, 1, 1)), ('I', (0, 9, 255), (0, 9, 255)),
                                                ('I', (0, 257, 65535), (0, 1, 255)), ('I;16', (0, 257, 514), (0, 1, 2))])
def test_what_deep_pictures_are_in_8_bits(mode, values, seen):
    "Shares of one, bytes in large numbers, and 16 bits"
    from lesson6.engine.pictures import upright
    kind = {'F': np.float32, 'I': np.int32, 'I;16': np.uint16}[mode]
    im = Image.fromarray(np.array([values]).astype(kind))
    assert im.mode == mode and [upright(im).getpixel((i, 0)) for i in range(3)] == [(v, v, v) for v in seen]


@pytest.mark.parametrize('height, width', [(40, 20), (20, 40)])
def test_a_square_of_the_middle_in_validation(height, width):
    from fastai.torch_core import TensorImage
    x = TensorImage(torch.arange(height*width).reshape(1, height, width))
    middle = x[:, 10:30] if height > width else x[:, :, 10:30]
    assert torch.equal(CropSquare(20)(x, split_idx=1), middle)
    assert CropSquare(20)(x, split_idx=0).shape == (1, 20, 20)
