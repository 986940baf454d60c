//! The virtio devices of a machine: the one `match` from spec to device.
//!
//! Owns the order, which is the guest's. Refuses a device for which nothing has come along. Invariant: a device learns
//! nothing of its transport, nor of the thread that its worker is on.

use super::attach::Places;
use super::{Drives, Loop, MachineError, Voices, descriptor, next_of};
use crate::arch;
use crate::console::Console;
use crate::devices::state::Devices;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, Tell};
use crate::devices::virtio::console::VirtioConsole;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::LoopHandle;
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::gate::Limit;
use crate::devices::virtio::limiter::{RateLimiter, TokenBucket};
use crate::devices::virtio::mem::{Mem, Requested};
use crate::devices::virtio::net::{Net, policy::Policy};
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::transport::Transport;
use crate::devices::virtio::vsock::{Vsock, VsockAnswers, VsockHost};
use crate::kvm::Vm;
use crate::memory::{DeviceMemory, Hotplug, Image};
use crate::resources::DeviceFiles;
use crate::spec::{
    BalloonSpec, BucketSpec, DeviceSpec, HotplugSpec, LimiterSpec, MachineSpec, NetworkSpec, VolumeSpec,
    WireSpec,
};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Makes virtio devices, and gives each its place, one after the other.
pub(super) struct Virtio<'a> {
    vm: &'a Vm,
    memory: &'a DeviceMemory,
    pub(super) hotplug: Option<&'a Hotplug>,
    /// The loop that never waits for the host.
    pub(super) workers: LoopHandle,
    pub(super) loops: Vec<Loop>,
    pub(super) places: Places,
    /// Of the memory device, until it has its place.
    asked: Option<Requested>,
    pub(super) requested: Option<(Requested, Arc<Transport>)>,
    pub(super) devices: Devices,
    pub(super) drives: Drives,
}

impl<'a> Virtio<'a> {
    /// None yet.
    pub(super) fn on(
        vm: &'a Vm,
        memory: &'a DeviceMemory,
        hotplug: Option<&'a Hotplug>,
        (places, workers, loops, devices, drives): (Places, LoopHandle, Vec<Loop>, Devices, Drives),
    ) -> Self {
        Self { vm, memory, hotplug, workers, loops, places, asked: None, requested: None, devices, drives }
    }

    /// All that `spec` asks for, in the guest's order; `files` in the spec's. Returns who hears about the socket device's
    /// connections.
    pub(super) fn add_all(
        &mut self,
        spec: &MachineSpec,
        files: DeviceFiles,
        images: &[Image],
        (Voices { ask, tell }, console): (Voices, &Arc<Console>),
    ) -> Result<Option<VsockAnswers>, MachineError> {
        let mut vsock = None;
        let (mut disks, mut wires) = (files.drives.into_iter(), files.wires.into_iter());
        let (mut images, mut volumes) = (images.iter(), files.volumes.into_iter());
        let mut streams = Some((files.exec, files.vsock_listener, ask));
        for device in spec.device_specs() {
            let name = device.name();
            let mut workers = self.workers.clone();
            let device: Box<dyn VirtioDevice> = match device {
                DeviceSpec::Drive(drive) => {
                    let (disk, own) = self.drive(drive, next_of(&mut disks, &name)?, &name)?;
                    workers = own;
                    Box::new(disk)
                }
                DeviceSpec::Network(it) => Box::new(network_card(it, next_of(&mut wires, &name)?, &name)?),
                DeviceSpec::Vsock(it) => {
                    let host = streams.take().map_or_else(VsockHost::default, |it| socket_host(spec, it));
                    let (device, answers) = Vsock::new(it.cid().into(), host).map_err(descriptor("vsock"))?;
                    vsock = Some(answers);
                    Box::new(device)
                }
                DeviceSpec::Entropy(it) => Box::new(Entropy::new(limit(it.limiter(), &name)?)),
                DeviceSpec::Console => Box::new(printer(console).map_err(descriptor(&name))?),
                DeviceSpec::Balloon(it) => Box::new(balloon(it, &tell).map_err(descriptor(&name))?),
                DeviceSpec::Hotplug(it) => Box::new(self.memory_device(it, &name)?),
                DeviceSpec::Pmem(_) => Box::new(Pmem::new(next_of(&mut images, &name)?)),
                DeviceSpec::Volume(it) => Box::new(volume(it, volumes.next(), &name)?),
            };
            self.add(device, &name, workers)?;
        }
        Ok(vsock)
    }

    fn memory_device(&mut self, it: &HotplugSpec, name: &str) -> Result<Mem, MachineError> {
        let mem = Mem::new(next_of(&mut self.hotplug.into_iter(), name)?);
        mem.requested().set(it.requested());
        self.asked = Some(mem.requested());
        Ok(mem)
    }

    fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        name: &str,
        workers: LoopHandle,
    ) -> Result<(), MachineError> {
        let transport = self.places.add(self.vm, name, device, (self.memory.clone(), workers))?;
        self.devices.add(name, Arc::clone(&transport));
        if let Some(asked) = self.asked.take() {
            self.requested = Some((asked, transport));
        }
        Ok(())
    }
}

/// The host's side of the socket device: exec channel, listener and the way to ask husk.
fn socket_host(
    spec: &MachineSpec,
    (exec, listener, ask): (Option<OwnedFd>, Option<OwnedFd>, super::Ask),
) -> VsockHost {
    // Only a vsock with a path on the host has other ports to ask husk for.
    let ask = listener.is_some().then_some(ask);
    VsockHost { exec: spec.exec().map(|exec| exec.port()).zip(exec), listener, ask }
}

fn volume(it: &VolumeSpec, socket: Option<OwnedFd>, name: &str) -> Result<Fs, MachineError> {
    let socket = socket.ok_or_else(|| MachineError::NoSlot { device: name.into() })?;
    let fs = Fs::new(it.tag(), socket).map_err(descriptor(name))?;
    Ok(fs.with_limit(limit(it.limiter(), name)?))
}

fn balloon(it: &BalloonSpec, tell: &Tell) -> io::Result<Balloon> {
    let balloon = Balloon::new(it.amount_mib(), it.deflate_on_oom(), it.free_page_reporting());
    match it.statistics() {
        Some(interval) => balloon.with_statistics(interval, Arc::clone(tell)),
        None => Ok(balloon),
    }
}

fn printer(console: &Arc<Console>) -> io::Result<VirtioConsole> {
    VirtioConsole::new(Arc::clone(console), |memory| arch::screen::text(memory.ram()))
}

fn network_card(card: &NetworkSpec, wire: Vec<OwnedFd>, name: &str) -> Result<Net, MachineError> {
    let policy = Policy::new(card.allow().to_vec(), card.addresses().to_vec());
    let mut wire = wire.into_iter();
    let first = next_of(&mut wire, name)?;
    let net = match card.wire() {
        WireSpec::Tap(_) => Net::new(first, wire.collect(), card.mac(), card.mtu(), policy),
        WireSpec::Stream(_) => {
            Net::over_stream(first, card.mac(), card.mtu(), policy).map_err(descriptor(name))?
        }
    };
    Ok(net.with_limits(limit(card.receive_limiter(), name)?, limit(card.transmit_limiter(), name)?))
}

/// The rate limiter that `spec` asks for, full from now on.
pub(super) fn limit(spec: Option<LimiterSpec>, device: &str) -> Result<Option<Limit>, MachineError> {
    let bucket = |it: BucketSpec| TokenBucket::new(it.size(), it.burst(), it.refill_ms());
    let limiter = spec.map(|it| RateLimiter::new(it.bandwidth().map(bucket), it.operations().map(bucket)));
    limiter.map(|limiter| Limit::new(limiter).map_err(descriptor(device))).transpose()
}
