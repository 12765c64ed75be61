"""A Handler that does whatever it is told by what is recorded: that hangs, crashes, lies, and reaches for what it may not have."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from taba.handlers import ArrayHandler, Handler
from taba.server.keys import ABSENT
from taba.server.work.rows import ForeignWork, Work

PLUGIN = '''
import ctypes, fcntl, mmap, os, resource, signal, socket, struct, subprocess, tempfile, threading, time
from multiprocessing import shared_memory
from taba.handlers import Handler, Ever, History
from tests.server.samples import Spilling

CALLS = {
    "x86_64": {"keyctl": 250, "fault": 323, "queue": 68, "secret": 447, "handle": 304},
    "aarch64": {"keyctl": 219, "fault": 282, "queue": 186, "secret": 447, "handle": 265},
}.get(os.uname().machine, {})
# of what others have: shmat, shmctl, semop, semctl, semtimedop, msgsnd, msgrcv, msgctl, mq_unlink
BY_NUMBER = {
    "x86_64": (30, 31, 65, 66, 220, 69, 70, 71, 241),
    "aarch64": (196, 195, 193, 191, 192, 189, 188, 187, 181),
}.get(os.uname().machine, ())
CALLS |= {f"number{place}": call for place, call in enumerate(BY_NUMBER)}

class Odd(Handler):
    """A list of words; does what some of them say."""
    type = "Odd"
    def new_state(self): return []
    def fold(self, state, events, now):
        for word in events.values:
            self.act(word)
        return state + list(events.values)
    def act(self, word):
        if word == "hang":
            while True: pass
        if word == "sleep": time.sleep(1000)
        if word == "crash": os.abort()
        if word == "exit": os._exit(0)
        if word == "quit": raise SystemExit(3)
        if word == "raise": raise ValueError("no")
        if word == "print": print("\\0" * 1000, flush=True)
        if word == "nap": time.sleep(0.5)
        if word == "fork":
            pid = os.fork()
            if not pid: os._exit(0)
            os.waitpid(pid, 0)
        if word == "run": subprocess.run(["true"], check=True)
        if word == "thread":
            made = threading.Thread(target=lambda: None)
            made.start(); made.join()
        if word == "eat": bytearray(1 << 40)
        if word == "signal": os.kill(os.getppid(), 0)
        if word == "group": os.killpg(os.getpgid(os.getppid()), 0)
        if word == "everybody": os.kill(-1, 0)
        if word == "limit": resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
        if word == "trace": self.call(ctypes.CDLL(None, use_errno=True).ptrace, 16, os.getppid(), 0, 0)
        if word == "watch": os.pidfd_open(os.getppid())
        if word == "peek": open(f"/proc/{os.getppid()}/mem", "rb").close()
        if word == "poke": open(f"/proc/{os.getppid()}/mem", "r+b").close()
        if word == "exec": os.execv("/bin/true", ["true"])
        if word == "bomb":
            while True: os.fork()
        if word == "share": mmap.mmap(-1, 1 << 20)
        if word == "memory": os.memfd_create("more")
        if word == "owner": fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())
        if word == "slow": os.setpriority(os.PRIO_PROCESS, os.getppid(), 0)
        if word == "place": os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))
        if word == "send": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "/nowhere")
        if word == "message": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendmsg([b"x"], [], 0, "/nowhere")
        if word == "bind": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].bind("/nowhere/at/all")
        if word == "reconnect": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].connect("/nowhere")
        if word == "root": os.chroot("/nowhere")
        if word == "mount": self.call(ctypes.CDLL(None, use_errno=True).mount, b"none", b"/nowhere", b"tmpfs", 0, 0)
        if word in CALLS: self.call(ctypes.CDLL(None, use_errno=True).syscall, CALLS[word], -1, -1, -1, -1)
        if word == "powers":
            held = next(line for line in open("/proc/self/status") if line.startswith("CapPrm"))
            assert not int(held.split()[1], 16) & ~0b11011, held
        if word == "options": assert not [name for name in os.environ if name.startswith("TABA_SERVER_")]
        if word == "around": open(f"/proc/{os.getppid()}/environ", "rb").read()
        if word == "unix": socket.socket(socket.AF_UNIX)
        if word == "listen": socket.create_server(("127.0.0.1", 0))
        if word == "netlink": socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        if word == "itself": os.kill(os.getpid(), 0); resource.prlimit(os.getpid(), resource.RLIMIT_CPU); resource.getrlimit(0)
        if word == "map": mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE).close()
        if word == "pair":
            one, other = socket.socketpair()
            one.send(b"x"); assert other.recv(1) == b"x"
            one.close(); other.close()
        if word == "stop":
            for number in range(1, 32):
                if number not in (signal.SIGKILL, signal.SIGSTOP): signal.signal(number, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGSTOP)
        if word == "close": os.closerange(0, 64)
        if word == "flood":
            while True: os.write(1, bytes(1 << 16))
        if word == "forge":
            frame = struct.pack("<I", 3) + b"\\x92\\xc3\\x01"
            while True:
                for one in range(3, 64):
                    try: os.write(one, frame * 1000)
                    except OSError: pass
        if word == "connect": socket.create_connection(("127.0.0.1", int(os.environ["TABA_TEST_PORT"])), 10).close()
        if str(word).startswith("write"):
            with tempfile.TemporaryFile() as file: file.write(bytes(int(word[5:])))
        if str(word).startswith("open"):
            files = [open(os.devnull) for _ in range(int(word[4:]))]
            for file in files: file.close()
        if isinstance(word, float): assert type(word) is float, type(word)
    def call(self, function, *arguments):
        if function(*arguments) < 0: raise OSError(ctypes.get_errno(), "refused")
    def project(self, state, now):
        self.act(state[-1][1:] if state[-1].startswith("p") else "")
        if "rubbish" in state: return 17
        if "many" in state: return {"words": [[] for _ in range(300_000)]}
        if "deeper" in state:
            nested = []
            for _ in range(10_000): nested = [nested]
            return {"words": nested}
        if "deep" in state:
            nested = []
            for _ in range(70): nested = [nested]
            return {"words": nested}
        if "tuple" in state: return {"words": [{("a", 1): 2}]}
        return {"words": state}
    def aggregate(self, projections):
        return {"words": [word for one in projections for word in one["words"]]}
    def render(self, projection): return "|".join(projection["words"])
    def history(self, states, now):
        if states[0] == ["hcrash"]: os.abort()
        if "rubbish" in states[-1]: raise ValueError("rubbish")
        n = len(states) + (states[0] == ["hodd"])
        ones = [1] * n
        ever = Ever(count=ones, total=ones)
        return History(since=0, row=range(n), start=[now - 5] * n, end=[now] * n, count=ones, total=ones, ever=ever)

class Crowd(Spilling):
    """All values; crashes at 5."""
    type = "Crowd"
    def fold_array(self, states, rows, times, values, now):
        if (values == 5).any(): os.abort()
        return super().fold_array(states, rows, times, values, now)

odd, crowd = Odd(), Crowd()
'''

PATIENT = 250.0  # seconds for a fold: most tests are about what comes of it


class Odd(Handler):
    type = "Odd"


class Crowd(ArrayHandler):
    type = "Crowd"
    further_parts = 2


def work(*words: str) -> ForeignWork:
    """One State for each word."""
    columns = [(row, struct.pack("<d", 1.0), [word]) for row, word in enumerate(words)]
    return ForeignWork("Odd", Work([ABSENT] * len(words), columns), {})


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Logged:
    """A log that keeps what is written to it."""

    def __init__(self, lines: list[bytes]):
        self._lines = lines

    def info(self, line: str, **fields: Any) -> None:
        self._lines.append(line.format(**fields).encode())

    warn = error = info
