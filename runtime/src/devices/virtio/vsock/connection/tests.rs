use super::*;

const KEY: Key = Key { host_port: 1024, guest_port: 77 };
const WINDOW: u32 = 1000;

fn packet(op: Op) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: KEY.guest_port,
        dst_port: KEY.host_port,
        kind: TYPE_STREAM,
        raw_op: op as u16,
        buf_alloc: 500,
        ..Header::default()
    }
}

fn data(len: u32) -> Header {
    Header { len, ..packet(Op::Data) }
}

/// Open, asked for by the guest, with the response told.
fn open() -> Connection {
    let mut connection = Connection::asked(&packet(Op::Request), WINDOW);
    connection.agree();
    let response = connection.next_control().unwrap();
    assert_eq!(response.op(), Some(Op::Response));
    assert_eq!((response.src_cid, response.dst_cid), (2, 3));
    assert_eq!((response.src_port, response.dst_port), (1024, 77));
    assert_eq!((response.kind, response.buf_alloc, response.fwd_cnt), (TYPE_STREAM, WINDOW, 0));
    assert!(!connection.has_control());
    connection
}

#[test]
fn the_guest_asks_and_the_host_agrees() {
    let mut connection = Connection::asked(&packet(Op::Request), WINDOW);
    assert_eq!((connection.phase(), connection.credit(), connection.has_control()), (Phase::Asked, 0, false));
    connection.agree();
    assert_eq!((connection.phase(), connection.credit()), (Phase::Open, 500));
}

#[test]
fn the_host_asks_and_the_guest_agrees() {
    let mut connection = Connection::requested(KEY, 3, WINDOW);
    assert_eq!(connection.next_control().unwrap().op(), Some(Op::Request));
    assert_eq!(connection.credit(), 0);
    assert_eq!(connection.incoming(&packet(Op::Response)), Ok(Incoming::Established));
    assert_eq!((connection.phase(), connection.credit()), (Phase::Open, 500));
    assert_eq!(connection.incoming(&packet(Op::Response)), Err(Violation), "once");
}

#[test]
fn item_12_each_phase_allows_its_own_packets_only() {
    let all = [Op::Request, Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
    for op in all {
        let mut asked = Connection::asked(&packet(Op::Request), WINDOW);
        assert_eq!(asked.incoming(&packet(op)), Err(Violation), "{op:?} while asked");
        let mut requested = Connection::requested(KEY, 3, WINDOW);
        assert_eq!(requested.incoming(&packet(op)).is_ok(), op == Op::Response, "{op:?} while requested");
        let fine = !matches!(op, Op::Request | Op::Response);
        assert_eq!(open().incoming(&packet(op)).is_ok(), fine, "{op:?} while open");
    }
    for raw_op in [0, 8, 0xffff] {
        assert_eq!(open().incoming(&Header { raw_op, ..packet(Op::Data) }), Err(Violation));
    }
}

#[test]
fn data_is_counted_and_reported_when_half_the_window_went_by() {
    let mut connection = open();
    let data = |len| Header { buf_alloc: 9999, ..data(len) };
    assert_eq!(connection.incoming(&data(499)), Ok(Incoming::Data(499)));
    connection.forwarded(499);
    assert!(!connection.has_control());
    assert_eq!(connection.incoming(&data(1)), Ok(Incoming::Data(1)));
    connection.forwarded(1);
    let update = connection.next_control().unwrap();
    assert_eq!((update.op(), update.fwd_cnt, update.buf_alloc), (Some(Op::CreditUpdate), 500, WINDOW));
    assert!(!connection.has_control());
}

/// A Linux guest (6.12's stable series) waits for credit after as many bytes as its own buffer holds.
#[test]
fn a_guest_with_a_small_buffer_hears_earlier() {
    let mut connection = open();
    for round in 1..100 {
        assert_eq!(connection.incoming(&data(250)), Ok(Incoming::Data(250)));
        connection.forwarded(249);
        assert!(!connection.has_control());
        connection.forwarded(1);
        assert_eq!(connection.next_control().unwrap().fwd_cnt, 250 * round);
    }
    connection.incoming(&Header { buf_alloc: 0, ..packet(Op::CreditUpdate) }).unwrap();
    connection.forwarded(0);
    assert!(!connection.has_control(), "nothing new to tell");
}

#[test]
fn data_for_the_guest_reports_too() {
    let mut connection = open();
    connection.incoming(&data(600)).unwrap();
    connection.forwarded(600);
    assert_eq!(connection.next_data(10).fwd_cnt, 600);
    assert!(!connection.has_control(), "no packet of its own any more");
}

#[test]
fn credit_is_told_when_it_is_asked_for() {
    let mut connection = open();
    assert_eq!(connection.incoming(&packet(Op::CreditRequest)), Ok(Incoming::Counters));
    assert_eq!(connection.next_control().unwrap().op(), Some(Op::CreditUpdate));
}

#[test]
fn item_12_more_than_the_window_is_a_violation() {
    let mut connection = open();
    assert_eq!(connection.incoming(&data(WINDOW)), Ok(Incoming::Data(WINDOW)));
    assert_eq!(connection.incoming(&data(1)), Err(Violation));
    assert_eq!(open().incoming(&data(WINDOW + 1)), Err(Violation));
    assert_eq!(open().incoming(&data(u32::MAX)), Err(Violation));
    let mut connection = open();
    for _ in 0..1000 {
        connection.incoming(&data(WINDOW)).unwrap();
        connection.forwarded(WINDOW);
    }
}

#[test]
fn the_guests_window_bounds_what_is_sent() {
    let mut connection = open();
    assert_eq!(connection.next_data(300).len, 300);
    assert_eq!(connection.credit(), 200);
    connection.next_data(200);
    assert_eq!(connection.credit(), 0);
    connection.incoming(&Header { fwd_cnt: 450, ..packet(Op::CreditUpdate) }).unwrap();
    assert_eq!(connection.credit(), 450);
    // It may shrink its buffer below what is under way.
    connection.incoming(&Header { fwd_cnt: 450, buf_alloc: 20, ..packet(Op::CreditUpdate) }).unwrap();
    assert_eq!(connection.credit(), 0);
}

#[test]
fn item_12_credit_for_bytes_never_sent_is_a_violation() {
    for fwd_cnt in [301, 1 << 31, u32::MAX] {
        let mut connection = open();
        connection.next_data(300);
        assert_eq!(connection.incoming(&Header { fwd_cnt, ..packet(Op::CreditUpdate) }), Err(Violation));
    }
    let mut connection = open();
    connection.next_data(300);
    connection.incoming(&Header { fwd_cnt: 200, ..packet(Op::CreditUpdate) }).unwrap();
    assert_eq!(
        connection.incoming(&Header { fwd_cnt: 199, ..packet(Op::CreditUpdate) }),
        Err(Violation),
        "backwards"
    );
}

#[test]
fn counters_wrap_without_a_seam() {
    let mut connection = open();
    let window = 1 << 31;
    connection.incoming(&Header { buf_alloc: window, ..packet(Op::CreditUpdate) }).unwrap();
    let mut sent = 0u32;
    for _ in 0..10 {
        assert_eq!(connection.credit(), window);
        connection.next_data(window);
        sent = sent.wrapping_add(window);
        connection
            .incoming(&Header { fwd_cnt: sent, buf_alloc: window, ..packet(Op::CreditUpdate) })
            .unwrap();
    }
    for _ in 0..10_000_000 {
        connection.received = connection.received.wrapping_add(999);
        connection.forwarded(999);
        assert_eq!(connection.incoming(&Header { fwd_cnt: sent, ..data(1) }), Ok(Incoming::Data(1)));
        connection.forwarded(1);
    }
}

#[test]
fn each_side_shuts_for_itself() {
    let mut connection = open();
    let shut = |flags| Header { flags, ..packet(Op::Shutdown) };
    assert_eq!(connection.incoming(&shut(SHUT_SEND)), Ok(Incoming::Shut));
    assert_eq!(connection.guest_shut(), SHUT_SEND);
    assert_eq!(connection.credit(), 500, "the guest still receives");
    assert_eq!(connection.incoming(&data(1)), Err(Violation), "but does not send");
    let mut connection = open();
    connection.incoming(&shut(SHUT_RECEIVE | 0xff00)).unwrap();
    assert_eq!((connection.guest_shut(), connection.credit()), (SHUT_RECEIVE, 0));
    assert_eq!(connection.incoming(&data(1)), Ok(Incoming::Data(1)));
}

#[test]
fn what_the_host_shut_is_told_once_a_change() {
    let mut connection = open();
    connection.shut_by_host(SHUT_SEND);
    let told = connection.next_control().unwrap();
    assert_eq!((told.op(), told.flags), (Some(Op::Shutdown), SHUT_SEND));
    assert_eq!(connection.credit(), 0);
    connection.shut_by_host(SHUT_SEND);
    assert!(!connection.has_control());
    connection.shut_by_host(SHUT_RECEIVE);
    assert_eq!(connection.next_control().unwrap().flags, SHUT_BOTH);
    assert!(connection.next_control().is_none());
}

#[test]
fn a_reset_is_told_once_and_is_the_last_word() {
    let mut connection = open();
    connection.shut_by_host(SHUT_BOTH);
    connection.forwarded(WINDOW);
    connection.reset();
    connection.reset();
    assert_eq!(connection.next_control().unwrap().op(), Some(Op::Reset));
    assert!(connection.next_control().is_none());
    assert_eq!(connection.incoming(&data(5)), Ok(Incoming::Counters), "what was under way means nothing");
    connection.reset();
    assert!(!connection.has_control());
}

#[test]
fn the_guests_reset_is_not_answered() {
    let mut connection = open();
    connection.shut_by_host(SHUT_SEND);
    assert_eq!(connection.incoming(&packet(Op::Reset)), Ok(Incoming::Reset));
    assert_eq!((connection.phase(), connection.has_control()), (Phase::Closed, false));
}
