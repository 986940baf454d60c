use super::*;
use crate::exec::*;

pub(crate) fn examples() -> Vec<Frame> {
    vec![
        Frame::Hello(Hello { version: VERSION, features: 0 }),
        Frame::GuestHello(GuestHello { version: VERSION, features: 5, init_ticks: u64::MAX }),
        Frame::Mounts(Mounts {
            root: RootMount { disk: Disk::Pmem(0), fs_type: "erofs".into() },
            drives: vec![DriveMount {
                disk: Disk::Drive("data".into()),
                fs_type: String::new(),
                target: "/data".into(),
                read_only: false,
            }],
        }),
        Frame::Network(Network {
            mac: [2; 6],
            mtu: 1500,
            addresses: vec![("10.0.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            dns: vec!["fd00::53".parse().unwrap()],
        }),
        Frame::Identity(Identity { hostname: "a".into(), realtime_ns: 7, entropy: [9; 32] }),
        Frame::Ready,
        Frame::Fatal("no root".into()),
        Frame::Exec(
            7,
            Exec {
                argv: vec![b"sh".to_vec(), vec![0xff, 0xfe]],
                env: vec![b"A=1".to_vec()],
                cwd: b"/tmp".to_vec(),
                user: User::Spec("nobody".into()),
                terminal: Some(WindowSize { rows: 24, cols: 80 }),
                stdin: true,
                last: true,
            },
        ),
        Frame::Started(7),
        Frame::ExecFailed(7, ExecFailure { kind: ExecFailureKind::NotFound, message: "x".into() }),
        Frame::Data(7, Stream::Stdin, vec![0; 5]),
        Frame::Data(7, Stream::Stdout, vec![1; MAX_PAYLOAD]),
        Frame::Data(7, Stream::Stderr, vec![2]),
        Frame::Close(7, Stream::Stdin),
        Frame::Credit(7, Stream::Stdout, 70_000),
        Frame::Resize(7, WindowSize { rows: 1, cols: 2 }),
        Frame::Signal(7, 15),
        Frame::Exit(7, Exit::Signal(9)),
        Frame::Shutdown,
        Frame::Report(GuestReport { unclean: vec!["data: busy".into()], ..GuestReport::default() }),
    ]
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes).unwrap();
    }
    bytes
}

fn collect(decoder: &mut Decoder) -> Result<Vec<Frame>, DecodeError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn every_frame_reads_back_whole_and_byte_by_byte() {
    let bytes = wire(&examples());
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert_eq!(collect(&mut decoder).unwrap(), examples());

    let small: Vec<Frame> =
        examples().into_iter().filter(|f| !matches!(f, Frame::Data(_, Stream::Stdout, _))).collect();
    let mut frames = Vec::new();
    for byte in wire(&small) {
        decoder.push(&[byte]);
        frames.extend(collect(&mut decoder).unwrap());
    }
    assert_eq!(frames, small);
}

#[test]
fn a_giant_length_is_refused_from_the_header_alone() {
    let mut decoder = Decoder::new();
    decoder.push(&[0xff, 0xff, 0xff, 0xff, kind::STDOUT, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(decoder.next_frame(), Err(DecodeError::TooLong { kind: kind::STDOUT, length: u32::MAX }));
}

#[test]
fn unknown_kinds_and_set_zero_bytes_are_refused() {
    let mut decoder = Decoder::new();
    decoder.push(&[0, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(decoder.next_frame(), Err(DecodeError::UnknownKind { kind: 200 }));
    let mut decoder = Decoder::new();
    decoder.push(&[0, 0, 0, 0, kind::READY, 1, 0, 0, 0, 0, 0, 0]);
    assert!(decoder.next_frame().is_err());
}

#[test]
fn cut_and_overlong_payloads_are_malformed() {
    for frame in examples() {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        if matches!(frame, Frame::Data(..) | Frame::Fatal(_)) {
            continue;
        }
        let length = bytes.len() - HEADER_BYTES;
        bytes.push(0);
        bytes[..4].copy_from_slice(&u32::try_from(length + 1).unwrap().to_le_bytes());
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert!(matches!(decoder.next_frame(), Err(DecodeError::Malformed { .. })), "{frame:?}");
    }
}

#[test]
fn an_empty_data_frame_is_malformed() {
    let mut decoder = Decoder::new();
    decoder.push(&[0, 0, 0, 0, kind::STDERR, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(decoder.next_frame(), Err(DecodeError::Malformed { kind: kind::STDERR, length: 0 }));
}

#[test]
fn a_lying_vector_length_inside_a_payload_allocates_nothing() {
    // An Exec whose argv claims 2^28 strings in a payload of five bytes.
    let payload = [0x80, 0x80, 0x80, 0x80, 0x01];
    let mut bytes = vec![5, 0, 0, 0, kind::EXEC, 0, 0, 0, 1, 0, 0, 0];
    bytes.extend_from_slice(&payload);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert!(matches!(decoder.next_frame(), Err(DecodeError::Malformed { .. })));
}

#[test]
fn what_does_not_fit_is_not_encoded() {
    let mut out = vec![1];
    let frame = Frame::Data(1, Stream::Stdin, vec![0; MAX_PAYLOAD + 1]);
    assert!(matches!(frame.encode(&mut out), Err(EncodeError::TooLong { .. })));
    assert_eq!(out, [1]);
}
