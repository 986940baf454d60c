//! The form of the tables: who a rule is for, which call it allows, with which arguments, and why.
//!
//! Shared by the crate and its build script. A rule only ever allows; what no rule of a role allows is denied. A rule
//! without a reason is not a rule: the build refuses it.

/// Which thread, in which phase, a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The runtime from before its first message on, until the virtual machine and its vCPUs are made; every later filter
    /// of the runtime lies on top of it.
    Shell,
    /// The main thread while the machine is built and its threads are made.
    Build,
    /// The main thread once the guest runs.
    Control,
    /// A thread that runs one vCPU.
    Vcpu,
    /// The thread on which the workers run that never wait for the host.
    Device,
    /// A thread that runs one drive's worker, and waits for the host's disk.
    Block,
    /// The same for a drive with an io_uring, which was set up while the machine was built.
    BlockRing,
    /// The process that serves a read-only directory; not the runtime's, and with no other filter below it.
    Volume,
    /// The process that serves a directory that the guest may change.
    VolumeWritable,
}

impl Role {
    /// All of them, in the order of the generated tables.
    pub const ALL: [Self; 9] = [
        Self::Shell,
        Self::Build,
        Self::Control,
        Self::Vcpu,
        Self::Device,
        Self::Block,
        Self::BlockRing,
        Self::Volume,
        Self::VolumeWritable,
    ];

    /// The roles of the runtime: the phases in their order, then its threads once the guest runs.
    pub const RUNTIME: [Self; 7] =
        [Self::Shell, Self::Build, Self::Control, Self::Vcpu, Self::Device, Self::Block, Self::BlockRing];

    /// The roles of threads once the guest runs.
    pub const RUNNING: [Self; 5] = [Self::Control, Self::Vcpu, Self::Device, Self::Block, Self::BlockRing];

    /// The filters that a thread of this role obeys, the first one first: its own lies on those of the phases before.
    #[must_use]
    pub const fn stack(self) -> &'static [Self] {
        match self {
            Self::Shell => &[Self::Shell],
            Self::Build => &[Self::Shell, Self::Build],
            Self::Control => &[Self::Shell, Self::Build, Self::Control],
            Self::Vcpu => &[Self::Shell, Self::Build, Self::Vcpu],
            Self::Device => &[Self::Shell, Self::Build, Self::Device],
            Self::Block => &[Self::Shell, Self::Build, Self::Block],
            Self::BlockRing => &[Self::Shell, Self::Build, Self::BlockRing],
            Self::Volume => &[Self::Volume],
            Self::VolumeWritable => &[Self::VolumeWritable],
        }
    }

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Build => "build",
            Self::Control => "control",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::Block => "block",
            Self::BlockRing => "block_ring",
            Self::Volume => "volume",
            Self::VolumeWritable => "volume_writable",
        }
    }
}

/// Where a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Everywhere.
    Any,
    /// On x86_64.
    X86_64,
    /// On aarch64.
    Aarch64,
}

impl Arch {
    /// Whether a rule for `self` belongs into the filter of `target`.
    #[must_use]
    pub fn covers(self, target: Self) -> bool {
        self == Self::Any || self == target
    }
}

/// One call that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub arch: Arch,
    /// The call's name, as in the kernel's table.
    pub call: &'static str,
    /// What must hold for its arguments, all of it; nothing: any arguments.
    pub args: &'static [Arg],
    /// Who makes this call, and for what.
    pub reason: &'static str,
}

impl Rule {
    /// Whether all that `other` allows is allowed by this rule too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.call == other.call
            && self.args.iter().all(|arg| other.args.iter().any(|narrow| narrow.implies(arg)))
    }
}

impl Arg {
    /// Whether whatever passes this test passes `other` as well.
    fn implies(&self, other: &Self) -> bool {
        let width = |arg: &Self| if arg.width == Width::Low32 { u64::from(u32::MAX) } else { u64::MAX };
        let (ours, theirs) = (self.mask & width(self), other.mask & width(other));
        self.index == other.index && ours & theirs == theirs && self.value & theirs == other.value & theirs
    }
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// Which, counted from 0.
    pub index: u8,
    /// How much of the register the kernel looks at.
    pub width: Width,
    /// Bits that are compared.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// How much of an argument's register counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The kernel takes an `int`: the upper half is noise.
    Low32,
    /// The kernel takes a `long` or a pointer.
    Full64,
}
