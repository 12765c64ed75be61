"""Handlers: every Type that Taba ships with, the interface for writing more, and the lookup that finds them.

An author needs one line, `from taba.handlers import Handler`. It is cheap: no numpy, no reactor.
"""

from taba.handlers.base import ArrayHandler, Events, Ever, Handler, History, Projection, Sample
from taba.handlers.interface import IArrayHandler, IHandler

__all__ = ["ArrayHandler", "Events", "Ever", "Handler", "History", "IArrayHandler", "IHandler", "Projection", "Sample"]
