"""The lab's launcher: options in, a command run in L1, its exit status out.

Owns the command line and what of the caller's surroundings goes along (directory, environment, terminal).
"""

import argparse
import os
import subprocess
import sys
import time

from machine import Machine
from session import Failure, Order, Session

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(os.path.dirname(HERE))
TAIL_LINES = 40
# QEMU 7.2's TCG now and then loses a CPU flag when an instruction faults (mended in later releases); a kernel that
# boots meets it about once in a hundred times.
BOOT_ATTEMPTS = 3
# Besides HUSK_*. The rest of the caller's environment stays outside: runs are to be alike.
PASSED = ("TERM", "HOME", "LANG", "USER", "LOGNAME", "XDG_CACHE_HOME", "RUST_BACKTRACE", "RUST_LOG", "CI")


def options():
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="tests/lab/run", description="Runs a command in L1, a machine with real KVM.")
    parser.add_argument("--cpus", type=int, default=2, help="L1's CPUs (2)")
    parser.add_argument("--threads", type=int, default=1, help="hardware threads per core (1)")
    parser.add_argument("--memory", type=int, default=6144, metavar="MIB", help="L1's memory (6144)")
    parser.add_argument("--deterministic", action="store_true",
                        help="one CPU whose clock counts instructions: steady figures, for benchmarks")
    parser.add_argument("--numa", "--nested-numa", action="store_true", help="two NUMA nodes, half of everything each")
    parser.add_argument("--kernel", default="6.12", choices=("6.12", "6.1"), help="Debian's cloud kernel (6.12)")
    parser.add_argument("--cgroup", default="v2", choices=("v2", "v1", "hybrid"), help="control groups in L1 (v2)")
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="for the command (1800)")
    parser.add_argument("--boot-timeout", type=float, default=90, metavar="S", help="for L1 (90)")
    parser.add_argument("--xsave", action="store_true", help="leave XSAVE on, which Firecracker asks KVM for; it does not work in guests")
    parser.add_argument("--env", action="append", default=[], metavar="K[=V]", help="pass one more variable")
    parser.add_argument("--append", default="", metavar="WORDS", help="more words for L1's kernel command line")
    parser.add_argument("--console", action="store_true", help="print L1's console on standard error")
    parser.add_argument("--verbose", action="store_true", help="say how long each step took and what is passed on")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    parsed = parser.parse_args()
    if parsed.command[:1] == ["--"]:
        del parsed.command[0]
    if not parsed.command:
        parser.error("no command; write it after --")
    if parsed.numa and parsed.cpus % 2:
        parser.error("--numa shares the CPUs between two nodes: --cpus must be even")
    parsed.smp = "%d,sockets=1,cores=%d,threads=%d" % (parsed.cpus, parsed.cpus // parsed.threads, parsed.threads)
    if parsed.numa:
        parsed.smp = "%d,sockets=2,cores=%d,threads=%d" % (parsed.cpus, parsed.cpus // 2 // parsed.threads, parsed.threads)
    return parsed


def environment(extra):
    """The command's environment."""
    env = {key: value for key, value in os.environ.items() if key in PASSED or key.startswith("HUSK_")}
    for item in extra:
        key, given, value = item.partition("=")
        env[key] = value if given else os.environ.get(key, "")
    target = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", TOP + "/target")) + "/x86_64-unknown-linux-musl"
    # husk; the tests' runner and tools, as `make test` builds them; the benchmark.
    env["PATH"] = ":".join(["/run/lab/bin", TOP + "/target/dist", target + "/debug", target + "/release", HERE,
                            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    env["HUSK_LAB"] = "1"
    # Emulated guests boot some ten times slower; husk's own default is for hardware.
    env.setdefault("HUSK_BOOT_TIMEOUT", "30s")
    return env


def streams():
    """Which of the standard streams are to be a terminal in L1 too: without a terminal to read from, none."""
    return "".join("t" if os.isatty(0) and os.isatty(fd) else "p" for fd in range(3))


def attempt(opts, kernel_dir, initramfs, last):
    """Boots L1 and runs the command; returns its status, or None if L1 did not come up and this was not the last try."""
    began = time.monotonic()
    machine = Machine(kernel_dir, initramfs, opts)
    order = Order(os.getcwd(), streams(), opts.command, environment(opts.env))
    say = (lambda line: print("lab: " + line, file=sys.stderr)) if opts.verbose else (lambda line: None)
    session = Session(machine, order, opts.boot_timeout, opts.timeout, say)
    try:
        status = session.run()
        say("command started after %.1f s, ran %.1f s" % (session.started - began,
                                                        time.monotonic() - session.started))
        return status
    except Failure as failure:
        machine.end()
        print("lab: %s" % failure, file=sys.stderr)
        if failure.by_signal:
            return failure.status
        for line in [*machine.complaint().splitlines(), *machine.console.tail(TAIL_LINES)]:
            print("lab| " + line, file=sys.stderr)
        return failure.status if session.started or last else None
    finally:
        machine.end()


def run(opts):
    """Returns the command's status. A boot may be tried again, since nothing of the caller's has run then."""
    kernel_dir, initramfs = subprocess.run([HERE + "/setup", opts.kernel], stdin=subprocess.DEVNULL, check=True,
                                           stdout=subprocess.PIPE, text=True).stdout.split("\n")[:2]
    for number in range(1, BOOT_ATTEMPTS + 1):
        status = attempt(opts, kernel_dir, initramfs, number == BOOT_ATTEMPTS)
        if status is not None:
            return status
        print("lab: L1 did not come up; starting it again", file=sys.stderr)
    raise AssertionError("the last attempt always has a status")


def main():
    """Ends without waiting for threads that may be blocked on the caller's descriptors."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed by the caller: no socket of ours may come to stand in its place
            os.open(os.devnull, os.O_RDWR)
    try:
        status = run(options())
    except subprocess.CalledProcessError:
        status = 125
    sys.stderr.flush()
    os._exit(status)


main()
