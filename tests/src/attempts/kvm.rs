//! Requests to KVM beyond those that a machine takes, on a virtual machine that is there already.

use super::call::{at, call, done, int, past};
use super::{Attempt, World};
use husk_seccomp::Role;
use std::io::{Error, Result};

pub(super) const ALL: &[Attempt] = &[
    Attempt::surface("kvm-another-machine", |w, _| kvm(w, 0xae01, 0).map(drop)).allowed_to(&[Role::Shell]),
    Attempt::surface("kvm-index-of-msrs", |w, _| {
        past(&[libc::E2BIG], kvm(w, 0xc004_ae02, at(&mut [0_u32; 2])))
    }),
    Attempt::surface("kvm-emulated-cpuid", |w, _| {
        past(&[libc::E2BIG], kvm(w, 0xc008_ae09, at(&mut [0_u32; 2])))
    }),
    Attempt::surface("kvm-device-for-vfio", |_, vm| device(vm, 4)).after(machine).where_built(),
    Attempt::surface("kvm-device-for-a-bus", |_, vm| device(vm, 1)).after(machine).where_built(),
    Attempt::surface("kvm-timer", |_, vm| vm_call(vm, 0x4040_ae77, at(&mut [0_u32; 16])))
        .after(machine_with_irqs),
    Attempt::surface("kvm-dirty-log", |_, vm| {
        past(&[libc::ENOENT, libc::EINVAL], vm_request(vm, 0x4010_ae42, at(&mut [0_usize; 2])))
    })
    .after(machine),
    Attempt::surface("kvm-capability", |_, vm| {
        past(&[libc::EINVAL], vm_request(vm, 0x4068_aea3, at(&mut [0_u64; 13])))
    })
    .after(machine),
    Attempt::surface("kvm-routes-of-interrupts", |_, vm| vm_call(vm, 0x4008_ae6a, at(&mut [0_u32; 2])))
        .after(machine_with_irqs),
    Attempt::surface("kvm-clock", |_, vm| vm_call(vm, 0x8030_ae7c, at(&mut [0_u64; 6]))).after(machine),
    Attempt::surface("kvm-msr-filter", |_, vm| {
        past(&[libc::EINVAL], vm_request(vm, 0x4188_aec6, at(&mut [0_u64; 49])))
    })
    .after(machine),
    Attempt::surface("kvm-encryption", |_, vm| {
        past(&[libc::ENOTTY, libc::EINVAL, libc::EFAULT], vm_request(vm, 0xc008_aeba, 0))
    })
    .after(machine),
    Attempt::surface("kvm-statistics", |_, vm| vm_call(vm, 0xaece, 0)).after(machine).where_built(),
    Attempt::surface("kvm-memory-of-a-file", |_, vm| {
        let mut request = [4096_u64, 0, 0, 0, 0, 0, 0, 0];
        past(&[libc::EINVAL, libc::ENOTTY], vm_request(vm, 0xc040_aed4, at(&mut request)))
    })
    .after(machine),
    Attempt::surface("kvm-coalesced-writes", |_, vm| vm_call(vm, 0x4010_ae67, at(&mut [0_u32; 4])))
        .after(machine),
    Attempt::surface("kvm-state-of-interrupts", |_, vm| vm_call(vm, 0xc208_ae62, at(&mut [0_u64; 65])))
        .after(machine_with_irqs),
    Attempt::surface("kvm-debug-a-guest", |_, cpu| vm_call(cpu, 0x4048_ae9b, at(&mut [0_u64; 9])))
        .after(processor),
    Attempt::surface("kvm-translate-an-address", |_, cpu| vm_call(cpu, 0xc018_ae85, at(&mut [0_u64; 3])))
        .after(processor),
    Attempt::surface("kvm-floating-point", |_, cpu| vm_call(cpu, 0x81a0_ae8c, at(&mut [0_u64; 52])))
        .after(processor),
    Attempt::surface("kvm-events", |_, cpu| vm_call(cpu, 0x8040_ae9f, at(&mut [0_u64; 8]))).after(processor),
    Attempt::surface("kvm-non-maskable-interrupt", |_, cpu| vm_call(cpu, 0xae9a, 0)).after(processor),
    Attempt::surface("kvm-mask-of-signals", |_, cpu| vm_call(cpu, 0x4004_ae8b, 0)).after(processor),
    Attempt::surface("kvm-nested-state", |_, cpu| {
        past(&[libc::EINVAL, libc::E2BIG, libc::EFAULT], vm_request(cpu, 0xc080_aebe, at(&mut [0_u64; 16])))
    })
    .after(processor),
];

fn vm_request(object: usize, request: usize, argument: usize) -> Result<usize> {
    call(libc::SYS_ioctl, &[object, request, argument])
}

fn vm_call(object: usize, request: usize, argument: usize) -> Result<()> {
    done(libc::SYS_ioctl, &[object, request, argument])
}

fn kvm(world: &World, request: usize, argument: usize) -> Result<usize> {
    let kvm = world.kvm.ok_or_else(|| Error::from_raw_os_error(libc::ENODEV))?;
    vm_request(int(kvm), request, argument)
}

fn machine(world: &World) -> Result<usize> {
    kvm(world, 0xae01, 0)
}

fn machine_with_irqs(world: &World) -> Result<usize> {
    let machine = machine(world)?;
    vm_request(machine, 0xae60, 0)?;
    Ok(machine)
}

fn processor(world: &World) -> Result<usize> {
    vm_request(machine(world)?, 0xae41, 0)
}

/// `KVM_CREATE_DEVICE`, of this kind.
fn device(machine: usize, kind: u32) -> Result<()> {
    past(&[libc::ENODEV, libc::EINVAL], vm_request(machine, 0xc00c_aee0, at(&mut [kind, 0, 0])))
}
