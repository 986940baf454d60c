//! The words that tables are written in.

use crate::rule::{Arch, Arg, Rule, Width};

/// Allows `call` with any arguments.
pub(crate) const fn any(call: &'static str, reason: &'static str) -> Rule {
    Rule { arch: Arch::Any, call, args: &[], reason }
}

/// Allows `call` where all of `args` hold.
pub(crate) const fn when(call: &'static str, args: &'static [Arg], reason: &'static str) -> Rule {
    Rule { arch: Arch::Any, call, args, reason }
}

/// The same rule, on one architecture only.
pub(crate) const fn only(arch: Arch, rule: Rule) -> Rule {
    Rule { arch, ..rule }
}

/// Argument `index`, an `int`, equals `value`.
pub(crate) const fn is(index: u8, value: u32) -> Arg {
    Arg { index, width: Width::Low32, mask: u32::MAX as u64, value: value as u64 }
}

/// Argument `index`, a `long` or pointer, equals `value`.
pub(crate) const fn is_long(index: u8, value: u64) -> Arg {
    Arg { index, width: Width::Full64, mask: u64::MAX, value }
}

/// Argument `index`, a `long`, has no bit beside those of `allowed`.
pub(crate) const fn within(index: u8, allowed: u64) -> Arg {
    Arg { index, width: Width::Full64, mask: !allowed, value: 0 }
}

/// Argument `index`, an `int`, has no bit beside those of `allowed`.
pub(crate) const fn within_int(index: u8, allowed: u32) -> Arg {
    Arg { index, width: Width::Low32, mask: !allowed as u64, value: 0 }
}

/// Argument `index`, a `long`, has all bits of `needed` and none beside those of `allowed`.
pub(crate) const fn within_with(index: u8, allowed: u64, needed: u64) -> Arg {
    Arg { index, width: Width::Full64, mask: !allowed | needed, value: needed }
}

/// `ioctl` on a KVM descriptor.
pub(crate) const fn kvm(request: &'static [Arg], reason: &'static str) -> Rule {
    when("ioctl", request, reason)
}

/// The same, on x86_64 only.
pub(crate) const fn x86(request: &'static [Arg], reason: &'static str) -> Rule {
    only(Arch::X86_64, kvm(request, reason))
}

/// The same, on aarch64 only.
pub(crate) const fn arm(request: &'static [Arg], reason: &'static str) -> Rule {
    only(Arch::Aarch64, kvm(request, reason))
}
