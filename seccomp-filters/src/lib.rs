//! The seccomp filters of the runtime's threads and of volumes' servers: one table a role, one reason a rule, compiled at
//! build time.
//!
//! Owns what each thread may ask of the kernel. The default is `SECCOMP_RET_TRAP`: a call that no rule allows is not
//! made, and the runtime's SIGSYS handler reports role and call before it ends the process. A call through another
//! architecture's entry kills the process at once. Filters stack, so a thread can only ever narrow itself.
//!
//! Change a table by giving the rule a reason that a stranger can check against the code.

mod denied;
mod listing;
mod rule;
mod syscalls;
mod values;

pub use denied::Denied;
pub use listing::listing;
pub use rule::{Arch, Arg, Role, Rule, Width};
pub use seccompiler::sock_filter;
pub use values::VCPU_KICK_SIGNAL;

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// The architecture that this crate was built for.
pub const TARGET: Arch = if cfg!(target_arch = "x86_64") { Arch::X86_64 } else { Arch::Aarch64 };

/// A filter that could not be put on.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter of role {}: {source}", role.name())]
pub struct InstallError {
    role: Role,
    source: seccompiler::Error,
}

/// What a role is allowed, and why: the rules of this target, each once.
#[must_use]
pub fn table(role: Role) -> &'static [Rule] {
    match role {
        Role::Shell => TABLE_SHELL,
        Role::Build => TABLE_BUILD,
        Role::Control => TABLE_CONTROL,
        Role::Vcpu => TABLE_VCPU,
        Role::Device => TABLE_DEVICE,
        Role::Block => TABLE_BLOCK,
        Role::BlockRing => TABLE_BLOCK_RING,
        Role::Volume => TABLE_VOLUME,
        Role::VolumeWritable => TABLE_VOLUME_WRITABLE,
    }
}

/// The role's table, compiled for this target; instruction for instruction what the kernel then runs.
#[must_use]
pub fn program(role: Role) -> &'static [sock_filter] {
    match role {
        Role::Shell => PROGRAM_SHELL,
        Role::Build => PROGRAM_BUILD,
        Role::Control => PROGRAM_CONTROL,
        Role::Vcpu => PROGRAM_VCPU,
        Role::Device => PROGRAM_DEVICE,
        Role::Block => PROGRAM_BLOCK,
        Role::BlockRing => PROGRAM_BLOCK_RING,
        Role::Volume => PROGRAM_VOLUME,
        Role::VolumeWritable => PROGRAM_VOLUME_WRITABLE,
    }
}

/// Puts the role's filter on the calling thread, for good, after `no_new_privs`. Threads made later inherit it.
///
/// # Errors
/// The kernel has no seccomp, or a filter already on denies one more.
pub fn install(role: Role) -> Result<(), InstallError> {
    seccompiler::apply_filter(program(role)).map_err(|source| InstallError { role, source })
}

/// The name of call `number` on this target, for reports; only calls that occur in a table, and some that who breaks in would
/// make, have one.
#[must_use]
pub fn call_name(number: u32) -> Option<&'static str> {
    syscalls::SYSCALLS.iter().find(|call| call.number(TARGET) == Some(number)).map(|call| call.name)
}

/// The number of the call of that name on this target: what [`call_name`] knows, the other way round.
#[must_use]
pub fn call_number(name: &str) -> Option<u32> {
    syscalls::SYSCALLS.iter().find(|call| call.name == name)?.number(TARGET)
}

#[cfg(test)]
mod tests;
