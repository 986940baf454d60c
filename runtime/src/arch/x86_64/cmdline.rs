//! The kernel command line: Husk's default, and the declarations of devices.
//!
//! Refuses a command line that the kernel would cut, or that holds bytes which are not part of one line. Invariant: what
//! [`build`] returns fits [`CMDLINE_BYTES`] with its terminating zero.

use super::CMDLINE_BYTES;
use crate::arch::Found;
use husk_protocol::spec::ConsoleDevice;

/// What every default command line says:
/// a reset ends the machine by a triple fault, at once, and a panic resets; the CPU's random numbers are trusted, there is nothing else to seed from; the clock is the host's and needs
/// no watchdog; there is no timer interrupt to check.
const COMMON: &str = "reboot=t panic=-1 random.trust_cpu=on tsc=reliable no_timer_check";
/// Console off: no messages on the way (each byte is an exit), and the 8250 driver does not even probe; a panic still
/// prints, by the early console.
const CONSOLE_OFF: &str = "quiet 8250.nr_uarts=0 earlyprintk=serial,ttyS0,115200,keep";
/// Console on, for any kernel.
const CONSOLE_SERIAL: &str = "console=ttyS0";
/// Console on, for a kernel with a virtio console. What it prints before that is up stands on the screen, which costs no
/// exit; Linux would print it again, but its virtio console throws away what comes before it is wholly registered. So the
/// screen is kept until then, and after, and printed before the console's first words.
const CONSOLE_VIRTIO: &str = "console=hvc0 8250.nr_uarts=0 earlyprintk=vga,keep";

/// For a kernel that memory is plugged into: it is online as soon as it is there, three parts of it of the kind that can be
/// plugged out again to one of the kind that the kernel itself needs, of which else it would run out.
pub const HOTPLUG: &str = "memhp_default_state=online memory_hotplug.online_policy=auto-movable";

/// Not a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// It would be cut.
    #[error(
        "boot-source.boot_args: the kernel command line has {length} bytes with the device declarations; at most {} are allowed",
        CMDLINE_BYTES - 1
    )]
    TooLong {
        /// Its bytes.
        length: usize,
    },
    /// A byte that no command line holds.
    #[error("boot-source.boot_args: byte {at} is {byte:#04x}; one line without NUL is allowed")]
    NotOneLine {
        /// Its place, from 0.
        at: usize,
        /// Its value.
        byte: u8,
    },
}

/// The command line when the spec has none.
#[must_use]
pub fn default_args(console: Option<ConsoleDevice>) -> String {
    let console = match console {
        None => CONSOLE_OFF,
        Some(ConsoleDevice::Serial) => CONSOLE_SERIAL,
        Some(ConsoleDevice::Virtio) => CONSOLE_VIRTIO,
    };
    format!("{COMMON} {console}")
}

/// Whether `args` is one line: no NUL, carriage return or newline.
///
/// # Errors
/// The first byte that is not allowed.
pub fn check(args: &str) -> Result<(), CmdlineError> {
    match args.bytes().enumerate().find(|(_, byte)| matches!(byte, 0 | b'\n' | b'\r')) {
        Some((at, byte)) => Err(CmdlineError::NotOneLine { at, byte }),
        None => Ok(()),
    }
}

/// Keeps a kernel from looking for a PCI bus that is not there.
const NO_PCI: &str = "pci=off";

/// Whether `args` keep the kernel from looking for a PCI bus.
#[must_use]
pub fn turns_pci_off(args: &str) -> bool {
    split(args).0.split_ascii_whitespace().any(|word| word == NO_PCI)
}

/// What is for the kernel, and what follows ` -- ` and is for PID 1.
fn split(args: &str) -> (&str, Option<&str>) {
    args.split_once(" -- ").map_or((args, None), |(kernel, init)| (kernel, Some(init)))
}

/// `args` with what the kernel has to know of its devices: nothing of those on a PCI bus; else that there is none, unless `args`
/// say something of it, and each device's place (kernel: `virtio_mmio.device=`, `drivers/virtio/virtio_mmio.c`).
/// What follows ` -- ` in `args` is for PID 1 and stays last.
///
/// # Errors
/// [`CmdlineError::TooLong`].
pub fn build(args: &str, devices: Found<'_>) -> Result<String, CmdlineError> {
    let (kernel, init) = split(args);
    let mut words = vec![kernel.trim_end().to_owned()];
    let said = kernel.split_ascii_whitespace().any(|word| word.starts_with("pci="));
    if devices != Found::Pci && !said {
        words.push(NO_PCI.to_owned());
    }
    let declared =
        |slot: &crate::arch::Slot| format!("virtio_mmio.device=4K@{:#x}:{}", slot.address, slot.irq);
    words.extend(devices.slots().iter().map(declared));
    words.retain(|word| !word.is_empty());
    let mut line = words.join(" ");
    if let Some(init) = init {
        line.push_str(" -- ");
        line.push_str(init);
    }
    if line.len() >= CMDLINE_BYTES { Err(CmdlineError::TooLong { length: line.len() }) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Slot;

    const SLOT: Slot = Slot { address: 0xd000_0000, irq: 5 };
    const NONE: Found<'_> = Found::Mmio(&[]);

    #[test]
    fn devices_are_declared() {
        let with = |args| build(args, Found::Mmio(&[SLOT])).unwrap();
        assert_eq!(with("quiet"), "quiet pci=off virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(with(""), "pci=off virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(with("a -- b"), "a pci=off virtio_mmio.device=4K@0xd0000000:5 -- b");
    }

    #[test]
    fn what_is_said_of_pci_is_said_once() {
        let with = |args, devices| build(args, devices).unwrap();
        assert_eq!(with("pci=off quiet", NONE), "pci=off quiet");
        assert_eq!(with("pci=conf1", NONE), "pci=conf1");
        assert_eq!(with("quiet -- pci=off", NONE), "quiet pci=off -- pci=off");
        assert_eq!(with("quiet", Found::Pci), "quiet");
        assert_eq!(with("pci=conf1 -- a", Found::Pci), "pci=conf1 -- a");
        assert!(turns_pci_off("quiet pci=off") && turns_pci_off("pci=off -- x"));
        assert!(!turns_pci_off("pci=conf1 xpci=off") && !turns_pci_off("quiet -- pci=off"));
    }

    #[test]
    fn the_default_with_all_devices_fits() {
        let slots: Vec<Slot> = (0..super::super::MAX_SLOTS).filter_map(super::super::slot).collect();
        assert_eq!(slots.len(), 19);
        for console in [None, Some(ConsoleDevice::Serial), Some(ConsoleDevice::Virtio)] {
            build(&format!("{} {HOTPLUG}", default_args(console)), Found::Mmio(&slots)).unwrap();
        }
    }

    #[test]
    fn the_longest_line_has_2047_bytes() {
        assert_eq!(build(&"x".repeat(2047), Found::Pci).unwrap().len(), 2047);
        assert_eq!(build(&"x".repeat(2048), Found::Pci), Err(CmdlineError::TooLong { length: 2048 }));
        assert_eq!(build(&"x".repeat(2040), NONE), Err(CmdlineError::TooLong { length: 2048 }));
    }

    #[test]
    fn nul_and_newline_are_refused_by_place() {
        assert_eq!(check("a\0b"), Err(CmdlineError::NotOneLine { at: 1, byte: 0 }));
        assert_eq!(check("ab\n"), Err(CmdlineError::NotOneLine { at: 2, byte: b'\n' }));
        assert_eq!(check("quiet init=/sbin/init"), Ok(()));
    }
}
