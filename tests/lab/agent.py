"""PID 1 of L1: runs one command for the launcher and reports how it ended.

Owns the mounts that depend on the launcher's options, the command's process, its pipes or pty, and the reaping of
orphans. It refuses nothing: the launcher is trusted. Invariant: the "exit" message is sent after the last byte of the
command's output was written to its port, and it says how many bytes that was.

Runs from L1's /run with the host's python3, so: standard library only, nothing of the checkout.
"""

import errno
import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time

PORT_DIR = "/sys/class/virtio-ports"
CHUNK = 65536
# How long output may stay open after the command's end (a daemon that it left behind may hold it) without a byte
# coming before the lab stops listening.
LINGER_S = 1.0


def open_port(name, flags):
    """Opens the virtio-console port of that name; the driver finds its ports while we already run."""
    while True:
        for node in os.listdir(PORT_DIR):
            with open("%s/%s/name" % (PORT_DIR, node), encoding="ascii") as file:
                if file.read().strip() == name and os.path.exists("/dev/" + node):
                    return os.open("/dev/" + node, flags)
        time.sleep(0.01)


def write_all(fd, data):
    """Writes all of data to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


class Output(threading.Thread):
    """Copies one stream of the command to its port; counts bytes."""

    def __init__(self, source, port):
        super().__init__(daemon=True)
        self.source = source
        self.port = open_port(port, os.O_WRONLY)
        self.count = 0
        self.last = time.monotonic()
        self.lock = threading.Lock()

    def run(self):
        while True:
            try:
                data = os.read(self.source, CHUNK)
            except OSError as error:  # EIO: the last process closed the pty; EBADF: close_source()
                if error.errno not in (errno.EIO, errno.EBADF):
                    raise
                return
            if not data:
                return
            self.last = time.monotonic()
            write_all(self.port, data)
            self.count += len(data)
            self.last = time.monotonic()

    def close_source(self):
        """The caller's end is gone: the command gets SIGPIPE at its next write."""
        with self.lock:
            if self.source >= 0:
                null = os.open("/dev/null", os.O_RDONLY)
                os.dup2(null, self.source)
                os.close(null)

    def finish(self):
        """Waits for the end of the stream, at most LINGER_S after its last byte."""
        while self.is_alive():
            self.join(0.02)
            if time.monotonic() - max(self.last, STATE["ended"]) > LINGER_S:
                return


class Input(threading.Thread):
    """Copies the port to the command's standard input until either end closes."""

    def __init__(self, sink, close_at_end):
        super().__init__(daemon=True)
        self.sink = sink
        self.close_at_end = close_at_end
        self.port = open_port("stdin", os.O_RDONLY)

    def run(self):
        try:
            while data := os.read(self.port, CHUNK):
                write_all(self.sink, data)
        except OSError as error:  # the command closed its standard input
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
        os.close(self.port)
        if self.close_at_end:
            os.close(self.sink)


STATE = {"ended": 0.0}


def set_size(fd, size):
    """Sets a pty's window size; size is [rows, columns]."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def run_quietly(*argv):
    """Runs a busybox applet; True if it succeeded."""
    return os.spawnv(os.P_WAIT, "/run/lab/busybox", ["busybox", *argv]) == 0


def write_file(path, text):
    """Writes a kernel knob; False if this kernel does not have it or refuses."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return True
    except OSError:
        return False


def prepare(order):
    """What the init script cannot know: the control groups' version, the modules' directory, huge pages."""
    modules = order["modules"]
    release = os.uname().release
    if os.path.isdir("/lib/modules"):
        run_quietly("mount", "-t", "tmpfs", "modules", "/lib/modules")
        os.symlink(modules, "/lib/modules/" + release)
    root = "/sys/fs/cgroup"
    run_quietly("mount", "-t", "cgroup2", "-o", "nsdelegate,memory_recursiveprot", "cgroup2", root)
    with open(root + "/cgroup.controllers", encoding="ascii") as file:
        for controller in file.read().split():
            write_file(root + "/cgroup.subtree_control", "+" + controller)
    write_file("/proc/sys/kernel/hostname", "lab")


def set_environment(order):
    os.environ.clear()
    os.environ.update(order["env"])


def child(order, fds, terminal):
    """In the forked child: becomes the command. Exits 126 or 127 as a shell does if it cannot."""
    os.setsid()
    if terminal is not None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 256)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except OSError:
                pass
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    argv = order["argv"]
    try:
        os.chdir(order["cwd"])
        os.execvpe(argv[0], argv, order["env"])
    except FileNotFoundError:
        os.write(2, b"lab: %s: not found in L1\n" % os.fsencode(argv[0]))
        os._exit(127)
    except OSError as error:
        os.write(2, b"lab: %s: %s\n" % (os.fsencode(argv[0]), error.strerror.encode()))
        os._exit(126)


def start(order):
    """Starts the command; returns its pid, the pty's master (or None) and the two Output threads."""
    master = slave = None
    fds, ours, theirs = [], {}, []
    if "pty" in order["streams"]:
        master, slave = pty.openpty()
        set_size(master, order["size"])
    for number, kind in enumerate(order["streams"]):
        if kind == "pty":
            fds.append(slave)
            continue
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
        inner, outer = (reader, writer) if number == 0 else (writer, reader)
        fds.append(inner)
        theirs.append(inner)
        ours[number] = outer
    pid = os.fork()
    if pid == 0:
        child(order, fds, slave)
    for fd in theirs + ([slave] if slave is not None else []):
        os.close(fd)
    Input(ours.get(0, master), 0 in ours).start()
    outputs = []
    for number, port in ((1, "stdout"), (2, "stderr")):
        if number in ours:
            outputs.append(Output(ours[number], port))
        elif number == 1 or order["streams"][1] != "pty":
            outputs.append(Output(master, port))
        else:
            outputs.append(None)
    for output in filter(None, outputs):
        output.start()
    return pid, master, outputs


def reap(command):
    """Reaps every child that has ended; returns the command's status if it was among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == command:
            status = os.waitstatus_to_exitcode(code)


class Control:
    """The control port: one JSON object per line, each way."""

    def __init__(self):
        self.fd = open_port("control", os.O_RDWR)
        self.rest = b""

    def send(self, **message):
        write_all(self.fd, json.dumps(message).encode() + b"\n")

    def receive(self):
        """Blocks for more bytes; returns the messages that are complete."""
        self.rest += os.read(self.fd, CHUNK)
        *lines, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in lines]


def serve(control, pid, master, outputs):
    """Forwards signals and sizes until the command ends; returns its status as subprocess does (negative: signal)."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(wake_read, select.POLLIN)
    poll.register(control.fd, select.POLLIN)
    status = reap(pid)
    while status is None:
        ready = [fd for fd, _ in poll.poll()]
        if wake_read in ready:
            os.read(wake_read, CHUNK)
            status = reap(pid)
        if control.fd in ready:
            for message in control.receive():
                obey(message, pid, master, outputs)
    return status


def obey(message, pid, master, outputs):
    if "signal" in message:
        os.kill(pid, message["signal"])
    elif "size" in message and master is not None:
        set_size(master, message["size"])
    elif "close" in message and outputs[message["close"] - 1] is not None:
        outputs[message["close"] - 1].close_source()


def main():
    control = Control()
    control.send(booted=True)
    order = None
    while order is None:
        for message in control.receive():
            order = message
    prepare(order)
    pid, master, outputs = start(order)
    control.send(started=True)
    status = serve(control, pid, master, outputs)
    STATE["ended"] = time.monotonic()
    for output in filter(None, outputs):
        output.finish()
    os.sync()
    control.send(exit=status, counts=[output.count if output else 0 for output in outputs])
    while True:  # the launcher ends the machine
        signal.pause()


try:
    main()
except BaseException:  # PID 1 must not end silently: the traceback goes to the console, the panic ends the machine
    import traceback

    with open("/dev/console", "w", encoding="utf-8") as console:
        traceback.print_exc(file=console)
    sys.exit(1)
