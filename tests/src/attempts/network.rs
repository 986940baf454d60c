//! Networks, and sockets of every family.

use super::call::{at, call, done, int, past};
use super::{Attempt, World};
use husk_seccomp::Role;
use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// `SO_PEERPIDFD`, since Linux 6.5.
const SO_PEERPIDFD: usize = 77;
/// The highest family that Linux has a number for.
const AF_LAST: i32 = 46;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("connect-unix", |w, _| UnixStream::connect(&w.targets.socket).map(drop)),
    Attempt::out("connect-abstract", |w, _| {
        let name = SocketAddr::from_abstract_name(w.targets.abstract_name.as_bytes())?;
        UnixStream::connect_addr(&name).map(drop)
    }),
    Attempt::out("connect-inet", |w, _| {
        TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, w.targets.port)).map(drop)
    }),
    Attempt::surface("listen-inet", |_, _| {
        TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).map(drop)
    }),
    Attempt::out("send-inet", |_, _| {
        let socket = family(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        // sockaddr_in of 127.0.0.1:9.
        let mut to = [2_u8, 0, 0, 9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut byte = 0_u8;
        past(&[libc::ECONNREFUSED], call(libc::SYS_sendto, &[socket, at(&mut byte), 1, 0, at(&mut to), 16]))
    }),
    Attempt::out("listen-on-unix-name", |w, _| {
        drop(UnixListener::bind(&w.targets.new)?);
        std::fs::remove_file(&w.targets.new)
    }),
    Attempt::surface("listen-on-abstract-name", |w, _| {
        let name = format!("{}-2", w.targets.abstract_name);
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?).map(drop)
    }),
    Attempt::surface("socket-unix", |_, _| family(libc::AF_UNIX, libc::SOCK_STREAM, 0).map(drop)),
    Attempt::surface("socket-inet", |_, _| family(libc::AF_INET, libc::SOCK_STREAM, 0).map(drop)),
    Attempt::surface("socket-inet6", |_, _| family(libc::AF_INET6, libc::SOCK_STREAM, 0).map(drop))
        .where_built(),
    Attempt::surface("socket-netlink-routes", |_, _| family(libc::AF_NETLINK, libc::SOCK_RAW, 0).map(drop)),
    Attempt::surface("socket-netlink-firewall", |_, _| {
        family(libc::AF_NETLINK, libc::SOCK_RAW, 12).map(drop)
    })
    .where_built(),
    Attempt::surface("socket-netlink-uevents", |_, _| family(libc::AF_NETLINK, libc::SOCK_RAW, 15).map(drop)),
    Attempt::out("socket-raw", |_, _| family(libc::AF_INET, libc::SOCK_RAW, 1).map(drop)),
    Attempt::out("socket-packet", |_, _| family(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop)).where_built(),
    Attempt::surface("socket-vsock", |_, _| family(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(drop))
        .where_built(),
    Attempt::surface("socket-algorithms", |_, _| family(libc::AF_ALG, libc::SOCK_SEQPACKET, 0).map(drop))
        .where_built(),
    Attempt::surface("socket-bluetooth", |_, _| family(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1).map(drop))
        .where_built(),
    Attempt::surface("socket-can", |_, _| family(libc::AF_CAN, libc::SOCK_RAW, 1).map(drop)).where_built(),
    Attempt::surface("socket-tipc", |_, _| family(libc::AF_TIPC, libc::SOCK_STREAM, 0).map(drop))
        .where_built(),
    Attempt::out("socket-keys", |_, _| family(libc::AF_KEY, libc::SOCK_RAW, 2).map(drop)).where_built(),
    Attempt::out("socket-xdp", |_, _| family(libc::AF_XDP, libc::SOCK_RAW, 0).map(drop)).where_built(),
    Attempt::surface("socket-of-any-family", |_, _| {
        let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET];
        let all = (1..AF_LAST).flat_map(|number| kinds.map(|kind| (number, kind)));
        let made = all.map(|(number, kind)| family(number, kind, 0)).find(Result::is_ok);
        made.unwrap_or_else(|| Err(Error::from(ErrorKind::Unsupported))).map(drop)
    }),
    Attempt::surface("socket-pair", |_, _| {
        let mut pair = [0_i32; 2];
        done(libc::SYS_socketpair, &[int(libc::AF_UNIX), int(libc::SOCK_STREAM), 0, at(&mut pair)])
    }),
    Attempt::surface("send-a-descriptor", |w, _| {
        // cmsghdr of one descriptor: length, SOL_SOCKET and SCM_RIGHTS, and the number.
        let mut rights = [20_u64, 0x1_0000_0001, u64::from(w.image.cast_unsigned())];
        message(w, &mut rights)
    })
    .allowed_to(&[Role::Shell, Role::Build, Role::Device]),
    Attempt::out("send-as-somebody-else", |w, _| {
        // cmsghdr of SCM_CREDENTIALS: process 1's, user and group root.
        let mut credentials = [28_u64, 0x2_0000_0001, 1, 0];
        message(w, &mut credentials)
    }),
    Attempt::surface("handle-of-the-peer", |w, _| peer(w).map(drop)).where_built(),
    Attempt::surface("send-many", |w, _| {
        let mut none = [0_u64; 8];
        done(libc::SYS_sendmmsg, &[int(w.control), at(&mut none), 0, 0])
    }),
    Attempt::surface("receive-many", |w, _| {
        let mut none = [0_u64; 8];
        past(&[libc::EAGAIN], call(libc::SYS_recvmmsg, &[int(w.control), at(&mut none), 0, 0x40, 0]))
    }),
    Attempt::surface("name-of-the-peer", |w, _| {
        let (mut room, mut size) = ([0_u8; 128], 128_u32);
        done(libc::SYS_getpeername, &[int(w.control), at(&mut room), at(&mut size)])
    }),
    Attempt::surface("owner-of-the-peer", |w, _| option(w, libc::SO_PEERCRED, 12)),
    Attempt::surface("attach-a-socket-filter", |w, _| {
        let mut filter = [0xffff_0000_0006_u64];
        let mut program = [1_usize, at(&mut filter)];
        let arguments =
            [int(w.control), int(libc::SOL_SOCKET), int(libc::SO_ATTACH_FILTER), at(&mut program), 16];
        done(libc::SYS_setsockopt, &arguments)
    }),
    Attempt::out("grow-buffers-past-the-limit", |w, _| {
        let mut bytes = 1 << 16;
        let arguments =
            [int(w.control), int(libc::SOL_SOCKET), int(libc::SO_SNDBUFFORCE), at::<i32>(&mut bytes), 4];
        done(libc::SYS_setsockopt, &arguments)
    }),
    Attempt::surface("shut-a-side-down", |w, _| done(libc::SYS_shutdown, &[int(w.control), 0]))
        .allowed_to(&[Role::Shell, Role::Build, Role::Device]),
];

fn family(number: i32, kind: i32, protocol: i32) -> Result<usize> {
    call(libc::SYS_socket, &[int(number), int(kind | libc::SOCK_CLOEXEC), int(protocol)])
}

/// One word on the control socket, with this beside it.
fn message(world: &World, control: &mut [u64]) -> Result<()> {
    let mut word = *b"nothing";
    let mut vector = [at(&mut word), word.len()];
    let mut header =
        [0, 0, at(&mut vector), 1, at(control.first_mut().unwrap_or(&mut 0)), size_of_val(control), 0];
    done(libc::SYS_sendmsg, &[int(world.control), at(&mut header), int(libc::MSG_NOSIGNAL)])
}

fn option(world: &World, name: i32, bytes: u32) -> Result<()> {
    let (mut room, mut size) = ([0_u8; 64], bytes);
    let arguments = [int(world.control), int(libc::SOL_SOCKET), int(name), at(&mut room), at(&mut size)];
    done(libc::SYS_getsockopt, &arguments)
}

fn peer(world: &World) -> Result<usize> {
    let (mut handle, mut size) = (0_i32, 4_u32);
    let arguments = [int(world.control), int(libc::SOL_SOCKET), SO_PEERPIDFD, at(&mut handle), at(&mut size)];
    call(libc::SYS_getsockopt, &arguments)
}
