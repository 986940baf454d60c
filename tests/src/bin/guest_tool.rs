//! What tests need inside a guest and busybox cannot do: vsock, writing a mapped file without a copy, and breaking PID 1.
//!
//! Started as `husk-jailer` it is a jailer that never ends.

#![expect(unsafe_code, reason = "vsock sockets are made by hand, and a mapped file is no slice")]

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|name| name.ends_with("husk-jailer")) {
        std::thread::sleep(std::time::Duration::from_secs(600));
        return ExitCode::FAILURE;
    }
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let done = match words[..] {
        ["vsock-echo", port, connections] => echo(number(port), number(connections)),
        ["vsock-send", port, text] => send(number(port), text),
        ["vsock-forward", port, address, connections] => forward(number(port), address, number(connections)),
        ["tcp-echo", address] => tcp_echo(address),
        ["http-get", address] => http_get(address),
        ["direct-write", from, to] => direct_write(from, to),
        ["kill-init"] => kill_init(),
        _ => Err(std::io::Error::other(
            "usage: vsock-echo PORT CONNECTIONS | vsock-send PORT TEXT | http-get ADDRESS:PORT | direct-write FROM TO | \
             kill-init",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-tool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or_default()
}

/// Fetches / and prints how many bytes came after the header. A static busybox's wget needs a C library's plug-ins.
fn http_get(address: &str) -> std::io::Result<()> {
    let address = address.parse().map_err(std::io::Error::other)?;
    let patience = std::time::Duration::from_secs(5);
    let mut stream = std::net::TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let header = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
    println!("{}", answer.len().saturating_sub(header + 4));
    Ok(())
}

/// Writes the file `from` to the start of the disk `to`, from its own pages: it is mapped, and the write goes round the
/// page cache. Prints the number of bytes.
fn direct_write(from: &str, to: &str) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let from = std::fs::File::open(from)?;
    let length = usize::try_from(from.metadata()?.len()).map_err(std::io::Error::other)?;
    let to = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(to)?;
    let (prot, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
    // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
    let bytes = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, &from, 0) }?;
    // SAFETY: the kernel reads `length` bytes from a mapping of as many, which is never unmapped.
    let written = unsafe { libc::write(to.as_raw_fd(), bytes, length) };
    if written < 0 {
        return Err(std::io::Error::last_os_error());
    }
    to.sync_all()?;
    println!("{written}");
    Ok(())
}

/// Connects and sends back what comes, until it ends.
fn tcp_echo(address: &str) -> std::io::Result<()> {
    let stream = std::net::TcpStream::connect(address)?;
    std::io::copy(&mut &stream, &mut &stream)?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Accepts so many connections, side by side, and connects each with a server in this guest.
fn forward(port: u32, address: &str, connections: u32) -> std::io::Result<()> {
    let listener = vsock::listen(port)?;
    let mut ways = Vec::new();
    for _ in 0..connections {
        let host = vsock::accept(&listener)?;
        let server = std::net::TcpStream::connect(address)?;
        let (mut from_host, mut to_server) = (host.try_clone()?, server.try_clone()?);
        ways.push(std::thread::spawn(move || {
            std::io::copy(&mut from_host, &mut to_server)?;
            to_server.shutdown(std::net::Shutdown::Write)
        }));
        let (mut from_server, mut to_host) = (server, host);
        ways.push(std::thread::spawn(move || {
            std::io::copy(&mut from_server, &mut to_host)?;
            vsock::shutdown_write(&to_host)
        }));
    }
    for way in ways {
        way.join().map_err(|_| std::io::Error::other("a thread panicked"))??;
    }
    Ok(())
}

/// Accepts so many connections, one after another, and sends back what comes.
fn echo(port: u32, connections: u32) -> std::io::Result<()> {
    let listener = vsock::listen(port)?;
    for _ in 0..connections {
        let mut stream = vsock::accept(&listener)?;
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = stream.read(&mut bytes)?;
            if count == 0 {
                break;
            }
            stream.write_all(&bytes[..count])?;
        }
    }
    Ok(())
}

/// Sends a text to a port of the host, then prints what comes back.
fn send(port: u32, text: &str) -> std::io::Result<()> {
    let mut stream = vsock::connect(port)?;
    stream.write_all(text.as_bytes())?;
    vsock::shutdown_write(&stream)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    std::io::stdout().flush()
}

/// Overwrites PID 1's code through `/proc/1/mem`: the next instruction that it executes is not one.
fn kill_init() -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/1/mem")?;
    for line in std::fs::read_to_string("/proc/1/maps")?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(permissions)) = (words.next(), words.next()) else { continue };
        if !permissions.contains('x') || line.contains("[v") {
            continue;
        }
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else {
            continue;
        };
        let size = usize::try_from(end - start).unwrap_or_default();
        // ud2, again and again.
        memory.write_all_at(&[0x0f, 0x0b].repeat(size / 2), start)?;
    }
    // Our end wakes PID 1.
    Ok(())
}

mod vsock {
    //! `AF_VSOCK` sockets, which rustix does not know by type.

    use super::{FromRawFd, OwnedFd};
    use std::fs::File;
    use std::io::{Error, Result};
    use std::os::fd::AsRawFd;

    fn socket() -> Result<OwnedFd> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: `socket` has just returned this descriptor, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
        libc::sockaddr_vm {
            svm_family: u16::try_from(libc::AF_VSOCK).unwrap_or_default(),
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        }
    }

    const LENGTH: libc::socklen_t = 16;

    pub(crate) fn connect(port: u32) -> Result<File> {
        let socket = socket()?;
        let address = address(libc::VMADDR_CID_HOST, port);
        // SAFETY: `address` is a whole sockaddr_vm of LENGTH bytes and lives through the call.
        let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) };
        if done < 0 { Err(Error::last_os_error()) } else { Ok(File::from(socket)) }
    }

    pub(crate) fn listen(port: u32) -> Result<OwnedFd> {
        let socket = socket()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: `address` is a whole sockaddr_vm of LENGTH bytes and lives through the call.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) } < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: no pointer is passed.
        if unsafe { libc::listen(socket.as_raw_fd(), 8) } < 0 {
            return Err(Error::last_os_error());
        }
        Ok(socket)
    }

    pub(crate) fn accept(listener: &OwnedFd) -> Result<File> {
        // SAFETY: null address pointers ask for no address.
        let fd = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: `accept` has just returned this descriptor, and nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    pub(crate) fn shutdown_write(stream: &File) -> Result<()> {
        // SAFETY: no pointer is passed.
        if unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) } < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }
}
