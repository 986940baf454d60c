//! The virtual machine monitor: one process, one microVM.
//!
//! Modules stand bottom up; imports point only to what stands above. The way of a sandbox is in [`vmm`]; what it is made of
//! is composed in [`machine`]; `docs/architecture.md` has the picture.

pub mod state;

pub mod sys;

pub mod report;

pub mod console;
pub mod memory;

pub mod kvm;

pub mod devices;

pub mod arch;

pub mod vcpu;

pub mod spec;

pub mod resources;

pub mod confine;

pub mod machine;

pub mod boot;

pub mod control;

pub mod vmm;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
