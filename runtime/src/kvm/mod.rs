//! KVM: one virtual machine, its memory slots and its event descriptors. No policy.
//!
//! Owns the list of capabilities that Husk needs, checked once. Refuses a descriptor that is not /dev/kvm. Invariant: guest
//! memory given to [`Vm::add_memory`] is kept alive by the [`Vm`] itself, and what [`Vm::add_images`] is given the guest
//! cannot write to.

use crate::memory::{GuestMemory, Hotplug, Image};
use kvm_bindings::{CpuId, KVM_MEM_READONLY, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// Times that an interrupted KVM_CREATE_VM is tried again (it fails with EINTR when a signal is pending).
const CREATE_VM_TRIES: u32 = 10;
/// Entries of the CPUID tables that KVM is asked for; KVM says E2BIG if it has more.
const CPUID_ENTRIES: usize = 256;
/// Where KVM puts the three pages of its task state segment: in the MMIO gap, below the BIOS that a PC would have.
#[cfg(target_arch = "x86_64")]
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What Husk cannot do without.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    #[cfg(target_arch = "x86_64")]
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    #[cfg(target_arch = "x86_64")]
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    #[cfg(target_arch = "x86_64")]
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor does not answer as /dev/kvm does.
    #[error("the descriptor given as /dev/kvm is not /dev/kvm (its API version is {version}; KVM's is 12)")]
    NotKvm {
        /// What KVM_GET_API_VERSION said.
        version: i32,
    },
    /// The host's KVM is too old or of another kind.
    #[error("this KVM lacks {0}, which Husk needs")]
    Capability(&'static str),
    /// The host's KVM takes fewer vCPUs or memory slots.
    #[error("this KVM allows {allowed} {what}, and {wanted} are asked for")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are asked for.
        wanted: usize,
        /// How many there may be.
        allowed: usize,
    },
    /// An ioctl failed.
    #[error("{call}: {source}")]
    Call {
        /// Name of the ioctl, and what it was for.
        call: String,
        /// What it said.
        source: kvm_ioctls::Error,
    },
}

/// An adapter for `map_err` that names the ioctl.
pub fn call(name: &str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError + '_ {
    move |source| KvmError::Call { call: name.to_owned(), source }
}

/// /dev/kvm, found fit.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Takes the open /dev/kvm and checks its capabilities.
    ///
    /// # Errors
    /// [`KvmError::NotKvm`] and [`KvmError::Capability`].
    pub fn new(kvm: OwnedFd) -> Result<Self, KvmError> {
        #[expect(unsafe_code, reason = "kvm-ioctls takes a number")]
        // SAFETY: the number is of a descriptor that was owned and is given away here.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(KvmError::NotKvm { version });
        }
        match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some((_, name)) => Err(KvmError::Capability(name)),
            None => Ok(Self { kvm }),
        }
    }

    /// Makes a virtual machine with an interrupt controller in the kernel and no timer (PIT).
    ///
    /// # Errors
    /// What KVM says; `EINTR` is tried again.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        let mut tries = CREATE_VM_TRIES;
        let fd = loop {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR && tries > 0 => tries -= 1,
                other => break other.map_err(call("KVM_CREATE_VM"))?,
            }
        };
        #[cfg(target_arch = "x86_64")]
        {
            fd.set_tss_address(TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))?;
            fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        }
        Ok(Vm {
            fd: Arc::new(fd),
            max_vcpus: self.kvm.get_max_vcpus(),
            max_slots: self.kvm.get_nr_memslots(),
            memory: None,
            images: Vec::new(),
            hotplug: None,
        })
    }

    /// What a guest's CPUID may say on this host.
    ///
    /// # Errors
    /// What KVM says.
    #[cfg(target_arch = "x86_64")]
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Whether the local APIC's timer can be given deadlines in time-stamp-counter ticks.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// An interrupt line of a virtual machine.
#[derive(Debug)]
pub struct IrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
    alone: Mutex<()>,
}

impl IrqLine {
    /// Raises it and lowers it again: an edge.
    pub fn pulse(&self) {
        // Two threads' edges must not become one, which the guest may have heard before the second had anything to say.
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        for active in [true, false] {
            // It fails only for a line that the interrupt controllers do not have.
            let _ = self.vm.set_irq_line(self.gsi, active);
        }
    }
}

/// Delivers message-signalled interrupts to a virtual machine.
#[derive(Debug)]
pub struct MessageSender {
    vm: Arc<VmFd>,
}

impl MessageSender {
    /// Delivers the message of `data` to `address`.
    pub fn send(&self, address: u64, data: u32) {
        let [address_lo, address_hi] =
            [address & 0xffff_ffff, address >> 32].map(|half| u32::try_from(half).unwrap_or_default());
        let message = kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() };
        // It fails only for an address or a vector that no local APIC takes: then nobody hears of it, as on a machine.
        let _ = self.vm.signal_msi(message);
    }
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    max_vcpus: usize,
    max_slots: usize,
    /// Keeps what the slots point to mapped for as long as the VM has them.
    memory: Option<GuestMemory>,
    images: Vec<Image>,
    hotplug: Option<Hotplug>,
}

impl Vm {
    /// Gives the guest its memory, a slot a region. Once.
    ///
    /// # Errors
    /// [`KvmError::TooMany`] slots, or what KVM says.
    pub fn add_memory(&mut self, memory: &GuestMemory) -> Result<(), KvmError> {
        self.check_slots(memory.num_regions())?;
        for (slot, region) in (0_u32..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr().addr() as u64,
            };
            #[expect(unsafe_code, reason = "KVM maps memory behind the compiler's back")]
            // SAFETY: the range is the region's mapping; `self.memory` keeps it for as long as the VM lives, and no
            // reference to guest memory is ever made.
            let set = unsafe { self.fd.set_user_memory_region(slot) };
            set.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        self.memory = Some(memory.clone());
        Ok(())
    }

    /// Shows the guest `images`, a slot an image: it reads them, and what it writes there leaves the guest as a write to
    /// an address without a device. Once, after [`Vm::add_memory`].
    ///
    /// # Errors
    /// [`KvmError::Capability`], [`KvmError::TooMany`] slots, or what KVM says.
    pub fn add_images(&mut self, images: &[Image]) -> Result<(), KvmError> {
        let taken = self.memory.as_ref().map_or(0, GuestMemoryBackend::num_regions);
        self.check_slots(taken + images.len())?;
        if !images.is_empty() && !self.fd.check_extension(Cap::ReadonlyMem) {
            return Err(KvmError::Capability("KVM_CAP_READONLY_MEM"));
        }
        for (slot, image) in (taken..).zip(images) {
            let slot = kvm_userspace_memory_region {
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
                flags: KVM_MEM_READONLY,
                guest_phys_addr: image.start(),
                memory_size: image.bytes(),
                userspace_addr: image.host_address(),
            };
            #[expect(unsafe_code, reason = "KVM maps memory behind the compiler's back")]
            // SAFETY: the range is the image's mapping; `self.images` keeps it for as long as the VM lives, and no
            // reference to its bytes is ever made.
            let set = unsafe { self.fd.set_user_memory_region(slot) };
            set.map_err(call("KVM_SET_USER_MEMORY_REGION (a pmem image)"))?;
        }
        self.images = images.to_vec();
        Ok(())
    }

    /// Shows the guest `hotplug`, in one slot: an access to what is not plugged ends `KVM_RUN` with `EFAULT`. Once, after
    /// [`Vm::add_images`].
    ///
    /// # Errors
    /// [`KvmError::TooMany`] slots, or what KVM says.
    pub fn add_hotplug(&mut self, hotplug: &Hotplug) -> Result<(), KvmError> {
        let taken = self.memory.as_ref().map_or(0, GuestMemoryBackend::num_regions) + self.images.len();
        self.check_slots(taken + 1)?;
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(taken).unwrap_or(u32::MAX),
            flags: 0,
            guest_phys_addr: hotplug.start(),
            memory_size: hotplug.bytes(),
            userspace_addr: hotplug.host_address(),
        };
        #[expect(unsafe_code, reason = "KVM maps memory behind the compiler's back")]
        // SAFETY: the range is the region's mapping; `self.hotplug` keeps it for as long as the VM lives, and no reference
        // to guest memory is ever made. What is inaccessible there is so to KVM too.
        let set = unsafe { self.fd.set_user_memory_region(slot) };
        set.map_err(call("KVM_SET_USER_MEMORY_REGION (memory-hotplug)"))?;
        self.hotplug = Some(hotplug.clone());
        Ok(())
    }

    fn check_slots(&self, wanted: usize) -> Result<(), KvmError> {
        if wanted > self.max_slots {
            return Err(KvmError::TooMany { what: "memory slots", wanted, allowed: self.max_slots });
        }
        Ok(())
    }

    /// Makes vCPU `index`.
    ///
    /// # Errors
    /// [`KvmError::TooMany`] vCPUs, or what KVM says.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        let wanted = usize::from(index) + 1;
        if wanted > self.max_vcpus {
            return Err(KvmError::TooMany { what: "vCPUs", wanted, allowed: self.max_vcpus });
        }
        self.fd.create_vcpu(index.into()).map_err(call("KVM_CREATE_VCPU"))
    }

    /// A write to `event` raises interrupt `gsi`.
    ///
    /// # Errors
    /// What KVM says.
    pub fn irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(call("KVM_IRQFD"))
    }

    /// Interrupt line `gsi`, for who raises it often: KVM hands an eventfd's interrupt to a kernel thread unless it is a message,
    /// and waking that costs more than to raise the line oneself.
    #[must_use]
    pub fn irq_line(&self, gsi: u32) -> IrqLine {
        IrqLine { vm: Arc::clone(&self.fd), gsi, alone: Mutex::new(()) }
    }

    /// The way of messages, as devices on a PCI bus send them: KVM delivers one at once, and it takes one call.
    ///
    /// # Errors
    /// [`KvmError::Capability`].
    pub fn messages(&self) -> Result<MessageSender, KvmError> {
        if self.fd.check_extension(Cap::SignalMsi) {
            Ok(MessageSender { vm: Arc::clone(&self.fd) })
        } else {
            Err(KvmError::Capability("KVM_CAP_SIGNAL_MSI, for PCI"))
        }
    }

    /// Any write of the guest's to `port` signals `event` and leaves the guest running.
    ///
    /// # Errors
    /// What KVM says.
    pub fn port_ioeventfd(&self, event: &EventFd, port: u64) -> Result<(), KvmError> {
        let result = self.fd.register_ioevent(event, &IoEventAddress::Pio(port), NoDatamatch);
        result.map_err(call("KVM_IOEVENTFD (a port)"))
    }

    /// The guest's 32-bit write of `value` to `address` signals `event` and leaves the guest running.
    ///
    /// # Errors
    /// What KVM says.
    pub fn ioeventfd(&self, event: &EventFd, address: u64, value: Option<u32>) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        let result = match value {
            Some(value) => self.fd.register_ioevent(event, &address, value),
            None => self.fd.register_ioevent(event, &address, NoDatamatch),
        };
        result.map_err(call("KVM_IOEVENTFD"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = Hypervisor::new(null.into()).unwrap_err();
        assert!(matches!(error, KvmError::NotKvm { version: -1 }), "{error}");
    }
}
