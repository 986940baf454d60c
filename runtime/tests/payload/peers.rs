//! What is at the other ends of a sandbox's devices: a disk, an image, a network, a server of files, a reader of the console.
//!
//! Owns their threads, which end with the sandbox. What they do wrong, a test asks for by [`Host`].

use crate::guest::Bus;
use crate::tap::{self, Wire};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Bytes of the image in memory, each an [`IMAGE_BYTE`].
const IMAGE_BYTES: usize = 8192;
const IMAGE_BYTE: u8 = b'i';
/// Who the guest is.
pub(crate) const MAC: [u8; 6] = [2, 0xfc, 0, 0, 0, 1];
/// The host's end of the network.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0xfc, 0, 0, 0, 2];
/// ENOENT, as a server says it.
const ENOENT: i32 = -2;

/// What the host does, beside what it should.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Nothing.
    Sound,
    /// The disk may not be written.
    ReadOnly,
    /// The network never rests.
    Floods,
    /// The server of files says that its answer is longer than any answer.
    Lies,
    /// It leaves at the first request.
    Leaves,
    /// It reads nothing and says nothing.
    IsSilent,
}

/// See the module.
pub(crate) struct Peers {
    printed: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    image: File,
    threads: Vec<JoinHandle<()>>,
    sources: Arc<std::sync::Mutex<Vec<[u8; 6]>>>,
    /// The exec channel: nobody talks, but it is open.
    _exec: UnixStream,
}

/// The specification of a machine with every device; of the card only if there is one.
fn spec(read_only: bool, card: bool, pci: bool) -> String {
    let network = r#""network-interfaces": [{"iface_id": "net0", "guest_mac": "02:fc:00:00:00:01", "tap": {"fd": 7},
        "allow": ["10.0.0.0/8:*"]}],"#;
    format!(
        r#"{{"boot-source": {{"kernel_image_path": {{"fd": 1}}, "boot_args": ""}},
        "machine-config": {{"mem_size_mib": 32, "pci": {pci}}},
        "drives": [{{"drive_id": "vda", "path_on_host": {{"fd": 2}}, "is_read_only": {read_only}}}],
        {}
        "entropy": {{}}, "balloon": {{"amount_mib": 1, "deflate_on_oom": true}},
        "pmem": [{{"id": "image", "path_on_host": {{"fd": 5}}}}],
        "volumes": [{{"tag": "data", "socket": {{"fd": 6}}}}],
        "exec": {{"channel": {{"fd": 3}}, "port": 1024}},
        "console": {{"output": {{"fd": 4}}, "device": "virtio"}}}}"#,
        if card { network } else { "" }
    )
}

fn memfd(name: &str, bytes: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::empty()).unwrap());
    file.write_all(bytes).unwrap();
    file
}

impl Peers {
    /// The specification and its descriptors, the kernel among them, and what is at their other ends.
    pub(crate) fn new((host, bus): (Host, Bus), kvm: File, kernel: OwnedFd) -> (String, Vec<OwnedFd>, Self) {
        let disk = memfd("disk", &[7; 64 << 10]);
        let image = memfd("image", &[IMAGE_BYTE; IMAGE_BYTES]);
        // Who maps an image never writes to it: the file is open for reading alone.
        let mapped = File::open(format!("/proc/self/fd/{}", image.as_raw_fd())).unwrap();
        let (exec, channel) = UnixStream::pair().unwrap();
        let (console, output) = std::io::pipe().unwrap();
        let (server, volume) = UnixStream::pair().unwrap();
        let mut descriptors: Vec<OwnedFd> = vec![
            kvm.into(),
            kernel,
            disk.into(),
            channel.into(),
            output.into(),
            mapped.into(),
            volume.into(),
        ];
        let mut peers = Self {
            printed: Arc::default(),
            over: Arc::default(),
            image,
            threads: Vec::new(),
            sources: Arc::default(),
            _exec: exec,
        };
        peers.read_console(console);
        peers.spawn(move |over| serve(server, host, &over));
        let wire = tap::missing().is_none().then(|| tap::pair().unwrap());
        let card = wire.is_some();
        if let Some((tap, wire)) = wire {
            descriptors.push(tap);
            let sources = Arc::clone(&peers.sources);
            peers.spawn(move |over| network(&wire, host, &over, &sources));
        }
        (spec(host == Host::ReadOnly, card, bus == Bus::Pci), descriptors, peers)
    }

    fn spawn(&mut self, body: impl FnOnce(Arc<AtomicBool>) + Send + 'static) {
        let over = Arc::clone(&self.over);
        #[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
        self.threads.push(std::thread::spawn(move || body(over)));
    }

    /// The console's reader is never slow, or what is printed would be lost.
    fn read_console(&mut self, mut console: std::io::PipeReader) {
        let count = Arc::clone(&self.printed);
        self.spawn(move |_| {
            let mut bytes = [0; 4096];
            while let Ok(1..) = console.read(&mut bytes).inspect(|&read| {
                count.fetch_add(read as u64, Ordering::SeqCst);
            }) {}
        });
    }

    /// Bytes that the guest has printed.
    pub(crate) fn printed(&self) -> u64 {
        self.printed.load(Ordering::SeqCst)
    }

    /// The runtime has ended: nothing may have come of what the guest must not do.
    pub(crate) fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut image = [0; IMAGE_BYTES + 1];
        let length = self.image.read_at(&mut image, 0).unwrap();
        assert_eq!(length, IMAGE_BYTES, "the image has another length");
        assert!(image[..length].iter().all(|&byte| byte == IMAGE_BYTE), "the image was written to");
        // A guest's addresses are locally administered like this one; the tap's own is random.
        let spoofed = |source: &[u8; 6]| source[..5] == MAC[..5] && *source != MAC && *source != HOST_MAC;
        let sources = self.sources.lock().unwrap();
        assert!(!sources.iter().any(spoofed), "a frame went out from another's address: {sources:x?}");
    }
}

/// A frame for the guest.
fn frame() -> Vec<u8> {
    let mut frame = [MAC, HOST_MAC].concat();
    frame.extend([8, 0]);
    frame.resize(600, 0x55);
    frame
}

fn network(wire: &Wire, host: Host, over: &AtomicBool, seen: &std::sync::Mutex<Vec<[u8; 6]>>) {
    let frame = frame();
    while !over.load(Ordering::SeqCst) {
        if host == Host::Floods {
            (0..64).for_each(|_| wire.send(&frame));
        }
        let sources = wire.sources();
        let mut seen = seen.lock().unwrap();
        seen.extend(sources);
        seen.sort_unstable();
        seen.dedup();
        drop(seen);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A server of files that has none.
fn serve(mut stream: UnixStream, host: Host, over: &AtomicBool) {
    let mut head = [0; 40];
    if host == Host::IsSilent {
        while !over.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        return;
    }
    while stream.read_exact(&mut head).is_ok() && host != Host::Leaves {
        let length = u32::from_le_bytes(head[..4].try_into().unwrap());
        let mut body = vec![0; length as usize - head.len()];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let said: u32 = if host == Host::Lies { u32::MAX } else { 16 };
        let answer = [&said.to_le_bytes(), &ENOENT.to_le_bytes()[..], &head[8..16]].concat();
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}
