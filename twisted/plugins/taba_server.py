"""Makes `twistd taba-server` known; nothing else is imported until it is used."""

from twisted.application.service import ServiceMaker

taba_server = ServiceMaker("Taba Server", "taba.server.service", "Folds Taba's events into States and answers queries.", "taba-server")
