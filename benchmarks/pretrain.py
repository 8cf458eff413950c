"""Trains `drawnet10` or `drawnet18` as nbs/data/mini/pretraining.ipynb explains it:

    python benchmarks/pretrain.py drawnet10 --steps 12000 --seed 42
"""
import json
from pathlib import Path
from types import ModuleType

notebook = Path(__file__).parent.parent/'nbs/data/mini/pretraining.ipynb'


def pretraining():
    "The definitions of the notebook, as a module"
    module = ModuleType('pretraining')
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if source.startswith('#| definition'):
            exec(compile(source, f'{notebook} {cell["id"]}', 'exec'), module.__dict__)
    return module


if __name__ == '__main__': pretraining().main()
