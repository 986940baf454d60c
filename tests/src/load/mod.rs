//! Load on one device of a guest: what the guest does, what it says of it, and the host's end of it.
//!
//! Owns the words that the benchmark and the guest's program share. Refuses a job that it does not know. Invariant: a job
//! is over when its last byte has arrived at the other end, so what is counted was carried, not buffered.

pub mod far_end;
pub mod guest;

use std::fmt;
use std::str::FromStr;

/// Bytes of a sequential read, and of a read of the far end's.
pub const BLOCK: usize = 1 << 20;
/// Bytes of a random read.
pub const PAGE: usize = 4096;
/// Bytes that a stream is written and read in.
pub const CHUNK: usize = 64 << 10;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the guest to the host.
    Out,
    /// From the host to the guest.
    In,
}

/// What a guest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// So many reads of 4 KiB from anywhere on a disk, one at a time, past the page cache.
    Random {
        /// The disk, as in `/dev/vdb`.
        disk: String,
        /// How many.
        reads: u64,
    },
    /// So many reads of 1 MiB in a row, past the page cache.
    Sequential {
        /// The disk.
        disk: String,
        /// How many.
        reads: u64,
    },
    /// A TCP stream.
    Tcp {
        /// The host's end, as in `192.0.2.1:5000`.
        address: String,
        /// Which way.
        way: Way,
        /// How much.
        mib: u64,
    },
    /// A vsock stream.
    Vsock {
        /// The host's port.
        port: u32,
        /// Which way.
        way: Way,
        /// How much.
        mib: u64,
    },
}

impl Job {
    /// As arguments of the guest's program.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let way = |way: &Way| if *way == Way::Out { "out" } else { "in" }.to_owned();
        match self {
            Self::Random { disk, reads } => vec!["random".into(), disk.clone(), reads.to_string()],
            Self::Sequential { disk, reads } => vec!["sequential".into(), disk.clone(), reads.to_string()],
            Self::Tcp { address, way: to, mib } => {
                vec!["tcp".into(), address.clone(), way(to), mib.to_string()]
            }
            Self::Vsock { port, way: to, mib } => {
                vec!["vsock".into(), port.to_string(), way(to), mib.to_string()]
            }
        }
    }

    /// What [`Self::words`] says.
    ///
    /// # Errors
    /// They are no job's.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text}: not a number"));
        let way = |text: &str| match text {
            "out" => Ok(Way::Out),
            "in" => Ok(Way::In),
            _ => Err(format!("{text}: out or in")),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(match words[..] {
            ["random", disk, reads] => Self::Random { disk: disk.into(), reads: number(reads)? },
            ["sequential", disk, reads] => Self::Sequential { disk: disk.into(), reads: number(reads)? },
            ["tcp", address, to, mib] => {
                Self::Tcp { address: address.into(), way: way(to)?, mib: number(mib)? }
            }
            ["vsock", port, to, mib] => {
                let port = port.parse().map_err(|_| format!("{port}: not a port"))?;
                Self::Vsock { port, way: way(to)?, mib: number(mib)? }
            }
            _ => {
                return Err(
                    "random|sequential DISK READS, tcp ADDRESS out|in MIB, vsock PORT out|in MIB".into()
                );
            }
        })
    }
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// Reads, or 1 for a stream.
    pub operations: u64,
    /// Bytes carried.
    pub bytes: u64,
    /// From its first call to its last, ns of the guest's `CLOCK_MONOTONIC`.
    pub ns: u64,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "took {} {} {}", self.operations, self.bytes, self.ns)
    }
}

impl FromStr for Took {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<u64>> = text
            .trim()
            .strip_prefix("took ")
            .map(|rest| rest.split(' ').map_while(|word| word.parse().ok()).collect());
        match numbers.as_deref() {
            Some(&[operations, bytes, ns]) => Ok(Self { operations, bytes, ns }),
            _ => Err(format!("the guest said {text:?}, not what its job took")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_what_they_took_are_understood_as_they_are_said() {
        let jobs = [
            Job::Random { disk: "/dev/vda".into(), reads: 7 },
            Job::Sequential { disk: "/dev/vdb".into(), reads: 1 },
            Job::Tcp { address: "192.0.2.1:5000".into(), way: Way::Out, mib: 3 },
            Job::Vsock { port: 5000, way: Way::In, mib: 3 },
        ];
        for job in jobs {
            assert_eq!(Job::parse(&job.words()).unwrap(), job);
        }
        assert!(Job::parse(&["random".into(), "/dev/vda".into(), "x".into()]).is_err());
        assert!(Job::parse(&["tcp".into(), "a".into(), "up".into(), "1".into()]).is_err());
        let took = Took { operations: 1, bytes: 2, ns: 3 };
        assert_eq!(took.to_string().parse(), Ok(took));
        assert!("took 1 2".parse::<Took>().is_err() && "sh: not found".parse::<Took>().is_err());
    }
}
