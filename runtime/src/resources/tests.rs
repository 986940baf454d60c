use super::*;
use husk_protocol::spec::RawSpec;
use std::io::Write;

fn spec(json: &str) -> MachineSpec {
    MachineSpec::try_from(serde_json::from_str::<RawSpec>(json).unwrap()).unwrap()
}

fn memfd(bytes: usize) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(&vec![1; bytes]).unwrap();
    file.into()
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

const KERNEL: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}}"#;

fn refused(json: &str, descriptors: Vec<OwnedFd>) -> String {
    Resources::assign(&spec(json), descriptors).unwrap_err().to_string()
}

#[test]
fn files_get_their_roles() {
    let json = r#"{"boot-source": {"kernel_image_path": {"fd": 2}, "initrd_path": {"fd": 1}},
                   "drives": [{"drive_id": "a", "path_on_host": {"fd": 3}}]}"#;
    let resources = Resources::assign(&spec(json), vec![null(), memfd(7), memfd(9), memfd(1024)]).unwrap();
    assert_eq!(resources.boot.kernel.metadata().unwrap().len(), 9);
    assert_eq!(resources.boot.initrd.unwrap().metadata().unwrap().len(), 7);
    assert_eq!(resources.devices.drives[0].metadata().unwrap().len(), 1024);
}

#[test]
fn a_missing_or_reused_index_is_named() {
    assert_eq!(refused(KERNEL, vec![]), "/dev/kvm: there is no descriptor 0; 0 came with the spec");
    let error = refused(KERNEL, vec![null()]);
    assert_eq!(error, "boot-source.kernel_image_path: there is no descriptor 1; 1 came with the spec");
    let error = refused(r#"{"boot-source": {"kernel_image_path": {"fd": 0}}}"#, vec![null()]);
    assert_eq!(
        error,
        "boot-source.kernel_image_path: descriptor 0 is in use already; each may be named once"
    );
    let error = refused(r#"{"boot-source": {"kernel_image_path": {"fd": 4294967295}}}"#, vec![null()]);
    assert!(error.contains("no descriptor 4294967295"), "{error}");
}

#[test]
fn a_path_is_refused() {
    let error = refused(r#"{"boot-source": {"kernel_image_path": "/boot/vmlinux"}}"#, vec![null()]);
    assert!(error.starts_with("boot-source.kernel_image_path: \"/boot/vmlinux\" is a path"), "{error}");
}

#[test]
fn kernels_that_are_no_files_are_named() {
    let (fifo, _writer) = std::io::pipe().unwrap();
    assert!(
        refused(KERNEL, vec![null(), fifo.into()]).contains("the file is a FIFO; a regular file is needed")
    );
    let directory = File::open("/").unwrap();
    assert!(refused(KERNEL, vec![null(), directory.into()]).contains("the file is a directory"));
    assert!(refused(KERNEL, vec![null(), null()]).contains("the file is a character device"));
    assert!(refused(KERNEL, vec![null(), memfd(0)]).contains("the file has 0 bytes; at least 1 is needed"));
}

#[test]
fn disks_are_whole_sectors_and_open_as_needed() {
    let json = |read_only: bool| {
        format!(
            r#"{{"boot-source": {{"kernel_image_path": {{"fd": 1}}}},
                "drives": [{{"drive_id": "d", "path_on_host": {{"fd": 2}}, "is_read_only": {read_only}}}]}}"#
        )
    };
    for bytes in [0, 511, 513] {
        let error = refused(&json(true), vec![null(), memfd(1), memfd(bytes)]);
        assert!(error.contains(&format!("drive \"d\"): the file has {bytes} bytes")), "{error}");
    }
    let (fifo, _writer) = std::io::pipe().unwrap();
    let others: [(OwnedFd, &str); 3] = [
        (null(), "a character device"),
        (fifo.into(), "a FIFO"),
        (File::open("/").unwrap().into(), "a directory"),
    ];
    for (other, name) in others {
        let error = refused(&json(true), vec![null(), memfd(1), other]);
        let expected = format!("the file is {name}; a regular file or a block device is needed");
        assert!(error.contains(&expected), "{error}");
    }
    let read_only = || OwnedFd::from(File::open("/proc/self/exe").unwrap());
    let bytes = File::from(read_only()).metadata().unwrap().len();
    let error = refused(&json(false), vec![null(), memfd(1), read_only()]);
    let expected = if bytes.is_multiple_of(512) { "not open for writing" } else { "a multiple of 512" };
    assert!(error.contains(expected), "{error}");
}

#[test]
fn sockets_must_be_of_the_right_kind() {
    let json =
        r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "exec": {"channel": {"fd": 2}, "port": 1024}}"#;
    let error = refused(json, vec![null(), memfd(1), memfd(1)]);
    assert_eq!(error, "exec.channel: the file is a regular file; a connected unix stream socket is needed");
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(
        Resources::assign(&spec(json), vec![null(), memfd(1), ours.into()]).unwrap().devices.exec.is_some()
    );
    let (ours, _theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(refused(json, vec![null(), memfd(1), ours.into()]).contains("a socket of another kind"));
    let volume = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "volumes": [{"tag": "a", "socket": {"fd": 2}}]}"#;
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let resources = Resources::assign(&spec(volume), vec![null(), memfd(1), ours.into()]).unwrap();
    assert_eq!(resources.devices.volumes.len(), 1);
    assert!(refused(volume, vec![null(), memfd(1), memfd(1)]).contains("volumes[0].socket (\"a\")"));
    let json = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "vsock": {"guest_cid": 3, "uds_path": {"fd": 2}}}"#;
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(refused(json, vec![null(), memfd(1), ours.into()]).contains("a listening unix stream socket"));
}

#[test]
fn files_without_a_role_are_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let _resources = Resources::assign(&spec(KERNEL), vec![null(), memfd(1), writer.into()]).unwrap();
    // End of file: nobody holds the writing end any more.
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
}

#[test]
fn only_a_tap_that_does_not_wait_is_a_network_card() {
    let json = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "network-interfaces": [
        {"iface_id": "net0", "guest_mac": "02:00:00:00:00:01", "tap": {"fd": 2}}]}"#;
    for (file, what) in [(null(), "a character device"), (memfd(512), "a regular file")] {
        let error = refused(json, vec![null(), memfd(7), file]);
        let start =
            format!("network-interfaces[0].tap (\"net0\"): the file is {what}; a tap from /dev/net/tun");
        assert!(error.starts_with(&start), "{error}");
    }
    let named = json.replace(r#""tap": {"fd": 2}"#, r#""host_dev_name": "tap0""#);
    let error = refused(&named, vec![null(), memfd(7)]);
    assert!(error.contains("\"tap0\" is a path"), "{error}");
    let stream = json.replace("tap", "stream");
    let error = refused(&stream, vec![null(), memfd(7), memfd(512)]);
    assert!(
        error.starts_with("network-interfaces[0].stream (\"net0\"): the file is a regular file"),
        "{error}"
    );
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let resources = Resources::assign(&spec(&stream), vec![null(), memfd(7), ours.into()]).unwrap();
    assert_eq!(resources.devices.wires.len(), 1);
}

#[test]
fn an_image_is_a_plain_file_that_is_open_for_reading_alone() {
    let json = r#"{"boot-source": {"kernel_image_path": {"fd": 1}},
                   "pmem": [{"id": "root", "path_on_host": {"fd": 2}}]}"#;
    let read_only = |file: OwnedFd| {
        use std::os::fd::AsRawFd;
        OwnedFd::from(File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap())
    };
    let taken = Resources::assign(&spec(json), vec![null(), memfd(7), read_only(memfd(5000))]).unwrap();
    assert_eq!(taken.devices.images[0].1, 5000);
    let error = |file| refused(json, vec![null(), memfd(7), file]);
    let text = error(memfd(5000));
    assert!(text.starts_with("pmem[0].path_on_host (\"root\"): the file is open for writing"), "{text}");
    let text = error(read_only(memfd(0)));
    assert!(text.contains("the file has 0 bytes; at least 1, and at most 256 GiB, is needed"), "{text}");
    let large = File::from(memfd(1));
    large.set_len((256 << 30) + 1).unwrap();
    assert!(error(read_only(large.into())).contains("274877906945 bytes"));
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(error(pipe.into()).contains("the file is a FIFO; a regular file is needed"));
    assert!(error(File::open("/").unwrap().into()).contains("the file is a directory"));
    assert!(error(null()).contains("the file is a character device"));
}
