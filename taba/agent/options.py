"""The Agent's options: one definition each."""

from __future__ import annotations

from pathlib import Path

from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, MAX_OUTBOX_BYTES, MIN_OUTBOX_BYTES
from taba.agent.spool import DEFAULT_SPOOL_BYTES, MIN_SPOOL_BYTES
from taba.bounds import MiB
from taba.client.producer import group_of
from taba.errors import ConfigurationError
from taba.listening import LISTENING_OPTIONS
from taba.names import check_agent
from taba.options import Option, ServiceOptions, byte_count, checked_state_directory, file_path, http_url, listen
from taba.receiving import receiving


def _directory(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        path = Path.cwd() / path
    if path.exists() and not path.is_dir():
        raise ValueError("takes a directory")
    return path


def _group(text: str) -> int:
    try:
        return group_of(text)
    except ValueError:
        raise ValueError("takes a group of this host, by name or number") from None


class Options(ServiceOptions):
    """twistd taba-agent: reads this host's rings and forwards their events to Servers."""

    program = "taba-agent"
    prefix = "TABA_AGENT_"
    synopsis = "[options]"
    definitions = (
        Option(
            "server",
            "http://127.0.0.1:8280",
            "URL of a Server; may be repeated. Any one is enough: the others are learned from it",
            http_url,
            repeatable=True,
        ),
        Option("listen", "tcp:8279:interface=127.0.0.1", "Where status is asked for and events are posted", listen),
        *LISTENING_OPTIONS,
        Option("token", "", "File with the token that Servers are shown: one for writing, which only this user can read.", file_path),
        Option("cacert", "", "File with the authorities of Servers' certificates; default is the system's.", file_path),
        Option(
            "agent",
            "default",
            "Name of this Agent; it reads the rings of clients with the same TABA_AGENT",
            check_agent,
            variable="TABA_AGENT",
        ),
        Option(
            "ring-group",
            "",
            "Group whose rings are read beside this user's own; clients name it in TABA_RING_GROUP",
            _group,
            variable="TABA_RING_GROUP",
        ),
        Option(
            "statsd",
            "",
            "Where StatsD and DogStatsD are received, such as udp:8125; may be repeated. Off loopback only with --insecure",
            receiving,
            repeatable=True,
        ),
        Option("spool", "", "Directory for batches that no Server takes; default is the state directory", _directory),
        Option("spool-bytes", f"{DEFAULT_SPOOL_BYTES // MiB} MiB", "Bound of the spool", byte_count(MIN_SPOOL_BYTES, 2**50)),
        Option(
            "outbox-bytes",
            f"{DEFAULT_OUTBOX_BYTES // MiB} MiB",
            "Shared memory for batches under way, at the most; a quarter of what is free there",
            byte_count(MIN_OUTBOX_BYTES, MAX_OUTBOX_BYTES),
        ),
    )

    def postOptions(self) -> None:
        super().postOptions()
        for address in self["statsd"]:
            if not address.is_local and not self["insecure"]:
                raise ConfigurationError("--statsd", address.text, "is reached from other hosts, which takes --insecure")
        if self["spool"] is None:
            self["spool"] = checked_state_directory(self.environ)
