"""The QEMU that runs L1: the system's, with one instruction less.

Owns a copy of the system's binary, kept by content beside L1's kernel. Refuses nothing: a QEMU whose code does not have the
instruction, or more than one like it, is used as it is, and so is one where there is no room for a copy; a line
says so. Invariant: no file of the system is changed.

The emulation of VMRUN, when it delivers an interrupt that KVM injects (EVENTINJ), also notes the vector as that of a pending
exception and never takes the note back. If a device asks the emulator's loop for attention before the next VMEXIT, the loop
finds the note and delivers the interrupt again, though the guest has interrupts disabled: a handler interrupts itself and waits
for its own lock, or an interrupt comes between the return's instructions. With a clock of counted instructions the loop, having
the note, does not even see that its share is used up, and the machine's time stands still.
"""

import contextlib
import glob
import hashlib
import os
import re
import shutil
import sys

SYSTEM = "qemu-system-x86_64"
# movzbl %r12b,%esi; mov %r13d,error_code; mov %esi,exception_index; movl $0,exception_is_int; movq $-1,exception_next_eip: this
# order of five stores is found once in a build of QEMU.
NOTE = re.compile(rb"\x41\x0f\xb6.\x44\x89.{5}(\x89.{5})\xc7\x83.{4}\0\0\0\0\x48\xc7\x83.{4}\xff\xff\xff\xff", re.DOTALL)
# One instruction that does nothing, six bytes long.
NOTHING = b"\x66\x0f\x1f\x44\x00\x00"


def without_the_note(code):
    """The binary with the store replaced; None where it is not found exactly once."""
    places = [match.start(1) for match in NOTE.finditer(code)]
    if len(places) != 1:
        return None
    at = places[0]
    return code[:at] + NOTHING + code[at + len(NOTHING):]


def cache():
    """Where setup keeps what it unpacks."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "husk", "lab")


def command():
    """The words that start QEMU: the mended copy with the system's firmware and modules, or the system's binary."""
    system = shutil.which(SYSTEM)
    if system is None:
        return [SYSTEM]
    system = os.path.realpath(system)
    with open(system, "rb") as file:
        code = file.read()
    copy = os.path.join(cache(), "qemu-" + hashlib.sha256(code + NOTHING).hexdigest()[:16])
    if not os.path.exists(copy) and not write(copy, without_the_note(code)):
        return [system]
    top = os.path.dirname(os.path.dirname(system))
    words = [copy, "-L", os.path.join(top, "share", "qemu"), "-L", os.path.join(top, "share", "seabios")]
    modules = glob.glob(os.path.join(top, "lib", "*", "qemu", "accel-tcg-x86_64.so"))
    return ["env", "QEMU_MODULE_DIR=" + os.path.dirname(modules[0]), *words] if modules else words


def write(path, code):
    """Puts a program in place at once, so that two who start together do no harm; False, and a line, where that cannot be."""
    why = "its code is not the one that is known" if code is None else None
    draft = "%s.%d" % (path, os.getpid())
    try:
        if code is not None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(draft, "wb") as file:
                file.write(code)
            os.chmod(draft, 0o755)
            os.rename(draft, path)
    except OSError as error:
        why = "%s: %s (free some room, or name another directory by XDG_CACHE_HOME)" % (path, error.strerror)
        with contextlib.suppress(OSError):
            os.remove(draft)
    if why:
        print("lab: this machine's QEMU runs unmended, and a guest may get an interrupt twice and hang: " + why, file=sys.stderr)
    return why is None
