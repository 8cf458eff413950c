"The companion to lesson 6 of the fast.ai course: its parts, importable."
from importlib.metadata import version

__version__ = version('lesson6')
