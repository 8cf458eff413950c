"What loaders keep, and pictures the right way up."
import numpy as np
import pytest
import torch
from fastai.data.core import TfmdLists, Transform
from PIL import Image

from lesson6.engine.picture_loaders import KeepBatches, KeepItems, KeepPictures
from lesson6.engine.pictures import UprightImage, upright


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
    assert [b.tolist() for b in dl.new(TfmdLists(range(2), item))] == [[[0], [1]]], (
        'a new loader makes its own')


def test_kept_batches_serve_a_loader_of_the_same_batches_only():
    "As `get_preds` makes one"
    dl = KeepBatches(TfmdLists(range(5), lambda i: torch.tensor([i])), bs=2, num_workers=0)
    for _ in dl: pass
    assert next(iter(dl.new(get_idxs=lambda: [0, 1, 2, 3, 4]))) is dl.kept[0]
    assert ([b.tolist() for b in dl.new(get_idxs=lambda: [4, 3, 2, 1, 0])]
            == [[[4], [3]], [[2], [1]], [[0]]])
    assert [b.tolist() for b in dl.new(bs=5)] == [[[0], [1], [2], [3], [4]]]
    assert [b.tolist() for b in dl.new(drop_last=True)] == [[[0], [1]], [[2], [3]]]


def test_pictures_are_read_once_while_there_is_room(monkeypatch):
    "And cropped anew each time; a loader of other pictures has its own"
    made = []
    def item(i): made.append(i); return Image.new('RGB', (10, 10), (i, 0, 0))
    class Crops(Transform):
        def encodes(self, x): made.append('crop'); return torch.tensor(x.getpixel((0, 0))[0])
    class Pairs(TfmdLists):
        def __getitem__(self, i): return (super().__getitem__(i),)
    monkeypatch.setattr(KeepPictures, 'most', 900)
    dl = KeepPictures(Pairs(range(5), item), bs=5, num_workers=0, after_item=[Crops()])
    assert dl.new(bs=2).read is dl.read and dl.new(Pairs(range(2), item)).read is not dl.read
    made.clear()
    for _ in range(3): assert [b[0].tolist() for b in dl] == [[0, 1, 2, 3, 4]]
    assert ([o for o in made if o != 'crop'] == [1, 2, 3, 4, 3, 4, 3, 4]
            and made.count('crop') == 15), 'item 0 was read when the loader was made'


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
    assert [b.tolist() for b in dl.new(TfmdLists(range(2), item))] == [[[0], [1]]], (
        'a new loader makes its own')


def test_nothing_is_kept_while_the_transforms_are_set_up():
    "Each of them looks at an item as the ones before it leave it, as fastai's `PointScaler` does"
    class Doubles(Transform):
        def setups(self, dl): self.seen = dl.do_item(None).item()
        def encodes(self, x:torch.Tensor): return x*2
    class AddsOne(Doubles):
        order = 1
        def encodes(self, x:torch.Tensor): return x+1
    doubles, adds_one = Doubles(), AddsOne()
    dl = KeepItems(TfmdLists([3, 4], lambda i: torch.tensor([i])), bs=2,
                   after_item=[doubles, adds_one], num_workers=0)
    assert (doubles.seen, adds_one.seen) == (3, 6) and [b.tolist() for b in dl] == [[[7], [9]]]


# Upright

@pytest.mark.parametrize('kind', ['path', 'text', 'bytes', 'picture'])
def test_a_picture_is_upright_wherever_it_comes_from(kind, tmp_path):
    "What an upload brings is bytes, and what another program hands over is a Pillow image"
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new('RGB', (40, 20), 'red').save(tmp_path/'phone.jpg', exif=turned)
    Image.fromarray(np.full((20, 40), 65535//2, np.uint16)).save(tmp_path/'deep.png')
    Image.new('CMYK', (40, 20), (0, 255, 255, 0)).save(tmp_path/'print.jpg')
    Image.new('RGBA', (40, 20), (9, 99, 199, 50)).save(tmp_path/'clear.png')
    def given(f):
        return {'path': f, 'text': str(f), 'bytes': f.read_bytes(), 'picture': Image.open(f)}[kind]
    made = {n: UprightImage.create(given(tmp_path/n))
            for n in ('phone.jpg', 'deep.png', 'print.jpg', 'clear.png')}
    assert {n: im.size for n, im in made.items()} == {'phone.jpg': (20, 40), 'deep.png': (40, 20),
                                                      'print.jpg': (40, 20), 'clear.png': (40, 20)}
    assert ({im.mode for im in made.values()} == {'RGB'}
            and made['deep.png'].getpixel((5, 5)) == (127, 127, 127))
    assert UprightImage.create(made['phone.jpg']).size == (20, 40), 'once is enough'


def test_bytes_that_are_no_picture_are_told():
    with pytest.raises(ValueError, match='The picture of 9 bytes cannot be read as a picture'):
        UprightImage.create(b'no bytes!')


@pytest.mark.parametrize('mode, values, seen',
                         [('F', (0, .5, 1), (0, 128, 255)), ('F', (0, 1, 200), (0, 1, 200)),
                          ('I', (0, 1, 1), (0, 1, 1)), ('I', (0, 9, 255), (0, 9, 255)),
                          ('I', (0, 257, 65535), (0, 1, 255)), ('I;16', (0, 257, 514), (0, 1, 2))])
def test_what_deep_pictures_are_in_8_bits(mode, values, seen):
    "Shares of one, bytes in large numbers, and 16 bits"
    kind = {'F': np.float32, 'I': np.int32, 'I;16': np.uint16}[mode]
    im = Image.fromarray(np.array([values]).astype(kind))
    assert (im.mode == mode
            and [upright(im).getpixel((i, 0)) for i in range(3)] == [(v, v, v) for v in seen])
