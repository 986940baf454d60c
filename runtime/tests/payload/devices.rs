//! The devices of a machine on KVM, out of one and into another.

use super::cell::kernel;
use husk_protocol::spec::RawSpec;
use husk_runtime::machine::{Machine, Shell, Voices};
use husk_runtime::resources::Resources;
use husk_runtime::spec::MachineSpec;
use husk_runtime::state;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SPEC: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "machine-config": {"mem_size_mib": 32},
    "drives": [{"drive_id": "root", "path_on_host": {"fd": 2}, "is_root_device": false}], "entropy": {},
    "balloon": {"amount_mib": AMOUNT, "deflate_on_oom": true}, "vsock": {"guest_cid": 3}}"#;

/// A machine with a disk of so many sectors; none (and a line that says so) where there is no KVM.
fn machine(sectors: u64, amount_mib: &str) -> Option<Machine> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    let disk = memfd_create("disk", MemfdFlags::empty()).unwrap();
    ftruncate(&disk, 512 * sectors).unwrap();
    let raw: RawSpec = serde_json::from_str(&SPEC.replace("AMOUNT", amount_mib)).unwrap();
    let spec = MachineSpec::try_from(raw).unwrap();
    let descriptors: Vec<OwnedFd> = vec![kvm.into(), kernel(&[]), disk];
    let files = Resources::assign(&spec, descriptors).unwrap();
    let shell = Shell::new(files.kvm, 1).unwrap();
    let voices = Voices { ask: Box::new(|_, _| true), tell: Arc::new(|_| {}) };
    Some(Machine::build(shell, spec, files.devices, voices).unwrap())
}

#[test]
fn a_machines_devices_are_those_of_another_machine_of_its_spec() {
    let soon = || Instant::now() + Duration::from_secs(10);
    let Some(first) = machine(8, "4") else { return };
    assert!(first.save_devices().is_err(), "they are not paused");
    first.pause_devices(soon()).unwrap();
    let bytes = state::to_bytes(&first.save_devices().unwrap());
    let sections = state::from_bytes(&bytes).unwrap();
    // The serial port, and four virtio devices.
    assert_eq!(sections.len(), 5);
    first.resume_devices();
    assert!(first.save_devices().is_err());
    let second = machine(8, "5").unwrap();
    second.load_devices(&sections).unwrap();
    assert_eq!(second.save_devices().unwrap(), sections);
    second.resume_devices();
    let error = machine(9, "4").unwrap().load_devices(&sections).unwrap_err().to_string();
    let said = r#"drive "root": virtio-block: capacity is 8; 9, as the drive's file has is allowed"#;
    assert_eq!(error, said);
}
