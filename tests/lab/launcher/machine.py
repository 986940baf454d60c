"""The L1 machine: QEMU and its virtiofsd.

Owns their command lines, the sockets that join them to the launcher, and their end. It knows nothing of commands or
terminals. Invariant: neither process outlives the launcher (parent-death signal, and no file has to be removed).
"""

import collections
import os
import socket
import subprocess
import threading

import emulator

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
PORTS = ("control", "stdin", "stdout", "stderr")
CONSOLE_LINES = 200

# maxcpus=1: the agent starts the others once the kernel has patched itself; noreplace-smp and lpj: without them each
# start patches and measures for a second.
CMDLINE = (
    "console=ttyS0 maxcpus=1 noreplace-smp lpj=10000000 quiet loglevel=4 panic=-1 oops=panic nokaslr tsc=reliable no_timer_check nowatchdog "
    "rcupdate.rcu_cpu_stall_suppress=1 audit=0 random.trust_cpu=on lsm=landlock,lockdown,yama,loadpin,safesetid,bpf "
    "transparent_hugepage=madvise reboot=t cryptomgr.notests"
)


def children(*argv, cpu=None, **kwargs):
    """Starts a process that the kernel kills when the launcher dies, outside the terminal's process group; on one CPU of
    this machine if told so."""
    alone = ["taskset", "-c", str(cpu)] if cpu is not None else []
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *alone, *argv], start_new_session=True, **kwargs)


def one_cpu():
    """The CPU that L1's processors share. When two of them really run at once, the emulator's nested virtualization now and
    then breaks L1's kernel (a page fault without end, a broken stack); taking turns on one CPU they do not, and a guest
    with one vCPU is hardly slower for it. HUSK_LAB_CPU chooses it, for those who run several machines."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[int(os.environ.get("HUSK_LAB_CPU") or os.getpid()) % len(cpus)]


class Console:
    """The last lines that L1's kernel printed."""

    def __init__(self, sock, echo):
        self.lines = collections.deque(maxlen=CONSOLE_LINES)
        self.rest = b""
        self.sock = sock
        self.echo = echo
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while data := self._receive():
            if self.echo:
                os.write(2, data)
            *lines, self.rest = (self.rest + data).split(b"\n")
            self.lines.extend(lines)

    def _receive(self):
        try:
            return self.sock.recv(65536)
        except ConnectionResetError:
            return b""

    def tail(self, count):
        """The last lines as text; waits a moment for what is under way."""
        self.thread.join(0.3)
        lines = [*self.lines, self.rest] if self.rest else [*self.lines]
        return [line.rstrip(b"\r").decode(errors="replace") for line in lines[-count:]]


class Machine:
    """A running L1. `sockets` maps each of PORTS to a connected stream socket."""

    def __init__(self, kernel_dir, initramfs, options):
        self.sockets = {}
        self.log = None
        share, daemon_end = self._start_virtiofsd()
        self.virtiofsd = daemon_end
        passed = [share]
        argv = [*emulator.command(), *self._fixed(options), "-kernel", kernel_dir + "/kernel", "-initrd", initramfs,
                "-append", " ".join([CMDLINE, "lab.cgroup=" + options.cgroup, options.append]),
                "-chardev", "socket,id=fs,fd=%d" % share.fileno(),
                "-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024",
                "-device", "virtio-serial-pci,max_ports=8"]
        for number, name in enumerate(PORTS, 1):
            ours, theirs = socket.socketpair()
            self.sockets[name] = ours
            passed.append(theirs)
            argv += ["-chardev", "socket,id=%s,fd=%d" % (name, theirs.fileno()),
                     "-device", "virtserialport,nr=%d,chardev=%s,name=%s" % (number, name, name)]
        ours, theirs = socket.socketpair()
        passed.append(theirs)
        argv += ["-chardev", "socket,id=tty,fd=%d" % theirs.fileno(), "-serial", "chardev:tty"]
        self.qemu = children(*argv, cpu=one_cpu(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             pass_fds=[sock.fileno() for sock in passed])
        for sock in passed:
            sock.close()
        self.console = Console(ours, options.console)

    @staticmethod
    def _start_virtiofsd():
        """Starts the file server on the host's whole root; returns our connected end and the process."""
        # An abstract address: nothing in the file system to be left behind.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")
        listener.listen(1)
        process = children(VIRTIOFSD, "--fd=%d" % listener.fileno(), "-f", "-o", "source=/", "-o", "cache=always", "-o", "timeout=1", "-o", "xattr",
                           "-o", "sandbox=chroot", "-o", "log_level=err", stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[listener.fileno()])
        share = socket.socket(socket.AF_UNIX)
        share.connect(listener.getsockname())
        listener.close()
        return share, process

    @staticmethod
    def _fixed(options):
        """The machine without its files: CPU, memory, clock."""
        argv = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-M", "q35,smm=off,sata=off,usb=off,i8042=off,vmport=off,hpet=off"]
        if options.deterministic:
            argv += ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off", "-smp", "1"]
        else:
            argv += ["-accel", "tcg,thread=multi,tb-size=512", "-smp", options.smp]
        # Without erms and fsrm the kernels copy eight bytes an instruction; `rep movsb` is emulated byte by byte. XSAVE is
        # broken for guests: QEMU does not intercept XSETBV, so KVM never learns what a guest enabled and enables less again.
        # A guest that sees AVX finds its sizes wrong, says so at length and does without XSAVE; one that does not see AVX
        # finds nothing and loses its SSE registers. So guests have neither, unless a monitor insists on XSAVE.
        cpu = "max,-erms,-fsrm" if options.xsave else "max,-erms,-fsrm,-xsave"
        argv += ["-cpu", cpu, "-m", "%dM" % options.memory]
        share = options.memory // (2 if options.numa else 1)
        for node in range(2 if options.numa else 1):
            argv += ["-object", "memory-backend-memfd,id=m%d,size=%dM,share=on" % (node, share)]
        if options.numa:
            half = options.cpus // 2
            argv += ["-numa", "node,nodeid=0,cpus=0-%d,memdev=m0" % (half - 1),
                     "-numa", "node,nodeid=1,cpus=%d-%d,memdev=m1" % (half, options.cpus - 1),
                     "-numa", "dist,src=0,dst=1,val=20"]
        else:
            argv += ["-machine", "memory-backend=m0"]
        return argv

    def complaint(self):
        """What QEMU or virtiofsd printed; to be asked when they are dead."""
        text = b"".join(stream.read() for stream in (self.qemu.stdout, self.virtiofsd.stderr))
        return text.decode(errors="replace").strip()

    def end(self):
        """Kills both and waits for them."""
        for process in (self.qemu, self.virtiofsd):
            if process.poll() is None:
                process.kill()
            process.wait()
