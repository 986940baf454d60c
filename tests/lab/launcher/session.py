"""One command in L1, as the caller sees it: streams, terminal, signals, deadlines, exit status.

Owns the caller's descriptors 0 to 2 and the control port. Invariant: when `run` returns a status, every byte that the
command wrote has been written to the caller (or the caller closed its end).
"""

import dataclasses
import errno
import os
import select
import signal
import socket
import termios
import threading
import time
import tty

CHUNK = 65536
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# This many signals of ENDING, or this long after the first of them, and L1 is killed: the command had its chance.
LAST_SIGNAL = 3
GRACE_S = 20.0


class Failure(Exception):
    """The lab's own failure, with the exit status that it means."""

    def __init__(self, message, status=125, by_signal=False):
        super().__init__(message)
        self.status, self.by_signal = status, by_signal


@dataclasses.dataclass
class Order:
    """What is to be run in L1. `streams` has a letter per standard stream: t (terminal) or p (pipe)."""

    directory: str
    streams: str
    arguments: list
    environment: dict

    def encode(self):
        """As the agent reads it: see agent.c."""
        rows, columns = 24, 80
        if self.streams[0] == "t":
            columns, rows = os.get_terminal_size(0)
        fields = [self.directory, self.streams, str(rows), str(columns), str(len(self.arguments)), *self.arguments,
                  *(key + "=" + value for key, value in self.environment.items())]
        return b"".join(os.fsencode(field) + b"\0" for field in fields)


def receive(sock):
    """The next bytes; none when L1 is gone."""
    try:
        return sock.recv(CHUNK)
    except ConnectionResetError:
        return b""


class Copy(threading.Thread):
    """L1's output port to one of the caller's descriptors."""

    def __init__(self, sock, fd, closed):
        super().__init__(daemon=True)
        self.sock, self.fd, self.closed = sock, fd, closed
        self.count = 0

    def run(self):
        discard = False
        while data := receive(self.sock):
            view = memoryview(data)
            while view and not discard:
                try:
                    view = view[os.write(self.fd, view):]
                except BlockingIOError:  # somebody made the caller's descriptor non-blocking
                    select.select([], [self.fd], [])
                except OSError:  # the reader is gone: so is the command's
                    discard = True
                    self.closed(self.fd)
            self.count += len(data)


def feed(sock):
    """The caller's standard input to L1's port, with its end."""
    try:
        while True:
            try:
                data = os.read(0, CHUNK)
            except BlockingIOError:
                select.select([0], [], [])
                continue
            if not data:
                break
            sock.sendall(data)
    except OSError as error:
        if error.errno != errno.EIO:  # not the caller's terminal that is gone, but L1
            return
    sock.shutdown(socket.SHUT_WR)


class Session:
    """Runs `order` (see the agent) in `machine`; timeouts are in seconds, `say` takes a line for the curious."""

    def __init__(self, machine, order, boot_timeout, timeout, say):
        self.machine, self.order, self.say = machine, order, say
        self.boot_timeout, self.timeout = boot_timeout, timeout
        self.control = machine.sockets["control"]
        self.lock = threading.Lock()
        self.started = None
        self.ended = None  # (status, bytes on standard output, bytes on standard error)
        self.signals = []
        self.first_signal = None
        self.rest = b""
        self.saved = None
        self.outputs = [Copy(machine.sockets[name], fd, self._closed) for name, fd in (("stdout", 1), ("stderr", 2))]

    def _send(self, line, data=b""):
        with self.lock:
            try:
                self.control.sendall(line.encode() + b"\n" + data)
            except OSError:
                pass  # L1 is gone; the loop sees it

    def _closed(self, fd):
        self._send("close %d" % fd)

    def _send_size(self):
        size = os.get_terminal_size(0)
        self._send("size %d %d" % (size.lines, size.columns))

    def run(self):
        """Returns the command's exit status; raises Failure when L1 fails."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGWINCH, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        self.began = time.monotonic()
        try:
            while not self._complete():
                ready = [fd for fd, _ in poll.poll(1000 * self._patience())]
                if wake_read in ready:
                    for number in os.read(wake_read, 256):
                        self._signal(number)
                if self.control.fileno() in ready:
                    self._receive()
                if self.machine.qemu.poll() is not None:
                    raise Failure("L1 died")
                when, failure = self._deadline()
                if time.monotonic() > when:
                    raise failure
        finally:
            if self.saved is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, self.saved)
        return self.ended[0] if self.ended[0] >= 0 else 128 - self.ended[0]

    def _complete(self):
        """The command has ended and the caller has all its output."""
        return self.ended is not None and all(
            output.count >= total for output, total in zip(self.outputs, self.ended[1:]))

    def _deadline(self):
        """What happens next if nothing else does: when, and the Failure that it is."""
        if not self.started:
            return self.began + self.boot_timeout, Failure("L1 did not come up within %d s" % self.boot_timeout)
        end = (self.started + self.timeout, Failure("no end within %d s (--timeout)" % self.timeout, 124))
        if not self.first_signal:
            return end
        message = "the command outlived signal %d by %d s" % (self.signals[0], GRACE_S)
        killed = (self.first_signal + GRACE_S, Failure(message, 128 + self.signals[0]))
        return min(end, killed, key=lambda pair: pair[0])

    def _patience(self):
        """How long to sleep, in seconds, at most an hour (poll(2) counts milliseconds in 31 bits); the output threads do not
        wake us."""
        if self.ended is not None:
            return 0.01
        return min(max(0.0, self._deadline()[0] - time.monotonic()) + 0.01, 3600.0)

    def _signal(self, number):
        if number == signal.SIGWINCH and self.saved is not None:
            self._send_size()
        elif number in FORWARDED:
            if number in ENDING:
                self.signals.append(number)
                self.first_signal = self.first_signal or time.monotonic()
            if not self.started or self.ended or len(self.signals) >= LAST_SIGNAL:
                raise Failure("ended by signal %d" % number, 128 + number, by_signal=True)
            self.say("signal %d goes to the command" % number)
            self._send("signal %d" % number)

    def _receive(self):
        """Handles what the agent says."""
        data = receive(self.control)
        if not data:
            self.machine.qemu.wait(5)
            raise Failure("L1 died")
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"booted":
                data = self.order.encode()
                self._send("order %d" % len(data), data)
            elif word == b"started":
                self._start()
            elif word == b"exit":
                self.ended = tuple(map(int, numbers))

    def _start(self):
        """The command runs: only from now on is the terminal its own."""
        self.started = time.monotonic()
        if "t" in self.order.streams:
            self.saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
            self._send_size()
        for output in self.outputs:
            output.start()
        threading.Thread(target=feed, args=(self.machine.sockets["stdin"],), daemon=True).start()
