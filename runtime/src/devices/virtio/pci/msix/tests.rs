use super::*;
use std::sync::Arc;

#[derive(Clone, Default)]
struct Mailbox(Arc<Mutex<Vec<(u64, u32)>>>);

impl Messenger for Mailbox {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().push((message.address, message.data));
    }
}

impl Mailbox {
    fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const ADDRESS: u64 = 0xfee0_1000;

/// Two queues with vectors 1 and 2, the configuration with 0; on, nothing masked.
fn started() -> (Msix, Mailbox) {
    let mailbox = Mailbox::default();
    let msix = Msix::new(2, Box::new(mailbox.clone()));
    for vector in 0..3 {
        msix.write(16 * vector, &ADDRESS.to_le_bytes());
        msix.write(16 * vector + 8, &(0x30 + vector).to_le_bytes());
    }
    msix.set_control(ENABLE);
    msix.set_config_vector(0);
    (0..2).for_each(|queue| msix.set_queue_vector(queue, queue + 1));
    (msix, mailbox)
}

fn dword(msix: &Msix, offset: u64) -> u32 {
    let mut data = [0xaa; 4];
    msix.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn each_queue_has_a_message_of_its_own() {
    let (msix, mailbox) = started();
    msix.queue(0);
    msix.queue(1);
    msix.config();
    assert_eq!(mailbox.take(), [(ADDRESS, 0x31), (ADDRESS, 0x32), (ADDRESS, 0x30)]);
    assert_eq!(msix.take_isr(), ISR_CONFIG, "of queues the ISR status says nothing now");
    assert_eq!(msix.take_isr(), 0);
}

#[test]
fn without_msix_the_isr_status_is_all_there_is() {
    let (msix, mailbox) = started();
    msix.set_control(0);
    msix.queue(0);
    assert_eq!(msix.take_isr(), ISR_QUEUE);
    msix.set_control(ENABLE);
    assert_eq!(mailbox.take(), [], "nor is it made up for later");
}

#[test]
fn what_is_masked_is_pending_and_sent_once_when_it_is_not() {
    let (msix, mailbox) = started();
    msix.write(16 + 12, &1_u32.to_le_bytes());
    (0..5).for_each(|_| msix.queue(0));
    msix.queue(1);
    assert_eq!(mailbox.take(), [(ADDRESS, 0x32)]);
    assert_eq!((dword(&msix, PENDING.into()), dword(&msix, u64::from(PENDING) + 4)), (2, 0));
    msix.write(PENDING.into(), &[0; 8]);
    assert_eq!(dword(&msix, PENDING.into()), 2, "a driver does not write these");
    // Another message by then.
    msix.write(16 + 8, &0x77_u32.to_le_bytes());
    msix.write(16 + 12, &0_u32.to_le_bytes());
    assert_eq!(mailbox.take(), [(ADDRESS, 0x77)]);
    msix.set_control(ENABLE | FUNCTION_MASK);
    msix.config();
    msix.queue(1);
    msix.write(16 + 12, &1_u32.to_le_bytes());
    msix.queue(0);
    assert_eq!(mailbox.take(), []);
    msix.set_control(ENABLE);
    assert_eq!(mailbox.take(), [(ADDRESS, 0x30), (ADDRESS, 0x32)], "the vector's own mask is still there");
    assert_eq!(dword(&msix, PENDING.into()), 2);
}

#[test]
fn item_15_vectors_and_entries_that_are_not_there_are_none() {
    let (msix, mailbox) = started();
    for vector in [3, 64, 65, 0x7fff, NO_VECTOR] {
        msix.set_queue_vector(0, vector);
        msix.set_config_vector(vector);
        assert_eq!((msix.queue_vector(0), msix.config_vector()), (NO_VECTOR, NO_VECTOR), "{vector}");
    }
    for queue in [2, 0xffff] {
        msix.set_queue_vector(queue, 0);
        assert_eq!(msix.queue_vector(queue), NO_VECTOR);
        msix.queue(queue);
    }
    msix.queue(0);
    msix.config();
    assert_eq!(mailbox.take(), []);
    for offset in [48, 0x7fc, 0x808, 0xffc, 0x1000, u64::MAX - 3] {
        msix.write(offset, &[0xff; 4]);
        assert_eq!(dword(&msix, offset), 0, "{offset:#x}");
    }
    for (offset, len) in [(0, 1), (0, 2), (0, 3), (2, 4), (4, 8), (0, 16), (1, 8), (0, 0)] {
        let mut data = vec![0xff; len];
        msix.write(offset, &data);
        msix.read(offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0), "{len} at {offset}");
    }
    assert_eq!(dword(&msix, 0), 0xfee0_1000);
}

#[test]
fn item_7_messages_to_anything_but_an_apic_go_nowhere() {
    let (msix, mailbox) = started();
    for address in
        [0, 0x1000, 0xfec0_0000, 0xfed0_0000, 0xfef0_0000, 0xffff_ffff_fee0_0000, 1 << 32 | 0xfee0_0000]
    {
        msix.write(16, &u64::to_le_bytes(address));
        msix.queue(0);
        assert_eq!(mailbox.take(), [], "{address:#x}");
    }
    msix.write(16, &0xfeef_ffff_u64.to_le_bytes());
    msix.write(16 + 12, &[0xfe, 0xff, 0xff, 0xff]);
    msix.queue(0);
    assert_eq!(mailbox.take(), [(0xfeef_fffc, 0x31)]);
    assert_eq!(dword(&msix, 16 + 12), 0, "only the mask is a bit of control");
}

#[test]
fn a_reset_leaves_the_table_and_takes_the_vectors() {
    let (msix, mailbox) = started();
    msix.set_control(ENABLE | FUNCTION_MASK);
    msix.config();
    msix.reset();
    msix.set_control(ENABLE);
    msix.queue(0);
    assert_eq!((mailbox.take(), msix.take_isr(), msix.queue_vector(0)), (vec![], 0, NO_VECTOR));
    assert_eq!(dword(&msix, 16 + 8), 0x31);
    msix.set_queue_vector(0, 1);
    msix.queue(0);
    assert_eq!(mailbox.take(), [(ADDRESS, 0x31)]);
}

#[test]
fn at_a_resume_each_vector_in_use_is_heard_again() {
    let (msix, mailbox) = started();
    msix.set_queue_vector(0, 2);
    msix.repeat();
    assert_eq!(mailbox.take(), [(ADDRESS, 0x30), (ADDRESS, 0x32)], "once each");
}

/// A spoiled value, and what the error says.
type Wrong = (fn(&mut State), &'static str);

#[test]
fn what_no_driver_brings_about_is_not_loaded() {
    let (msix, _) = started();
    let wrong: [Wrong; 8] = [
        (|it| it.entries.clear(), "number of vectors is 0; 3 is allowed"),
        (|it| it.entries[1].control = 2, "vector's entry"),
        (|it| it.entries[2].address = 1, "vector's entry"),
        (|it| it.pending = 8, "pending bits is 0x8"),
        (|it| it.config_vector = 3, "vector is 3; 0 to 2 or 65535"),
        (|it| it.queue_vectors[1] = 64, "vector is 64"),
        (|it| it.queue_vectors.clear(), "number of queues with vectors is 0; 2"),
        (|it| it.isr = 4, "ISR status is 4; 0 to 3"),
    ];
    for (spoil, said) in wrong {
        let mut bad = msix.save();
        spoil(&mut bad);
        let error = msix.check(&bad).unwrap_err().to_string();
        assert!(error.contains(said), "{error}: {said}");
    }
    msix.check(&msix.save()).unwrap();
    let most = Msix::new(100, Box::new(Mailbox::default()));
    assert_eq!(most.vectors(), MOST_VECTORS);
    most.check(&most.save()).unwrap();
}
