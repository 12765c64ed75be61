"""Makes `twistd taba-server` known; nothing else is imported until it is used."""

from taba.plugins import LazyServiceMaker

taba_server = LazyServiceMaker(
    "Taba Server", "taba.server.service", "Folds Taba's events into States and answers queries.", "taba-server", "server"
)
