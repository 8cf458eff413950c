"What `python -m lesson6.train` runs, for launchers of several processes such as torchrun"
if __name__ == '__main__':
    import warnings
    # fastai still uses it, and warns at import
    warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated',
                            category=FutureWarning)

from lesson6.book.train import * # noqa: F403
from lesson6.book.options import run_command
from lesson6.book.train import main

if __name__ == '__main__': run_command(main)
