//! The tables: which groups of rules make up a role.
//!
//! Read by the build script, which keeps the rules of the target and drops doubles. Filters stack (a thread obeys its
//! role's, the building one and the shell's), so each phase is made of all that comes after it and of what it alone needs:
//! that it allows whatever later ones allow holds by construction. A volume's server is a process of its own.

mod block;
mod building;
mod control;
mod device;
mod every;
mod form;
mod shell;
mod vcpu;
mod volume;

use crate::rule::{Role, Rule};

/// The groups of a role, the hot ones first: rules of one call are tried in this order.
pub(crate) const fn groups(role: Role) -> &'static [&'static [Rule]] {
    match role {
        Role::Vcpu => &[vcpu::RULES, every::RULES],
        Role::Device => &[device::RULES, every::RULES],
        Role::Block => &[block::RULES, every::RULES],
        Role::BlockRing => &[block::RING, block::RULES, every::RULES],
        Role::Control => &[control::RULES, every::RULES],
        Role::Volume => &[volume::RULES, every::RULES],
        Role::VolumeWritable => &[volume::RULES, volume::CHANGES, every::RULES],
        Role::Build => &[
            vcpu::RULES,
            device::RULES,
            block::RING,
            block::RULES,
            control::RULES,
            every::RULES,
            building::RULES,
        ],
        Role::Shell => &[
            vcpu::RULES,
            device::RULES,
            block::RING,
            block::RULES,
            control::RULES,
            every::RULES,
            building::RULES,
            shell::RULES,
        ],
    }
}
